"""Collectives of the process group that torchrun starts: numbers, objects, rows and gradients, and joint failure.

    torchrun --nproc_per_node 4 method/train.py ...

On CPUs everything uses gloo; between GPUs tensors use NCCL and everything else gloo. Letters: N rows of all ranks,
D width.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from method.runtime.errors import EXIT_INPUT, InputError, PeerFailed, Stopped
from method.runtime.processes import SINGLE_PROCESS, Processes

_Value = TypeVar("_Value")

_OK, _SIGNALLED = 0, 128
# A dead rank is noticed at once; this bounds the wait for one whose disk is slow.
_TIMEOUT = timedelta(hours=1)
# torchrun and job schedulers send SIGKILL 30 s after SIGTERM.
_SECONDS_TO_STOP = 25.0


@contextlib.contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join torchrun's process group, and leave it together at the end; `SINGLE_PROCESS` without torchrun.

    InputError when there are more processes on this machine than GPUs, or when the other ranks cannot be reached.
    """
    if "LOCAL_RANK" not in os.environ:
        yield SINGLE_PROCESS
        return
    gpus, local_rank = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    if gpus:
        _expect_gpus(gpus, local_rank)
        torch.cuda.set_device(local_rank)
    _exit_in_time()
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"torchrun: the other processes cannot be reached ({str(error).splitlines()[0]})") from error
    group = _Group()
    yield group
    # Leave together: destroying the group could wait for a rank that has died, and if a rank that left early failed
    # while exiting, torchrun would kill the others in the middle of their work. gloo does not wait for
    # an empty message.
    group.exchange([0])
    dist.destroy_process_group()


def _expect_gpus(gpus: int, local_rank: int) -> None:
    """One GPU for each process of this machine; local rank 0 reports the error."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", local_rank + 1))
    if processes > gpus and local_rank > 0:
        raise PeerFailed(EXIT_INPUT)
    if processes > gpus:
        raise InputError(f"torchrun: {processes} processes on a machine with {gpus} usable GPUs, expected one for each")


def _exit_in_time() -> None:
    """Exit when asked to stop while waiting for ranks that never answer.

    Python runs a signal handler only between two bytecodes, hence not inside a blocking collective; the wake-up file
    descriptor is written at once.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def wait_for_signal() -> None:
        while True:
            number = os.read(read, 1)[0]
            if number in (signal.SIGINT, signal.SIGTERM):
                time.sleep(_SECONDS_TO_STOP)
                os._exit(128 + number)

    threading.Thread(target=wait_for_signal, daemon=True).start()


class _Group(Processes):
    """A rank of the process group."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.count = dist.get_world_size()
        self.local_rank = int(os.environ["LOCAL_RANK"])
        self._raised = False

    def exchange(self, numbers: Sequence[int]) -> list[list[int]]:
        own = torch.tensor(numbers, dtype=torch.long)
        gathered = [torch.empty_like(own) for _ in range(self.count)]
        with self.connected():
            dist.all_gather(gathered, own)
        return [values.tolist() for values in gathered]

    @contextlib.contextmanager
    def raise_on_all(self) -> Iterator[None]:
        failure: InputError | Stopped | None = None
        try:
            yield
        except InputError as error:
            if self._raised:  # by a nested block
                raise
            failure, code = error, EXIT_INPUT
        except Stopped as stop:
            failure, code = stop, _SIGNALLED + stop.signal
        else:
            code = _OK
        codes = [code for (code,) in self.exchange([code])]
        if EXIT_INPUT in codes:
            self._raise_input_error(str(failure), codes.index(EXIT_INPUT))
        if any(codes):
            raise Stopped(max(codes) - _SIGNALLED, "") from failure

    def _raise_input_error(self, message: str, source: int) -> NoReturn:
        message = self.gather(message)[source]
        self._raised = True
        if self.is_first:
            raise InputError(message)
        raise PeerFailed(EXIT_INPUT)

    def in_lockstep(self, batches: Iterable[_Value]) -> Iterable[_Value]:
        iterator = iter(batches)
        while True:
            with self.raise_on_all():
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch

    def broadcast(self, value: _Value) -> _Value:
        values: list[Any] = [value]
        with self.connected():
            dist.broadcast_object_list(values, device=torch.device("cpu"))
        return values[0]

    def gather(self, value: _Value) -> list[_Value]:
        values: list[Any] = [None] * self.count
        with self.connected():
            dist.all_gather_object(values, value)
        return values

    def rows(self, own_ND: Tensor, counts: Sequence[int], partial: bool) -> Tensor:
        return _Rows.apply(own_ND, counts, self, partial)

    def sum(self, part: Tensor) -> Tensor:
        return _Sum.apply(part, self)

    def add_gradients(self, weights: Iterable[Tensor]) -> None:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        flat = _flatten_dense_tensors(gradients)
        self.all_reduce(flat)
        torch._foreach_copy_(gradients, _unflatten_dense_tensors(flat, gradients))

    def all_reduce(self, values: Tensor) -> None:
        """Replace the values by their sum over all ranks."""
        with self.connected():
            dist.all_reduce(values)

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """Raise PeerFailed when the other ranks cannot be reached; torchrun reports which of them died."""
        try:
            yield
        except RuntimeError as error:
            reason = re.sub(r"^\[[^]]*] ", "", str(error)).split(". ")[0].splitlines()[0]
            line = f"error: the other processes of this training cannot be reached ({reason}); has one of them died?"
            raise PeerFailed(1, line if self.is_first else "") from error


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own_ND: Tensor, counts: Sequence[int], group: _Group, partial: bool) -> Tensor:
        ctx.counts, ctx.group, ctx.partial = counts, group, partial
        padded_ND = own_ND.new_zeros(max(counts), *own_ND.shape[1:])
        padded_ND[: len(own_ND)] = own_ND
        gathered = [torch.empty_like(padded_ND) for _ in counts]
        with group.connected():
            dist.all_gather(gathered, padded_ND)
        return torch.cat([rows[:count] for rows, count in zip(gathered, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.partial:
            grad_ND = grad_ND.clone(memory_format=torch.contiguous_format)
            ctx.group.all_reduce(grad_ND)
        return grad_ND.split(list(ctx.counts))[ctx.group.rank], None, None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: _Group) -> Tensor:
        whole = part.clone()
        group.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, grad_whole: Tensor) -> tuple[Tensor, None]:
        return grad_whole, None
