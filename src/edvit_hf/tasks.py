# SPDX-License-Identifier: Apache-2.0
"""What an ensemble classifies: its task, what the models of a task are fed, and the class groups of its sub-models.

Comes in: a task, or class groups with the number of classes. Goes out: names of inputs and files, numbers of labels, or
what is wrong with the groups or with the names of the classes; and who may be absent where something is judged, so that
what is chosen is chosen by what is tested. Every room may call it.

Light: standard library only. `configuration_edvit.py` travels to the Hub alone and so repeats some rules: that class
groups cover the classes, how many labels a sub-model has, and which names classes may have; tests compare them.
"""

import itertools
import math
import operator
import random
from collections.abc import Sequence
from typing import Literal, get_args

from edvit_hf.errors import DataError, EDViTError

Task = Literal["image-classification", "audio-classification", "text-classification"]

TASKS: tuple[Task, ...] = get_args(Task)

FusionKind = Literal["mlp", "average", "residual"]

FUSION_KINDS: tuple[FusionKind, ...] = get_args(FusionKind)

FUSION_READS: dict[FusionKind, tuple[str, ...]] = {
    "mlp": ("features",),
    "average": ("votes",),
    "residual": ("features", "votes"),
}
"""What of a sub-model's answer each kind of fusion looks at: its features, its vote, or both."""

FUSION_INPUTS = ("features", "votes", "mask")
"""Inputs of an exported fusion: features (B, D), votes (B, V), mask (B, S); older ones take no votes.

Votes are the sub-models' `logits` side by side: a graph's input cannot be called as its output is.
"""

ANSWERS = {"features": "features", "votes": "logits"}
"""Input of an exported fusion -> the output of the sub-models that it holds side by side."""

GRAPH_INPUTS: dict[Task, tuple[str, ...]] = {
    "image-classification": ("pixel_values",),
    "audio-classification": ("input_values",),
    "text-classification": ("input_ids", "attention_mask"),
}
"""What every exported sub-model is fed by task, the main input first."""

MAIN_INPUT: dict[Task, str] = {task: names[0] for task, names in GRAPH_INPUTS.items()}
"""Name of the forward's first argument: pixels (B, 3, H, W), spectrograms (B, T, F), token ids (B, T)."""

PREPROCESSING_FILE: dict[Task, str] = {
    "image-classification": "preprocessor_config.json",
    "audio-classification": "preprocessor_config.json",
    "text-classification": "tokenizer.json",
}
"""The file that says how a raw input becomes the model's: image processor, feature extractor or tokenizer."""

