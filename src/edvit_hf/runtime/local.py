"""All sub-models in one process, one after the other, on onnxruntime.

Shape letters: B batch, S sub-models, D sum of the feature sizes, L labels.
"""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import onnxruntime

from edvit_hf.errors import DataError, EDViTError, ManifestError
from edvit_hf.manifest import Manifest, SubModelEntry, Variant, verify_file
from edvit_hf.profiles import detect_profile
from edvit_hf.transforms import ImageTransform

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

MAX_DEFAULT_THREADS = 4
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
        total_milliseconds: The whole call, fusion head included, without reading and resizing the image.
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
        transform: ImageTransform,
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
                exported (the message names what there is), or a graph does not have the promised inputs,
                outputs and sizes.
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
        _check_indices(chosen, len(manifest.sub_models), "sub_models")
        if not chosen:
            raise EDViTError("`sub_models` is empty: without any sub-model there is no answer. Name at least one.")
        options = _session_options(num_threads)
        sessions = {i: _open(root, _suited(manifest.sub_models[i], precision, profile), options) for i in chosen}
        for index, session in sessions.items():
            _check_sub_model(manifest, index, session)
        fusion = _open(root, manifest.fusion.variant("fp32"), options)
        _check_signature(fusion, inputs=("features", "mask"), outputs=("logits",), what="the fusion head")
        return cls(manifest, ImageTransform.from_file(root / manifest.image_preprocessing), sessions, fusion)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the L labels."""
        return tuple(self.manifest.label_names)

    @property
    def loaded(self) -> tuple[int, ...]:
        """Indices of the sub-models that are loaded."""
        return tuple(self._sessions)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one input, in pixels."""
        size = self.transform.size
        if size is None:
            shape = next(iter(self._sessions.values())).get_inputs()[0].shape
            size = (int(shape[2]), int(shape[3]))
        return (3, *size)

    def feature_bytes(self, index: int) -> int:
        """Bytes that sub-model `index` sends to the fusion head for one input (float32 features)."""
        _check_indices([index], len(self.manifest.sub_models), "index")
        return BYTES_PER_FEATURE * self.manifest.sub_models[index].feature_size

    def __call__(self, image: "bytes | str | Path | Image.Image | np.ndarray", absent: Sequence[int] = ()) -> Answer:
        """Answer for one image (B = 1), read and resized as in training. Raises what `predict` raises."""
        return self.predict(self.transform(image), absent=absent)

    def predict(self, pixel_values: np.ndarray, absent: Sequence[int] = ()) -> Answer:
        """Answer for a batch of prepared images.

        Args:
            pixel_values (`np.ndarray`): (B, 3, H, W) float32, normalised.
            absent (`Sequence[int]`): Sub-models to leave out. They are not run.

        Raises:
            DataError: For an input of the wrong shape, an empty one, or one with values that are not finite.
            EDViTError: If an index is unknown or no sub-model is left.
        """
        return self._answer(pixel_values, absent)[0]

    def _answer(self, pixel_values: np.ndarray, absent: Sequence[int]) -> tuple[Answer, np.ndarray]:
        """The answer and the features (B, D) it was fused from, zero where absent."""
        start = time.perf_counter()
        pixels = self._checked(pixel_values)
        _check_indices(absent, len(self.manifest.sub_models), "absent")
        runs = {i: self._run(i, pixels) for i in self._sessions if i not in set(absent)}
        features, votes, milliseconds, failed = self._gather(runs, len(pixels))
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

    def what_if_absent(
        self, image: "bytes | str | Path | Image.Image | np.ndarray", absent: Sequence[int] = ()
    ) -> list[AbsentAnswer]:
        """For one image: the answer without each (further) sub-model in turn, as `explain` gives it."""
        return self.explain(image, absent)[1]

    def explain(
        self, image: "bytes | str | Path | Image.Image | np.ndarray", absent: Sequence[int] = ()
    ) -> tuple[Answer, list[AbsentAnswer]]:
        """For one image: the answer, and what it would be without each (further) sub-model in turn.

        Every sub-model runs once and only the fusion head is asked again. With a single sub-model present the
        list is empty: without it there is no answer. Raises what `predict` raises.

        Args:
            image (`bytes | str | Path | Image | np.ndarray`): What `transform` takes.
            absent (`Sequence[int]`): Sub-models to leave out of all these answers. They are not run.
        """
        answer, features = self._answer(self.transform(image), absent)
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

    def _run(self, index: int, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Features (B, d), logits (B, |group| + 1) and milliseconds of one sub-model."""
        start = time.perf_counter()
        features, logits = self._sessions[index].run(["features", "logits"], {"pixel_values": pixels})
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
                votes[index] = _softmax(logits)
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
        return _softmax(logits)

    def _checked(self, pixel_values: np.ndarray) -> np.ndarray:
        """The input as contiguous float32, or a DataError that says what is wrong with it."""
        pixels = np.ascontiguousarray(pixel_values, dtype=np.float32)
        if pixels.ndim != 4 or len(pixels) == 0 or pixels.shape[1:] != self.input_shape:
            expected = ", ".join(str(n) for n in self.input_shape)
            raise DataError(
                f"Expected pixel values of shape (B, {expected}) with B at least 1, got {pixels.shape}. "
                f"Call the ensemble with the image itself to have it resized."
            )
        if not np.isfinite(pixels).all():
            raise DataError(
                f"Expected finite pixel values, got {int((~np.isfinite(pixels)).sum())} NaN or infinite "
                f"ones. No sub-model can answer for them. Check how the image was normalised."
            )
        return pixels


def _session_options(num_threads: int | None) -> onnxruntime.SessionOptions:
    """Fixed threads, no spinning: sub-models that run in turn must not leave busy threads behind."""
    if num_threads is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        num_threads = min(MAX_DEFAULT_THREADS, cores)
    if num_threads < 1:
        raise EDViTError(f"`num_threads` must be at least 1, got {num_threads}. It is a number of cores, 0 is not all.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def _suited(entry: SubModelEntry, precision: str, profile: str | None) -> Variant:
    """The file for `profile` (default: this machine's) if there is one, else the first of that precision."""
    variants = [variant for variant in entry.variants if variant.precision == precision]
    offered = {variant.profile for variant in variants}
    if profile is None and offered - {None}:
        profile = detect_profile()
    if profile not in offered and None not in offered and variants:
        logger.warning(
            "sub-model %d: no %s file for %s, using the one for %s; it may be slower or less exact here",
            entry.index,
            precision,
            profile,
            variants[0].profile,
        )
        profile = variants[0].profile
    return entry.variant(precision, profile)


def _open(root: Path, variant: Variant, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """A session on one file whose hash was checked."""
    path = verify_file(root, variant)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises bare types of its own extension module
        raise ManifestError(
            f"{variant.file} has the promised hash, but onnxruntime {onnxruntime.__version__} cannot open "
            f"it: {error}. Upgrade onnxruntime, or export again with a lower opset (this file: "
            f"{variant.opset})."
        ) from error


def _check_sub_model(manifest: Manifest, index: int, session: onnxruntime.InferenceSession) -> None:
    """The graph must have the promised names, feature size and number of votes."""
    entry = manifest.sub_models[index]
    what = f"sub-model {index}"
    _check_signature(session, inputs=("pixel_values",), outputs=("features", "logits"), what=what)
    widths = {output.name: output.shape[-1] for output in session.get_outputs()}
    has_other = len(entry.class_group) < len(manifest.label_names)  # a group of all classes needs no "other"
    promised = {"features": entry.feature_size, "logits": len(entry.class_group) + has_other}
    for name, width in promised.items():
        if isinstance(widths[name], int) and widths[name] != width:
            raise ManifestError(
                f"{what}: the manifest promises {name} of size {width}, the graph gives {widths[name]}. "
                f"Manifest and files do not belong together. Fetch or export the ensemble again."
            )


def _check_signature(
    session: onnxruntime.InferenceSession, *, inputs: Sequence[str], outputs: Sequence[str], what: str
) -> None:
    found_inputs = [item.name for item in session.get_inputs()]
    found_outputs = [item.name for item in session.get_outputs()]
    if sorted(found_inputs) != sorted(inputs) or not set(outputs) <= set(found_outputs):
        raise ManifestError(
            f"{what}: expected a graph from {', '.join(inputs)} to {', '.join(outputs)}, got one from "
            f"{', '.join(found_inputs)} to {', '.join(found_outputs)}. It was not exported for this runtime. "
            "Export again."
        )


def _check_indices(indices: Sequence[int], num_sub_models: int, argument: str) -> None:
    unknown = sorted(index for index in set(indices) if not 0 <= index < num_sub_models)
    if unknown:
        raise EDViTError(
            f"`{argument}` names sub-model {', '.join(map(str, unknown))}; this ensemble has 0 to "
            f"{num_sub_models - 1}. An index that does not exist is a mix-up of ensembles or a typing error. "
            "Correct it."
        )


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Row-wise softmax, float32."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return (shifted / shifted.sum(axis=-1, keepdims=True)).astype(np.float32)
