"""Ranges of items on threads."""

import os
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from method.ops.cpu.threads import even_ranges, run_in_threads


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 9))
def test_ranges_cover_all_items_and_are_about_even(sizes: list[int], count: int) -> None:
    ranges = even_ranges(sizes, count)
    assert [item for start, stop in ranges for item in range(start, stop)] == list(range(len(sizes)))
    assert len(ranges) <= count
    for start, stop in ranges:
        assert stop > start
        assert sum(sizes[start:stop]) <= sum(sizes) / count + max(sizes)


@pytest.mark.parametrize(("min_size", "expected"), [(1, 2), (6, 1)])
def test_small_work_is_not_divided(min_size: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    threads: set[int] = set()
    done: list[int] = []

    def work(start: int, stop: int) -> None:
        threads.add(threading.get_ident())
        done.extend(range(start, stop))

    run_in_threads(work, [5, 5], min_size)
    assert sorted(done) == [0, 1]
    assert len(threads) == expected


@pytest.mark.parametrize("raising", [0, 1])
def test_an_error_in_any_range_is_raised_after_all_have_finished(raising: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    done = []

    def work(start: int, stop: int) -> None:
        if start == raising:
            raise ValueError(f"in range {start}")
        done.append(start)

    with pytest.raises(ValueError, match=f"in range {raising}"):
        run_in_threads(work, [1, 1], 1)
    assert done == [1 - raising]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_starts_its_own_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    run_in_threads(lambda start, stop: None, [1, 1], 1)
    child = os.fork()
    if child == 0:
        done: list[int] = []
        run_in_threads(lambda start, stop: done.append(start), [1, 1], 1)
        os._exit(0 if sorted(done) == [0, 1] else 1)
    assert os.waitpid(child, 0)[1] == 0
