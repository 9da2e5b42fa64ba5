# SPDX-License-Identifier: Apache-2.0
"""What an ensemble is, in a card's words: who knows which class, how answers are joined, what a device sends.

Comes in: class groups, the kind of fusion, and how the sub-models were made. Goes out: sentences of the card. An
ensemble whose groups are disjoint and whose features a head joins is described as it was before there were others.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edvit_hf.manifest import Manifest
from edvit_hf.tasks import ANSWERS, FUSION_KINDS, FUSION_READS, FusionKind

_NUMBER_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Form:
    """The form of one ensemble.

    Attributes:
        kind: Of fusion.
        class_groups: What each sub-model votes over.
        focus_groups: What each was cut for, where that is something else.
        num_labels: Of all groups together.
        sizes: By sub-model, the numbers that it sends for one input; empty without a manifest.
    """

    kind: FusionKind
    class_groups: Sequence[Sequence[int]]
    focus_groups: Sequence[Sequence[int]] | None
    num_labels: int
    sizes: Mapping[int, int]

    @property
    def fewest(self) -> int:
        """How many sub-models know the class that the fewest know."""
        return min(Counter(label for group in self.class_groups for label in group).values(), default=0)

    @property
    def is_one(self) -> bool:
        """Whether it is one model, with which every device answers alone."""
        return len(self.class_groups) == 1

    @property
    def knows_all(self) -> bool:
        """Whether every sub-model knows every class."""
        return self.fewest == len(self.class_groups)


def form_of(results: Mapping[str, Any], manifest: Manifest | None, recipe: Mapping[str, Any]) -> Form:
    """The form that the manifest tells, or without one the results and the recipe."""
    groups = results["class_groups"]
    asked = (recipe.get("fuse") or {}).get("kind")
    kind: FusionKind = asked if asked in FUSION_KINDS else "mlp"
    sizes: dict[int, int] = {}
    focus = results.get("focus_groups")
    focus = None if focus == groups else focus
    if manifest is not None:
        kind = manifest.fusion.kind
        numbers = {"features": [e.feature_size for e in manifest.sub_models], "logits": manifest.vote_sizes}
        sizes = {i: sum(numbers[ANSWERS[name]][i] for name in FUSION_READS[kind]) for i in range(len(groups))}
    return Form(
        kind=kind,
        class_groups=groups,
        focus_groups=focus if manifest is None else manifest.focus_groups,
        num_labels=len({label for group in groups for label in group}),
        sizes=sizes,
    )


def what_it_is(form: Form, architecture: str, learnt: str) -> str:
    """The first paragraph: what the sub-models are, and how their answers become one."""
    return f"{_sub_models(form, architecture, learnt)} {_joined(form)}".strip()


def what_it_is_not(form: Form) -> str:
    """Why its size is that of several models, or of one."""
    if form.is_one:
        return "- It is one small network, on as many devices as there are: more make it safer, not more accurate."
    joined = "the sub-models" if form.kind == "average" else "the sub-models *and* the fusion head"
    return (
        f'- It is not one small network: the whole answer needs {joined}. "One device" below holds what the plan gave '
        "the fullest one."
    )


def what_other_means(form: Form) -> str:
    """What it cannot say."""
    said = f'- It knows no label outside its {form.num_labels} and has no "none of these" answer.'
    return said if form.knows_all else f'{said} `other` means "a class of another sub-model".'


def sent_header(form: Form) -> str:
    """Head of the column with the bytes that a device sends."""
    return {"mlp": "features sent", "average": "vote sent", "residual": "features and vote sent"}[form.kind]


def vote_header(form: Form) -> str:
    """Head of the column with the accuracy of a sub-model's own vote."""
    return "own vote" if form.knows_all else "vote with `other`"


def classes_header(form: Form) -> str:
    """Head of the column with a sub-model's classes: those that it votes over, or those that it was cut for."""
    return "cut for" if form.focus_groups else "classes"


def columns_explained(form: Form) -> str:
    """What stands in the columns of the sub-models."""
    sent, vote = sent_header(form), vote_header(form)
    view = "" if form.knows_all else " on its view of the test split, all its classes and the rest pooled as `other`"
    votes = f"all {form.num_labels} labels" if form.knows_all else "more labels than these"
    focus = f"*Cut for*: the classes that its pruning was to keep; it votes over {votes}. " if form.focus_groups else ""
    return (
        f"{focus}*MACs*: multiply-accumulates for one input. *{sent.capitalize()}*: float32 bytes for one input. "
        f"*{vote.capitalize()}*: accuracy of the sub-model by itself{view}."
    )


def labels_comment(form: Form) -> str:
    """What the label names of one sub-model are."""
    return "every class" if form.knows_all else 'its classes, and "other"'


def absence(form: Form) -> str:
    """What a missing sub-model does."""
    if form.is_one:
        return "Every device carries the same model: as long as one is there, the answer is the same."
    start = "A missing sub-model degrades the answer, it does not stop it: see the table above."
    known = f"Every class is known by at least {form.fewest} of them."
    classes = "Its classes suffer most." if form.fewest == 1 else "All know every class." if form.knows_all else known
    return f"{start} {classes} With every sub-model missing there is no answer."


def calibration(form: Form) -> str:
    """Whether confidence values were calibrated."""
    if form.kind == "mlp":
        return "Confidence values were not calibrated after training"
    return "The votes were calibrated one by one on validation items, the answers that they give together were not"


def sent_bytes(form: Form, index: int) -> int | None:
    """What a sub-model sends for one input; None without a manifest."""
    return _NUMBER_BYTES * form.sizes[index] if index in form.sizes else None


def _sub_models(form: Form, architecture: str, learnt: str) -> str:
    count, teacher = len(form.class_groups), f"one **teacher** ({architecture}), {learnt}"
    if form.is_one:
        return (
            f"One small model that knows all {form.num_labels} labels, pruned from {teacher}. Each **device** holds a "
            "replica of it: any one of them answers by itself, whoever else is missing."
        )
    if form.knows_all and form.focus_groups:
        return (
            f"A classifier as {count} small **sub-models**. Each was pruned for a class group of its own from "
            f"{teacher}, and votes over all {form.num_labels} labels: any one of them answers by itself."
        )
    if form.knows_all:
        return (
            f"A classifier as {count} small **sub-models** that differ in their seeds. Each was pruned from {teacher}, "
            f"and votes over all {form.num_labels} labels: any one of them answers by itself."
        )
    overlap = f" Groups overlap: every class is known by at least {form.fewest} of them." if form.fewest > 1 else ""
    return (
        f"A classifier split by its classes into {count} small **sub-models**, one per class group.{overlap} Each "
        f'sub-model was pruned for its own classes from {teacher}, and answers "one of my classes, or `other`".'
    )


def _joined(form: Form) -> str:
    if form.is_one and form.kind == "average":
        return ""
    answer, sends = (
        f"into one answer over all {form.num_labels} labels",
        "The sub-models can run on different **devices**",
    )
    if form.kind == "mlp":
        return f"A small **fusion head** joins their features {answer}. {sends}; each sends only its feature vector."
    rule = "" if form.knows_all else ", `other` spread evenly over the classes that a sub-model does not know"
    averaged = f"Their votes are averaged (log-probabilities, each at a temperature of its own{rule}) {answer}"
    if form.kind == "average":
        return f"{averaged}. {sends}; each sends only its vote."
    return f"{averaged}, and a small **fusion head** on their features corrects it. {sends}; each sends both."
