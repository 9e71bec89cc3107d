"""Frame embeddings of one branch in a collection of Milvus, an embedded file or a server.

A row is a frame: id (automatic), video, frame, version, vector. A video's frame 0 is inserted after its others, so that
a video that has it is complete. `version` identifies the embeddings of a video. One more row, frame -1, is the record:
its `video` says what the embeddings were made from.

Letters: Q queries, n frames of a video, D width.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from method.runtime.errors import InputError
from method.runtime.progress import progress_bar

FORMAT = 1
MAX_LIMIT = 16384  # of a search, by Milvus
_ROWS = 4096  # of an insertion
_NAMES = 256  # of a deletion
# Settings by kind of index: to build it for vectors of width D, and to search it for so many results.
INDEXES: Mapping[str, tuple[Callable[[int], dict[str, int]], Callable[[int], dict[str, int]]]] = {
    "AUTOINDEX": (lambda width: {}, lambda limit: {}),
    "FLAT": (lambda width: {}, lambda limit: {}),
    "HNSW": (lambda width: {"M": 16, "efConstruction": 200}, lambda limit: {"ef": max(64, 2 * limit)}),
    "IVF_FLAT": (lambda width: {"nlist": 1024}, lambda limit: {"nprobe": 64}),
    "IVF_PQ": (lambda width: {"nlist": 4096, "m": width // 8, "nbits": 8}, lambda limit: {"nprobe": 64}),
    "DISKANN": (lambda width: {}, lambda limit: {"search_list": max(100, 2 * limit)}),
}


def collection_name(branch: str) -> str:
    """Name of the collection of a branch.

    >>> collection_name("object")
    'a3prvr_object'
    """
    return f"a3prvr_{re.sub('[^A-Za-z0-9_]', '_', branch)}"


def version_of(frames_nD: Tensor) -> int:
    """A number that identifies the embeddings of a video, all of them."""
    frames_nD = frames_nD.cpu().contiguous()
    digest = hashlib.blake2b(frames_nD.numpy().data, digest_size=7)
    return int.from_bytes(digest.digest(), "little")


class MilvusFrames:
    """The collection of one branch.

    Args:
        client: of pymilvus; what it raises is passed on.
        branch: whose embeddings these are.
        width: of an embedding.
        index: kind of a new collection, in `INDEXES`; one that is there keeps its own.
    """

    def __init__(self, client: Any, branch: str, width: int, index: str) -> None:
        self._client, self._width, self._index = client, width, index
        self.name = collection_name(branch)
        self.can_group = True  # until the server refuses a grouping search, as for some indexes

    def open(self, made_from: str, rebuild: bool, rebuild_outdated: bool) -> None:
        """Make the collection if there is none, with `rebuild`, or with `rebuild_outdated` if it is another's.

        InputError for one that has other fields, or that was made from something else.
        """
        if self._client.has_collection(self.name):
            problem = self._problem(made_from)
            if problem is not None and not (rebuild or rebuild_outdated):
                raise InputError(f"the collection {self.name} {problem}; make it again with --rebuild")
            if problem is not None or rebuild:
                self._client.drop_collection(self.name)
                self._create(made_from)
        else:
            self._create(made_from)
        self._index = self._client.describe_index(self.name, "vector")["index_type"]

    def _problem(self, made_from: str) -> str | None:
        """Why the collection that is there cannot be used; it is loaded if it can."""
        described = self._client.describe_collection(self.name)["fields"]
        fields = {field["name"]: field["params"].get("dim") for field in described}
        if set(fields) != {"id", "video", "frame", "version", "vector"}:
            return f"has other fields, {', '.join(fields)}"
        if int(fields["vector"]) != self._width:
            return f"has vectors of width {fields['vector']}, expected {self._width}"
        self._client.load_collection(self.name)
        rows = self._client.query(self.name, filter="frame == -1", output_fields=["video"])
        if not rows:
            return "has no record of what it was made from"
        return None if rows[0]["video"] == _record(made_from) else "was made from another checkpoint or precision"

    def _create(self, made_from: str) -> None:
        from pymilvus import DataType  # optional

        schema = self._client.create_schema(auto_id=True)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("video", DataType.VARCHAR, max_length=1024)
        schema.add_field("frame", DataType.INT64)
        schema.add_field("version", DataType.INT64)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self._width)
        indexes = self._client.prepare_index_params()
        build, _ = INDEXES[self._index]
        indexes.add_index("vector", index_type=self._index, metric_type="IP", params=build(self._width))
        self._client.create_collection(self.name, schema=schema, index_params=indexes, consistency_level="Strong")
        record = {"video": _record(made_from), "frame": -1, "version": 0, "vector": [0.0] * self._width}
        self._client.insert(self.name, [record])
        self._client.flush(self.name)
        self._client.load_collection(self.name)

    def versions(self) -> dict[str, int]:
        """The videos that are complete, and the version of each."""
        found: dict[str, int] = {}
        rows = self._client.query_iterator(
            self.name, filter="frame == 0", output_fields=["video", "version"], batch_size=_ROWS
        )
        while batch := rows.next():
            found |= {row["video"]: row["version"] for row in batch}
        rows.close()
        return found

    def update(self, versions: Mapping[str, int], frames: Callable[[str], Tensor]) -> int:
        """Insert the videos that are missing or have another version; how many. Others are left alone.

        Args:
            versions: of the videos that are searched.
            frames: the embeddings (n, D) of one.
        """
        stored = self.versions()
        missing = [video for video, version in versions.items() if stored.get(video) != version]
        for start in range(0, len(missing), _NAMES):  # what an interrupted insertion left, or of an earlier version
            names = json.dumps(missing[start : start + _NAMES], ensure_ascii=False)
            self._client.delete(self.name, filter=f"video in {names} and frame >= 0")
        for batch in progress_bar(_batches(missing, frames), f"frames of {self.name}", "batch"):
            self._insert(batch, versions)
        if missing:
            self._client.flush(self.name)
        return len(missing)

    def _insert(self, batch: Mapping[str, Tensor], versions: Mapping[str, int]) -> None:
        for of_first in (False, True):
            rows = [
                {"video": video, "frame": frame, "version": versions[video], "vector": vector_D}
                for video, frames_nD in batch.items()
                for frame, vector_D in enumerate(frames_nD.cpu().numpy())
                if (frame == 0) == of_first
            ]
            if rows:
                self._client.insert(self.name, rows)

    def best(self, vectors_QD: Tensor, count: int) -> list[dict[str, float]]:
        """For each query about `count` videos with the best frames, best first, and the cosine of the frame.

        Without grouping, frames are fetched until they are of so many videos, `MAX_LIMIT` of them at most.
        """
        if self.can_group:
            try:
                return self._search(vectors_QD, min(count, MAX_LIMIT), group_by_field="video")
            except Exception as error:
                if "group" not in str(error).lower():
                    raise
                self.can_group = False
        limit = min(4 * count, MAX_LIMIT)
        while True:
            found = self._search(vectors_QD, limit)
            if limit == MAX_LIMIT or all(len(own) >= count for own in found):
                return found
            limit = min(4 * limit, MAX_LIMIT)

    def _search(self, vectors_QD: Tensor, limit: int, **grouping: str) -> list[dict[str, float]]:
        _, settings = INDEXES.get(self._index, INDEXES["AUTOINDEX"])
        found = self._client.search(
            self.name,
            data=list(vectors_QD.float().cpu().numpy()),
            anns_field="vector",
            limit=limit,
            output_fields=["video"],
            search_params={"metric_type": "IP", "params": settings(limit)},
            **grouping,
        )
        best: list[dict[str, float]] = []
        for hits in found:
            own: dict[str, float] = {}
            for hit in hits:
                own.setdefault(hit["entity"]["video"], float(hit["distance"]))
            best.append(own)
        return best


def _record(made_from: str) -> str:
    return json.dumps({"format": FORMAT, "made_from": made_from})


def _batches(videos: Sequence[str], frames: Callable[[str], Tensor]) -> Iterator[dict[str, Tensor]]:
    """Whole videos with together about `_ROWS` frames."""
    batch: dict[str, Tensor] = {}
    rows = 0
    for video in videos:
        own_nD = frames(video)
        if batch and rows + len(own_nD) > _ROWS:
            yield batch
            batch, rows = {}, 0
        batch[video] = own_nD
        rows += len(own_nD)
    if batch:
        yield batch
