"""Which videos of a dataset are searched."""

from __future__ import annotations

from dataclasses import dataclass

from method.data.captions import Caption, group_by_video, read_captions
from method.data.dataset import FeatureReader
from method.data.dataset_files import DatasetFiles
from method.data.provenance import list_videos
from method.runtime.errors import InputError

ALL = "all"  # videos of the feature file, with captions or without
SPLITS = {"test": ("test",), "train": ("train",), "both": ("test", "train")}


@dataclass(frozen=True)
class Selection:
    """The videos that are searched, in order, and the captions of the dataset."""

    ids: list[str]
    captions: list[Caption]


def choose_split(files: DatasetFiles, asked: str | None) -> str:
    """The split to search: the one asked for, or else the evaluated one, or all videos of a dataset without captions.

    InputError for a split of a dataset without captions.
    """
    if asked not in (None, ALL) and not files.has_captions:
        raise InputError(f"--split {asked}: dataset {files.dataset} has no captions, expected {ALL}")
    return asked or ("test" if files.has_captions else ALL)


def select_videos(files: DatasetFiles, split: str, reader: FeatureReader) -> Selection:
    """The videos of a split. InputError for captions or features that cannot be read."""
    paths = {"test": files.caption_test_txt, "train": files.caption_train_txt}
    captions = {name: read_captions(path) for name, path in paths.items() if path is not None}
    if split == ALL:
        video_ids = list_videos(reader.videos.path, [key for key, _ in reader.streams.values()])
    else:
        video_ids = list(group_by_video([caption for name in SPLITS[split] for caption in captions[name]]))
    return Selection(video_ids, [*{caption.id: caption for own in captions.values() for caption in own}.values()])
