"""Augmentation: which rows are left out, how much noise there is, and that nothing happens without it."""

from __future__ import annotations

import pytest
import torch

from method.data.ragged import Layout, Ragged
from method.model.augmentation import augmented
from tests.helpers.small_models import lively_model, random_rows, random_streams

LENGTHS = [1, 40, 3, 200]


def numbered() -> Ragged:
    """Rows that say which they are."""
    layout = Layout.of(LENGTHS, longest=300)
    return Ragged(torch.arange(layout.rows, dtype=torch.float32)[:, None].repeat(1, 2), layout)


def test_rows_are_left_out_independently_and_one_stays() -> None:
    torch.manual_seed(0)
    rows, counts = numbered(), []
    starts = rows.layout.starts_B.tolist()
    for _ in range(50):
        kept = augmented(rows, 0.4, 0.0)
        counts.append(kept.layout.lengths)
        assert kept.layout.longest == 300
        for own, start, length in zip(kept.values.split(list(kept.layout.lengths)), starts, LENGTHS, strict=True):
            indices = own[:, 0].long().tolist()
            assert indices == sorted(set(indices))
            assert set(indices) <= set(range(start, start + length))
            assert indices
    share = sum(sum(count[1::2]) for count in counts) / (50 * 240)
    assert share == pytest.approx(0.6, abs=0.02)  # three standard deviations are 0.013
    assert len(set(counts)) > 40
    assert all(min(augmented(rows, 0.999, 0.0).layout.lengths) == 1 for _ in range(5))


def test_noise_is_relative_to_the_norm_of_each_row() -> None:
    torch.manual_seed(0)
    rows = Ragged.of([torch.randn(500, 64), 10 * torch.randn(500, 64)])
    noise = augmented(rows, 0.0, 0.3).values - rows.values
    relative = noise.norm(dim=1) / rows.values.norm(dim=1)
    assert relative.mean().item() == pytest.approx(0.3, rel=0.02)
    assert relative.min() > 0.15
    assert noise.mean().abs() < 0.05


def test_nothing_is_drawn_where_both_are_off() -> None:
    rows, before = numbered(), torch.get_rng_state()
    assert augmented(rows, 0.0, 0.0) is rows
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("changes", [{"frame_drop": 0.5}, {"token_drop": 0.5}, {"feature_noise": 0.5}], ids=str)
def test_a_model_is_augmented_in_training_alone(changes: dict[str, object]) -> None:
    model = lively_model(dropout=0.0, input_dropout=0.0, fusion="none", **changes)
    streams, tokens = random_streams(model.architecture, [9, 1, 24], [4, 6, 2]), random_rows([4, 7], 8)

    def encoded() -> tuple[dict[str, Ragged], dict[str, torch.Tensor]]:
        with torch.no_grad():
            return model.encode_videos(streams), model.encode_queries(tokens)

    keys, queries = encoded()
    plain = lively_model(fusion="none")
    for name, expected in plain.encode_videos(streams).items():
        torch.testing.assert_close(keys[name].values, expected.values)
        torch.testing.assert_close(queries[name], plain.encode_queries(tokens)[name])

    model.train()
    torch.manual_seed(0)
    first, second = encoded(), encoded()
    torch.manual_seed(0)
    again = encoded()
    for name in model.branches:
        assert torch.equal(first[0][name].values, again[0][name].values)
        assert torch.equal(first[1][name], again[1][name])
        frames, others = first[0][name], second[0][name]
        moved = frames.layout.lengths != others.layout.lengths or not torch.equal(frames.values, others.values)
        assert moved == ("token_drop" not in changes)
        assert torch.equal(first[1][name], second[1][name]) == ("frame_drop" in changes)


@pytest.mark.parametrize("extent", ["valid", "padded"])
def test_the_fusion_reads_the_frames_that_stayed(extent: str) -> None:
    model = lively_model(frame_drop=0.6, query="double_q", fusion_extent=extent).train()
    keys = model.encode_videos(random_streams(model.architecture, [9, 1, 24], [4, 6, 2]))
    assert sum(keys["action"].layout.lengths) < 34
    assert all(torch.isfinite(rows.values).all() for rows in keys.values())
