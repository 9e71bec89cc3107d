"""Loops that a CPU runs as machine code, where operations on whole tensors would read and write memory again and again.

What calls a kernel says what it computes: `dropout`, `row_layers`, `sequence_attention`, `sample_attention`.
A kernel works on some of the items of its arrays, so that several threads share them,
and lets go of Python's lock. It trusts the places that it is given.

Numba compiles a kernel once a machine, in some seconds, and keeps the result beside this file or, where it may not
write there, in the user's cache. It compiles again when this file changes and knows no other, so that all are in here.

Floats are of 32 bits, whole numbers of 64; halves are the bits of bfloat16, as whole numbers of 16. No array is a view
with gaps. What is not finite stays so.

Letters: V values; B videos, N rows that ask, J samples of each, P rows of a table that a sample sums (two for each of G
groups of channels), T rows of a table, H heads, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import numba as nb
import numpy as np

log = logging.getLogger(__name__)

_ZERO = np.float32(0)  # compared with a whole number, a float would become one of 64 bits
VALUES_AT_ONCE = 16384  # of dropout: as many as the innermost caches hold

# Sums may be taken in any order, as in any product of matrices, so that they are taken 16 at a time.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
_inlined = nb.njit(**_OPTIONS)
_FLOATS, _FLOATS_2, _FLOATS_3 = (nb.types.Array(nb.float32, axes, "C") for axes in (1, 2, 3))
_HALVES, _HALVES_2, _HALVES_3 = (nb.types.Array(nb.int16, axes, "C") for axes in (1, 2, 3))
_PLACES, _PLACES_2, _PLACES_3 = (nb.types.Array(nb.int64, axes, "C") for axes in (1, 2, 3))
_DRAWN = (nb.int64, nb.types.Array(nb.uint64, 1, "C"), _PLACES)  # seed, thresholds, guide


@cache
def _say_what_takes_long() -> None:
    log.info("compiling loops of the model for this machine, up to half a minute; once, if they can be kept")


def _compiled(*kinds: tuple[Any, ...]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Compile for each of these kinds of arguments, or read what was compiled before."""

    def compile_(function: Callable[..., None]) -> Callable[..., None]:
        signatures = [nb.void(*arguments) for arguments in kinds]
        try:
            made = nb.njit(signatures, cache=True, **_OPTIONS)(function)
        except Exception:  # nowhere to keep it, no room there, or what is kept there is damaged
            made = nb.njit(signatures, **_OPTIONS)(function)
        if not made.stats.cache_hits:
            _say_what_takes_long()
        return made

    return compile_


# Numbers as arrays keep them, and an exponential that is computed for many at once.


def _widened(number):  # type: ignore[no-untyped-def]
    """A float, of a float or of a half, whose bits are its first."""
    raise NotImplementedError("for compiled kernels")


@nb.extending.overload(_widened, inline="always")
def _compiled_widened(number):  # type: ignore[no-untyped-def]
    if number == nb.int16:
        return lambda number: np.int32(np.int32(number) << 16).view(np.float32)
    return lambda number: number


def _narrowed(number, like):  # type: ignore[no-untyped-def]
    """A float as an array keeps it, of which `like` is a number: itself, or the bits of the nearest half."""
    raise NotImplementedError("for compiled kernels")


@nb.extending.overload(_narrowed, inline="always")
def _compiled_narrowed(number, like):  # type: ignore[no-untyped-def]
    if like == nb.int16:
        return lambda number, like: _nearest_half(number)
    return lambda number, like: number


@_inlined
def _nearest_half(number):  # type: ignore[no-untyped-def]
    """The bits of the half next to a float, of two that are as near the even one."""
    bits = np.float32(number).view(np.int32)
    rounded = np.int32(np.int32(bits + np.int32(0x7FFF + ((bits >> 16) & 1))) >> 16)
    return np.int16(rounded if number == number else 0x7FC0)  # rounding could make a number of one that is none


@_inlined
def _exponential(number):  # type: ignore[no-untyped-def]
    """Of a number that is not above 0, to the last bit or two: 2 to a whole number, times a series of the rest."""
    number = np.float32(-87) if number < np.float32(-87) else number
    whole = np.int32(number * np.float32(1.4426950408889634) - np.float32(0.5))
    rest = number - np.float32(whole) * np.float32(0.6931471805599453)
    series = np.float32(1 / 5040) * rest + np.float32(1 / 720)
    series = series * rest + np.float32(1 / 120)
    series = series * rest + np.float32(1 / 24)
    series = series * rest + np.float32(1 / 6)
    series = series * rest + np.float32(1 / 2)
    series = series * rest + np.float32(1)
    series = series * rest + np.float32(1)
    return series * np.int32(np.int32(whole + np.int32(127)) << 23).view(np.float32)


