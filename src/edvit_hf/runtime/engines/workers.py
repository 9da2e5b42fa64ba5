# SPDX-License-Identifier: Apache-2.0
"""Names and addresses of workers, and what a placement makes of them.

Comes in: `pi0=host:port` and a placement. Goes out: checked addresses, and the endpoints of each sub-model. Engines and
the command line call it.
"""

from collections.abc import Mapping, Sequence

from edvit_hf.errors import EDViTError, did_you_mean
from edvit_hf.manifest import Manifest
from edvit_hf.manifest.placement import PlacementFile

_LAST_PORT = 65535


def parse_workers(text: str) -> dict[str, str]:
    """Names and addresses of `pi0=10.0.0.10:8500,pi1=10.0.0.11:8500`.

    Raises:
        EDViTError: A part has another form, or a name occurs twice.
    """
    found: dict[str, str] = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        name, sign, address = (each.strip() for each in part.partition("="))
        if not name or not sign or not address:
            raise EDViTError(
                f"Expected workers as NAME=HOST:PORT, separated by commas, got {part!r:.80}. Whom to ask is unknown. "
                "Write --workers pi0=10.0.0.10:8500,pi1=10.0.0.11:8500."
            )
        if name in found:
            raise EDViTError(
                f"Expected each device once, got {name!r:.80} twice, at {found[name]} and {address}. Two devices with "
                "one name cannot be told apart. Give each its own."
            )
        found[name] = address
    return check_workers(found)


def check_workers(workers: Mapping[str, str]) -> dict[str, str]:
    """Names and addresses, checked.

    Raises:
        EDViTError: There are none, an address is no `host:port`, or two devices have the same one.
    """
    if not workers:
        raise EDViTError("Expected at least one worker, got none. Nobody could be asked. Name one: pi0=10.0.0.10:8500.")
    names: dict[str, str] = {}
    for name, address in workers.items():
        host, _, port = address.rpartition(":")
        is_port = port.isascii() and port.isdigit() and 0 < int(port) <= _LAST_PORT
        if not host or not is_port or "/" in address or any(letter.isspace() for letter in address):
            raise EDViTError(
                f"Expected the address of {name!r:.80} as HOST:PORT, got {address!r:.80}. Nobody can be reached there. "
                "Write it like 10.0.0.10:8500 or pi0.local:8500, [2001:db8::1]:8500 for IPv6."
            )
        if address in names:
            raise EDViTError(
                f"Expected each device at its own address, got {names[address]!r:.80} and {name!r:.80} both at "
                f"{address}. One of them would never be asked. Correct the addresses."
            )
        names[address] = name
    return dict(workers)


def placed_routes(placement: PlacementFile, workers: Mapping[str, str], manifest: Manifest) -> dict[int, Sequence[str]]:
    """Sub-model -> addresses: of the device that runs it, then of those that can stand in.

    Raises:
        EDViTError: The placement is of another ensemble, or names other devices than there are workers.
    """
    check_placement(placement, manifest)
    check_devices(placement, workers, "worker")
    found: dict[int, Sequence[str]] = {}
    for index in range(placement.num_sub_models):
        own = [n for n, device in placement.devices.items() if any(e.index == index for e in device.sub_models)]
        spare = [n for n, device in placement.devices.items() if any(e.index == index for e in device.replicas)]
        found[index] = tuple(workers[name] for name in [*own, *spare])
    return found


def check_placement(placement: PlacementFile, manifest: Manifest) -> None:
    """Refuse a placement of another ensemble, or of another version of this one."""
    identity, own = placement.ensemble, manifest.ensemble
    if identity is None or identity.content_hash != own.content_hash:
        got = "none" if identity is None else f"{identity.id} ({identity.content_hash[:12]}...)"
        raise EDViTError(
            f"Expected a placement of {own.id} ({own.content_hash[:12]}...), got one of {got}. Devices would be asked "
            "for what they do not have. Make it anew: `edvit plan DIR --fleet FLEET`."
        )
    if placement.num_sub_models != len(manifest.sub_models):
        raise EDViTError(
            f"Expected a placement of {len(manifest.sub_models)} sub-models, got one of {placement.num_sub_models}. It "
            "was edited. Make it anew: `edvit plan DIR --fleet FLEET`."
        )


def check_devices(placement: PlacementFile, found: Mapping[str, object], what: str) -> None:
    """Refuse where the devices of a placement that hold anything are not those that were found.

    Raises:
        EDViTError: The message names both sides.
    """
    placed = {name for name, device in placement.devices.items() if device.sub_models or device.replicas}
    lacking, unknown = sorted(placed - set(found)), sorted(set(found) - set(placement.devices))
    if lacking or unknown:
        parts = [f"no {what} for {', '.join(lacking)}"] if lacking else []
        parts += [f"{what} {name!r:.80}, which it does not name" for name in unknown]
        hint = "".join(did_you_mean(name, placement.devices) for name in unknown[:1])
        raise EDViTError(
            f"Expected one {what} for each device of the placement, {', '.join(sorted(placed))}, got "
            f"{' and '.join(parts)}.{hint} Plan and fleet have drifted apart. Correct the names, or make the placement "
            "anew: `edvit plan DIR --fleet FLEET`."
        )
