# SPDX-License-Identifier: Apache-2.0
"""Writes a first recipe and its fleet: `edvit init`. Every value has a comment, and every default is left out.

Comes in: what was seen of the data (`data.looking`) and a checkpoint's config and processor. Goes out: two YAML files
that `edvit run` takes as they are. Sizes and lengths are those of the measured recipes nearest in task and number of
items. Light: no torch.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edvit_hf.architectures.tables import ARCHITECTURES, architecture_of_config
from edvit_hf.data.looking import Looked, look_at
from edvit_hf.errors import DataError, RecipeError
from edvit_hf.hardware.profiles import load_profiles
from edvit_hf.hub.client import fetch_matching
from edvit_hf.planning.fleet import ASSUMED_LINK_MS, ASSUMED_MBIT_PER_S, DEFAULT_KIND, load_fleet
from edvit_hf.recipe.schema import find_fleet, load_recipe
from edvit_hf.storage import read_json_object, whole_file
from edvit_hf.strict import is_folder
from edvit_hf.tasks import MAIN_INPUT, Task

_PROCESSORS = ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json")
_SCRATCH_HEADS = 8
_OPEN = "initializer_range: 0.1, hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0"
_SCRATCH: dict[Task, tuple[str, str]] = {  # values of `from_scratch`, and more of the dataset section
    "image-classification": (
        f"{{model_type: vit, hidden_size: 128, num_attention_heads: 8, num_hidden_layers: 4, intermediate_size: 512, "
        f"patch_size: PATCH,\n     {_OPEN}}}",
        "image_size: SIDE",
    ),
    "audio-classification": (
        f"{{model_type: audio-spectrogram-transformer, hidden_size: 64, num_attention_heads: 8, num_hidden_layers: 3, "
        f"intermediate_size: 256,\n     patch_size: 24, frequency_stride: 24, time_stride: 8, {_OPEN}}}",
        "audio: {sampling_rate: 16000, num_mel_bins: 24, max_length: 100}",
    ),
    "text-classification": (
        "{model_type: distilbert, dim: 96, n_heads: 8, n_layers: 2, hidden_dim: 384, dropout: 0.4, "
        "seq_classif_dropout: 0.4,\n     initializer_range: 0.05}",
        "text: {max_length: 64, vocab_size: 4000, lowercase: true}",
    ),
}
_COMMENTS: dict[str, str] = {
    "image_size": "side of the model's input in pixels; larger sees more and costs more",
    "audio": "max_length: frames of 10 ms that are heard, 100 are one second",
    "text": "max_length: pieces of a text that are read; vocab_size: of the tokenizer that is trained",
}
_AUGMENTATION: dict[Task, str] = {
    "image-classification": "{shift: 0.08, flip: true}   # flip: false where left and right matter (digits, text)",
    "audio-classification": "{time_shift: 0.1, time_masks: 1, time_mask_frames: 10}",
    "text-classification": "{token_dropout: 0.1}",
}


@dataclass
class Checkpoint:
    """What a checkpoint says of itself, from its small files alone.

    Attributes:
        name: As the recipe writes it.
        config: Its stock config.
        labels: In the order of their ids; empty where it has none but numbers.
        processor: What prepares its inputs; empty where it brings none.
        is_local: Whether it is a folder here.
    """

    name: str
    config: Mapping[str, Any]
    labels: list[str] = field(default_factory=list)
    processor: Mapping[str, Any] = field(default_factory=dict)
    is_local: bool = True


def look_at_checkpoint(name: str, task: Task) -> Checkpoint:
    """The config, labels and processor of a folder or a Hub id; of the latter the small files are fetched.

    Raises:
        RecipeError: It is of another task, or no axis table describes it.
        HubError: The Hub does not answer.
    """
    folder = Path(name).expanduser()
    is_local = is_folder(folder)
    folder = folder if is_local else fetch_matching(name, _PROCESSORS)
    config = read_json_object(folder / "config.json", "a checkpoint's config", error=RecipeError)
    table = ARCHITECTURES.get(str(config.get("model_type")))
    if table is None or table.main_input != MAIN_INPUT[task]:
        fitting = [key for key, each in ARCHITECTURES.items() if each.main_input == MAIN_INPUT[task]]
        raise RecipeError(
            f"Expected a checkpoint for {task} ({', '.join(fitting)}), got {name!r} of the type "
            f"{config.get('model_type')!r}. Nothing says what of it can be cut. Name another, or `--teacher none`."
        )
    names = {int(key): str(label) for key, label in (config.get("id2label") or {}).items()}
    labels = [names[key] for key in sorted(names)]
    if all(label == f"LABEL_{place}" for place, label in enumerate(labels)):
        labels = []
    path = folder / "preprocessor_config.json"
    processor = read_json_object(path, "a checkpoint's processor", error=RecipeError) if path.is_file() else {}
    return Checkpoint(name, config, labels, processor, is_local)


def recipe_text(
    looked: Looked, teacher: Checkpoint | None, recipe: Path, fleet: str, num_devices: int, seen: str
) -> str:
    """The recipe, with a comment for every value.

    Args:
        looked: What was seen of the data.
        teacher: None: from scratch.
        recipe: Where it will lie; paths in it are relative to that.
        fleet: The fleet file, as the recipe names it.
        num_devices: In the fleet.
        seen: What DATA was called on the command line, for the first line.
    """
    epochs = _epochs(looked.num_items)
    batch = 32 if looked.num_items < 2_000 else 64
    heads = (
        _SCRATCH_HEADS
        if teacher is None
        else architecture_of_config(teacher.config).widths(teacher.config, num_labels=2).heads
    )
    keep = max(1, round(heads / 4))
    rate = "2.0e-3" if teacher is None else "5.0e-4"
    lines = [
        f"# {recipe.stem}: written by `edvit init {seen}`. Run it: edvit run {recipe.name}",
        "# Every key: docs/recipes.md; all that is not written here has a default. Paths are relative to this file.",
        *(f"# - {note}" for note in looked.notes),
        f"task: {looked.task}",
        "dataset:",
        *_dataset_lines(looked, teacher, recipe),
        f"augmentation: {_AUGMENTATION[looked.task]}",
        "teacher:",
        *_teacher_lines(looked, teacher, recipe, epochs[0], batch),
        f"fleet: {fleet}   # the devices, and how they are linked",
        f"split: {{num_sub_models: {num_devices}}}   # class groups, one sub-model each",
        f"prune: {{keep_heads: {keep}}}   # of {heads} heads in every layer; everything else shrinks in the same ratio",
        f"distill: {{epochs: {epochs[1]}, batch_size: {batch}, learning_rate: {rate}}}   # from the teacher",
        f"fuse: {{epochs: {epochs[2]}, batch_size: {batch}}}   # their answers become one, then all are tuned together",
        "# evaluate: {rivals: [replicas, large, copies]}   # train plain models beside it: does splitting pay here?",
        "card:",
        "  license: other   # of what you publish: say which one, it is never assumed",
    ]
    return "\n".join(lines) + "\n"


def fleet_text(names: Sequence[str], seen: str) -> str:
    """A fleet of so many devices, each a kind of hardware; links are stated, so that sending is not free."""
    known = load_profiles()
    for name in names:
        if name not in known:
            raise RecipeError(
                f"Expected kinds of hardware in --devices, got {name!r}; known: {', '.join(sorted(known))}."
            )
    link = f"link_mbit_per_s: {ASSUMED_MBIT_PER_S:g}, link_ms: {ASSUMED_LINK_MS:g}"
    devices = "".join(f"  - {{name: device_{i}, profile: {name}, {link}}}\n" for i, name in enumerate(names))
    generic = (
        f"# {DEFAULT_KIND} is a family of processors without figures. Better: a kind that ships (raspberry-pi-5), or\n"
        "# `edvit profile --output mine.yaml` on each device and `profile: mine.yaml` here: docs/guides/fleets.md.\n"
    )
    return (
        f"# Written by `edvit init {seen}`.\n{generic if DEFAULT_KIND in names else ''}devices:\n{devices}"
        f"uplink_mbit_per_s: {ASSUMED_MBIT_PER_S:g}   # all links are guesses of a modest Wi-Fi: measure yours\n"
        "objective: spread   # every device carries its part, so that one that is missing costs least\n"
    )


def device_kinds(devices: str) -> list[str]:
    """The kinds of hardware that `--devices` names: a number of devices, or their kinds separated by commas."""
    if devices.isdecimal():
        count = int(devices)
        if not 1 <= count <= 100:
            raise RecipeError(f"Expected 1 to 100 devices, got {devices}. Each runs a sub-model. Correct --devices.")
        return [DEFAULT_KIND] * count
    return [name.strip() for name in devices.split(",")]


def check_classes(looked: Looked, num_devices: int) -> None:
    """Raise `DataError` where the data cannot be split over so many devices."""
    classes = looked.config.num_labels
    if classes is not None and classes < num_devices:
        raise DataError(
            f"Expected at least as many classes as devices, got {classes} classes for {num_devices}. Each device knows "
            f"a group of classes. Name fewer devices: --devices {classes}."
        )


def _epochs(items: int) -> tuple[int, int, int]:
    """Of a teacher from scratch, distillation and fusion, by the number of training items."""
    if items <= 2_000:
        return 60, 40, 60
    return (30, 20, 30) if items <= 20_000 else (12, 8, 20)


def _dataset_lines(looked: Looked, teacher: Checkpoint | None, recipe: Path) -> list[str]:
    config = looked.config
    lines = [f"  path: {_yaml(config.path)}"]
    if isinstance(config.data_dir, str):
        where = os.path.relpath(Path(config.data_dir).expanduser().resolve(), recipe.resolve().parent)
        lines.append(f"  data_dir: {_yaml(where)}")
    if config.num_labels is not None:
        shown = ", ".join(f"{name} {count}" for name, count in list(looked.counts.items())[:8])
        more = ", ..." if len(looked.counts) > 8 else ""
        lines.append(f"  num_labels: {config.num_labels}" + (f"   # {shown}{more}" if shown else ""))
    for name, plain in (("input_column", None), ("label_column", "label"), ("train_split", "train")):
        if getattr(config, name) != plain:
            lines.append(f"  {name}: {_yaml(getattr(config, name))}")
    if config.test_split is None:
        lines.append("  test_split: null   # there is none: `test_fraction` is held out and never learnt from")
        lines.append(f"  test_fraction: {config.test_fraction:g}")
    if config.validation_split is not None:
        lines.append(f"  validation_split: {_yaml(config.validation_split)}")
    for name in ("group_column", "group_pattern"):
        if getattr(config, name) is not None:
            lines.append(
                f"  {name}: {_yaml(getattr(config, name))}   # rows of one group stay together; remove it if not so"
            )
    if teacher is not None:
        said = "its own processor prepares the inputs" if teacher.processor else "its tokenizer prepares the inputs"
        lines.append(f"  # {teacher.name}: {said}")
    elif config.path != "digits":
        extra = _SCRATCH[looked.task][1].replace("SIDE", "64")
        lines.append(f"  {extra}   # {_COMMENTS[extra.split(':')[0]]}")
    else:
        lines.append("  image_size: 8")
    return lines


def _teacher_lines(looked: Looked, teacher: Checkpoint | None, recipe: Path, epochs: int, batch: int) -> list[str]:
    if teacher is None:
        patch = "2" if looked.config.path == "digits" else "8"
        values = _SCRATCH[looked.task][0].replace("PATCH", patch)
        return [
            "  # From scratch: small, and good for little data only. A fine-tuned model is nearly always better:",
            "  # `edvit init ... --teacher FOLDER_OR_HUB_ID`.",
            "  from_scratch:",
            f"    {values}",
            f"  epochs: {epochs}",
            f"  batch_size: {batch}",
            "  learning_rate: 2.0e-3",
        ]
    name = teacher.name
    if teacher.is_local:
        name = os.path.relpath(Path(name).expanduser().resolve(), recipe.resolve().parent)
    lines = [f"  checkpoint: {_yaml(name)}   # {teacher.config.get('model_type')}"]
    if not teacher.is_local:
        table = architecture_of_config(teacher.config)
        sizes = {key: value for key, value in teacher.config.items() if key in ("model_type", *table.keys)}
        lines.append(f"  config: {json.dumps(sizes)}   # its sizes, so that `edvit plan` needs no download")
    if teacher.labels and teacher.labels == list(looked.counts):
        return [*lines, "  epochs: 0   # it knows these classes already, so it is taken as it is"]
    more = "3" if looked.num_items > 20_000 else "10"
    return [
        *lines,
        f"  epochs: {more}   # fine-tuned: its classes are not those of the data",
        f"  batch_size: {batch}",
        "  learning_rate: 5.0e-5",
    ]


def _yaml(value: Any) -> str:
    """A scalar as YAML reads it back: JSON's quotes where plain text could mean something else."""
    text = str(value)
    is_plain = bool(text) and all(letter.isalnum() or letter in "_./-" for letter in text) and text[0].isalpha()
    return (
        text
        if is_plain and text.lower() not in ("null", "true", "false", "yes", "no", "on", "off")
        else json.dumps(text)
    )


