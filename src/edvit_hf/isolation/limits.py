# SPDX-License-Identifier: Apache-2.0
"""What a child process may take of the machine: it limits itself before it touches anything of strangers."""

import contextlib
import ctypes
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edvit_hf.errors import EDViTError
from edvit_hf.strict import number, whole_number

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38


@dataclass(frozen=True, kw_only=True)
class ChildLimits:
    """The most that a child may take.

    What the system cannot limit is left out: Windows has none of them but the parent's own watch on the time, macOS
    does not hold to `memory_bytes`. The time that the parent waits is the limit that holds everywhere.

    Attributes:
        memory_bytes: Address space beyond what the child has when it is loaded.
        cpu_seconds: Of one question, and of the start.
        open_files: At a time.
        may_start_threads: Whether it may start threads and processes. Root may whatever is set.
        niceness: Added to the parent's: what a child computes comes after what the parent does.
    """

    memory_bytes: int = 1 << 30
    cpu_seconds: float = 30.0
    open_files: int = 64
    may_start_threads: bool = False
    niceness: int = 5

    def __post_init__(self) -> None:
        """Check ranges."""
        whole_number("memory_bytes", self.memory_bytes, 1 << 20, "a child could not even start", EDViTError)
        whole_number("open_files", self.open_files, 16, "libraries open files", EDViTError)
        number("cpu_seconds", self.cpu_seconds, "(0, 86400]", "a question would have no time, or no end", EDViTError)
        number("niceness", self.niceness, "[0, 19]", "a child comes after its parent", EDViTError)


def apply(limits: ChildLimits, parent: int) -> None:
    """Put limits on this process for good. It ends with its parent (process id `parent`), whatever it is doing."""
    if sys.platform == "win32":
        return
    _bind_to_parent(parent)
    import resource

    _limit(resource, "RLIMIT_CORE", 0)
    _limit(resource, "RLIMIT_FSIZE", 0)  # pipes are no files
    _limit(resource, "RLIMIT_NOFILE", limits.open_files)
    if not limits.may_start_threads:
        _limit(resource, "RLIMIT_NPROC", 0)
    _limit(resource, "RLIMIT_AS", _address_space() + limits.memory_bytes)
    with contextlib.suppress(OSError):
        os.nice(limits.niceness)
    allow_cpu(limits.cpu_seconds)


def allow_cpu(seconds: float) -> None:
    """So much CPU time from now on; then SIGXCPU ends this process."""
    if sys.platform == "win32":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(time.process_time() + seconds) + 1  # whole seconds
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _limit(resource: Any, name: str, value: int) -> None:
    """Both limits, so that it cannot be raised again; where one of the system's own is lower, that stays."""
    kind = getattr(resource, name, None)
    if kind is None:
        return
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    with contextlib.suppress(OSError, ValueError):  # a system that knows the name and not the limit
        resource.setrlimit(kind, (value, value))


def _bind_to_parent(parent: int) -> None:
    if sys.platform != "linux":
        return  # the end of the pipe is noticed between two questions
    with contextlib.suppress(OSError, AttributeError):
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it ended before it could be watched
        os._exit(1)


def _address_space() -> int:
    """Bytes of this process now; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
