"""How the captions and videos of a batch resemble each other by their texts and features, which nothing trains.

Letters: Q captions, B videos, D width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from method.data.captions import normalized_text
from method.model.batch_scores import TEXT_STRUCTURE, BatchScores, LossSettings
from method.model.scoring import cosines
from method.runtime import hardware
from method.runtime.files import digest_of
from method.training.sharded_batch import ShardedBatch

# The branch whose features compare videos for soft targets.
TEACHER = "object"


def with_relations(scores: BatchScores, sharded: ShardedBatch, settings: LossSettings) -> BatchScores:
    """The scores of a batch with what the losses need of these resemblances."""
    labels_Q = scores.labels_Q
    if settings.false_negatives != "off":
        weight_QB = negative_weights(sharded, labels_Q, scores.own_QB, settings)
        scores = replace(scores, negative_weight_QB=weight_QB)
    if settings.soft_targets and settings.soft_teacher == "videos":
        scores = replace(scores, teacher_XQB=video_similarity(sharded, labels_Q)[None])
    if TEXT_STRUCTURE in settings.weights:
        scores = replace(scores, tokens_QD=mean_tokens(sharded))
    return scores


def mean_tokens(sharded: ShardedBatch) -> Tensor:
    """The mean token features of all captions, (Q, D)."""
    assert sharded.batch.tokens is not None
    return sharded.gather_captions(sharded.batch.tokens.means())


def negative_weights(sharded: ShardedBatch, labels_Q: Tensor, own_QB: Tensor, settings: LossSettings) -> Tensor:
    """How much each video counts as a negative of each caption and the caption as one of the video's, (Q, B).

    0 for the caption's own video and for a video of which a caption has the same text up to case, white space and final
    punctuation. With 'similar', of the others 1 - (s - f) / (1 - f), within 0 and 1, where s is the largest cosine with
    a caption of the video and f is `similar_from`. These cosines are of mean token features less their mean over the
    batch, which all sentences share (Mu et al. 2018).
    """
    text_Q = sharded.gather_captions(_text_ids(sharded))
    weight_QQ = (text_Q[:, None] != text_Q).float()
    if settings.false_negatives == "similar":
        tokens_QD = mean_tokens(sharded)
        above_QQ = (cosines(tokens_QD - tokens_QD.mean(0)) - settings.similar_from) / (1 - settings.similar_from)
        weight_QQ = weight_QQ * (1 - above_QQ.clamp(0, 1))
    weight_QB = torch.ones(own_QB.shape, device=own_QB.device)
    weight_QB = weight_QB.scatter_reduce(1, labels_Q.expand_as(weight_QQ), weight_QQ, "amin")
    return weight_QB.masked_fill(own_QB, 0.0)


def _text_ids(sharded: ShardedBatch) -> Tensor:
    """A number for the text of each caption of the shard, the same on every process."""
    ids = [int(digest_of(normalized_text(caption.text))[:15], 16) for caption in sharded.batch.captions]
    return hardware.to_device_async(torch.tensor(ids, dtype=torch.long), sharded.batch.labels_Q.device)


def video_similarity(sharded: ShardedBatch, labels_Q: Tensor) -> Tensor:
    """The cosine of each caption's own video with every video, (Q, B), by mean features of the stream of `TEACHER`."""
    features_BD = sharded.gather_videos(sharded.batch.streams[TEACHER].means())
    return cosines(features_BD)[labels_Q]
