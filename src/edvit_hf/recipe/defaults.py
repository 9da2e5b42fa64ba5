# SPDX-License-Identifier: Apache-2.0
"""What a recipe does not say: values that follow from its other values, from the data or from the fleet.

Only `dataset` and `teacher` must be written. Plain defaults stand with the configs; here are those that depend on
something. They are those of the measured recipes, where these agree. Light: no torch.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edvit_hf.architectures.tables import ARCHITECTURES
from edvit_hf.data.config import EMBEDDED_DATASET, FOLDER_BUILDERS
from edvit_hf.data.looking import task_of_folder
from edvit_hf.errors import EDViTError, RecipeError
from edvit_hf.planning.fleet import load_fleet
from edvit_hf.storage import read_json
from edvit_hf.strict import is_file
from edvit_hf.tasks import MAIN_INPUT, Task

FROM_SCRATCH_EPOCHS = 60
"""Of a teacher with random weights; a checkpoint is taken as it is."""
_VIEWS = 4


def with_defaults(values: Mapping[str, Any], folder: Path, *, is_published: bool) -> dict[str, Any]:
    """The values of a recipe with what follows from them.

    Args:
        values: The sections as they are written.
        folder: Of the recipe's file.
        is_published: Whether it is one of the package's own, whose figures stand beside rivals.

    Raises:
        RecipeError: The task cannot be told, or the fleet cannot be read.
    """
    found = copy.deepcopy(dict(values))
    if "task" not in found:
        found["task"] = _task(found, folder)
    found["teacher"] = with_section_defaults("teacher", found.get("teacher"))
    split, prune = _section(found, "split"), _section(found, "prune")
    fleet = found.get("fleet")
    if isinstance(fleet, str) and "num_sub_models" not in split:
        split["num_sub_models"] = _num_devices(split, folder / fleet)
    if fleet is None and not {"keep_heads", "keep_ratios", "from_scratch"} & set(prune):
        prune["keep_heads"] = "quarter"
    views = _section(found, "distill").get("views", _VIEWS)
    if isinstance(views, int) and views < _VIEWS:
        _section(found, "fuse").setdefault("views", views)
    if not is_published:
        _without_rivals(_section(found, "evaluate"))
    return {name: section for name, section in found.items() if name in values or section not in ({}, None)}


def with_section_defaults(name: str, section: Any) -> Any:
    """A section with what follows from its own values; what is no mapping stays as it is."""
    if name == "teacher" and isinstance(section, dict) and "from_scratch" in section:
        return {"epochs": FROM_SCRATCH_EPOCHS, **section}
    return section


def _section(values: dict[str, Any], name: str) -> dict[str, Any]:
    """A section, to fill in; one that is no mapping is refused later, and what is filled in is lost."""
    section = values.setdefault(name, {})
    return section if isinstance(section, dict) else {}


def _without_rivals(evaluate: dict[str, Any]) -> None:
    """Own data do not pay for the evidence unless it is asked for."""
    if not {"baselines", "rivals", "baseline_epochs"} & set(evaluate):
        evaluate["baselines"] = False


def _num_devices(split: Mapping[str, Any], fleet: Path) -> int:
    groups = split.get("class_groups")
    if isinstance(groups, list):
        return len(groups)
    try:
        return len(load_fleet(fleet.resolve()).devices)
    except EDViTError as error:
        raise RecipeError(f"`fleet` cannot be read: {error}") from error


def _task(values: Mapping[str, Any], folder: Path) -> Task:
    """What is classified: the dataset section's own keys tell it, else the teacher's type, else the files."""
    dataset, teacher = values.get("dataset"), values.get("teacher")
    dataset = dataset if isinstance(dataset, dict) else {}
    teacher = teacher if isinstance(teacher, dict) else {}
    found = _by_keys(dataset) or _by_model_type(teacher, folder)
    if found is None:
        names = dataset.get("data_dir") or (dataset.get("path") if _is_folder_name(dataset.get("path")) else None)
        for name in [names] if isinstance(names, str) else names or []:
            found = found or task_of_folder(folder / str(name)) or task_of_folder(Path(str(name)))
    if found is None:
        raise RecipeError(
            "Expected a `task`, or data or a teacher that tell it, got neither: the dataset section names no images, "
            "sounds or texts, the checkpoint is not here, and no file was found to look at. Write `task:` with one of "
            f"{', '.join(MAIN_INPUT)}."
        )
    return found


def _by_keys(dataset: Mapping[str, Any]) -> Task | None:
    path = dataset.get("path")
    for task, builder in FOLDER_BUILDERS.items():
        if path == builder:
            return task
    if path == EMBEDDED_DATASET or {"image_size", "mean", "std"} & set(dataset):
        return "image-classification"
    if "audio" in dataset:
        return "audio-classification"
    return "text-classification" if "text" in dataset else None


def _by_model_type(teacher: Mapping[str, Any], folder: Path) -> Task | None:
    configs = [teacher.get("from_scratch"), teacher.get("config")]
    checkpoint = teacher.get("checkpoint")
    for place in (folder, Path()) if isinstance(checkpoint, str) else ():
        path = place / str(checkpoint) / "config.json"
        if is_file(path):
            configs.append(read_json(path))
    for config in configs:
        table = ARCHITECTURES.get(str(config.get("model_type"))) if isinstance(config, dict) else None
        if table is not None:
            return next(task for task, name in MAIN_INPUT.items() if name == table.main_input)
    return None


def _is_folder_name(path: Any) -> bool:
    return isinstance(path, str) and (Path(path).is_absolute() or path.startswith(("./", "../", "~/")))
