# SPDX-License-Identifier: Apache-2.0
"""Processes that have the heavy imports already, which take a fresh interpreter five seconds.

One server for all workers of a test run, started by whoever needs it first. It forks a process for every request:
either with `stock` packages alone (torch and transformers, nothing of ours), or with `ours` imported too and a graph
drawn. It ends by itself when the run has.
"""

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

STOCK = ("torch", "scipy.optimize", "transformers.modeling_utils", "transformers.pipelines")
OURS = (
    "edvit_hf.recipe.running",
    "edvit_hf.recipe.stages.evaluate",
    "edvit_hf.export.ensemble",
    "edvit_hf.card.render",
    "edvit_hf.cli",
    "matplotlib.pyplot",
    "sklearn.datasets",
    "accelerate",
    "onnxscript",
    "onnxruntime",
    "torch.onnx._internal.exporter._core",
    "transformers.exporters.exporter_onnx",
    "pytest",
    "support.warm_export",
)
KINDS = {"stock": STOCK, "ours": OURS}


class Process:
    """A process that runs; like `subprocess.Popen`."""

    def __init__(self, code, *arguments, kind="ours", env=None, cwd=None, out=None, err=None):
        """Run `code` as `python -c code *arguments` would; `out` and `err` are open files, else nothing is kept."""
        told = {"code": code, "arguments": [str(each) for each in arguments], "cwd": str(cwd or Path.cwd())}
        with tempfile.TemporaryFile("w+") as request, Path(os.devnull).open("w") as nowhere:
            json.dump({**told, "env": dict(os.environ if env is None else env)}, request)
            request.flush()
            self._answers = _connected(kind)
            socket.send_fds(
                self._answers, [b"."], [file.fileno() for file in (request, out or nowhere, err or nowhere)]
            )
        self._lines = self._answers.makefile("rb", buffering=0)  # what is not yet read is seen by `poll`
        self.pid = int(self._lines.readline() or _gone())
        self.returncode = None

    def wait(self, timeout=200):
        """The exit code, negative where a signal ended it; whoever takes longer is killed."""
        if self.returncode is None:
            self._answers.settimeout(timeout)
            try:
                self.returncode = int(self._lines.readline() or _gone())
            except TimeoutError as error:
                self.kill()
                raise AssertionError(f"the process hangs: nothing in {timeout} s") from error
            finally:
                self._lines.close()
                self._answers.close()
        return self.returncode

    def poll(self):
        """The exit code, or None while it runs."""
        is_over = self.returncode is not None or select.select([self._answers], [], [], 0)[0]
        return self.wait() if is_over else None

    def kill(self):
        """Send SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def run_ready(code, *arguments, **options):
    """Run to the end, and return the exit code and what was printed: like `subprocess.run`."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        returncode = Process(code, *arguments, out=out, err=err, **options).wait()
        printed = [file.seek(0) or file.read() for file in (out, err)]
    return subprocess.CompletedProcess(code, returncode, *printed)


def _gone():
    raise AssertionError(f"the server that forks processes is gone. It said: {(_FOLDER / 'said').read_text()[-3000:]}")


_FOLDER = Path(os.environ.get("HF_HOME", "")) / "ready"  # conftest.py: a folder of this run, known to every worker
_SERVERS = []


def _connected(kind):
    """A connection to the server, which is started where none runs yet."""
    _FOLDER.mkdir(exist_ok=True)
    with (_FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (_FOLDER / "started").exists():
            _start()
            (_FOLDER / "started").touch()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(_FOLDER / kind))
    return connection


def _start():
    with contextlib.ExitStack() as stack:
        said = stack.enter_context((_FOLDER / "said").open("w"))  # not the pipes of whoever starts it: they would stay
        listeners = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in KINDS]
        for kind, listener in zip(KINDS, listeners, strict=True):
            listener.bind(str(_FOLDER / kind))
            listener.listen(16)
        numbers = [listener.fileno() for listener in listeners]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "EDVIT_NUM_THREADS": "1"}
        env["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in sys.path if path))
        command = [sys.executable, __file__, *map(str, numbers)]
        streams = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": said}
        _SERVERS.append(subprocess.Popen(command, env=env, pass_fds=numbers, start_new_session=True, **streams))


# Below: the server.


def _import(kind):
    for name in KINDS[kind]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # none of it is garbage; looking through it would copy the memory that forks share


def _is_asked(listener):
    """Wait until somebody connects; False if the run ends before."""
    while not select.select([listener], [], [], 1.0)[0]:
        try:
            os.kill(int(os.environ["EDVIT_TESTS"]), 0)
        except ProcessLookupError:
            return False
    return True


def _serve(kind, listener):
    """Fork for everybody who connects; returns what is asked for, and in that fork alone."""
    if not _is_asked(listener):
        os._exit(0)
    _import(kind)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait
    while _is_asked(listener):
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            return _begun(connection)
        connection.close()
    os._exit(0)


def _begun(connection):
    """Fork once more: this process tells how the other ends, which goes on with what is asked for."""
    _, files, *_ = socket.recv_fds(connection, 1, 3)
    pid = os.fork()
    if pid:
        connection.sendall(f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    connection.close()
    with os.fdopen(files[0]) as file:
        file.seek(0)
        asked = json.load(file)
    for number, file in zip((1, 2), files[1:], strict=True):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    sys.argv, sys.path[0] = ["-c", *asked["arguments"]], ""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return asked["code"]


def _main():
    listeners = {kind: socket.socket(fileno=int(number)) for kind, number in zip(KINDS, sys.argv[1:], strict=True)}
    _import("stock")
    kind = "stock" if os.fork() else "ours"
    for other in KINDS.keys() - {kind}:
        listeners[other].close()
    return _serve(kind, listeners[kind])


def _run(code):
    """Run it as the interpreter would, and end as it would, but for taking every module apart, which takes long."""
    number = None
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    except KeyboardInterrupt:
        number = signal.SIGINT
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if number is not None:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    os._exit(0)


if __name__ == "__main__":
    _run(_main())
