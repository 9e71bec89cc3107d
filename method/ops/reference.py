"""The reference backend: plain PyTorch. GPUs run it, since they prefer few large operations, and CPUs without Numba.

Letters: N rows or query frames, L the longest sequence, D width, E = 3D; J sampling points of a query frame, K context
frames, G channel groups; H heads, d = D / H; Q queries, B videos, X = 2 choices of the best frame.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from method.data.ragged import Layout
from method.ops.interface import MLP, SamplingPoints

CHUNK_ROWS: int | None = None
_MAX_DOTS = 1 << 24


def dropout(values: Tensor, probability: float) -> Tensor:
    """PyTorch's dropout."""
    return F.dropout(values, probability)


def relu_dropout(values: Tensor, probability: float) -> Tensor:
    """`dropout(relu(values))`, storing nothing but the result."""
    dropped: Tensor = _ReluDropout.apply(values, probability)
    return dropped


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, probability: float) -> Tensor:
        ctx.scale = 1 / (1 - probability)
        output = F.dropout(F.relu(values), probability)
        ctx.save_for_backward(output)  # a zero has no gradient, whether ReLU or dropout made it: no mask is needed
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (output,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grads[0], output, 0).mul_(ctx.scale), None


def normalized_linear(rows_NI: Tensor, norm: nn.LayerNorm, layer: nn.Linear, probability: float) -> Tensor:
    """`layer(dropout(norm(rows)))`."""
    return layer(F.dropout(norm(rows_NI), probability))


def self_attention(projected_NE: Tensor, layout: Layout, heads: int, probability: float, sigma: float | None) -> Tensor:
    """Padded self-attention over the valid rows of each sequence."""
    layout = layout.rounded
    query, key, value = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in layout.pad(projected_NE).chunk(3, -1)
    )
    mask = None if layout.mask_BL is None else layout.mask_BL[:, None, None, :]
    if sigma is None:
        attended_BHLd = F.scaled_dot_product_attention(query, key, value, mask, probability)
    else:
        window_BLL = gaussian_windows(layout.valid_B, layout.max_length, sigma)
        logits_BHLL = (query @ key.mT).float() * query.shape[-1] ** -0.5 * window_BLL[:, None]
        if mask is not None:
            logits_BHLL = logits_BHLL.masked_fill(~mask, -torch.inf)
        attended_BHLd = F.dropout(logits_BHLL.softmax(-1), probability).to(value.dtype) @ value
    return layout.unpad(attended_BHLd.transpose(1, 2).flatten(2))


def gaussian_windows(valid_B: Tensor, length: int, sigma: float) -> Tensor:
    """What the logits of rows i and j of a sequence are multiplied by, float32 (B, L, L)."""
    row_L = torch.arange(length, device=valid_B.device)
    distance_BLL = (row_L[:, None] - row_L) / (sigma * valid_B[:, None, None])
    return (-0.5 * distance_BLL**2).exp()


def feed_forward(rows_ND: Tensor, inner: nn.Linear, outer: nn.Linear, probability: float) -> Tensor:
    """`outer(dropout(relu(inner(rows))))`."""
    return outer(relu_dropout(inner(rows_ND), probability))


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
    """Sample the context frames, apply the first layers to the samples, and attend over the hidden rows.

    The second layers are never applied to a sample. With hidden rows k_j, v_j of the samples, for a head h:
        logits   q_h . (Wk_h k_j + bk_h) = (Wk_h^T q_h) . k_j + const     Wk is folded into the query; the constant,
                                                                          the same for all j, cancels in the softmax
        output   sum_j a_j (Wv_h v_j + bv_h) = Wv_h (sum_j a_j v_j) + bv_h sum_j a_j
    """
    count = points.index_NJG2.shape[1]
    samples = interpolate(context_KD, points.index_NJG2.flatten(0, 1), points.weight_NJG2.flatten(0, 1))
    keys_NJD, values_NJD = (
        relu_dropout(mlp.first(samples), probability).unflatten(0, (-1, count)) for mlp in (to_key, to_value)
    )
    folded_HND = fold_into_query(query_ND, scale, to_key.second.weight, heads)
    logits_NHJ = torch.bmm(folded_HND.transpose(0, 1), keys_NJD.transpose(1, 2))
    attn_NHJ = F.dropout(logits_NHJ.float().softmax(-1), probability).to(values_NJD.dtype)
    sum_HND = torch.bmm(attn_NHJ, values_NJD).transpose(0, 1).contiguous()  # the layout that two products read
    return project_sums(sum_HND, attn_NHJ.sum(-1).t(), to_value.second.weight, to_value.second.bias)


