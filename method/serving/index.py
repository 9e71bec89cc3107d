"""The index of a corpus: the frame embeddings of its videos, encoded once and stored beside the checkpoint.

An index is one file, written atomically and memory-mapped when it is read. It records what it was built from and is
rejected when that has changed. Embeddings are stored in the precision of evaluation, so that a search ranks videos as
evaluation does.

Letters: N frames of all videos, D width.
"""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from method.data.dataset import FeatureReader
from method.evaluation.corpus import Corpus
from method.evaluation.frame_embeddings import FrameEmbeddings
from method.model.architecture import Architecture
from method.runtime.disk import format_bytes
from method.runtime.errors import InputError
from method.runtime.files import atomic_writer, digest_of, require_file
from method.runtime.locks import exclusive_lock

log = logging.getLogger(__name__)

FORMAT = "A3PRVR index"
VERSION = 2  # incremented whenever older indexes become unusable
REMEDY = "rebuild it with --rebuild"
_SAMPLED_VIDEOS = 16

MadeFrom = dict[str, str]


def index_path(checkpoint: Path, split: str, folder: Path | None = None) -> Path:
    """Path of the index of a split: in `<checkpoint>.index/` unless another folder is given."""
    return (folder or checkpoint.with_name(f"{checkpoint.name}.index")) / f"{split}.pt"


def fingerprint(
    checkpoint: str,
    architecture: Architecture,
    reader: FeatureReader,
    video_ids: Sequence[str],
    batch_size: int,
    precision: str = "off",
) -> MadeFrom:
    """What the embeddings of these videos depend on, by the names under which a change is reported.

    Args:
        checkpoint: digest of its file.
        architecture: of the model; a published checkpoint does not contain it.
        reader: of the features: size and time of their file, the rows of every stream, and the content of some videos.
        video_ids: the videos in corpus order.
        batch_size: videos encoded together.
        precision: of the encoders and of the stored embeddings.
    """
    made_from = {
        "checkpoint": checkpoint,
        "model options": digest_of(architecture.as_dict()),
        "list of videos": digest_of(list(video_ids)),
        "feature file": digest_of(_features(reader, video_ids)),
    }
    if architecture.fusion == "deformable" and architecture.fusion_extent == "padded":
        made_from["--eval_context_bsz"] = str(batch_size)  # padding, and with it a score, depends on the batch
    if precision != "off":
        made_from["--eval_amp"] = precision
    return made_from


def open_index(
    path: Path,
    made_from: MadeFrom,
    encode: Callable[[], Corpus],
    rebuild: bool = False,
    rebuild_outdated: bool = False,
) -> Corpus:
    """Read the index at `path`, and build it first if there is none or with `rebuild`.

    Of several processes one builds the index and the others wait for it.

    Args:
        path: the file of the index.
        made_from: the fingerprint that it must have.
        encode: encodes the videos.
        rebuild: build it even if there is one.
        rebuild_outdated: build it again, instead of raising, if it is outdated or unreadable.

    Raises:
        InputError: for an index that is outdated or unreadable, and for embeddings that are not finite.
    """
    if rebuild or not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(path.with_suffix(".lock"), f"waiting for another process that is building {path}"):
            if rebuild or not path.exists():
                _build(path, made_from, encode())
    try:
        return _read(path, made_from)
    except InputError as error:
        if not rebuild_outdated or rebuild:
            raise
        log.info("%s", str(error).removesuffix(f"; {REMEDY}"))
    return open_index(path, made_from, encode, rebuild=True)


def _build(path: Path, made_from: MadeFrom, corpus: Corpus) -> None:
    for left_over in path.parent.glob(f".{path.name}.*.part"):  # left by a killed process; no other one is writing
        left_over.unlink(missing_ok=True)
    keys = {name: frames.values.cpu() for name, frames in corpus.frames.items()}
    for name, values_ND in keys.items():
        if not torch.isfinite(values_ND).all():
            raise InputError(f"the {name} frame embeddings are not all finite: the weights or features are broken")
    content = {
        "format": FORMAT,
        "version": VERSION,
        "made_from": made_from,
        "video_ids": corpus.video_ids,
        "lengths": {name: list(frames.lengths) for name, frames in corpus.frames.items()},
        "checksums": {name: _checksum(values_ND) for name, values_ND in keys.items()},
        "keys": keys,
    }
    with atomic_writer(path) as file:
        _save(content, file)
    log.info("index of %d videos in %s (%s)", len(corpus.video_ids), path, format_bytes(path.stat().st_size))


def _save(content: Mapping[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(content, file)
    except RuntimeError as error:
        # torch hides the OSError of a full disk.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _read(path: Path, made_from: MadeFrom) -> Corpus:
    content = _content(path)
    if content.get("version") != VERSION:
        raise InputError(f"{path}: index version {content.get('version')}, expected {VERSION}; {REMEDY}")
    found = content["made_from"]
    changed = sorted(name for name in {*found, *made_from} if found.get(name) != made_from.get(name))
    if changed:
        raise InputError(f"{path}: the index was built from another {', another '.join(changed)}; {REMEDY}")
    frames = {}
    for name, values_ND in content["keys"].items():
        if _checksum(values_ND) != content["checksums"][name]:
            raise InputError(f"{path}: corrupt, wrong checksum of the {name} embeddings; {REMEDY}")
        frames[name] = FrameEmbeddings(values_ND, tuple(content["lengths"][name]))
    return Corpus(content["video_ids"], frames)


def _content(path: Path) -> dict[str, Any]:
    require_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            for record in archive.namelist():
                if "/data/" not in record:  # the embeddings have faster checksums
                    archive.read(record)
        content = _load(path)
    except Exception as error:  # torch has no common exception for corrupt files
        raise InputError(f"{path}: not a readable index ({type(error).__name__}); {REMEDY}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path}: not an index of videos; {REMEDY}")
    return content


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
    return torch.load(path, map_location="cpu", weights_only=True)  # from a file system that cannot map files


def _features(reader: FeatureReader, video_ids: Sequence[str]) -> list[Any]:
    status = reader.videos.path.stat()
    found: list[Any] = [status.st_size, status.st_mtime_ns]
    for branch, (key, width) in sorted(reader.streams.items()):
        rows = reader.videos.check([f"{video_id}/{key}" for video_id in video_ids], width)
        found.append([branch, key, width, list(rows.values())])
        if linked := reader.videos.linked(rows):  # identified by what survives copying the dataset
            portable = ("address", "size", "modified")
            found.append(
                [[name, [[file[part] for part in portable] for file in files]] for name, files in linked.items()]
            )
    for video_id in video_ids[:: max(1, len(video_ids) // _SAMPLED_VIDEOS)]:
        streams = reader.read_video(video_id)
        found.append([hashlib.sha256(streams[branch].numpy().tobytes()).hexdigest() for branch in sorted(streams)])
    return found


def _checksum(values_ND: Tensor) -> int:
    """Sum of the bit patterns, which changes with any single value; runs at memory bandwidth."""
    bits = {4: torch.int32, 2: torch.int16}[values_ND.element_size()]
    return int(values_ND.view(bits).sum(dtype=torch.int64))
