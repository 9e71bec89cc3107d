"""A GPU for machines without one: tensors of PyTorch's device 'meta' stand for those in its memory.

They have a shape and no numbers, so that whatever asks for a number fails by itself, as do most operations that mix
devices. `PretendedGpu` refuses what else would make a program wait for a real GPU, or would fail there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from method.runtime import hardware

GPU = torch.device("meta")

_ops = torch.ops.aten
_COPIES = (_ops._to_copy.default, _ops.copy_.default)
_ASKS_FOR_NUMBERS = {
    _ops._local_scalar_dense.default,
    _ops.equal.default,
    _ops.is_nonzero.default,
    _ops.masked_select.default,
    _ops.nonzero.default,
    _ops._unique2.default,
    _ops.unique_consecutive.default,
}


class Waits(AssertionError):
    """The program would wait for the GPU, or hand it something that lies elsewhere."""


class PretendedGpu(TorchDispatchMode):
    """Within it, what a GPU would be waited for raises, and numbers on their way from it are zeros.

    Args:
        patch: puts back, at the end of the test, what pretends that there is a GPU.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._pinned: list[Tensor] = []  # kept, so that no other tensor takes the memory of one of them
        patch.setattr(hardware, "is_gpu", lambda device: device.type in ("cuda", GPU.type))
        patch.setattr(torch.cuda, "Event", _Event)
        patch.setattr(torch.cuda, "current_stream", lambda device: None)
        patch.setattr(torch, "Generator", _Generator)
        patch.setattr(torch, "tensor", _without_waiting(torch.tensor))

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # in inference mode operations come here before they have been divided into those below
            parts = function.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        if function is _ops.is_pinned.default:
            return self._is_pinned(args[0])
        if function is _ops._pin_memory.default:
            self._pinned.append(args[0].clone())
            return self._pinned[-1]
        if function in _COPIES:
            return self._copy(function, args, kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(on_gpu(tensor) for tensor in tensors):
            if function in _ASKS_FOR_NUMBERS:
                raise Waits(f"{function} asks the GPU")
            # A number on the CPU is handed over with the operation.
            elsewhere = [tensor for tensor in tensors if not on_gpu(tensor) and tensor.dim()]
            if elsewhere:
                raise Waits(f"{function} of tensors on the GPU and the CPU")
        return function(*args, **kwargs)

    def times_pinned(self, shape: torch.Size) -> int:
        """How many tensors of this shape have been put into page-locked memory."""
        return sum(pinned.shape == shape for pinned in self._pinned)

    def _is_pinned(self, tensor: Tensor) -> bool:
        memory = tensor.untyped_storage().data_ptr()
        return any(memory == other.untyped_storage().data_ptr() for other in self._pinned)

    def _copy(self, function: Any, args: Any, kwargs: Any) -> Any:
        """A copy from one device to another must not block, and on the CPU's side needs page-locked memory."""
        is_new = function is _ops._to_copy.default
        source, target = (args[0], kwargs.get("device") or args[0].device) if is_new else (args[1], args[0].device)
        if on_gpu(source) == (torch.device(target).type == GPU.type):
            return function(*args, **kwargs)
        blocks = not (kwargs.get("non_blocking") or (not is_new and len(args) > 2 and args[2]))
        if blocks or not (on_gpu(source) or self._is_pinned(source)):
            raise Waits(f"a copy to {target} that blocks or is not from page-locked memory")
        if not on_gpu(source):
            return function(*args, **kwargs)
        if not is_new:
            raise Waits("a copy from the GPU to memory that need not be page-locked")
        return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)


class NothingAsked(TorchDispatchMode):
    """The same questions refused for real tensors of a CPU, where they cost nothing but would cost a GPU its queue."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        sizes_asked = function is _ops.repeat_interleave.Tensor and not (kwargs or {}).get("output_size")
        masks = function is _ops.index.Tensor and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if function in _ASKS_FOR_NUMBERS or sizes_asked or masks:
            raise Waits(f"{function} would ask a GPU")
        return function(*args, **(kwargs or {}))


def _without_waiting(tensor: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.tensor`, whose copy to a device waits and is seen by no dispatch mode."""

    def made(numbers: Any, **options: Any) -> Tensor:
        if options.get("device") is not None and torch.device(options["device"]) == GPU:
            raise Waits("a copy of a list to the GPU")
        return tensor(numbers, **options)

    return made


class _Generator(torch.Generator):
    """One of the CPU, which meta takes as well as any, having none of its own."""

    def __new__(cls, device: torch.device | str = "cpu") -> _Generator:
        return super().__new__(cls, "cpu" if torch.device(device) == GPU else device)  # type: ignore[call-arg]


class _Event:
    """What marks a place in a queue that does not exist."""

    def __init__(self, enable_timing: bool = False) -> None:
        pass

    def record(self, stream: None) -> None:
        """Mark nothing."""

    def synchronize(self) -> None:
        """Wait for nothing."""


def on_gpu(tensor: Tensor) -> bool:
    """Whether a tensor lies on the pretended GPU."""
    return tensor.device.type == GPU.type
