# SPDX-License-Identifier: Apache-2.0
"""`EDViTRuntime`: an exported ensemble that answers, on this machine or through any engine that reaches its devices.

Shape letters: B batch, S sub-models, D sum of the feature sizes, L labels.
"""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np

from edvit_hf.errors import EDViTError, QuorumError
from edvit_hf.hub.pulling import ensemble_folder
from edvit_hf.manifest import Manifest
from edvit_hf.runtime.answers import (
    LONGEST_FUSION_SECONDS,
    SHORTEST_FUSION_SECONDS,
    AbsentAnswer,
    Answer,
    Fusion,
    Joined,
    Outcome,
)
from edvit_hf.runtime.arguments import (
    as_indices,
    check_batch_size,
    check_deadline,
    check_engine,
    check_indices,
    check_sources,
)
from edvit_hf.runtime.batches import Batcher
from edvit_hf.runtime.coordinator import Coordinator, CoordinatorConfig
from edvit_hf.runtime.engines import Engine
from edvit_hf.runtime.engines.local import LocalEngine
from edvit_hf.runtime.engines.schedules import Schedule
from edvit_hf.runtime.inputs import Inputs, check_inputs, prepared_shape, read_once
from edvit_hf.runtime.opening import bind, fusion_of, shape_of_inputs, transform_of
from edvit_hf.runtime.sessions import check_profile, check_share
from edvit_hf.tasks import FUSION_READS, Task, unknown_classes
from edvit_hf.transforms import Transform, source_inputs

BYTES_PER_NUMBER = 4


