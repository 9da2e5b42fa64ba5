# SPDX-License-Identifier: Apache-2.0
"""A real browser at the real page: Debian's Chromium driven by Playwright, the Space in a process of its own.

`make test-browser` runs this folder; the default suite leaves it out (`norecursedirs` in pyproject.toml).
"""

import pytest

from support.hub_server import loopback_hub
from support.visitor import Visitor, browsing, serving


@pytest.fixture(scope="session")
def hub():
    """A Hub on loopback, which the Space asks."""
    with loopback_hub() as server:
        yield server


@pytest.fixture(scope="session")
def space(tmp_path_factory, hub):
    """The address of the running Space. What it logs must tell of no error that nobody foresaw."""
    with serving(tmp_path_factory.mktemp("space"), endpoint=hub.url) as (address, log):
        yield address
        said = log.read_text()
    assert "Traceback" not in said, said


@pytest.fixture(scope="session")
def playwright():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="session")
def browser(playwright):
    with browsing(playwright) as started:
        yield started


@pytest.fixture
def visit(browser, space):
    """Opens the page for one more visitor; at the end nothing may have been complained about."""
    visitors = []

    def opened(query="", **settings):
        visitors.append(Visitor(browser, space + query, **settings))
        return visitors[-1]

    yield opened
    for visitor in visitors:
        visitor.context.close()
        assert visitor.complaints == []


@pytest.fixture
def visitor(visit):
    return visit()
