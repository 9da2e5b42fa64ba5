# SPDX-License-Identifier: Apache-2.0
"""A fleet: the devices that run one ensemble together, what each may carry, and how they are linked.

Read strictly from `recipes/fleets/*.yaml`: a budget that is misspelt would silently mean no limit.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from edvit_hf.errors import RecipeError, did_you_mean
from edvit_hf.hardware.profiles import DeviceProfile, load_profile, load_profiles
from edvit_hf.manifest.hashes import check_name
from edvit_hf.storage import read_yaml
from edvit_hf.strict import NOT_READ, YAML, is_file, is_finite, one_of, read_fields

DEFAULT_KIND = "arm64"  # of the devices of `default_fleet`: a family of processors without figures
DEFAULT_FLEET_NOTE = (
    f"no fleet is named: one device of the kind {DEFAULT_KIND}, without budgets, is assumed for each sub-model"
)
# Of a link that the fleet file does not state: a modest Wi-Fi, as small boards have it. Assumptions, no paper says.
# They count, so that sending is never free by accident, and every plan says where it took them.
ASSUMED_LINK_MS = 2.0
ASSUMED_MBIT_PER_S = 50.0  # of a device's link and of the shared uplink

Objective = Literal["latency", "spread"]
BUDGETS = ("memory_mib", "macs", "energy_mj")  # of one device
MAX_DEVICES = 1000
_PROFILE_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, kw_only=True)
class Device:
    """A named member of a fleet. A budget of `None` means no limit, a link value of `None` that a link is assumed."""

    name: str  # unique in the fleet
    profile: str  # name of a shipped device profile, or path of one that `edvit profile` wrote
    # Budget for the weights (fp32) that the device holds, as in ED-ViT (arXiv 2410.11650). Activations come on top: the
    # plan reports their peak beside it. None: the memory of the profile is the limit.
    memory_mib: int | float | None = None
    macs: int | None = None  # budget of multiply-accumulates for one input
    # Budget of millijoules for one input: watts of the profile x predicted milliseconds
    energy_mj: int | float | None = None
    link_mbit_per_s: int | float | None = None  # rate at which the device sends its features
    link_ms: int | float | None = None  # delay of one message
    # The profile itself where `profile` is a path
    measured: DeviceProfile | None = field(default=None, metadata=NOT_READ)

    @property
    def hardware(self) -> DeviceProfile:
        """What is known of this kind of device."""
        return self.measured or load_profiles()[self.profile]

    @property
    def memory_limit_mib(self) -> float | None:
        """What the weights may take: the budget, or else all the memory that such a device has."""
        return self.hardware.memory_mib if self.memory_mib is None else self.memory_mib

    @property
    def message_ms(self) -> float:
        """Delay of one message: what is stated, else `ASSUMED_LINK_MS`."""
        return ASSUMED_LINK_MS if self.link_ms is None else self.link_ms

    @property
    def mbit_per_s(self) -> float:
        """Rate of its link: what is stated, else `ASSUMED_MBIT_PER_S`."""
        return ASSUMED_MBIT_PER_S if self.link_mbit_per_s is None else self.link_mbit_per_s


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The devices that run one ensemble together, and what they share."""

    devices: tuple[Device, ...]  # at least one
    # Budget for the weights (fp32) of all sub-models, their replicas and the fusion head
    total_mib: int | float | None = None
    uplink_mbit_per_s: int | float | None = None  # rate of the link over which every remote sub-model gets its input
    # Device that takes the input in and fuses the features; its own sub-models need no link. None: a machine outside
    # the fleet, so every sub-model is remote.
    coordinator: str | None = None
    # What the placement is chosen for. "latency": the lowest predicted time from input to answer. "spread": as few
    # sub-models per device as possible, so that a device's failure costs as little as can be; then the lowest time
    objective: Objective = "latency"
    name: str = field(default="unnamed", metadata=NOT_READ)  # for messages and files

    def __post_init__(self) -> None:
        if not self.devices:
            raise RecipeError("a fleet needs at least one device, got none. Add a device to the fleet file.")
        if len(self.devices) > MAX_DEVICES:
            raise RecipeError(
                f"a fleet has at most {MAX_DEVICES} devices, got {len(self.devices)}. Each runs one sub-model of an "
                "ensemble or a copy of one; more would only be planned for minutes. Leave devices out."
            )
        names = [device.name for device in self.devices]
        if not all(name.strip() for name in names):
            raise RecipeError(
                f"every device of a fleet needs a name, got {names}. Placement and errors speak of devices by name. "
                "Name it."
            )
        for name in names:
            check_name(name, "the name of a device", RecipeError)
        doubled = sorted(name for name, count in Counter(names).items() if count > 1)
        if doubled:
            raise RecipeError(
                f"device names must be unique in a fleet, got {doubled} more than once. "
                "The placement names devices. Rename them."
            )
        for device in self.devices:
            _check_device(device)
        why = "it decides whether devices are chosen for speed or so that a failure costs little"
        one_of(f"fleet {self.name!r}: objective", self.objective, get_args(Objective), why)
        _refuse_empty(self, ("total_mib", "uplink_mbit_per_s"), f"fleet {self.name!r}")
        if self.coordinator is not None and self.coordinator not in names:
            raise RecipeError(
                f"fleet {self.name!r}: `coordinator` must be the name of one of its devices, got {self.coordinator!r}."
                f"{did_you_mean(self.coordinator, names)} Leave it out if the inputs arrive outside the fleet."
            )

    @property
    def input_mbit_per_s(self) -> float:
        """Rate of the shared uplink: what is stated, else `ASSUMED_MBIT_PER_S`."""
        return ASSUMED_MBIT_PER_S if self.uplink_mbit_per_s is None else self.uplink_mbit_per_s


