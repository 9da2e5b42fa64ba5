# SPDX-License-Identifier: Apache-2.0
"""`placement.json`: which device of a fleet runs which sub-model from which file. Standard library only."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from edvit_hf.errors import ManifestError
from edvit_hf.manifest.hashes import check_name
from edvit_hf.storage import read_json_object, write_json
from edvit_hf.strict import read_strictly

PLACEMENT_NAME = "placement.json"
SCHEMA_VERSION = 2  # 1 named indices alone
_REMEDY = "Make it anew: `edvit plan REPO_OR_DIR --fleet FLEET`."


@dataclass(frozen=True, kw_only=True)
class PlacedFile:
    """One sub-model on one device."""

    index: int  # of the sub-model
    # Name of the exported variant ("fp32", "qint8_arm64", ...); None where nothing was exported
    variant: str | None = None
    file: str | None = None  # its path inside the ensemble folder
    predicted_ms: float | None = None  # on that device; None where its speed is not known
    bytes: int | None = None  # what it takes of the device's memory budget; None where the plan does not tell
    macs: int | None = None  # multiply-accumulates for one input
    energy_mj: float | None = None  # for one input on that device


@dataclass(frozen=True, kw_only=True)
class PlacedDevice:
    """What one device loads: the sub-models that it runs, and those that it can stand in for.

    Its budgets are those of the fleet file; None means no limit.
    """

    profile: str
    memory_mib: float | None = None
    macs: int | None = None
    energy_mj: float | None = None
    sub_models: list[PlacedFile] = field(default_factory=list)
    replicas: list[PlacedFile] = field(default_factory=list)
    predicted_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class EnsembleIdentity:
    """Which ensemble the placement is of, from its manifest."""

    id: str
    content_hash: str


@dataclass(frozen=True, kw_only=True)
class PlacementFile:
    """The placement of one ensemble on one fleet."""

    schema_version: int = SCHEMA_VERSION  # of this file
    ensemble: EnsembleIdentity | None = None  # identity from the manifest; None where the ensemble has none
    fleet: str  # name of the fleet
    coordinator: str | None = None  # device that fuses; None for a machine outside the fleet
    num_sub_models: int  # how many the ensemble has; each runs on exactly one device
    devices: dict[str, PlacedDevice]  # name -> what it loads
    latency_ms: float | None = None  # predicted from input to answer; None where a speed is not known

    def __post_init__(self) -> None:
        """Every sub-model runs exactly once, and the coordinator is one of the devices."""
        placed = sorted(entry.index for device in self.devices.values() for entry in device.sub_models)
        if placed != list(range(self.num_sub_models)) or not placed:
            raise ValueError(
                f"`devices` must run each of the {self.num_sub_models} sub-models exactly once, got {placed}."
            )
        for name, device in self.devices.items():
            check_name(name, "a name in `devices`")
            held = [entry.index for entry in [*device.sub_models, *device.replicas]]
            if len(held) != len(set(held)) or not set(held) <= set(placed):
                raise ValueError(f"`devices.{name}` holds a sub-model twice or one that does not exist: {held}.")
        if self.coordinator is not None and self.coordinator not in self.devices:
            raise ValueError(
                f"`coordinator` must be one of the devices {sorted(self.devices)}, got {self.coordinator!r}."
            )

    def save(self, path: Path) -> Path:
        """Write the file, whole or not at all; a folder gets a `placement.json`."""
        path = path / PLACEMENT_NAME if path.is_dir() else path
        write_json(path, asdict(self))
        return path


def load_placement(path: Path) -> PlacementFile:
    """Read and validate a placement.

    Raises:
        ManifestError: If it is missing, no JSON, of another schema version, or breaks the format.
    """
    path = path / PLACEMENT_NAME if path.is_dir() else path
    why = f"Without one no device knows what to load. {_REMEDY}"
    data = read_json_object(path, "a placement", why, error=ManifestError)
    version = data.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise ManifestError(
            f"{path.name}: expected a placement of schema version {SCHEMA_VERSION}, got {version!r}. Its fields may "
            f"mean something else. {_REMEDY}"
        )
    try:
        return read_strictly(PlacementFile, data)
    except ValueError as error:
        raise ManifestError(f"{path.name}: {error} {_REMEDY}") from error
