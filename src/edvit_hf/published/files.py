# SPDX-License-Identifier: Apache-2.0
"""What a published ensemble says of itself, read once and checked: config.json, manifest.json, results.json."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edvit_hf.architectures.costs import ModelShape
from edvit_hf.errors import HubError, ManifestError, PruningError
from edvit_hf.hub.client import fetch_matching
from edvit_hf.manifest import MANIFEST_NAME, Manifest
from edvit_hf.storage import read_json_object
from edvit_hf.strict import read_strictly
from edvit_hf.tasks import FusionKind, class_groups_fault, vote_sizes

_REMEDY = "Its costs cannot be told from it. Fetch or export the ensemble again."
_LARGEST = 2**53  # of a count: every whole number up to here is a float too


@dataclass(frozen=True, kw_only=True)
class Size:
    """Parameters and multiply-accumulates as a file states them; None where it does not."""

    parameters: int | None = None
    macs: int | None = None

    def __post_init__(self) -> None:
        for name in ("parameters", "macs"):
            value = getattr(self, name)
            if value is not None and not 0 < value < _LARGEST:
                raise ValueError(f"`{name}` must be a positive count, got {value!s:.40}.")


@dataclass(frozen=True, kw_only=True)
class SubModelSize:
    """A sub-model's row of results.json."""

    index: int
    parameters: int
    macs: int

    def __post_init__(self) -> None:
        Size(parameters=self.parameters, macs=self.macs)


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """The part of an ensemble's config.json that costs depend on; see `EDViTConfig`, whose default is taken."""

    class_groups: list[list[int]]
    sub_model_configs: list[dict[str, Any]]
    fusion_hidden_size: int = 128
    fusion_kind: FusionKind = "mlp"
    focus_groups: list[list[int]] | None = None

    def __post_init__(self) -> None:
        groups, focus = self.class_groups, self.focus_groups
        if len(groups) != len(self.sub_model_configs):
            raise ValueError(
                f"`class_groups` must name one group per sub-model, got {len(groups)} groups and "
                f"{len(self.sub_model_configs)} sub-models."
            )
        fault = class_groups_fault(groups, self.num_classes)
        if fault is not None or not groups:
            raise ValueError(f"`class_groups` must hold every class from 0 on, and no empty group: {fault}")
        if focus is not None and (
            len(focus) != len(groups) or any(set(own) - set(group) for own, group in zip(focus, groups, strict=True))
        ):
            raise ValueError(
                f"`focus_groups` must name, for each of {len(groups)} sub-models, some of its classes, got "
                f"{focus!r:.200}."
            )
        if not 0 <= self.fusion_hidden_size < 2**31:
            raise ValueError(f"`fusion_hidden_size` must be 0 or more units, got {self.fusion_hidden_size}.")

    @property
    def num_classes(self) -> int:
        """Of all class groups together, which may overlap."""
        return len({label for group in self.class_groups for label in group})


@dataclass(frozen=True, kw_only=True)
class Results:
    """The part of results.json that costs depend on."""

    sub_models: Mapping[int, SubModelSize]  # index -> size
    teacher: Size  # of the teacher
    ensemble: Size | None  # of all sub-models with their fusion head; None where there is no such row


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published ensemble."""

    source: str  # folder or Hub id, for messages
    class_groups: list[list[int]]  # classes that each sub-model votes over
    focus_groups: list[list[int]] | None  # those that it was cut for, where they are others
    # Sizes of each sub-model, from the ensemble's config.json or its own; None without either
    shapes: list[ModelShape | None]
    fusion_hidden_size: int | None  # units of the fusion head's hidden layer; None without a config.json
    fusion_kind: FusionKind  # how answers are fused
    teacher: Size  # as far as any file tells
    manifest: Manifest | None  # of the exported files
    results: Results | None  # of the run that made it
    image_size: tuple[int, int] | None  # height and width of an input

    @property
    def num_classes(self) -> int:
        """Of all class groups together, which may overlap."""
        return len({label for group in self.class_groups for label in group})


def read_published(target: str) -> Published:
    """Read what an ensemble folder or Hub repository says of itself.

    Raises:
        ManifestError: Missing or broken files, or files that disagree.
    """
    is_folder = Path(target).is_dir()
    folder = Path(target) if is_folder else _fetched(target)

    def read(name: str, parse: Callable[[dict[str, Any]], Any]) -> Any:
        return _parsed(folder / name, f"{target}/{name}", parse) if (folder / name).is_file() else None

    config = read("config.json", _config)
    path, manifest = folder / MANIFEST_NAME, None
    if path.is_file():
        manifest = Manifest.load(path, source=f"{target}/{MANIFEST_NAME}")
    if config is None and manifest is None:
        raise ManifestError(
            f"{target}: expected a published ensemble with config.json or manifest.json, got neither. Give the folder "
            "that `edvit run` names at its end, a Hub id, or a recipe."
        )
    results = read("results.json", _results) if is_folder else None
    image_size = read("preprocessor_config.json", _image_size) if is_folder else None
    values, parent, shapes = config or (None, Size(), [])
    own = None if values is None else [sorted(group) for group in values.class_groups]
    groups: list[list[int]] = manifest.class_groups if manifest is not None else own or []
    if own is not None and own != [sorted(group) for group in groups]:
        raise ManifestError(
            f"{target}: config.json and manifest.json must speak of the same class groups, got {own} "
            f"and {groups}. They are of two ensembles. Export again."
        )
    if values is None and manifest is not None:
        # A share of an ensemble has no config.json at its root; each sub-model's own comes with its graph.
        num = len(manifest.label_names)
        parses = [partial(_own_shape, group=entry.class_group, num_classes=num) for entry in manifest.sub_models]
        names = [f"{entry.path}/config.json" for entry in manifest.sub_models]
        shapes = [read(name, parse) for name, parse in zip(names, parses, strict=True)]
    teacher = Size() if results is None else results.teacher
    return Published(
        source=target,
        class_groups=groups,
        focus_groups=manifest.focus_groups if manifest is not None else None if values is None else values.focus_groups,
        shapes=shapes,
        manifest=manifest,
        results=results,
        image_size=image_size,
        fusion_hidden_size=None if values is None else values.fusion_hidden_size,
        fusion_kind=values.fusion_kind if values is not None else manifest.fusion.kind if manifest else "mlp",
        teacher=Size(parameters=parent.parameters or teacher.parameters, macs=parent.macs or teacher.macs),
    )


def _parsed(path: Path, source: str, parse: Callable[[dict[str, Any]], Any]) -> Any:
    """What `parse` makes of a file that holds a JSON object."""
    data = read_json_object(path, f"an ensemble's {path.name}", _REMEDY, error=ManifestError)
    try:
        return parse(data)
    except ManifestError as error:
        raise ManifestError(f"{source}: {error}") from error
    except ValueError as error:
        raise ManifestError(f"{source}: {error} {_REMEDY}") from error


def _read_known(kind: Any, value: Any, where: str = "") -> Any:
    """A dataclass from those of an object's keys that it has."""
    if not isinstance(value, dict):
        raise ValueError(f"`{where}` must be an object, got {type(value).__name__}.")
    return read_strictly(kind, {f.name: value[f.name] for f in dataclasses.fields(kind) if f.name in value}, where)


