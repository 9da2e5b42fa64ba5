# SPDX-License-Identifier: Apache-2.0
"""What Optimum knows of our graphs: input and output axes, dummy inputs and validation tolerance.

Registered with Optimum's `TasksManager` for the backend "onnx", so that tools which resolve a task through Optimum find
them. Optimum's core package has no ONNX exporter of its own; `export/graphs/draw.py` draws the graph.

Only names that are ours are registered: "edvit" (the whole ensemble), "edvit-sub-model" (any stock sub-model) and
"edvit-fusion". "vit", "bert" and the other stock types are left alone, not even taken where they are free: there is one
registry for all packages, and optimum-onnx registers the stock types without overwriting. An entry of ours that came
first would keep its own out without a word, and stock models would be exported in our way; one that came second would
be dropped without a word, and sub-models would lose their features. With a name of their own, sub-models resolve to our
config whatever else is installed and in whatever order it is imported.
"""

import random
from typing import TYPE_CHECKING, Any, cast

from edvit_hf.configuration_edvit import TASK_OF
from edvit_hf.errors import ExportGateError, named_extra
from edvit_hf.tasks import FUSION_INPUTS, GRAPH_INPUTS, TASKS, Task

with named_extra("Exporting", "export"):
    from optimum.exporters.base import ExporterConfig
    from optimum.exporters.tasks import TasksManager
    from optimum.utils import (
        DummyAudioInputGenerator,
        DummyInputGenerator,
        DummyTextInputGenerator,
        DummyVisionInputGenerator,
    )
    from optimum.utils.normalized_config import NormalizedConfig

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

BACKEND = "onnx"
SUB_MODEL_TYPE = "edvit-sub-model"  # any stock sub-model, whatever its own type
FUSION_MODEL_TYPE = "edvit-fusion"  # the fusion head alone; its config is the ensemble's
_DUMMY_BATCH_SIZE = 3  # not 1: torch would take a batch of one for a constant
_DUMMY_TOKENS = 7

_register = TasksManager.create_register(BACKEND, overwrite_existing=True)

Axes = dict[str, dict[int, str]]  # input or output name -> dynamic axis -> its symbol

_DYNAMIC: dict[Task, dict[int, str]] = {
    "image-classification": {0: "batch"},
    "audio-classification": {0: "batch"},
    "text-classification": {0: "batch", 1: "sequence"},
}
INPUT_AXES: dict[Task, Axes] = {
    task: {name: dict(_DYNAMIC[task]) for name in names} for task, names in GRAPH_INPUTS.items()
}
"""Inputs of a graph by task, in order, with their dynamic axes. Images and spectrograms have one size."""


class DummySpectrogramInputGenerator(DummyAudioInputGenerator):
    """Spectrograms (B, frames, mel bins) evenly from [-1, 1): Optimum's own makes waveforms of that name."""

    SUPPORTED_INPUT_NAMES = ("input_values",)

    def generate(
        self, input_name: str, framework: str = "pt", int_dtype: str = "int64", float_dtype: str = "fp32"
    ) -> "Tensor":
        """Return `input_values`."""
        shape = [self.batch_size, self.normalized_config.max_length, self.normalized_config.num_mel_bins]
        values = self.random_float_tensor(shape, min_value=-1, max_value=1, framework=framework, dtype=float_dtype)
        return cast("Tensor", values)


_GENERATORS: dict[Task, tuple[type, ...]] = {
    "image-classification": (DummyVisionInputGenerator,),
    "audio-classification": (DummySpectrogramInputGenerator,),
    "text-classification": (DummyTextInputGenerator,),
}


@_register("edvit", *TASKS, "feature-extraction")
class EDViTOnnxConfig(ExporterConfig):
    """The whole ensemble: inputs -> logits, or features side by side for "feature-extraction".

    Attributes:
        modality: What the model classifies, which decides its inputs.

    Raises:
        ExportGateError: If the task is another one than the model's, or no graph of the model can be drawn.
    """

    NORMALIZED_CONFIG_CLASS = NormalizedConfig
    # Smaller differences never fail a graph, however small its logits: sums are rounded in another order.
    ATOL_FOR_VALIDATION = 1e-6

    def __init__(self, config: "PreTrainedConfig", task: str, **kwargs: Any) -> None:
        super().__init__(config, task, **kwargs)
        self.modality = task_of(config)
        if task not in (self.modality, "feature-extraction"):
            raise ExportGateError(
                f"Expected the task {self.modality} or feature-extraction for a model of type {config.model_type!r}, "
                f"got {task!r}. The graph would be fed inputs that it cannot read. Leave the task out."
            )
        self.DUMMY_INPUT_GENERATOR_CLASSES = _GENERATORS[self.modality]
        if config.model_type == "edvit":  # every sub-model reads the same inputs
            self._normalized_config = NormalizedConfig(config.sub_model_config(0))

    @property
    def inputs(self) -> Axes:
        """Inputs and their dynamic axes."""
        return INPUT_AXES[self.modality]

    @property
    def outputs(self) -> Axes:
        """Outputs and their dynamic axes."""
        return {"features" if self.task == "feature-extraction" else "logits": {0: "batch"}}

    @property
    def largest_axes(self) -> dict[str, int]:
        """The largest size of a dynamic axis, by symbol, where the model has a limit."""
        is_text = self.modality == "text-classification"
        return {"sequence": int(self._config.max_position_embeddings)} if is_text else {}

    def example_inputs(self) -> "dict[str, Tensor]":
        """Seeded dummy inputs from Optimum's generators, with more than one item."""
        import torch

        tokens = min(_DUMMY_TOKENS, self.largest_axes.get("sequence", _DUMMY_TOKENS))
        state = random.getstate()  # Optimum draws masks with `random`, all else with torch
        try:
            random.seed(0)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                sizes = {"batch_size": _DUMMY_BATCH_SIZE, "sequence_length": tokens}
                return dict(self.generate_dummy_inputs(framework="pt", **sizes))
        finally:
            random.setstate(state)


