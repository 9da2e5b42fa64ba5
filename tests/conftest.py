# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures: seeds fixed, network refused but for loopback, tiny real models; an environment of its own."""

import atexit
import gc
import os
import re
import shutil
import signal
import socket
import tempfile

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: a thread more would only wait
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("EDVIT_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# A slow or busy machine is no fault of the code; and what passes on one machine must not fail on another because other
# examples were drawn there. New ones, which may find what these do not: pytest --hypothesis-profile=new-examples
for _name, _is_same in (("same-everywhere", True), ("new-examples", False)):
    settings.register_profile(
        _name, deadline=None, derandomize=_is_same, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
    )
settings.load_profile("same-everywhere")

# What the user's shell says must decide no test, nor that of the processes which tests start: proxies stand in the way
# of loopback, tokens and folders reach the code under test, the marks of a build change what packages print and write.
_OF_THE_USER = re.compile(
    r"(all|https?|ftp|no)_proxy|HF_.*|HUGGING.*|EDVIT_(CACHE_DIR|DATA_DIR|SERVE_TOKEN|SPACE.*)|SPACE_ID|GRADIO_.*|ORT_.*"
    r"|CI|GITHUB_ACTIONS|GITLAB_CI|CIRCLECI|TRAVIS|JENKINS_URL|TF_BUILD|BUILD_.*|FORCE_COLOR|PY_COLORS|COLUMNS"
    r"|(LOCAL_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|TORCHELASTIC_.*|ACCELERATE_(?!USE_CPU).*|TRANSFORMERS_.*"
    r"|TTY_(COMPATIBLE|INTERACTIVE)|TRACKIO_.*",
    re.IGNORECASE,
)
if "EDVIT_TESTS" not in os.environ:  # else this is a process that a test or xdist started, and is as they want it
    for _name in filter(_OF_THE_USER.fullmatch, list(os.environ)):
        del os.environ[_name]
    _home = tempfile.mkdtemp(prefix="edvit_tests_")  # not the user's: it may not be writable, and holds their token
    atexit.register(shutil.rmtree, _home, ignore_errors=True)
    os.environ |= {
        "EDVIT_TESTS": str(os.getpid()),  # what a run starts may see whether it goes on
        "HF_HOME": _home,
        "EDVIT_CACHE_DIR": f"{_home}/edvit_hf",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }

os.fsync = lambda handle: None  # no test loses its power: that files are asked for is shown, waiting shows nothing

# A shell's background jobs ignore Ctrl-C, and what nohup starts a hang-up; so would the processes that tests start.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, lambda *_: None)):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)


def pytest_configure(config):
    config.option.loadscopereorder = False  # xdist's own order, by the number of tests: see below


def pytest_collection_modifyitems(items):
    """Files with slow tests begin first: one that begins last keeps one process busy while the others have ended."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    files = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    places = {path: (not any(map(is_slow, tests)), -len(tests)) for path, tests in files.items()}
    items.sort(key=lambda item: (places[item.path], item.path))


def is_slow(item):
    return item.get_closest_marker("slow") is not None


def pytest_collection_finish():
    gc.collect()
    gc.freeze()  # the modules of large libraries are never garbage: they are not gone through again and again


_LOOPBACK = ("127.", "::1", "localhost")
_connect = socket.socket.connect


def _guarded_connect(self, address):
    host = address[0] if isinstance(address, tuple) else ""
    if self.family in (socket.AF_INET, socket.AF_INET6) and not str(host).startswith(_LOOPBACK):
        raise RuntimeError(f"a test tried to reach {address}: tests use no network but loopback")
    return _connect(self, address)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", _guarded_connect)


@pytest.fixture(autouse=True)
def _fixed_seed():
    np.random.seed(0)
    try:
        import torch
    except ImportError:
        return
    torch.default_generator.manual_seed(0)  # `torch.manual_seed` notes for three accelerators where it was called


@pytest.fixture
def teacher():
    from support.tiny_architectures import tiny_vit

    return tiny_vit()


@pytest.fixture(scope="session")
def finished_trip(tmp_path_factory):
    """A tiny recipe taken through the whole trip once: (recipe path, work directory). Read only."""
    from edvit_hf.recipe import load_recipe, run
    from support.shared import built_once
    from support.tiny_recipe import write_tiny_recipe

    def build(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("EDVIT_NUM_THREADS", "1")  # as processes have it whose results are compared with this one's
            run(load_recipe(write_tiny_recipe(folder)), folder / "work", command="edvit run tiny.yaml")

    folder = tmp_path_factory.mktemp("trip")  # each process its own: a work directory is one process's at a time
    shutil.copytree(built_once(tmp_path_factory, "trip", build), folder, dirs_exist_ok=True)
    return folder / "tiny.yaml", folder / "work"
