"""The engine that lets Milvus find candidates by an index of frame embeddings; scores and moments are exact.

Milvus finds, for each branch, the videos with the best frames. All that it finds are scored from our own embeddings. A
video that it does not find scores, in each branch, at most as much as the last one found; if that is less than what the
last result has, no video is missing (threshold algorithm, Fagin, Lotem and Naor 2003), and otherwise more are fetched.
With an index that is exact, such as FLAT, so are the results, unless `_LIMITS` end the search. If these are too few,
because most videos that Milvus has are not searched, all that are searched are scored.

Letters: Q queries, D width.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from method.evaluation.metrics import FUSED
from method.runtime.errors import InputError
from method.serving.engines import Found, Ranking
from method.serving.engines.milvus_frames import MilvusFrames, version_of
from method.serving.engines.rescoring import Videos, require_best_frames

log = logging.getLogger(__name__)

TOKEN = "MILVUS_TOKEN"  # environment variable: the API key of a server, or USER:PASSWORD
_LIMITS = (1, 4, 16)  # times as many candidates, one after the other until no video can be missing
_LEAST = 100
_TIMEOUT = 10.0  # seconds to connect


class MilvusEngine:
    """Finds videos by collections of Milvus; see `SearchEngine`. It computes no `right_rank`.

    Args:
        videos: with their embeddings.
        frames: branch -> its collection, which has these videos and may have others.
        where: names the server in messages.
    """

    def __init__(self, videos: Videos, frames: Mapping[str, MilvusFrames], where: str) -> None:
        self._videos, self._frames, self._where = videos, frames, where
        self._index_of = {video_id: index for index, video_id in enumerate(videos.ids)}

    @property
    def video_ids(self) -> list[str]:
        """The videos, in corpus order."""
        return self._videos.ids

    def frames(self, index: int) -> dict[str, Tensor]:
        """See `SearchEngine`."""
        return self._videos.frames(index)

    @torch.inference_mode()
    def search(
        self, vectors: Mapping[str, Tensor], count: int, right: Sequence[int | None] | None = None
    ) -> list[Ranking]:
        """See `SearchEngine`. InputError also if the server fails."""
        queries = len(next(iter(vectors.values())))
        found: dict[int, list[Found]] = {}
        for factor in _LIMITS:
            pending = [query for query in range(queries) if query not in found]
            if not pending:
                break
            limit = factor * max(_LEAST, 4 * count)
            own = {name: vectors_QD[pending] for name, vectors_QD in vectors.items()}
            with one_line(self._where):
                candidates = {name: self._frames[name].best(own[name], limit) for name in vectors}
            for place, query in enumerate(pending):
                branches = {name: candidates[name][place] for name in vectors}
                vector = {name: own[name][place] for name in vectors}
                best = self._best(vector, self._known(branches), count)
                if self._is_complete(best, branches, count):
                    found[query] = best
                elif factor == _LIMITS[-1]:
                    is_short = len(best) < min(count, len(self._videos))  # most that Milvus found are not searched
                    found[query] = self._best(vector, range(len(self._videos)), count) if is_short else best
        return [Ranking(found[query]) for query in range(queries)]

    def _known(self, branches: Mapping[str, Mapping[str, float]]) -> list[int]:
        """The searched videos among those that were found, in corpus order."""
        return sorted({self._index_of[video] for own in branches.values() for video in own if video in self._index_of})

    def _best(self, vectors: Mapping[str, Tensor], candidates: Sequence[int], count: int) -> list[Found]:
        best = self._videos.best(vectors, candidates, count)
        if not all(math.isfinite(score) for found in best for score in found.scores.values()):
            raise InputError("the scores are not finite: the weights or features are broken")
        return best

    def _is_complete(self, best: Sequence[Found], branches: Mapping[str, Mapping[str, float]], count: int) -> bool:
        """Whether no other video can be among the best."""
        if len(best) == len(self._videos):
            return True
        weights = self._videos.settings.weights
        highest = sum(weights[name] * min(own.values(), default=1.0) for name, own in branches.items())
        return len(best) == count and best[-1].scores[FUSED] >= highest


def open_milvus(
    uri: str,
    index: str,
    videos: Videos,
    made_from: Mapping[str, str],
    rebuild: bool = False,
    rebuild_outdated: bool = False,
) -> MilvusEngine:
    """Open the collections of a Milvus file or server, and insert the videos that they lack.

    Args:
        uri: an address, http://HOST:PORT, or a file, FILE.db, which Milvus Lite makes if there is none.
        index: kind of a new collection.
        videos: to be searched.
        made_from: branch -> digest of what its embeddings depend on, apart from the features.
        rebuild: make the collections again. rebuild_outdated: those that were made from something else.

    Raises:
        InputError: without pymilvus or a server, for collections of something else, and for a branch whose head scores
            in a way of its own.
    """
    if importlib.util.find_spec("pymilvus") is None:
        raise InputError(
            "--engine milvus: the package pymilvus is missing; run `pip install -r requirements-milvus.txt`"
        )
    require_best_frames(videos.settings, "milvus")
    where = f"--engine_uri {uri}"
    frames = {}
    with one_line(where):
        client = _connect(uri)
        place_of = {video_id: place for place, video_id in enumerate(videos.ids)}
        for name, digest in made_from.items():
            width = videos.frames(0)[name].shape[1]
            frames[name] = own = MilvusFrames(client, name, width, index)
            own.open(digest, rebuild, rebuild_outdated)
            read = partial(_read, videos, place_of, name)
            added = own.update({video_id: version_of(read(video_id)) for video_id in place_of}, read)
            if added:
                log.info("%d videos inserted into %s of %s", added, own.name, uri)
    return MilvusEngine(videos, frames, where)


def _read(videos: Videos, place_of: Mapping[str, int], branch: str, video_id: str) -> Tensor:
    return videos.frames(place_of[video_id])[branch]


def _connect(uri: str) -> Any:
    from pymilvus import MilvusClient  # optional

    if "://" in uri:
        return MilvusClient(uri, token=os.environ.get(TOKEN, ""), timeout=_TIMEOUT)
    path = Path(uri).expanduser()
    if path.suffix != ".db":
        raise InputError("expected http://HOST:PORT or the name of a file, FILE.db")
    if not path.parent.is_dir():
        raise InputError(f"no folder {path.parent}")
    if importlib.util.find_spec("milvus_lite") is None:
        raise InputError("the package milvus-lite is missing; run `pip install -r requirements-milvus.txt`")
    try:
        return MilvusClient(str(path), timeout=_TIMEOUT)
    except Exception as error:
        raise InputError("cannot be opened: another process has it open, or it is no Milvus Lite database") from error


@contextlib.contextmanager
def one_line(where: str) -> Iterator[None]:
    """Turn what pymilvus raises into an InputError of one line that begins with `where`; its own log is silenced."""
    import grpc
    from pymilvus import MilvusException

    for name in ("pymilvus", "milvus_lite"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except (MilvusException, grpc.RpcError) as error:
        reason = " ".join(str(getattr(error, "message", "") or error).split())[:200]
        raise InputError(f"{where}: Milvus fails ({reason})") from error
