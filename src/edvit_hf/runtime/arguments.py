# SPDX-License-Identifier: Apache-2.0
"""Checks what a caller passes to the runtime, once, before anything is done with it."""

import os
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np

from edvit_hf.errors import DataError, EDViTError
from edvit_hf.strict import whole_number
from edvit_hf.tasks import Task

_LONGEST_TOLD = 60
_MAX_THREADS = 1024  # more than any machine has cores for; the system refuses far fewer than onnxruntime would ask for
_COLOURS = (3, 4)


def as_indices(indices: Any, argument: str) -> tuple[int, ...]:
    """The whole numbers in `indices`, of any iterable of them, numpy's included.

    Raises:
        EDViTError: It is a single number or a text, or holds something else. A list of booleans is refused too: as
            numbers they would name the sub-models 0 and 1.
    """
    try:
        found = None if isinstance(indices, (str, bytes)) else tuple(indices)
    except TypeError:
        found = None
    if found is None or not all(isinstance(i, (int, np.integer)) and not isinstance(i, bool) for i in found):
        raise EDViTError(
            f"Expected `{argument}` to be a list of whole numbers, the indices of sub-models, got {_cut(indices)}. "
            f"Which sub-models are meant is unknown. Pass a list, such as {argument}=[2]."
        )
    return tuple(int(index) for index in found)


def check_indices(indices: Any, num_sub_models: int, argument: str) -> tuple[int, ...]:
    """As `as_indices`. Refuses an index that no sub-model has, too."""
    found = as_indices(indices, argument)
    unknown = sorted(index for index in set(found) if not 0 <= index < num_sub_models)
    if unknown:
        raise EDViTError(
            f"`{argument}` names sub-model {', '.join(map(str, unknown))}; this ensemble has 0 to "
            f"{num_sub_models - 1}. An index that does not exist is a mix-up of ensembles or a typing error. "
            "Correct it."
        )
    return found


def check_deadline(deadline_ms: Any) -> float | None:
    """A deadline as a plain number.

    Raises:
        EDViTError: It is no positive number, or one beyond all that a clock can count.
    """
    if deadline_ms is None:
        return None
    try:
        is_number = isinstance(deadline_ms, Real) and not isinstance(deadline_ms, bool)
        if is_number and float(deadline_ms) > 0:
            return float(deadline_ms)
    except OverflowError:
        pass
    raise EDViTError(
        f"Expected a positive `deadline_ms`, a number of milliseconds, got {_cut(deadline_ms)}. Nobody could answer "
        "by then, or when to stop waiting is unknown. Pass one such as 100.0, or leave it out for the runtime's own."
    )


def check_engine(engine: Any) -> None:
    """Refuse the name of an engine that is not here."""
    if isinstance(engine, str) and engine != "local":
        raise EDViTError(
            f"Expected the engine `local` or an engine object, got {engine!r}. Nobody would carry the requests. Pass "
            "the engine itself."
        )


def check_num_threads(num_threads: Any) -> None:
    """Refuse what is neither None nor a whole number that the system could start so many threads of."""
    if num_threads is None:
        return
    whole_number("num_threads", num_threads, 1, "it is a number of cores, and 0 is not all", EDViTError)
    if num_threads > _MAX_THREADS:
        raise EDViTError(
            f"`num_threads` must be at most {_MAX_THREADS}, got {str(num_threads)[:_LONGEST_TOLD]}. More threads than "
            "cores make nothing faster, and the system refuses that many. Give a number of cores."
        )


def check_batch_size(batch_size: Any) -> None:
    """Refuse what is no whole number of at least 1."""
    if not isinstance(batch_size, (int, np.integer)) or isinstance(batch_size, bool) or batch_size < 1:
        raise DataError(
            f"Expected a `batch_size` of at least 1, a whole number, got {_cut(batch_size)}. Nothing would ever be "
            "answered. Pass 1 or more."
        )


def check_sources(sources: Any, task: Task) -> None:
    """Refuse one source where several are expected: its characters, bytes or rows would be taken for sources.

    Raises:
        DataError: It is one image, sound or text, or nothing that can be gone through.
    """
    if not isinstance(sources, Iterable) or _is_single(sources, task):
        shape = f" of shape {sources.shape}" if isinstance(sources, np.ndarray) else ""
        raise DataError(
            f"Expected several sources, got one {type(sources).__name__}{shape}. What it consists of would be taken "
            "for sources of their own. Pass a list, [source], or call the runtime itself for a single one."
        )


def _is_single(sources: Any, task: Task) -> bool:
    if isinstance(sources, (str, bytes, bytearray, memoryview, os.PathLike, Mapping)) or hasattr(sources, "read"):
        return True
    if isinstance(sources, np.ndarray):
        if task == "image-classification":
            return sources.ndim < 3 or (sources.ndim == 3 and sources.shape[-1] in _COLOURS)
        return sources.ndim < (2 if task == "audio-classification" else 1)
    is_pair = task == "audio-classification" and isinstance(sources, tuple) and len(sources) == 2
    return is_pair and any(isinstance(part, Real) for part in sources)  # samples and their rate


def _cut(value: Any) -> str:
    return f"{repr(value)[:_LONGEST_TOLD]} ({type(value).__name__})"
