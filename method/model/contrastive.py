"""Contrastive losses: captions against all videos of the batch, and videos against all its captions.

Letters: X branches, Q captions, B videos.
"""

from __future__ import annotations

import torch
from torch import Tensor

from method.model.batch_scores import BatchScores, LossSettings


def nce_loss(scores: BatchScores, settings: LossSettings) -> dict[str, Tensor]:
    """Contrastive loss of each branch on raw scores."""
    return scores.by_branch(_contrastive(scores.weigh(scores.raw_XQB), scores))


def cosine_nce_loss(scores: BatchScores, settings: LossSettings) -> dict[str, Tensor]:
    """Contrastive loss of each branch on cosines divided by a temperature (InfoNCE, van den Oord et al. 2018).

    Of a fraction of it, `soft_targets`, the target is a teacher's distribution instead of the own videos.
    """
    logits_XQB = scores.weigh(scores.cosine_XQB / settings.nce_temperature)
    loss_X = _contrastive(logits_XQB, scores)
    if settings.soft_targets:
        assert scores.teacher_XQB is not None, "soft targets need the scores of a teacher"
        teacher_XQB = scores.weigh(scores.teacher_XQB / settings.soft_temperature)
        loss_X = (1 - settings.soft_targets) * loss_X + settings.soft_targets * _to_teacher(logits_XQB, teacher_XQB)
    return scores.by_branch(loss_X)


def _contrastive(logits_XQB: Tensor, scores: BatchScores) -> Tensor:
    """Both directions (X,), each averaged; a video is to find any of its captions."""
    own_XQ1 = scores.labels_Q.expand(logits_XQB.shape[:-1])[..., None]
    text_to_video_XQ = logits_XQB.logsumexp(-1) - logits_XQB.gather(-1, own_XQ1).squeeze(-1)
    video_to_text_XB = logits_XQB.logsumexp(-2) - logits_XQB.masked_fill(~scores.own_QB, -torch.inf).logsumexp(-2)
    return text_to_video_XQ.mean(-1) + video_to_text_XB.mean(-1)


def _to_teacher(logits_XQB: Tensor, teacher_XQB: Tensor) -> Tensor:
    """Cross entropy to the softmax of the teacher's logits, both directions, each averaged; (X,).

    With the similarity of videos to each other as the teacher, these are soft targets as in SoftCLIP (Gao et al. 2024).
    """
    losses = []
    for dim in (-1, -2):
        target_XQB = teacher_XQB.softmax(dim)
        # Negatives that are left out have a target of 0 and a logarithm of -inf.
        log_XQB = logits_XQB.log_softmax(dim).masked_fill(target_XQB == 0, 0.0)
        losses.append(-(target_XQB * log_XQB).sum(dim).mean(-1))
    return losses[0] + losses[1]
