"""Extract the features of a folder of videos, in the layout of the released datasets.

    python utils/extract_features.py VIDEOS --dataset_name holiday
    python utils/extract_features.py VIDEOS --dataset_name holiday --recipe activitynet --streams clip_feat
    python utils/extract_features.py VIDEOS --dataset_name holiday --captions sentences.csv  # and add_captions.py
    torchrun --nproc_per_node 2 utils/extract_features.py VIDEOS --dataset_name holiday       # a GPU each

writes dataset/holiday_i3d/FeatureData/holiday_clip_i3d_numpy.hdf5 and, for `--dataset_name holiday` of the other
programs, dataset/holiday_i3d/holiday.yaml. It can be interrupted at any time, and the same command continues. Called
again, it encodes new and changed videos and drops removed ones. Exit status 1 if some videos could not be encoded; they
are listed with the reason, and are tried again next time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

import torch

from method.config.options import known_datasets
from method.config.own_dataset import WIDTH_FLAGS, own_features, own_yaml, update_yaml
from method.config.parser import Parser, user_path
from method.data.provenance import read_description
from method.runtime.errors import InputError, run_command
from method.runtime.hardware import choose_device
from method.runtime.pretrained import CLIP_FOLDER
from method.runtime.process_group import joined_processes
from method.runtime.progress import be_quiet
from method.runtime.run_folder import log_to_terminal
from method.text.encoder_files import require_parts
from method.video.feature_store import FeatureStore
from method.video.files import require_decoder
from method.video.recipes import Recipe, find_recipe
from utils.captions.dataset import CaptionSettings, add_captions
from utils.captions.table import read_table
from utils.captions.tagger import find_tagger

if TYPE_CHECKING:
    from method.video.extraction import Summary

SOME_FAILED = 1  # exit status


def main(arguments: Sequence[str] | None = None) -> None:
    """Extract the features; SystemExit with status 1 if some videos failed."""
    with joined_processes() as processes:
        log_to_terminal(processes.is_first)
        with processes.raise_on_all():
            given = _read_arguments(arguments)
            be_quiet(given.quiet or not processes.is_first)
            require_decoder()
            _check_captions(given)
            path = own_features(given.root_path, given.dataset_name)
            held = _recipe_there(path)
            recipe = find_recipe(given.recipe or held or "charades")
            if held not in (None, recipe.name):  # before the encoders are loaded
                raise InputError(
                    f"{path}: holds features of recipe {held}, and these would be of recipe {recipe.name}; features "
                    "are never mixed: choose another --dataset_name"
                )
            from method.video import encode, extraction  # here, because they import the package av

            device = choose_device(given.device, local_rank=processes.local_rank)
            encoders = encode.open_encoders(
                recipe,
                clip_folder=given.root_path / given.clip_encoder,
                i3d_weights=_i3d_weights(given, recipe),
                streams=given.streams,
                device=device,
            )
            description = encoders.description()
            store = FeatureStore(path, description)
        summary = extraction.extract(given.videos, store, encoders, processes)
        if processes.is_first:
            if path.exists() and given.dataset_name not in known_datasets():
                yaml_path = own_yaml(given.root_path, given.dataset_name)
                update_yaml(yaml_path, yaml_values(description, path.relative_to(given.root_path)))
            _print(summary, path, recipe.name)
            if given.captions is not None and path.exists():
                _add_captions(given, device, skip_missing=bool(summary.failed))
    if summary.failed:
        raise SystemExit(SOME_FAILED)


def yaml_values(description: dict[str, Any], features: Path) -> dict[str, Any]:
    """The keys of a dataset's YAML file that follow from its video features."""
    made = description["streams"]
    values: dict[str, Any] = {"video_feat_path": str(features), "recipe": None}  # of an earlier version
    values["feature_recipe"] = description["recipe"]
    values |= {WIDTH_FLAGS[key]: stream["width"] for key, stream in made.items()}
    if description["recipe"] == "charades":  # as the released checkpoint
        values["fusion_positions"] = True
    if len(made) < len(WIDTH_FLAGS):
        values |= {"action_branch": "i3d_feat" in made, "phrase_action_branch": "clip_feat" in made}
        values["cross_branch_fusion"] = False
    return values


