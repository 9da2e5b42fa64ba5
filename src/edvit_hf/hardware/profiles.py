"""Device profiles: kinds of hardware, and files with the profile of one machine. Standard library and yaml only."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from edvit_hf.errors import ManifestError, did_you_mean
from edvit_hf.strict import is_finite, load_yaml

QUANTIZATION_PRESETS = ("arm64", "avx2", "avx512", "avx512_vnni")
STATIC_PRESETS = (*QUANTIZATION_PRESETS, "tensorrt")  # of static int8: a GPU reads other files than the processor
EXPORT_KINDS = ("int8", "int8_static", "fp16")  # what a profile may ask for besides fp32; int8 is the dynamic one
FIGURES = ("memory_mib", "cores", "sustained_gflops", "watts")
# What the latency model sums up, each with a coefficient in ms per unit: see `hardware.latency.features`.
LATENCY_FEATURES = (
    "constant", "layers", "linear_gmacs", "attention_gmacs",
    "weight_millions", "stream_millions", "ffn_millions", "softmax_millions",
)  # fmt: skip
SCHEMA_VERSION = 1  # of a file that holds one profile


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
    sources: Mapping[str, str]  # figure -> where it was published, how it was measured, or why it is absent
    latency: Mapping[str, float] | None = None  # `LATENCY_FEATURES` -> ms per unit, onnxruntime fp32 on one thread
    latency_all_cores: Mapping[str, float] | None = None  # the same on the threads that `provenance` names
    provenance: Mapping[str, Any] | None = None  # of a measured profile: machine, versions, date, method, residuals
    static_quantization: str | None = None  # preset of static int8, of `STATIC_PRESETS`; None is `quantization`
    export: Sequence[str] = ("int8",)  # of `EXPORT_KINDS`, the one that runs best first: what an export writes for it

    def __post_init__(self) -> None:
        """Every figure, and every absence, states its source; numbers are positive."""
        if self.static_quantization is not None and self.static_quantization not in STATIC_PRESETS:
            raise ManifestError(
                f"profile {self.name!r}: `static_quantization` must be one of {STATIC_PRESETS} or left out, got "
                f"{self.static_quantization!r}. Static int8 files would be made for hardware that nobody knows. "
                f"Correct it."
            )
        _check_export(self.name, self.export)
        object.__setattr__(self, "export", tuple(self.export))
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
        for name in ("latency", "latency_all_cores"):
            _check_coefficients(self.name, name, getattr(self, name))

    @property
    def static_preset(self) -> str:
        """The preset of static int8 files that suits it."""
        return self.static_quantization or self.quantization


def _check_export(profile: str, kinds: Any) -> None:
    """Refuse a list with anything but `EXPORT_KINDS`, or with one of them twice."""
    listed = list(kinds) if isinstance(kinds, list | tuple) else None
    if listed is None or not set(map(str, listed)) <= set(EXPORT_KINDS) or len(set(listed)) != len(listed):
        raise ManifestError(
            f"profile {profile!r}: `export` must list what an export writes for it besides fp32, each of "
            f"{', '.join(EXPORT_KINDS)} at most once, got {kinds!r:.80}. The devices would get other files than were "
            f"meant. Correct it, or leave `export` out for dynamic int8."
        )


def _check_coefficients(profile: str, name: str, coefficients: Any) -> None:
    """Refuse coefficients of other features than ours, or any that is no finite number from zero up."""
    if coefficients is None:
        return
    named = sorted(coefficients) if isinstance(coefficients, Mapping) else coefficients
    if named != sorted(LATENCY_FEATURES):
        raise ManifestError(
            f"profile {profile!r}: `{name}` must hold the coefficients {sorted(LATENCY_FEATURES)}, got {named!r:.200}. "
            f"A missing term would be taken for free. Measure again with `edvit profile`."
        )
    for feature, value in coefficients.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not is_finite(value) or value < 0:
            raise ManifestError(
                f"profile {profile!r}: `{name}.{feature}` must be a finite number from 0 up, got {value!r:.60}. "
                f"Latencies would not grow with the model. Measure again with `edvit profile`."
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
    data = _read_yaml(path)
    if not isinstance(data, dict) or not all(isinstance(entry, dict) for entry in data.values()):
        raise ManifestError(f"{path.name}: expected a mapping of profile names to figures.")
    try:
        return MappingProxyType({name: DeviceProfile(name=name, **entry) for name, entry in data.items()})
    except TypeError as error:
        raise ManifestError(f"{path.name}: a profile has a missing or unknown key: {error}.") from error


def unknown_profile(name: str, also: Iterable[str] = ()) -> str | None:
    """What to say of a kind of hardware that nobody knows, for the caller's own error; None if it is known.

    Args:
        name (`str`): What somebody asked for.
        also (`Iterable[str]`): Names beside those of devices.yaml: an ensemble may be of a later version's.
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

    Args:
        path (`str` or `Path`): A YAML file with the fields of `DeviceProfile` and `schema_version`.

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
    known = {field.name: field.type for field in fields(DeviceProfile)}
    missing = [key for key in ("name", "isa", "quantization", *FIGURES, "sources") if key not in entry]
    unknown = sorted(map(str, set(entry) - set(known)))
    if missing or unknown:
        problem = f"`{missing[0]}` is missing" if missing else f"`{unknown[0]}` is no key of a profile"
        raise ManifestError(f"{path.name}: {problem}; expected the keys {list(known)}. {remedy}")
    for key, value in entry.items():
        if not _is_of_kind(key, value):
            raise ManifestError(f"{path.name}: `{key}` must be of type {known[key]}, got {value!r:.80}. {remedy}")
    return DeviceProfile(**entry)


def _is_of_kind(key: str, value: Any) -> bool:
    """Whether a parsed value is of the type of the profile's field `key`; coefficients are checked by the profile."""
    if value is None:
        return key not in ("name", "isa", "quantization", "sources", "export")
    if key in ("name", "isa", "quantization", "static_quantization"):
        return isinstance(value, str) and bool(value)
    if key in FIGURES:
        kind = int if key in ("memory_mib", "cores") else int | float
        return isinstance(value, kind) and not isinstance(value, bool) and is_finite(value)
    if key == "export":
        return isinstance(value, list)
    if key == "sources":
        return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    return isinstance(value, dict)


def save_profile(profile: DeviceProfile, path: str | Path) -> None:
    """Write a profile that `load_profile` reads; the file appears complete or not at all."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    text = yaml.safe_dump(profile_dict(profile), sort_keys=False, width=120)
    partial.write_text(
        "# Measured by `edvit profile`. A fleet names this file as a device's profile.\n" + text, "utf-8"
    )
    partial.replace(path)


def profile_dict(profile: DeviceProfile) -> dict[str, Any]:
    """A profile as plain values, with the version of the format."""
    return {"schema_version": SCHEMA_VERSION, **asdict(profile)}


def _read_yaml(path: Path) -> Any:
    try:
        return load_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ManifestError(
            f"Expected a device profile at {path}, found no file. Without it nothing is known of the device. "
            f"Write one on the device with `edvit profile --output {path.name}`, or name a kind of hardware of "
            f"devices.yaml."
        ) from error
    except (OSError, ValueError, yaml.YAMLError) as error:
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
