"""All sub-models in one process, one after the other, on onnxruntime.

Shape letters: B batch, S sub-models, D sum of the feature sizes, L labels.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import onnxruntime

from edvit_hf.calibration import softmax
from edvit_hf.errors import DataError, EDViTError, ManifestError
from edvit_hf.manifest import Manifest
from edvit_hf.runtime.inputs import Inputs, check_inputs
from edvit_hf.runtime.sessions import (
    check_indices,
    check_signature,
    check_sub_model,
    open_session,
    session_options,
    suited_variant,
)
from edvit_hf.tasks import PREPROCESSING_FILE, Task
from edvit_hf.transforms import Transform, load_transform

logger = logging.getLogger(__name__)

BYTES_PER_FEATURE = 4


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer of the ensemble and how it came about.

    Attributes:
        label_names: Names of the L labels.
        probabilities: (B, L) float32, each row sums to 1.
        votes: Per sub-model (B, |group| + 1) float32 probabilities over its class group and "other" (last);
            None for a sub-model that is not present.
        present: Per sub-model, whether its features are in the answer.
        failed: Sub-models left out because their features were not finite; a subset of those not present.
        milliseconds: Per sub-model, the time of its own run; None for one that was not run.
        total_milliseconds: The whole call, fusion head included, without preparing the input.
    """

    label_names: tuple[str, ...]
    probabilities: np.ndarray
    votes: tuple[np.ndarray | None, ...]
    present: tuple[bool, ...]
    failed: tuple[int, ...]
    milliseconds: tuple[float | None, ...]
    total_milliseconds: float

    @property
    def degraded(self) -> bool:
        """Whether any sub-model is missing from the answer, on request, unloaded or failed."""
        return not all(self.present)

    @property
    def labels(self) -> list[str]:
        """The most probable label of each item."""
        return [self.label_names[index] for index in self.probabilities.argmax(axis=1)]


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


