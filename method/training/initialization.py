"""Initial weights that depend on the data and on the fusion: where `--input_init` and `--fusion_init` start a training.

Letters: N rows, I input width, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from method.config.training_settings import InitializationSettings
from method.data.captions import Caption, group_by_video
from method.data.dataset import FeatureReader
from method.model.encoders import SequenceEncoder
from method.model.fusion import AttentionFusion, DeformableFusion
from method.model.retrieval import RetrievalModel
from method.runtime.processes import Processes
from method.runtime.progress import progress_bar

_VIDEOS = 1024  # whose features are read
_CHUNK = 64
_SHRINKAGE = 0.1  # of the covariance, relative to its mean eigenvalue: directions of noise are not blown up
_NO_VARIANCE = 1e-8  # of normalised rows, whose mean square is 1


def initialize(
    model: RetrievalModel,
    settings: InitializationSettings,
    reader: FeatureReader,
    captions: Sequence[Caption],
    processes: Processes,
) -> None:
    """Change the initial weights as the settings say; a collective, after which all ranks have the same weights.

    Args:
        model: with its normal initial weights, on the CPU.
        settings: what to change.
        reader: of the features, for whitened inputs.
        captions: of the training split.
        processes: of which the first one computes.
    """
    if settings.inputs == settings.fusion == "normal":
        return
    with processes.raise_on_all():
        if processes.is_first:
            generator = torch.Generator().manual_seed(settings.seed)
            if settings.fusion == "aligned":
                align_fusion(model, generator)
            if settings.inputs == "whitened":
                whiten_inputs(model, reader, captions, generator)
    model.load_state_dict(processes.broadcast(model.state_dict()))


@torch.no_grad()
def align_fusion(model: RetrievalModel, generator: torch.Generator) -> None:
    """Let what a frame attends to count as much as the frame itself, and deformable attention begin where it looks.

    Normal weights shrink the values to a few percent of the frames that they are added to, and offsets begin at random
    within a quarter of their largest. Here the value projections are orthogonal (Saxe et al., *Exact Solutions to the
    Nonlinear Dynamics of Learning in Deep Linear Neural Networks*, ICLR 2014), and offsets begin within about half a
    frame, close to zero as in Zhu et al., *Deformable DETR*, ICLR 2021.
    """
    for fusion in model.fusions.values():
        if isinstance(fusion, DeformableFusion):
            values = [fusion.to_value.first, fusion.to_value.second]
            fusion.offset_output.weight /= max(fusion.offset_scale, 1.0)
        else:
            assert isinstance(fusion, AttentionFusion)
            values = [fusion.value, fusion.output]
        gain = math.sqrt(2) if isinstance(fusion, DeformableFusion) else 1.0  # a ReLU follows the first
        for layer in values:
            nn.init.orthogonal_(layer.weight, gain, generator)


@torch.no_grad()
def whiten_inputs(
    model: RetrievalModel, reader: FeatureReader, captions: Sequence[Caption], generator: torch.Generator
) -> None:
    """Let every input projection begin as a random rotation of whitened features with zero mean.

    Pretrained features share a large mean and lie near few directions, in which all begin alike. The covariance is that
    of up to 1,024 training videos and their captions. Projections have the variance that normal weights give them.

    Krähenbühl et al., *Data-dependent Initializations of Convolutional Neural Networks*, ICLR 2016; Su et al.,
    *Whitening Sentence Representations for Better Semantics and Faster Retrieval*, 2021.
    """
    by_video = group_by_video(captions)
    videos = list(by_video)[:: -(-len(by_video) // _VIDEOS)]
    chunks = [videos[start : start + _CHUNK] for start in range(0, len(videos), _CHUNK)]
    encoders = {name: model.branch(name).frames for name in model.branches}
    moments = {name: _Moments(encoder) for name, encoder in encoders.items()}
    first = next(iter(model.branches))
    tokens = _Moments(model.branch(first).tokens)
    for chunk in progress_bar(chunks, "covariance of the features", "batch"):
        for name, rows in reader.gather_videos(chunk).items():
            moments[name].add(rows.values)
        tokens.add(reader.gather_queries([caption.id for video in chunk for caption in by_video[video]]).values)
    scale = model.architecture.initializer_range
    for name, encoder in encoders.items():
        moments[name].whiten(encoder, scale, generator)
        tokens.whiten(model.branch(name).tokens, scale, generator)


class _Moments:
    """Mean and covariance of rows as an encoder's input layer sees them, in double precision."""

    def __init__(self, encoder: SequenceEncoder) -> None:
        width = encoder.input.in_features
        self._epsilon = encoder.input_norm.eps
        self._count = 0
        self._sum_I = torch.zeros(width, dtype=torch.float64)
        self._products_II = torch.zeros(width, width, dtype=torch.float64)

    def add(self, rows_NI: Tensor) -> None:
        """Add rows as they are read."""
        normalized_NI = F.layer_norm(rows_NI.double(), rows_NI.shape[1:], eps=self._epsilon)
        self._count += len(rows_NI)
        self._sum_I += normalized_NI.sum(0)
        self._products_II += normalized_NI.t() @ normalized_NI

    @cached_property
    def _whitening(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mean (I,), covariance (I, I), and what whitens it (I, I) or None without variance."""
        mean_I = self._sum_I / self._count
        covariance_II = self._products_II / self._count - mean_I.outer(mean_I)
        values_I, vectors_II = torch.linalg.eigh(covariance_II)
        values_I = values_I.clamp(min=0)
        if values_I.mean() < _NO_VARIANCE:
            return mean_I, covariance_II, None
        scale_I = (values_I + _SHRINKAGE * values_I.mean()).sqrt()
        return mean_I, covariance_II, vectors_II / scale_I @ vectors_II.t()

    def whiten(self, encoder: SequenceEncoder, scale: float, generator: torch.Generator) -> None:
        """Set the input layer of an encoder; features that are all the same leave it as it is."""
        layer = encoder.input
        mean_I, covariance_II, whitening_II = self._whitening
        if whitening_II is None:
            return
        rotation_DI = torch.empty(layer.out_features, layer.in_features, dtype=torch.float64)
        weight_DI = nn.init.orthogonal_(rotation_DI, generator=generator) @ whitening_II
        variance = ((weight_DI @ covariance_II) * weight_DI).sum(1).mean()
        weight_DI *= scale * math.sqrt(layer.in_features) / variance.sqrt()
        layer.weight.copy_(weight_DI)
        layer.bias.copy_(-(weight_DI @ mean_I))
