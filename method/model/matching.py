"""Optimal matching: the captions of a video, one to one, to frames of it.

Letters: S captions of this process, N frames of its videos, D width, V videos with several captions, C captions and
L frames of the longest of these, M matched captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from method.data.ragged import Ragged
from method.model.batch_scores import BatchScores, LossSettings
from method.model.scoring import normalized
from method.ops.precision import autocast
from method.runtime import hardware


def optimal_matching_loss(scores: BatchScores, settings: LossSettings) -> dict[str, Tensor]:
    """Pull the captions of a video to different frames (optimal matching loss, Wang et al. 2024: GMMFormer v2).

    Captions of a video are matched to different frames of it, such that the sum of their cosines is the largest; of
    more captions than frames, as many as there are frames. The loss is 1 minus the mean cosine of all matched pairs of
    the batch, as the paper's program computes it; which pairs they are has no gradient. A video's only caption is not
    matched, as there; without any pair, where that program fails, the loss is 0. Of each branch, whose frame embeddings
    stand for the paper's 32 clips.
    """
    captions = _captions_of_videos(scores)
    terms = {}
    for branch, keys in scores.keys.items():
        queries_SD, frames = scores.queries[branch][scores.shard], keys.valid()
        caption_M, frame_M = match(frames, queries_SD, captions)
        cosine_M = F.cosine_similarity(queries_SD[caption_M].float(), frames.values[frame_M].float(), dim=-1)
        distance, count = scores.sum((1 - cosine_M).sum()), scores.sum(torch.ones_like(cosine_M).sum())
        terms[branch] = distance / count.clamp(min=1)
    return terms


def _captions_of_videos(scores: BatchScores) -> dict[int, list[int]]:
    """The captions of each of this process's videos with several, as indices into its captions and its videos."""
    captions: dict[int, list[int]] = {}
    for caption, video in enumerate((scores.labels_Q[scores.shard] - scores.first_video).tolist()):
        captions.setdefault(video, []).append(caption)
    return {video: own for video, own in captions.items() if len(own) > 1}


@torch.no_grad()
def match(frames: Ragged, queries_SD: Tensor, captions: dict[int, list[int]]) -> tuple[Tensor, Tensor]:
    """The matched captions and the row of each one's frame, (M,) each, for videos by index and their captions.

    Waits for the device: the matching is computed on the CPU.
    """
    from scipy.optimize import linear_sum_assignment  # optional

    device = queries_SD.device
    if not captions:
        none = torch.zeros(0, dtype=torch.long, device=device)
        return none, none
    matched: list[NDArray[Any]] = []
    rows: list[NDArray[Any]] = []
    lengths, starts = frames.layout.lengths, np.cumsum([0, *frames.layout.lengths])
    cosine_VCL = _cosines(frames, queries_SD, captions)
    for cosine_CL, (video, own) in zip(cosine_VCL, captions.items(), strict=True):
        choice, frame = linear_sum_assignment(cosine_CL[: len(own), : lengths[video]], maximize=True)
        matched.append(np.array(own)[choice])
        rows.append(starts[video] + frame)
    both_2M = torch.from_numpy(np.stack([np.concatenate(matched), np.concatenate(rows)]))
    caption_M, frame_M = hardware.to_device_async(both_2M, device)
    return caption_M, frame_M


def _cosines(frames: Ragged, queries_SD: Tensor, captions: dict[int, list[int]]) -> NDArray[Any]:
    """Cosines of the videos' captions with their own frames, (V, C, L), padded; NaN as 0, to be found in the loss."""
    with autocast(queries_SD.device, "off"):
        unit = normalized(frames)
        videos_V = _on_device(list(captions), queries_SD)
        own_VC = _on_device(_padded(list(captions.values())), queries_SD)
        frames_VLD = unit.layout.pad(unit.values).index_select(0, videos_V)
        cosine_VCL = F.normalize(queries_SD.float(), dim=-1)[own_VC] @ frames_VLD.mT
    return cosine_VCL.nan_to_num(nan=0.0).cpu().numpy()


def _padded(lists: Sequence[Sequence[int]]) -> list[list[int]]:
    longest = max(map(len, lists))
    return [[*numbers, *[0] * (longest - len(numbers))] for numbers in lists]


def _on_device(indices: Sequence[int] | Sequence[Sequence[int]], like: Tensor) -> Tensor:
    return hardware.to_device_async(torch.tensor(indices), like.device)