def _config(data: dict[str, Any]) -> tuple[EnsembleConfig, Size, list[ModelShape | None]]:
    if not {"sub_model_configs", "class_groups"} <= set(data):
        raise ManifestError(
            f"expected the config.json of an ensemble, with `sub_model_configs` and `class_groups`, got the keys "
            f"{sorted(data)[:8]}. It is another model. Give an ensemble, or a recipe to plan one."
        )
    values: EnsembleConfig = _read_known(EnsembleConfig, data)
    parent, shapes = _read_known(Size, data.get("parent") or {}, "parent"), list[ModelShape | None]()
    for index, (config, group) in enumerate(zip(values.sub_model_configs, values.class_groups, strict=True)):
        where = f"sub_model_configs[{index}]"
        try:
            shapes.append(_shape(config, group, values.num_classes, f"{where}.id2label"))
        except PruningError as error:
            raise ValueError(f"`{where}`: {error}") from error
    return values, parent, shapes


def _own_shape(config: dict[str, Any], group: list[int], num_classes: int) -> ModelShape | None:
    """The sizes that a sub-model's own config.json tells; None where no table knows its model type."""
    try:
        return _shape(config, group, num_classes, "id2label")
    except PruningError:
        return None


def _shape(config: dict[str, Any], group: list[int], num_classes: int, where: str) -> ModelShape:
    """The sizes of one sub-model: labels are those of its group and "other", which a single one may leave out."""
    names = config.get("id2label")
    if names is not None and not isinstance(names, dict):
        raise ValueError(f"`{where}` must be an object, got {type(names).__name__}.")
    sizes = vote_sizes(group, num_classes)
    labels = len(names) if names else sizes[0]
    if labels not in sizes:
        raise ValueError(f"`{where}` must name the {len(group)} classes of its group and other, got {labels}.")
    return ModelShape.from_config(config, num_labels=labels)


def _results(data: dict[str, Any]) -> Results:
    lists: dict[str, list[Any]] = {}
    for key in ("sub_models", "rows"):
        lists[key] = read_strictly(list[Any], data.get(key, []), key)
    sizes = [_read_known(SubModelSize, row, f"sub_models[{i}]") for i, row in enumerate(lists["sub_models"])]
    of_kind: dict[str, Size] = {}
    for i, row in enumerate(lists["rows"]):
        size = _read_known(Size, row, f"rows[{i}]")
        kind = row.get("kind")
        if kind in ("teacher", "ensemble"):
            if size.parameters is None:
                raise ValueError(f"`rows[{i}].parameters` of the {kind} is missing.")
            of_kind.setdefault(kind, size)
    return Results(
        sub_models={size.index: size for size in sizes},
        teacher=of_kind.get("teacher", Size()),
        ensemble=of_kind.get("ensemble"),
    )


def _image_size(data: dict[str, Any]) -> tuple[int, int] | None:
    size = data.get("size")
    if size is None or (isinstance(size, dict) and not {"height", "width"} & set(size)):
        return None  # an image's own size, or one that follows its shortest edge
    pair = (size.get("height"), size.get("width")) if isinstance(size, dict) else (size, size)
    height, width = (read_strictly(int, side, "size") for side in pair)
    if not (0 < height < 2**16 and 0 < width < 2**16):
        raise ValueError(f"`size` must be a positive height and width, got {size}.")
    return height, width


def _fetched(repo: str) -> Path:
    """The small files of a Hub repository that tell what it is."""
    try:
        return fetch_matching(repo, ("config.json", MANIFEST_NAME))
    except (OSError, HubError) as error:  # OSError: the cache cannot be written
        raise ManifestError(
            f"What {repo!r} says of itself is neither here nor could it be fetched from the Hub ({error}). Without it "
            "the sizes of the sub-models are not known. Check the name and the connection, or give a folder."
        ) from error
