"""Device profiles: kinds of hardware, and which kind this machine is. Standard library and yaml only."""

import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from edvit_hf.errors import ManifestError

logger = logging.getLogger(__name__)

QUANTIZATION_PRESETS = ("arm64", "avx2", "avx512", "avx512_vnni")
FIGURES = ("memory_mib", "cores", "sustained_gflops", "watts")

# Board names as the kernel's device tree gives them; the longer name first where one contains another.
_BOARDS = {
    "Raspberry Pi 4 Model B": "raspberry-pi-4b",
    "Raspberry Pi 5": "raspberry-pi-5",
    "Orin Nano": "jetson-orin-nano",
    "Jetson Nano": "jetson-nano",
}


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """One kind of hardware. A figure nobody published, or that varies within the kind, is None."""

    name: str
    isa: str  # what decides the kernels: "armv8-a", "armv8.2-a+dotprod", "avx2", "avx512_vnni", ...
    quantization: str  # the int8 preset that suits it, see `QUANTIZATION_PRESETS`
    memory_mib: int | None = None
    cores: int | None = None
    sustained_gflops: float | None = None  # double-precision HPL Linpack on all cores; single precision is faster
    watts: float | None = None  # while `sustained_gflops` was measured, or the rated power if the source says so
    sources: Mapping[str, str]  # figure -> where it was published, or why it is absent

    def __post_init__(self) -> None:
        """Every figure, and every absence, states its source; numbers are positive."""
        if self.quantization not in QUANTIZATION_PRESETS:
            raise ManifestError(
                f"profile {self.name!r}: `quantization` must be one of {QUANTIZATION_PRESETS}, "
                f"got {self.quantization!r}."
            )
        for figure in FIGURES:
            value = getattr(self, figure)
            if value is not None and not value > 0:
                raise ManifestError(f"profile {self.name!r}: `{figure}` must be positive or null, got {value}.")
            if not self.sources.get(figure):
                raise ManifestError(
                    f"profile {self.name!r}: `{figure}` has no entry under `sources`. A figure without a "
                    f"source would be a guess. Say where it was published, or why it is null."
                )


@cache
def load_profiles(path: Path | None = None) -> Mapping[str, DeviceProfile]:
    """Read the device profiles, by name.

    Args:
        path (`Path`): Another profiles file; by default the one that ships with the library.

    Raises:
        ManifestError: If the file breaks its format.
    """
    path = path or Path(__file__).with_name("devices.yaml")
    data: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or not all(isinstance(entry, dict) for entry in data.values()):
        raise ManifestError(f"{path.name}: expected a mapping of profile names to figures.")
    try:
        return MappingProxyType({name: DeviceProfile(name=name, **entry) for name, entry in data.items()})
    except TypeError as error:
        raise ManifestError(f"{path.name}: a profile has a missing or unknown key: {error}.") from error


def detect_profile(
    *,
    machine: str | None = None,
    cpuinfo: Path = Path("/proc/cpuinfo"),
    board: Path = Path("/proc/device-tree/model"),
) -> str:
    """Name the profile of this machine.

    x86-64 is told by the CPU flags the kernel lists; where it lists none (macOS, Windows), or lists no AVX2,
    the answer is "x86-avx2" with a warning. arm64 is told by the board's name, "arm64" for an unknown board.

    Args:
        machine (`str`): Architecture as `platform.machine()` gives it, which is the default.
        cpuinfo (`Path`): The kernel's CPU description.
        board (`Path`): The kernel's board name, on ARM boards.

    Raises:
        ManifestError: On any other architecture: there is no int8 preset for it.
    """
    machine = (machine or platform.machine()).lower()
    if machine in ("arm64", "aarch64"):
        name = board.read_text(encoding="utf-8", errors="replace") if board.is_file() else ""
        return next((profile for known, profile in _BOARDS.items() if known in name), "arm64")
    if machine not in ("x86_64", "amd64"):
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
