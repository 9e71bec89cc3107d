"""Convert published features of videos to the HDF5 layout that training reads (docs/data.md).

    python utils/convert_features.py activitynet/FeatureData/i3d dataset/mine/features.hdf5 --key i3d_feat
    python utils/convert_features.py activitynet/FeatureData/clip dataset/mine/features.hdf5 --key clip_feat --add

The source is a folder in the binary form (feature.bin, shape.txt, id.txt, video2frames.txt) or one with a NumPy file
for each video. The features are copied bit by bit, one video at a time, and read back at the end. An interrupted
conversion leaves no target; the same command starts it again.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import h5py

from method.config.parser import Parser, user_path
from method.runtime.errors import InputError, run_command, summarize
from method.runtime.run_folder import log_to_terminal
from utils.feature_files.arrays import ArrayFiles, array_files
from utils.feature_files.binary import FEATURES, BinaryFeatures
from utils.feature_files.hdf5 import Source, write_features

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert the features of a folder."""
    log_to_terminal()
    parser = Parser(description="Convert features of videos to the HDF5 layout of training.")
    add = parser.add_argument
    add("source", type=user_path, help="folder with feature.bin and its tables, or with a .npy or .npz file a video")
    add("target", type=user_path, help="HDF5 file to write")
    add("--key", required=True, help="name of the stream, such as i3d_feat or clip_feat")
    add("--add", action="store_true", help="add the stream to an existing file")
    add("--array", metavar="NAME", help="array to take of each .npz file (default: the only one)")
    add("--any_order", action="store_true", help="keep lists of frames whose numbers do not ascend as they are")
    given = parser.parse_args(arguments)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", given.key):
        raise InputError(f"--key {given.key!r}: expected the name of a stream, of letters, digits and _.-")
    source = open_source(given.source, given.array, given.any_order)
    write_features(given.target, source, lambda video_id: f"{video_id}/{given.key}", add=given.add)
    if given.add:
        _warn_incomplete(given.target, given.key, source)
    print(f"{given.target}: {given.key} of {len(source.ids)} videos, width {source.width}, read back and identical")


def open_source(folder: Path, array: str | None = None, any_order: bool = False) -> Source:
    """The features in a folder, in the binary form or in NumPy files. InputError for any other folder."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if (folder / FEATURES).exists():
        return BinaryFeatures(folder, any_order)
    files = array_files(folder)
    if not files:
        raise InputError(f"{folder}: expected {FEATURES} and its tables, or .npy or .npz files; found neither")
    if odd := [name for name in files if "#" in name]:
        raise InputError(f"{folder}: the id of a video has no '#': {summarize(odd)}")
    return ArrayFiles(files, array)


def _warn_incomplete(target: Path, key: str, source: Source) -> None:
    with h5py.File(target, "r", locking=False) as file:
        lacking = [name for name in file if isinstance(file[name], h5py.Group) and key not in file[name]]
        alone = [name for name in source.ids if len(file[name]) == 1]
    for names, what in ((lacking, f"have no {key}"), (alone, f"have only {key}")):
        if names:
            log.warning("%s: %d videos %s: %s", target, len(names), what, summarize(names))


if __name__ == "__main__":
    run_command(main)
