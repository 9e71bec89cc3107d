"""Builds a cache of encoded hard negatives, block by block; see `method/negatives/cache.py` for its files."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from method.data.cache.rows_file import write_rows
from method.data.captions import Caption
from method.data.edits import Kind
from method.negatives.cache import (
    Manifest,
    block_path,
    edit_ids,
    open_block,
    pool_sizes,
    read_manifest,
    split_blocks,
    write_manifest,
)
from method.negatives.convert import convert_block
from method.negatives.editor import CaptionEditor
from method.runtime.disk import format_bytes, free_bytes
from method.runtime.errors import InputError
from method.runtime.files import remove_partial_files
from method.runtime.locks import exclusive_lock
from method.text.encoder import TextEncoder

_Item = TypeVar("_Item")
log = logging.getLogger(__name__)

_SAMPLE_CAPTIONS, _SAMPLE_SECONDS = 256, 3.0
_INDEX_BYTES_PER_EDIT = 56  # about: id, length and checksum in the index of a block


@dataclass(frozen=True)
class Pools:
    """The content of a cache before encoding: a pool of edits of each kind for each caption.

    captions: all captions of the training file, in file order.
    editors: one for each kind of edit, in the order of KINDS.
    sizes: maximum number of edits of each kind per caption.
    seed: of the draws.
    """

    captions: Sequence[Caption]
    editors: Sequence[CaptionEditor]
    sizes: Mapping[Kind, int]
    seed: int

    def edits(self, index: int) -> Iterator[tuple[Kind, int, str]]:
        """Kind, number of the replaced word and sentence of each edit of a caption, in the order of a block."""
        caption = self.captions[index]
        for editor in self.editors:
            edits = editor.edits_by_word(caption, self.sizes[editor.kind], self.seed, "pool", caption.id, editor.kind)
            for word, sentence in sorted(edits, key=lambda edit: edit[0]):
                yield editor.kind, word, sentence

    def estimate_edits(self, indices: Sequence[int]) -> int:
        """About how many edits these captions have, without drawing them."""
        return sum(
            min(editor.max_edits(self.captions[index]), self.sizes[editor.kind])
            for index in indices
            for editor in self.editors
        )


def make_cache(folder: Path, pools: Pools, fingerprint: Mapping[str, Any], encoder: TextEncoder) -> None:
    """Build, continue or repair the cache in `folder`; blocks in format 1 are converted, not encoded again.

    Args:
        folder: created if it does not exist.
        pools: what to encode.
        fingerprint: of captions, vocabularies, text encoder and flags.
        encoder: the text encoder.

    Raises:
        InputError: if another process is building the cache, if it was started from something else, if the disk is too
            small, and for features that are not finite.
    """
    parts = {**fingerprint, **pool_sizes(pools.sizes)}
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder / ".lock", f"{folder}: another process is building this cache", wait=False):
        remove_partial_files(folder)
        if not (folder / "cache.json").exists():
            write_manifest(folder, Manifest(parts, complete=False))
        manifest = read_manifest(folder, parts, convert=True)
        if not set(manifest.fingerprint) <= set(parts):
            raise InputError(f"{folder}: contains edits of both kinds, expected --neg_query_loss both")
        missing = _find_missing_blocks(folder, manifest, pools.captions)
        if missing:
            _announce(folder, pools, missing, encoder)
            _encode_blocks(folder, manifest, pools, missing, encoder)
        write_manifest(folder, Manifest(manifest.fingerprint, complete=True))
    print(f"{folder}: complete, {len(pools.captions)} captions")


def _find_missing_blocks(folder: Path, manifest: Manifest, captions: Sequence[Caption]) -> dict[int, range]:
    """The blocks that are missing or corrupt, with the indices of their captions, after converting older blocks."""
    missing = {}
    for number, part in _progress(list(enumerate(split_blocks(captions))), "checking", "block"):
        path = block_path(folder, number)
        old = path.with_suffix(".bin")
        try:
            if old.exists():
                convert_block(folder, manifest, number, captions)
            if path.exists() and open_block(folder, manifest, number, captions, part).rows.is_intact():
                continue
            if path.exists():
                log.warning("%s: corrupt; rebuilding", path)
        except InputError as error:
            log.warning("%s; rebuilding", error)
            old.unlink(missing_ok=True)
        missing[number] = part
    return missing


def _announce(folder: Path, pools: Pools, missing: Mapping[int, range], encoder: TextEncoder) -> None:
    """Print what will be built; InputError if the disk is too small."""
    captions = [index for part in missing.values() for index in part]
    edits = pools.estimate_edits(captions)
    size, seconds = _estimate(pools, captions, edits, encoder)
    free = free_bytes(folder)
    print(
        f"{folder}: {edits} edits of {len(captions)} captions to encode on {encoder.device}, "
        f"about {format_bytes(size)} ({format_bytes(free)} free) and {_format_duration(seconds)}",
        flush=True,
    )
    if size > free:
        raise InputError(
            f"{folder}: needs about {format_bytes(size)}, {format_bytes(free)} are free; reduce --pool_size"
        )


def _estimate(pools: Pools, captions: Sequence[int], edits: int, encoder: TextEncoder) -> tuple[float, float]:
    """Bytes and seconds for all edits of these captions, extrapolated from a sample."""
    sample = captions[:: max(1, len(captions) // _SAMPLE_CAPTIONS)]
    sentences = [sentence for index in sample for _, _, sentence in pools.edits(index)]
    if not sentences:
        return 0.0, 0.0
    rows = encoder.count_rows(sentences) / len(sentences) * edits
    size, started, seconds = 16, time.monotonic(), 0.0
    while True:  # in growing batches: the first includes warm-up, and a GPU is more efficient with large ones
        chosen = sentences[:: max(1, len(sentences) // size)][:size]
        before = time.monotonic()
        encoder.encode(chosen).values.cpu()  # synchronizes
        seconds = (time.monotonic() - before) / len(chosen) * edits
        if time.monotonic() - started > _SAMPLE_SECONDS or size >= len(sentences):
            return rows * encoder.width * 2 + edits * _INDEX_BYTES_PER_EDIT, seconds
        size *= 4


def _encode_blocks(
    folder: Path, manifest: Manifest, pools: Pools, missing: Mapping[int, range], encoder: TextEncoder
) -> None:
    done = 0
    try:
        for number, part in _progress(list(missing.items()), "encoding", "block"):
            edits = [(pools.captions[index].id, *edit) for index in part for edit in pools.edits(index)]
            rows = encoder.encode([sentence for *_, sentence in edits])
            if not rows.values.isfinite().all():
                raise InputError(
                    f"{folder}: the text encoder yields NaN or infinity for edits of {pools.captions[part[0]].id!r}"
                )
            ids = edit_ids((caption_id, kind, word) for caption_id, kind, word, _ in edits)
            batch = rows.with_values(rows.values.half().cpu())
            write_rows(block_path(folder, number), manifest.fingerprint, ids, encoder.width, [batch], np.float16)
            done += 1
    except KeyboardInterrupt:
        log.warning("%d of %d blocks are saved; run the same command to continue", done, len(missing))
        raise


def _progress(items: Sequence[_Item], what: str, unit: str) -> Iterable[_Item]:
    # A log file gets one line a minute.
    return tqdm(items, what, unit=unit, mininterval=0.5 if sys.stderr.isatty() else 60)


def _format_duration(seconds: float) -> str:
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