# Dropout: the distances from one dropped value to the next, drawn by SplitMix64 (Steele, Lea and Flood 2014), a stream
# for each item, and turned into whole numbers by a guide table (Chen and Asau 1974).


@_inlined
def _mixed(number):  # type: ignore[no-untyped-def]
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number ^ (number >> np.uint64(31))


@_inlined
def _stream(seed, item):  # type: ignore[no-untyped-def]
    """The state that the draws of an item begin with."""
    return _mixed(np.uint64(seed) + _mixed(np.uint64(item) + np.uint64(0x9E3779B97F4A7C15)))


@_inlined
def _next_dropped(place, state, thresholds, guide):  # type: ignore[no-untyped-def]
    """The place after `place` that is dropped, and the state for further draws."""
    state += np.uint64(0x9E3779B97F4A7C15)
    drawn = _mixed(state)
    distance = guide[np.int64(drawn >> np.uint64(54))]  # of 64 bits, 10 choose a place of the guide
    while drawn >= thresholds[distance]:
        distance += 1
    return place + distance + 1, state


@_inlined
def _zero_dropped(values_V, state, thresholds, guide):  # type: ignore[no-untyped-def]
    """Set what is dropped to zero; returns the state for further draws."""
    if thresholds.shape[0] == 0:
        return state
    place, state = _next_dropped(np.int64(-1), state, thresholds, guide)
    while place < values_V.shape[0]:
        values_V[place] = 0
        place, state = _next_dropped(place, state, thresholds, guide)
    return state


@_compiled((_FLOATS, _FLOATS, nb.float32, *_DRAWN, nb.int64, nb.int64))
def drop(values_V, written_V, scale, seed, thresholds, guide, first_item, end_item):  # type: ignore[no-untyped-def]
    """Write values times `scale`, and zeros for what is dropped, to other memory."""
    for item in range(first_item, end_item):
        first, end = item * VALUES_AT_ONCE, min((item + 1) * VALUES_AT_ONCE, values_V.shape[0])
        own_V, out_V = values_V[first:end], written_V[first:end]
        for v in range(own_V.shape[0]):
            out_V[v] = own_V[v] * scale
        _zero_dropped(out_V, _stream(seed, item), thresholds, guide)


@_compiled((_FLOATS, nb.float32, *_DRAWN, nb.int64, nb.int64))
def rectify_and_drop(values_V, scale, seed, thresholds, guide, first_item, end_item):  # type: ignore[no-untyped-def]
    """Multiply values by `scale`; set what is negative and what is dropped, the same that `drop` drops, to zero."""
    for item in range(first_item, end_item):
        own_V = values_V[item * VALUES_AT_ONCE : min((item + 1) * VALUES_AT_ONCE, values_V.shape[0])]
        for v in range(own_V.shape[0]):
            own_V[v] = _ZERO if own_V[v] < _ZERO else own_V[v] * scale
        _zero_dropped(own_V, _stream(seed, item), thresholds, guide)


@_compiled((_HALVES, *_DRAWN, nb.int64, nb.int64))
def drop_halves(values_V, seed, thresholds, guide, first_item, end_item):  # type: ignore[no-untyped-def]
    """Set what is dropped of halves, or of other numbers of 16 bits, to zero, the same that `drop` drops."""
    for item in range(first_item, end_item):
        first, end = item * VALUES_AT_ONCE, min((item + 1) * VALUES_AT_ONCE, values_V.shape[0])
        _zero_dropped(values_V[first:end], _stream(seed, item), thresholds, guide)


@_compiled((_FLOATS, nb.float32, nb.int64, nb.int64, _FLOATS))
def pass_where_kept(values_V, scale, first_item, end_item, gradient_V):  # type: ignore[no-untyped-def]
    """Multiply the gradient by `scale` where the value is not zero, and set it to zero elsewhere."""
    first, end = first_item * VALUES_AT_ONCE, min(end_item * VALUES_AT_ONCE, values_V.shape[0])
    own_V, own_gradient_V = values_V[first:end], gradient_V[first:end]
    for v in range(own_V.shape[0]):
        own_gradient_V[v] = own_gradient_V[v] * scale if own_V[v] != _ZERO else _ZERO