NEEDED_PROCESSOR_FILES = (
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
"""The processor's files that must come along where the manifest lists them."""

PROCESSOR_FILES = (
    *NEEDED_PROCESSOR_FILES,
    *("vocab.txt", "vocab.json", "merges.txt"),  # may be left out: tokenizer.json holds them
    *("added_tokens.json", "processor_config.json"),  # read by the stock classes alone
)
"""Every file that a stock processor may consist of; those that are there travel beside each sub-model.

An ensemble's content hash covers each: the stock classes prefer some of them to others, so that adding one changes
what they answer.
"""

CODE_FILES = (
    *("configuration_edvit.py", "checks_edvit.py", "parts_edvit.py"),
    *("modeling_edvit.py", "saved_edvit.py", "files_edvit.py"),
)
"""The code that travels to the Hub with every saved ensemble; those saved earlier hold fewer files."""

OTHER_LABEL = "other"
"""The last label of every sub-model, "a class of another group": no class may have this name."""

MOST_ABSENT = 2
"""Whatever is chosen is chosen by accuracy averaged over 0, 1 and 2 absent."""

MAX_SUBSETS = 20
"""So many subsets of each number absent are looked at, the same where something is chosen and where it is tested."""

LEAST_GAP = 0.02
"""So far must a large plain model be ahead of a small one: below it a share of the gap is a ratio of noise."""


def num_labels_of(class_group: Sequence[int], num_classes: int) -> int:
    """Labels of a sub-model: those of its class group, and "other" unless the group holds every class."""
    return len(class_group) + (len(class_group) < num_classes)


def vote_sizes(class_group: Sequence[int], num_classes: int) -> list[int]:
    """Numbers of labels that its vote may have, the usual one first: a group of all classes may have "other" or not."""
    return sorted({num_labels_of(class_group, num_classes), len(class_group) + 1})


def check_class_group(
    class_group: Sequence[int], num_classes: int | None = None, error: type[EDViTError] = DataError
) -> list[int]:
    """Return one class group as plain ints in its order.

    Raises:
        EDViTError: `error`, if it is empty, repeats a class, names one outside 0..num_classes - 1 (None: any from 0
            on), or holds what is no whole number.
    """
    group = [_whole(label) for label in class_group]
    end = float("inf") if num_classes is None else num_classes
    if not group or len(set(group)) != len(group) or not all(label is not None and 0 <= label < end for label in group):
        where = "from 0 on" if num_classes is None else f"in 0..{num_classes - 1}"
        raise error(
            f"A class group must hold distinct labels {where}, whole numbers, got {list(class_group)}. They index the "
            "classes; correct the group, or load the teacher it was made for."
        )
    return [label for label in group if label is not None]


def class_groups_fault(class_groups: Sequence[Sequence[int]], num_classes: int) -> str | None:
    """Why the groups do not cover the classes 0..num_classes - 1, as a sentence; None if they do.

    Groups may overlap; a group names no class twice.
    """
    owners: dict[int, int] = {}
    for index, group in enumerate(class_groups):
        if len(group) == 0:
            return f"class group {index} is empty, and a sub-model without a class has nothing to learn."
        for value in group:
            label = _whole(value)
            if label is None:
                return f"class group {index} holds {value!r}, and classes are whole numbers."
            if not 0 <= label < num_classes:
                return f"class group {index} names class {label}; classes run from 0 to {num_classes - 1}."
            if owners.get(label) == index:
                return f"class {label} stands twice in class group {index}."
            owners[label] = index
    missing = sorted(set(range(num_classes)) - set(owners))
    return f"classes {missing} stand in no class group: no sub-model would answer for them." if missing else None


def unknown_classes(class_groups: Sequence[Sequence[int]], present: Sequence[bool]) -> list[int]:
    """Classes that no present sub-model votes over, in the order of the groups that hold them."""
    known = {label for group, there in zip(class_groups, present, strict=True) if there for label in group}
    return [label for label in dict.fromkeys(label for group in class_groups for label in group) if label not in known]


def absent_subsets(
    num_sub_models: int, num_absent: int, limit: int = MAX_SUBSETS, seed: int = 0
) -> list[tuple[int, ...]]:
    """Which sub-models to take away: every subset of `num_absent`, or `limit` different ones drawn by seed.

    Raises:
        ValueError: If nothing would be left, or an argument is out of range.
    """
    if not 0 <= num_absent < num_sub_models:
        raise ValueError(
            f"`num_absent` must lie in 0..{num_sub_models - 1} for {num_sub_models} sub-models, got "
            f"{num_absent}: at least one sub-model has to answer."
        )
    if _whole(limit) is None or limit < 1:
        raise DataError(f"`limit` must be a whole number of at least 1, got {limit!r}: nothing would be taken away.")
    if math.comb(num_sub_models, num_absent) <= limit:
        return list(itertools.combinations(range(num_sub_models), num_absent))
    generator = random.Random(seed)
    chosen: set[tuple[int, ...]] = set()
    while len(chosen) < limit:
        chosen.add(tuple(sorted(generator.sample(range(num_sub_models), num_absent))))
    return sorted(chosen)


def label_names_fault(names: Sequence[object]) -> str | None:
    """Why these cannot be the names of the classes, as a sentence; None if they can.

    Every class is known by its name alone where answers are JSON and where labels are looked up, and a sub-model's last
    label is always called `OTHER_LABEL`.
    """
    places: dict[str, int] = {}
    for index, name in enumerate(names):
        if not isinstance(name, str):
            return f"class {index} is named {name!r:.60}, and a name is a text."
        if not name.strip():
            return f"class {index} has the empty name {name!r:.60}, and an answer could not be told from none."
        if name == OTHER_LABEL:
            return (
                f"class {index} is named {name!r}, which every sub-model calls what belongs to another class group: "
                "the two could not be told apart."
            )
        if name in places:
            return f"classes {places[name]} and {index} are both named {name!r:.60}, and answers name classes."
        if any("\ud800" <= character <= "\udfff" for character in name):
            return f"class {index} is named {name!r:.60}, with half a character, which no file can hold."
        places[name] = index
    return None


def _whole(value: object) -> int | None:
    """A whole number as a plain int; None for a truth value, a fraction or a text."""
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None
