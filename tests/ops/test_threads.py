"""Parts of work on threads."""

import os
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from method.ops.cpu.threads import even_parts, in_threads


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 9))
def test_parts_are_all_items_and_about_even(sizes: list[int], count: int) -> None:
    parts = even_parts(sizes, count)
    assert [item for first, end in parts for item in range(first, end)] == list(range(len(sizes)))
    assert len(parts) <= count
    for first, end in parts:
        assert end > first
        assert sum(sizes[first:end]) <= sum(sizes) / count + max(sizes)


@pytest.mark.parametrize(("worth", "expected"), [(1, 2), (6, 1)])
def test_a_thread_is_called_for_what_it_is_worth(worth: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    threads: set[int] = set()
    done: list[int] = []

    def work(first: int, end: int) -> None:
        threads.add(threading.get_ident())
        done.extend(range(first, end))

    in_threads(work, [5, 5], worth)
    assert sorted(done) == [0, 1]
    assert len(threads) == expected


@pytest.mark.parametrize("raising", [0, 1])
def test_an_error_of_any_part_is_raised_when_all_have_ended(raising: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    done = []

    def work(first: int, end: int) -> None:
        if first == raising:
            raise ValueError(f"of part {first}")
        done.append(first)

    with pytest.raises(ValueError, match=f"of part {raising}"):
        in_threads(work, [1, 1], 1)
    assert done == [1 - raising]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    in_threads(lambda first, end: None, [1, 1], 1)
    child = os.fork()
    if child == 0:
        done: list[int] = []
        in_threads(lambda first, end: done.append(first), [1, 1], 1)
        os._exit(0 if sorted(done) == [0, 1] else 1)
    assert os.waitpid(child, 0)[1] == 0
