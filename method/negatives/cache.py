"""A cache of encoded edits: for every training caption a pool of edits, from which each epoch draws its own.

DIR/cache.json says what the cache was made from and whether it is complete; DIR/block-*.bin hold the edits of
CAPTIONS_PER_BLOCK captions each. `utils/cache_negatives.py` makes it; any number of processes can read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from method.data.captions import Caption
from method.data.edits import KINDS, Kind
from method.negatives.blocks import Block, read_block
from method.negatives.vocabulary import Vocabulary
from method.runtime.errors import InputError, summarize
from method.runtime.files import digest_of, read_json, write_json

FORMAT = 1
CAPTIONS_PER_BLOCK = 64
REMEDY = "`python utils/cache_negatives.py` with the flags of the training"
# What caches were made from before this was recorded.
_UNRECORDED = {"--text_layer": -1, "--text_special_tokens": "keep"}


@dataclass(frozen=True)
class Manifest:
    """made_from: fingerprint and pool sizes of a cache; complete: whether all of its blocks were written."""

    made_from: Mapping[str, Any]
    complete: bool

    @property
    def origin(self) -> int:
        """A number for what the cache is made from, kept in every block."""
        return int(digest_of(sorted(self.made_from.items()))[:16], 16)


def fingerprint(
    captions: Sequence[Caption], vocabularies: Sequence[Vocabulary], encoder: str | None, **flags: int | str
) -> dict[str, Any]:
    """What the content of a cache depends on, part by part.

    Args:
        captions: all captions of the training file, in its order.
        vocabularies: one for each kind of edit.
        encoder: digest of the text encoder; None leaves it out.
        flags: values by the name of their flag, such as seed=666.
    """
    parts: dict[str, Any] = {"captions": digest_of([(caption.id, caption.text) for caption in captions])}
    for vocabulary in vocabularies:
        tags = [list(vocabulary.tags_of.get(caption.id, {}).items()) for caption in captions]
        parts[f"{vocabulary.kind} vocabulary"] = digest_of([tags, list(vocabulary.words_of.items())])
    if encoder is not None:
        parts["text encoder"] = encoder
    return {**parts, **{f"--{flag}": value for flag, value in flags.items()}}


def pool_sizes(sizes: Mapping[Kind, int]) -> dict[str, int]:
    """Most edits kept of each kind for a caption, as they stand in the manifest."""
    return {f"{kind} pool": size for kind, size in sizes.items()}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Say in `folder` what its cache is made from and whether it is complete."""
    value = {"format": FORMAT, "complete": manifest.complete, "made_from": dict(manifest.made_from)}
    write_json(folder / "cache.json", value)


def read_manifest(folder: Path, expected: Mapping[str, Any]) -> Manifest:
    """Read what a cache was made from; InputError unless there is one that agrees in all `expected` parts."""
    path = folder / "cache.json"
    if not path.exists():
        raise InputError(f"{folder}: no cache of encoded edits there (no cache.json); make it by {REMEDY}")
    other = f"choose another folder for {REMEDY}"
    try:
        stored = read_json(path)
    except InputError as error:
        raise InputError(f"{error}; {other}") from error
    found = stored.get("made_from") if isinstance(stored, dict) else None
    if not isinstance(found, dict) or stored.get("format") != FORMAT:
        raise InputError(f"{path}: expected a cache of encoded edits in format {FORMAT}; {other}")
    recorded = {**_UNRECORDED, **found}
    different = [
        f"{part} {_shown(recorded.get(part))}, expected {_shown(value)}"
        for part, value in expected.items()
        if recorded.get(part) != value
    ]
    if different:
        raise InputError(f"{folder}: made from something else: {summarize(different, 9)}; {other}")
    return Manifest(found, stored.get("complete") is True)


def block_path(folder: Path, number: int) -> Path:
    """File of block `number`."""
    return folder / f"block-{number:05d}.bin"


def blocks_of(captions: Sequence[Caption]) -> list[range]:
    """Numbers of the captions in each block."""
    starts = range(0, len(captions), CAPTIONS_PER_BLOCK)
    return [range(start, min(start + CAPTIONS_PER_BLOCK, len(captions))) for start in starts]


def open_block(folder: Path, manifest: Manifest, number: int, captions: range) -> Block:
    """Read the records of block `number`; InputError unless it belongs to the cache and holds edits of `captions`."""
    block = read_block(block_path(folder, number), manifest.origin, manifest.made_from["--q_feat_size"])
    records = block.records
    places = (records["caption"].astype(int) * len(KINDS) + records["kind"]) * (1 << 16) + records["word"]
    first, last = (caption * len(KINDS) * (1 << 16) for caption in (captions.start, captions.stop))
    in_order = bool((places[1:] >= places[:-1]).all() and (records["kind"] < len(KINDS)).all())
    if not in_order or (len(places) and not first <= places[0] <= places[-1] < last):
        raise InputError(f"{block.path}: its edits are not those of captions {captions.start} to {captions.stop - 1}")
    return block


def _shown(value: object) -> str:
    return "missing" if value is None else str(value)[:12]
