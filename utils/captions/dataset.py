"""Adds sentences to a dataset of video features: caption files, moments, token features, vocabularies and YAML file.

The files are written to a new folder that takes the place of the old one at once, so that a reader finds either. Token
features made in another way get another folder beside it, and the YAML file names the folder that is used.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from method.config.options import known_datasets
from method.config.own_dataset import WIDTH_FLAGS, own_features, own_folder, own_yaml, update_yaml
from method.data.captions import group_by_video
from method.data.features import ACTION_KEY, OBJECT_KEY
from method.runtime.disk import replace_folder
from method.runtime.errors import InputError
from method.runtime.files import read_json, read_text
from method.runtime.locks import exclusive_lock
from method.runtime.text import split_lines
from method.text.encoder import SpecialTokens, TextEncoder
from method.text.encoder_files import encoder_digest, require_parts
from utils.captions.plan import Plan, Videos, find_videos, make_plan
from utils.captions.table import read_table
from utils.captions.tagger import REQUIREMENTS, Tagger
from utils.captions.text_folder import (
    captions_of,
    finish_interrupted,
    text_files,
    text_folder,
    write_text_files,
    write_vocabularies,
)
from utils.captions.tokens import TokenStore, check_space

_MAX_FRAMES = 128
_SCALE = 0.75  # offset_scale as a fraction of the longest video: 96 of 128 frames, as for Charades and ActivityNet


@dataclass(frozen=True)
class CaptionSettings:
    """Sentences of a dataset and how they are encoded.

    table: CSV or JSON lines. name, root: of the dataset. features: HDF5 file of the videos; None for that of the name.
    encoder, layer, special_tokens: see `TextEncoder`. test_fraction: of the videos without a split. skip_missing: leave
    out sentences of videos without features. writes_yaml: False for a dataset whose file in configs/ names all of this.
    """

    table: Path
    name: str
    root: Path
    encoder: Path
    device: torch.device
    features: Path | None = None
    layer: int = -1
    special_tokens: SpecialTokens = "keep"
    test_fraction: float = 0.2
    skip_missing: bool = False
    writes_yaml: bool = True


def add_captions(settings: CaptionSettings, load_tagger: Callable[[], Tagger | None]) -> list[str]:
    """Write or replace the sentences of a dataset; returns lines that say what was done.

    Args:
        settings: what to write.
        load_tagger: called once the sentences are checked; gives what makes the vocabularies, None for no vocabularies.

    Raises:
        InputError: for wrong sentences, features or encoders, for a name or a folder that is not the user's own, and
            while another process writes the same dataset.
    """
    if settings.writes_yaml and settings.name in known_datasets():
        raise InputError(f"--dataset_name {settings.name}: a dataset of configs/, expected a new name")
    folder = own_folder(settings.root, settings.name)
    features = settings.features or own_features(settings.root, settings.name)
    if not features.exists():
        raise InputError(f"{features}: no such file, expected video features (utils/extract_features.py makes them)")
    rows = read_table(settings.table)
    videos = find_videos(features, (row.video for row in rows))
    plan = make_plan(settings.table, rows, videos, features, settings.test_fraction, settings.skip_missing)
    tagger = load_tagger()
    encoder = open_encoder(settings)
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder / ".captions.lock", f"{folder}: another process adds sentences", wait=False):
        return _write(settings, folder, features, videos, plan, tagger, encoder)


def open_encoder(settings: CaptionSettings) -> TextEncoder:
    """Load the text encoder at its own width, for whole sentences; errors as of `TextEncoder`."""
    require_parts(settings.encoder)
    config = read_json(settings.encoder / "config.json")
    width = config.get("hidden_size") if isinstance(config, dict) else None
    if not isinstance(width, int):
        raise InputError(f"{settings.encoder}: config.json has no hidden_size, expected a text encoder")
    return TextEncoder(
        settings.encoder,
        width,
        max_tokens=1 << 16,
        device=settings.device,
        layer=settings.layer,
        special_tokens=settings.special_tokens,
    )


def _write(
    settings: CaptionSettings,
    folder: Path,
    features: Path,
    videos: Videos,
    plan: Plan,
    tagger: Tagger | None,
    encoder: TextEncoder,
) -> list[str]:
    recipe = {
        "encoder_sha256": encoder_digest(settings.encoder),
        "text_layer": settings.layer,
        "text_special_tokens": settings.special_tokens,
    }
    text = text_folder(folder, settings.name, recipe)
    files = text_files(text, settings.name)
    new, parts = text.with_name(f".{text.name}.new"), text.with_name(f".{text.name}.parts")
    finish_interrupted(new, text, files)
    captions = list(chain.from_iterable(plan.captions.values()))
    store = TokenStore(parts, recipe, encoder.width, files["text_feat_path"], captions_of(files))
    sentences = [caption.text for caption in captions]
    missing = [sentence for sentence in dict.fromkeys(sentences) if sentence not in store]
    check_space(folder, encoder.count_rows(sentences), 2 if missing else 1, encoder.width)
    store.encode(missing, encoder)
    new.mkdir()
    write_text_files(text_files(new, settings.name), plan)
    store.write(text_files(new, settings.name)["text_feat_path"], captions, settings.encoder.resolve().name)
    if tagger is not None:
        write_vocabularies(text_files(new, settings.name), captions, tagger)
    replace_folder(new, text)
    finish_interrupted(new, text, files)
    shutil.rmtree(parts)
    if settings.writes_yaml:
        _update_yaml(settings, features, videos, files, encoder)
    return _summary(settings, plan, len(missing), len(set(sentences)), tagger is not None)


def _update_yaml(
    settings: CaptionSettings, features: Path, videos: Videos, files: Mapping[str, Path], encoder: TextEncoder
) -> None:
    """Name the files in the dataset's YAML file, with their widths; settings of the user stay as they are."""

    def from_root(path: Path) -> str:
        path, root = path.absolute(), settings.root.absolute()
        return str(path.relative_to(root) if path.is_relative_to(root) else path)

    path = own_yaml(settings.root, settings.name)
    given = {line.split(":")[0].rstrip() for line in split_lines(read_text(path))} if path.exists() else set()
    branches = {}
    if len(videos.widths) < len(WIDTH_FLAGS):
        branches = {"action_branch": ACTION_KEY in videos.widths, "phrase_action_branch": OBJECT_KEY in videos.widths}
        branches["cross_branch_fusion"] = False
    frames = min(videos.longest, _MAX_FRAMES)
    shape = {"max_ctx_l": _MAX_FRAMES, "deformable_offset_scale": max(1.0, _SCALE * frames)}
    update_yaml(
        path,
        {
            "video_feat_path": from_root(features),
            **{flag: from_root(own) for flag, own in files.items()},
            **{WIDTH_FLAGS[key]: width for key, width in videos.widths.items()},
            **branches,
            "q_feat_size": encoder.width,
            "text_encoder": from_root(settings.encoder),
            "text_layer": settings.layer,
            "text_special_tokens": settings.special_tokens,
            **{flag: value for flag, value in shape.items() if flag not in given},
        },
    )


