"""A cache of encoded hard negatives: a pool of edits for every training caption, from which each epoch draws.

DIR/cache.json holds the fingerprint of the cache and whether it is complete. DIR/block-*.rows are rows files (see
`method/data/cache/rows_file.py`) in float16 with the edits of CAPTIONS_PER_BLOCK captions each, in the order of
captions, then kinds, then words. `utils/cache_negatives.py` builds the cache; any number of processes can read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from method.data.cache.rows_file import RowsFile
from method.data.captions import Caption, captions_digest
from method.data.edits import KINDS, Kind
from method.negatives.vocabulary import Vocabulary
from method.runtime.errors import InputError, summarize
from method.runtime.files import digest_of, read_json, write_json

FORMAT = 2
CAPTIONS_PER_BLOCK = 64
COMMAND = "`python utils/cache_negatives.py` and the flags of the training"
# The values that older caches, which do not record them, were built with.
_UNRECORDED = {"--text_layer": -1, "--text_special_tokens": "keep"}


@dataclass(frozen=True)
class Manifest:
    """fingerprint: what the cache is built from, pool sizes included; complete: whether all blocks are written."""

    fingerprint: Mapping[str, Any]
    complete: bool


def compute_fingerprint(
    captions: Sequence[Caption], vocabularies: Sequence[Vocabulary], encoder: str | None, **flags: int | str
) -> dict[str, Any]:
    """What the content of a cache depends on, as named parts.

    Args:
        captions: all captions of the training file, in file order.
        vocabularies: one for each kind of edit.
        encoder: digest of the text encoder; None leaves it out.
        flags: values by flag name, such as seed=666.
    """
    parts: dict[str, Any] = {"captions": captions_digest(captions)}
    for vocabulary in vocabularies:
        tags = [list(vocabulary.tags_of.get(caption.id, {}).items()) for caption in captions]
        parts[f"{vocabulary.kind} vocabulary"] = digest_of([tags, list(vocabulary.words_of.items())])
    if encoder is not None:
        parts["text encoder"] = encoder
    return {**parts, **{f"--{flag}": value for flag, value in flags.items()}}


def pool_sizes(sizes: Mapping[Kind, int]) -> dict[str, int]:
    """The maximum number of edits of each kind per caption, as parts of a fingerprint."""
    return {f"{kind} pool": size for kind, size in sizes.items()}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `cache.json`."""
    value = {"format": FORMAT, "complete": manifest.complete, "made_from": dict(manifest.fingerprint)}
    write_json(folder / "cache.json", value)


def read_manifest(folder: Path, expected: Mapping[str, Any], convert: bool = False) -> Manifest:
    """Read `cache.json` and compare its fingerprint with all `expected` parts.

    Args:
        folder: of the cache.
        expected: parts of the fingerprint that must be equal.
        convert: whether a cache in format 1 is accepted, as an incomplete one.

    Raises:
        InputError: for a manifest that is missing, unreadable, of another format or another fingerprint.
    """
    path = folder / "cache.json"
    if not path.exists():
        raise InputError(f"{folder}: no hard negative cache (cache.json is missing); build it with {COMMAND}")
    remedy = f"use another --neg_cache folder, and build it with {COMMAND}"
    try:
        stored = read_json(path)
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from error
    fingerprint = stored.get("made_from") if isinstance(stored, dict) else None
    if not isinstance(fingerprint, dict) or stored.get("format") not in (1, FORMAT):
        raise InputError(f"{path}: expected a hard negative cache in format {FORMAT}; {remedy}")
    recorded = {**_UNRECORDED, **fingerprint}
    different = [
        f"{part} {_shown(recorded.get(part))}, expected {_shown(value)}"
        for part, value in expected.items()
        if recorded.get(part) != value
    ]
    if different:
        raise InputError(f"{folder}: built from something else: {summarize(different, 9)}; {remedy}")
    if stored["format"] != FORMAT and not convert:
        raise InputError(
            f"{folder}: a hard negative cache in format {stored['format']}, expected {FORMAT}; convert it, without "
            f"encoding again, with {COMMAND}"
        )
    return Manifest(fingerprint, stored["format"] == FORMAT and stored.get("complete") is True)


def block_path(folder: Path, number: int) -> Path:
    """File of block `number`."""
    return folder / f"block-{number:05d}.rows"


def split_blocks(captions: Sequence[Caption]) -> list[range]:
    """Indices of the captions in each block."""
    starts = range(0, len(captions), CAPTIONS_PER_BLOCK)
    return [range(start, min(start + CAPTIONS_PER_BLOCK, len(captions))) for start in starts]


def edit_ids(edits: Iterable[tuple[str, Kind, int]]) -> list[str]:
    """Item ids of edits in a block: caption id, kind, number of the replaced word, and a running number.

    >>> edit_ids([("v1#enc#0", "action", 0), ("v1#enc#0", "action", 0), ("v1#enc#0", "object", 2)])
    ['v1#enc#0/action/0/0', 'v1#enc#0/action/0/1', 'v1#enc#0/object/2/0']
    """
    counts: dict[tuple[str, Kind, int], int] = {}
    ids = []
    for edit in edits:
        counts[edit] = counts.get(edit, -1) + 1
        ids.append("/".join(map(str, (*edit, counts[edit]))))
    return ids


@dataclass(frozen=True)
class Block:
    """A block of a cache and, for each edit in it, pool_E: caption index * len(KINDS) + kind; word_E: replaced word."""

    rows: RowsFile
    pool_E: npt.NDArray[np.int64]
    word_E: npt.NDArray[np.int64]


def open_block(folder: Path, manifest: Manifest, number: int, captions: Sequence[Caption], part: range) -> Block:
    """Open block `number`; InputError if it is unreadable, of another cache or not about the captions of `part`."""
    path = block_path(folder, number)
    try:
        rows = RowsFile(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if rows.fingerprint != manifest.fingerprint or rows.dtype != np.float16:
        raise InputError(f"{path}: a block of another cache")
    first_pool = {captions[index].id: index * len(KINDS) for index in part}
    try:
        edits = [item_id.rsplit("/", 3) for item_id in rows.ids]
        pools = [first_pool[caption_id] + KINDS.index(kind) for caption_id, kind, _, _ in edits]
        block = Block(rows, np.array(pools, np.int64), np.array([int(word) for _, _, word, _ in edits], np.int64))
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: expected edits of captions {part.start} to {part.stop - 1}") from error
    return block


def _shown(value: object) -> str:
    return "missing" if value is None else str(value)[:12]
