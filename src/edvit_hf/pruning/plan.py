# SPDX-License-Identifier: Apache-2.0
"""The pruned shape as data: which units stay, readable and storable before any weight is cut."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from math import prod
from typing import Any, get_args

import numpy as np
from transformers import PreTrainedConfig

from edvit_hf.architectures.axes import Architecture, AttentionKind, Widths
from edvit_hf.errors import PruningError
from edvit_hf.pruning.models import architecture_of
from edvit_hf.pruning.score import UnitScores
from edvit_hf.strict import whole_number

_SCHEMA_VERSION = 2
_BYTES_PER_PARAMETER = 4  # float32


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """Indices of the units that stay, with the sizes of the teacher they were chosen in.

    Attributes:
        model_type: Architecture of the teacher.
        attention: How attention shrinks: "whole", "thin" or "merged" heads; see `kept_dimensions`.
        kept_residual: Residual channels, sorted.
        kept_attention: Attention dimensions of every layer, sorted; equally many in each. New head i owns the i-th run
            of `widths_after.head_dim` of them.
        kept_ffn: FFN units of every layer, sorted; equally many in each.
        kept_pooled: Outputs of the pooler, sorted, as many as residual channels; None where there is no pooler.
        num_heads_after: Heads per layer of the pruned model.
        hidden_size: The teacher's residual channels.
        num_heads: The teacher's heads per layer.
        head_dim: The teacher's dimensions per head.
        intermediate_size: The teacher's FFN units per layer.
        num_labels_before: Rows of the teacher's classifier.
        num_labels: Rows of the classifier that `parameters_after` counts.
        parameters_before: Parameters of the teacher.
        parameters_after: Parameters after the cut, with `num_labels` labels.
    """

    model_type: str
    attention: AttentionKind
    kept_residual: list[int]
    kept_attention: list[list[int]]
    kept_ffn: list[list[int]]
    kept_pooled: list[int] | None
    num_heads_after: int
    hidden_size: int
    num_heads: int
    head_dim: int
    intermediate_size: int
    num_labels_before: int
    num_labels: int
    parameters_before: int
    parameters_after: int

    def __post_init__(self) -> None:
        _check_kind(self.attention)
        for field in fields(self):
            if field.type is int:
                whole_number(field.name, getattr(self, field.name), 1, "shapes are computed from it", PruningError)
        _check_indices("kept_residual", self.kept_residual, self.hidden_size)
        _check_layers("kept_attention", self.kept_attention, self.num_heads * self.head_dim)
        _check_layers("kept_ffn", self.kept_ffn, self.intermediate_size)
        if len(self.kept_attention) != len(self.kept_ffn):
            raise PruningError(
                f"`kept_attention` has {len(self.kept_attention)} layers, `kept_ffn` {len(self.kept_ffn)}; both must "
                f"have one entry per layer of the teacher. Make the plan again."
            )
        _check_heads(self)
        if self.kept_pooled is not None:
            _check_indices("kept_pooled", self.kept_pooled, self.hidden_size)
            if len(self.kept_pooled) != len(self.kept_residual):
                raise PruningError(
                    f"`kept_pooled` has {len(self.kept_pooled)} entries, `kept_residual` {len(self.kept_residual)}. A "
                    "stock pooler has as many outputs as residual channels; keep equally many."
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
            layers=len(self.kept_attention),
        )

    @property
    def widths_after(self) -> Widths:
        """Sizes of the pruned model."""
        return replace(
            self.widths_before,
            residual=len(self.kept_residual),
            heads=self.num_heads_after,
            head_dim=len(self.kept_attention[0]) // self.num_heads_after,
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
        found = values.get("schema_version") if isinstance(values, Mapping) else None
        if not isinstance(values, Mapping) or found != _SCHEMA_VERSION:
            raise PruningError(
                f"Expected a pruning plan with schema_version {_SCHEMA_VERSION}, got "
                f"{_short(values) if found is None else f'schema_version {found!r}'}. Its indices could mean other "
                "units. Make the plan again, or read it with the version of edvit_hf that wrote it."
            )
        expected = {"schema_version", *(field.name for field in fields(cls))}
        if values.keys() != expected:
            raise PruningError(
                f"A pruning plan has exactly the keys {sorted(expected)}; missing {sorted(expected - values.keys())}, "
                f"unknown {sorted(map(str, values.keys() - expected))}. Make the plan again."
            )
        return cls(**{name: value for name, value in values.items() if name != "schema_version"})

    def __str__(self) -> str:
        before, after = self.widths_before, self.widths_after
        size = f"{after.head_dim} dimensions each"
        notes = {"whole": size, "thin": f"thin: {size}, was {before.head_dim}"}
        notes["merged"] = f"merged: {size}, from up to {-(-before.heads // after.heads)} old heads"
        rows = [
            ("residual channels", after.residual, before.residual, ""),
            ("attention heads", after.heads, before.heads, f"  per layer, {notes[self.attention]}"),
            ("attention dimensions", after.attention, before.attention, "  per layer"),
            ("FFN units", after.ffn, before.ffn, "  per layer"),
            ("labels", after.labels, before.labels, ""),
        ]
        if self.kept_pooled is not None:
            rows.insert(1, ("pooler outputs", len(self.kept_pooled), before.residual, ""))
        lines = [f"Pruning plan: {self.model_type}, {before.layers} layers", f"  {'axis':<21}{'kept / total':>15}"]
        lines += [f"  {name:<21}{f'{kept} / {all_}':>15}{kept / all_:>8.1%}{note}" for name, kept, all_, note in rows]
        lines.append(
            f"  parameters  {self.parameters_before:,} -> {self.parameters_after:,}"
            f"  ({self.parameters_before / self.parameters_after:.1f} times smaller)"
        )
        mib = [count * _BYTES_PER_PARAMETER / 2**20 for count in (self.parameters_before, self.parameters_after)]
        lines.append(f"  float32     {mib[0]:.2f} -> {mib[1]:.2f} MiB")
        return "\n".join(lines)


def make_plan(
    scores: UnitScores, model_config: PreTrainedConfig, widths_after: Widths, *, attention: AttentionKind = "whole"
) -> PruningPlan:
    """Keep the highest scores: residual channels and pooler outputs over the whole model, the rest in every layer.

    Ties go to the lower index. Kept indices are sorted, so that keeping everything is the identity.

    Args:
        scores: Of the teacher that `model_config` describes.
        model_config: The teacher's stock config.
        widths_after: Sizes of the pruned model, its labels (|group| + 1) among them for the parameter count; see
            `edvit_hf.architectures.axes.widths_of_heads` and `widths_of_ratios`.
        attention: How attention shrinks; see `kept_dimensions`.

    Raises:
        PruningError: If a width is below 1 or above the teacher's, does not go with `attention`, the scores belong to
            another model, or the architecture ties widths that `widths_after` would part.
    """
    architecture = architecture_of(model_config)
    before = architecture.widths(model_config)
    _check_scores(scores, architecture, before)
    _check_widths(before, widths_after, attention)
    architecture.check_ties(model_config, widths_after)
    return PruningPlan(
        model_type=architecture.model_type,
        attention=attention,
        kept_residual=highest(scores.residual, widths_after.residual),
        kept_attention=[
            kept_dimensions(heads, dimensions, before, widths_after, attention)
            for heads, dimensions in zip(scores.heads, scores.attention, strict=True)
        ],
        kept_ffn=[highest(layer, widths_after.ffn) for layer in scores.ffn],
        kept_pooled=None if scores.pooled is None else highest(scores.pooled, widths_after.residual),
        num_heads_after=widths_after.heads,
        hidden_size=before.residual,
        num_heads=before.heads,
        head_dim=before.head_dim,
        intermediate_size=before.ffn,
        num_labels_before=before.labels,
        num_labels=widths_after.labels,
        parameters_before=sum(map(prod, architecture.shapes(model_config, before).values())),
        parameters_after=sum(map(prod, architecture.shapes(model_config, widths_after).values())),
    )


def check_plan_fits(plan: PruningPlan, architecture: Architecture, config: PreTrainedConfig) -> None:
    """Refuse a plan that was made for another teacher.

    Raises:
        PruningError: Naming both shapes.
    """
    widths = architecture.widths(config)
    same_pooler = (plan.kept_pooled is not None) == architecture.has_pooler
    if plan.model_type != architecture.model_type or plan.widths_before != widths or not same_pooler:
        pooler = "" if same_pooler else f" {'with' if architecture.has_pooler else 'without'} a pooler"
        raise PruningError(
            f"The plan was made for {plan.model_type} {plan.widths_before}, but this model is "
            f"{architecture.model_type} {widths}{pooler}. Its indices would cut the wrong units; make a plan for "
            f"this model."
        )


def _check_scores(scores: UnitScores, architecture: Architecture, before: Widths) -> None:
    expected = architecture.unit_shapes(before)
    found = {name: array.shape for name, array in scores.by_axis().items()}
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise PruningError(
                f"The {name} scores should have shape {expected.get(name)} for this {architecture.model_type} config, "
                f"got {found.get(name)}. They belong to another model; score this teacher."
            )


def _check_kind(attention: AttentionKind) -> None:
    if attention not in get_args(AttentionKind):
        raise PruningError(
            f"`attention` must be one of {', '.join(get_args(AttentionKind))}, got {attention!r}. It says how kept "
            'dimensions form heads; leave it out for "whole".'
        )


def _check_widths(before: Widths, after: Widths, attention: AttentionKind) -> None:
    _check_kind(attention)
    # A merged head may be larger than an old one, up to all the dimensions of its smallest group of old heads.
    group = before.heads // max(1, int(after.heads)) if attention == "merged" else 1
    largest = {"residual": before.residual, "heads": before.heads, "head_dim": max(1, group) * before.head_dim}
    for name, total in {**largest, "ffn": before.ffn, "labels": before.labels, "layers": before.layers}.items():
        keep = getattr(after, name)
        if type(keep) is not int or not 1 <= keep <= total:
            raise PruningError(
                f"`{name}` of the pruned model must lie in 1..{total}, what the teacher has, got {keep!r}. A layer "
                f"without units cannot run and a cut cannot add any; choose a number in the range, or a larger teacher."
            )
    stays = {"whole": ("layers", "head_dim"), "thin": ("layers", "heads"), "merged": ("layers",)}
    for name in stays[attention]:
        if getattr(after, name) != getattr(before, name):
            raise PruningError(
                f"A plan with {attention} heads keeps `{name}` at the teacher's {getattr(before, name)}, got "
                f"{getattr(after, name)}. No cut of this kind gives it; see `widths_of_heads`."
            )


def _check_heads(plan: PruningPlan) -> None:
    """Kept dimensions must form the new heads that `attention` names."""
    rest = len(plan.kept_attention[0]) % plan.num_heads_after
    if plan.num_heads_after > plan.num_heads or rest:
        raise PruningError(
            f"`kept_attention` keeps {len(plan.kept_attention[0])} dimensions for {plan.num_heads_after} heads, the "
            f"teacher has {plan.num_heads} heads. Heads must be of one size and not more than before; make the plan "
            "again."
        )
    size, new_size = plan.head_dim, len(plan.kept_attention[0]) // plan.num_heads_after
    groups = head_groups(plan.num_heads, plan.num_heads_after)
    for layer, kept in enumerate(plan.kept_attention):
        runs = [kept[start : start + new_size] for start in range(0, len(kept), new_size)]
        if plan.attention == "whole":
            fits = new_size == size and all(run[0] % size == 0 and run[-1] - run[0] == size - 1 for run in runs)
        else:
            fits = plan.attention == "merged" or plan.num_heads_after == plan.num_heads
            fits &= all(
                group[0] * size <= run[0] and run[-1] < (group[-1] + 1) * size
                for group, run in zip(groups, runs, strict=True)
            )
        if not fits:
            raise PruningError(
                f"`kept_attention[{layer}]` does not form {plan.num_heads_after} {plan.attention} heads out of "
                f"{plan.num_heads} heads of {size}. Dimensions of unrelated heads would be multiplied with each other; "
                "make the plan again."
            )


def _check_layers(name: str, per_layer: object, size: int) -> None:
    if not isinstance(per_layer, list) or not per_layer:
        raise PruningError(
            f"`{name}` must be a list with one list of indices per layer, got {_short(per_layer)}. Without it nothing "
            "says what stays; make the plan again."
        )
    for layer, kept in enumerate(per_layer):
        _check_indices(f"{name}[{layer}]", kept, size)
    if len({len(kept) for kept in per_layer}) > 1:
        raise PruningError(
            f"`{name}` keeps {[len(kept) for kept in per_layer]} units per layer. A stock config has one size for all "
            "layers; keep equally many in each."
        )


def _check_indices(name: str, indices: Sequence[int], size: int) -> None:
    is_list = isinstance(indices, list) and len(indices) > 0 and all(type(i) is int for i in indices)
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


def highest(scores: np.ndarray, keep: int) -> list[int]:
    """Indices of the `keep` highest scores, sorted. Ties go to the lower index."""
    order = np.argsort(-scores, kind="stable")  # stable: equal scores stay in index order
    return sorted(int(i) for i in order[:keep])


def kept_dimensions(
    heads: np.ndarray, dimensions: np.ndarray, before: Widths, after: Widths, kind: AttentionKind
) -> list[int]:
    """Attention dimensions of one layer that stay, sorted; new head i owns the i-th run of `after.head_dim` of them.

    - "whole": all dimensions of the heads with the highest scores, `heads` (H,).
    - "thin": of every head its best dimensions, by `dimensions` (H * head_dim,).
    - "merged": of every group of neighbouring old heads (`head_groups`) its best dimensions.

    Source: "merged" is how UP-ViTs (arXiv 2111.15127) keeps heads balanced: contiguous groups of the dimensions,
    equally many kept in each.
    Differs: groups are of whole old heads, also where the old number is no multiple of the new one.
    """
    size = before.head_dim
    if kind == "whole":
        return [head * size + i for head in highest(heads, after.heads) for i in range(size)]
    kept = []
    for group in head_groups(before.heads, after.heads):
        start = group[0] * size
        kept += [start + i for i in highest(dimensions[start : (group[-1] + 1) * size], after.head_dim)]
    return kept


def head_groups(heads_before: int, heads_after: int) -> list[list[int]]:
    """Neighbouring old heads that form each new head; group sizes differ by at most one, the larger ones first."""
    return [[int(head) for head in group] for group in np.array_split(np.arange(heads_before), heads_after)]
