# SPDX-License-Identifier: Apache-2.0
"""From features and votes to an answer: the fusion, and what the runtime gives back to its caller.

Shape letters: B batch, S sub-models, D sum of the feature sizes, V sum of the vote sizes, L labels.
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
from edvit_hf.runtime.engines import ON_REQUEST, Reason, SubModelResponse
from edvit_hf.runtime.engines.lanes import CLOSE_SECONDS, Job, Lane, join_all, within
from edvit_hf.tasks import ANSWERS

LONGEST_FUSION_SECONDS = 30.0  # where there is no deadline: a fusion head is a few small matrices
SHORTEST_FUSION_SECONDS = 0.25  # what is given to it even where waiting for sub-models has used up the deadline


Joined = dict[str, np.ndarray]  # "features" (B, D) and "votes" (B, V), of all sub-models side by side


class Fusion:
    """The exported fusion: from features, votes, and the mask of who is present, to probabilities.

    Files of earlier exports take no votes; what a graph reads is what it is fed.

    It runs on a thread of its own, so that one which does not end costs its caller no more than the deadline.
    """

    def __init__(self, manifest: Manifest, session: Any) -> None:
        """Take a session on the fusion's graph."""
        self._session = session
        reads = {item.name for item in session.get_inputs()}
        sizes = {"features": [entry.feature_size for entry in manifest.sub_models], "votes": manifest.vote_sizes}
        self.columns = {name: _columns(each) for name, each in sizes.items() if name in reads}
        self._lane = Lane()
        self._lane.start("edvit-fusion")
        self._stop = weakref.finalize(self, self._lane.close)

    def close(self) -> None:
        """Stop what runs, and end the thread."""
        self._stop()
        join_all([self._lane], CLOSE_SECONDS)

    def empty(self, num_rows: int) -> Joined:
        """What the graph reads but the mask, by name: zeros, as where everybody is absent."""
        return {name: np.zeros((num_rows, columns[-1].stop), np.float32) for name, columns in self.columns.items()}

    def join(self, responses: Mapping[int, SubModelResponse]) -> Joined:
        """Features (B, D) and votes (B, V) of the sub-models side by side, as far as the graph reads them.

        They are zero where a sub-model is absent.
        """
        joined = self.empty(len(next(iter(responses.values())).features))
        for name, columns in self.columns.items():
            for index, response in responses.items():
                joined[name][:, columns[index]] = getattr(response, ANSWERS[name])
        return joined

    def probabilities(
        self, joined: Joined, present: Sequence[bool], *, seconds: float = LONGEST_FUSION_SECONDS
    ) -> np.ndarray:
        """Probabilities (B, L) float32 from what `join` gave, of which only those present count; see `fused`."""
        kept = {name: np.zeros_like(values) for name, values in joined.items()}
        for name, values in joined.items():
            for columns, there in zip(self.columns[name], present, strict=True):
                if there:
                    kept[name][:, columns] = values[:, columns]
        return self.fused(kept, present, seconds=seconds)

    def fused(self, joined: Joined, present: Sequence[bool], *, seconds: float = LONGEST_FUSION_SECONDS) -> np.ndarray:
        """As `probabilities`, from what is zero where absent already, as `join` gives it.

        Raises:
            DeadlineError: It takes longer than that; the run is stopped.
            EDViTError: The fusion head cannot run, or gives values that are not finite.
        """
        num_rows = next((len(values) for values in joined.values()), 1)
        feeds = {**joined, "mask": np.array([present] * num_rows, np.float32)}
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
            shapes = ", ".join(f"{name} {values.shape}" for name, values in feeds.items())
            raise EDViTError(
                f"Expected the fusion head to take {shapes}, got: {error}. "
                "There is no answer without it. Fetch or export the ensemble again."
            ) from error
        if not np.isfinite(logits).all():
            raise EDViTError(
                "The fusion head gave values that are not finite for finite answers: its file is damaged or "
                "of another ensemble. Fetch or export the ensemble again."
            )
        return softmax(logits).astype(np.float32)


def _columns(sizes: Sequence[int]) -> list[slice]:
    """Where each sub-model's values stand, side by side."""
    ends = np.cumsum(sizes)
    return [slice(int(end) - size, int(end)) for end, size in zip(ends, sizes, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer of the ensemble, for a batch of B inputs, and how it came about.

    Attributes:
        label_names: Names of the L labels.
        probabilities: (B, L) float32, each row sums to 1.
        vote_logits: Per sub-model (B, its labels) logits over its class group and, where that leaves classes out,
            "other" (last); None for a sub-model that is not present.
        present: Per sub-model, whether it is in the answer.
        missing: Why each of the others is missing, by index.
        missing_classes: Names of the classes that no present sub-model votes over: the answer knows least about these.
        milliseconds: Per sub-model, its own run; None for one that is not present.
        bytes_sent: Per sub-model, what a device sends to the fusion for this answer: of its features and its vote,
            float32, what this kind of fusion looks at.
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
        """Per sub-model (B, its labels) float32 probabilities over its class group and "other" (last), or None.

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
