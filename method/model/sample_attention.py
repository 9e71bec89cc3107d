"""Attention over samples on a CPU, without making the samples.

A sample joins G groups of channels, each read from two neighbouring rows of its own: a linear layer of it is a sum over
2G rows that the layer's part for their group has already transformed. A row is transformed G times instead of once for
each of the J samples of a frame, and what is left are sums of rows that lie in the processor's cache, of which nothing
is kept: the backward pass makes them again.

Letters: B videos, N rows that ask, J samples of each, K rows that are read, G groups, H heads, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from method.model.dropout import Draws
from method.model.threads import in_threads


class SampledLayer(NamedTuple):
    """A linear layer that samples go through.

    table_GKD: what the layer's part for each group makes of the rows. bias_D: added to the sum of a sample's rows.
    """

    table_GKD: Tensor
    bias_D: Tensor

    @classmethod
    def of(cls, layer: nn.Linear, rows_KD: Tensor, groups: int) -> SampledLayer:
        """Let a layer transform the rows that samples of `groups` groups are read from."""
        rows_GKd = rows_KD.unflatten(1, (groups, -1)).transpose(0, 1)
        layer_GdD = layer.weight.t().unflatten(0, (groups, -1))
        return cls(torch.bmm(rows_GKd, layer_GdD).float(), layer.bias)


def attend_to_samples(
    keys: SampledLayer,
    values: SampledLayer,
    places_NJG2: Tensor,
    shares_NJG2: Tensor,
    folded_HND: Tensor,
    constant_HN: Tensor,
    lengths: Sequence[int],
    read_lengths: Sequence[int],
    probability: float,
) -> tuple[Tensor, Tensor]:
    """Attention of each row over the hidden rows dropout(relu(layer(sample))) of its samples.

    Args:
        keys: the layer whose hidden rows a row is compared with. values: the one whose rows are summed.
        places_NJG2: the two rows that each group of a sample reads, of the row's own video. shares_NJG2: of each.
        folded_HND: what each head compares the keys with. constant_HN: added to its logits.
        lengths: how many rows ask in each video. read_lengths: how many are read.
        probability: of dropout, of hidden values and of weights after their softmax.

    Returns the weighted sums of the values (H, N, D) and the sums of the weights (H, N), which dropout leaves off 1.
    """
    places_NJP, shares_NJP = places_NJG2.flatten(2), shares_NJG2.float().flatten(2)
    tensors = (*keys, *values, shares_NJP, folded_HND.float(), constant_HN.float())
    summed_HND, share_HN = _SampleAttention.apply(*tensors, places_NJP, lengths, read_lengths, Draws.of(probability))
    return summed_HND, share_HN


class _SampleAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        keys_GKD: Tensor,
        key_bias_D: Tensor,
        values_GKD: Tensor,
        value_bias_D: Tensor,
        shares_NJP: Tensor,
        folded_HND: Tensor,
        constant_HN: Tensor,
        places_NJP: Tensor,
        lengths: Sequence[int],
        read_lengths: Sequence[int],
        draws: Draws,
    ) -> tuple[Tensor, Tensor]:
        from method.model import kernels  # here: to load it takes half a second, and a GPU does not need it

        tables = (keys_GKD.flatten(0, 1), key_bias_D, values_GKD.flatten(0, 1), value_bias_D)
        read = [tensor.contiguous() for tensor in (*tables, places_NJP, shares_NJP, folded_HND, constant_HN)]
        ctx.save_for_backward(*read)
        ctx.groups, ctx.lengths, ctx.read_lengths, ctx.draws = len(keys_GKD), lengths, read_lengths, draws
        summed_HND, share_HN = folded_HND.new_empty(folded_HND.shape), constant_HN.new_empty(constant_HN.shape)
        _run(kernels.attend, read, lengths, draws, [summed_HND, share_HN])
        return summed_HND, share_HN

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from method.model import kernels

        read = ctx.saved_tensors
        keys_TD, bias_D, values_TD, _, _, shares_NJP, folded_HND, constant_HN, *_ = read
        of_bias_BD = [bias_D.new_empty(len(ctx.lengths), len(bias_D)) for _ in range(2)]
        of_keys_TD, of_values_TD, of_shares_NJP, of_folded_HND, of_constant_HN = (
            torch.empty_like(tensor) for tensor in (keys_TD, values_TD, shares_NJP, folded_HND, constant_HN)
        )
        of_read = [of_keys_TD, of_bias_BD[0], of_values_TD, of_bias_BD[1], of_shares_NJP, of_folded_HND, of_constant_HN]
        of_written = [gradient.contiguous() for gradient in gradients]
        starts = torch.tensor([0, *ctx.read_lengths]).cumsum(0)
        _run(kernels.pass_gradients, read, ctx.lengths, ctx.draws, [starts, *of_written, *of_read])
        by_group = (ctx.groups, -1)
        return (
            of_keys_TD.unflatten(0, by_group),
            of_bias_BD[0].sum(0),
            of_values_TD.unflatten(0, by_group),
            of_bias_BD[1].sum(0),
            of_shares_NJP,
            of_folded_HND,
            of_constant_HN,
            None,
            None,
            None,
            None,
        )


def _run(kernel: Any, read: Sequence[Tensor], lengths: Sequence[int], draws: Draws, written: Sequence[Tensor]) -> None:
    """Let a kernel work on all videos; what it writes of one is written by one thread."""
    arrays, out = ([tensor.detach().numpy() for tensor in tensors] for tensors in (read, written))
    rest = (draws.scale, *draws.drawn, np.cumsum([0, *lengths]))
    in_threads(lambda first, end: kernel(*arrays, *rest, first, end, *out), lengths, worth=16)
