"""Fixtures around the loopback Hub, for modules that name this one in `pytest_plugins`."""

import pytest

from hub_server import WRITE, loopback_hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A running Hub that the client in this process asks, with a token that may write to `lab`."""
    from huggingface_hub import constants

    with loopback_hub() as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
        monkeypatch.setenv("HF_TOKEN", WRITE)
        yield server


@pytest.fixture
def waits(monkeypatch):
    """How long anybody wanted to sleep; nobody does."""
    asked = []
    monkeypatch.setattr("time.sleep", asked.append)
    return asked
