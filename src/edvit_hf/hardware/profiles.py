# SPDX-License-Identifier: Apache-2.0
"""Device profiles: kinds of hardware, and files with the profile of one machine. Standard library and yaml only."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import yaml

from edvit_hf.errors import ManifestError, did_you_mean
from edvit_hf.storage import read_yaml, whole_file
from edvit_hf.strict import Form, is_finite, number, read_fields, read_strictly

QUANTIZATION_PRESETS = ("arm64", "avx2", "avx512", "avx512_vnni")
STATIC_PRESETS = (*QUANTIZATION_PRESETS, "tensorrt")  # of static int8: a GPU reads other files than the processor
ExportKind = Literal["fp16", "int8", "int8_static"]  # what a profile may ask for besides fp32; int8 is the dynamic one
EXPORT_KINDS: tuple[ExportKind, ...] = get_args(ExportKind)
FIGURES = ("memory_mib", "cores", "sustained_gflops", "watts")
# What the latency model sums up, each with a coefficient in ms per unit: see `hardware.latency.features`.
LATENCY_FEATURES = (
    *("constant", "layers", "linear_gmacs", "attention_gmacs"),
    *("weight_millions", "stream_millions", "ffn_millions", "softmax_millions"),
)
SCHEMA_VERSION = 1  # of a file that holds one profile
_FILE = Form(mapping="a mapping of keys to values", error=ManifestError)


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """One kind of hardware, or one machine that `edvit profile` measured.

    A figure nobody published, or that varies within the kind, is None. Only a measured profile has `latency`.
    """

    name: str
    isa: str  # what decides the kernels: "armv8-a", "armv8.2-a+dotprod", "avx2", "avx512_vnni", ...
    quantization: str  # the int8 preset that suits it, see `QUANTIZATION_PRESETS`
    memory_mib: int | None = None
    cores: int | None = None
    sustained_gflops: float | None = None  # on all cores; `sources` says of what (double-precision HPL, fp32 MatMul)
    watts: float | None = None  # while `sustained_gflops` was measured, or the rated power if the source says so
    sources: dict[str, str]  # figure -> where it was published, how it was measured, or why it is absent
    latency: dict[str, float] | None = None  # `LATENCY_FEATURES` -> ms per unit, onnxruntime fp32 on one thread
    latency_all_cores: dict[str, float] | None = None  # the same on the threads that `provenance` names
    provenance: dict[str, Any] | None = None  # of a measured profile: machine, versions, date, method, residuals
    static_quantization: str | None = None  # preset of static int8, of `STATIC_PRESETS`; None is `quantization`
    export: tuple[str, ...] = ("int8",)  # of `EXPORT_KINDS`, the one that runs best first: what an export writes for it

    def __post_init__(self) -> None:
        """Every figure, and every absence, states its source; numbers are positive."""
        where = f"profile {self.name!r}"
        if not self.name:
            raise ManifestError("A profile needs a name, got an empty one. Fleets name devices by it. Name it.")
        for key, presets in (("quantization", QUANTIZATION_PRESETS), ("static_quantization", (*STATIC_PRESETS, None))):
            if getattr(self, key) not in presets:
                raise ManifestError(
                    f"{where}: `{key}` must be one of {presets}, got {getattr(self, key)!r}. int8 files would be made "
                    "for hardware that nobody knows. Correct it."
                )
        if not set(self.export) <= set(EXPORT_KINDS) or len(set(self.export)) != len(self.export):
            raise ManifestError(
                f"{where}: `export` must list what an export writes for it besides fp32, each of "
                f"{', '.join(EXPORT_KINDS)} at most once, got {self.export!r:.80}. The devices would get other files "
                "than were meant. Correct it, or leave `export` out for dynamic int8."
            )
        for figure in FIGURES:
            value = getattr(self, figure)
            if value is not None and not (is_finite(value) and value > 0):
                raise ManifestError(f"{where}: `{figure}` must be positive or null, got {value!s:.40}.")
            if not self.sources.get(figure):
                raise ManifestError(
                    f"{where}: `{figure}` has no entry under `sources`. A figure without a source would be a guess. "
                    "Say where it was published, or why it is null."
                )
        for name in ("latency", "latency_all_cores"):
            coefficients = getattr(self, name)
            if coefficients is not None and sorted(coefficients) != sorted(LATENCY_FEATURES):
                raise ManifestError(
                    f"{where}: `{name}` must hold the coefficients {sorted(LATENCY_FEATURES)}, got "
                    f"{sorted(coefficients)!r:.200}. A missing term would be taken for free. Measure again with "
                    "`edvit profile`."
                )
            for feature, value in (coefficients or {}).items():
                number(f"{name}.{feature}", value, "[0, inf)", "latencies grow with the model", ManifestError)

    @property
    def static_preset(self) -> str:
        """The preset of static int8 files that suits it."""
        return self.static_quantization or self.quantization


@cache
def load_profiles(path: Path | None = None) -> Mapping[str, DeviceProfile]:
    """Read the device profiles, by name; those that ship with the library, unless another file is given.

    Raises:
        ManifestError: If the file breaks its format.
    """
    path = path or Path(__file__).with_name("devices.yaml")
    data = _read_yaml(path)
    found = {}
    for name, entry in read_strictly(dict[str, dict[str, Any]], data, path.name, _FILE).items():
        found[name] = read_strictly(DeviceProfile, {"name": name, **entry}, f"{path.name}.{name}", _FILE)
    return MappingProxyType(found)


def unknown_profile(name: str, also: Iterable[str] = ()) -> str | None:
    """What to say of a kind of hardware that nobody knows, for the caller's own error; None if it is known.

    `also` are names beside those of devices.yaml: an ensemble may be of a later version's.
    """
    known = sorted({*load_profiles(), *also})
    if name in known:
        return None
    return (
        f"Expected a kind of hardware ({', '.join(known)}), got {name!r:.100}.{did_you_mean(name, known)} No file is "
        "made for it. Correct the name; `edvit doctor` tells that of this machine."
    )


def load_profile(path: str | Path) -> DeviceProfile:
    """Read the profile of one machine, as `edvit profile` writes it.

    Raises:
        ManifestError: If the file is absent, damaged, of another format, or holds a figure that cannot be.
    """
    path = Path(path)
    data = _read_yaml(path)
    remedy = "Plans made with it would be wrong. Measure the device again: `edvit profile --output " + path.name + "`."
    if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
        found = data.get("schema_version") if isinstance(data, dict) else type(data).__name__
        raise ManifestError(
            f"{path.name}: expected the profile of one machine with `schema_version: {SCHEMA_VERSION}`, "
            f"got {found!r}. {remedy}"
        )
    entry = {key: value for key, value in data.items() if key != "schema_version"}
    try:
        if absent := [figure for figure in FIGURES if figure not in entry]:
            raise ManifestError(f"`{absent[0]}` is missing; where it is not known it is null.")
        return DeviceProfile(**read_fields(DeviceProfile, entry, form=_FILE))
    except ManifestError as error:
        raise ManifestError(f"{path.name}: {error} {remedy}") from error


def save_profile(profile: DeviceProfile, path: str | Path) -> None:
    """Write a profile that `load_profile` reads; the file appears complete or not at all."""
    path = Path(path)
    text = yaml.safe_dump(profile_dict(profile), sort_keys=False, width=120)
    with whole_file(path) as partial:
        partial.write_text(
            "# Measured by `edvit profile`. A fleet names this file as a device's profile.\n" + text, "utf-8"
        )


def profile_dict(profile: DeviceProfile) -> dict[str, Any]:
    """A profile as plain values, with the version of the format."""
    return {"schema_version": SCHEMA_VERSION, **asdict(profile)}


def _read_yaml(path: Path) -> Any:
    try:
        return read_yaml(path)
    except FileNotFoundError as error:
        raise ManifestError(
            f"Expected a device profile at {path}, found no file. Without it nothing is known of the device. "
            f"Write one on the device with `edvit profile --output {path.name}`, or name a kind of hardware of "
            f"devices.yaml."
        ) from error
    except (OSError, ValueError) as error:
        raise ManifestError(
            f"{path.name}: expected device profiles as YAML, but it cannot be read: {str(error)!r:.200}. "
            f"Nothing in it can be trusted. Correct it, or measure again with `edvit profile`."
        ) from error


def shipped_kind(profile: DeviceProfile) -> str:
    """The name in devices.yaml of the kind of hardware that a profile, measured or shipped, is of.

    A measured one is of the first kind with its instruction set, else of the family with its int8 preset.

    Raises:
        ManifestError: If no kind has that preset.
    """
    known = load_profiles()
    if profile.name in known:
        return profile.name
    same = [name for name, kind in known.items() if kind.quantization == profile.quantization]
    if not same:
        raise ManifestError(
            f"profile {profile.name!r}: no kind of hardware in devices.yaml has the int8 preset "
            f"{profile.quantization!r}. Files for it could not be named. Add a kind."
        )
    return next((name for name in same if known[name].isa == profile.isa), same[-1])