class LocalEnsemble:
    """An exported ensemble on this machine. Safe to share between threads: a call changes nothing in it."""

    def __init__(
        self,
        manifest: Manifest,
        transform: Transform,
        sub_models: Mapping[int, onnxruntime.InferenceSession],
        fusion: onnxruntime.InferenceSession,
    ) -> None:
        self.manifest = manifest
        self.transform = transform
        self._sessions = dict(sorted(sub_models.items()))
        self._fusion = fusion
        sizes = [entry.feature_size for entry in manifest.sub_models]
        ends = np.cumsum(sizes)
        self._columns = [slice(int(end) - size, int(end)) for end, size in zip(ends, sizes, strict=True)]

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        *,
        precision: Literal["fp32", "int8"] = "fp32",
        sub_models: Sequence[int] | None = None,
        num_threads: int | None = None,
        profile: str | None = None,
    ) -> Self:
        """Open the exported files of a local ensemble folder, after checking their hashes.

        Args:
            directory (`str | Path`): Folder with manifest.json; `hf download REPO --local-dir DIR` makes one.
            precision (`str`): "fp32" or "int8", for the sub-models. The fusion head stays fp32.
            sub_models (`Sequence[int]`, *optional*): Load only these (default: all); the others are absent.
            num_threads (`int`, *optional*): Threads of one sub-model's run; they run in turn. Default: the
                cores this process may use, at most 4. onnxruntime's own default, a spinning pool for each
                session, is never used: with several sub-models it is slower than a single thread.
            profile (`str`, *optional*): Kind of hardware whose files are preferred. Default: this one.

        Raises:
            ManifestError: If the manifest is invalid, a file is missing or altered, `precision` was not
                exported (the message names what there is), a graph does not have the promised inputs,
                outputs and sizes, or `preprocessing` is not the file of the task.
            EDViTError: If the folder does not exist or an index is unknown.
        """
        root = Path(directory)
        if not root.is_dir():
            raise EDViTError(
                f"Expected a folder with an exported ensemble, got {str(directory)!r}, which is not one. "
                f"The runtime reads local files only. For a Hub repository run: hf download {directory} "
                "--local-dir ensemble"
            )
        manifest = Manifest.load(root)
        chosen = range(len(manifest.sub_models)) if sub_models is None else sorted(set(sub_models))
        check_indices(chosen, len(manifest.sub_models), "sub_models")
        if not chosen:
            raise EDViTError("`sub_models` is empty: without any sub-model there is no answer. Name at least one.")
        options = session_options(num_threads)
        sessions = {
            i: open_session(root, suited_variant(manifest.sub_models[i], precision, profile), options) for i in chosen
        }
        for index, session in sessions.items():
            check_sub_model(manifest, index, session)
        fusion = open_session(root, manifest.fusion.variant("fp32"), options)
        check_signature(fusion, inputs=("features", "mask"), outputs=("logits",), what="the fusion head")
        return cls(manifest, _transform_of(manifest, root), sessions, fusion)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the L labels."""
        return tuple(self.manifest.label_names)

    @property
    def loaded(self) -> tuple[int, ...]:
        """Indices of the sub-models that are loaded."""
        return tuple(self._sessions)

    @property
    def task(self) -> Task:
        """What the ensemble classifies."""
        return self.manifest.ensemble.task

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """Shape of one input: (3, height, width), (frames, mel bins) or (tokens,); None where any size goes."""
        shape = next(iter(self._sessions.values())).get_inputs()[0].shape[1:]
        return tuple(size if isinstance(size, int) else None for size in shape)

    def feature_bytes(self, index: int) -> int:
        """Bytes that sub-model `index` sends to the fusion head for one input (float32 features)."""
        check_indices([index], len(self.manifest.sub_models), "index")
        return BYTES_PER_FEATURE * self.manifest.sub_models[index].feature_size

    def __call__(self, source: Any, absent: Sequence[int] = ()) -> Answer:
        """Answer for one image, sound or text (B = 1), prepared as in training: whatever `transform.inputs` takes.

        Raises what `predict` raises, and `DataError` for a source that cannot be read.
        """
        return self.predict(self.transform.inputs(source), absent=absent)

    def predict(self, inputs: Inputs | np.ndarray, absent: Sequence[int] = ()) -> Answer:
        """Answer for a batch of prepared inputs.

        Args:
            inputs (`Mapping[str, np.ndarray] | np.ndarray`): `pixel_values` (B, 3, H, W), `input_values`
                (B, frames, mel bins), or `input_ids` and `attention_mask` (B, T); an array alone is the first
                of these, of texts without padding.
            absent (`Sequence[int]`): Sub-models to leave out. They are not run.

        Raises:
            DataError: For an input of the wrong shape, an empty one, or one with values that are not finite.
            EDViTError: If an index is unknown or no sub-model is left.
        """
        return self._answer(inputs, absent)[0]

    def _answer(self, inputs: Inputs | np.ndarray, absent: Sequence[int]) -> tuple[Answer, np.ndarray]:
        """The answer and the features (B, D) it was fused from, zero where absent."""
        start = time.perf_counter()
        feeds = check_inputs(self.task, self.input_shape, inputs)
        batch_size = len(next(iter(feeds.values())))
        check_indices(absent, len(self.manifest.sub_models), "absent")
        runs = {i: self._run(i, feeds) for i in self._sessions if i not in set(absent)}
        features, votes, milliseconds, failed = self._gather(runs, batch_size)
        present = tuple(vote is not None for vote in votes)
        probabilities = self._fuse(features, present)
        answer = Answer(
            label_names=self.label_names,
            probabilities=probabilities,
            votes=votes,
            present=present,
            failed=failed,
            milliseconds=milliseconds,
            total_milliseconds=1000 * (time.perf_counter() - start),
        )
        return answer, features

    def what_if_absent(self, source: Any, absent: Sequence[int] = ()) -> list[AbsentAnswer]:
        """For one input: the answer without each (further) sub-model in turn, as `explain` gives it."""
        return self.explain(source, absent)[1]

    def explain(self, source: Any, absent: Sequence[int] = ()) -> tuple[Answer, list[AbsentAnswer]]:
        """For one input: the answer, and what it would be without each (further) sub-model in turn.

        Every sub-model runs once and only the fusion head is asked again. With a single sub-model present the
        list is empty: without it there is no answer. Raises what `__call__` raises.

        Args:
            source (`Any`): What `transform.inputs` takes.
            absent (`Sequence[int]`): Sub-models to leave out of all these answers. They are not run.
        """
        answer, features = self._answer(self.transform.inputs(source), absent)
        whole, changes = answer.probabilities.argmax(axis=1), []
        for index in np.flatnonzero(answer.present) if sum(answer.present) > 1 else ():
            without = self._fuse(features, [there and i != index for i, there in enumerate(answer.present)])
            winners = without.argmax(axis=1)
            changes.append(
                AbsentAnswer(
                    index=int(index),
                    probabilities=without,
                    labels=[self.label_names[winner] for winner in winners],
                    changed=[bool(change) for change in winners != whole],
                )
            )
        return answer, changes

    def _run(self, index: int, feeds: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, float]:
        """Features (B, d), logits (B, |group| + 1) and milliseconds of one sub-model."""
        start = time.perf_counter()
        try:
            features, logits = self._sessions[index].run(["features", "logits"], feeds)
        except Exception as error:  # onnxruntime raises bare types of its own extension module
            shapes = ", ".join(f"{name} {values.shape}" for name, values in feeds.items())
            raise DataError(
                f"Expected an input that sub-model {index} can run, got {shapes}: {error}. A token number beyond "
                "the vocabulary or a text longer than the model reads does this. Prepare inputs with `transform`."
            ) from error
        return features, logits, 1000 * (time.perf_counter() - start)

    def _gather(
        self, runs: Mapping[int, tuple[np.ndarray, np.ndarray, float]], batch_size: int
    ) -> tuple[np.ndarray, tuple[np.ndarray | None, ...], tuple[float | None, ...], tuple[int, ...]]:
        """Features (B, D), zero where absent; votes; milliseconds; sub-models that gave values not finite."""
        num_sub_models = len(self.manifest.sub_models)
        features = np.zeros((batch_size, self._columns[-1].stop), np.float32)
        votes: list[np.ndarray | None] = [None] * num_sub_models
        milliseconds: list[float | None] = [None] * num_sub_models
        failed = []
        for index, (feature, logits, taken) in runs.items():
            milliseconds[index] = taken
            if np.isfinite(feature).all() and np.isfinite(logits).all():
                features[:, self._columns[index]] = feature
                votes[index] = softmax(logits).astype(np.float32)
            else:
                failed.append(index)
                logger.warning("sub-model %d gave values that are not finite: treated as absent", index)
        return features, tuple(votes), tuple(milliseconds), tuple(failed)

    def _fuse(self, features: np.ndarray, present: Sequence[bool]) -> np.ndarray:
        """Probabilities (B, L) from the features of the sub-models that are present."""
        if not any(present):
            raise EDViTError(
                f"No sub-model is present: all {len(present)} are absent, not loaded or gave values that are "
                f"not finite. An answer would be a guess. Let at least one of them take part."
            )
        mask = np.asarray(present, np.float32)
        columns = np.concatenate(
            [np.full(c.stop - c.start, m, np.float32) for c, m in zip(self._columns, mask, strict=True)]
        )
        feeds = {"features": features * columns, "mask": np.tile(mask, (len(features), 1))}
        (logits,) = self._fusion.run(["logits"], feeds)
        if not np.isfinite(logits).all():
            raise EDViTError(
                "The fusion head gave values that are not finite for finite features: its file is damaged or "
                "of another ensemble. Fetch or export the ensemble again."
            )
        return softmax(logits).astype(np.float32)


def _transform_of(manifest: Manifest, root: Path) -> Transform:
    task = manifest.ensemble.task
    if manifest.preprocessing != PREPROCESSING_FILE[task]:
        raise ManifestError(
            f"Expected `preprocessing` to be {PREPROCESSING_FILE[task]!r} for {task}, got {manifest.preprocessing!r}. "
            "Inputs would be prepared by another file than the manifest says. Fetch or export the ensemble again."
        )
    return load_transform(root, task)