def _write(path: Path, text: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Started:
    """What was written, and what is worth saying of it."""

    recipe: Path
    fleet: Path | None
    said: list[str]


def start(
    data: str, teacher: str, *, devices: str = "2", fleet: str | None = None, recipe: Path, replace: bool = False
) -> Started:
    """Look at data and a checkpoint, and write a recipe and, unless one is named, a fleet beside it.

    Args:
        data: See `data.looking.look_at`.
        teacher: Folder or Hub id; "none": from scratch.
        devices: See `device_kinds`.
        fleet: A fleet file instead.
        recipe: Where to write it.
        replace: Whether files that are there may be replaced.

    Raises:
        DataError: What is classified cannot be told, or there are fewer classes than devices.
        RecipeError: The checkpoint or the devices do not fit, or a file is there already.
        HubError: The Hub does not answer.
    """
    own_fleet = recipe.with_name(f"{recipe.stem}_fleet.yaml") if fleet is None else None
    for path in (recipe, own_fleet):
        if path is not None and path.exists() and not replace:
            raise RecipeError(f"Expected no file at {path}, got one. It would be lost. Name another, or use --force.")
    kinds = device_kinds(devices) if fleet is None else []
    count = len(kinds) if fleet is None else len(load_fleet(find_fleet(fleet)).devices)
    looked = look_at(data)
    check_classes(looked, count)
    found = None if teacher == "none" else look_at_checkpoint(teacher, looked.task)
    seen = Path(data).name if is_folder(data) else data
    named = own_fleet.name if own_fleet else os.path.relpath(find_fleet(str(fleet)).resolve(), recipe.resolve().parent)
    if own_fleet is not None:
        _write(own_fleet, fleet_text(kinds, seen))
    _write(recipe, recipe_text(looked, found, recipe, named, count, seen))
    load_recipe(recipe)
    rows = ", ".join(f"{count:,} {role}" for role, count in looked.splits.items() if count)
    classes = "" if looked.config.num_labels is None else f", {looked.config.num_labels} classes"
    return Started(recipe, own_fleet, [f"{looked.task}: {rows or 'rows not counted'}{classes}", *looked.notes])