@_register(SUB_MODEL_TYPE, *TASKS, "feature-extraction")
class SubModelOnnxConfig(EDViTOnnxConfig):
    """A stock sub-model: inputs -> its feature and its vote, in one pass, whatever the task."""

    @property
    def outputs(self) -> Axes:
        """Outputs and their dynamic axes."""
        return {"features": {0: "batch"}, "logits": {0: "batch"}}


class DummyFusionInputGenerator(DummyInputGenerator):
    """Features and votes drawn evenly from [-1, 1) with every sub-model present."""

    SUPPORTED_INPUT_NAMES = FUSION_INPUTS

    def __init__(self, task: str, normalized_config: NormalizedConfig, batch_size: int, **_: Any) -> None:
        config = normalized_config.config
        sizes = {"features": sum(config.feature_sizes), "votes": sum(config.vote_sizes), "mask": config.num_sub_models}
        self.shapes = {name: [batch_size, size] for name, size in sizes.items()}

    def generate(
        self, input_name: str, framework: str = "pt", int_dtype: str = "int64", float_dtype: str = "fp32"
    ) -> "Tensor":
        """Return `features` (B, D), `votes` (B, V) or `mask` (B, S), all float."""
        low = 1 if input_name == "mask" else -1
        shape, kind = self.shapes[input_name], {"framework": framework, "dtype": float_dtype}
        return cast("Tensor", self.random_float_tensor(shape, min_value=low, max_value=1, **kind))


@_register(FUSION_MODEL_TYPE, *TASKS)
class FusionOnnxConfig(EDViTOnnxConfig):
    """The fusion: features (B, D), votes (B, V) and mask (B, S), non-zero where present -> logits (B, L)."""

    def __init__(self, config: "PreTrainedConfig", task: str, **kwargs: Any) -> None:
        super().__init__(config, task, **kwargs)
        self.DUMMY_INPUT_GENERATOR_CLASSES = (DummyFusionInputGenerator,)
        self._normalized_config = NormalizedConfig(config)

    @property
    def inputs(self) -> Axes:
        """Inputs and their dynamic axes."""
        return {name: {0: "batch"} for name in FUSION_INPUTS}

    @property
    def largest_axes(self) -> dict[str, int]:
        """None: a batch may have any size."""
        return {}


def task_of(config: "PreTrainedConfig") -> Task:
    """What a sub-model or an ensemble classifies.

    Raises:
        ExportGateError: If no graph of that architecture can be drawn.
    """
    if config.model_type == "edvit":
        return cast(Task, config.task)
    task = TASK_OF.get(config.model_type)
    if task not in TASKS:
        raise ExportGateError(
            f"Expected a sub-model of type {', '.join(TASK_OF)}, got {config.model_type!r}. Its inputs and "
            "their axes are not known, so no graph of it can be drawn. See docs/guides/adding_an_architecture.md."
        )
    return task


def resolve_onnx_config(
    config: "PreTrainedConfig", *, model_type: str | None = None, task: str | None = None
) -> EDViTOnnxConfig:
    """Ask Optimum's `TasksManager` for the export config of a model config.

    Args:
        config: Of a sub-model, or of the ensemble.
        model_type: `FUSION_MODEL_TYPE` for the fusion head; by default what the config describes, an ensemble or a
            sub-model.
        task: An Optimum task name; by default the classification that the model does.

    Raises:
        ExportGateError: If no graph of that architecture, or none for that task, can be drawn.
        KeyError: From Optimum, if no config is registered for that model type.
        ValueError: From Optimum, if it is registered, but not for that task.
    """
    task = task or task_of(config)
    model_type = model_type or ("edvit" if config.model_type == "edvit" else SUB_MODEL_TYPE)
    constructor = TasksManager.get_exporter_config_constructor(
        BACKEND, model_type=model_type, task=task, library_name="transformers"
    )
    return cast(EDViTOnnxConfig, constructor(config))
