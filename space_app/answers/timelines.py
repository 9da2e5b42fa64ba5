# SPDX-License-Identifier: Apache-2.0
"""How one answer comes about, as spans of time: measured on this machine, and predicted for a fleet of devices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from answers.views import Span, Timeline
from edvit_hf.errors import EDViTError
from edvit_hf.hardware.profiles import load_profiles
from edvit_hf.planning.fleet import Device, Fleet
from edvit_hf.planning.plan import Plan
from edvit_hf.published.files import Published
from edvit_hf.published.plan import place_published
from edvit_hf.runtime import Answer

COORDINATOR = "coordinator"


@dataclass(frozen=True, kw_only=True)
class FleetKind:
    """Devices of one kind, one for each sub-model, and what links them.

    The links are assumptions, said on the page: nominal rates, and a delay of one message that is usual for the kind.
    """

    profile: str
    link: str
    mbit_per_s: float
    message_ms: float

    def name(self, count: int) -> str:
        """Such as "5 x raspberry-pi-5, 100 Mbit/s Ethernet"."""
        return f"{count} x {self.profile}, {self.link}"

    def fleet(self, count: int) -> Fleet:
        """A fleet of `count` such devices; a machine outside takes the input in and fuses."""
        devices = tuple(
            Device(name=f"device-{i}", profile=self.profile, link_mbit_per_s=self.mbit_per_s, link_ms=self.message_ms)
            for i in range(count)
        )
        return Fleet(devices=devices, uplink_mbit_per_s=self.mbit_per_s, name=self.name(count))


FLEETS = (
    FleetKind(profile="raspberry-pi-5", link="100 Mbit/s Ethernet", mbit_per_s=100, message_ms=0.5),
    FleetKind(profile="raspberry-pi-5", link="20 Mbit/s Wi-Fi", mbit_per_s=20, message_ms=5),
    FleetKind(profile="raspberry-pi-4b", link="100 Mbit/s Ethernet", mbit_per_s=100, message_ms=0.5),
    FleetKind(profile="intel-n100", link="1 Gbit/s Ethernet", mbit_per_s=1000, message_ms=0.5),
)


@dataclass(frozen=True, kw_only=True)
class FleetPlan:
    """A finished ensemble on such a fleet, sub-model i on device i.

    Attributes:
        kind: Of its devices.
        input_ms: Sending one input to one device, by sub-model.
        compute_ms: By sub-model.
        link_ms: Sending the features back, by sub-model.
        fusion_ms: The fusion head.
        is_measured: Whether the times come from a measured device, rather than from published speeds.
    """

    kind: FleetKind
    input_ms: tuple[float, ...]
    compute_ms: tuple[float, ...]
    link_ms: tuple[float, ...]
    fusion_ms: float
    is_measured: bool


def fleet_plans(ensemble: Published | None) -> Mapping[str, FleetPlan]:
    """Predictions by the fleet's name; empty where the ensemble's files do not tell what it costs."""
    if ensemble is None:
        return {}
    count, found = len(ensemble.class_groups), {}
    for kind in FLEETS:
        try:
            plan = place_published(ensemble, kind.fleet(count), placement="greedy")
        except EDViTError:  # sizes are not known, or one sub-model is too large for such a device
            continue
        made = _fleet_plan(kind, plan)
        if made is not None:
            found[kind.name(count)] = made
    return found


def measured(answer: Answer, schedule: str) -> Timeline:
    """One answer as it came about here.

    The runtime knows how long each sub-model took, not when it began: spans are laid out by its schedule.
    """
    spans, at = [], 0.0
    for index, taken in enumerate(answer.milliseconds):
        if taken is None:
            continue
        begin = 0.0 if schedule == "workers" else at
        spans.append(Span(lane=lane(index), kind="compute", start_ms=begin, end_ms=begin + taken))
        at = max(at, begin + taken)
    total = max(answer.total_milliseconds, at + answer.fusion_milliseconds)
    spans.append(Span(lane=COORDINATOR, kind="fusion", start_ms=total - answer.fusion_milliseconds, end_ms=total))
    how = "at the same time" if schedule == "workers" else "one after the other, on one thread"
    note = (
        f"Measured on this machine in one run: here the sub-models run {how}, and nothing is sent. Durations were "
        "measured, starts follow from that order; the gap before the fusion is handing over. Preparing the input is "
        "not counted."
    )
    return Timeline(title="Measured here", is_measured=True, spans=tuple(spans), total_ms=total, note=note)


def predicted(name: str, plan: FleetPlan, present: Sequence[bool]) -> Timeline:
    """The same answer as a fleet would give it; devices that are missing have no lane and are sent nothing.

    The inputs share the coordinator's link, so that all devices have theirs when the last byte is sent: this is the
    model that `edvit plan` predicts latencies by.
    """
    there = [index for index, is_there in enumerate(present) if is_there]
    sent = sum(plan.input_ms[index] for index in there)
    spans, arrived = [], sent
    for index in there:
        computed = sent + plan.compute_ms[index]
        end = computed + plan.link_ms[index]
        spans += [
            Span(lane=lane(index), kind="input", start_ms=0.0, end_ms=sent),
            Span(lane=lane(index), kind="compute", start_ms=sent, end_ms=computed),
            Span(lane=lane(index), kind="transfer", start_ms=computed, end_ms=end),
        ]
        arrived = max(arrived, end)
    total = arrived + plan.fusion_ms
    spans.append(Span(lane=COORDINATOR, kind="fusion", start_ms=arrived, end_ms=total))
    return Timeline(
        title=f"Predicted for {name}", is_measured=False, spans=tuple(spans), total_ms=total, note=_note(plan)
    )


def lane(index: int) -> str:
    """How a device is called in a timeline."""
    return f"device {index}"


def _fleet_plan(kind: FleetKind, plan: Plan) -> FleetPlan | None:
    """A placed plan by sub-model; None where it does not predict times or shares a device."""
    rows = {row.name: row for row in plan.devices}
    own = [rows[entry.device] for entry in plan.sub_models]
    times = [row.compute_ms for row in own]
    if any(len(row.sub_models) != 1 for row in own) or None in times:
        return None
    count = len(own)  # all take the same input, so each has the same part of the time that sending it to all takes
    return FleetPlan(
        kind=kind,
        input_ms=(plan.uplink_ms / count,) * count,
        compute_ms=tuple(float(ms or 0.0) for ms in times),
        link_ms=tuple(row.link_ms for row in own),
        fusion_ms=plan.fusion_ms or 0.0,
        is_measured=load_profiles()[kind.profile].latency is not None,
    )


def _note(plan: FleetPlan) -> str:
    kind = plan.kind
    speed = (
        "from times measured on such a device"
        if plan.is_measured
        else "from the speed published for such a device (GFLOP/s), so what starting a run costs is left out"
    )
    return (
        f"Predicted, not measured: computing {speed}; links assumed at {kind.mbit_per_s:g} Mbit/s and "
        f"{kind.message_ms:g} ms for a message. The inputs share the coordinator's link, and the fusion head is timed "
        "at the speed of one of the devices. Preparing the input is not counted."
    )
