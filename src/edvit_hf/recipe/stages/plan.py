# SPDX-License-Identifier: Apache-2.0
"""The plan stage, and the same plan before anything is trained or downloaded: `edvit plan RECIPE`.

What a plan needs of the recipe stands here: the sizes after every pruning round and those of sub-models that are built
from scratch. Light: no torch.
"""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edvit_hf.architectures.axes import Widths
from edvit_hf.architectures.costs import ModelShape
from edvit_hf.architectures.tables import architecture_of_config, check_keys
from edvit_hf.data.modalities import input_sizes
from edvit_hf.errors import MissingExtraError, RecipeError
from edvit_hf.planning import keep_search
from edvit_hf.planning.figure import save_plan_figure
from edvit_hf.planning.fleet import DEFAULT_FLEET_NOTE, Objective
from edvit_hf.planning.placed_plan import PlacementMethod
from edvit_hf.planning.plan import Plan
from edvit_hf.pruning import PruneConfig
from edvit_hf.recipe.schema import Recipe
from edvit_hf.recipe.stages.split import groups_before_training
from edvit_hf.recipe.strategies import as_strategy
from edvit_hf.storage import read_json_object
from edvit_hf.strict import is_file, whole_number

if TYPE_CHECKING:
    from edvit_hf.recipe.trip import Trip

logger = logging.getLogger(__name__)

_FOLLOW = ("residual", "heads", "head_dim", "ffn")
_LABEL_KEYS = ("num_labels", "id2label", "label2id")


def plan(trip: "Trip") -> None:
    """Group sizes + teacher sizes + fleet -> keep, placement and predicted costs."""
    result = plan_groups(
        trip.recipe, trip.teacher_shape, trip.class_groups, focus_groups=trip.focus_groups, words=trip.words
    )
    logger.info("%s", result)
    result.save(trip.folders["plan"] / "plan.json")
    with contextlib.suppress(MissingExtraError):
        save_plan_figure(result, trip.folders["plan"] / "plan.png")


def plan_recipe(
    recipe: Recipe,
    *,
    num_classes: int | None = None,
    fleet: Path | None = None,
    placement: PlacementMethod = "auto",
    objective: Objective | None = None,
) -> Plan:
    """The plan of a recipe before any of it has run, on its own or another fleet file.

    The teacher's sizes come from `from_scratch`, a local checkpoint folder or `config`; `num_classes` is None where the
    recipe tells it, `objective` where the fleet's own holds.

    Raises:
        RecipeError: The number of classes or the teacher's sizes are not known, or cannot be.
        PruningError: The teacher's config has a key or a size that no model can have.
        BudgetError: No plan fits the fleet.
    """
    notes = []
    if recipe.strategy == "auto":
        first = recipe.auto.tries[0]
        notes.append(f"`strategy: auto` chooses on validation items: this is the plan of `{first}`, tried first")
        recipe = as_strategy(recipe, first)
    if fleet is not None:
        recipe = dataclasses.replace(recipe, fleet=str(fleet.resolve()))
    if num_classes is not None:
        whole_number("--num-classes", num_classes, 2, "fewer leave nothing to tell apart")
    num_classes = num_classes or recipe.dataset.num_labels or _given_classes(recipe)
    if num_classes is None:
        raise RecipeError(
            f"the number of classes of dataset {recipe.dataset.path!r} is not known without loading it. "
            "The cost of the heads depends on it. Write `dataset.num_labels`, or pass --num-classes."
        )
    groups, focus, note = groups_before_training(recipe, num_classes)
    shape = ModelShape.from_config(_teacher_config(recipe), num_labels=num_classes)
    result = plan_groups(recipe, shape, groups, focus_groups=focus, placement=placement, objective=objective)
    notes += [] if note is None else [note]
    return dataclasses.replace(result, notes=[*notes, *result.notes])


