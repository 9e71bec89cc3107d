"""Ragged rows against loops over padded sequences."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from method.data.ragged import MANY_ROWS, Layout, Ragged

LENGTHS = st.lists(st.integers(1, 7) | st.sampled_from([MANY_ROWS, MANY_ROWS + 1]), min_size=1, max_size=6)
MULTIPLES = st.sampled_from([1, MANY_ROWS])


def rounded(length: int, multiple: int) -> int:
    """The least multiple that is not less."""
    return next(size for size in range(multiple, 1000, multiple) if size >= length)


def sequences(lengths: list[int], width: int = 3) -> list[torch.Tensor]:
    """Every row differs from every other, and none is zero."""
    rows = torch.arange(1.0, 1 + sum(lengths) * width).view(-1, width)
    return list(rows.split(lengths))


@given(LENGTHS, MULTIPLES)
@settings(deadline=None, max_examples=60)
def test_pad_equals_a_loop_and_unpad_is_its_inverse(lengths: list[int], multiple: int) -> None:
    parts = sequences(lengths)
    rows = Ragged.of(parts)
    layout = rows.layout if multiple == 1 else rows.layout.rounded
    padded = layout.pad(rows.values)
    assert padded.shape == (len(lengths), rounded(max(lengths), multiple), 3)
    for part, row in zip(parts, padded, strict=True):
        assert torch.equal(row[: len(part)], part)
        assert not row[len(part) :].any()
    assert torch.equal(layout.unpad(padded), rows.values)


@given(LENGTHS, MULTIPLES, st.data())
@settings(deadline=None, max_examples=60)
def test_layout_equals_a_loop(lengths: list[int], multiple: int, data: st.DataObject) -> None:
    valid = [data.draw(st.integers(1, length)) for length in lengths]
    layout = replace(Layout.of(lengths, valid), multiple=multiple)
    indices = [(owner, position) for owner, length in enumerate(lengths) for position in range(length)]
    assert list(zip(layout.owner_N.tolist(), layout.position_N.tolist(), strict=True)) == indices
    longest = rounded(max(lengths), multiple)
    assert layout.valid_BL.tolist() == [[position < count for position in range(longest)] for count in valid]
    assert layout.max_length == longest


@given(LENGTHS, st.data())
@settings(deadline=None, max_examples=60)
def test_extended_adds_zero_rows_that_valid_removes(lengths: list[int], data: st.DataObject) -> None:
    more = [length + data.draw(st.integers(0, 4)) for length in lengths]
    rows = Ragged.of(sequences(lengths))
    extended = rows.extended(more)
    assert extended.layout.lengths == tuple(more)
    assert extended.layout.valid == tuple(lengths)
    for part, whole in zip(sequences(lengths), extended.values.split(more), strict=True):
        assert torch.equal(whole[: len(part)], part)
        assert not whole[len(part) :].any()
    back = extended.valid()
    assert back.layout.lengths == back.layout.valid == tuple(lengths)
    assert torch.equal(back.values, rows.values)


@pytest.mark.parametrize("lengths", [[4, 1, 3], [3, 3]], ids=["ragged", "dense"])
def test_gradients_of_padding(lengths: list[int]) -> None:
    rows = Ragged.of(sequences(lengths))
    values = rows.values.clone().requires_grad_()
    weights = torch.rand(len(lengths), max(lengths), 3)
    (rows.layout.pad(values) * weights).sum().backward()
    expected = torch.cat([weight[:length] for weight, length in zip(weights, lengths, strict=True)])
    assert values.grad is not None
    torch.testing.assert_close(values.grad, expected)


@pytest.mark.parametrize(("lengths", "valid"), [([2, 0], None), ([0], None), ([2, 3], [2, 4]), ([2, 3], [0, 3])])
def test_a_sequence_needs_a_valid_row(lengths: list[int], valid: list[int] | None) -> None:
    with pytest.raises(ValueError, match="expected 1 to length valid rows"):
        Layout.of(lengths, valid)


def test_values_and_devices_can_change() -> None:
    rows = Ragged.of(sequences([2, 4, 1]))
    wider = rows.with_values(rows.values.repeat(1, 2))
    assert wider.layout is rows.layout
    moved = rows.extended([3, 4, 2]).to("meta")
    assert moved.layout.lengths == (3, 4, 2)
    assert len(moved) == 3
    for part in (moved, moved.valid(), moved.extended([5, 4, 2]), *moved.split([1, 2])):
        layout = part.layout
        tensors = (layout.lengths_B, layout.valid_B, layout.starts_B, layout.owner_N, layout.position_N)
        for tensor in (*tensors, layout.valid_BL, layout.mask_BL, layout.pad(part.values), part.values):
            assert tensor is None or tensor.device.type == "meta"


@pytest.mark.parametrize(("lengths", "valid", "masked"), [
    ([3, 3], [3, 3], False),
    ([3, 3], [3, 2], True),
    ([3, 2], [3, 2], True),
])  # fmt: skip
def test_no_mask_without_padding(lengths: list[int], valid: list[int], masked: bool) -> None:
    layout = Layout.of(lengths, valid)
    assert (layout.mask_BL is not None) == masked
    assert layout.rounded.mask_BL is not None
    dense = [MANY_ROWS] * 2
    assert Layout.of(dense).rounded.mask_BL is None


@given(LENGTHS, st.data())
@settings(deadline=None, max_examples=60)
def test_split_keeps_the_sequences(lengths: list[int], data: st.DataObject) -> None:
    rows = Ragged.of(sequences(lengths)).extended([length + 1 for length in lengths])
    first = data.draw(st.integers(0, len(lengths)))
    parts = [part for part in rows.split([first, len(lengths) - first]) if len(part)]
    assert torch.equal(torch.cat([part.values for part in parts]), rows.values)
    assert [length for part in parts for length in part.layout.lengths] == list(rows.layout.lengths)
    assert [length for part in parts for length in part.layout.valid] == lengths
    assert {part.layout.longest for part in parts} == {max(lengths)}


def test_the_last_sequence_is_repeated() -> None:
    rows = Ragged.of(sequences([4, 2])).extended([4, 3])
    more = rows.with_last_repeated(2)
    assert (more.layout.lengths, more.layout.valid, more.layout.longest) == ((4, 3, 3, 3), (4, 2, 2, 2), 4)
    assert torch.equal(more.values, torch.cat([rows.values, rows.values[4:], rows.values[4:]]))
    assert torch.equal(more.first(2).values, rows.values)
    assert rows.with_last_repeated(0) is rows
    assert rows.first(2) is rows
