# SPDX-License-Identifier: Apache-2.0
"""What a config of an ensemble may say: names of classes, sizes within reason, fields that are not misspelt.

This file travels to the Hub beside `configuration_edvit.py`, which asks it: it imports the standard library alone.
"""

import difflib
import json
import math
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

OTHER_LABEL = "other"  # the last label of every sub-model: "a class of another group"
FUSION_KINDS = ("mlp", "average", "residual")
FUSION_OTHERS = (None, "spread")
MAX_CONFIG_BYTES = 64 * 2**20  # far above any ensemble's; reading more would only cost memory
MAX_SUB_MODELS = 1024
MAX_LAYERS = 4096  # of all sub-models together
MAX_PARAMETERS = 2**31  # of all sub-models and the fusion head together: 8 GiB in float32

# Field of a stock config -> the largest sensible value. What a type does not have is not asked for.
_LARGEST = {
    **{"hidden_size": 2**15, "num_attention_heads": 2**10, "num_hidden_layers": 2**9, "intermediate_size": 2**17},
    **{"head_dim": 2**12, "hidden_dim": 2**17, "image_size": 2**13, "patch_size": 2**13, "num_channels": 2**10},
    **{"pooler_output_size": 2**17, "max_length": 2**16, "num_mel_bins": 2**12},
    **{"frequency_stride": 2**12, "time_stride": 2**16},
    **{"vocab_size": 2**22, "max_position_embeddings": 2**18, "type_vocab_size": 2**10},
}
# What would make the stock loader read other files, or build other layers, than an ensemble has.
_NEVER = ("transformers_weights", "per_layer_config", "extra_files", "base_model_name_or_path", "peft_type")
_DTYPES = ("float16", "bfloat16", "float32", "float64")
_ONE_OF_MANY = "single_label_classification"
_NEAR = 0.8  # how alike two names must be for one to be a slip of the pen


def label_names_fault(names: Sequence[object]) -> str | None:
    """Why these cannot be the names of the classes, as a sentence; None if they can."""
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


def check_label_tables(id2label: object, label2id: object) -> None:
    """Raise ValueError unless `id2label` numbers the classes from 0 on, and `label2id`, where given, is its inverse."""
    if not isinstance(id2label, Mapping):
        raise ValueError(
            f"Expected `id2label` to map class ids to names, got {id2label!r:.60}. Answers would carry no names. Pass "
            'a dict such as {0: "cat", 1: "dog"}.'
        )
    ids = [_class_id(key) for key in id2label]
    if set(ids) != set(range(len(ids))):
        raise ValueError(
            f"Expected `id2label` keys 0..{len(ids) - 1}, got {list(id2label)[:20]}. A class would have no name. "
            "Number the names from 0 on."
        )
    names = {i: id2label[key] for i, key in zip(ids, id2label, strict=True)}
    if fault := label_names_fault([names[i] for i in range(len(names))]):
        raise ValueError(f"Expected a name of its own for every class in `id2label`: {fault} Give it another name.")
    if label2id is None:
        return
    inverse = {name: _class_id(i) for name, i in label2id.items()} if isinstance(label2id, Mapping) else None
    if inverse != {name: i for i, name in names.items()}:
        raise ValueError(
            f"Expected `label2id` to be the inverse of `id2label`, got {label2id!r:.200} and {id2label!r:.200}. "
            "Answers would carry wrong names. Pass both, or `id2label` alone."
        )


def _class_id(key: object) -> int:
    """A class id as an int, which JSON made a text; -1 for anything else."""
    is_id = (isinstance(key, int) and not isinstance(key, bool)) or (isinstance(key, str) and key.isdecimal())
    return int(key) if is_id and len(str(key)) < 10 else -1  # type: ignore[call-overload]


def check_problem_type(problem_type: object, owner: str) -> None:
    """Raise ValueError unless answers are one class of many, which no other loss or reading of logits fits."""
    if problem_type not in (None, _ONE_OF_MANY):
        raise ValueError(
            f"Expected `problem_type` of {owner} to be {_ONE_OF_MANY!r} or none, got {problem_type!r:.60}. It answers "
            "with one class, and would be trained with the loss of something else. Remove the field; what was trained "
            "with it must be trained again."
        )


def check_stock_fields(config: Any) -> None:
    """Raise ValueError where a stock field of an ensemble's config says what no ensemble can be."""
    check_problem_type(config.problem_type, "the ensemble")
    if config.dtype is not None and str(config.dtype).removeprefix("torch.") not in _DTYPES:
        raise ValueError(
            f"Expected `dtype` to be one of {', '.join(_DTYPES)}, got {config.dtype!s:.60}. Weights would be cut to "
            "it. Correct the config; exported files may be int8, checkpoints are not."
        )


