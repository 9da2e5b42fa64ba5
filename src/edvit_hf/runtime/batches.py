# SPDX-License-Identifier: Apache-2.0
"""Answers several inputs: groups them into requests, prepares the next ones meanwhile, gives each its own outcome."""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from edvit_hf.errors import DataError, EDViTError
from edvit_hf.runtime.answers import Answer, Outcome
from edvit_hf.runtime.inputs import Inputs
from edvit_hf.transforms import TextTransform, Transform, source_inputs

PreparedSources = list[dict[str, np.ndarray] | EDViTError]
"""Each source's inputs for a batch of one, or why it has none."""


@dataclass(frozen=True)
class Batcher:
    """Answers several sources of one batch or stream.

    Attributes:
        transform: Prepares them.
        predict: Answers for a batch of prepared inputs.
        is_closed: Whether nobody answers any more: then the error ends the batch or stream.
    """

    transform: Transform
    predict: Callable[[Inputs], Answer]
    is_closed: Callable[[], bool]

    def batch(self, sources: Sequence[Any]) -> list[Outcome]:
        """See `EDViTRuntime.batch`."""
        return self._answered(self._prepared(sources), 0)

    def stream(self, sources: Iterator[Any], batch_size: int) -> Iterator[Outcome]:
        """See `EDViTRuntime.stream`."""
        # Taken on a thread: an answer must not wait until a camera has its next picture. Nor may whoever leaves the
        # stream, so that nothing here waits for the thread's end.
        wanted: queue.SimpleQueue[Future[PreparedSources] | None] = queue.SimpleQueue()
        threading.Thread(
            target=_take, args=(sources, batch_size, self._prepared, wanted), name="edvit-prepare", daemon=True
        ).start()

        def ask() -> Future[PreparedSources]:
            future: Future[PreparedSources] = Future()
            wanted.put(future)
            return future

        start, coming = 0, ask()
        try:
            while prepared := coming.result():
                coming = ask()
                yield from self._answered(prepared, start)
                start += len(prepared)
        finally:
            coming.cancel()
            wanted.put(None)

    def _prepared(self, sources: Sequence[Any]) -> PreparedSources:
        prepared: PreparedSources = []
        for source in sources:
            try:
                prepared.append(source_inputs(self.transform, source))
            except EDViTError as error:
                prepared.append(error)
        return prepared

    def _answered(self, prepared: PreparedSources, start: int) -> list[Outcome]:
        """The outcomes of prepared sources, counted from `start`; those of one shape run together."""
        outcomes: dict[int, Outcome] = {}
        groups: dict[Any, dict[int, Inputs]] = {}
        is_text = isinstance(self.transform, TextTransform)
        for index, inputs in enumerate(prepared, start):
            if isinstance(inputs, EDViTError):
                outcomes[index] = Outcome(index=index, error=inputs)
            else:
                shape = None if is_text else tuple(values.shape for values in inputs.values())
                groups.setdefault(shape, {})[index] = inputs
        for group in groups.values():
            outcomes |= self._answered_together(group)
        return [outcomes[index] for index in sorted(outcomes)]

    def _answered_together(self, inputs: Mapping[int, Inputs]) -> dict[int, Outcome]:
        """Answer inputs of one shape in one request; if the input is at fault, one by one to find which."""
        try:
            answer = self.predict(_joined(self.transform, list(inputs.values())))
        except EDViTError as error:
            if self.is_closed():  # or a stream without end would go on without any answer
                raise
            if isinstance(error, DataError) and len(inputs) > 1:
                alone = [self._answered_together({index: each}) for index, each in inputs.items()]
                return {index: outcome for each in alone for index, outcome in each.items()}
            return {index: Outcome(index=index, error=error) for index in inputs}
        return {index: Outcome(index=index, answer=answer.item(row)) for row, index in enumerate(inputs)}


def _take(
    sources: Iterator[Any],
    size: int,
    prepare: Callable[[Sequence[Any]], PreparedSources],
    wanted: "queue.SimpleQueue[Future[PreparedSources] | None]",
) -> None:
    """Take and prepare `size` sources for each future that comes, until None does."""
    while (coming := wanted.get()) is not None:
        if not coming.set_running_or_notify_cancel():
            continue
        try:
            coming.set_result(prepare(list(islice(sources, size))))
        except BaseException as error:  # of the sources; whoever waits gets it
            coming.set_exception(error)


def _joined(transform: Transform, items: Sequence[Inputs]) -> Inputs:
    if isinstance(transform, TextTransform):
        return transform.pad([each["input_ids"][0] for each in items])
    return {name: np.concatenate([each[name] for each in items]) for name in items[0]}
