"""Several inputs: grouped into requests, prepared ahead, and answered one by one whatever becomes of the others."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from edvit_hf.errors import DataError, EDViTError
from edvit_hf.runtime.answers import Outcome
from edvit_hf.transforms import TextTransform, Transform

if TYPE_CHECKING:
    from edvit_hf.runtime.ensemble import EDViTRuntime

Prepared = list[dict[str, np.ndarray] | EDViTError]


def prepare(transform: Transform, sources: Sequence[Any]) -> Prepared:
    """Each source's inputs for a batch of one, or why it has none."""
    found: Prepared = []
    for source in sources:
        try:
            found.append(transform.inputs(source))
        except EDViTError as error:
            found.append(error)
    return found


def answer_batch(runtime: "EDViTRuntime", sources: Sequence[Any], absent: Sequence[int]) -> list[Outcome]:
    """See `EDViTRuntime.batch`."""
    return _answer_prepared(runtime, prepare(runtime.transform, sources), absent, 0)


def answer_stream(
    runtime: "EDViTRuntime", sources: Iterable[Any], absent: Sequence[int], batch_size: int
) -> Iterator[Outcome]:
    """See `EDViTRuntime.stream`."""
    if batch_size < 1:
        raise DataError(f"Expected a `batch_size` of at least 1, got {batch_size}. Nothing would ever be answered.")
    return _stream(runtime, iter(sources), absent, batch_size)


def _stream(
    runtime: "EDViTRuntime", sources: Iterator[Any], absent: Sequence[int], batch_size: int
) -> Iterator[Outcome]:
    with ThreadPoolExecutor(1, thread_name_prefix="edvit-prepare") as pool:

        def take() -> Prepared:
            return prepare(runtime.transform, list(islice(sources, batch_size)))

        # Taken on the pool's thread: an answer must not wait until a camera has its next picture.
        start, coming = 0, pool.submit(take)
        while prepared := coming.result():
            coming = pool.submit(take)
            yield from _answer_prepared(runtime, prepared, absent, start)
            start += len(prepared)


def _answer_prepared(runtime: "EDViTRuntime", prepared: Prepared, absent: Sequence[int], start: int) -> list[Outcome]:
    outcomes: dict[int, Outcome] = {}
    groups: dict[Any, list[int]] = {}
    is_text = isinstance(runtime.transform, TextTransform)
    for row, inputs in enumerate(prepared):
        if isinstance(inputs, EDViTError):
            outcomes[row] = Outcome(index=start + row, error=inputs)
        else:
            shape = None if is_text else tuple(values.shape for values in inputs.values())
            groups.setdefault(shape, []).append(row)
    for rows in groups.values():
        outcomes |= _answer_rows(runtime, prepared, rows, absent, start)
    return [outcomes[row] for row in range(len(prepared))]


def _answer_rows(
    runtime: "EDViTRuntime", prepared: Prepared, rows: Sequence[int], absent: Sequence[int], start: int
) -> dict[int, Outcome]:
    """Answer inputs of one shape in one request; if the input is at fault, one by one to find which."""
    items = [inputs for row in rows if not isinstance(inputs := prepared[row], EDViTError)]
    try:
        answer = runtime.predict(_joined(runtime.transform, items), absent=absent)
    except EDViTError as error:
        if runtime.coordinator.is_closed:  # or a stream without end would go on without any answer
            raise
        if isinstance(error, DataError) and len(rows) > 1:
            alone = [_answer_rows(runtime, prepared, [row], absent, start) for row in rows]
            return {row: outcome for each in alone for row, outcome in each.items()}
        return {row: Outcome(index=start + row, error=error) for row in rows}
    return {row: Outcome(index=start + row, answer=answer.item(place)) for place, row in enumerate(rows)}


def _joined(transform: Transform, items: Sequence[Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
    if isinstance(transform, TextTransform):
        return transform.pad([each["input_ids"][0] for each in items])
    return {name: np.concatenate([each[name] for each in items]) for name in items[0]}
