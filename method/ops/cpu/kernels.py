"""Numba kernels of the CPU backend: loops that would read and write memory once per operation in PyTorch.

The other modules of this folder call them and document what they compute. Each kernel handles the
items from `start` to `stop` of its arrays and releases the GIL, so that threads can share the items. Kernels do not
check indices.

Numba compiles each kernel once per machine, in a few seconds, and caches it beside this file or, if that is not
writable, in the user's cache. It recompiles when this file changes and tracks no other file, so all kernels are here.

Floats are float32, integers int64, indices of sampling points int32; bf16 numbers are passed as their bits, in int16.
Arrays are contiguous. NaN and infinity propagate.

Letters: V values; B videos, N query frames, J sampling points of each, G channel groups, P = 2G table rows that a point
interpolates, T = G * (context frames) table rows, H heads, D width; I input width, X items or choices; Q queries;
b sequences of a bucket, M frames of the longest, d width of a head, E channels of a row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import numba as nb
import numpy as np
from numba.core import config

log = logging.getLogger(__name__)

if config.DISABLE_JIT:  # type: ignore[attr-defined]
    raise ImportError("NUMBA_DISABLE_JIT is set")

_ZERO = np.float32(0)  # comparing a float32 with an integer literal would promote it to float64
BLOCK_VALUES = 16384  # values per dropout stream: what the innermost caches hold

# Sums may be reordered, as in any matrix product, which lets LLVM vectorize them.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
_inlined = nb.njit(**_OPTIONS)
_FLOATS, _FLOATS_2, _FLOATS_3, _FLOATS_4, _FLOATS_5 = (nb.types.Array(nb.float32, n, "C") for n in range(1, 6))
_BF16, _BF16_2, _BF16_3, _BF16_4, _BF16_5 = (nb.types.Array(nb.int16, n, "C") for n in range(1, 6))
_INTS, _INDICES_3 = nb.types.Array(nb.int64, 1, "C"), nb.types.Array(nb.int32, 3, "C")
_SEED = (nb.int64, nb.types.Array(nb.uint64, 1, "C"), _INTS)  # seed, thresholds, guide of a DropoutSeed


@cache
def _log_compilation() -> None:
    log.info("Compiling CPU kernels (first run only, up to 30 s)")


def kernel(*signatures: tuple[Any, ...]) -> Callable[[Callable[..., None]], Any]:
    """Compile a function for each of these argument types, or load what is cached."""

    def compile_(function: Callable[..., None]) -> Any:
        types = [nb.void(*arguments) for arguments in signatures]
        try:
            compiled = nb.njit(cache=True, **_OPTIONS)(function)
            try:
                _compile(compiled, types)
            except Exception:  # corrupt cache
                compiled = nb.njit(cache=True, **_OPTIONS)(function)
                compiled.recompile()  # nothing is compiled yet, so this only clears the cache
                _compile(compiled, types)
        except Exception:  # no directory to cache in, or no space left
            compiled = nb.njit(**_OPTIONS)(function)
            _compile(compiled, types)
        compiled.disable_compile()
        return compiled

    return compile_


def _compile(function: Any, types: list[Any]) -> None:
    for type_ in types:
        function.compile(type_)
    if not function.stats.cache_hits:
        _log_compilation()


# Conversion of bf16, and a vectorizable exponential.


def _to_float(number):
    """A float32 from a float32 or from the bits of a bf16."""
    raise NotImplementedError("compiled only")


@nb.extending.overload(_to_float, inline="always")
def _overload_to_float(number):
    if number == nb.int16:
        return lambda number: np.int32(np.int32(number) << 16).view(np.float32)
    return lambda number: number


def _from_float(number, like):
    """A float32 as the type of `like`: unchanged, or rounded to the bits of a bf16."""
    raise NotImplementedError("compiled only")


@nb.extending.overload(_from_float, inline="always")
def _overload_from_float(number, like):
    if like == nb.int16:
        return lambda number, like: _round_to_bf16(number)
    return lambda number, like: number


@_inlined
def _round_to_bf16(number):
    """The bits of the nearest bf16, ties to even."""
    bits = np.float32(number).view(np.int32)
    rounded = np.int32(np.int32(bits + np.int32(0x7FFF + ((bits >> 16) & 1))) >> 16)
    return np.int16(rounded if number == number else 0x7FC0)  # rounding could turn a NaN into a number


@_inlined
def _exp(x):
    """exp(x) for x <= 0, error below 2 ulp: a power of two times the Taylor series of the rest."""
    x = np.float32(-87) if x < np.float32(-87) else x
    whole = np.int32(x * np.float32(1.4426950408889634) - np.float32(0.5))
    rest = x - np.float32(whole) * np.float32(0.6931471805599453)
    series = np.float32(1 / 5040) * rest + np.float32(1 / 720)
    series = series * rest + np.float32(1 / 120)
    series = series * rest + np.float32(1 / 24)
    series = series * rest + np.float32(1 / 6)
    series = series * rest + np.float32(1 / 2)
    series = series * rest + np.float32(1)
    series = series * rest + np.float32(1)
    return series * np.int32(np.int32(whole + np.int32(127)) << 23).view(np.float32)


# Dropout samples the gaps between dropped values from SplitMix64 (Steele, Lea and Flood 2014), one stream per item,
# and turns them into integers with a guide table (Chen and Asau 1974).


@_inlined
def _mix(number):
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number ^ (number >> np.uint64(31))


@_inlined
def _stream(seed, item):
    """Initial generator state of an item."""
    return _mix(np.uint64(seed) + _mix(np.uint64(item) + np.uint64(0x9E3779B97F4A7C15)))


@_inlined
def _next_dropped(index, state, thresholds, guide):
    """The next dropped index after `index`, and the new state."""
    state += np.uint64(0x9E3779B97F4A7C15)
    drawn = _mix(state)
    gap = guide[np.int64(drawn >> np.uint64(54))]  # the top 10 of 64 bits select the guide entry
    while drawn >= thresholds[gap]:
        gap += 1
    return index + gap + 1, state


@_inlined
def _zero_dropped(values_V, state, thresholds, guide):
    """Zero the dropped values; returns the new state."""
    if thresholds.shape[0] == 0:
        return state
    index, state = _next_dropped(np.int64(-1), state, thresholds, guide)
    while index < values_V.shape[0]:
        values_V[index] = 0
        index, state = _next_dropped(index, state, thresholds, guide)
    return state


@kernel((_FLOATS, _FLOATS, nb.float32, *_SEED, nb.int64, nb.int64))
def dropout(values_V, out_V, scale, seed, thresholds, guide, start, stop):
    """Write dropout of the values; an item is a block of BLOCK_VALUES."""
    for item in range(start, stop):
        first, end = item * BLOCK_VALUES, min((item + 1) * BLOCK_VALUES, values_V.shape[0])
        block_V, out_block_V = values_V[first:end], out_V[first:end]
        for v in range(block_V.shape[0]):
            out_block_V[v] = block_V[v] * scale
        _zero_dropped(out_block_V, _stream(seed, item), thresholds, guide)


@kernel((_FLOATS, nb.float32, *_SEED, nb.int64, nb.int64))
def relu_dropout(values_V, scale, seed, thresholds, guide, start, stop):
    """Dropout of the ReLU, in place, with the same mask as `dropout`."""
    for item in range(start, stop):
        block_V = values_V[item * BLOCK_VALUES : min((item + 1) * BLOCK_VALUES, values_V.shape[0])]
        for v in range(block_V.shape[0]):
            block_V[v] = _ZERO if block_V[v] < _ZERO else block_V[v] * scale
        _zero_dropped(block_V, _stream(seed, item), thresholds, guide)


@kernel((_BF16, *_SEED, nb.int64, nb.int64))
def zero_dropped_16_bit(values_V, seed, thresholds, guide, start, stop):
    """Zero the dropped ones of 16-bit numbers of any type, with the same mask as `dropout`."""
    for item in range(start, stop):
        first, end = item * BLOCK_VALUES, min((item + 1) * BLOCK_VALUES, values_V.shape[0])
        _zero_dropped(values_V[first:end], _stream(seed, item), thresholds, guide)


@kernel((_FLOATS, nb.float32, nb.int64, nb.int64, _FLOATS))
def relu_dropout_backward(output_V, scale, start, stop, grad_V):
    """Replace the gradient of `relu_dropout`'s output by that of its input; zero outputs have none."""
    first, end = start * BLOCK_VALUES, min(stop * BLOCK_VALUES, output_V.shape[0])
    block_V, grad_block_V = output_V[first:end], grad_V[first:end]
    for v in range(block_V.shape[0]):
        grad_block_V[v] = grad_block_V[v] * scale if block_V[v] != _ZERO else _ZERO