def _summary(settings: CaptionSettings, plan: Plan, encoded: int, sentences: int, has_vocabularies: bool) -> list[str]:
    splits = {split: len(group_by_video(captions)) for split, captions in plan.captions.items()}
    with_moment = sum(caption.id in plan.moments for caption in plan.captions["test"])
    path = (own_yaml if settings.writes_yaml else own_folder)(settings.root, settings.name)
    lines = [
        f"{path}: {splits['train']} training videos with "
        f"{len(plan.captions['train'])} captions, {splits['test']} evaluated ones with {len(plan.captions['test'])} "
        f"({with_moment} with a moment); {encoded} of {sentences} sentences encoded"
    ]
    if drawn := sum(plan.drawn.values()):
        lines.append(
            f"{drawn} videos have no split in {settings.table}: {plan.drawn['train']} are for training and "
            f"{plan.drawn['test']} evaluated, by a digest of their ids (--test_fraction {settings.test_fraction:g})"
        )
    if not has_vocabularies:
        lines.append(
            "no vocabularies for --neg_query_loss: spaCy or its English model is not installed; add them with: "
            f"pip install -r {REQUIREMENTS} && python utils/make_vocabularies.py --dataset_name {settings.name} "
            f"--root_path {shlex.quote(str(settings.root))}"
        )
    return lines
