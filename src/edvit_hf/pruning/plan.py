# SPDX-License-Identifier: Apache-2.0
"""The pruned shape as data: which units stay, readable and storable before any weight is cut."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
from transformers import PreTrainedConfig

from edvit_hf.errors import PruningError
from edvit_hf.pruning.axes import Architecture, Widths, architecture_of, resized
from edvit_hf.pruning.importance import UnitScores

_SCHEMA_VERSION = 1
_BYTES_PER_PARAMETER = 4  # float32


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """Indices of the units that stay, with the sizes of the teacher they were chosen in.

    Attributes:
        model_type: Architecture of the teacher.
        kept_residual: Residual channels, sorted.
        kept_heads: Attention heads of every layer, sorted; equally many in each.
        kept_ffn: FFN units of every layer, sorted; equally many in each.
        hidden_size: The teacher's residual channels.
        num_heads: The teacher's heads per layer.
        head_dim: Dimensions per head; stays.
        intermediate_size: The teacher's FFN units per layer.
        num_labels_before: Rows of the teacher's classifier.
        num_labels: Rows of the classifier that `parameters_after` counts.
        parameters_before: Parameters of the teacher.
        parameters_after: Parameters after the cut, with `num_labels` labels.
    """

    model_type: str
    kept_residual: list[int]
    kept_heads: list[list[int]]
    kept_ffn: list[list[int]]
    hidden_size: int
    num_heads: int
    head_dim: int
    intermediate_size: int
    num_labels_before: int
    num_labels: int
    parameters_before: int
    parameters_after: int

    def __post_init__(self) -> None:
        sizes = (
            "hidden_size",
            "num_heads",
            "head_dim",
            "intermediate_size",
            "num_labels_before",
            "num_labels",
        )
        for name in (*sizes, "parameters_before", "parameters_after"):
            value = getattr(self, name)
            if not _is_int(value) or value < 1:
                raise PruningError(f"`{name}` of a pruning plan must be a positive whole number, got {value!r}.")
        _check_indices("kept_residual", self.kept_residual, self.hidden_size)
        for name, per_layer, size in (
            ("kept_heads", self.kept_heads, self.num_heads),
            ("kept_ffn", self.kept_ffn, self.intermediate_size),
        ):
            if not isinstance(per_layer, list) or not per_layer:
                raise PruningError(f"`{name}` must be a list with one list of indices per layer, got {per_layer!r}.")
            for layer, kept in enumerate(per_layer):
                _check_indices(f"{name}[{layer}]", kept, size)
            if len({len(kept) for kept in per_layer}) > 1:
                raise PruningError(
                    f"`{name}` keeps {[len(kept) for kept in per_layer]} units per layer. A stock config has "
                    f"one size for all layers; keep equally many in each."
                )
        if len(self.kept_heads) != len(self.kept_ffn):
            raise PruningError(
                f"`kept_heads` has {len(self.kept_heads)} layers, `kept_ffn` {len(self.kept_ffn)}; both must "
                f"have one entry per layer of the teacher."
            )

    @property
    def widths_before(self) -> Widths:
        """Sizes of the teacher."""
        return Widths(
            residual=self.hidden_size,
            heads=self.num_heads,
            head_dim=self.head_dim,
            ffn=self.intermediate_size,
            labels=self.num_labels_before,
            layers=len(self.kept_heads),
        )

    @property
    def widths_after(self) -> Widths:
        """Sizes of the pruned model."""
        return resized(
            self.widths_before,
            residual=len(self.kept_residual),
            heads=len(self.kept_heads[0]),
            ffn=len(self.kept_ffn[0]),
            labels=self.num_labels,
        )

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain values that JSON can hold."""
        return {"schema_version": _SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PruningPlan":
        """Read what `to_dict` gave.

        Raises:
            PruningError: If it is no plan, comes from another schema version, or its indices cannot be cut.
        """
        if not isinstance(values, Mapping) or values.get("schema_version") != _SCHEMA_VERSION:
            raise PruningError(
                f"Expected a pruning plan with schema_version {_SCHEMA_VERSION}, got something else. Make "
                f"the plan again, or read it with the version of edvit_hf that wrote it."
            )
        expected = {"schema_version", *(field.name for field in fields(cls))}
        if values.keys() != expected:
            raise PruningError(
                f"A pruning plan has exactly the keys {sorted(expected)}; missing "
                f"{sorted(expected - values.keys())}, unknown {sorted(values.keys() - expected)}. Make the "
                f"plan again."
            )
        return cls(**{name: value for name, value in values.items() if name != "schema_version"})

    def to_json(self) -> str:
        """The plan as the text of a JSON object."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> "PruningPlan":
        """Read what `to_json` wrote.

        Raises:
            PruningError: If it is not JSON, and as `from_dict`.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise PruningError(f"A pruning plan must be JSON: {error}. Make the plan again.") from error
        return cls.from_dict(values)

    def __str__(self) -> str:
        before, after = self.widths_before, self.widths_after
        rows = [
            ("residual channels", after.residual, before.residual, ""),
            ("attention heads", after.heads, before.heads, f"  per layer, {self.head_dim} dimensions each"),
            ("FFN units", after.ffn, before.ffn, "  per layer"),
            ("labels", after.labels, before.labels, ""),
        ]
        lines = [
            f"Pruning plan: {self.model_type}, {before.layers} layers",
            f"  {'axis':<18}{'kept / total':>15}",
        ]
        lines += [
            f"  {name:<18}{f'{kept} / {total}':>15}{kept / total:>8.1%}{note}" for name, kept, total, note in rows
        ]
        lines.append(
            f"  parameters  {self.parameters_before:,} -> {self.parameters_after:,}"
            f"  ({self.parameters_before / self.parameters_after:.1f} times smaller)"
        )
        lines.append(f"  float32     {_mib(self.parameters_before):.2f} -> {_mib(self.parameters_after):.2f} MiB")
        return "\n".join(lines)


def make_plan(
    scores: UnitScores,
    model_config: PreTrainedConfig,
    *,
    keep_residual: int,
    keep_heads: int,
    keep_ffn: int,
    num_labels: int | None = None,
) -> PruningPlan:
    """Keep the highest scores: residual channels over the whole model, heads and FFN units in every layer.

    Ties go to the lower index. Kept indices are sorted, so that keeping everything is the identity.

    Args:
        scores: Of the teacher that `model_config` describes.
        model_config: The teacher's stock config.
        keep_residual: Residual channels that stay.
        keep_heads: Heads per layer that stay.
        keep_ffn: FFN units per layer that stay.
        num_labels: Labels of the pruned model, |group| + 1, for its parameter count; the teacher's if `None`.

    Raises:
        PruningError: If a number to keep is below 1 or above the teacher's, the scores belong to another
            model, or the architecture ties widths that the numbers would part.
    """
    architecture = architecture_of(model_config)
    before = architecture.widths(model_config)
    shapes = (scores.residual.shape, scores.heads.shape, scores.ffn.shape)
    expected = ((before.residual,), (before.layers, before.heads), (before.layers, before.ffn))
    if shapes != expected:
        raise PruningError(
            f"The scores have shapes {shapes}, the teacher's config needs {expected} (residual, heads, FFN). "
            f"They belong to another model; score this teacher."
        )
    _check_keep("keep_residual", keep_residual, before.residual)
    _check_keep("keep_heads", keep_heads, before.heads)
    _check_keep("keep_ffn", keep_ffn, before.ffn)
    labels = before.labels if num_labels is None else num_labels
    after = resized(before, residual=keep_residual, heads=keep_heads, ffn=keep_ffn, labels=labels)
    architecture.check_tie(after)
    return PruningPlan(
        model_type=architecture.model_type,
        kept_residual=_top(scores.residual, keep_residual),
        kept_heads=[_top(layer, keep_heads) for layer in scores.heads],
        kept_ffn=[_top(layer, keep_ffn) for layer in scores.ffn],
        hidden_size=before.residual,
        num_heads=before.heads,
        head_dim=before.head_dim,
        intermediate_size=before.ffn,
        num_labels_before=before.labels,
        num_labels=labels,
        parameters_before=architecture.count_parameters(model_config, before),
        parameters_after=architecture.count_parameters(model_config, after),
    )


def check_plan_fits(plan: PruningPlan, architecture: Architecture, config: PreTrainedConfig) -> None:
    """Refuse a plan that was made for another teacher.

    Raises:
        PruningError: Naming both shapes.
    """
    widths = architecture.widths(config)
    if plan.model_type != architecture.model_type or plan.widths_before != widths:
        raise PruningError(
            f"The plan was made for {plan.model_type} {plan.widths_before}, but this model is "
            f"{architecture.model_type} {widths}. Its indices would cut the wrong units; make a plan for "
            f"this model."
        )


def _check_keep(name: str, keep: int, total: int) -> None:
    if not _is_int(keep) or not 1 <= keep <= total:
        raise PruningError(
            f"`{name}` must lie in 1..{total}, what the teacher has, got {keep!r}. A layer without units "
            f"cannot run and a cut cannot add any; choose a number in the range, or a larger teacher."
        )


def _top(scores: np.ndarray, keep: int) -> list[int]:
    order = np.argsort(-scores, kind="stable")  # stable: equal scores stay in index order
    return sorted(int(i) for i in order[:keep])


def _check_indices(name: str, indices: Sequence[int], size: int) -> None:
    is_list = isinstance(indices, list) and len(indices) > 0 and all(_is_int(i) for i in indices)
    if not is_list or any(a >= b for a, b in pairwise(indices)):
        raise PruningError(
            f"`{name}` must be a non-empty list of distinct whole numbers in rising order, got "
            f"{_short(indices)}. Order and repeats would shuffle or copy units; make the plan again."
        )
    if indices[0] < 0 or indices[-1] >= size:
        raise PruningError(
            f"`{name}` must lie in 0..{size - 1}, got {indices[0]}..{indices[-1]}. The plan belongs to "
            f"another model; make it again."
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _mib(parameters: int) -> float:
    return parameters * _BYTES_PER_PARAMETER / 2**20
