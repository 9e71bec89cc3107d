"""`--compile`: what stands between the matrix products of a training step as few kernels, by `torch.compile`.

A GPU reads and writes its memory for every small operation of a step, and each has to be started. Compiled, a chain of
them is one kernel. The modules name their methods that are such chains in `COMPILED`; these take and give tensors.
They are compiled once for all lengths: no two batches have the same, which also leaves CUDA graphs nothing to replay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._triton import has_triton

from method.runtime import hardware
from method.runtime.errors import InputError

# A method is compiled for each module that has it and for each of its precisions; PyTorch gives up after 8.
_MOST_VERSIONS = 64


def expect_compiler(device: torch.device) -> None:
    """InputError where nothing would be gained by `--compile`, or where there is nothing to compile with."""
    if not hardware.is_gpu(device):
        raise InputError("--compile is for a GPU: a step on a CPU is quicker with what cannot be compiled")
    if not has_triton():
        raise InputError("--compile needs Triton, which PyTorch for CUDA brings along on Linux: pip install triton")


def compile_parts(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
    """Let the methods named in `COMPILED` run compiled while their module is trained, and as they are otherwise.

    Each is compiled when it is first called, as a whole: PyTorch raises where it cannot.

    Args:
        model: whose modules are changed; its weights and their names stay.
        backend: of `torch.compile`.
    """
    import torch._dynamo.config as compiler  # here: to load it takes seconds, and few ask for it

    compiler.cache_size_limit = _MOST_VERSIONS
    for module in model.modules():
        for name in getattr(module, "COMPILED", ()):
            setattr(module, name, _compiled_in_training(module, getattr(module, name), backend))


def _compiled_in_training(
    module: nn.Module, method: Callable[..., Any], backend: str | Callable[..., Any]
) -> Callable[..., Any]:
    compiled = torch.compile(method, dynamic=True, fullgraph=True, backend=backend)
    return lambda *arguments: (compiled if module.training else method)(*arguments)