def plan_groups(
    recipe: Recipe,
    shape: ModelShape,
    groups: list[list[int]],
    *,
    focus_groups: Sequence[Sequence[int]] | None = None,
    words: int | None = None,
    placement: PlacementMethod = "auto",
    objective: Objective | None = None,
) -> Plan:
    """The plan for given sizes and class groups under the recipe's keep and fleet (on another objective, if given).

    `focus_groups` are what each sub-model is cut for, None: what it votes over. They change no size and are only told.
    `words` is how many words sub-models know where `prune.vocabulary` cuts them; None where that is not known yet.

    Raises:
        BudgetError: No plan fits the fleet.
        RecipeError: More pruning rounds than there are heads to remove, or a sub-model from scratch that does not fit
            the teacher.
    """
    prune, fleet, note = recipe.prune, recipe.load_fleet(), None
    if words is None:
        words, note = _words_before_reading(recipe, shape)
    result = keep_search.plan(
        shape,
        groups,
        fleet if objective is None else dataclasses.replace(fleet, objective=objective),
        keep=_keep(prune, shape),
        from_scratch=sub_model_shapes(recipe, shape.reading(words)),
        words=words,
        fusion_hidden_size=recipe.fuse.hidden_size,
        fusion_kind=recipe.fuse.kind,
        attention=prune.attention,
        placement=placement,
    )
    check_rounds(shape, result, prune.rounds)
    result = result.with_focus(focus_groups)
    notes = [*([] if recipe.fleet else [DEFAULT_FLEET_NOTE]), *([] if note is None else [note])]
    return dataclasses.replace(result, notes=[*notes, *result.notes]) if notes else result


def _keep(prune: PruneConfig, shape: ModelShape) -> keep_search.Keep:
    """What a recipe says of what stays, with "quarter" as a number of the teacher's heads."""
    if prune.keep_ratios is not None:
        return prune.keep_ratios
    return max(1, round(shape.widths.heads / 4)) if prune.keep_heads == "quarter" else prune.keep_heads


def _words_before_reading(recipe: Recipe, shape: ModelShape) -> tuple[int | None, str | None]:
    """How many words sub-models will know, as far as sizes tell it, and a note where it is only a bound."""
    wanted, size = recipe.prune.vocabulary, shape.words
    if wanted is None or size is None:
        return None, None
    if wanted == "seen":
        return None, (
            f"`prune.vocabulary: seen` keeps what the training texts use of {size:,} pieces; the plan counts all of "
            "them until the texts are read"
        )
    return min(wanted, size), None


def _given_classes(recipe: Recipe) -> int | None:
    if recipe.dataset.label_names is not None:
        return len(recipe.dataset.label_names)
    groups = recipe.split.class_groups
    return None if groups is None else len({label for group in groups for label in group})


def _teacher_config(recipe: Recipe) -> dict[str, Any]:
    teacher = recipe.teacher
    local = Path(teacher.checkpoint or "") / "config.json"
    if teacher.from_scratch is not None:
        return _written_config(recipe, teacher.from_scratch, "teacher.from_scratch")
    if teacher.checkpoint is not None and is_file(local):
        return _stored_config(local)
    if teacher.config is not None:
        return _written_config(recipe, teacher.config, "teacher.config")
    raise RecipeError(
        f"the sizes of `teacher.checkpoint` {teacher.checkpoint!r} are not here: {local} does not exist and the recipe "
        "has no `teacher.config`. Planning downloads nothing. Write the checkpoint's sizes as `teacher.config` (its "
        "model_type, hidden_size, ...), give a local folder, or run the teacher stage first."
    )


def _written_config(recipe: Recipe, values: dict[str, Any], where: str) -> dict[str, Any]:
    """A config from the recipe: a key that its model type does not have would silently mean the stock default."""
    check_keys(values, where)
    return {**recipe.input_sizes, **values}


def _stored_config(path: Path) -> dict[str, Any]:
    why = "The teacher's sizes are not known without it. Fetch it again."
    return read_json_object(path, "`teacher.checkpoint`", why, error=RecipeError)


def round_widths(before: Widths, after: Widths, rounds: int) -> list[Widths]:
    """The sizes after each of `rounds` rounds, shrinking geometrically from `before` (the teacher's) to `after`.

    Heads set the pace: each round removes about the same share of what is left, in whole heads and at least one, and
    residual channels and FFN units follow at the same pace. Where heads stay and shrink (thin heads), their dimensions
    set it; where attention stays whole, the widest cut does.

    Returns:
        One entry per round, the last one equal to `after`; all but the last with the labels of `after`.

    Raises:
        RecipeError: More rounds than there are units of the pace-setting kind to remove.
    """
    axis = next((a for a in ("heads", "head_dim") if getattr(after, a) < getattr(before, a)), None)
    axis = axis or max(("residual", "ffn"), key=lambda a: getattr(before, a) - getattr(after, a))
    first, last = getattr(before, axis), getattr(after, axis)
    if rounds > 1 and rounds > first - last:
        what = {"heads": "heads", "head_dim": "dimensions of every head"}.get(axis, f"units of the {axis} axis")
        raise RecipeError(
            f"`prune.rounds` is {rounds}, but only {first - last} of {first} {what} go in all, and every round must "
            f"remove at least one. A round without a cut only costs its retraining. Use at most {max(1, first - last)} "
            "rounds, or keep less."
        )
    result: list[Widths] = []
    for number in range(1, rounds):
        pace = round(first * (last / first) ** (number / rounds))
        previous = getattr(result[-1] if result else before, axis)
        # At least one less than before, and one for every round still to come.
        pace = max(last + rounds - number, min(pace, previous - 1))
        share = math.log(pace / first) / math.log(last / first)
        sizes = {a: round(getattr(before, a) * (getattr(after, a) / getattr(before, a)) ** share) for a in _FOLLOW}
        result.append(dataclasses.replace(before, **{**sizes, axis: pace}, labels=after.labels))
    return [*result, after]


