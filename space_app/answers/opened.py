# SPDX-License-Identifier: Apache-2.0
"""An ensemble to choose from, and one that is open, as the rest of the page knows them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from answers.documents import AbsentAccuracy, Example
from answers.isolation import IsolatedEnsemble
from answers.reading import Taker
from answers.timelines import FleetPlan
from answers.views import Device, Model
from edvit_hf.runtime import EDViTRuntime
from edvit_hf.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An ensemble to choose from.

    Attributes:
        name: For `open_bundle`: the folder's, or "own" for that of the page's owner.
        title: For the page.
        task: What it classifies; None where the owner's could not be opened.
        hint: What to give it; or why it could not be opened.
    """

    name: str
    title: str
    task: Task | None
    hint: str


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenEnsemble:
    """An ensemble that answers, and what the page says of it. Shared between visitors, never changed.

    Attributes:
        name: Of the bundle, or what the visitor named: `open_named` gives it again.
        title: For the page.
        task: What it classifies: the input widget follows it.
        hint: What to give it, and what its labels mean where they are no words.
        can_draw: Whether `prepare_drawing` takes drawings for it.
        side: Of the pictures that it takes, in px; 0 where that is not fixed.
        devices: One for each sub-model, "waiting".
        joined: How their answers are joined.
        examples: To try.
        models: The comparison; see `Model`.
        verdict: What to deploy and why; empty where the results do not say.
        code: Heading -> lines that load it elsewhere.
        card: As markdown; empty without one.
        license: As the card states it; empty where it states none that can be read.
        credits: As markdown, of the examples.
        absent: Accuracy by the number of devices absent.
        plans: Predictions by the name of the fleet; the first is the default.
        runtime: What answers.
        schedule: How it runs the sub-models: "in_turn" or "workers".
        taker: How its inputs are read; None where that is done in the process that runs it.
        folder: Where it was opened from; that of an ensemble from the Hub is gone.
    """

    name: str
    title: str
    task: Task
    hint: str
    can_draw: bool
    side: int
    devices: tuple[Device, ...]
    examples: tuple[Example, ...]
    models: tuple[Model, ...]
    verdict: str
    code: Mapping[str, str]
    card: str
    license: str
    credits: str
    absent: tuple[AbsentAccuracy, ...] = field(repr=False)
    plans: Mapping[str, FleetPlan] = field(repr=False)
    runtime: EDViTRuntime | IsolatedEnsemble = field(repr=False)
    joined: str = ""
    schedule: str = "in_turn"
    taker: Taker | None = field(default=None, repr=False)
    folder: Path = field(repr=False)

    @property
    def isolated(self) -> IsolatedEnsemble:
        """What runs it: there is no `taker` where that is a process of its own."""
        return cast(IsolatedEnsemble, self.runtime)

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked: a process of its own may have been ended."""
        return self.taker is not None or self.isolated.is_alive
