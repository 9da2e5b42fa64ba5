"""Several inputs: grouped into requests, prepared ahead, and answered one by one whatever becomes of the others."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from edvit_hf.errors import DataError, EDViTError
from edvit_hf.runtime.answers import Outcome
from edvit_hf.runtime.inputs import source_inputs
from edvit_hf.transforms import TextTransform, Transform

if TYPE_CHECKING:
    from edvit_hf.runtime.ensemble import EDViTRuntime

Prepared = list[dict[str, np.ndarray] | EDViTError]


def prepare(transform: Transform, sources: Sequence[Any]) -> Prepared:
    """Each source's inputs for a batch of one, or why it has none."""
    found: Prepared = []
    for source in sources:
        try:
            found.append(source_inputs(transform, source))
        except EDViTError as error:
            found.append(error)
    return found


@dataclass(frozen=True)
class Asking:
    """Whom all inputs of a batch or stream are put to, and how."""

    runtime: "EDViTRuntime"
    absent: Sequence[int]
    deadline_ms: float | None


def answer_batch(asking: Asking, sources: Sequence[Any]) -> list[Outcome]:
    """See `EDViTRuntime.batch`."""
    return _answer_prepared(asking, prepare(asking.runtime.transform, sources), 0)


def answer_stream(asking: Asking, sources: Iterator[Any], batch_size: int) -> Iterator[Outcome]:
    """See `EDViTRuntime.stream`."""
    with ThreadPoolExecutor(1, thread_name_prefix="edvit-prepare") as pool:

        def take() -> Prepared:
            return prepare(asking.runtime.transform, list(islice(sources, batch_size)))

        # Taken on the pool's thread: an answer must not wait until a camera has its next picture.
        start, coming = 0, pool.submit(take)
        while prepared := coming.result():
            coming = pool.submit(take)
            yield from _answer_prepared(asking, prepared, start)
            start += len(prepared)


def _answer_prepared(asking: Asking, prepared: Prepared, start: int) -> list[Outcome]:
    outcomes: dict[int, Outcome] = {}
    groups: dict[Any, list[int]] = {}
    is_text = isinstance(asking.runtime.transform, TextTransform)
    for row, inputs in enumerate(prepared):
        if isinstance(inputs, EDViTError):
            outcomes[row] = Outcome(index=start + row, error=inputs)
        else:
            shape = None if is_text else tuple(values.shape for values in inputs.values())
            groups.setdefault(shape, []).append(row)
    for rows in groups.values():
        outcomes |= _answer_rows(asking, prepared, rows, start)
    return [outcomes[row] for row in range(len(prepared))]


def _answer_rows(asking: Asking, prepared: Prepared, rows: Sequence[int], start: int) -> dict[int, Outcome]:
    """Answer inputs of one shape in one request; if the input is at fault, one by one to find which."""
    runtime = asking.runtime
    items = [inputs for row in rows if not isinstance(inputs := prepared[row], EDViTError)]
    try:
        answer = runtime.predict(
            _joined(runtime.transform, items), absent=asking.absent, deadline_ms=asking.deadline_ms
        )  # fmt: skip
    except EDViTError as error:
        if runtime.coordinator.is_closed:  # or a stream without end would go on without any answer
            raise
        if isinstance(error, DataError) and len(rows) > 1:
            alone = [_answer_rows(asking, prepared, [row], start) for row in rows]
            return {row: outcome for each in alone for row, outcome in each.items()}
        return {row: Outcome(index=start + row, error=error) for row in rows}
    return {row: Outcome(index=start + row, answer=answer.item(place)) for place, row in enumerate(rows)}


def _joined(transform: Transform, items: Sequence[Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
    if isinstance(transform, TextTransform):
        return transform.pad([each["input_ids"][0] for each in items])
    return {name: np.concatenate([each[name] for each in items]) for name in items[0]}
