"""A CPU encodes a batch in parts that fit its cache; how large they are changes nothing."""

from typing import Any

import pytest
import torch

from method.model import fusion
from method.ops.cpu import feed_forward as row_layers
from method.ops.cpu import self_attention as sequence_attention
from method.ops.cpu.self_attention import _boxes
from tests.helpers.small_models import VARIANTS, lively_model, random_rows, random_streams

ACTION, OBJECT, WORDS = [7, 1, 24, 12, 3], [5, 9, 20, 1, 8], [4, 10, 1, 6, 3]


def outputs_and_gradients(changes: dict[str, Any]) -> list[torch.Tensor]:
    model = lively_model(**changes).eval()  # without dropout, of which other parts draw another
    streams = random_streams(model.architecture, ACTION, OBJECT)
    keys = model.encode_videos(streams)
    queries = model.encode_queries(random_rows(WORDS, model.architecture.query_width, 3))
    outputs = [*(rows.values for rows in keys.values()), *queries.values()]
    sum((output * torch.arange(1.0, 1 + output.numel()).view_as(output).cos()).sum() for output in outputs).backward()  # type: ignore[union-attr]
    return [*outputs, *(weight.grad for weight in model.parameters() if weight.grad is not None)]


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_small_parts_give_what_one_gives(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = outputs_and_gradients(changes)
    boxes: list[Any] = []

    def noted(*arguments: Any) -> list[Any]:
        boxes.extend(made := _boxes(*arguments))
        return made

    sizes = ((fusion, "ROWS_AT_ONCE"), (row_layers, "ROWS_OF_A_PIECE"), (sequence_attention, "ROWS_OF_A_BOX"))
    for module, name in sizes:
        monkeypatch.setattr(module, name, 13)
    monkeypatch.setattr(sequence_attention, "_boxes", noted)
    found = outputs_and_gradients(changes)
    assert len(boxes) > 5
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
