# SPDX-License-Identifier: Apache-2.0
"""What the page says, as plain data: made by answering.py, turned into HTML by the page."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

State = Literal["empty", "answered", "degraded", "refused"]
DeviceState = Literal["waiting", "answered", "unplugged", "failed"]
SpanKind = Literal["input", "compute", "transfer", "fusion"]


@dataclass(frozen=True, kw_only=True)
class Device:
    """One sub-model, which stands for one device.

    Attributes:
        index: Of the sub-model, from 0.
        classes: Names of its classes, which it votes over.
        state: "waiting" before the first answer.
        vote: Its most probable class, "other" included; None without an answer.
        vote_share: Probability of that, 0..1.
        milliseconds: Its own run, measured here.
        bytes_sent: What it would send for this input.
        answer_without: The ensemble's label if this one were missing too; None where nobody would be left.
        changes_answer: Whether that differs from the label now.
        reason: In words, why it is missing.
        shared: Those of its classes that another device knows too.
        focus: Those that it was cut for, where it votes over others too; else empty.
    """

    index: int
    classes: tuple[str, ...]
    state: DeviceState
    vote: str | None = None
    vote_share: float | None = None
    milliseconds: float | None = None
    bytes_sent: int = 0
    answer_without: str | None = None
    changes_answer: bool = False
    reason: str | None = None
    shared: frozenset[str] = frozenset()
    focus: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Span:
    """A piece of a timeline: what happens in one lane between two times, in ms from the input."""

    lane: str
    kind: SpanKind
    start_ms: float
    end_ms: float


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """How one answer comes about.

    Attributes:
        title: Such as "Measured here" or "Predicted for 5 x raspberry-pi-5".
        is_measured: False for a prediction; the page labels both.
        spans: In the order of lanes, the coordinator's last.
        total_ms: From the input to the answer.
        note: What it counts and what it leaves out.
    """

    title: str
    is_measured: bool
    spans: tuple[Span, ...]
    total_ms: float
    note: str


@dataclass(frozen=True, kw_only=True)
class Model:
    """A row of the comparison, from the card's results; None where it was not measured.

    Attributes:
        name: Such as "teacher" or "plain model, per-device size".
        accuracy: On the test split, 0..1.
        bytes_per_device: Of the weights, fp32, that one device holds.
        bytes_total: Of all devices together.
        milliseconds: One answer, from the card.
        note: How it was measured, or why a figure is missing.
    """

    name: str
    accuracy: float | None
    bytes_per_device: int | None
    bytes_total: int | None
    milliseconds: float | None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class View:
    """The page for one input and one set of unplugged devices.

    Attributes:
        state: "empty" before the first input, "degraded" with devices missing, "refused" without an answer.
        sentence: The answer, what unplugging changed, or what is wrong and what to do; plain text.
        label: The most probable class; empty without an answer.
        probabilities: (label, probability), most probable first; empty without an answer.
        devices: One per sub-model.
        timelines: The measured one first; empty without an answer.
        seen: (H, W, 3) uint8, what the sub-models see of an image or sound; None where there is none.
        tokens: What they see of a text.
        card_note: The accuracy that the card reports with that many devices absent; empty if it does not.
        joined: How the devices' answers are joined.
    """

    state: State
    sentence: str
    label: str = ""
    probabilities: tuple[tuple[str, float], ...] = ()
    devices: tuple[Device, ...] = ()
    timelines: tuple[Timeline, ...] = ()
    seen: np.ndarray | None = None
    tokens: tuple[str, ...] = ()
    card_note: str = ""
    joined: str = ""


def percent(share: float) -> str:
    """A share of 0..1 with one decimal, such as "99.9 %"; never rounded up to certainty, nor down to impossibility.

    Every probability and accuracy on the page is written by it, so that no two figures contradict.
    """
    value = 100 * share
    if share < 1 and value >= 99.95:
        return "99.9 %"
    if 0 < value < 0.05:
        return "< 0.1 %"
    return f"{value:.1f} %"
