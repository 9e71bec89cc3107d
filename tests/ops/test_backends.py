"""Every operation of the CPU backend against the reference: values, gradients, dropout, precision, NaN."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from method import ops
from method.data.ragged import Layout
from method.ops import MLP, SamplingPoints
from method.ops.cpu import threads
from method.runtime.errors import InputError
from tests.helpers.gradients import loss, slope
from tests.helpers.small_models import VARIANTS, lively_model, random_rows, random_streams


@dataclass
class Case:
    """An operation and its inputs; those in `learned` need gradients."""

    run: Callable[[float], Tensor]
    learned: list[Tensor]

    def gradients(self, result: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss(result.float()), self.learned))


def rows(*shape: int) -> Tensor:
    return (2 * torch.randn(shape)).requires_grad_()


def dropout_case(count: int) -> Case:
    values = rows(count, 20)
    return Case(lambda p: ops.dropout(values, p, training=True), [values])


def relu_dropout_case(count: int) -> Case:
    values = rows(count, 20)
    return Case(lambda p: ops.relu_dropout((values * 1.0).contiguous(), p, training=True), [values])


def feed_forward_case(count: int) -> Case:
    values, inner, outer = rows(count, 6), nn.Linear(6, 9), nn.Linear(9, 5)
    return Case(lambda p: ops.feed_forward(values, inner, outer, p), [values, *inner.parameters(), *outer.parameters()])


def normalized_linear_case(count: int, distinct: int = 40) -> Case:
    values, norm, layer = (
        rows(distinct, 20).detach().repeat(-(-count // distinct), 1)[:count],
        nn.LayerNorm(20),
        nn.Linear(20, 5),
    )
    learned = [layer.weight, layer.bias, norm.weight, norm.bias]
    with torch.no_grad():
        for weight in learned:
            weight.normal_()
    return Case(lambda p: ops.normalized_linear(values, norm, layer, p), learned)


def best_dots_case(lengths: list[int], valid: list[int]) -> Case:
    layout, queries = Layout.of(lengths, valid), rows(6, 7)
    frames = rows(layout.rows, 7)
    return Case(lambda p: ops.best_dots(frames, frames.detach().norm(dim=-1), queries, layout)[0], [frames, queries])


def self_attention_case(lengths: list[int], valid: list[int], heads: int = 2, sigma: float | None = None) -> Case:
    layout = Layout.of(lengths, valid)
    projected = rows(layout.rows, 3 * 6)

    def run(probability: float) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        return ops.self_attention(projected.to(dtype), layout, heads, probability, sigma)  # as the projection leaves it

    return Case(run, [projected])


def deformable_attention_case(lengths: list[int], context_lengths: list[int]) -> Case:
    width, groups, count, heads = 12, 4, 3, 2
    video_N = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    context = Layout.of(context_lengths)
    within = torch.rand(len(video_N), count, groups, 2) * context.lengths_B[video_N, None, None, None]
    index = (within.long() + context.starts_B[video_N, None, None, None]).int()
    query, frames, weight = rows(len(video_N), width), rows(context.rows, width), rows(*index.shape)
    scale = torch.tensor(0.7, requires_grad=True)
    points = SamplingPoints(index, weight, lengths, context_lengths)
    mlps = (MLP(width), MLP(width))
    learned = [query, frames, weight, scale, *list(mlps[0].parameters())[:-1], *mlps[1].parameters()]
    return Case(lambda p: ops.deformable_attention(query, frames, points, *mlps, heads, scale, p), learned)


CASES: dict[str, Callable[[], Case]] = {
    "dropout": lambda: dropout_case(40),
    "relu-dropout": lambda: relu_dropout_case(40),
    "feed-forward": lambda: feed_forward_case(40),
    "normalized linear": lambda: normalized_linear_case(40),
    "best dots": lambda: best_dots_case([7, 1, 24, 3, 12], [5, 1, 20, 3, 9]),
    "self-attention": lambda: self_attention_case([7, 1, 24, 3, 12], [5, 1, 20, 3, 9]),
    "self-attention of one sequence": lambda: self_attention_case([5], [5]),
    "self-attention of equal sequences": lambda: self_attention_case([4, 4], [4, 4]),
    "self-attention in windows": lambda: self_attention_case([7, 1, 24, 3, 12], [5, 1, 20, 3, 9], sigma=0.2),
    "deformable attention": lambda: deformable_attention_case([5, 1, 9], [7, 3, 4]),
    "deformable attention of one frame": lambda: deformable_attention_case([1], [1]),
}
# Of those with dropout.
ONE_OF_EACH = ("dropout", "relu-dropout", "feed-forward", "normalized linear", "self-attention", "deformable attention")
CASE = pytest.mark.parametrize("make", CASES.values(), ids=CASES)
OPERATION = pytest.mark.parametrize("make", [CASES[name] for name in ONE_OF_EACH], ids=ONE_OF_EACH)
# The package has functions of the same names.
FEED_FORWARD, NORMALIZED_LINEAR, SELF_ATTENTION = (
    importlib.import_module(f"method.ops.cpu.{name}")
    for name in ("feed_forward", "normalized_linear", "self_attention")
)
BACKEND = pytest.mark.parametrize("backend", ["reference", "cpu"])


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes for several chunks and buckets per case, the last one not full."""
    torch.manual_seed(0)
    monkeypatch.setattr(FEED_FORWARD, "CHUNK_ROWS", 16)
    monkeypatch.setattr(NORMALIZED_LINEAR, "CHUNK_ROWS", 16)
    monkeypatch.setattr(NORMALIZED_LINEAR, "ROWS_PER_ITEM", 6)
    monkeypatch.setattr(SELF_ATTENTION, "ROWS_PER_BUCKET", 30)