# LayerNorm and dropout of I-wide rows.


@_inlined
def _layer_norm(row_I, gain_I, bias_I, epsilon, scale, out_I):
    """Write the LayerNorm of a row times `scale`."""
    width = row_I.shape[0]
    total, squares = _ZERO, _ZERO
    for i in range(width):
        total += row_I[i]
    mean = total / np.float32(width)
    for i in range(width):
        squares += (row_I[i] - mean) * (row_I[i] - mean)
    factor = scale / np.sqrt(squares / np.float32(width) + epsilon)
    for i in range(width):
        out_I[i] = (row_I[i] - mean) * factor * gain_I[i] + bias_I[i] * scale


@kernel((_FLOATS_2, _FLOATS, _FLOATS, nb.float32, nb.float32, *_SEED, nb.int64, nb.int64, _FLOATS_2))
def layer_norm_dropout(rows_NI, gain_I, bias_I, epsilon, scale, seed, thresholds, guide, start, stop, out_NI):
    """Write dropout of the LayerNorm of rows; a stream per row."""
    for n in range(start, stop):
        _layer_norm(rows_NI[n], gain_I, bias_I, epsilon, scale, out_NI[n])
        _zero_dropped(out_NI[n], _stream(seed, n), thresholds, guide)


@_inlined
def _add_rows(rows_ND, chosen, sum_D):
    """Add chosen rows to a sum, four at a time, so that the sum is read and written a quarter as often."""
    fours = chosen.shape[0] // 4 * 4
    for c in range(0, fours, 4):
        a_D, b_D = rows_ND[chosen[c]], rows_ND[chosen[c + 1]]
        c_D, d_D = rows_ND[chosen[c + 2]], rows_ND[chosen[c + 3]]
        for d in range(sum_D.shape[0]):
            sum_D[d] += (a_D[d] + b_D[d]) + (c_D[d] + d_D[d])
    for c in range(fours, chosen.shape[0]):
        row_D = rows_ND[chosen[c]]
        for d in range(sum_D.shape[0]):
            sum_D[d] += row_D[d]


