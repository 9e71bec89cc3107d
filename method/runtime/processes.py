"""The processes that train one model together, as torchrun starts them: one for each GPU, or several on CPUs.

    torchrun --nproc_per_node 4 method/train.py ...

Without torchrun there is one process, and nothing to exchange. Letters: N rows of all processes, D width.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor

from method.runtime.errors import EXIT_INPUT, Ended, InputError

_Value = TypeVar("_Value")

# A process that has died is noticed at once; for one that reads or writes slowly the others wait so long.
_LONGEST_WAIT = timedelta(hours=1)
# torchrun and job schedulers kill 30 s after they have asked to stop.
_SECONDS_TO_STOP = 25.0


class Processes:
    """The only process.

    rank: its number, 0 for the first, which alone writes and speaks. count: how many there are. local_rank: its number
    among those of its machine, None without torchrun.
    """

    rank: int = 0
    count: int = 1
    local_rank: int | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def exchange(self, numbers: Sequence[int]) -> list[list[int]]:
        """What each process gave, in their order; each must give as many numbers."""
        return [list(numbers)]

    @contextlib.contextmanager
    def agreed(self) -> Iterator[None]:
        """End all processes alike when one of them meets InputError or Stopped within this block, which each enters.

        InputError is raised on the first alone, as its words are to be said once, and Ended on the others.
        """
        yield

    def together(self, batches: Iterable[_Value]) -> Iterable[_Value]:
        """Pass on batches, as many on each process; one that cannot be had, or Stopped, ends all alike."""
        return batches

    def broadcast(self, value: _Value) -> _Value:
        """The first process's value."""
        return value

    def gather(self, value: _Value) -> list[_Value]:
        """The values of all processes in their order."""
        return [value]

    def rows(self, own_ND: Tensor, counts: Sequence[int], partial: bool) -> Tensor:
        """The rows of all processes, `counts` of each, in their order.

        Args:
            own_ND: the rows of this process, of which gradients reach this process alone.
            counts: rows of each process.
            partial: whether each process computes another part of the loss from the rows, so that their gradients are
                summed, instead of all the same loss.
        """
        return own_ND

    def sum(self, part: Tensor) -> Tensor:
        """The sum over all processes, from which each computes the same loss."""
        return part

    def add_gradients(self, weights: Iterable[Tensor]) -> None:
        """Sum the gradients of the weights over all processes; each has them for the same weights."""


ALONE = Processes()


@contextlib.contextmanager
def joined_processes() -> Iterator[Processes]:
    """The processes that torchrun has started this one with, each of which waits for the others at the end.

    InputError when there are more of them on this machine than it has GPUs, or when they cannot be reached.
    """
    if "LOCAL_RANK" not in os.environ:
        yield ALONE
        return
    import torch.distributed as dist

    from method.runtime.process_group import joined_group

    gpus, local_rank = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    if gpus:
        _expect_gpus(gpus, local_rank)
        torch.cuda.set_device(local_rank)
    _end_in_time()
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=_LONGEST_WAIT)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"torchrun: the other processes cannot be reached ({str(error).splitlines()[0]})") from error
    group = joined_group()
    yield group
    # Without an agreement to leave, taking the group down could wait for a process that has died; and if one that left
    # early failed on its way out, torchrun would end the others in the middle of their work. A message without content
    # would wait for nobody.
    group.exchange([0])
    dist.destroy_process_group()


def _expect_gpus(gpus: int, local_rank: int) -> None:
    """One GPU for each process of this machine; the first of them says so when there are fewer."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", local_rank + 1))
    if here > gpus and local_rank > 0:
        raise Ended(EXIT_INPUT)
    if here > gpus:
        raise InputError(f"torchrun: {here} processes on a machine with {gpus} usable GPUs, expected one for each")


def expect_one_process(what: str) -> None:
    """InputError when torchrun has started several of a program whose processes share no work.

    Each says so: torchrun ends the others when the first of them, whichever it is, has ended.
    """
    if "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError(f"{what} runs in one process; start it without torchrun")


def count_processes() -> int:
    """How many processes share the work of this program."""
    dist = torch.distributed
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _end_in_time() -> None:
    """End this process when it has been asked to stop but waits for others that never answer.

    Python runs a signal's handler only between two of its own instructions; the bytes come at once.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def watch() -> None:
        while True:
            number = os.read(read, 1)[0]
            if number in (signal.SIGINT, signal.SIGTERM):
                time.sleep(_SECONDS_TO_STOP)
                os._exit(128 + number)

    threading.Thread(target=watch, daemon=True).start()