Use = Callable[[str], None]
UseThreads = Callable[[int], None]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    return lambda backend: monkeypatch.setenv(ops.VARIABLE, backend)


@pytest.fixture
def use_threads(monkeypatch: pytest.MonkeyPatch) -> UseThreads:
    """Split the items of every kernel over `count` threads, however few they are."""
    even_ranges = threads.even_ranges
    return lambda count: monkeypatch.setattr(threads, "even_ranges", lambda sizes, _: even_ranges(sizes, count))


def on_both(use: Use, compute: Callable[[], Any]) -> tuple[Any, Any]:
    """Results of the CPU backend and of the reference."""
    found = []
    for backend in ("cpu", "reference"):
        use(backend)
        found.append(compute())
    return found[0], found[1]


def value_and_gradients(case: Case, probability: float = 0.0) -> list[Tensor]:
    result = case.run(probability)
    return [result.detach(), *case.gradients(result)]


@CASE
@pytest.mark.parametrize("count", [1, 3])
def test_values_and_gradients(make: Callable[[], Case], count: int, use: Use, use_threads: UseThreads) -> None:
    case = make()
    use_threads(count)
    found, expected = on_both(use, lambda: value_and_gradients(case))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@CASE
@BACKEND
def test_gradients_with_dropout_use_the_same_mask(make: Callable[[], Case], backend: str, use: Use) -> None:
    """Finite differences, with the same seed for every evaluation."""
    use(backend)
    case = make()

    def value() -> Tensor:
        torch.manual_seed(5)
        return loss(case.run(0.3)).double()

    for weight, gradient in zip(case.learned, torch.autograd.grad(value(), case.learned), strict=True):
        direction = gradient / gradient.norm().clamp(min=1e-9)
        torch.testing.assert_close(
            slope(value, weight, direction, 1e-3), gradient.norm().double(), atol=1e-2, rtol=5e-2
        )


COPIES, CALLS, P = 300, 12, 0.25


