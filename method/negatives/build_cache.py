"""Making a cache of encoded edits, block by block; see `method/negatives/cache.py` for what it looks like."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from method.data.captions import Caption
from method.data.edits import KINDS, Kind
from method.negatives.blocks import RECORD, write_block
from method.negatives.cache import (
    Manifest,
    block_path,
    blocks_of,
    open_block,
    pool_sizes,
    read_manifest,
    write_manifest,
)
from method.negatives.editor import CaptionEditor
from method.runtime.errors import InputError
from method.runtime.files import exclusive_lock, free_bytes, in_bytes
from method.text.encoder import TextEncoder

_Item = TypeVar("_Item")
log = logging.getLogger(__name__)

_SAMPLE_CAPTIONS, _SAMPLE_SECONDS = 256, 3.0


@dataclass(frozen=True)
class Pools:
    """What goes into a cache: the edits of all captions, a pool of each kind for each.

    captions: all captions of the training file, in its order.
    editors: one for each kind of edit, in the order of KINDS.
    sizes: most edits of each kind for a caption.
    seed: what the edits are drawn from.
    """

    captions: Sequence[Caption]
    editors: Sequence[CaptionEditor]
    sizes: Mapping[Kind, int]
    seed: int

    def edits(self, number: int) -> Iterator[tuple[Kind, int, str]]:
        """Kind, number of the replaced word and sentence of the edits of a caption, in the order of a block."""
        caption = self.captions[number]
        for editor in self.editors:
            edits = editor.edits_by_word(caption, self.sizes[editor.kind], self.seed, "pool", caption.id, editor.kind)
            for word, sentence in sorted(edits, key=lambda edit: edit[0]):
                yield editor.kind, word, sentence

    def count(self, numbers: Sequence[int]) -> int:
        """About how many edits these captions have, without making them."""
        return sum(
            min(editor.most(self.captions[number]), self.sizes[editor.kind])
            for number in numbers
            for editor in self.editors
        )


def make_cache(folder: Path, pools: Pools, made_from: Mapping[str, Any], encoder: TextEncoder) -> None:
    """Make, continue or mend the cache in `folder`.

    Args:
        folder: made when it does not exist.
        pools: what to encode.
        made_from: the fingerprint, text encoder included.
        encoder: what to encode it with.

    Raises:
        InputError: when another process makes it, when it was begun from something else, when the disk lacks room, and
            for features that are not finite.
    """
    parts = {**made_from, **pool_sizes(pools.sizes)}
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder / ".lock", f"{folder}: another process is making this cache", wait=False):
        for left_over in folder.glob(".*.part"):
            left_over.unlink()
        if not (folder / "cache.json").exists():
            write_manifest(folder, Manifest(parts, complete=False))
        manifest = read_manifest(folder, parts)
        if not set(manifest.made_from) <= set(parts):
            raise InputError(f"{folder}: holds edits of both kinds, expected --neg_query_loss both")
        missing = _blocks_to_make(folder, manifest, blocks_of(pools.captions))
        if missing:
            _announce(folder, pools, missing, encoder)
            _make_blocks(folder, manifest, pools, missing, encoder)
        write_manifest(folder, Manifest(manifest.made_from, complete=True))
    print(f"{folder}: complete, {len(pools.captions)} captions")


def _blocks_to_make(folder: Path, manifest: Manifest, blocks: Sequence[range]) -> dict[int, range]:
    """The blocks that are missing or damaged, with the numbers of their captions."""
    missing = {}
    for number, captions in _progress(list(enumerate(blocks)), "checking", "block"):
        if block_path(folder, number).exists():
            try:
                if open_block(folder, manifest, number, captions).is_whole():
                    continue
                log.warning("%s: damaged, it is made again", block_path(folder, number))
            except InputError as error:
                log.warning("%s; it is made again", error)
        missing[number] = captions
    return missing


def _announce(folder: Path, pools: Pools, missing: Mapping[int, range], encoder: TextEncoder) -> None:
    """Print what will be made; InputError when the disk lacks the room."""
    captions = [number for held in missing.values() for number in held]
    edits = pools.count(captions)
    size, seconds = _estimate(pools, captions, edits, encoder)
    free = free_bytes(folder)
    print(
        f"{folder}: {edits} edits of {len(captions)} captions to encode on {encoder.device}, "
        f"about {in_bytes(size)} ({in_bytes(free)} free) and {_in_time(seconds)}",
        flush=True,
    )
    if size > free:
        raise InputError(
            f"{folder}: needs about {in_bytes(size)}, {in_bytes(free)} are free; --pool_size makes it smaller"
        )


def _estimate(pools: Pools, captions: Sequence[int], edits: int, encoder: TextEncoder) -> tuple[float, float]:
    """Bytes and seconds for all edits of these captions, judged from a few of them."""
    sample = captions[:: max(1, len(captions) // _SAMPLE_CAPTIONS)]
    sentences = [sentence for number in sample for _, _, sentence in pools.edits(number)]
    if not sentences:
        return 0.0, 0.0
    rows = encoder.count_rows(sentences) / len(sentences) * edits
    size, started, seconds = 16, time.monotonic(), 0.0
    while True:  # ever larger samples, since the first ones pay for a start and the device may like them large
        chosen = sentences[:: max(1, len(sentences) // size)][:size]
        before = time.monotonic()
        encoder.encode(chosen).values.cpu()  # waits for the device
        seconds = (time.monotonic() - before) / len(chosen) * edits
        if time.monotonic() - started > _SAMPLE_SECONDS or size >= len(sentences):
            return rows * encoder.width * 2 + edits * RECORD.itemsize, seconds
        size *= 4


def _make_blocks(
    folder: Path, manifest: Manifest, pools: Pools, missing: Mapping[int, range], encoder: TextEncoder
) -> None:
    made = 0
    try:
        for number, captions in _progress(list(missing.items()), "encoding", "block"):
            edits = [(caption, *edit) for caption in captions for edit in pools.edits(caption)]
            rows = encoder.encode([sentence for *_, sentence in edits])
            if not rows.values.isfinite().all():
                raise InputError(
                    f"{folder}: the text encoder gives NaN or infinity for edits of {pools.captions[captions[0]].id!r}"
                )
            records = [
                (caption, KINDS.index(kind), word, length)
                for (caption, kind, word, _), length in zip(edits, rows.layout.lengths, strict=True)
            ]
            write_block(block_path(folder, number), manifest.origin, records, rows.values.half().cpu().numpy())
            made += 1
    except KeyboardInterrupt:
        log.warning("%d of %d blocks are done and kept; the same command goes on", made, len(missing))
        raise


def _progress(items: Sequence[_Item], what: str, unit: str) -> Iterable[_Item]:
    # Where no one watches, a line a minute is enough.
    return tqdm(items, what, unit=unit, mininterval=0.5 if sys.stderr.isatty() else 60)


def _in_time(seconds: float) -> str:
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
