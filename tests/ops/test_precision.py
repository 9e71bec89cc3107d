"""The fastest float32 products, if they stay float32."""

import os
from collections.abc import Iterator

import pytest
import torch

from method.ops import precision
from method.ops.precision import enable_fast_matmul

CPU = torch.device("cpu")
CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


@pytest.fixture(autouse=True)
def restore_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def test_products_stay_exact_on_this_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "processor", {"vendor_id": "AuthenticAMD"}.get)
    enable_fast_matmul(CPU)
    left, right = torch.randn(300, 500), torch.randn(500, 200)
    exact = left.double() @ right.double()
    assert (left @ right - exact).norm() < 1e-6 * exact.norm()


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, "highest"), (torch.float64, "medium")])
def test_products_that_would_round_to_bf16_keep_the_default(
    dtype: torch.dtype, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    product = torch.Tensor.__matmul__

    def rounded(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Products as oneDNN may compute them: of float32 operands rounded to `dtype`."""
        if left.dtype == torch.float64:
            return product(left, right)
        return product(left.to(dtype).double(), right.to(dtype).double()).float()

    monkeypatch.setattr(precision, "processor", {"vendor_id": "AuthenticAMD"}.get)
    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    enable_fast_matmul(CPU)
    assert torch.get_float32_matmul_precision() == expected


@pytest.mark.parametrize(("vendor", "device"), [("GenuineIntel", CPU), ("", CPU), ("AuthenticAMD", "cuda")])
def test_other_processors_and_devices_keep_the_default(
    vendor: str, device: torch.device | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "processor", {"vendor_id": vendor}.get)
    enable_fast_matmul(torch.device(device))
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(("before", "after"), [(None, "128"), ("7", "7")])
def test_the_primitive_cache_of_onednn_is_limited(
    before: str | None, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {} if before is None else {CAPACITY: before}
    monkeypatch.setattr(os, "environ", environment)
    enable_fast_matmul(torch.device("cuda"))
    assert environment.get(CAPACITY) == before
    enable_fast_matmul(CPU)
    assert environment == {CAPACITY: after}
