"""The network variables of the environment, for tests that set them."""

import os

import pytest


def clear_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the network variables of the tester's environment."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("SSL", "HF_HUB", "HF_ENDPOINT")):
            monkeypatch.delenv(name)
