"""The network's part of the environment, for tests that set it."""

import os

import pytest


def clear_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what the tester's own environment says of the network."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("SSL", "HF_HUB", "HF_ENDPOINT")):
            monkeypatch.delenv(name)
