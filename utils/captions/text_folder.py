"""The folder of a dataset's sentences: its files, named as in the published datasets, and how it is replaced."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from method.data.captions import Caption, read_captions
from method.data.edits import KINDS
from method.evaluation.moments import TrueMoment
from method.runtime.disk import restore_folder
from method.runtime.errors import InputError
from method.runtime.files import digest_of, write_text
from utils.captions.plan import Plan
from utils.captions.table import Split
from utils.captions.tagger import Tagger, tag_captions, write_vocabulary
from utils.captions.tokens import read_recipe

_FILE_NAMES: dict[Split, str] = {"train": "train", "test": "val"}  # as published


def text_files(folder: Path, name: str) -> dict[str, Path]:
    """The files of a dataset's sentences by flag, with the names of the published datasets."""
    names = {
        **{f"caption_{split}_txt": f"{name}{stem}.caption.txt" for split, stem in _FILE_NAMES.items()},
        "text_feat_path": f"roberta_{name}_query_feat.hdf5",
        "moments": f"{name}{_FILE_NAMES['test']}.moments.jsonl",
        **{f"{part}_{kind}_dict": f"{name}_{part}_{kind}_dict.json" for kind in KINDS for part in ("id", "total")},
    }
    return {flag: folder / own for flag, own in names.items()}


def text_folder(folder: Path, name: str, recipe: Mapping[str, Any]) -> Path:
    """The folder for the sentences: TextData, or if that has token features made in another way, one beside it.

    InputError if it holds files that were not written by this program.
    """
    for text in (folder / "TextData", folder / f"TextData_{digest_of(recipe)[:8]}"):
        token_features = text_files(text, name)["text_feat_path"]
        found = read_recipe(token_features)
        if not text.exists() or found == recipe:
            return text
        if found is None:
            raise InputError(
                f"{text}: exists, and {token_features.name} in it was not written by this program; move the folder away"
            )
    raise InputError(f"{text}: has token features of another text encoder; move the folder away")


def captions_of(files: Mapping[str, Path]) -> list[Caption]:
    """The captions of the dataset as it is; none if there are no caption files, or damaged ones."""
    try:
        return [caption for split in _FILE_NAMES for caption in read_captions(files[f"caption_{split}_txt"])]
    except InputError:
        return []


def finish_interrupted(new: Path, text: Path, files: Mapping[str, Path]) -> None:
    """Remove the folder that was replaced, or one that was not completed; files that are not ours are kept."""
    restore_folder(new, text)
    if not new.exists():
        return
    ours = {path.name for path in files.values()}
    if text.exists():
        for path in new.iterdir():
            is_ours = path.name in ours or path.name.startswith(".") or path.name.endswith(".cache")
            if not is_ours and not (text / path.name).exists():
                path.rename(text / path.name)
    shutil.rmtree(new)


def write_text_files(files: Mapping[str, Path], plan: Plan) -> None:
    """Write the caption files, and the moments of the evaluated captions if there are any."""
    for split, captions in plan.captions.items():
        lines = [f"{caption.id} {caption.text}\n" for caption in captions]
        write_text(files[f"caption_{split}_txt"], "".join(lines))
    moments = [(own.id, plan.moments[own.id]) for own in plan.captions["test"] if own.id in plan.moments]
    if moments:
        write_text(files["moments"], "".join(f"{_moment_line(*own)}\n" for own in moments))


def _moment_line(caption_id: str, moment: TrueMoment) -> str:
    times = {"start": moment.start, "end": moment.end, "duration": moment.duration}
    return json.dumps({"cap_id": caption_id, **times}, ensure_ascii=False)


def write_vocabularies(files: Mapping[str, Path], captions: Sequence[Caption], tagger: Tagger) -> None:
    """Write the four vocabulary files, by flag, of captions."""
    for kind, tags in tag_captions(captions, tagger).items():
        write_vocabulary(files[f"id_{kind}_dict"], files[f"total_{kind}_dict"], tags)
