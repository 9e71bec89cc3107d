"""The hub that the tests of downloads share."""

from collections.abc import Iterator

import pytest

from tests.utils.fake_hub import FakeHub


@pytest.fixture(scope="session")
def running_hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        yield hub


@pytest.fixture
def hub(running_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """A hub with nothing on it yet."""
    running_hub.hosted.clear()
    running_hub.raw.clear()
    running_hub.requests.clear()
    running_hub.status = None
    running_hub.environment(monkeypatch)
    return running_hub
