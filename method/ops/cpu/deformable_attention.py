"""Attention over samples on a CPU, without making the samples.

A sample joins G groups of channels, each read from two neighbouring rows of its own: a linear layer of it is a sum over
2G rows that the layer's part for their group has already transformed. A row is transformed G times instead of once for
each of the J samples of a frame, and what is left are sums of rows that lie in the processor's cache. Nothing is kept
for the backward pass but what comes in: it makes the rest again, each sample once.

Letters: N rows that ask, J samples of each, K rows that are read, G groups, P = 2G rows that a sample sums, T = GK rows
of a table, H heads, D width, d width of a group or of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from method.ops.cpu.arrays import as_array, firsts
from method.ops.cpu.dropout import Draws
from method.ops.cpu.threads import in_threads

_HALVES = (0, 2, 5)  # places in what is read of the products: both tables and the folded queries


class Samples(NamedTuple):
    """What each row reads of the rows of its own video.

    places_NJG2: the two rows of each group of a sample. shares_NJG2: of each of them.
    lengths: how many rows ask in each video. read_lengths: how many are read.
    """

    places_NJG2: Tensor
    shares_NJG2: Tensor
    lengths: Sequence[int]
    read_lengths: Sequence[int]


class TwoLayers(nn.Module):
    """The weights of an MLP of two square layers, with a relu and dropout between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)


def attend_to_samples(
    query_ND: Tensor,
    rows_KD: Tensor,
    samples: Samples,
    to_key: TwoLayers,
    to_value: TwoLayers,
    heads: int,
    scale: Tensor,
    probability: float,
) -> Tensor:
    """Attention of each row over the keys and values of its samples, (N, D).

    The second layers are never applied to a sample: a key is only ever multiplied with the query, so that its layer is
    folded into the query; values are summed first and transformed after.

    Args:
        to_key: the bias of its second layer is not read, since it adds the same to all logits of a row.
        scale: what logits are multiplied with, one number.
        probability: of dropout, of hidden values and of weights after their softmax.
    """
    first = [weight for layer in (to_key.first, to_value.first) for weight in (layer.weight, layer.bias)]
    second = (to_key.second.weight, to_value.second.weight, to_value.second.bias)
    inputs = (samples.shares_NJG2, query_ND, scale, rows_KD, *first, *second)
    attended_ND: Tensor = _SampleAttention.apply(*inputs, samples, heads, Draws.of(probability))
    return attended_ND


def folded(query_ND: Tensor, scale: Tensor, weight_DD: Tensor, heads: int) -> Tensor:
    """What each head of a query compares the inputs of a layer with, (H, N, D).

    Products with it are the logits of the layer's outputs, `scale` times as large, but for what a bias would add.
    """
    return torch.bmm(_by_head(query_ND * scale, heads), weight_DD.unflatten(0, (heads, -1)))


def transformed(summed_HND: Tensor, share_HN: Tensor, weight_DD: Tensor, bias_D: Tensor) -> Tensor:
    """A layer applied to weighted sums of its inputs, (N, D), to those of each head its part of the layer.

    Args:
        share_HN: what the weights sum to; dropout leaves that off 1.
    """
    heads = len(summed_HND)
    attended_HNd = torch.bmm(summed_HND, weight_DD.unflatten(0, (heads, -1)).transpose(1, 2))
    return torch.addmm(attended_HNd.transpose(0, 1).flatten(1), share_HN.t(), _bias_of_heads(bias_D, heads))


def _bias_of_heads(bias_D: Tensor, heads: int) -> Tensor:
    """A bias as a layer of the sums of weights, (H, D): zeros but for each head's part."""
    return torch.block_diag(*bias_D.view(heads, -1))