def check_groups(groups: Sequence[Sequence[int]], num_classes: int, num_sub_models: int) -> None:
    """Raise ValueError unless every sub-model has a class group, and every class stands in at least one of them."""
    if len(groups) != num_sub_models or not groups:
        raise ValueError(
            f"Expected one class group per sub-model, got {len(groups)} groups for {num_sub_models} "
            "sub-models. Group i names the classes of sub-model i. Give as many groups as sub-models."
        )
    if not all(groups):
        raise ValueError(
            f"Expected at least one class in every group, got {groups}. A sub-model without a class has "
            "nothing to say. Remove empty groups together with their sub-models."
        )
    known = {c for group in groups for c in group}
    wrong = {
        "nowhere": sorted(set(range(num_classes)) - known),
        "out of range": sorted(known - set(range(num_classes))),
        "twice in one group": sorted({c for group in groups for c in group if list(group).count(c) > 1}),
    }
    if found := ", ".join(f"{where}: {ids[:20]}" for where, ids in wrong.items() if ids):
        raise ValueError(
            f"Expected every class 0..{num_classes - 1} of `id2label` in at least one class group, and once in each, "
            f"got {found}. A class would have no sub-model, or two labels. Correct `class_groups` or `id2label`."
        )


def check_focus(
    focus_groups: Sequence[Sequence[int]] | None, groups: Sequence[Sequence[int]], num_classes: int
) -> None:
    """Raise ValueError unless what each sub-model was cut for, where given, are some of the classes of its group."""
    if focus_groups is None:
        return
    fits = all(g and len(set(g)) == len(g) and set(g) <= set(range(num_classes)) for g in focus_groups)
    if len(focus_groups) != len(groups) or not fits:
        raise ValueError(
            f"Expected `focus_groups` to hold, for each of {len(groups)} sub-models, distinct classes in "
            f"0..{num_classes - 1} that it was cut for, got {focus_groups!r:.200}. Cards would tell what is not so. "
            "Correct them, or leave them out."
        )
    outside = [i for i, (own, group) in enumerate(zip(focus_groups, groups, strict=True)) if not set(own) <= set(group)]
    if outside:
        raise ValueError(
            f"Expected `focus_groups` to name classes of each sub-model's own class group, got others for the "
            f"sub-models {outside[:20]}. A sub-model cannot be cut for a class that it does not vote over. Correct "
            "them, or leave them out."
        )


def check_fusion(kind: str, other: str | None, groups: Sequence[Sequence[int]], num_classes: int) -> None:
    """Raise ValueError for a kind of fusion that does not exist, or that these class groups do not allow."""
    for name, value, choices in (("fusion_kind", kind, FUSION_KINDS), ("fusion_other", other, FUSION_OTHERS)):
        if value not in choices:
            raise ValueError(
                f"Expected `{name}` to be one of {', '.join(map(str, choices))}, got {value!r:.60}. No other fusion "
                "is known here. Correct it, or use a version of edvit_hf that knows it."
            )
    partial = [i for i, group in enumerate(groups) if len(group) < num_classes]
    if kind != "mlp" and other is None and partial:
        raise ValueError(
            f"Expected sub-models that all vote over the same {num_classes} classes for `fusion_kind: {kind}`, got "
            f"class groups without some of them: {partial[:20]}. Votes over different labels have no mean. Let every "
            'sub-model vote over all classes, or set `fusion_other` to "spread" (in a recipe `distill.votes: all`, '
            "`split.coverage`, or `fuse.other: spread`)."
        )


def refuse_too_many(sub_model_configs: Any) -> None:
    """Raise ValueError for more sub-models than anybody has devices, before any is looked at."""
    if isinstance(sub_model_configs, list) and len(sub_model_configs) > MAX_SUB_MODELS:
        raise ValueError(
            f"Expected at most {MAX_SUB_MODELS} sub-models, got {len(sub_model_configs)}. Each costs time and memory. "
            "Split the classes into fewer groups."
        )


def check_indices(indices: Any) -> tuple[int, ...]:
    """Return indices as ascending ints, each once; raise ValueError for what is no list of whole numbers."""
    try:
        listed = list(indices)
        if any(isinstance(index, bool) for index in listed):
            raise TypeError("truth values count nothing")
        return tuple(sorted({operator.index(index) for index in listed}))
    except TypeError as error:
        raise ValueError(
            f"Expected `sub_models` to be a list of whole numbers, got {indices!r:.60} ({error}). They count from 0. "
            "Pass for example [0, 2]."
        ) from error