def repeated(name: str) -> tuple[Case, int]:
    """A case with the same inputs COPIES times, and the rows of a copy."""
    if name == "self-attention":
        case = self_attention_case([4] * COPIES, [3] * COPIES)
    elif name == "deformable attention":
        case = deformable_attention_case([2] * COPIES, [3] * COPIES)
    elif name == "normalized linear":
        case = normalized_linear_case(2 * COPIES, distinct=2)
    else:
        make = {"dropout": dropout_case, "relu-dropout": relu_dropout_case, "feed-forward": feed_forward_case}[name]
        case = make(2 * COPIES)
    return case, {"self-attention": 4}.get(name, 2)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_distribution_of_outputs_with_dropout(name: str, use: Use) -> None:
    """Mean and covariance of outputs, within a copy of the inputs and between adjacent copies."""
    case, per_copy = repeated(name)
    _equalize(case, per_copy)

    def statistics() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            outputs = torch.stack([case.run(P) for _ in range(CALLS)])
        pairs = outputs.view(CALLS * COPIES // 2, -1)  # of neighbours
        return pairs.mean(0), pairs.t().cov()

    (mean, covariance), (expected, expected_covariance) = on_both(use, statistics)
    samples, variance = CALLS * COPIES // 2, expected_covariance.diagonal()
    torch.testing.assert_close(mean, expected, rtol=0, atol=6 * (2 * variance.max().item() / samples) ** 0.5)
    # The standard error of a covariance is at most sqrt(2 / samples) times the product of the deviations, for a normal
    # distribution; that of dropout has heavier tails.
    scale = (variance[:, None] * variance).sqrt().clamp(min=1e-6)
    assert ((covariance - expected_covariance) / scale).abs().max() < 12 * (2 / samples) ** 0.5


def _equalize(case: Case, per_copy: int) -> None:
    """Copy the inputs of the first copy to all others."""
    with torch.no_grad():
        for tensor in case.learned:
            if tensor.dim() and len(tensor) % COPIES == 0:
                copies = tensor.view(COPIES, -1)
                copies.copy_(copies[:1].clone().expand_as(copies))


@OPERATION
def test_masks_depend_on_the_seed_alone(
    make: Callable[[], Case], use: Use, use_threads: UseThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    use("cpu")
    case, found = make(), []
    for count in (1, 3):
        use_threads(count)
        torch.manual_seed(1)
        found.append(value_and_gradients(case, 0.3))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert not torch.equal(found[0][0], case.run(0.3))
    monkeypatch.setattr(SELF_ATTENTION, "ROWS_PER_BUCKET", 1)
    torch.manual_seed(1)
    torch.testing.assert_close(value_and_gradients(case, 0.3), found[0])


@OPERATION
@pytest.mark.parametrize("probability", [0.0, 0.25])
def test_bf16(make: Callable[[], Case], probability: float, use: Use) -> None:
    case = make()
    use("cpu")
    results = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            results.append(value_and_gradients(case, probability))
    for exact, rounded in zip(*results, strict=True):
        assert (rounded.float() - exact).norm() <= 0.1 * exact.norm() + 0.01
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = on_both(use, lambda: value_and_gradients(case))
    assert [tensor.dtype for tensor in found] == [tensor.dtype for tensor in expected]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_self_attention_of_half_precision(dtype: torch.dtype, use: Use) -> None:
    layout = Layout.of([7, 1, 24], [5, 1, 20])
    projected = rows(layout.rows, 18).detach().to(dtype).requires_grad_()
    case = Case(lambda p: ops.self_attention(projected, layout, 2, p), [projected])
    found, expected = on_both(use, lambda: value_and_gradients(case))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype == dtype
        assert (one.float() - other.float()).norm() < 0.02 * other.float().norm()


@OPERATION
def test_nan_propagates_within_its_sequence_only(make: Callable[[], Case], use: Use) -> None:
    case = make()
    with torch.no_grad():
        case.learned[0][3, 1] = torch.nan
    found, expected = on_both(use, lambda: value_and_gradients(case))
    assert torch.equal(found[0].isnan(), expected[0].isnan())
    assert found[0].isnan().any()
    for one, other in zip(found, expected, strict=True):
        assert one.isnan().any() == other.isnan().any()
        assert not (one.isnan() & ~other.isnan()).any()  # the reference spreads it to rows in the padding as well


def test_extreme_logits_select_one_frame(use: Use) -> None:
    layout = Layout.of([4])
    projected = rows(4, 18).detach()
    projected[:, :12] *= 1e4
    torch.testing.assert_close(*on_both(use, lambda: ops.self_attention(projected, layout, 2, 0.0)))


@BACKEND
def test_no_rows(backend: str, use: Use) -> None:
    use(backend)
    for case in (dropout_case(0), relu_dropout_case(0), feed_forward_case(0), normalized_linear_case(0)):
        result, *gradients = value_and_gradients(case, 0.3)
        assert len(result) == 0
        assert all(not gradient.any() for gradient in gradients)


@OPERATION
@BACKEND
def test_strided_inputs_and_gradients(make: Callable[[], Case], backend: str, use: Use) -> None:
    use(backend)
    case = make()
    expected = value_and_gradients(case)
    with torch.no_grad():
        for tensor in case.learned:
            if tensor.dim() == 2:
                tensor.data = tensor.t().contiguous().t()
    torch.testing.assert_close(value_and_gradients(case), expected)
    torch.manual_seed(1)
    (ones,) = torch.autograd.grad(case.run(0.3).t(), case.learned[:1], torch.ones_like(case.run(0.0)).t())
    torch.manual_seed(1)
    (strided,) = torch.autograd.grad(case.run(0.3), case.learned[:1], torch.ones_like(case.run(0.0).t()).t())
    torch.testing.assert_close(strided, ones)


@BACKEND
def test_other_numbers_of_rows_are_refused(backend: str, use: Use) -> None:
    use(backend)
    with pytest.raises(ValueError, match="got 16 rows, expected 15"):
        ops.self_attention(torch.zeros(16, 18), Layout.of([5, 10]), 2, 0.0)


def test_frozen_inputs_get_no_gradient(use: Use) -> None:
    case = CASES["deformable attention"]()
    for tensor in case.learned[:-2]:
        tensor.requires_grad_(False)
    case.learned = case.learned[-2:]
    torch.testing.assert_close(*on_both(use, lambda: value_and_gradients(case)), atol=1e-4, rtol=1e-4)


@BACKEND
@pytest.mark.parametrize("valid", [None, (3, 1, 8, 100, 1)])
def test_best_dots_are_those_of_a_loop(backend: str, valid: tuple[int, ...] | None, use: Use) -> None:
    use(backend)
    layout = Layout.of((5, 1, 9, 128, 2), valid)
    dots, norms = torch.randn(layout.rows, 37), torch.rand(layout.rows) + 0.2
    broken = dots.masked_fill(torch.rand_like(dots) < 0.05, torch.nan).where(dots > -1, -torch.inf)
    identity = torch.eye(37)  # queries whose products with the frames are the frames, where these are finite
    for frames, by in ((dots, norms), (dots.round(), torch.ones_like(norms)), (broken, norms)):
        values, index = ops.best_dots(frames, by, identity, layout)
        products = frames @ identity
        for scores, value, best in zip((products / by[:, None], products), values, index, strict=True):
            for video, (start, count) in enumerate(zip(layout.starts_B.tolist(), layout.valid, strict=True)):
                frame = scores[start : start + count].max(0).indices
                assert torch.equal(best[video].long(), frame)
                expected = products[start : start + count].gather(0, frame[None])[0]
                torch.testing.assert_close(value[video], expected, equal_nan=True, rtol=0, atol=0)


@BACKEND
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("queries", [1, 3, 4, 7, 16, 17, 64])
def test_highest_dots_are_those_of_a_loop(
    backend: str, dtype: torch.dtype, queries: int, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Videos overlap, lie in any order and leave rows out, and the products of one are more than fit together."""
    use(backend)
    monkeypatch.setattr("method.ops.reference._MAX_DOTS", 40)
    starts, lengths = [50, 0, 3, 3, 90], [40, 1, 9, 10, 7]
    rows, vectors = torch.randn(100, 21).to(dtype), torch.randn(queries, 21)
    rows[52, 4], rows[49, 4] = torch.nan, torch.nan  # of the first video, and of none
    found = ops.highest_dots(rows, torch.tensor(starts), torch.tensor(lengths), vectors)
    assert (found.dtype, found.shape) == (torch.float32, (5, queries))
    assert found[0].isnan().all()
    for video, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        expected = (rows[start : start + length].double() @ vectors.double().t()).amax(0)
        torch.testing.assert_close(found[video].double(), expected, atol=1e-5, rtol=0, equal_nan=True)
    assert ops.highest_dots(rows, torch.empty(0).long(), torch.empty(0).long(), vectors).shape == (0, queries)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_whole_models(changes: dict[str, Any], use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and gradients of both backends, with and without chunks of a few videos."""

    def outputs_and_gradients() -> list[Tensor]:
        model = lively_model(**changes)
        videos = model.encode_videos(random_streams(model.architecture, [7, 1, 24, 12, 3], [5, 9, 20, 1, 8]))
        queries = model.encode_queries(random_rows([4, 10, 1, 6, 3], model.architecture.query_width, 3))
        outputs = [*(frames.values for frames in videos.values()), *queries.values()]
        torch.stack([loss(output) for output in outputs]).sum().backward()
        return [*outputs, *(weight.grad for weight in model.parameters() if weight.grad is not None)]

    whole, expected = on_both(use, outputs_and_gradients)
    use("cpu")
    monkeypatch.setattr("method.ops.cpu.CHUNK_ROWS", 13)
    for found in (whole, outputs_and_gradients()):
        for one, other in zip(found, expected, strict=True):  # logits of 70 amplify rounding; some are zero but for it
            assert (one - other).norm() <= 1e-4 * (1 + other.norm())


@BACKEND
def test_checkpointing_draws_the_same_mask(backend: str, use: Use) -> None:
    use(backend)
    values = torch.randn(50, 8, requires_grad=True)
    found = []
    for checkpointed in (ops.checkpointed, lambda function, rows: function(rows)):
        torch.manual_seed(3)
        result = checkpointed(lambda rows: ops.dropout(rows * rows, 0.5, True), values)
        found.append(torch.autograd.grad(result.sum(), values)[0])
    assert torch.equal(*found)


# The choice of the backend


def test_an_unknown_backend_is_refused(use: Use) -> None:
    use("cuda")
    with pytest.raises(InputError, match="A3PRVR_OPS=cuda: expected reference or cpu"):
        ops.dropout(torch.ones(3), 0.5, training=True)


def test_a_gpu_runs_the_reference(monkeypatch: pytest.MonkeyPatch, use: Use) -> None:
    monkeypatch.delenv(ops.VARIABLE, raising=False)
    on_gpu = torch.ones(3, device="meta")
    assert ops.backend(on_gpu) is not ops.backend(torch.ones(3))
    use("reference")
    assert ops.backend(on_gpu) is ops.backend(torch.ones(3))
    use("cpu")
    with pytest.raises(InputError, match="--device -1"):
        ops.backend(on_gpu)


WITHOUT_NUMBA = """
import os, sys
if sys.argv[1] == "missing":
    sys.modules["numba"] = None
import torch
from method import ops
from method.runtime.errors import InputError
from tests.helpers.small_models import lively_model, random_streams
model = lively_model().train()
model.encode_videos(random_streams(model.architecture, [5, 3], [4, 6]))["action"].values.sum().backward()
assert ops.backend(torch.ones(1)).__name__ == "method.ops.reference"
os.environ[ops.VARIABLE] = "cpu"
try:
    ops.backend(torch.ones(1))
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize(("why", "message"), [("missing", "numba"), ("disabled", "NUMBA_DISABLE_JIT is set")])
def test_without_numba_the_reference_runs(why: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ops.VARIABLE, raising=False)
    if why == "disabled":
        monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    done = subprocess.run([sys.executable, "-c", WITHOUT_NUMBA, why], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("A3PRVR_OPS=cpu: ")
    assert message in done.stdout
    assert "requirements-cpu.txt" in done.stdout