@kernel((_FLOATS_2, *_SEED, nb.int64, nb.int64, nb.int64, _FLOATS_3))
def add_where_dropped(rows_ND, seed, thresholds, guide, rows_per_item, start, stop, sums_XID):
    """Add, for each channel, the rows in which `layer_norm_dropout` drops it; an item is `rows_per_item` rows."""
    channels = sums_XID.shape[1]
    for item in range(start, stop):
        first, end = item * rows_per_item, min((item + 1) * rows_per_item, rows_ND.shape[0])
        # Sort the dropped (row, channel) pairs by channel: count them, then place them.
        ends_I = np.zeros(channels + 1, np.int64)
        for n in range(first, end):
            channel, state = _next_dropped(np.int64(-1), _stream(seed, n), thresholds, guide)
            while channel < channels:
                ends_I[channel + 1] += 1
                channel, state = _next_dropped(channel, state, thresholds, guide)
        for i in range(channels):
            ends_I[i + 1] += ends_I[i]
        dropped = np.empty(ends_I[channels], np.int64)
        for n in range(first, end):
            channel, state = _next_dropped(np.int64(-1), _stream(seed, n), thresholds, guide)
            while channel < channels:
                dropped[ends_I[channel]] = n
                ends_I[channel] += 1  # ends where the next channel began
                channel, state = _next_dropped(channel, state, thresholds, guide)
        begin = np.int64(0)
        for i in range(channels):
            _add_rows(rows_ND, dropped[begin : ends_I[i]], sums_XID[item, i])
            begin = ends_I[i]


# Self-attention over a bucket of b sequences, padded to M.

_BUCKET = (nb.types.UniTuple(_INTS, 3), nb.int64, nb.int64)  # starts, lengths and valid lengths of the sequences


