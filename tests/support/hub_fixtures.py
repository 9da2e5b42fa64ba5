# SPDX-License-Identifier: Apache-2.0
"""Fixtures around the loopback Hub, for modules that name this one in `pytest_plugins`."""

import sys

import pytest

from support.hub_ensemble import PROFILES, REPO, files_of, write_publishable
from support.hub_server import WRITE, loopback_hub


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
        if "transformers.utils.hub" in sys.modules:  # its client keeps to the Hub that it asked first
            monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        yield server


@pytest.fixture
def waits(monkeypatch):
    """How long anybody wanted to sleep; nobody does."""
    asked = []
    monkeypatch.setattr("time.sleep", asked.append)
    return asked


@pytest.fixture
def folder(tmp_path):
    """A folder that is ready to be pushed."""
    root = tmp_path / "ensemble"
    write_publishable(root)
    return root


@pytest.fixture
def published(hub, tmp_path):
    """A repository with files for two kinds of hardware, and the local folder it was made from."""
    root = tmp_path / "origin"
    write_publishable(root, profiles=PROFILES)
    return hub.create(REPO, files_of(root)), root
