from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from method.serving.batching import Batching


class Answers:
    """Answers numbers by their double; holds the first call until it is released."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered, self.released = threading.Event(), threading.Event()

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        if len(self.batches) == 1:
            self.entered.set()
            assert self.released.wait(10)
        if 13 in numbers:
            raise ValueError("13")
        return [2 * number for number in numbers]


def ask_together(answers: Answers, numbers: Sequence[int], limit: int) -> dict[int, int | Exception]:
    """The first number alone, and all others while it is answered."""
    batching = Batching(answers, limit)
    found: dict[int, int | Exception] = {}

    def ask(number: int) -> None:
        try:
            found[number] = batching(number)
        except ValueError as error:
            found[number] = error

    threads = [threading.Thread(target=ask, args=(number,)) for number in numbers]
    threads[0].start()
    assert answers.entered.wait(10)
    for waiting, thread in enumerate(threads[1:], start=1):
        thread.start()
        while len(batching._waiting) < waiting:
            pass
    answers.released.set()
    for thread in threads:
        thread.join(10)
    return found


def test_requests_that_wait_are_answered_together_and_in_order() -> None:
    answers = Answers()
    assert ask_together(answers, range(10), limit=4) == {number: 2 * number for number in range(10)}
    assert answers.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]


def test_a_request_that_fails_fails_alone() -> None:
    found = ask_together(Answers(), [0, 1, 13, 2], limit=10)
    assert isinstance(found.pop(13), ValueError)
    assert found == {0: 0, 1: 2, 2: 4}


def test_an_interrupted_thread_leaves_the_requests_of_others_to_them() -> None:
    interrupted = False

    def answer(numbers: Sequence[int]) -> list[int]:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            other.start()
            while len(batching._waiting) < 1:
                pass
            raise KeyboardInterrupt
        return [2 * number for number in numbers]

    batching = Batching(answer, 4)
    found: list[int] = []
    other = threading.Thread(target=lambda: found.append(batching(21)))
    with pytest.raises(KeyboardInterrupt):
        batching(1)
    other.join(10)
    assert found == [42]


def test_many_threads_get_their_own_responses() -> None:
    def squares(numbers: Sequence[int]) -> list[int]:
        return [number * number for number in numbers]

    batching = Batching(squares, 3)
    found: list[tuple[int, int]] = []

    def ask(first: int) -> None:
        for number in range(first, first + 50):
            found.append((number, batching(number)))

    threads = [threading.Thread(target=ask, args=(50 * index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(found) == [(number, number * number) for number in range(400)]