class _SampleAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        from method.ops.cpu import kernels  # here: to load it takes half a second, and a GPU does not need it

        *tensors, samples, heads, draws = inputs
        *before, value_DD, value_D = tensors
        ctx.save_for_backward(*tensors, samples.places_NJG2)
        ctx.heads, ctx.draws, ctx.lengths, ctx.read_lengths = heads, draws, samples.lengths, samples.read_lengths
        ctx.autocast = (torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu"))
        read = _read(heads, *before)
        summed_HND, share_HN = sums = _room_for_sums(read[-1])
        _run(kernels.attend, read, samples.places_NJG2, ctx, _arrays(sums))
        return transformed(summed_HND, share_HN, value_DD, value_D)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast("cpu", *ctx.autocast):
            return *_gradients(ctx, *gradients), None, None, None


def _gradients(ctx: Any, of_attended_ND: Tensor) -> list[Tensor | None]:
    """The gradients of all tensors that came in."""
    from method.ops.cpu import kernels

    *before, value_DD, value_D, places_NJG2 = ctx.saved_tensors
    with torch.enable_grad():
        leaves = [
            tensor.detach().requires_grad_(needed) for tensor, needed in zip(before, ctx.needs_input_grad, strict=False)
        ]
        read = _read(ctx.heads, *leaves)
    # Linear in the weighted sums, so that their gradients are known before they are made again.
    of_attended_HNd = _by_head(of_attended_ND, ctx.heads)
    of_summed_HND = torch.bmm(of_attended_HNd, value_DD.unflatten(0, (ctx.heads, -1)))
    of_share_HN = F.linear(of_attended_ND, _bias_of_heads(value_D, ctx.heads)).t()
    of_sums = [of_summed_HND.to(read[-1].dtype), of_share_HN.float().contiguous()]
    summed_HND, share_HN = sums = _room_for_sums(read[-1])
    biases = (1, 3)  # places in `read` of what has gradients by video, each of which one thread writes
    of_read = [torch.empty_like(tensor, dtype=torch.float32) for tensor in read[:-1]] + [torch.empty_like(read[-1])]
    for place in biases:
        of_read[place] = of_read[place].new_empty(len(ctx.lengths), len(of_read[place]))
    rest = (firsts(ctx.read_lengths), _arrays(of_sums), _arrays(of_read))
    _run(kernels.pass_gradients, read, places_NJG2, ctx, _arrays(sums), *rest)
    for place in biases:
        of_read[place] = of_read[place].sum(0)

    of_value_DD = torch.bmm(of_attended_HNd.transpose(1, 2), summed_HND).flatten(0, 1)
    of_bias_HHd = (share_HN @ of_attended_ND).unflatten(1, (ctx.heads, -1))
    of_value_D = of_bias_HHd.diagonal().t().flatten()  # what each head's sums add to its own part
    made = [place for place, tensor in enumerate(read) if tensor.requires_grad]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    of_made = [of_read[place].to(read[place].dtype) for place in made]
    found = iter(torch.autograd.grad([read[place] for place in made], wanted, of_made) if made else ())
    return [*(next(found) if leaf.requires_grad else None for leaf in leaves), of_value_DD, of_value_D]


def _read(
    heads: int,
    shares_NJG2: Tensor,
    query_ND: Tensor,
    scale: Tensor,
    rows_KD: Tensor,
    key_first_DD: Tensor,
    key_first_D: Tensor,
    value_first_DD: Tensor,
    value_first_D: Tensor,
    key_DD: Tensor,
) -> list[Tensor]:
    """What a kernel reads beside places: tables and biases of keys and of values, shares, folded queries.

    All are floats but for products under autocast to bfloat16.
    """
    groups = shares_NJG2.shape[2]
    keys_TD, values_TD = (_table(rows_KD, weight_DD, groups) for weight_DD in (key_first_DD, value_first_DD))
    shares_NJP = shares_NJG2.flatten(2)
    folded_HND = folded(query_ND, scale, key_DD, heads)
    read = (keys_TD, key_first_D, values_TD, value_first_D, shares_NJP, folded_HND)
    # Products of halves are read as they are, if they all are: they take half the way from the processor's caches.
    of_halves = _HALVES if {tensor.dtype for tensor in (keys_TD, values_TD, folded_HND)} == {torch.bfloat16} else ()
    return [(tensor if place in of_halves else tensor.float()).contiguous() for place, tensor in enumerate(read)]


def _room_for_sums(folded_HND: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for weighted sums of values, in the precision of folded queries, and for those of the weights."""
    return torch.empty_like(folded_HND), torch.empty(folded_HND.shape[:2])


def _table(rows_KD: Tensor, weight_DD: Tensor, groups: int) -> Tensor:
    """What a layer's part for each group makes of the rows, (T, D)."""
    return torch.bmm(_by_head(rows_KD, groups), weight_DD.t().unflatten(0, (groups, -1))).flatten(0, 1)


def _by_head(rows_ND: Tensor, heads: int) -> Tensor:
    """Rows (N, D) as those of each head or group, (H, N, d)."""
    return rows_ND.unflatten(1, (heads, -1)).transpose(0, 1)


def _run(kernel: Any, read: Sequence[Tensor], places_NJG2: Tensor, ctx: Any, *rest: Any) -> None:
    """Let a kernel work on all videos; what it writes of one is written by one thread."""
    tables = _arrays([*read[:4], places_NJG2.flatten(2).contiguous(), *read[4:]])
    drawn, own_firsts = ctx.draws.drawn, firsts(ctx.lengths)
    in_threads(
        lambda first, end: kernel(tables, ctx.draws.scale, drawn, own_firsts, first, end, *rest), ctx.lengths, worth=16
    )


def _arrays(tensors: Sequence[Tensor]) -> tuple[np.ndarray[Any, Any], ...]:
    return tuple(as_array(tensor) for tensor in tensors)
