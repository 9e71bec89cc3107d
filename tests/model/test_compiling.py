"""`--compile`: the same results from the same random numbers, once for all lengths, and only while training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor

from method.model import compiling, cross_attention, fusion
from method.model.compiling import compile_parts, expect_compiler
from method.model.retrieval import RetrievalModel
from method.runtime import hardware
from method.runtime.errors import InputError
from tests.helpers.small_dataset import SmallDataset, run_train
from tests.helpers.small_models import VARIANTS, lively_model, random_rows, random_streams

# PyTorch's own, while it compiles what is given tensors that others were made of.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
# Two batches that share no length, then others for which nothing may be compiled any more.
BATCHES = [
    ([7, 3, 24, 12], [5, 9, 20, 4], [4, 10, 3]),
    ([8, 6, 22], [10, 7, 6], [5, 2, 6, 9]),
    ([9, 9, 9, 9], [6, 6, 6, 6], [5, 5]),
    ([11, 4, 4, 5, 6], [2, 3, 24, 8, 8], [7, 7, 7, 8, 2, 3]),
]


@pytest.fixture
def gpu_style(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Computing as on a GPU, and nothing compiled before or after."""
    monkeypatch.setattr(hardware, "likes_large_kernels", lambda tensor: True)
    torch.compiler.reset()
    with torch._dynamo.config.patch(cache_size_limit=8):
        yield
    torch.compiler.reset()


def outputs_and_gradients(model: RetrievalModel, batch: tuple[list[int], list[int], list[int]]) -> list[Tensor]:
    torch.manual_seed(1)
    device = next(model.parameters()).device
    streams = random_streams(model.architecture, *batch[:2])
    keys = model.encode_videos({name: rows.to(device) for name, rows in streams.items()})
    queries = model.encode_queries(random_rows(batch[2], model.architecture.query_width, 3).to(device))
    outputs = [*(rows.values for rows in keys.values()), *queries.values()]
    model.zero_grad()
    waves = [torch.arange(output.numel(), device=device).view_as(output).cos() for output in outputs]
    torch.stack([(output * wave).sum() for output, wave in zip(outputs, waves, strict=True)]).sum().backward()
    return [*outputs, *(weight.grad.clone() for weight in model.parameters() if weight.grad is not None)]


@pytest.mark.usefixtures("gpu_style")
@pytest.mark.parametrize("variant", ["deformable-double_q-padded", "positions-valid", "attention-i3d_q-valid"])
def test_same_results_for_all_lengths(variant: str) -> None:
    model, compiled = (lively_model(**VARIANTS[variant]).train() for _ in range(2))
    # All of a compiled part but its last step, the writing of kernels, which needs a compiler of the machine.
    compile_parts(compiled, backend="aot_eager")
    for place, batch in enumerate(BATCHES):
        with torch.compiler.set_stance("fail_on_recompile" if place > 1 else "default"):
            found = outputs_and_gradients(compiled, batch)
        for own, expected in zip(found, outputs_and_gradients(model, batch), strict=True):
            torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-4)


class Counting:
    """A backend that runs what it is given and counts the graphs and their calls."""

    def __init__(self) -> None:
        self.graphs = 0
        self.calls = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.graphs += 1

        def run(*arguments: Any) -> Any:
            self.calls += 1
            return graph.forward(*arguments)

        return run


@pytest.mark.usefixtures("gpu_style")
def test_only_training_is_compiled_and_every_part_of_it_is() -> None:
    model, backend = lively_model(), Counting()
    names = list(model.state_dict())
    compile_parts(model, backend)
    assert list(model.state_dict()) == names
    outputs_and_gradients(model, BATCHES[0])
    assert backend.graphs == 0
    outputs_and_gradients(model.train(), BATCHES[0])
    # Two parts of each of four encoders and one of its attention; the fusion's own four and its feed-forward.
    assert backend.graphs >= 3 + 5
    assert backend.calls == 4 * 3 + 5


@pytest.mark.usefixtures("gpu_style")
def test_what_cannot_be_compiled_as_a_whole_raises() -> None:
    class Asking(torch.nn.Module):
        COMPILED = ("forward",)

        def forward(self, rows: Tensor) -> Tensor:
            return rows * 2 if rows.sum().item() > 0 else rows

    model = Asking()
    compile_parts(model, backend="aot_eager")
    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        model(torch.ones(2))


def test_refused_on_a_cpu(shared: SmallDataset) -> None:
    with pytest.raises(InputError, match="--compile is for a GPU"):
        run_train(shared.flags("--compile", "--description", "compiled"))
    assert not (shared.results / "compiled").exists()


def test_needs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "has_triton", lambda: False)
    with pytest.raises(InputError, match="--compile needs Triton"):
        expect_compiler(torch.device("cuda"))
    monkeypatch.setattr(compiling, "has_triton", lambda: True)
    expect_compiler(torch.device("cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("variant", ["deformable-double_q-padded", "positions-valid", "attention-i3d_q-valid"])
def test_a_gpu_compiles(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (fusion, cross_attention):
        monkeypatch.setattr(module, "DROPOUT", 0.0)  # compiled, it draws other numbers
    device = torch.device("cuda")
    expect_compiler(device)
    model, compiled = (lively_model(**VARIANTS[variant], input_dropout=0.0, dropout=0.0).to(device) for _ in range(2))
    compile_parts(compiled.train())
    for batch in BATCHES:
        for own, expected in zip(
            outputs_and_gradients(compiled, batch), outputs_and_gradients(model, batch), strict=True
        ):
            torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-4)