@kernel((_FLOATS_2, _FLOATS_5, *_BUCKET), (_BF16_2, _BF16_5, *_BUCKET))
def split_heads(rows_NE, heads_XbHMd, bucket, start, stop):
    """Copy the X * H heads of each row to separate matrices, padded with zeros."""
    starts_b, lengths_b, _ = bucket
    parts, _, heads, _, width = heads_XbHMd.shape
    for sequence in range(start, stop):
        length = lengths_b[sequence]
        for part in range(parts * heads):
            head_Md = heads_XbHMd[part // heads, sequence, part % heads]
            for m in range(length):
                row_d = rows_NE[starts_b[sequence] + m, part * width : (part + 1) * width]
                for d in range(width):
                    head_Md[m, d] = row_d[d]
            head_Md[length:] = 0


@kernel((_FLOATS_5, _FLOATS_2, *_BUCKET), (_BF16_5, _BF16_2, *_BUCKET))
def merge_heads(heads_XbHMd, rows_NE, bucket, start, stop):
    """The inverse of `split_heads`."""
    starts_b, lengths_b, _ = bucket
    parts, _, heads, _, width = heads_XbHMd.shape
    for sequence in range(start, stop):
        for part in range(parts * heads):
            head_Md = heads_XbHMd[part // heads, sequence, part % heads]
            for m in range(lengths_b[sequence]):
                row_d = rows_NE[starts_b[sequence] + m, part * width : (part + 1) * width]
                for d in range(width):
                    row_d[d] = head_Md[m, d]


@_inlined
def _softmax(logits_M, factor, attn_M):
    """Write the softmax of `factor` >= 0 times the logits, over as many as `attn_M` has."""
    count = attn_M.shape[0]
    largest = np.float32(-np.inf)
    for m in range(count):
        attn_M[m] = _to_float(logits_M[m]) * factor
        largest = max(largest, attn_M[m])
    total = _ZERO
    for m in range(count):
        attn_M[m] = _exp(attn_M[m] - largest)
        total += attn_M[m]
    inverse = np.float32(1) / total
    for m in range(count):
        attn_M[m] *= inverse


# Factor of the logits, scale and seed of dropout.
_SOFTMAX = (nb.float32, nb.float32, nb.types.Tuple(_SEED), *_BUCKET)


@kernel((_FLOATS_4, *_SOFTMAX), (_BF16_4, *_SOFTMAX))
def softmax_dropout(logits_bHMM, factor, scale, seed, bucket, start, stop):
    """Replace logits by dropout of their softmax over valid frames; zeros in the padding. A stream per row and head."""
    starts_b, lengths_b, valid_b = bucket
    heads, longest = logits_bHMM.shape[1:3]
    buffer_M = np.empty(longest, np.float32)
    for sequence in range(start, stop):
        valid = valid_b[sequence]
        for head in range(heads):
            logits_bHMM[sequence, head, lengths_b[sequence] :] = 0
            for row in range(lengths_b[sequence]):
                logits_M, attn_M = logits_bHMM[sequence, head, row], buffer_M[:valid]
                _softmax(logits_M, factor, attn_M)
                _zero_dropped(attn_M, _stream(seed[0], (starts_b[sequence] + row) * heads + head), *seed[1:])
                for m in range(valid):
                    logits_M[m] = _from_float(attn_M[m] * scale, logits_M[m])
                logits_M[valid:] = 0


@kernel((_FLOATS_4, _FLOATS_4, *_SOFTMAX), (_BF16_4, _BF16_4, *_SOFTMAX))
def softmax_dropout_backward(logits_bHMM, grad_bHMM, factor, scale, seed, bucket, start, stop):
    """Replace logits by the result of `softmax_dropout`, and its gradient by that of the logits."""
    starts_b, lengths_b, valid_b = bucket
    heads, longest = logits_bHMM.shape[1:3]
    buffer_2M = np.empty((2, longest), np.float32)
    for sequence in range(start, stop):
        valid = valid_b[sequence]
        for head in range(heads):
            logits_bHMM[sequence, head, lengths_b[sequence] :] = 0
            grad_bHMM[sequence, head, lengths_b[sequence] :] = 0
            for row in range(lengths_b[sequence]):
                logits_M, grad_M = logits_bHMM[sequence, head, row], grad_bHMM[sequence, head, row]
                attn_M, keep_M = buffer_2M[0, :valid], buffer_2M[1, :valid]
                _softmax(logits_M, factor, attn_M)
                keep_M[:] = scale
                _zero_dropped(keep_M, _stream(seed[0], (starts_b[sequence] + row) * heads + head), *seed[1:])
                mean = _ZERO
                for m in range(valid):
                    logits_M[m] = _from_float(attn_M[m] * keep_M[m], logits_M[m])
                    keep_M[m] *= _to_float(grad_M[m])
                    mean += keep_M[m] * attn_M[m]
                for m in range(valid):
                    grad_M[m] = _from_float(attn_M[m] * (keep_M[m] - mean) * factor, grad_M[m])
                logits_M[valid:] = 0
                grad_M[valid:] = 0


# Deformable attention: the hidden row of a sampling point is computed, used and discarded.


@_inlined
def _hidden_row(table_TD, bias_D, index_P, weight_P, group_rows, scale, out_D):
    """Write relu(bias + sum_p weight_p * table[index_p]) * scale; `group_rows` of the table belong to each group."""
    width = out_D.shape[0]
    for p in range(0, index_P.shape[0], 2):  # both neighbours of a group at a time
        below_D = table_TD[index_P[p] + (p // 2) * group_rows]
        above_D = table_TD[index_P[p + 1] + (p // 2) * group_rows]
        weight_below, weight_above = weight_P[p], weight_P[p + 1]
        if p == 0:
            for d in range(width):
                out_D[d] = bias_D[d] + weight_below * _to_float(below_D[d]) + weight_above * _to_float(above_D[d])
        else:
            for d in range(width):
                out_D[d] += weight_below * _to_float(below_D[d]) + weight_above * _to_float(above_D[d])
    for d in range(width):
        out_D[d] = _ZERO if out_D[d] < _ZERO else out_D[d] * scale


@_inlined
def _attention_weights(query_HND, n, keys_JD, attn_HJ):
    """Write the softmax over the points of a query frame."""
    heads, count = attn_HJ.shape
    for h in range(heads):
        query_D = query_HND[h, n]
        largest = np.float32(-np.inf)
        for j in range(count):
            key_D = keys_JD[j]
            logit = _ZERO
            for d in range(key_D.shape[0]):
                logit += _to_float(query_D[d]) * key_D[d]
            attn_HJ[h, j] = logit
            largest = max(largest, logit)
        total = _ZERO
        for j in range(count):
            attn_HJ[h, j] = _exp(attn_HJ[h, j] - largest)
            total += attn_HJ[h, j]
        for j in range(count):
            attn_HJ[h, j] /= total


@_inlined
def _sample_and_attend(inputs, scale, seed, n, hidden_2JD, keep_HJ, attn_HJ):
    """Write the hidden rows of a frame's points for keys and values, the attention weights, and their dropout mask."""
    key_table_TD, key_bias_D, value_table_TD, value_bias_D, index_NJP, weight_NJP, query_HND = inputs
    number, thresholds, guide = seed
    group_rows = key_table_TD.shape[0] // (index_NJP.shape[2] // 2)
    for j in range(index_NJP.shape[1]):
        point = index_NJP[n, j], weight_NJP[n, j], group_rows, scale
        _hidden_row(key_table_TD, key_bias_D, *point, hidden_2JD[0, j])
        _hidden_row(value_table_TD, value_bias_D, *point, hidden_2JD[1, j])
    state = _zero_dropped(hidden_2JD.reshape(-1), _stream(number, n), thresholds, guide)
    keep_HJ[:] = scale
    _zero_dropped(keep_HJ.reshape(-1), state, thresholds, guide)
    _attention_weights(query_HND, n, hidden_2JD[0], attn_HJ)


@_inlined
def _weighted_sum(values_JD, attn_J, keep_J, buffer_D, out_D):
    """Write the weighted sum of the values; returns the sum of the weights. Both after dropout."""
    attn_sum = _ZERO
    buffer_D[:] = 0
    for j in range(values_JD.shape[0]):
        weight, value_D = attn_J[j] * keep_J[j], values_JD[j]
        attn_sum += weight
        for d in range(buffer_D.shape[0]):
            buffer_D[d] += weight * value_D[d]
    for d in range(buffer_D.shape[0]):
        out_D[d] = _from_float(buffer_D[d], out_D[d])
    return attn_sum


# Inputs: table and bias of keys, table and bias of values, indices, interpolation weights, folded queries. Gradients:
# those of all but the indices. Tables, queries and sums, which take most of the bandwidth, may be bf16.
_INPUTS = nb.types.Tuple((_FLOATS_2, _FLOATS, _FLOATS_2, _FLOATS, _INDICES_3, _FLOATS_3, _FLOATS_3))
_INPUTS_BF16 = nb.types.Tuple((_BF16_2, _FLOATS, _BF16_2, _FLOATS, _INDICES_3, _FLOATS_3, _BF16_3))
_GRADS = nb.types.Tuple((_FLOATS_2, _FLOATS_2, _FLOATS_2, _FLOATS_2, _FLOATS_3, _FLOATS_3))
_GRADS_BF16 = nb.types.Tuple((_FLOATS_2, _FLOATS_2, _FLOATS_2, _FLOATS_2, _FLOATS_3, _BF16_3))
_SUMS, _SUMS_BF16 = (nb.types.Tuple((kind, _FLOATS_2)) for kind in (_FLOATS_3, _BF16_3))  # of values, of weights
_ATTENTION = (nb.float32, nb.types.Tuple(_SEED), _INTS, nb.int64, nb.int64)
_BACKWARD = (_INPUTS, *_ATTENTION, _SUMS, _INTS, _SUMS, _GRADS)
_BACKWARD_BF16 = (_INPUTS_BF16, *_ATTENTION, _SUMS_BF16, _INTS, _SUMS_BF16, _GRADS_BF16)


@kernel((_INPUTS, *_ATTENTION, _SUMS), (_INPUTS_BF16, *_ATTENTION, _SUMS_BF16))
def deformable_attention_forward(inputs, scale, seed, cu_queries, start, stop, sums):
    """Write the weighted sums of hidden value rows and the sums of the weights, by head; a stream per query frame.

    cu_queries: cumulative query frames of the videos.
    """
    index_NJP, query_HND = inputs[4], inputs[6]
    count, heads, width = index_NJP.shape[1], query_HND.shape[0], query_HND.shape[2]
    sum_HND, attn_sum_HN = sums
    hidden_2JD = np.empty((2, count, width), np.float32)
    attn_HJ, keep_HJ = np.empty((heads, count), np.float32), np.empty((heads, count), np.float32)
    buffer_D = np.empty(width, np.float32)
    for n in range(cu_queries[start], cu_queries[stop]):
        _sample_and_attend(inputs, scale, seed, n, hidden_2JD, keep_HJ, attn_HJ)
        for h in range(heads):
            attn_sum_HN[h, n] = _weighted_sum(hidden_2JD[1], attn_HJ[h], keep_HJ[h], buffer_D, sum_HND[h, n])


@_inlined
def _attention_backward(
    hidden_2JD, attn_J, keep_J, query_D, grad_sum_D, grad_attn_sum, grad_hidden_2JD, buffer_D, grad_query_D
):
    """Add the gradients of the hidden rows from one head, and write that of its query."""
    count, width = attn_J.shape[0], query_D.shape[0]
    grad_attn_J = np.empty(count, np.float32)
    mean = _ZERO
    for j in range(count):
        value_D, grad_weight = hidden_2JD[1, j], grad_attn_sum
        for d in range(width):
            grad_weight += _to_float(grad_sum_D[d]) * value_D[d]
        grad_attn_J[j] = grad_weight * keep_J[j]
        mean += grad_attn_J[j] * attn_J[j]
    buffer_D[:] = 0
    for j in range(count):
        grad_logit = attn_J[j] * (grad_attn_J[j] - mean)
        weight = attn_J[j] * keep_J[j]
        key_D, grad_key_D, grad_value_D = hidden_2JD[0, j], grad_hidden_2JD[0, j], grad_hidden_2JD[1, j]
        for d in range(width):
            buffer_D[d] += grad_logit * key_D[d]
        for d in range(width):
            grad_key_D[d] += grad_logit * _to_float(query_D[d])
        for d in range(width):
            grad_value_D[d] += weight * _to_float(grad_sum_D[d])
    for d in range(width):
        grad_query_D[d] = _from_float(buffer_D[d], grad_query_D[d])


@_inlined
def _hidden_row_backward(
    table_TD, index_P, weight_P, scale, hidden_D, grad_hidden_D, grad_table_TD, grad_bias_D, grad_weight_P
):
    """Add the gradients of a hidden row's table rows, interpolation weights and bias."""
    width = hidden_D.shape[0]
    for d in range(width):  # zeros have no gradient, whether from ReLU or from dropout
        grad_hidden_D[d] = grad_hidden_D[d] * scale if hidden_D[d] != _ZERO else _ZERO
        grad_bias_D[d] += grad_hidden_D[d]
    group_rows = table_TD.shape[0] // (index_P.shape[0] // 2)
    for p in range(index_P.shape[0]):
        row = index_P[p] + (p // 2) * group_rows
        row_D, grad_row_D = table_TD[row], grad_table_TD[row]
        weight, total = weight_P[p], _ZERO
        for d in range(width):
            total += _to_float(row_D[d]) * grad_hidden_D[d]
        for d in range(width):
            grad_row_D[d] += weight * grad_hidden_D[d]
        grad_weight_P[p] += total


@kernel(_BACKWARD, _BACKWARD_BF16)
def deformable_attention_backward(inputs, scale, seed, cu_queries, start, stop, sums, cu_context, grad_sums, grads):
    """Write the gradients of the inputs, and recompute the outputs of the forward pass.

    Gradients of biases are separate for each video. cu_context: cumulative context frames of the videos.
    """
    key_table_TD, _, value_table_TD, _, index_NJP, weight_NJP, query_HND = inputs
    grad_key_table_TD, grad_key_bias_BD, grad_value_table_TD, grad_value_bias_BD, grad_weight_NJP, grad_query_HND = (
        grads
    )
    (sum_HND, attn_sum_HN), (grad_sum_HND, grad_attn_sum_HN) = sums, grad_sums
    count, heads, width = index_NJP.shape[1], query_HND.shape[0], query_HND.shape[2]
    group_rows = key_table_TD.shape[0] // (index_NJP.shape[2] // 2)
    hidden_2JD, grad_hidden_2JD = np.empty((2, count, width), np.float32), np.empty((2, count, width), np.float32)
    attn_HJ, keep_HJ = np.empty((heads, count), np.float32), np.empty((heads, count), np.float32)
    buffer_D = np.empty(width, np.float32)
    for video in range(start, stop):
        grad_key_bias_BD[video] = 0
        grad_value_bias_BD[video] = 0
        for group in range(0, key_table_TD.shape[0], group_rows):
            grad_key_table_TD[group + cu_context[video] : group + cu_context[video + 1]] = 0
            grad_value_table_TD[group + cu_context[video] : group + cu_context[video + 1]] = 0
        for n in range(cu_queries[video], cu_queries[video + 1]):
            _sample_and_attend(inputs, scale, seed, n, hidden_2JD, keep_HJ, attn_HJ)
            grad_hidden_2JD[:] = 0
            for h in range(heads):
                attn_sum_HN[h, n] = _weighted_sum(hidden_2JD[1], attn_HJ[h], keep_HJ[h], buffer_D, sum_HND[h, n])
                head = attn_HJ[h], keep_HJ[h], query_HND[h, n], grad_sum_HND[h, n], grad_attn_sum_HN[h, n]
                _attention_backward(hidden_2JD, *head, grad_hidden_2JD, buffer_D, grad_query_HND[h, n])
            grad_weight_NJP[n] = 0
            for j in range(count):
                point, grad_weight_P = (index_NJP[n, j], weight_NJP[n, j], scale), grad_weight_NJP[n, j]
                key, value = (hidden_2JD[0, j], grad_hidden_2JD[0, j]), (hidden_2JD[1, j], grad_hidden_2JD[1, j])
                _hidden_row_backward(
                    key_table_TD, *point, *key, grad_key_table_TD, grad_key_bias_BD[video], grad_weight_P
                )
                _hidden_row_backward(
                    value_table_TD, *point, *value, grad_value_table_TD, grad_value_bias_BD[video], grad_weight_P
                )


# Scoring: two frames of each video for each query, that of the largest cosine (0) and of the largest dot product (1).


@_inlined
def _keep_best(score, frame, best_Q, frame_Q, q):
    """Keep the higher of two scores, the first of equals; a NaN stays, as in a maximum."""
    best = best_Q[q]
    is_better = (score > best) | ((score != score) & (best == best))
    best_Q[q] = score if is_better else best
    frame_Q[q] = frame if is_better else frame_Q[q]


@kernel((_FLOATS_2, _FLOATS, _INTS, _INTS, nb.int64, nb.int64, _INDICES_3, _FLOATS_3))
def best_dots(dots_NQ, norms_N, starts_B, valid_B, start, stop, frame_XBQ, best_XBQ):
    """Write both frames of the videos and their dot products."""
    queries = dots_NQ.shape[1]
    cosine_Q = np.empty(queries, np.float32)
    for video in range(start, stop):
        cosine_Q[:] = -np.inf
        best_XBQ[1, video] = -np.inf
        frame_XBQ[:, video] = 0
        by_cosine_Q, by_dot_Q, largest_Q = frame_XBQ[0, video], frame_XBQ[1, video], best_XBQ[1, video]
        for frame in range(valid_B[video]):
            row_Q, norm, index = dots_NQ[starts_B[video] + frame], norms_N[starts_B[video] + frame], np.int32(frame)
            for q in range(queries):
                _keep_best(row_Q[q] / norm, index, cosine_Q, by_cosine_Q, q)
            for q in range(queries):
                _keep_best(row_Q[q], index, largest_Q, by_dot_Q, q)
        for q in range(queries):
            best_XBQ[0, video, q] = dots_NQ[starts_B[video] + by_cosine_Q[q], q]
            best_XBQ[1, video, q] = dots_NQ[starts_B[video] + by_dot_Q[q], q]


@_inlined
def _add_multiple(factor, row_D, sum_D):
    if factor != _ZERO:  # the triplet loss has a gradient for few pairs
        for d in range(sum_D.shape[0]):
            sum_D[d] += factor * row_D[d]


_BEST_DOTS_BACKWARD = (_FLOATS_2, _INDICES_3, _FLOATS_3, _INTS, nb.int64, nb.int64, _FLOATS_2)


@kernel(_BEST_DOTS_BACKWARD)
def best_dots_backward_frames(queries_QD, frame_XBQ, grad_XBQ, starts_B, start, stop, grad_frames_ND):
    """Add the gradients of all frames of the videos."""
    for video in range(start, stop):
        for x in range(2):
            for q in range(queries_QD.shape[0]):
                row = starts_B[video] + frame_XBQ[x, video, q]
                _add_multiple(grad_XBQ[x, video, q], queries_QD[q], grad_frames_ND[row])


@kernel(_BEST_DOTS_BACKWARD)
def best_dots_backward_queries(frames_ND, frame_XBQ, grad_XBQ, starts_B, start, stop, grad_queries_QD):
    """Add the gradients of the queries."""
    for q in range(start, stop):
        for x in range(2):
            for video in range(starts_B.shape[0]):
                row = starts_B[video] + frame_XBQ[x, video, q]
                _add_multiple(grad_XBQ[x, video, q], frames_ND[row], grad_queries_QD[q])


# Search: the highest dot product of each query with the rows of each video.

_QUERIES_OF_ONE_ROW = 16


@_inlined
def _raise_to(highest_Q, q, score):
    highest_Q[q] = score if (score > highest_Q[q]) | (score != score) else highest_Q[q]


@_inlined
def _dots_from(q, row_D, queries_QD, highest_Q):
    """The queries from q on, one at a time: a single one as fast as the row is read from memory."""
    for single in range(q, queries_QD.shape[0]):
        query_D, dot = queries_QD[single], _ZERO
        for d in range(row_D.shape[0]):
            dot += _to_float(row_D[d]) * query_D[d]
        _raise_to(highest_Q, single, dot)


@_inlined
def _dots_of_row(row_D, queries_QD, highest_Q):
    """Four queries at a time, for which the row is converted and read from the cache once."""
    fours = queries_QD.shape[0] // 4 * 4
    for q in range(0, fours, 4):
        query_D, query_1_D, query_2_D, query_3_D = (
            queries_QD[q],
            queries_QD[q + 1],
            queries_QD[q + 2],
            queries_QD[q + 3],
        )
        dot = dot_1 = dot_2 = dot_3 = _ZERO
        for d in range(row_D.shape[0]):
            value = _to_float(row_D[d])
            dot += value * query_D[d]
            dot_1 += value * query_1_D[d]
            dot_2 += value * query_2_D[d]
            dot_3 += value * query_3_D[d]
        _raise_to(highest_Q, q, dot)
        _raise_to(highest_Q, q + 1, dot_1)
        _raise_to(highest_Q, q + 2, dot_2)
        _raise_to(highest_Q, q + 3, dot_3)
    _dots_from(fours, row_D, queries_QD, highest_Q)


@_inlined
def _dots_of_two_rows(row_D, next_D, queries_QD, highest_Q):
    """For many queries, which are read half as often as by one row at a time."""
    fours = queries_QD.shape[0] // 4 * 4
    for q in range(0, fours, 4):
        query_D, query_1_D, query_2_D, query_3_D = (
            queries_QD[q],
            queries_QD[q + 1],
            queries_QD[q + 2],
            queries_QD[q + 3],
        )
        dot = dot_1 = dot_2 = dot_3 = next_0 = next_1 = next_2 = next_3 = _ZERO
        for d in range(row_D.shape[0]):
            value, next_value = _to_float(row_D[d]), _to_float(next_D[d])
            dot += value * query_D[d]
            dot_1 += value * query_1_D[d]
            dot_2 += value * query_2_D[d]
            dot_3 += value * query_3_D[d]
            next_0 += next_value * query_D[d]
            next_1 += next_value * query_1_D[d]
            next_2 += next_value * query_2_D[d]
            next_3 += next_value * query_3_D[d]
        for number, first, second in ((0, dot, next_0), (1, dot_1, next_1), (2, dot_2, next_2), (3, dot_3, next_3)):
            _raise_to(highest_Q, q + number, first)
            _raise_to(highest_Q, q + number, second)
    _dots_from(fours, row_D, queries_QD, highest_Q)
    _dots_from(fours, next_D, queries_QD, highest_Q)


@kernel(*[(rows, _INTS, _INTS, _FLOATS_2, nb.int64, nb.int64, _FLOATS_2) for rows in (_FLOATS_2, _BF16_2)])
def highest_dots(rows_ND, starts_B, lengths_B, queries_QD, start, stop, highest_BQ):
    """Write the highest dot products."""
    for video in range(start, stop):
        first, end = starts_B[video], starts_B[video] + lengths_B[video]
        highest_BQ[video] = -np.inf
        if queries_QD.shape[0] <= _QUERIES_OF_ONE_ROW:
            for row in range(first, end):
                _dots_of_row(rows_ND[row], queries_QD, highest_BQ[video])
        else:
            for row in range(first, end, 2):
                _dots_of_two_rows(rows_ND[row], rows_ND[min(row + 1, end - 1)], queries_QD, highest_BQ[video])