def _check_device(device: Device) -> None:
    where = f"device {device.name!r}"
    if device.measured is None and device.profile not in load_profiles():
        raise RecipeError(
            f"{where} has the unknown profile {device.profile!r}; known: {sorted(load_profiles())}."
            f"{did_you_mean(device.profile, load_profiles())} The profile says how fast the device is and which "
            "exported variant fits. Name one of them, or a file that `edvit profile` wrote."
        )
    _refuse_empty(device, (*BUDGETS, "link_mbit_per_s"), where)
    if device.link_ms is not None and not (is_finite(device.link_ms) and device.link_ms >= 0):
        raise RecipeError(
            f"{where}: `link_ms` must be at least 0, got {device.link_ms!s:.40}. Leave it out if not known."
        )
    if device.energy_mj is None:
        return
    hardware, remedies = device.hardware, []
    if hardware.watts is None:
        remedies.append(("`watts`", "Measure its power and pass it: `edvit profile --watts ...` writes it down."))
    if hardware.sustained_gflops is None and hardware.latency is None:
        remedies.append(("known speed", "`edvit profile`, run on such a device, measures its speed."))
    if remedies:
        raise RecipeError(
            f"{where}: `energy_mj` is watts times predicted milliseconds, but the profile {device.profile!r} has no "
            f"{' and no '.join(lacking for lacking, _ in remedies)}. The budget could not be checked. "
            f"{' '.join(remedy for _, remedy in remedies)} Name the file it writes as `profile`, or give a `macs` "
            "budget instead."
        )


def _refuse_empty(owner: Device | Fleet, labels: Sequence[str], where: str) -> None:
    for label in labels:
        budget = getattr(owner, label)
        if budget is not None and not (is_finite(budget) and budget > 0):
            raise RecipeError(
                f"{where}: `{label}` must be above 0 and no more than a float holds, got {budget!s:.40}. "
                "Leave it out for no limit."
            )


def load_fleet(path: Path) -> Fleet:
    """Read a fleet file (`recipes/fleets/*.yaml`) strictly.

    Raises:
        RecipeError: Missing file, broken YAML, unknown or missing keys, wrong types, duplicate names, unknown
            profiles or impossible budgets.
        ManifestError: A device names a profile file that breaks its format.
    """
    if not is_file(path):
        raise RecipeError(f"fleet file {path} does not exist. Without it nothing can be placed. Correct `fleet`.")
    try:
        data = read_yaml(path)
    except (OSError, ValueError) as error:
        raise RecipeError(f"fleet file {path} is no readable YAML: {error}. Correct the file.") from error
    try:
        values = read_fields(Fleet, data, form=YAML)
    except ValueError as error:
        raise RecipeError(f"fleet file {path}: {error} Correct the file.") from error
    devices = tuple(replace(d, measured=_measured(d.profile, path, d.name)) for d in values.pop("devices"))
    return Fleet(devices=devices, name=path.stem, **values)


def default_fleet(count: int) -> Fleet:
    """One device without budgets for each of so many sub-models, where no fleet is named."""
    devices = tuple(Device(name=f"device_{index:02d}", profile=DEFAULT_KIND) for index in range(count))
    return Fleet(devices=devices, name="default")


def _measured(profile: str, fleet_file: Path, device: str) -> DeviceProfile | None:
    """The profile that a device names by path, relative to the fleet file; None where it names a shipped one."""
    if profile in load_profiles() or not profile.endswith(_PROFILE_SUFFIXES):
        return None
    path = fleet_file.parent / os.path.expanduser(profile)  # noqa: PTH111  (which minds no unknown home)
    if not is_file(path):
        raise RecipeError(
            f"device {device!r} names the profile file {profile!r}, but {path} does not exist. Paths are relative to "
            "the fleet file. Correct it, or write one with `edvit profile`."
        )
    return load_profile(path)
