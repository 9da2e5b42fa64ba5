# SPDX-License-Identifier: Apache-2.0
"""Simulate a fleet under a load, and say what came of it."""

import math
from collections.abc import Sequence

import numpy as np
import simpy

from edvit_hf.errors import RecipeError
from edvit_hf.planning.fleet import MAX_DEVICES
from edvit_hf.simulation.config import SimulationConfig
from edvit_hf.simulation.coordinator import Shared, SimulatedCoordinator, Steps
from edvit_hf.simulation.fleet import CPU, DEVICES, UPLINK, FleetModel
from edvit_hf.simulation.outages import Outages
from edvit_hf.simulation.tally import Simulated, Tally

_MOST_OUTAGES = 1_000_000
_LIMITS = (
    "the inputs of one request share the uplink and arrive together when the last byte has; a device's link is counted "
    "once for a request, as in the plan; the coordinator's own sub-models do not slow its other work"
)


def simulate(model: FleetModel, config: SimulationConfig) -> Simulated:
    """Requests at random moments, each through line, coordinator, uplink, devices and fusion.

    Nothing is measured here: the result says how the given times add up and queue. Deterministic for a seed.

    Raises:
        RecipeError: More devices than a fleet may have, or more outages than are worth drawing.
    """
    gaps = np.random.default_rng((config.seed, 0)).exponential(1e3 / config.rate, config.requests)
    arrivals = np.cumsum(gaps)
    _check_size(model, config, float(arrivals[-1]))
    env, tally = simpy.Environment(), Tally()
    one = Shared(env)
    uplinks = [one if config.one_uplink else Shared(env) for _ in range(config.coordinators)]
    coordinators = [
        SimulatedCoordinator(
            env,
            model,
            config,
            tally,
            group=group,
            uplink=uplink,
            outages=outages_of(model, config, float(arrivals[-1]), group),
        )
        for group, uplink in enumerate(uplinks)
    ]
    env.process(_ask(env, coordinators, arrivals))
    # Probes of devices that are away go on; what counts is that every request has ended.
    while sum(tally.outcomes.values()) < config.requests:
        env.step()
    return _result(model, config, tally, coordinators)


def outages_of(model: FleetModel, config: SimulationConfig, until_ms: float, group: int) -> Outages:
    """When the devices of one copy of the fleet are away, until some moment."""
    return Outages(
        len(model.devices),
        mean_up_ms=None if config.mean_up_s is None else 1e3 * config.mean_up_s,
        mean_down_ms=None if config.mean_down_s is None else 1e3 * config.mean_down_s,
        until_ms=until_ms,
        seed=config.seed + 1_000_003 * group,
    )


def _ask(env: simpy.Environment, coordinators: Sequence[SimulatedCoordinator], arrivals: np.ndarray) -> Steps:
    for number, moment in enumerate(arrivals.tolist()):
        yield env.timeout(max(0.0, moment - env.now))
        env.process(coordinators[number % len(coordinators)].request(number))


def _check_size(model: FleetModel, config: SimulationConfig, until_ms: float) -> None:
    size = len(model.devices)
    if config.coordinators * size > MAX_DEVICES:
        raise RecipeError(
            f"expected at most {MAX_DEVICES} devices in all, got {config.coordinators} coordinators over {size} each. "
            "More is not simulated: the figures grow with the number of coordinators, as long as nothing is shared. "
            f"Use at most {MAX_DEVICES // size} coordinators."
        )
    if config.serving.quorum is not None and config.serving.quorum > len(model.endpoints):
        raise RecipeError(
            f"expected a quorum of at most {len(model.endpoints)}, the number of sub-models, got "
            f"{config.serving.quorum}. Nobody would ever be answered. Lower it."
        )
    if config.mean_up_s is not None and config.mean_down_s is not None:
        cycles = until_ms / 1e3 / (config.mean_up_s + config.mean_down_s)
        if cycles * size * config.coordinators > _MOST_OUTAGES:
            raise RecipeError(
                f"expected at most {_MOST_OUTAGES} outages in all, got about {cycles:.3g} of each device within "
                f"{until_ms / 1e3:.3g} s. Such a fleet is away more often than it is asked. Let devices live longer, "
                "or ask fewer requests at a higher rate."
            )


def _result(
    model: FleetModel, config: SimulationConfig, tally: Tally, coordinators: Sequence[SimulatedCoordinator]
) -> Simulated:
    answered = len(tally.answered_ms)
    busy = np.array([each.devices.busy for each in coordinators])  # (M, D)
    runs = busy.sum(axis=0) > 0
    is_known = not np.isnan(model.watts[runs]).any()
    energy = float((busy * np.where(runs, model.watts, 0.0)).sum()) if is_known and answered else None
    uplinks = {id(each.uplink): each.uplink.busy for each in coordinators}
    shares = {
        DEVICES: float(busy.max()),
        CPU: max(each.cpu.busy for each in coordinators),
        UPLINK: max(uplinks.values()),
    }
    capacities = model.capacities(config)
    notes = [*model.notes, f"work of the coordinator: {config.work.source}", _LIMITS]
    if not is_known:
        notes.append("energy is not known: a device that runs something has a profile without `watts`")
    return Simulated(
        fleet=model.name,
        num_devices=len(model.devices) * config.coordinators,
        num_sub_models=len(model.endpoints),
        coordinators=config.coordinators,
        rate=config.rate,
        requests=config.requests,
        seconds=round(tally.last / 1e3, 3),
        throughput_per_s=round(1e3 * answered / tally.last, 4),
        p50_ms=tally.percentile(50),
        p95_ms=tally.percentile(95),
        p99_ms=tally.percentile(99),
        whole=tally.share("whole"),
        degraded=tally.share("degraded"),
        failed=tally.share("failed"),
        rejected=tally.share("rejected"),
        energy_mj_per_answer=None if energy is None else round(energy / answered, 3),
        busy={name: round(value / tally.last, 4) for name, value in shares.items()},
        capacities_per_s={n: None if math.isinf(value) else round(value, 4) for n, value in capacities.items()},
        limit=model.limit(config),
        notes=tuple(notes),
    )
