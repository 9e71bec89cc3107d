"""The heads of averaged frames against loops over videos, windows and queries."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from method.data.ragged import Ragged
from method.model.retrieval import Branch
from method.model.scoring import Similarity
from method.model.windows import CLIPS, WINDOW_SIZES, best_windows, equal_clips
from tests.helpers.gradients import loss
from tests.helpers.small_models import lively_model, random_rows

WIDTH = 16


def some_frames(lengths: Sequence[int]) -> Ragged:
    frames = Ragged.of([torch.randn(length, WIDTH) for length in lengths])
    return frames.with_values(frames.values.requires_grad_())


def naive_windows(videos: Sequence[Tensor], queries_QD: Tensor, sizes: Sequence[int]) -> Similarity:
    """Every window averaged and compared with every query."""
    results = []
    for frames_nD in videos:
        windows = [(first, size) for size in sizes for first in range(len(frames_nD) - size + 1)]
        means_WD = torch.stack([frames_nD[first : first + size].mean(0) for first, size in windows])
        cosine_Q, best_Q = F.cosine_similarity(means_WD[:, None], queries_QD, dim=-1).max(0)
        middle_Q = torch.tensor([windows[best][0] + (windows[best][1] - 1) // 2 for best in best_Q])
        results.append((cosine_Q, (means_WD @ queries_QD.t()).amax(0), middle_Q))
    return Similarity(*(torch.stack(part, 1) for part in zip(*results, strict=True)))


def naive_clips(frames_nD: Tensor) -> Tensor:
    count = min(len(frames_nD), CLIPS)
    bounds = [index * len(frames_nD) // count for index in range(count + 1)]
    return torch.stack([frames_nD[bounds[i] : bounds[i + 1]].mean(0) for i in range(count)])


@pytest.mark.parametrize("sizes", [(1,), WINDOW_SIZES, range(1, CLIPS + 1)], ids=["rows", "some", "all"])
@pytest.mark.parametrize("lengths", [[7, 3, 1, 12], [6, 6], [1, 1], [40]], ids=str)
def test_the_best_window_is_that_of_a_loop(lengths: list[int], sizes: Sequence[int]) -> None:
    torch.manual_seed(0)
    frames, queries_QD = some_frames(lengths), torch.randn(5, WIDTH, requires_grad=True)
    found = best_windows(frames, queries_QD, sizes)
    expected = naive_windows(frames.values.split(lengths), queries_QD, sizes)
    assert found.best_frame_QB.tolist() == expected.best_frame_QB.tolist()
    for part in ("cosine_QB", "raw_QB"):
        torch.testing.assert_close(getattr(found, part), getattr(expected, part), atol=1e-5, rtol=1e-5)
        ours, theirs = (
            torch.autograd.grad(loss(getattr(scores, part)), (frames.values, queries_QD), retain_graph=True)
            for scores in (found, expected)
        )
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_head_clips_weighs_two_scales() -> None:
    model, lengths = lively_model(head="clips", clip_weight=0.6, max_frames=80), [70, 33, 5]
    branch, queries_QD = model.branch("action"), random_rows([4], WIDTH).values
    keys = branch.encode_videos(some_frames(lengths))
    found, frames = branch.score(keys, queries_QD), Branch.score(branch, keys, queries_QD)
    clips = naive_windows([naive_clips(own) for own in keys.values.split(lengths)], queries_QD, range(1, CLIPS + 1))
    torch.testing.assert_close(found.cosine_QB, 0.6 * clips.cosine_QB + 0.4 * frames.cosine_QB)
    torch.testing.assert_close(found.raw_QB, 0.6 * clips.raw_QB + 0.4 * frames.raw_QB)
    assert found.best_frame_QB.tolist() == frames.best_frame_QB.tolist()


@pytest.mark.parametrize("head", ["clips", "windows"])
def test_scores_depend_on_no_other_video_and_a_frame_scores_as_ever(head: str) -> None:
    branch, queries_QD = lively_model(head=head).branch("action"), random_rows([4], WIDTH).values
    videos = [torch.randn(length, WIDTH) for length in (9, 1, 40)]
    together = branch.score(Ragged.of(videos), queries_QD)
    for index, own in enumerate(videos):
        alone = branch.score(Ragged.of([own]), queries_QD)
        torch.testing.assert_close(together.cosine_QB[:, index], alone.cosine_QB[:, 0])
        assert together.best_frame_QB[:, index].tolist() == alone.best_frame_QB[:, 0].tolist()
    single = F.cosine_similarity(videos[1], queries_QD, dim=-1)
    torch.testing.assert_close(together.cosine_QB[:, 1], single)


def test_averages_keep_what_precision_they_get() -> None:
    frames, queries_QD = some_frames([20, 8]), torch.randn(3, WIDTH)
    exact = best_windows(equal_clips(frames, 4), queries_QD, WINDOW_SIZES)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = best_windows(equal_clips(frames, 4), queries_QD, WINDOW_SIZES)
    assert rounded.cosine_QB.dtype == torch.float32
    torch.testing.assert_close(rounded.cosine_QB, exact.cosine_QB, atol=0.02, rtol=0)


def test_a_broken_frame_breaks_the_score() -> None:
    frames = Ragged.of([torch.randn(6, WIDTH), torch.randn(4, WIDTH)])
    frames.values[2, 3] = torch.nan
    for head in ("clips", "windows"):
        scores = lively_model(head=head).branch("action").score(frames, torch.randn(2, WIDTH))
        assert scores.cosine_QB.isnan().tolist() == [[True, False]] * 2
