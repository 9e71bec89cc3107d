"""Fixtures shared by several files: the tiny dataset, and runs on it that are trained once per process."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers.runs import EPOCHS, Interruption
from tests.helpers.small_dataset import SmallDataset, own_log_handlers, run_train

# A shell starts background jobs with SIGINT ignored, which the programs of the tests would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _log_of_its_own() -> Iterator[None]:
    """Remove the log handlers of commands called in a test."""
    with own_log_handlers():
        yield


@pytest.fixture
def small(tmp_path: Path) -> SmallDataset:
    """A dataset of the test's own, whose files it may change."""
    return SmallDataset(tmp_path)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> SmallDataset:
    """A dataset that no test changes; each test names its runs itself."""
    return SmallDataset(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="session")
def finished(shared: SmallDataset) -> Path:
    """An uninterrupted run, not to be changed."""
    flags = shared.flags("--n_epoch", str(EPOCHS), "--description", "finished", "--save_scores")
    return run_train(flags, figures=True)


@pytest.fixture(scope="session")
def one_epoch(shared: SmallDataset) -> Path:
    """A run of one epoch, not to be changed."""
    return run_train(shared.flags("--n_epoch", "1", "--description", "one epoch"))


@pytest.fixture
def lowest_for_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random negatives are those that score lowest, on every device and for every branch."""
    monkeypatch.setattr(
        "method.model.losses.random_scores", lambda scores, _: scores.neg().masked_fill(scores.isneginf(), -torch.inf)
    )


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Interruption:
    """Calls a function in the middle of a training step."""
    return Interruption(monkeypatch)
