# SPDX-License-Identifier: Apache-2.0
"""What is asked of a simulated fleet: the load, the serving limits, faults, and what the coordinator itself costs."""

from dataclasses import dataclass, field

from edvit_hf.errors import RecipeError
from edvit_hf.runtime.coordinator import CoordinatorConfig
from edvit_hf.strict import is_finite, number, whole_number

MAX_REQUESTS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class CoordinatorWork:
    """Processor time of one coordinator process, in milliseconds; Python runs it on one core.

    Attributes:
        request_ms: For every request, whoever is asked.
        sub_model_ms: For every sub-model that is asked: sending the input, checking what comes back.
        source: Where the figures come from.
    """

    request_ms: float
    sub_model_ms: float
    source: str

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("request_ms", "sub_model_ms"):
            number(name, getattr(self, name), "[0, inf)", "it is processor time of the coordinator")


MEASURED_WORK = CoordinatorWork(request_ms=1.07, sub_model_ms=0.54, source="benchmarks/results/fleet_simulation.json")
"""Of `Coordinator` over an engine; a test compares it with the results file."""


@dataclass(frozen=True, kw_only=True)
class SimulationConfig:
    """One simulated run.

    Attributes:
        rate: Requests a second for all coordinators together, at random moments (a Poisson process).
        requests: How many are asked.
        seed: Of arrivals, service times, lost messages and outages.
        coordinators: So many copies of the fleet, each with a coordinator and an uplink of its own; requests go to them
            in turn.
        one_uplink: All coordinators send over one and the same uplink instead.
        serving: Deadline, quorum, breakers, requests in flight and in line, as the runtime takes them.
        mean_up_s: How long a device works until it dies, on average (exponential). None: none dies.
        mean_down_s: How long until it is back. Both or none.
        loss: Share of messages that are lost and sent again.
        retry_ms: Until a lost message is sent again; twice as long each further time. Default: what Linux waits at
            least before it repeats a TCP segment (TCP_RTO_MIN).
        work: What the coordinator costs.
    """

    rate: float
    requests: int = 5000
    seed: int = 0
    coordinators: int = 1
    one_uplink: bool = False
    serving: CoordinatorConfig = field(default_factory=CoordinatorConfig)
    mean_up_s: float | None = None
    mean_down_s: float | None = None
    loss: float = 0.0
    retry_ms: float = 200.0
    work: CoordinatorWork = MEASURED_WORK

    def __post_init__(self) -> None:
        """Check ranges, and that nothing could wait for ever."""
        number("rate", self.rate, "(0, 1e6]", "it is the number of requests a second; without any nothing happens")
        whole_number("requests", self.requests, 1, "percentiles are taken over them")
        whole_number("seed", self.seed, 0, "all that is drawn depends on it")
        whole_number("coordinators", self.coordinators, 1, "somebody has to ask the devices")
        number("loss", self.loss, "[0, 0.5]", "it is a share of messages, and a link that loses most is none")
        number("retry_ms", self.retry_ms, "(0, 1e6]", "it is how long a lost message is waited for")
        most = self.serving.max_in_flight
        number("max_in_flight", most, f"[1, {MAX_REQUESTS}]", "it is the number of requests served at a time")
        if self.requests > MAX_REQUESTS:
            raise RecipeError(
                f"`requests` must be at most {MAX_REQUESTS}, got {self.requests!s:.40}. More would only be simulated "
                "for an hour, and change no percentile. Ask fewer."
            )
        means = {"mean_up_s": self.mean_up_s, "mean_down_s": self.mean_down_s}
        for name, value in means.items():
            if value is not None:
                number(name, value, "[1e-3, 1e9]", "it is an average time in seconds")
        given = [name for name, value in means.items() if value is not None]
        if len(given) == 1:
            raise RecipeError(
                f"expected both `mean_up_s` and `mean_down_s`, got only `{given[0]}`. How often devices die says "
                "nothing without how soon they are back. Give both, or none for devices that never die."
            )
        limit = self.serving.deadline_ms
        if given and (limit is None or not is_finite(limit)):
            raise RecipeError(
                "expected a deadline beside devices that die, got none. A device that died says nothing, and an answer "
                "without it would be waited for as long as it is away. Give a deadline."
            )
