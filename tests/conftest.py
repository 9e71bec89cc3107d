"""Fixtures that several files of tests share: the tiny dataset, and runs on it that are made once."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers.runs import EPOCHS, Interruption
from tests.helpers.small_dataset import SmallDataset, own_log_handlers, run_train

# A shell starts what is to run in the background with SIGINT ignored, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _log_of_its_own() -> Iterator[None]:
    """What a command called in a test sets up of the log ends with the test."""
    with own_log_handlers():
        yield


@pytest.fixture
def small(tmp_path: Path) -> SmallDataset:
    """A dataset of the test's own, whose files it may spoil."""
    return SmallDataset(tmp_path)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> SmallDataset:
    """A dataset whose files stay as they are; each test names its runs by itself."""
    return SmallDataset(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="session")
def finished(shared: SmallDataset) -> Path:
    """A run that was never interrupted, to be left as it is."""
    flags = shared.flags("--n_epoch", str(EPOCHS), "--description", "finished", "--save_scores")
    return run_train(flags, figures=True)


@pytest.fixture(scope="session")
def one_epoch(shared: SmallDataset) -> Path:
    """The shortest run, to be left as it is."""
    return run_train(shared.flags("--n_epoch", "1", "--description", "one epoch"))


@pytest.fixture
def lowest_for_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where negatives are random, those that score lowest are drawn, by any device and for any branch."""
    monkeypatch.setattr(
        "method.model.losses.random_scores", lambda scores, _: scores.neg().masked_fill(scores.isneginf(), -torch.inf)
    )


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Interruption:
    """Something that happens in the middle of a training step."""
    return Interruption(monkeypatch)
