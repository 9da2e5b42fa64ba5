# SPDX-License-Identifier: Apache-2.0
"""Sub-models of known cost on small fleets, drawn so that every placement can be tried."""

import dataclasses
import random

from hypothesis import strategies as st

from edvit_hf.planning.costs import FleetCosts, FusionCosts, Load
from edvit_hf.planning.fleet import Device, Fleet
from edvit_hf.storage import MIB

SPEEDS = ("raspberry-pi-4b", "raspberry-pi-5", "intel-n100")


def load(macs=10_000_000, size=MIB, **changes):
    return Load(
        classes=(0,), parameters=size // 4, bytes=size, macs=macs, feature_bytes=64, input_bytes=3 * 32 * 32, **changes
    )


def costs_of(loads, *devices, **shared):
    fleet = Fleet(devices=devices, name="test", **shared)
    return FleetCosts.of(fleet, loads, FusionCosts(parameters=1000))


def device(name, profile="raspberry-pi-4b", **budgets):
    return Device(name=name, profile=profile, **budgets)


@st.composite
def problems(draw):
    """Up to 5 sub-models on up to 4 devices, with budgets, links and a coordinator, small enough to try everything."""
    rng = random.Random(draw(st.integers(0, 10**6)))
    loads = [
        dataclasses.replace(load(macs=rng.choice([4, 9, 10, 25]) * 10**6), bytes=rng.choice([2, 3, 5]) * MIB)
        for _ in range(rng.randint(1, 5))
    ]
    devices = [
        device(
            f"d{i}",
            rng.choice(SPEEDS),
            memory_mib=rng.choice([None, 4.0, 6.5, 8.0]),
            macs=rng.choice([None, 20_000_000, 30_000_000]),
            energy_mj=rng.choice([None, None, 20.0, 60.0]),
            link_ms=rng.choice([None, 0.7]),
            link_mbit_per_s=rng.choice([None, 1.0]),
        )
        for i in range(rng.randint(1, 4))
    ]
    return costs_of(
        loads,
        *devices,
        coordinator=rng.choice([None, "d0"]),
        uplink_mbit_per_s=rng.choice([None, 20]),
        total_mib=rng.choice([None, 14.0]),
    )
