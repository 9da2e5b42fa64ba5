"""What this process may use of the machine and holds of it: cores (its control group may have a quota) and memory."""

import os
from pathlib import Path, PurePosixPath

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")


def memory_mib(field: str) -> float | None:
    """`VmRSS` (resident now) or `VmHWM` (at most so far) of this process in MiB; None where the kernel does not tell.

    Unlike getrusage, whose maximum starts at what the parent process held.
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii", errors="replace").splitlines() if status.is_file() else []
    found = next((line for line in lines if line.startswith(f"{field}:")), None)
    return None if found is None else round(int(found.split()[1]) / 2**10, 1)


def usable_cores() -> int:
    """Logical cores that this process may be on, at most the whole ones in its control group's quota; at least 1.

    Of a quota of 1.5 cores one thread is all that can always run. Two would use it up before each period (0.1 s) is
    over, and then both stand still for the rest, mostly in the middle of an answer.

    Quotas are those of cgroup v2, where what every group above allows counts too. Those of v1 are not looked for.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([cores, *_quotas()])))


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