def best_dots(frames_ND: Tensor, norms_N: Tensor, queries_QD: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """The best frames come first, so that only their dot products are stored for the backward pass."""
    dots_NQ = (frames_ND @ queries_QD.t()).float()
    with torch.no_grad():
        scores_BLX = layout.pad(torch.cat([dots_NQ / norms_N[:, None], dots_NQ], 1), -torch.inf)
        if layout.valid != layout.lengths:
            scores_BLX = scores_BLX.masked_fill(~layout.valid_BL[..., None], -torch.inf)
        frame_XBQ = torch.stack(scores_BLX.max(dim=1).indices.chunk(2, 1))
        row_XBQ = layout.starts_B[:, None] + frame_XBQ
    return dots_NQ.gather(0, row_XBQ.flatten(0, 1)).view(row_XBQ.shape), frame_XBQ


def highest_dots(rows_ND: Tensor, starts_B: Tensor, lengths_B: Tensor, queries_QD: Tensor) -> Tensor:
    """In groups of videos whose products take bounded memory."""
    groups = (lengths_B.cumsum(0) * queries_QD.shape[0]).div(_MAX_DOTS, rounding_mode="floor")
    counts = torch.unique_consecutive(groups, return_counts=True)[1].tolist()
    highest = [queries_QD.new_empty(0, len(queries_QD))]
    for start_b, length_b in zip(starts_B.split(counts), lengths_B.split(counts), strict=True):
        owner_n = torch.repeat_interleave(length_b)
        first_b = length_b.cumsum(0) - length_b
        row_n = torch.arange(len(owner_n), device=owner_n.device) + (start_b - first_b)[owner_n]
        dots_nQ = rows_ND.index_select(0, row_n).float() @ queries_QD.t()
        lowest_bQ = dots_nQ.new_full((len(length_b), len(queries_QD)), -torch.inf)
        highest.append(lowest_bQ.scatter_reduce_(0, owner_n[:, None].expand_as(dots_nQ), dots_nQ, "amax"))
    return torch.cat(highest)


def interpolate(context_KD: Tensor, index_nG2: Tensor, weight_nG2: Tensor) -> Tensor:
    """Sampled frames, (n, D): each channel group the weighted sum of two context frames."""
    groups = index_nG2.shape[1]
    table = context_KD.unflatten(1, (groups, -1)).flatten(0, 1)  # (K*G, D/G)
    rows = index_nG2 * groups + torch.arange(groups, device=table.device)[:, None]
    weights = weight_nG2.to(table.dtype).reshape(-1, 2)
    sampled = F.embedding_bag(rows.reshape(-1, 2), table, per_sample_weights=weights, mode="sum")
    return sampled.view(len(index_nG2), -1)


def fold_into_query(query_ND: Tensor, scale: Tensor, weight_DD: Tensor, heads: int) -> Tensor:
    """`scale * W_h^T q_h` for each head, (H, N, D): dot products with the layer's inputs are logits of its outputs."""
    return torch.bmm(split_heads(query_ND * scale, heads), weight_DD.unflatten(0, (heads, -1)))


def project_sums(sum_HND: Tensor, attn_sum_HN: Tensor, weight_DD: Tensor, bias_D: Tensor) -> Tensor:
    """`W_h sum_h + b_h attn_sum_h` for each head, (N, D); after dropout attention weights do not sum to 1."""
    heads = len(sum_HND)
    projected_HNd = torch.bmm(sum_HND, weight_DD.unflatten(0, (heads, -1)).transpose(1, 2))
    return torch.addmm(projected_HNd.transpose(0, 1).flatten(1), attn_sum_HN.t(), head_bias(bias_D, heads))


def head_bias(bias_D: Tensor, heads: int) -> Tensor:
    """A bias as a matrix (H, D), zero outside each head's own channels."""
    return torch.block_diag(*bias_D.view(heads, -1))


def split_heads(rows_ND: Tensor, heads: int) -> Tensor:
    """Rows (N, D) by heads or channel groups, (H, N, d)."""
    return rows_ND.unflatten(1, (heads, -1)).transpose(0, 1)
