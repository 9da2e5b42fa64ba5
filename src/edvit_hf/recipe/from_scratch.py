# SPDX-License-Identifier: Apache-2.0
"""Sub-models that are not cut from the teacher but built from a config of the recipe. Light: torch only to build one.

Source: DeViT, arXiv 2309.05015, whose sub-models are small models of any width and depth that learn by distillation.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edvit_hf.architectures.costs import ModelShape
from edvit_hf.architectures.tables import architecture_of_config, check_keys
from edvit_hf.errors import RecipeError
from edvit_hf.recipe.schema import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LABEL_KEYS = ("num_labels", "id2label", "label2id")


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


def stock_model(recipe: Recipe, config: Mapping[str, Any], names: list[str], where: str) -> "PreTrainedModel":
    """A stock classifier with random weights.

    Args:
        recipe (`Recipe`): Its task names the class.
        config: Values of the stock config, with the `model_type`.
        names: Of its labels, in order.
        where: Dotted path of the config in the recipe, for the message.

    Raises:
        RecipeError: No such model can be built.
    """
    from transformers import AutoConfig

    from edvit_hf.auto import stock_auto_class

    values = dict(config)
    labels = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    try:
        stock = AutoConfig.for_model(values.pop("model_type"), **values, **labels)
        stock.architectures = []  # where a type has several classifiers (deit), the plain one
        model: PreTrainedModel = stock_auto_class(recipe.task).from_config(stock)
    except (ValueError, TypeError, KeyError) as error:
        raise RecipeError(
            f"`{where}` {dict(config)} is no stock model for {recipe.task}: {error}. Nothing can be built from it. "
            "Correct it."
        ) from error
    return model


def _teacher_inputs(recipe: Recipe, teacher: ModelShape) -> dict[str, Any]:
    found = {name: teacher.architecture.value(teacher.config, name) for name in recipe.input_sizes}
    return {name: recipe.input_sizes[name] if value is None else value for name, value in found.items()}


def _check_inputs(recipe: Recipe, teacher: ModelShape, config: Mapping[str, Any], where: str) -> None:
    """Refuse inputs that are not the teacher's; text needs positions for the longest text, not as many as it has."""
    for name, expected in _teacher_inputs(recipe, teacher).items():
        found, least = config[name], recipe.input_sizes[name]
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
