"""A training step as the published program does it: padded, looped, one weight at a time. For benchmarks and tests."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from method.data.batch import VideoBatch
from method.model.architecture import Architecture
from method.model.losses import LOSSES, LossSettings
from tests.helpers.reference_model import NaiveModel, pad, split_values


class NaiveStep:
    """A naive model with the published losses and optimiser.

    pool: hard negatives, of a video the hardest caption and of a caption one of so many videos; 0: random ones.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], architecture: Architecture, losses: LossSettings, device: torch.device,
        pool: int = 0,
    ) -> None:  # fmt: skip
        self.model = NaiveModel(weights, architecture).to(device).train()
        self.losses = losses
        self.moments: dict[str, tuple[Tensor, Tensor]] = {}
        self.device = device
        self.pool = pool

    def loss(self, batch: VideoBatch) -> Tensor:
        batch = batch.to(self.device)
        assert batch.tokens is not None
        keys = self.model.encode_videos(batch.streams["action"], batch.streams["object"])
        tokens, mask = pad(split_values(batch.tokens))
        total = torch.zeros((), device=self.device)
        for name, suffix in (("action", ""), ("object", "_phrase")):
            queries = self.model.encode_queries(suffix, tokens, mask)
            frames, valid = keys[name]
            cosine = self.best(F.normalize(frames, dim=-1), valid, F.normalize(queries, dim=-1))
            raw = self.best(frames, valid, queries)
            total = total + self.triplet(cosine, batch.labels_Q) + LOSSES["nce"].weight * self.nce(raw, batch.labels_Q)
        return total

    def best(self, frames: Tensor, valid: Tensor, queries: Tensor) -> Tensor:
        dots = torch.einsum("bld,qd->qbl", frames, queries)
        return dots.masked_fill(~valid[None], -1e10).max(-1).values

    def triplet(self, cosine: Tensor, labels: Tensor) -> Tensor:
        to_text = torch.zeros((), device=cosine.device)
        for video, column in enumerate(cosine.t()):
            own = labels == video
            negatives = column[~own].sort(descending=True).values
            drawn = negatives[self.draw(0, len(negatives), 1, min(self.pool, 1))]
            to_text = to_text + (self.losses.margin + drawn - column[own].mean()).clamp(min=0).sum()
        every = torch.arange(len(labels), device=cosine.device)
        masked = cosine.detach().clone()
        masked[every, labels] = 999
        order = masked.sort(descending=True, dim=1).indices
        drawn = order[every, self.draw(1, cosine.shape[1], len(labels), self.pool)]
        to_video = (self.losses.margin + cosine[every, drawn] - cosine[every, labels]).clamp(min=0).sum()
        return to_text / cosine.shape[1] + to_video / len(labels)

    def draw(self, first: int, end: int, count: int, pool: int) -> Tensor:
        """Ranks of negatives, of those from `first` on, of which a pool has so many."""
        return torch.randint(first, min(first + pool, end) if pool else end, (count,), device=self.device)

    def nce(self, raw: Tensor, labels: Tensor) -> Tensor:
        to_video = raw.logsumexp(1) - raw[torch.arange(len(labels), device=raw.device), labels]
        to_text = [raw[:, v].logsumexp(0) - raw[labels == v, v].logsumexp(0) for v in range(raw.shape[1])]
        return to_video.mean() + torch.stack(to_text).mean()

    def step(self, batch: VideoBatch, learning_rate: float = 2.5e-4) -> float:
        self.model.zero_grad()
        loss = self.loss(batch)
        loss.backward()
        for name, weight in self.model.named_parameters():
            if weight.grad is not None:
                self.update(name, weight, learning_rate)
        return loss.item()

    @torch.no_grad()
    def update(self, name: str, weight: nn.Parameter, learning_rate: float) -> None:
        assert weight.grad is not None
        nn.utils.clip_grad_norm_([weight], 1.0)
        first, second = self.moments.setdefault(name, (torch.zeros_like(weight), torch.zeros_like(weight)))
        first.mul_(0.9).add_(weight.grad, alpha=0.1)
        second.mul_(0.999).addcmul_(weight.grad, weight.grad, value=0.001)
        update = first / (second.sqrt() + 1e-6)
        if not name.endswith("bias") and not is_norm(name):
            update += 0.01 * weight
        weight.add_(update, alpha=-learning_rate)


def is_norm(name: str) -> bool:
    """Whether a weight belongs to a LayerNorm, by its published name."""
    return "norm" in name.lower() or name.endswith(("pos_encoder_Q/1/weight", "pos_encoder_KV/1/weight"))
