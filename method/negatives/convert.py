"""Blocks of hard negative caches in format 1, read to be converted: a binary format that rows files replaced.

    magic (8 bytes) | origin (uint64) | number of edits, CRC-32 of the records (2 x uint32)
    a record for each edit
    rows of all edits: float16, D wide

All numbers are little-endian. `origin` is a hash of the cache's fingerprint.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import torch

from method.data.cache.rows_file import write_rows
from method.data.captions import Caption
from method.data.edits import KINDS
from method.data.ragged import Layout, Ragged
from method.negatives.cache import Manifest, block_path, edit_ids
from method.runtime.errors import InputError
from method.runtime.files import digest_of

_MAGIC = b"A3PNEG\x00\x01"
_HEADER = np.dtype([("magic", "S8"), ("origin", "<u8"), ("edits", "<u4"), ("sum", "<u4")])
# caption: index of the caption; kind: index in KINDS; word: number of the replaced word; rows: how many; sum: CRC-32.
_RECORD = np.dtype([("caption", "<u4"), ("kind", "<u1"), ("word", "<u2"), ("rows", "<u2"), ("sum", "<u4")])


def convert_block(folder: Path, manifest: Manifest, number: int, captions: Sequence[Caption]) -> None:
    """Replace block `number` in format 1 by a rows file; InputError if it is corrupt or of another cache."""
    path = block_path(folder, number).with_suffix(".bin")
    content, width = path.read_bytes(), manifest.fingerprint["--q_feat_size"]
    origin = int(digest_of(sorted(manifest.fingerprint.items()))[:16], 16)
    try:
        header = np.frombuffer(content, _HEADER, 1)[0]
        records = np.frombuffer(content, _RECORD, int(header["edits"]), _HEADER.itemsize)
        rows_ND = np.frombuffer(content[_HEADER.itemsize + records.nbytes :], "<f2").reshape(-1, width)
    except ValueError as error:
        raise InputError(f"{path}: truncated ({error})") from error
    if not content.startswith(_MAGIC) or header["origin"] != origin or header["sum"] != zlib.crc32(records.tobytes()):
        raise InputError(f"{path}: corrupt, or a block of another cache")
    ends = list(accumulate(records["rows"].tolist(), initial=0))
    sums = [zlib.crc32(rows_ND[start:end].tobytes()) for start, end in pairwise(ends)]
    if ends[-1] != len(rows_ND) or sums != records["sum"].tolist():
        raise InputError(f"{path}: corrupt rows")
    edits = zip(records["caption"].tolist(), records["kind"].tolist(), records["word"].tolist(), strict=True)
    ids = edit_ids((captions[caption].id, KINDS[kind], word) for caption, kind, word in edits)
    rows = Ragged(torch.from_numpy(rows_ND.copy()), Layout.of(records["rows"].tolist()))
    write_rows(block_path(folder, number), manifest.fingerprint, ids, width, [rows], np.float16)
    path.unlink()