def check_sizes(config: Any, index: int) -> int:
    """Return about how many parameters a sub-model of this stock config has.

    Raises:
        ValueError: If a size is no whole number, not positive or beyond reason, or the sizes contradict each other.
    """
    for name, value in vars(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(
                f"Expected `{name}` of sub-model {index} to be a finite number, got {value}. It could not answer. "
                "Correct its config."
            )
    sizes = {name: getattr(config, name) for name in _LARGEST if hasattr(config, name)}
    for name, value in sizes.items():
        for side in value if isinstance(value, list | tuple) else [value]:
            if isinstance(side, bool) or not isinstance(side, int) or not 0 < side <= _LARGEST[name]:
                raise ValueError(
                    f"Expected `{name}` of sub-model {index} to be a whole number in 1..{_LARGEST[name]}, got "
                    f"{value!r:.60}. No such model can be built. Correct its config."
                )
    hidden, heads, layers = (sizes[name] for name in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    if "head_dim" not in sizes and hidden % heads:
        raise ValueError(
            f"Expected `hidden_size` of sub-model {index} to be a multiple of its `num_attention_heads`, got {hidden} "
            f"and {heads}. Its heads could not share the features. Correct its config."
        )
    width, inner = heads * sizes.get("head_dim", hidden // heads), sizes.get("hidden_dim") or sizes["intermediate_size"]
    positions = sizes.get("max_position_embeddings") or _num_patches(sizes, index)
    patch = max(_sides(sizes.get("patch_size", 1)))
    embedded = positions + sizes.get("vocab_size", 0) + sizes.get("num_channels", 1) * patch**2
    return int(layers * hidden * (4 * width + 2 * inner) + hidden * (embedded + hidden + config.num_labels))


def _num_patches(sizes: Mapping[str, Any], index: int) -> int:
    """How many patches an input has."""
    patch = _sides(sizes["patch_size"])
    if "max_length" in sizes:
        edges = (sizes["num_mel_bins"], sizes["max_length"])
        strides = (sizes["frequency_stride"], sizes["time_stride"])
    else:
        edges, strides = _sides(sizes["image_size"]), patch
    rows, columns = ((edge - p) // stride + 1 for edge, p, stride in zip(edges, patch, strides, strict=True))
    if rows < 1 or columns < 1:
        raise ValueError(
            f"Expected a patch of sub-model {index} to fit into its input, got patches of {patch} in {edges}. It would "
            "see nothing. Correct its config."
        )
    return rows * columns


def _sides(size: Any) -> tuple[int, int]:
    first, *others = size if isinstance(size, list | tuple) else [size]
    return first, (others or [first])[-1]


def refuse_too_large(num_layers: int, num_parameters: int) -> None:
    """Raise ValueError for an ensemble that no machine should begin to build."""
    if num_layers > MAX_LAYERS or num_parameters > MAX_PARAMETERS:
        raise ValueError(
            f"Expected an ensemble of at most {MAX_LAYERS} layers and {MAX_PARAMETERS} parameters, got about "
            f"{num_layers} and {num_parameters}. It would take the machine's memory. Correct the sizes in its config."
        )


def check_name(name: str, known: Iterable[str], *, strict: bool) -> None:
    """Raise ValueError for a name that is no field: always (`strict`), or where it looks like a misspelt one.

    Others may set attributes of their own on a config, as a Trainer does; these are kept.
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6 if strict else _NEAR)
    if strict or near or name in _NEVER:
        hint = f"Did you mean `{near[0]}`?" if near else f"Valid names: {', '.join(sorted(known))}."
        raise ValueError(f"`{name}` is not a field of EDViTConfig; it would be stored and never read. {hint}")


def read_config_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a config.json.

    Raises:
        OSError: If it is not there, or no JSON.
        ValueError: If it is no regular file, too large, or its JSON is none that a config is written in.
    """
    file = Path(path)
    if file.exists() and not file.is_file():
        raise ValueError(f"Expected a file at {path}, got something else. A config is read from files alone.")
    size = file.stat().st_size
    if size > MAX_CONFIG_BYTES:
        raise ValueError(
            f"Expected a config of at most {MAX_CONFIG_BYTES} bytes in {path}, got {size}. No ensemble has so much to "
            "say. Fetch or save it again."
        )
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_distinct)
    except (RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise OSError(f"The config file at '{path}' is not a valid JSON file: {error}. Save it again.") from error
    if not isinstance(values, dict):
        raise ValueError(f"Expected a JSON object in {path}, got {type(values).__name__}. Save it again.")
    return values


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"Expected every name once in a config.json, got {twice[:5]} twice. Save it again.")
    return values