class EDViTRuntime:
    """An exported ensemble that answers. Safe to share between threads; not between processes that were forked.

    Calling it answers one image, sound or text. `batch` and `stream` answer several, and go on where one cannot be
    read. `predict` takes inputs that are prepared already. What a missing sub-model costs tell `Answer.missing` and
    `explain`.

    Attributes:
        manifest: Of the ensemble.
        label_names: Names of the L labels.
        task: What it classifies.
        transform: Prepares images, sounds or texts.
        coordinator: Asks the sub-models.
        input_shape: Of one item of the main input; None where any size goes.
    """

    def __init__(
        self,
        manifest: Manifest,
        transform: Transform,
        fusion: Fusion,
        coordinator: Coordinator,
        *,
        input_shape: tuple[int | None, ...] | None = None,
    ) -> None:
        self.manifest = manifest
        self.label_names = tuple(manifest.label_names)
        self.task: Task = manifest.ensemble.task
        self.transform = transform
        self.coordinator = coordinator
        self.input_shape = prepared_shape(transform) if input_shape is None else input_shape
        self._fusion = fusion
        self._process = os.getpid()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        engine: Literal["local"] | Engine = "local",
        deadline_ms: float | None = None,
        precision: Literal["fp32", "fp16", "int8"] | None = None,
        sub_models: Sequence[int] | None = None,
        num_threads: int | None = None,
        profile: str | None = None,
        schedule: Literal["auto"] | Schedule = "auto",
        config: CoordinatorConfig | None = None,
    ) -> Self:
        """Load an ensemble, after checking every file that is opened against the manifest.

        It has then run once, so that the first answer is as quick as later ones; an engine of your own is not asked.

        Args:
            source: Folder with manifest.json, or the id of a Hub repository.
            revision: Branch, tag or commit of the repository.
            engine: "local" runs the sub-models in this process; or one that reaches others, such as `OIPEngine(...)`.
            deadline_ms: Answer without whoever is later than this, counted from the prepared input. Default: that of
                `config`, which waits for every sub-model.
            precision: "fp32", "fp16" or "int8", for the sub-models. Default: what a folder holds, fp32 first.
            sub_models: Load only these; the others are missing. Default: all that the folder holds.
            num_threads: Threads of one sub-model's run in turn, or of all workers together. Default: the cores this
                process may use, at most 4 for one run.
            profile: Kind of hardware whose files are preferred. Default: this one.
            schedule: How sub-models share the cores: "in_turn" (threads sleep between operators' work),
                "in_turn_spinning" (they spin while a run lasts), "per_core" (as many at once as there are cores),
                "workers" (all at once). "auto" times all of them for up to a second and takes the one with the lowest
                95th percentile. onnxruntime's own default, a spinning pool for each session, is never used.
            config: Quorum, breakers, line, probes.

        Raises:
            ManifestError: If the manifest is invalid, a file is missing or altered, `precision` was not exported (the
                message names what there is), a graph does not have the promised inputs, outputs and sizes, or
                `preprocessing` is not the file of the task.
            HubError: If the repository cannot be fetched.
            EDViTError: If there is no such folder, or an index or a profile is unknown.
        """
        check_engine(engine)
        deadline_ms = check_deadline(deadline_ms)
        sub_models = None if sub_models is None else as_indices(sub_models, "sub_models")
        root = ensemble_folder(source, revision=revision, precision=precision, profile=profile, sub_models=sub_models)
        manifest = Manifest.load(root, only_to_run=True)
        check_profile(manifest, profile)
        local = None
        if isinstance(engine, str):
            local = LocalEngine.load(
                root,
                manifest,
                precision=precision,
                sub_models=sub_models,
                num_threads=num_threads,
                profile=profile,
                schedule=schedule,
            )
            engine = cast(Engine, local)
        else:
            check_share(root, manifest, (), "fp32", profile)
        transform = transform_of(manifest, root)
        shape = shape_of_inputs(manifest, transform, local)
        fusion = fusion_of(manifest, root)
        bind(engine, manifest, transform)
        read_once(transform)
        config = config or CoordinatorConfig()
        config = config if deadline_ms is None else replace(config, deadline_ms=deadline_ms)
        return cls(manifest, transform, fusion, Coordinator(manifest, engine, config), input_shape=shape)

    def __reduce_ex__(self, protocol: Any, /) -> Any:
        """Refuse to be copied or sent to another process: threads and open files cannot be."""
        raise EDViTError(
            "Expected a runtime to stay in the process that loaded it, got one to copy or pickle. Its threads and open "
            "graphs cannot be sent. Share this one between threads, and have each process load its own with "
            "`EDViTRuntime.from_pretrained`: send the folder or Hub id."
        )

    def __repr__(self) -> str:
        """Which ensemble, of what, and how it runs here."""
        entry, loaded, num = self.manifest.ensemble, self.loaded, len(self.manifest.sub_models)
        part = f"{num} sub-models" if len(loaded) == num else f"sub-models {', '.join(map(str, loaded))} of {num}"
        engine = self.coordinator.engine
        how = f"schedule {engine.schedule}" if isinstance(engine, LocalEngine) else f"engine {type(engine).__name__}"
        closed = ", closed" if self.coordinator.is_closed else ""
        return f"<{type(self).__name__} {entry.id}: {entry.task}, {part}, {how}{closed}>"

    @property
    def loaded(self) -> tuple[int, ...]:
        """Indices of the sub-models that the engine reaches."""
        return tuple(sorted(self.coordinator.engine.sub_models))

    def sent_bytes(self, index: int) -> int:
        """Bytes that sub-model `index` sends to the fusion for one input: features, vote or both, float32.

        Which of them depends on the kind of fusion, see `FUSION_READS`.
        """
        check_indices([index], len(self.manifest.sub_models), "index")
        entry, votes = self.manifest.sub_models[index], self.manifest.vote_sizes
        sizes = {"features": entry.feature_size, "votes": votes[index]}
        return BYTES_PER_NUMBER * sum(sizes[name] for name in FUSION_READS[self.manifest.fusion.kind])

    def __call__(self, source: Any, absent: Sequence[int] = (), *, deadline_ms: float | None = None) -> Answer:
        """Answer for one image, sound or text (B = 1), prepared as in training: whatever `transform.inputs` takes.

        Raises what `predict` raises, and `DataError` for a source that cannot be read, or a text of which the tokenizer
        knows nothing.
        """
        return self.predict(source_inputs(self.transform, source), absent=absent, deadline_ms=deadline_ms)

    def predict(
        self, inputs: Inputs | np.ndarray, absent: Sequence[int] = (), *, deadline_ms: float | None = None
    ) -> Answer:
        """Answer for a batch of prepared inputs.

        Args:
            inputs: `pixel_values` (B, 3, H, W), `input_values` (B, frames, mel bins), or `input_ids` and
                `attention_mask` (B, T); an array alone is the first of these, of texts without padding.
            absent: Sub-models to leave out. They are not run.
            deadline_ms: Instead of the runtime's own, counted from this call.

        Raises:
            DataError: For an input of the wrong shape, an empty one, or one with values that are not finite.
            QuorumError: If too few sub-models are left.
            DeadlineError: If the fusion head does not end by the deadline, or within 30 seconds without one.
            OverloadedError: If more requests come than can be answered in time.
            EDViTError: If an index is unknown, the deadline is no positive number, or the runtime was closed.
        """
        return self._answer(inputs, absent, deadline_ms)[0]

    def batch(
        self, sources: Iterable[Any], absent: Sequence[int] = (), *, deadline_ms: float | None = None
    ) -> list[Outcome]:
        """Answer for several images, sounds or texts at once.

        Those of one shape run together, texts padded to the longest; a sub-model that fails is missing for all of
        them. One that cannot be read costs only its own answer. `deadline_ms` is that of each run, counted from the
        prepared inputs; it is for as many as run together.

        Raises:
            DataError: If `sources` is one source.
            EDViTError: If an index is unknown, the deadline is no positive number, or the runtime was closed.
        """
        return self._batcher(sources, absent, deadline_ms).batch(list(sources))

    def stream(
        self,
        sources: Iterable[Any],
        absent: Sequence[int] = (),
        *,
        batch_size: int = 1,
        deadline_ms: float | None = None,
    ) -> Iterator[Outcome]:
        """Answer for one source after the other as they come; the next are prepared while these are computed.

        One source (or `batch_size` of them) is taken ahead of those whose answers are given, on a thread of the
        stream's own: no answer waits for the source after it. A source that cannot be read, or an answer that fails,
        is an outcome with an error, and the stream goes on. `deadline_ms` is as in `batch`. Raises what `batch` raises,
        and `DataError` for a `batch_size` below 1.
        """
        check_batch_size(batch_size)
        return self._batcher(sources, absent, deadline_ms).stream(iter(sources), batch_size)

    def explain(self, source: Any, absent: Sequence[int] = ()) -> tuple[Answer, list[AbsentAnswer]]:
        """For one input: the answer, and what it would be without each (further) sub-model in turn.

        Every sub-model runs once and only the fusion head is asked again. With a single sub-model present the
        list is empty: without it there is no answer. Raises what `__call__` raises.

        Args:
            source: What `transform.inputs` takes.
            absent: Sub-models to leave out of all these answers. They are not run.
        """
        answer, joined = self._answer(source_inputs(self.transform, source), absent, None)
        whole, changes = answer.probabilities.argmax(axis=1), []
        for index in np.flatnonzero(answer.present) if sum(answer.present) > 1 else ():
            without = self._without(answer, joined, (int(index),))
            winners = without.argmax(axis=1)
            labels, changed = [self.label_names[winner] for winner in winners], (winners != whole).tolist()
            changes.append(AbsentAnswer(index=int(index), probabilities=without, labels=labels, changed=changed))
        return answer, changes

    def predict_without(
        self, inputs: Inputs | np.ndarray, subsets: Iterable[Sequence[int]], absent: Sequence[int] = ()
    ) -> tuple[Answer, list[np.ndarray]]:
        """The answer for a batch of prepared inputs, and what it would be without each of these sets of sub-models.

        Every sub-model runs once and only the fusion head is asked again: this is how accuracy with k sub-models
        absent is measured.

        Args:
            inputs: See `predict`.
            subsets: Sub-models to take away, for one answer each.
            absent: Sub-models to leave out of all these answers. They are not run.

        Returns:
            The answer without `absent` alone, and (B, L) float32 probabilities for each set.

        Raises:
            QuorumError: A set leaves nobody. And what `predict` raises.
        """
        wanted = [check_indices(subset, len(self.manifest.sub_models), "subsets") for subset in subsets]
        answer, joined = self._answer(inputs, absent, None)
        return answer, [self._without(answer, joined, subset) for subset in wanted]

    def _without(self, answer: Answer, joined: Joined, subset: Sequence[int]) -> np.ndarray:
        """(B, L) probabilities from what an answer was fused from, with a further set of sub-models taken away."""
        present = [there and index not in subset for index, there in enumerate(answer.present)]
        if not any(present):
            raise QuorumError(
                f"Expected at least one sub-model to be left, got {sorted(subset)} taken away from "
                f"{[i for i, there in enumerate(answer.present) if there]}. Nobody would answer. Leave one in."
            )
        return self._fusion.probabilities(joined, present, seconds=self._fusion_seconds(None, 0.0))

    def status(self) -> dict[str, Any]:
        """Requests, missing sub-models, breakers and the line since the start: JSON-able."""
        return self.coordinator.status()

    def close(self) -> None:
        """Stop what runs, wait a while for it, and free the engine. Leaving a `with` block does it too."""
        self.coordinator.close()
        self._fusion.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _batcher(self, sources: Iterable[Any], absent: Sequence[int], deadline_ms: float | None) -> Batcher:
        check_sources(sources, self.task)
        indices = check_indices(absent, len(self.manifest.sub_models), "absent")
        predict = partial(self.predict, absent=indices, deadline_ms=check_deadline(deadline_ms))
        return Batcher(self.transform, predict, lambda: self.coordinator.is_closed or os.getpid() != self._process)

    def _fusion_seconds(self, deadline_ms: float | None, passed: float) -> float:
        """How long the fusion head may take: what is left of the deadline, or a moment where that is used up."""
        limit = self.coordinator.config.deadline_ms if deadline_ms is None else deadline_ms
        if limit is None:
            return LONGEST_FUSION_SECONDS
        return max(SHORTEST_FUSION_SECONDS, min(LONGEST_FUSION_SECONDS, limit / 1e3 - passed))

    def _answer(
        self, inputs: Inputs | np.ndarray, absent: Sequence[int], deadline_ms: float | None
    ) -> tuple[Answer, Joined]:
        """The answer, and the features and votes that it was fused from, zero where absent."""
        if os.getpid() != self._process:
            raise EDViTError(
                "Expected the process that loaded this runtime, got one that was forked from it. Its threads were not "
                "copied, so nothing would ever answer. Load it again here, or start processes with `spawn`."
            )
        start = time.perf_counter()
        feeds = check_inputs(self.task, self.input_shape, inputs)
        absent = check_indices(absent, len(self.manifest.sub_models), "absent")
        deadline_ms = check_deadline(deadline_ms)
        gathered = self.coordinator.gather(feeds, absent, deadline_ms=deadline_ms)
        found = gathered.responses
        joined = self._fusion.join(found)
        present = tuple(index in found for index in range(len(self.manifest.sub_models)))
        before = time.perf_counter()
        left = self._fusion_seconds(deadline_ms, before - start)
        probabilities = self._fusion.fused(joined, present, seconds=left)
        end = time.perf_counter()
        unknown = unknown_classes(self.manifest.class_groups, present)
        answer = Answer(
            label_names=self.label_names,
            probabilities=probabilities,
            vote_logits=tuple(found[i].logits if p else None for i, p in enumerate(present)),
            present=present,
            missing=gathered.missing,
            missing_classes=tuple(self.label_names[c] for c in unknown),
            milliseconds=tuple(found[i].compute_ms if p else None for i, p in enumerate(present)),
            bytes_sent=tuple(len(probabilities) * self.sent_bytes(i) if p else 0 for i, p in enumerate(present)),
            fusion_milliseconds=1e3 * (end - before),
            total_milliseconds=1e3 * (end - start),
        )
        return answer, joined
