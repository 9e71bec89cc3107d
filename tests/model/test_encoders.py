"""The self-attention of frames in its variants, against loops over videos and frames."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from method.data.ragged import Layout, Ragged
from method.model.encoders import SIGMAS, GaussianAttention, RegisterAttention, SelfAttention, frame_attention
from tests.helpers.small_models import SMALL, lively_model, random_streams

LENGTHS = [7, 1, 12]


def naive_block(block: SelfAttention, frames_nD: Tensor, valid: int) -> Tensor:
    """One block for one video, a frame at a time; only the first frames are attended to."""
    attended = []
    query, key, value = (layer(frames_nD) for layer in (block.query, block.key, block.value))
    for i in range(len(frames_nD)):
        by_head = []
        for q_D, keys_nD, values_nD in zip(query[i].chunk(4), key.chunk(4, 1), value.chunk(4, 1), strict=True):
            logits = [q_D @ keys_nD[j] / len(q_D) ** 0.5 for j in range(valid)]
            if block.sigma is not None:
                logits = [
                    logit * torch.exp(torch.tensor(-(((i - j) / valid) ** 2) / (2 * block.sigma**2)))
                    for j, logit in enumerate(logits)
                ]
            by_head.append(torch.stack(logits).softmax(0) @ values_nD[:valid])
        attended.append(torch.cat(by_head))
    return block.norm(frames_nD + block.output(torch.stack(attended)))


def lively(attention: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in attention.parameters():
            weight.add_(0.5 * torch.randn(weight.shape))
    return attention.eval()


def test_gaussian_attention_is_the_mean_of_four_windows() -> None:
    attention = cast(GaussianAttention, lively(frame_attention(replace(SMALL, attention="gaussian"))))
    blocks = [cast(SelfAttention, block) for block in attention.blocks]
    assert [block.sigma for block in blocks] == [None, 1 / 18, 1 / 9, 5 / 9] == list(SIGMAS)
    lengths, valid = [9, 2, 12], LENGTHS
    rows = Ragged(torch.randn(sum(lengths), 16), Layout.of(lengths, valid))
    found = attention(rows).values.split(lengths)
    for own, frames_nD, count in zip(found, rows.values.split(lengths), valid, strict=True):
        expected = torch.stack([naive_block(block, frames_nD, count) for block in blocks]).mean(0)
        torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-4)


def test_registers_are_rows_that_every_frame_attends_to() -> None:
    attention = cast(RegisterAttention, lively(frame_attention(replace(SMALL, registers=3))))
    lengths, valid = [9, 2, 12], LENGTHS
    rows = Ragged(torch.randn(sum(lengths), 16), Layout.of(lengths, valid))
    found = attention(rows)
    assert found.layout is rows.layout
    for own, frames_nD, count in zip(found.values.split(lengths), rows.values.split(lengths), valid, strict=True):
        together = torch.cat([attention.registers.weight, frames_nD])
        torch.testing.assert_close(own, naive_block(attention, together, count + 3)[3:], atol=1e-4, rtol=1e-4)


VARIANTS = {"gaussian": {"attention": "gaussian"}, "registers": {"registers": 2}}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_video_is_encoded_alike_alone_and_in_a_batch(changes: dict[str, object]) -> None:
    model = lively_model(**changes)
    with torch.no_grad():
        together = model.encode_videos(random_streams(model.architecture, LENGTHS, [4, 6, 2]))
        for index, lengths in enumerate(zip(LENGTHS, [4, 6, 2], strict=True)):
            streams = random_streams(model.architecture, LENGTHS, [4, 6, 2])
            alone = {
                name: Ragged.of([rows.values.split(list(rows.layout.lengths))[index]]) for name, rows in streams.items()
            }
            for number, (name, keys) in enumerate(model.encode_videos(alone).items()):
                own = together[name].values.split(list(together[name].layout.lengths))[index]
                assert len(own) == lengths[number]
                torch.testing.assert_close(keys.values, own, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_weight_of_a_variant_is_trained(changes: dict[str, object]) -> None:
    model = lively_model(fusion="none", temperatures=(), **changes).train()
    keys = model.encode_videos(random_streams(model.architecture, LENGTHS, [4, 6, 2]))
    sum((rows.values * torch.randn_like(rows.values)).sum() for rows in keys.values()).backward()  # type: ignore[union-attr]
    encoders = {name: weight for name, weight in model.named_parameters() if ".frames." in name}
    idle = {name for name, weight in encoders.items() if weight.grad is None or not weight.grad.any()}
    assert idle == set()
    assert len(encoders) > len([name for name, _ in lively_model().named_parameters() if ".frames." in name])


@pytest.mark.parametrize("fusion", ["deformable", "attention"])
@pytest.mark.parametrize("trained", [False, True])
def test_the_gradient_of_the_fusion_reaches_the_other_encoder_if_it_may(fusion: str, trained: bool) -> None:
    model = lively_model(fusion=fusion, query="double_q", fusion_gradient=trained)
    for own, other in (("action", "object"), ("object", "action")):
        model.zero_grad()
        model.encode_videos(random_streams(model.architecture, LENGTHS, [4, 6, 2]))[
            own
        ].values.square().sum().backward()
        gradients = {name: [weight.grad for weight in model.branch(name).frames.parameters()] for name in (own, other)}
        assert any(grad is not None and grad.any() for grad in gradients[own])
        assert any(grad is not None and grad.any() for grad in gradients[other]) == trained
