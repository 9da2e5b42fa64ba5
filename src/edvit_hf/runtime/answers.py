# SPDX-License-Identifier: Apache-2.0
"""From features to an answer: the fusion head, and what the runtime gives back to its caller.

Shape letters: B batch, S sub-models, D sum of the feature sizes, L labels.
"""

import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from edvit_hf.errors import DataError, DeadlineError, EDViTError
from edvit_hf.manifest import Manifest
from edvit_hf.probabilities import softmax
from edvit_hf.runtime.engines import ON_REQUEST, Reason
from edvit_hf.runtime.engines.lanes import CLOSE_SECONDS, Job, Lane, join_all, within

LONGEST_FUSION_SECONDS = 30.0  # where there is no deadline: a fusion head is a few small matrices
SHORTEST_FUSION_SECONDS = 0.25  # what is given to it even where waiting for sub-models has used up the deadline


class Fusion:
    """The exported fusion head: from features, and the mask of who is present, to probabilities.

    It runs on a thread of its own, so that one which does not end costs its caller no more than the deadline.
    """

    def __init__(self, manifest: Manifest, session: Any) -> None:
        """Take a session on the fusion head's graph."""
        self._session = session
        sizes = [entry.feature_size for entry in manifest.sub_models]
        ends = np.cumsum(sizes)
        self.columns = [slice(int(end) - size, int(end)) for end, size in zip(ends, sizes, strict=True)]
        self._lane = Lane()
        self._lane.start("edvit-fusion")
        self._stop = weakref.finalize(self, self._lane.close)

    def close(self) -> None:
        """Stop what runs, and end the thread."""
        self._stop()
        join_all([self._lane], CLOSE_SECONDS)

    def join(self, features: Mapping[int, np.ndarray]) -> np.ndarray:
        """Features (B, D) from those of each sub-model (B, d), zero where absent."""
        joined = np.zeros((len(next(iter(features.values()))), self.columns[-1].stop), np.float32)
        for index, values in features.items():
            joined[:, self.columns[index]] = values
        return joined

    def probabilities(
        self, features: np.ndarray, present: Sequence[bool], *, seconds: float = LONGEST_FUSION_SECONDS
    ) -> np.ndarray:
        """Probabilities (B, L) float32 from joined features, of which only those present count; see `fused`."""
        kept = np.zeros_like(features)
        for columns, there in zip(self.columns, present, strict=True):
            if there:
                kept[:, columns] = features[:, columns]
        return self.fused(kept, present, seconds=seconds)

    def fused(
        self, joined: np.ndarray, present: Sequence[bool], *, seconds: float = LONGEST_FUSION_SECONDS
    ) -> np.ndarray:
        """As `probabilities`, from features that are zero where absent already, as `join` gives them.

        Raises:
            DeadlineError: It takes longer than that; the run is stopped.
            EDViTError: The fusion head cannot run, or gives values that are not finite.
        """
        mask = np.array([present] * len(joined), np.float32)
        feeds = {"features": joined, "mask": mask}
        job = Job(0, self._lane, lambda options: self._session.run(["logits"], feeds, options)[0])
        self._lane.add(job)
        if not self._stop.alive:
            job.cancel()
        try:
            logits = within(seconds, job)
        except TimeoutError as error:
            raise DeadlineError(
                f"Expected the fusion head to answer within {seconds:.3g} s, got nothing. There is no answer without "
                "it. Allow more time; if it happens again the file is damaged or hostile: fetch or export the ensemble "
                "again."
            ) from error
        except CancelledError as error:
            raise EDViTError(
                "Expected an open runtime, got one that was closed. Nobody fuses. Load it again."
            ) from error
        except Exception as error:  # onnxruntime raises bare types of its own extension module
            raise EDViTError(
                f"Expected the fusion head to take features {joined.shape} and a mask {mask.shape}, got: {error}. "
                "There is no answer without it. Fetch or export the ensemble again."
            ) from error
        if not np.isfinite(logits).all():
            raise EDViTError(
                "The fusion head gave values that are not finite for finite features: its file is damaged or "
                "of another ensemble. Fetch or export the ensemble again."
            )
        return softmax(logits).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer of the ensemble, for a batch of B inputs, and how it came about.

    Attributes:
        label_names: Names of the L labels.
        probabilities: (B, L) float32, each row sums to 1.
        vote_logits: Per sub-model (B, |group| + 1) logits over its class group and "other" (last); None for a sub-model
            that is not present.
        present: Per sub-model, whether its features are in the answer.
        missing: Why each of the others is missing, by index.
        missing_classes: Names of the classes whose sub-model is missing: the answer knows least about these.
        milliseconds: Per sub-model, its own run; None for one that is not present.
        bytes_sent: Per sub-model, what a device sends to the fusion head for this answer: its features, float32.
        fusion_milliseconds: The fusion head's run.
        total_milliseconds: The whole call, fusion head included, without preparing the input.
    """

    label_names: tuple[str, ...]
    probabilities: np.ndarray
    vote_logits: tuple[np.ndarray | None, ...]
    present: tuple[bool, ...]
    missing: Mapping[int, Reason]
    missing_classes: tuple[str, ...]
    milliseconds: tuple[float | None, ...]
    bytes_sent: tuple[int, ...]
    fusion_milliseconds: float
    total_milliseconds: float

    @cached_property
    def votes(self) -> tuple[np.ndarray | None, ...]:
        """Per sub-model (B, |group| + 1) float32 probabilities over its class group and "other" (last), or None.

        Made when asked for: an answer need not wait for them.
        """
        return tuple(None if each is None else softmax(each).astype(np.float32) for each in self.vote_logits)

    @property
    def degraded(self) -> bool:
        """Whether any sub-model is missing from the answer, on request, unloaded or failed."""
        return not all(self.present)

    @property
    def failed(self) -> tuple[int, ...]:
        """Sub-models that are missing though they were to take part."""
        return tuple(index for index, reason in self.missing.items() if reason not in ON_REQUEST)

    @property
    def labels(self) -> list[str]:
        """The most probable label of each item."""
        return [self.label_names[index] for index in self.probabilities.argmax(axis=1)]

    @property
    def label(self) -> str:
        """The most probable label of the only item.

        Raises:
            DataError: The answer is for several.
        """
        if len(self.probabilities) != 1:
            raise DataError(
                f"Expected an answer for one input, got one for {len(self.probabilities)}. Each has a label of its own."
                " Use `labels`."
            )
        return self.labels[0]

    def item(self, row: int) -> "Answer":
        """The answer for one input of the batch; the times stay those of the whole batch."""
        rows = slice(row, row + 1)
        return replace(
            self,
            probabilities=self.probabilities[rows],
            vote_logits=tuple(None if each is None else each[rows] for each in self.vote_logits),
            bytes_sent=tuple(sent // len(self.probabilities) for sent in self.bytes_sent),
        )


@dataclass(frozen=True, kw_only=True)
class AbsentAnswer:
    """What the answer would be without one more sub-model.

    Attributes:
        index: The sub-model that is taken away.
        probabilities: (B, L) float32 without it.
        labels: The most probable label of each item without it.
        changed: Per item, whether the most probable label differs from the answer with it.
    """

    index: int
    probabilities: np.ndarray
    labels: list[str]
    changed: list[bool]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one input among several: an answer or an error, never both.

    Attributes:
        index: Which input, counted from 0.
        answer: For this input alone (B = 1).
        error: Why there is none.
    """

    index: int
    answer: Answer | None = None
    error: EDViTError | None = None
