"""The ranks of a distributed run, and the interface of what they exchange.

Without torchrun there is one rank, `SINGLE_PROCESS`, for which every collective is the identity.
`process_group.py` implements them over torch.distributed. Letters: N rows of all ranks, D width.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from method.runtime.errors import InputError

_Value = TypeVar("_Value")


class Processes:
    """A single process.

    rank: 0 for the rank that alone writes files and logs. count: the world size. local_rank: the rank on this machine,
    None without torchrun.
    """

    rank: int = 0
    count: int = 1
    local_rank: int | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone writes files and logs."""
        return self.rank == 0

    def exchange(self, numbers: Sequence[int]) -> list[list[int]]:
        """All-gather integers; every rank must give the same number of them. Returns one list a rank."""
        return [list(numbers)]

    @contextlib.contextmanager
    def raise_on_all(self) -> Iterator[None]:
        """Raise InputError or Stopped on every rank when one rank raises it in this block, which all ranks enter.

        Rank 0 raises the InputError, so that it is reported once; the others raise PeerFailed.
        """
        yield

    def in_lockstep(self, batches: Iterable[_Value]) -> Iterable[_Value]:
        """Yield batches, equally many on every rank; a batch that fails, or Stopped, is raised on all ranks."""
        return batches

    def broadcast(self, value: _Value) -> _Value:
        """The value of rank 0."""
        return value

    def gather(self, value: _Value) -> list[_Value]:
        """The values of all ranks, in rank order."""
        return [value]

    def rows(self, own_ND: Tensor, counts: Sequence[int], partial: bool) -> Tensor:
        """All-gather rows, in rank order. Differentiable: gradients reach this rank's own rows.

        Args:
            own_ND: rows of this rank.
            counts: number of rows of each rank.
            partial: True if each rank computes a different part of the loss from the rows, so that their gradients are
                summed; False if all ranks compute the same loss.
        """
        return own_ND

    def sum(self, part: Tensor) -> Tensor:
        """All-reduce a sum from which every rank computes the same loss. Differentiable."""
        return part

    def add_gradients(self, weights: Iterable[Tensor]) -> None:
        """All-reduce the gradients of the weights; every rank has gradients for the same weights."""


SINGLE_PROCESS = Processes()


def expect_one_process(what: str) -> None:
    """InputError when torchrun has started several processes of a program that does not distribute its work.

    Every rank raises it: torchrun ends the others as soon as any of them has ended.
    """
    if "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError(f"{what} runs in one process; start it without torchrun")


def count_processes() -> int:
    """The world size of this program."""
    dist = torch.distributed
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
