"""Deformable attention without materializing the sampled frames.

A sampling point concatenates G channel groups, each interpolated between two context frames, so a linear layer of it is
a weighted sum of 2G rows of a table: each context frame multiplied by the layer's columns of each group. A context
frame is transformed G times instead of once for each of the points that sample it, and what remains are sums of rows in
the cache. The backward pass keeps only the inputs and computes each point once more.

Letters: N query frames, J points of each, K context frames, G groups, P = 2G table rows that a point interpolates,
T = GK table rows, H heads, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from method.ops.cpu import kernels
from method.ops.cpu.dropout import DropoutSeed
from method.ops.cpu.threads import as_array, cumulative, run_in_threads
from method.ops.interface import MLP, SamplingPoints
from method.ops.reference import fold_into_query, head_bias, project_sums, split_heads

_MAY_BE_BF16 = (0, 2, 5)  # of the kernel's inputs: both tables and the folded queries


def deformable_attention(
    query_ND: Tensor,
    context_KD: Tensor,
    points: SamplingPoints,
    to_key: MLP,
    to_value: MLP,
    heads: int,
    scale: Tensor,
    probability: float,
) -> Tensor:
    """See `method.ops.deformable_attention`."""
    first = [weight for mlp in (to_key, to_value) for weight in (mlp.first.weight, mlp.first.bias)]
    second = (to_key.second.weight, to_value.second.weight, to_value.second.bias)
    tensors = (points.weight_NJG2, query_ND, scale, context_KD, *first, *second)
    attended_ND: Tensor = _DeformableAttention.apply(*tensors, points, heads, DropoutSeed.draw(probability))
    return attended_ND


class _DeformableAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, points, heads, seed = arguments
        *for_kernel, value_DD, value_D = tensors
        ctx.save_for_backward(*tensors, points.index_NJG2)
        ctx.heads, ctx.seed, ctx.lengths, ctx.context_lengths = heads, seed, points.lengths, points.context_lengths
        ctx.autocast = (torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu"))
        inputs = _kernel_inputs(heads, *for_kernel)
        sum_HND, attn_sum_HN = sums = _empty_sums(inputs[-1])
        _run(kernels.deformable_attention_forward, inputs, points.index_NJG2, ctx, _arrays(sums))
        return project_sums(sum_HND, attn_sum_HN, value_DD, value_D)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast("cpu", *ctx.autocast):
            return *_backward(ctx, *grads), None, None, None


def _backward(ctx: Any, grad_attended_ND: Tensor) -> list[Tensor | None]:
    """The gradients of all tensors."""
    *for_kernel, value_DD, value_D, index_NJG2 = ctx.saved_tensors
    with torch.enable_grad():
        leaves = [
            tensor.detach().requires_grad_(needed)
            for tensor, needed in zip(for_kernel, ctx.needs_input_grad, strict=False)
        ]
        inputs = _kernel_inputs(ctx.heads, *leaves)
    # The output is linear in the weighted sums, whose gradients are known before the sums are computed again.
    grad_attended_HNd = split_heads(grad_attended_ND, ctx.heads)
    grad_sum_HND = torch.bmm(grad_attended_HNd, value_DD.unflatten(0, (ctx.heads, -1)))
    grad_attn_sum_HN = F.linear(grad_attended_ND, head_bias(value_D, ctx.heads)).t()
    grad_sums = [grad_sum_HND.to(inputs[-1].dtype), grad_attn_sum_HN.float().contiguous()]
    sum_HND, attn_sum_HN = sums = _empty_sums(inputs[-1])
    biases = (1, 3)  # of `inputs`: their gradients are summed over videos here, since each video has one thread
    grads = [torch.empty_like(tensor, dtype=torch.float32) for tensor in inputs[:-1]] + [torch.empty_like(inputs[-1])]
    for bias in biases:
        grads[bias] = grads[bias].new_empty(len(ctx.lengths), len(grads[bias]))
    rest = (cumulative(ctx.context_lengths), _arrays(grad_sums), _arrays(grads))
    _run(kernels.deformable_attention_backward, inputs, index_NJG2, ctx, _arrays(sums), *rest)
    for bias in biases:
        grads[bias] = grads[bias].sum(0)

    grad_value_DD = torch.bmm(grad_attended_HNd.transpose(1, 2), sum_HND).flatten(0, 1)
    grad_bias_HHd = (attn_sum_HN @ grad_attended_ND).unflatten(1, (ctx.heads, -1))
    grad_value_D = grad_bias_HHd.diagonal().t().flatten()  # a head's weights touch its own channels only
    learned = [index for index, tensor in enumerate(inputs) if tensor.requires_grad]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    grad_inputs = [grads[index].to(inputs[index].dtype) for index in learned]
    found = iter(torch.autograd.grad([inputs[index] for index in learned], wanted, grad_inputs) if learned else ())
    return [*(next(found) if leaf.requires_grad else None for leaf in leaves), grad_value_DD, grad_value_D]


def _kernel_inputs(
    heads: int,
    weight_NJG2: Tensor,
    query_ND: Tensor,
    scale: Tensor,
    context_KD: Tensor,
    key_first_DD: Tensor,
    key_first_D: Tensor,
    value_first_DD: Tensor,
    value_first_D: Tensor,
    key_DD: Tensor,
) -> list[Tensor]:
    """What kernels read besides indices: tables and biases of keys and of values, weights, folded queries.

    All are float32, except for products under bf16 autocast.
    """
    groups = weight_NJG2.shape[2]
    keys_TD, values_TD = (_table(context_KD, weight_DD, groups) for weight_DD in (key_first_DD, value_first_DD))
    weight_NJP = weight_NJG2.flatten(2)
    folded_HND = fold_into_query(query_ND, scale, key_DD, heads)
    inputs = (keys_TD, key_first_D, values_TD, value_first_D, weight_NJP, folded_HND)
    # If all products are bf16 the kernel reads them as they are: they take half the cache bandwidth.
    bf16 = _MAY_BE_BF16 if {inputs[index].dtype for index in _MAY_BE_BF16} == {torch.bfloat16} else ()
    return [(tensor if index in bf16 else tensor.float()).contiguous() for index, tensor in enumerate(inputs)]


def _empty_sums(folded_HND: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for the weighted sums of values, in the precision of folded queries, and for those of the weights."""
    return torch.empty_like(folded_HND), torch.empty(folded_HND.shape[:2])


def _table(context_KD: Tensor, weight_DD: Tensor, groups: int) -> Tensor:
    """Each group's channels of the context frames multiplied by the layer's columns of that group, (T, D)."""
    return torch.bmm(split_heads(context_KD, groups), weight_DD.t().unflatten(0, (groups, -1))).flatten(0, 1)


def _run(kernel: Any, inputs: Sequence[Tensor], index_NJG2: Tensor, ctx: Any, *rest: Any) -> None:
    """Run a kernel over all videos, each in one thread."""
    arrays = _arrays([*inputs[:4], index_NJG2.flatten(2).contiguous(), *inputs[4:]])
    arguments = (arrays, ctx.seed.scale, ctx.seed.mask, cumulative(ctx.lengths))
    run_in_threads(lambda start, stop: kernel(*arguments, start, stop, *rest), ctx.lengths, min_size=16)


def _arrays(tensors: Sequence[Tensor]) -> tuple[np.ndarray[Any, Any], ...]:
    return tuple(as_array(tensor) for tensor in tensors)
