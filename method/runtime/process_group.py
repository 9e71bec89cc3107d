"""What several processes tell each other: numbers, words, rows and gradients, and that all of them have to end.

Loaded only where torchrun has started this process. On a CPU everything travels by gloo; between GPUs tensors travel by
NCCL, and what is not on a GPU by gloo. Letters: N rows of all processes, D width.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from method.runtime.errors import EXIT_INPUT, Ended, InputError, Stopped
from method.runtime.processes import Processes

_Value = TypeVar("_Value")

_FINE, _SIGNALLED = 0, 128


class _Group(Processes):
    """One of the processes that torchrun has started."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.count = dist.get_world_size()
        self.local_rank = int(os.environ["LOCAL_RANK"])
        self._refused = False

    def exchange(self, numbers: Sequence[int]) -> list[list[int]]:
        own = torch.tensor(numbers, dtype=torch.long)
        answers = [torch.empty_like(own) for _ in range(self.count)]
        with self.connected():
            dist.all_gather(answers, own)
        return [answer.tolist() for answer in answers]

    @contextlib.contextmanager
    def agreed(self) -> Iterator[None]:
        failure: InputError | Stopped | None = None
        try:
            yield
        except InputError as error:
            if self._refused:  # in a block within this one
                raise
            failure, code = error, EXIT_INPUT
        except Stopped as stop:
            failure, code = stop, _SIGNALLED + stop.signal
        else:
            code = _FINE
        codes = [code for (code,) in self.exchange([code])]
        if EXIT_INPUT in codes:
            self._refuse(str(failure), codes.index(EXIT_INPUT))
        if any(codes):
            raise Stopped(max(codes) - _SIGNALLED, "") from failure

    def _refuse(self, own_words: str, source: int) -> NoReturn:
        words = self.gather(own_words)[source]
        self._refused = True
        if self.is_first:
            raise InputError(words)
        raise Ended(EXIT_INPUT)

    def together(self, batches: Iterable[_Value]) -> Iterable[_Value]:
        iterator = iter(batches)
        while True:
            with self.agreed():
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
        joined = _flatten_dense_tensors(gradients)
        self.add_up(joined)
        torch._foreach_copy_(gradients, _unflatten_dense_tensors(joined, gradients))

    def add_up(self, values: Tensor) -> None:
        """Put the sum over all processes in the place of the values."""
        with self.connected():
            dist.all_reduce(values)

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """End when the others cannot be reached; torchrun says which of them died, and ends those that wait."""
        try:
            yield
        except RuntimeError as error:
            reason = re.sub(r"^\[[^]]*] ", "", str(error)).split(". ")[0].splitlines()[0]
            line = f"error: the other processes of this training cannot be reached ({reason}); has one of them died?"
            raise Ended(1, line if self.is_first else "") from error


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
    def backward(ctx: Any, gradient_ND: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.partial:
            gradient_ND = gradient_ND.clone(memory_format=torch.contiguous_format)
            ctx.group.add_up(gradient_ND)
        return gradient_ND.split(list(ctx.counts))[ctx.group.rank], None, None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: _Group) -> Tensor:
        whole = part.clone()
        group.add_up(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def joined_group() -> Processes:
    """This process as one of the process group that torch has made."""
    return _Group()