def check_rounds(teacher: ModelShape, plan: Plan, rounds: int) -> None:
    """Refuse rounds that cannot be cut, before anything has run.

    Raises:
        RecipeError: More rounds than a sub-model has units to lose.
        PruningError: The architecture ties widths that a round would part.
    """
    for sub_model in plan.sub_models:
        if sub_model.widths is not None and sub_model.from_scratch is None:
            for widths in round_widths(teacher.widths, sub_model.widths, rounds):
                teacher.architecture.check_ties(teacher.config, widths)


def sub_model_config(recipe: Recipe, teacher: ModelShape, index: int) -> dict[str, Any] | None:
    """The stock config of a sub-model that is built from scratch, without labels; None of one cut from the teacher.

    What the recipe leaves out of its input sizes is taken from the teacher, so that both read the same inputs.

    Raises:
        RecipeError: It reads other inputs than the teacher, names labels, or `dekd` could not compare the two.
        PruningError: A key or a size that no model of its type can have.
    """
    entries = recipe.prune.from_scratch
    if entries is None or entries[index] is None:
        return None
    where, written = f"prune.from_scratch[{index}]", dict(entries[index] or {})
    check_keys(written, where)
    labels = [key for key in _LABEL_KEYS if key in written]
    if labels:
        raise RecipeError(
            f"`{where}` names {', '.join(labels)}, but a sub-model answers with the classes of its class group and "
            '"other". Another number would not fit. Remove it.'
        )
    table = architecture_of_config(written)
    if table.main_input != recipe.main_input:
        raise RecipeError(
            f"`{where}` is a {table.model_type}, which reads {table.main_input}; the task {recipe.task} has "
            f"{recipe.main_input}. All sub-models get the teacher's input. Name a model type of that task."
        )
    config = {**_teacher_inputs(recipe, teacher), **written}
    _check_inputs(recipe, teacher, config, where)
    return config


def sub_model_shapes(recipe: Recipe, teacher: ModelShape) -> list[ModelShape | None] | None:
    """Sizes of the sub-models built from scratch (None: cut from the teacher); None where the recipe has none.

    Their labels still are those of the stock default. Raises what `sub_model_config` raises.
    """
    if recipe.prune.from_scratch is None:
        return None
    configs = [sub_model_config(recipe, teacher, index) for index in range(len(recipe.prune.from_scratch))]
    return [None if config is None else ModelShape.from_config(config) for config in configs]


def _teacher_inputs(recipe: Recipe, teacher: ModelShape) -> dict[str, Any]:
    sizes = input_sizes(recipe.task, dataclasses.asdict(recipe.dataset))
    found = {name: teacher.architecture.value(teacher.config, name) for name in sizes}
    return {name: sizes[name] if value is None else value for name, value in found.items()}


def _check_inputs(recipe: Recipe, teacher: ModelShape, config: Mapping[str, Any], where: str) -> None:
    """Refuse inputs that are not the teacher's; text needs positions for the longest text, not as many as it has."""
    for name, expected in _teacher_inputs(recipe, teacher).items():
        found, least = config[name], recipe.input_sizes.get(name, expected)
        is_long_enough = name == "max_position_embeddings" and isinstance(found, int) and found >= least
        if found != expected and not is_long_enough:
            raise RecipeError(
                f"`{where}.{name}` is {found!r}, the teacher has {expected!r}. Both read the same inputs, and its "
                "answers are what the sub-model learns. Remove the key: it is filled in."
            )
    own, theirs = (s.architecture.sizes(s.config)["patches"] for s in (ModelShape.from_config({**config}), teacher))
    if recipe.distill.objective == "dekd" and own != theirs:
        raise RecipeError(
            f"`{where}` cuts its input into {own} patches, the teacher into {theirs}, but `distill.objective: dekd` "
            "compares relations between the same tokens. Give both one patch grid (patch size and strides), or use "
            "`objective: kd`."
        )