def _check_captions(given: argparse.Namespace) -> None:
    """InputError for sentences that could not be added, before the videos are encoded."""
    if given.captions is None:
        return
    if given.dataset_name in known_datasets():
        raise InputError(f"--captions: {given.dataset_name} is a dataset of configs/, expected a new --dataset_name")
    read_table(given.root_path / given.captions)
    require_parts(given.root_path / given.text_encoder)


def _add_captions(given: argparse.Namespace, device: torch.device, skip_missing: bool) -> None:
    """Add the sentences as utils/add_captions.py does; those of videos that failed are left out for now."""
    settings = CaptionSettings(
        table=given.root_path / given.captions,
        name=given.dataset_name,
        root=given.root_path,
        encoder=given.root_path / given.text_encoder,
        device=device,
        skip_missing=skip_missing,
    )
    for line in add_captions(settings, partial(find_tagger, None)):
        print(line)


def _i3d_weights(given: argparse.Namespace, recipe: Recipe) -> Path | None:
    """The weights of I3D, if the stream is extracted. InputError that tells how to get them."""
    if "i3d_feat" not in given.streams:
        return None
    path: Path = given.root_path / (given.i3d_weights or f"checkpoints/i3d/{recipe.i3d_feat.weights}")
    if not path.exists():
        remedy = "run `python utils/download_encoders.py i3d`, or name the file with --i3d_weights"
        raise InputError(f"{path}: no such file; {remedy}")
    return path


def _recipe_there(path: Path) -> str | None:
    """The recipe of the features that are there; None if there are none, or they do not say."""
    description = read_description(path) if path.exists() else None
    return None if description is None else str(description["recipe"])


def _print(summary: Summary, path: Path, recipe: str) -> None:
    done = summary.videos - len(summary.failed)
    print(f"{path}: features of {done} of {summary.videos} videos, recipe {recipe}", flush=True)
    for video_id, reason in sorted(summary.failed.items()):
        line = f"failed: {video_id}: {reason}"
        print(line.encode("utf-8", "backslashreplace").decode(), file=sys.stderr)  # names need not be text


def _read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description="Extract the features of a folder of videos.")
    add = parser.add_argument
    add("videos", type=user_path, metavar="VIDEO_FOLDER", help="folder with the videos, in it or below")
    add("--dataset_name", required=True, metavar="NAME", help="name of the dataset")
    add(
        "--recipe",
        help="feature recipe: charades, activitynet or small (default: as the features there, else charades)",
    )
    add("--root_path", type=user_path, default=Path(), help="folder of dataset/ and checkpoints/")
    add("--clip_encoder", type=user_path, default=CLIP_FOLDER, metavar="FOLDER", help="CLIP ViT-B/32")
    add(
        "--i3d_weights",
        type=user_path,
        metavar="FILE",
        help="weights of I3D (default: the recipe's, in checkpoints/i3d/)",
    )
    add("--streams", nargs="+", choices=list(WIDTH_FLAGS), default=list(WIDTH_FLAGS), help="streams to extract")
    add("--captions", type=user_path, metavar="FILE", help="table of sentences to add, see utils/add_captions.py")
    default = Path("checkpoints/roberta-large")
    add("--text_encoder", type=user_path, default=default, metavar="DIR", help="text encoder of the sentences")
    add("--device", type=int, help="GPU index, -1 for the CPU (default: the first GPU, or the CPU if there is none)")
    add("--quiet", action="store_true", help="no progress bars; log warnings only")
    given = parser.parse_args(arguments)
    if not given.root_path.is_dir():
        raise InputError(f"--root_path {given.root_path}: no such folder")
    given.root_path = given.root_path.absolute()
    return given


if __name__ == "__main__":
    run_command(main)
