"""A searcher over made-up videos, for tests of what is built on it; no file is read."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from method.data.captions import Caption
from method.data.dataset import FeatureReader
from method.data.preprocessing import normalize_rows
from method.data.ragged import Ragged
from method.evaluation.corpus import Corpus
from method.evaluation.frame_embeddings import FrameEmbeddings
from method.evaluation.scorer import ScoringSettings
from method.runtime.errors import InputError
from method.serving.calibration import Calibration, Confidence, ScoreScale
from method.serving.engines.exact import ExactEngine
from method.serving.searcher import Searcher
from method.text.encoder import TextEncoder
from tests.helpers.paths import REPOSITORY
from tests.helpers.small_models import SMALL, branch_weights, many_branches

MISSING_ENCODER = "checkpoints/roberta-large: no such folder; run `python utils/download_roberta.py`"

# Four seconds of 64 x 48 pixels at 5 frames per second, VP8.
FILM = REPOSITORY / "tests" / "data_files" / "film.webm"


class MadeUpText:
    """Token features drawn from the text itself: in the place of the text encoder and of the features of captions."""

    max_tokens = SMALL.max_words

    def rows(self, text: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
        words = min(len(text.split()) + 2, self.max_tokens)
        return normalize_rows(torch.randn(words, SMALL.query_width, generator=generator))

    def encode(self, sentences: Sequence[str]) -> Ragged:
        return Ragged.of([self.rows(sentence) for sentence in sentences])

    def fills(self, sentence: str) -> bool:
        return len(self.rows(sentence)) >= self.max_tokens

    def gather_queries(self, caption_ids: Sequence[str]) -> Ragged:
        return self.encode(caption_ids)


def make_searcher(
    captions: Mapping[str, Sequence[str]], durations: Mapping[str, float] | None = None, encoder: bool = True,
    branches: Sequence[str] = ("action", "object"), moments: int = 1, confidence: Confidence | None = None,
) -> Searcher:  # fmt: skip
    """A searcher over one video of random frame embeddings for each id in `captions`, which also gives its captions.

    Without `encoder` there is no text encoder. `moments`: how many of a video to find.
    """
    generator = torch.Generator().manual_seed(0)
    videos = {}
    for number, branch in enumerate(branches):
        lengths = [6 + 3 * number + index % 4 for index in range(len(captions))]
        rows = [torch.randn(length, SMALL.hidden_size, generator=generator) for length in lengths]
        videos[branch] = FrameEmbeddings.of(Ragged.of([torch.nn.functional.normalize(own, dim=-1) for own in rows]))
    text = MadeUpText()

    def load() -> TextEncoder:
        if not encoder:
            raise InputError(MISSING_ENCODER)
        return cast(TextEncoder, text)

    settings = ScoringSettings(branch_weights(branches, 0.5), memory_mb=4)
    return Searcher(
        model=many_branches(branches),
        engine=ExactEngine(Corpus(list(captions), videos), settings, torch.device("cpu")),
        captions=[
            Caption(f"{video}#enc#{k}", video, own) for video in captions for k, own in enumerate(captions[video])
        ],
        reader=cast(FeatureReader, text),
        make_encoder=load,
        durations=durations or {},
        settings=settings,
        moments_per_video=moments,
        confidence=confidence,
    )


def confidence(curve: Sequence[tuple[float, float]], minimum: float = 0.0, note: str | None = None) -> Confidence:
    """A confidence by a curve of scores and shares."""
    calibration = Calibration(ScoreScale("a digest", {}, "off"), "demo", 14, 100, tuple(curve), ())
    return Confidence(calibration, minimum, note)


def write_video(path: Path) -> Path:
    """Write a film of four seconds, WebM."""
    return Path(shutil.copy(FILM, path))


def kitchen(videos: int = 14) -> dict[str, list[str]]:
    """Ids and captions of some videos."""
    verbs, things = ("opens", "lifts", "drops"), ("door", "fridge", "box", "cup", "bag")
    return {
        f"v{index:02d}": [f"a person {verbs[(index + k) % 3]} the {things[index % 5]}" for k in range(1 + index % 3)]
        for index in range(videos)
    }


_SERVE = """
import sys
from pathlib import Path
from method.serving.source import SearcherSource
from method.serving.web.server import make_app, serve
from tests.helpers.search_runs import kitchen, make_searcher
folder = Path(sys.argv[1])
searcher = make_searcher({**kitchen(), sys.argv[2]: [sys.argv[2]]}, {"v03": 6.0}, moments=3)
serve(make_app(SearcherSource(searcher), "127.0.0.1", 5, folder, folder / ".extracts"), "127.0.0.1", 0)
"""


@contextlib.contextmanager
def serving(folder: Path, also: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The web page over the kitchen and a video whose id and caption are `also`: its address and its process."""
    command = [sys.executable, "-c", _SERVE, str(folder), also]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=REPOSITORY, text=True, **pipes) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[0].rstrip("/"), process
        finally:
            process.kill()
