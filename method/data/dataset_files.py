"""The files of a dataset: found, or a message how to get them, and opened for a model."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from method.data.dataset import FeatureReader
from method.data.features import FeatureFile
from method.runtime.errors import InputError, summarize

RELEASED = ("activitynet", "charades", "tvr")  # what utils/download_data.py fetches
DATA_FILES = ("video_feat_path", "text_feat_path", "caption_train_txt", "caption_test_txt")


@dataclass(frozen=True, kw_only=True)
class DatasetFiles:
    """The files of a dataset, under the flags that name them; None for one that neither a flag nor the YAML file names.

    dataset: its name, for messages. root: folder that contains `dataset/`, for messages.
    recipe: how the video features must have been made, if they say so; None: in any way.
    """

    dataset: str
    root: Path
    recipe: str | None
    video_feat_path: Path | None
    text_feat_path: Path | None
    caption_train_txt: Path | None
    caption_test_txt: Path | None

    @property
    def has_captions(self) -> bool:
        """Whether the dataset names any file beside the video features."""
        return any(getattr(self, name) is not None for name in DATA_FILES if name != "video_feat_path")


class ModelInputs(Protocol):
    """What a model reads of the feature files; an `Architecture` is one."""

    @property
    def streams(self) -> Mapping[str, tuple[str, int]]:
        """For each branch the name of its feature stream and its width."""

    @property
    def query_width(self) -> int:
        """Width of the token features."""

    @property
    def max_frames(self) -> int:
        """Frames of a video after sampling, at most."""

    @property
    def max_words(self) -> int:
        """Tokens of a caption, at most."""


def check_files(paths: Mapping[str, Path | None], dataset: str, root: Path) -> None:
    """InputError naming every missing file of a dataset below `root`, and how to get it."""
    unnamed = [f"--{flag}" for flag, path in paths.items() if path is None]
    if unnamed:
        raise InputError(
            f"{', '.join(unnamed)}: dataset {dataset} names no such file in its YAML file, nor does a flag"
        )
    missing = {flag: path for flag, path in paths.items() if path is not None and not path.exists()}
    if missing:
        named = [f"--{flag}: no {path}" for flag, path in missing.items()]
        raise InputError(
            f"the files of dataset {dataset} are not all there: {summarize(named, shown=len(named))}; "
            f"{_remedy(missing.values(), dataset, root)}"
        )


def _remedy(missing: Iterable[Path], dataset: str, root: Path) -> str:
    """How to get these files; names a command only if that would write them to these paths."""
    if all(path.is_relative_to(root / "dataset" / f"{dataset}_i3d") for path in missing):
        if dataset in RELEASED:
            place = "" if root == Path.cwd() else f" --root_path {shlex.quote(str(root))}"
            return f"put them there, or fetch the released ones with: python utils/download_data.py {dataset}{place}"
        if dataset == "demo":
            command = f"python utils/make_demo_dataset.py --out {shlex.quote(str(root))}"
            return f"write the demo with: {command}"
    return "put them there, or name other files by these flags or in the dataset's YAML file"


def open_features(files: DatasetFiles, inputs: ModelInputs, needed: Sequence[str] = DATA_FILES) -> FeatureReader:
    """Open the feature files of a dataset for a model. InputError naming every missing file of `needed`."""
    check_files({name: getattr(files, name) for name in needed}, files.dataset, files.root)
    assert files.video_feat_path is not None
    # Without captions, no token features are read.
    videos, texts = FeatureFile(files.video_feat_path), FeatureFile(files.text_feat_path or files.video_feat_path)
    return FeatureReader(videos, texts, inputs.streams, inputs.query_width, inputs.max_frames, inputs.max_words)
