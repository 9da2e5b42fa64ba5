# SPDX-License-Identifier: Apache-2.0
"""What is counted while a fleet is simulated, and the figures that come of it."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

OUTCOMES = ("whole", "degraded", "failed", "rejected")


@dataclass
class Tally:
    """What became of each request."""

    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    answered_ms: list[float] = field(default_factory=list)  # from request to answer, whole and degraded ones
    last: float = 0.0  # when the last request ended

    def note(self, outcome: str, begin: float, end: float) -> None:
        """Count one request that ended."""
        self.outcomes[outcome] += 1
        self.last = max(self.last, end)
        if outcome in ("whole", "degraded"):
            self.answered_ms.append(end - begin)

    def share(self, outcome: str) -> float:
        """Of the requests that have ended."""
        return round(self.outcomes[outcome] / sum(self.outcomes.values()), 6)

    def percentile(self, share: float) -> float | None:
        """Milliseconds within which that share of the answers came; None where there are none."""
        return round(float(np.percentile(self.answered_ms, share)), 3) if self.answered_ms else None


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """Figures of one simulated run. None of them is measured.

    Attributes:
        simulated: Always true: so that no reader of a file takes it for a measurement.
        fleet: Its name.
        num_devices: All copies of the fleet together.
        num_sub_models: Of one ensemble.
        coordinators: How many.
        rate: Requests a second that were asked for.
        requests: How many.
        seconds: Simulated, from the start to the end of the last request.
        throughput_per_s: Answers a second.
        p50_ms: Half of the answers took no longer, from request to answer; None where nobody was answered. `p95_ms` and
            `p99_ms` alike.
        whole: Share of requests that every sub-model took part in.
        degraded: Share of those answered without some.
        failed: Share of those for which too few sub-models were there.
        rejected: Share of those turned away.
        energy_mj_per_answer: Watts times busy milliseconds of all devices, per answer; None where watts are not known.
        busy: Share of the time that each resource was busy; of devices the busiest one.
        capacities_per_s: Requests a second that each resource could serve, were it the only limit.
        limit: The resource that gives out first.
        notes: What is assumed or left out.
    """

    simulated: bool = True
    fleet: str
    num_devices: int
    num_sub_models: int
    coordinators: int
    rate: float
    requests: int
    seconds: float
    throughput_per_s: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    whole: float
    degraded: float
    failed: float
    rejected: float
    energy_mj_per_answer: float | None
    busy: dict[str, float]
    capacities_per_s: dict[str, float | None]
    limit: str
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)
