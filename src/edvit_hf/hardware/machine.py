# SPDX-License-Identifier: Apache-2.0
"""Which kind of hardware this machine is, and what of it this process may use (cores) and holds (memory)."""

import contextlib
import ctypes
import logging
import os
import platform
import sys
from pathlib import Path, PurePosixPath

from edvit_hf.errors import EDViTError, ManifestError

logger = logging.getLogger(__name__)

# Of glibc's mallopt: M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD.
_SMALL_HEAP = {-8: 2, -3: 1 << 17, -1: 1 << 17}

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")
_MAX_REPEATS = 10_000
# Board names as the kernel's device tree gives them; the longer name first where one contains another.
_BOARDS = {
    "Raspberry Pi 4 Model B": "raspberry-pi-4b",
    "Raspberry Pi 5": "raspberry-pi-5",
    "Orin Nano": "jetson-orin-nano",
    "Jetson Nano": "jetson-nano",
}


def detect_profile(
    *, machine: str | None = None, cpuinfo: Path = Path("/proc/cpuinfo"), board: Path = Path("/proc/device-tree/model")
) -> str:
    """Name the profile of this machine.

    x86-64 is told by the CPU flags the kernel lists; where it lists none (macOS, Windows), or lists no AVX2, the
    answer is "x86-avx2" with a warning. arm64 is told by the board's name, "arm64" for an unknown board.

    Raises:
        ManifestError: On any other architecture: there is no int8 preset for it.
    """
    machine = (machine or platform.machine()).lower()
    if machine in ("arm64", "aarch64"):
        name = board.read_text(encoding="utf-8", errors="replace") if board.is_file() else ""
        return next((profile for known, profile in _BOARDS.items() if known in name), "arm64")
    if machine not in ("x86_64", "amd64"):
        from edvit_hf.hardware.profiles import load_profiles  # here, so that what is timed alone imports little

        raise ManifestError(
            f"No device profile fits the architecture {machine!r}; known: {', '.join(load_profiles())}. "
            f"Name the profile of the target device."
        )
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    values = {key.strip(): value.split() for key, value in fields.items()}
    flags = set(values.get("flags", []))
    if "N100" in values.get("model name", []):
        return "intel-n100"
    if "avx512_vnni" in flags:
        return "x86-avx512-vnni"
    if {"avx512f", "avx512bw"} <= flags:
        return "x86-avx512"
    if "avx2" not in flags:
        logger.warning("profile: no AVX2 flag found in %s; assuming x86-avx2", cpuinfo)
    return "x86-avx2"


def memory_mib(field: str) -> float | None:
    """`VmRSS` (resident now) or `VmHWM` (at most so far) of this process in MiB; None where the kernel does not tell.

    Unlike getrusage, whose maximum starts at what the parent process held.
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii", errors="replace").splitlines() if status.is_file() else []
    found = next((line for line in lines if line.startswith(f"{field}:")), None)
    return None if found is None else round(int(found.split()[1]) / 2**10, 1)


def machine_memory_bytes() -> float:
    """Main memory of this machine; infinity where the system does not tell."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf; others may lack the names
        return float("inf")


def usable_cores() -> int:
    """Logical cores that this process may be on, at most the whole ones in its control group's quota; at least 1.

    Of a quota of 1.5 cores one thread is all that can always run. Two would use it up before each period (0.1 s) is
    over, and then both stand still for the rest, mostly in the middle of an answer.

    Quotas are those of cgroup v2, where what every group above allows counts too. Those of v1 are not looked for.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([cores, *_quotas()])))


def check_threads(threads: int) -> None:
    """Raise an EDViTError unless this process has a core for each of the threads that something is timed on."""
    usable = usable_cores()
    if not 1 <= threads <= usable:
        raise EDViTError(
            f"`threads` must lie between 1 and the {usable} cores that this process may use, got {threads}. More "
            "threads than cores only wait for each other. Correct it, or leave it out."
        )


def check_repeats(repeats: int, why: str) -> None:
    """Raise an EDViTError unless something can be timed so often."""
    if isinstance(repeats, bool) or not isinstance(repeats, int) or not 1 <= repeats <= _MAX_REPEATS:
        raise EDViTError(
            f"`repeats` must be a whole number of at least 1, got {repeats!r:.60}: {why}; at most {_MAX_REPEATS}."
        )


def _quotas() -> list[float]:
    """Cores that this process's group and those above it allow, as far as they set a limit and can be read."""
    try:
        lines = _OWN_GROUP.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    if own is None:
        return []
    # In a container `/` is its own group as a rule; what lies outside of what it sees begins with `..`.
    path = PurePosixPath("/") if ".." in PurePosixPath(own).parts else PurePosixPath(own)
    found = []
    for group in (path, *path.parents):
        try:
            quota, _, period = (_GROUPS / group.relative_to("/") / "cpu.max").read_text(encoding="ascii").partition(" ")
            found.append(int(quota) / int(period))
        except (OSError, ValueError, ZeroDivisionError):  # no limit is the word `max`, and the root has no file
            continue
    return found


def give_memory_back() -> None:
    """Have this process return freed memory to the system at once; call it before threads start.

    glibc keeps it otherwise, in an arena of each thread: a server that reads bodies of many sizes swells for hours.
    Other C libraries are left as they are.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        set_option = ctypes.CDLL(None).mallopt
        for option, value in _SMALL_HEAP.items():
            set_option(option, value)