# Self-attention over b sequences side by side, padded to M, the longest: H heads of width d, E numbers of a row.


_FLOATS_4, _FLOATS_5 = (nb.types.Array(nb.float32, axes, "C") for axes in (4, 5))
_HALVES_4, _HALVES_5 = (nb.types.Array(nb.int16, axes, "C") for axes in (4, 5))
_BOX = (nb.types.UniTuple(_PLACES, 3), nb.int64, nb.int64)  # the first row of each sequence, its rows and its real rows


@_compiled((_FLOATS_2, _FLOATS_5, *_BOX), (_HALVES_2, _HALVES_5, *_BOX))
def spread(rows_NE, made_XbHMd, box, first, end):  # type: ignore[no-untyped-def]
    """Write each head's part of each row by itself, and zeros behind the end of a sequence."""
    firsts_b, lengths_b, _ = box
    parts, _, heads, _, width = made_XbHMd.shape
    for sequence in range(first, end):
        length = lengths_b[sequence]
        for part in range(parts * heads):
            own_Md = made_XbHMd[part // heads, sequence, part % heads]
            for place in range(length):
                row_d = rows_NE[firsts_b[sequence] + place, part * width : (part + 1) * width]
                for d in range(width):
                    own_Md[place, d] = row_d[d]
            own_Md[length:] = 0


@_compiled((_FLOATS_5, _FLOATS_2, *_BOX), (_HALVES_5, _HALVES_2, *_BOX))
def collect(made_XbHMd, rows_NE, box, first, end):  # type: ignore[no-untyped-def]
    """The inverse of `spread`."""
    firsts_b, lengths_b, _ = box
    parts, _, heads, _, width = made_XbHMd.shape
    for sequence in range(first, end):
        for part in range(parts * heads):
            own_Md = made_XbHMd[part // heads, sequence, part % heads]
            for place in range(lengths_b[sequence]):
                row_d = rows_NE[firsts_b[sequence] + place, part * width : (part + 1) * width]
                for d in range(width):
                    row_d[d] = own_Md[place, d]


@_inlined
def _soften(logits_M, factor, weights_M):  # type: ignore[no-untyped-def]
    """Write the softmax of logits times `factor`, which is not negative, for as many as there are weights."""
    count = weights_M.shape[0]
    largest = np.float32(-np.inf)
    for m in range(count):
        weights_M[m] = _widened(logits_M[m]) * factor
        largest = max(largest, weights_M[m])
    total = _ZERO
    for m in range(count):
        weights_M[m] = _exponential(weights_M[m] - largest)
        total += weights_M[m]
    share = np.float32(1) / total
    for m in range(count):
        weights_M[m] *= share


# A factor of the logits; a scale of what dropout keeps of their softmax, and its draws.
_SOFTENED = (nb.float32, nb.float32, nb.types.Tuple(_DRAWN), *_BOX)


@_compiled((_FLOATS_4, *_SOFTENED), (_HALVES_4, *_SOFTENED))
def soften(logits_bHMM, factor, scale, drawn, box, first, end):  # type: ignore[no-untyped-def]
    """Let what dropout leaves of the softmax over real rows take the place of logits; zeros where no rows are."""
    firsts_b, lengths_b, real_b = box
    heads, longest = logits_bHMM.shape[1:3]
    memory_M = np.empty(longest, np.float32)
    for sequence in range(first, end):
        real = real_b[sequence]
        for head in range(heads):
            logits_bHMM[sequence, head, lengths_b[sequence] :] = 0
            for place in range(lengths_b[sequence]):
                logits_M, weights_M = logits_bHMM[sequence, head, place], memory_M[:real]
                _soften(logits_M, factor, weights_M)
                _zero_dropped(weights_M, _stream(drawn[0], (firsts_b[sequence] + place) * heads + head), *drawn[1:])
                for m in range(real):
                    logits_M[m] = _narrowed(weights_M[m] * scale, logits_M[m])
                logits_M[real:] = 0


@_compiled((_FLOATS_4, _FLOATS_4, *_SOFTENED), (_HALVES_4, _HALVES_4, *_SOFTENED))
def pass_through_softmax(  # type: ignore[no-untyped-def]
    logits_bHMM, of_weights_bHMM, factor, scale, drawn, box, first, end
):
    """Let gradients of logits take the place of those of what `soften` leaves, and that once more of the logits."""
    firsts_b, lengths_b, real_b = box
    heads, longest = logits_bHMM.shape[1:3]
    memory_2M = np.empty((2, longest), np.float32)
    for sequence in range(first, end):
        real = real_b[sequence]
        for head in range(heads):
            logits_bHMM[sequence, head, lengths_b[sequence] :] = 0
            of_weights_bHMM[sequence, head, lengths_b[sequence] :] = 0
            for place in range(lengths_b[sequence]):
                logits_M, of_weights_M = logits_bHMM[sequence, head, place], of_weights_bHMM[sequence, head, place]
                weights_M, kept_M = memory_2M[0, :real], memory_2M[1, :real]
                _soften(logits_M, factor, weights_M)
                kept_M[:] = scale
                _zero_dropped(kept_M, _stream(drawn[0], (firsts_b[sequence] + place) * heads + head), *drawn[1:])
                mean = _ZERO
                for m in range(real):
                    logits_M[m] = _narrowed(weights_M[m] * kept_M[m], logits_M[m])
                    kept_M[m] *= _widened(of_weights_M[m])
                    mean += kept_M[m] * weights_M[m]
                for m in range(real):
                    of_weights_M[m] = _narrowed(weights_M[m] * (kept_M[m] - mean) * factor, of_weights_M[m])
                logits_M[real:] = 0
                of_weights_M[real:] = 0


# Attention over the samples of the deformable fusion. A sample is made, used and forgotten.


@_inlined
def _make(table_TD, bias_D, places_P, shares_P, group_rows, scale, row_D):  # type: ignore[no-untyped-def]
    """Write relu(bias + the sum of a sample's rows) times `scale`; `group_rows`: of the table, for each group."""
    width = row_D.shape[0]
    for p in range(0, places_P.shape[0], 2):  # both rows of a group at a time
        below_D = table_TD[places_P[p] + (p // 2) * group_rows]
        above_D = table_TD[places_P[p + 1] + (p // 2) * group_rows]
        share_below, share_above = shares_P[p], shares_P[p + 1]
        if p == 0:
            for d in range(width):
                row_D[d] = bias_D[d] + share_below * _widened(below_D[d]) + share_above * _widened(above_D[d])
        else:
            for d in range(width):
                row_D[d] += share_below * _widened(below_D[d]) + share_above * _widened(above_D[d])
    for d in range(width):
        row_D[d] = _ZERO if row_D[d] < _ZERO else row_D[d] * scale


@_inlined
def _weigh(folded_HND, n, keys_JD, weights_HJ):  # type: ignore[no-untyped-def]
    """Write the softmax of the logits of a row over its samples."""
    heads, count = weights_HJ.shape
    for h in range(heads):
        asked_D = folded_HND[h, n]
        largest = np.float32(-np.inf)
        for j in range(count):
            key_D = keys_JD[j]
            logit = _ZERO
            for d in range(key_D.shape[0]):
                logit += _widened(asked_D[d]) * key_D[d]
            weights_HJ[h, j] = logit
            largest = max(largest, logit)
        total = _ZERO
        for j in range(count):
            weights_HJ[h, j] = _exponential(weights_HJ[h, j] - largest)
            total += weights_HJ[h, j]
        for j in range(count):
            weights_HJ[h, j] /= total


@_inlined
def _make_row(tables, scale, drawn, n, hidden_2JD, kept_HJ, weights_HJ):  # type: ignore[no-untyped-def]
    """Write the hidden rows of a row's samples, keys and values, what dropout keeps of the weights, and these."""
    keys_TD, key_bias_D, values_TD, value_bias_D, places_NJP, shares_NJP, folded_HND = tables
    seed, thresholds, guide = drawn
    group_rows = keys_TD.shape[0] // (places_NJP.shape[2] // 2)
    for j in range(places_NJP.shape[1]):
        sample = places_NJP[n, j], shares_NJP[n, j], group_rows, scale
        _make(keys_TD, key_bias_D, *sample, hidden_2JD[0, j])
        _make(values_TD, value_bias_D, *sample, hidden_2JD[1, j])
    state = _zero_dropped(hidden_2JD.reshape(-1), _stream(seed, n), thresholds, guide)
    kept_HJ[:] = scale
    _zero_dropped(kept_HJ.reshape(-1), state, thresholds, guide)
    _weigh(folded_HND, n, hidden_2JD[0], weights_HJ)


@_inlined
def _sum_values(values_JD, weights_J, kept_J, memory_D, summed_D):  # type: ignore[no-untyped-def]
    """Write the weighted sum of the values; returns the sum of the weights, both after dropout."""
    share = _ZERO
    memory_D[:] = 0
    for j in range(values_JD.shape[0]):
        weight, value_D = weights_J[j] * kept_J[j], values_JD[j]
        share += weight
        for d in range(memory_D.shape[0]):
            memory_D[d] += weight * value_D[d]
    for d in range(memory_D.shape[0]):
        summed_D[d] = _narrowed(memory_D[d], summed_D[d])
    return share


# Tables and biases of keys and of values, places, shares, folded queries; the gradients of all but places.
# Tables, folded queries and sums, which are read and written again and again, may be of halves; sums over rows are not.
_TABLES = nb.types.Tuple((_FLOATS_2, _FLOATS, _FLOATS_2, _FLOATS, _PLACES_3, _FLOATS_3, _FLOATS_3))
_TABLES_OF_HALVES = nb.types.Tuple((_HALVES_2, _FLOATS, _HALVES_2, _FLOATS, _PLACES_3, _FLOATS_3, _HALVES_3))
_OF_TABLES = nb.types.Tuple((_FLOATS_2, _FLOATS_2, _FLOATS_2, _FLOATS_2, _FLOATS_3, _FLOATS_3))
_OF_TABLES_OF_HALVES = nb.types.Tuple((_FLOATS_2, _FLOATS_2, _FLOATS_2, _FLOATS_2, _FLOATS_3, _HALVES_3))
_SUMS, _SUMS_OF_HALVES = (nb.types.Tuple((kind, _FLOATS_2)) for kind in (_FLOATS_3, _HALVES_3))  # and of the weights
_SAMPLED = (nb.float32, nb.types.Tuple(_DRAWN), _PLACES, nb.int64, nb.int64)
_WITH_GRADIENTS = (_TABLES, *_SAMPLED, _SUMS, _PLACES, _SUMS, _OF_TABLES)
_WITH_GRADIENTS_OF_HALVES = (
    *(_TABLES_OF_HALVES, *_SAMPLED, _SUMS_OF_HALVES, _PLACES, _SUMS_OF_HALVES, _OF_TABLES_OF_HALVES),
)


@_compiled((_TABLES, *_SAMPLED, _SUMS), (_TABLES_OF_HALVES, *_SAMPLED, _SUMS_OF_HALVES))
def attend(tables, scale, drawn, firsts, first_video, end_video, sums):  # type: ignore[no-untyped-def]
    """Write the weighted sums of the hidden rows of the values, and the sums of the weights.

    firsts: where the rows of each video begin, and the end of the last.
    """
    places_NJP, folded_HND = tables[4], tables[6]
    count, heads, width = places_NJP.shape[1], folded_HND.shape[0], folded_HND.shape[2]
    summed_HND, share_HN = sums
    hidden_2JD = np.empty((2, count, width), np.float32)
    weights_HJ, kept_HJ = np.empty((heads, count), np.float32), np.empty((heads, count), np.float32)
    memory_D = np.empty(width, np.float32)
    for n in range(firsts[first_video], firsts[end_video]):
        _make_row(tables, scale, drawn, n, hidden_2JD, kept_HJ, weights_HJ)
        for h in range(heads):
            share_HN[h, n] = _sum_values(hidden_2JD[1], weights_HJ[h], kept_HJ[h], memory_D, summed_HND[h, n])


@_inlined
def _pass_through_weights(  # type: ignore[no-untyped-def]
    hidden_2JD, weights_J, kept_J, asked_D, of_summed_D, of_share, of_hidden_2JD, memory_D, of_asked_D
):
    """Add the gradients of the hidden rows by a head, and write that of what it asks."""
    count, width = weights_J.shape[0], asked_D.shape[0]
    of_weights_J = np.empty(count, np.float32)
    mean = _ZERO
    for j in range(count):
        value_D, of_weight = hidden_2JD[1, j], of_share
        for d in range(width):
            of_weight += _widened(of_summed_D[d]) * value_D[d]
        of_weights_J[j] = of_weight * kept_J[j]
        mean += of_weights_J[j] * weights_J[j]
    memory_D[:] = 0
    for j in range(count):
        of_logit = weights_J[j] * (of_weights_J[j] - mean)
        weight = weights_J[j] * kept_J[j]
        key_D, of_key_D, of_value_D = hidden_2JD[0, j], of_hidden_2JD[0, j], of_hidden_2JD[1, j]
        for d in range(width):
            memory_D[d] += of_logit * key_D[d]
        for d in range(width):
            of_key_D[d] += of_logit * _widened(asked_D[d])
        for d in range(width):
            of_value_D[d] += weight * _widened(of_summed_D[d])
    for d in range(width):
        of_asked_D[d] = _narrowed(memory_D[d], of_asked_D[d])


@_inlined
def _pass_through_layer(  # type: ignore[no-untyped-def]
    table_TD, places_P, shares_P, scale, hidden_D, of_hidden_D, of_table_TD, of_bias_D, of_shares_P
):
    """Add the gradient of a sample's hidden row to those of the rows that it sums, of their shares and of the bias."""
    width = hidden_D.shape[0]
    for d in range(width):  # what is zero has no gradient, whether relu or dropout made it so
        of_hidden_D[d] = of_hidden_D[d] * scale if hidden_D[d] != _ZERO else _ZERO
        of_bias_D[d] += of_hidden_D[d]
    group_rows = table_TD.shape[0] // (places_P.shape[0] // 2)
    for p in range(places_P.shape[0]):
        row = places_P[p] + (p // 2) * group_rows
        row_D, of_row_D = table_TD[row], of_table_TD[row]
        share, total = shares_P[p], _ZERO
        for d in range(width):
            total += _widened(row_D[d]) * of_hidden_D[d]
        for d in range(width):
            of_row_D[d] += share * of_hidden_D[d]
        of_shares_P[p] += total


@_compiled(_WITH_GRADIENTS, _WITH_GRADIENTS_OF_HALVES)
def pass_gradients(  # type: ignore[no-untyped-def]
    tables, scale, drawn, firsts, first_video, end_video, sums, read_firsts, of_sums, of_tables
):
    """Write the gradients of what `attend` read, given those of what it wrote, and what it wrote once more.

    Gradients of biases are those of each video. read_firsts: where the rows of each video begin in a group of a table.
    """
    keys_TD, _, values_TD, _, places_NJP, shares_NJP, folded_HND = tables
    of_keys_TD, of_key_bias_BD, of_values_TD, of_value_bias_BD, of_shares_NJP, of_folded_HND = of_tables
    (summed_HND, share_HN), (of_summed_HND, of_share_HN) = sums, of_sums
    count, heads, width = places_NJP.shape[1], folded_HND.shape[0], folded_HND.shape[2]
    group_rows = keys_TD.shape[0] // (places_NJP.shape[2] // 2)
    hidden_2JD, of_hidden_2JD = np.empty((2, count, width), np.float32), np.empty((2, count, width), np.float32)
    weights_HJ, kept_HJ = np.empty((heads, count), np.float32), np.empty((heads, count), np.float32)
    memory_D = np.empty(width, np.float32)
    for video in range(first_video, end_video):
        of_key_bias_BD[video] = 0
        of_value_bias_BD[video] = 0
        for first in range(0, keys_TD.shape[0], group_rows):
            of_keys_TD[first + read_firsts[video] : first + read_firsts[video + 1]] = 0
            of_values_TD[first + read_firsts[video] : first + read_firsts[video + 1]] = 0
        for n in range(firsts[video], firsts[video + 1]):
            _make_row(tables, scale, drawn, n, hidden_2JD, kept_HJ, weights_HJ)
            of_hidden_2JD[:] = 0
            for h in range(heads):
                share_HN[h, n] = _sum_values(hidden_2JD[1], weights_HJ[h], kept_HJ[h], memory_D, summed_HND[h, n])
                head = weights_HJ[h], kept_HJ[h], folded_HND[h, n], of_summed_HND[h, n], of_share_HN[h, n]
                _pass_through_weights(hidden_2JD, *head, of_hidden_2JD, memory_D, of_folded_HND[h, n])
            of_shares_NJP[n] = 0
            for j in range(count):
                sample, of_shares_P = (places_NJP[n, j], shares_NJP[n, j], scale), of_shares_NJP[n, j]
                key, value = (hidden_2JD[0, j], of_hidden_2JD[0, j]), (hidden_2JD[1, j], of_hidden_2JD[1, j])
                _pass_through_layer(keys_TD, *sample, *key, of_keys_TD, of_key_bias_BD[video], of_shares_P)
                _pass_through_layer(values_TD, *sample, *value, of_values_TD, of_value_bias_BD[video], of_shares_P)
