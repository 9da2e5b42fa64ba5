# SPDX-License-Identifier: Apache-2.0
"""What the page's child processes do: read files of strangers, and run ensembles of strangers.

`edvit_hf.isolation.child` makes these in the child; the page's side is in isolation.py.
"""

from pathlib import Path
from typing import cast

from answers.reading import Kind, Taker, read, side_of
from answers.runtimes import open_runtime, taker_of
from answers.wire import answer_message, inputs_of, reading_message
from edvit_hf.isolation import Message
from edvit_hf.runtime import CoordinatorConfig
from edvit_hf.runtime.engines.lanes import at_rest
from edvit_hf.tasks import Task
from edvit_hf.transforms import load_transform

STOP_SECONDS = 0.5
"""For an operator to end that nobody waits for any more."""


class ReadingJob:
    """Reads files for ensembles whose own files can be trusted."""

    def __init__(self, setup: Message) -> None:
        self._takers: dict[str, Taker] = {}
        for values in setup.values["takers"]:
            self._taker(values)

    def answer(self, question: Message) -> Message:
        """A reading of the file that came."""
        taker = self._taker(question.values["taker"])
        return reading_message(read(taker, cast(Kind, question.kind), question.arrays["content"].tobytes()))

    def _taker(self, values: dict[str, object]) -> Taker:
        folder, task = str(values["folder"]), cast(Task, values["task"])
        if folder not in self._takers:
            options = {name: bool(values[name]) for name in ("can_draw", "hears_words")}
            self._takers[folder] = Taker(task=task, transform=load_transform(folder, task), **options)
        return self._takers[folder]


class EnsembleJob:
    """Runs the ensemble of a folder, which is not needed any more once this is made."""

    def __init__(self, setup: Message) -> None:
        config = CoordinatorConfig(deadline_ms=setup.values["deadline_ms"])
        self._runtime = open_runtime(Path(setup.values["folder"]), setup.values["title"], config)
        self._taker = taker_of(self._runtime)

    def answer(self, question: Message) -> Message:
        """What it takes, a reading, or an answer."""
        if question.kind == "describe":
            return Message("described", {"can_draw": self._taker.can_draw, "side": side_of(self._taker)})
        if question.kind == "predict":
            return self._answer(question)
        return reading_message(read(self._taker, cast(Kind, question.kind), question.arrays["content"].tobytes()))

    def _answer(self, question: Message) -> Message:
        absent, subsets = question.values["absent"], question.values["subsets"]
        try:
            if subsets is None:
                return answer_message(self._runtime.predict(inputs_of(question), absent=absent))
            return answer_message(*self._runtime.predict_without(inputs_of(question), subsets, absent=absent))
        finally:
            if not at_rest(STOP_SECONDS):  # ends this process: it would go on computing for nobody
                raise RuntimeError("an operator does not stop")
