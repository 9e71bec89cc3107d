"""Every operation and kernel counts as what it is, and nothing of a step is left out or counted twice."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch._C._autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from benchmarks import measure, step_profile
from benchmarks.step_profile import (
    COPIES,
    DEFORMABLE,
    DROPOUT,
    ELEMENTWISE,
    NORMALISATION,
    OPTIMISER,
    PRODUCTS,
    REST,
    ROWS,
    SELF_ATTENTION,
    kernels,
    kind_of_kernel,
    kind_of_operation,
)
from method.ops import checkpointed, dropout, feed_forward
from method.training.optimizer import BertAdam, Schedule


@pytest.mark.parametrize(("name", "kind"), [
    ("mm", PRODUCTS), ("addmm_", PRODUCTS), ("baddbmm", PRODUCTS), ("mv", PRODUCTS),
    ("_scaled_dot_product_flash_attention_for_cpu", PRODUCTS), ("scaled_dot_product_attention", REST),
    ("_scaled_dot_product_attention_math", REST), ("mkldnn_convolution", PRODUCTS),
    ("native_layer_norm_backward", NORMALISATION), ("_softmax", NORMALISATION),
    ("native_dropout", DROPOUT), ("_embedding_bag", ROWS), ("index_select", ROWS), ("_index_put_impl_", ROWS),
    ("embedding_dense_backward", ROWS), ("gather", ROWS), ("index_fill_", ELEMENTWISE), ("copy_", COPIES),
    ("cat", COPIES), ("constant_pad_nd", COPIES), ("mul", ELEMENTWISE), ("gelu_backward", ELEMENTWISE),
    ("sum", ELEMENTWISE), ("threshold_backward", ELEMENTWISE), ("to", REST), ("t", REST), ("view", REST),
    ("unflatten", REST), ("tanh", ELEMENTWISE), ("topk", ELEMENTWISE), ("linear", REST), ("matmul", REST),
])  # fmt: skip
def test_operations(name: str, kind: str) -> None:
    assert kind_of_operation([f"aten::{name}"]) == kind


@pytest.mark.parametrize(("names", "kind"), [
    (["aten::mul_", "Optimizer.step#BertAdam.step"], OPTIMISER),
    (["aten::add_", "aten::_foreach_add_", "Optimizer.step#BertAdam.step"], OPTIMISER),
    (["aten::index_fill_", "_Dropout"], DROPOUT),
    (["aten::mul_", "_ReluDropoutBackward", "autograd::engine::evaluate_function: _ReluDropoutBackward"], DROPOUT),
    (["_DeformableAttentionBackward"], DEFORMABLE),
    (["aten::bmm", "_DeformableAttentionBackward"], PRODUCTS),
    (["aten::mm", "MmBackward0", "autograd::engine::evaluate_function: MmBackward0"], PRODUCTS),
    (["aten::mm", "_FeedForwardBackward", "autograd::engine::evaluate_function: _FeedForwardBackward"], PRODUCTS),
    (["_FeedForwardBackward", "autograd::engine::evaluate_function: _FeedForwardBackward"], DROPOUT),
    (["_SelfAttention"], SELF_ATTENTION),
    (["aten::bmm", "_SelfAttentionBackward"], PRODUCTS),
    (["MmBackward0", "autograd::engine::evaluate_function: MmBackward0"], REST),
])  # fmt: skip
def test_the_function_around_an_operation_says_more_than_its_name(names: list[str], kind: str) -> None:
    assert kind_of_operation(names) == kind


@pytest.mark.parametrize(("name", "kind"), [
    ("ampere_sgemm_128x64_tn", PRODUCTS),
    ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off_kernel__5x_"
        "cublas", PRODUCTS),
    ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTT", PRODUCTS),
    ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd_kernel_traits<96>>", PRODUCTS),
    ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128", PRODUCTS),
    ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<TensorListMetadata<3>, Copy>", OPTIMISER),
    ("void at::native::(anonymous namespace)::fused_dropout_kernel_vec<float, float, unsigned int, 1, 4>", DROPOUT),
    ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float>", NORMALISATION),
    ("void (anonymous namespace)::softmax_warp_forward<float, float, float, 3, false, false>", NORMALISATION),
    ("void at::native::(anonymous namespace)::EmbeddingBag_updateOutputKernel_sum_mean<float, long>", ROWS),
    ("void at_cuda_detail::cub::DeviceRadixSortOnesweepKernel<Policy800, false, long, long>", ROWS),
    ("void at::native::(anonymous namespace)::CatArrayBatchedCopy_aligned16_contig<OpaqueType<4u>, 1, 64, 64>", COPIES),
    ("void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>", COPIES),
    ("Memcpy HtoD (Pinned -> Device)", COPIES),
    ("Memset (Device)", COPIES),
    ("void at::native::vectorized_elementwise_kernel<4, CUDAFunctor_add<float>>", ELEMENTWISE),
    ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::func_wrapper_t<float>>>",
        ELEMENTWISE),
    ("a kernel of tomorrow", REST),
])  # fmt: skip
def test_kernels(name: str, kind: str) -> None:
    assert kind_of_kernel(name) == kind


def test_operations_are_those_of_hand_arithmetic_with_what_is_recomputed() -> None:
    rows, inputs, hidden = 7, 5, 11
    layers = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, inputs), nn.ReLU())
    values = torch.randn(rows, inputs, requires_grad=True)
    forward = 2 * rows * (inputs * hidden + hidden * inputs)
    assert measure.operations(lambda: layers(values)) == forward
    assert measure.operations(lambda: layers(values).sum().backward()) == 3 * forward  # rows and weights have gradients
    assert measure.operations(lambda: checkpointed(layers, values).sum().backward()) == 4 * forward


def test_operations_of_layers_in_pieces_are_those_of_hand_arithmetic() -> None:
    rows, inputs, hidden = 3000, 4, 6
    inner, outer = nn.Linear(inputs, hidden), nn.Linear(hidden, inputs)
    values = torch.randn(rows, inputs, requires_grad=True)
    product = 2 * rows * inputs * hidden
    assert measure.operations(lambda: feed_forward(values, inner, outer, 0.1).sum().backward()) == 6 * product


def test_operations_of_attention_are_counted_on_a_cpu() -> None:
    query = torch.randn(2, 3, 4, 8)
    attention = lambda: nn.functional.scaled_dot_product_attention(query, query, query)  # noqa: E731
    with torch.inference_mode():
        assert measure.operations(attention) == 2 * (2 * 2 * 3 * 4 * 4 * 8)


def test_the_kinds_of_a_small_step_add_up_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_profile, "DEVICE", torch.device("cpu"))
    layer = nn.Linear(64, 64)
    optimizer = BertAdam([{"params": list(layer.parameters())}], Schedule(peak=1.0, warmup=0.0, steps=10))
    waited = 0.02

    def step() -> None:
        time.sleep(waited)
        dropout(layer(torch.ones(32, 64)), 0.5, training=True).sum().backward()
        optimizer.step()

    step()
    spent, whole = step_profile._profile(step, rounds=2)
    assert {PRODUCTS, DROPOUT, OPTIMISER} <= spent.keys()
    assert spent[PRODUCTS].calls == 2  # forward, and the gradient of the weight
    assert all(own.seconds >= 0 for own in spent.values())
    assert sum(own.seconds for own in spent.values()) < whole - waited


def test_the_whole_profile_of_a_small_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_profile, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(measure, "_PLAIN_SIZES", {"cpu": 64})
    before = torch.get_float32_matmul_precision()
    layer = nn.Linear(500, 1000)
    lines = step_profile.profiled(lambda: layer(torch.ones(1000, 500)), "bf16", 1).splitlines()
    torch.set_float32_matmul_precision(before)
    products = next(line for line in lines if line.startswith("matrix products "))  # which is longest is the machine's
    assert products.endswith(" 1 calls")
    assert any(line.startswith("between operations") for line in lines)
    assert lines[-1].split()[:3] == ["step", "1", "GFLOP"]


def _kernel(name: str, begin: float, end: float, annotation: bool = False) -> FunctionEvent:
    times = SimpleNamespace(start=begin, end=end)
    event: Any = SimpleNamespace(
        name=name, time_range=times, device_type=DeviceType.CUDA, is_user_annotation=annotation
    )
    return cast(FunctionEvent, event)


def test_time_in_which_a_gpu_works_on_two_things_counts_once_and_marks_never() -> None:
    events = [
        _kernel("sgemm", 0.0, 4e6),
        _kernel("Memcpy HtoD", 1e6, 6e6),
        _kernel("dropout", 2e6, 3e6),
        _kernel("Context Sync", 6e6, 9e6),
        _kernel("Optimizer.step#BertAdam.step", 0.0, 9e6, annotation=True),
        _kernel("sgemm", 8e6, 9e6),
    ]
    found = [(kind, seconds) for kind, seconds, _ in kernels(events)]
    assert found == [(PRODUCTS, 4.0), (COPIES, 2.0), (DROPOUT, 0.0), (PRODUCTS, 1.0)]
