"""What Optimum knows of our graphs: input and output axes, dummy inputs and validation tolerance.

Registered with Optimum's `TasksManager` under the backend name "edvit-onnx", so that tools which resolve a
task through Optimum find them. Optimum's core package has no ONNX exporter of its own; `export/onnx.py`
draws the graph.
"""

from typing import TYPE_CHECKING, Any, ClassVar, cast

from edvit_hf.errors import MissingExtraError

try:
    from optimum.exporters.base import ExporterConfig
    from optimum.exporters.tasks import TasksManager
    from optimum.utils import DummyInputGenerator, DummyVisionInputGenerator
    from optimum.utils.normalized_config import NormalizedConfig, NormalizedVisionConfig
except ImportError as error:
    raise MissingExtraError("Exporting", "export", "optimum") from error

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

BACKEND = "edvit-onnx"
FUSION_MODEL_TYPE = "edvit-fusion"  # the fusion head alone; its config is the ensemble's
_DUMMY_BATCH_SIZE = 3  # not 1: torch would take a batch of one for a constant

_register = TasksManager.create_register(BACKEND, overwrite_existing=True)

Axes = dict[str, dict[int, str]]  # input or output name -> dynamic axis -> its symbol


@_register("edvit", "image-classification", "feature-extraction")
class EDViTOnnxConfig(ExporterConfig):
    """The whole ensemble: pixels -> logits, or features side by side for "feature-extraction"."""

    NORMALIZED_CONFIG_CLASS = NormalizedVisionConfig
    DUMMY_INPUT_GENERATOR_CLASSES: ClassVar[tuple[type, ...]] = (DummyVisionInputGenerator,)
    # Smaller differences never fail a graph, however small its logits: sums are rounded in another order.
    ATOL_FOR_VALIDATION = 1e-6

    @property
    def inputs(self) -> Axes:
        """Inputs and their dynamic axes."""
        return {"pixel_values": {0: "batch"}}

    @property
    def outputs(self) -> Axes:
        """Outputs and their dynamic axes."""
        return {"features" if self.task == "feature-extraction" else "logits": {0: "batch"}}

    def example_inputs(self) -> "dict[str, Tensor]":
        """Seeded dummy inputs from Optimum's generators, with more than one item."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return dict(self.generate_dummy_inputs(framework="pt", batch_size=_DUMMY_BATCH_SIZE))


@_register("vit", "image-classification", "feature-extraction")
@_register("deit", "image-classification", "feature-extraction")
class SubModelOnnxConfig(EDViTOnnxConfig):
    """A stock sub-model: pixels -> its feature and its vote, in one pass, whatever the task."""

    @property
    def outputs(self) -> Axes:
        """Outputs and their dynamic axes."""
        return {"features": {0: "batch"}, "logits": {0: "batch"}}


class DummyFusionInputGenerator(DummyInputGenerator):
    """Features drawn evenly from [-1, 1) with every sub-model present."""

    SUPPORTED_INPUT_NAMES = ("features", "mask")

    def __init__(self, task: str, normalized_config: NormalizedConfig, batch_size: int, **_: Any) -> None:
        sizes = normalized_config.config.feature_sizes
        self.shapes = {"features": [batch_size, sum(sizes)], "mask": [batch_size, len(sizes)]}

    def generate(
        self, input_name: str, framework: str = "pt", int_dtype: str = "int64", float_dtype: str = "fp32"
    ) -> "Tensor":
        """Return `features` (B, D) or `mask` (B, S), both float."""
        low = -1 if input_name == "features" else 1
        return cast(
            "Tensor",
            self.random_float_tensor(
                self.shapes[input_name], min_value=low, max_value=1, framework=framework, dtype=float_dtype
            ),
        )


@_register(FUSION_MODEL_TYPE, "image-classification")
class FusionOnnxConfig(EDViTOnnxConfig):
    """The fusion head: features (B, D) and mask (B, S), non-zero where present -> logits (B, L)."""

    NORMALIZED_CONFIG_CLASS = NormalizedConfig
    DUMMY_INPUT_GENERATOR_CLASSES: ClassVar[tuple[type, ...]] = (DummyFusionInputGenerator,)

    @property
    def inputs(self) -> Axes:
        """Inputs and their dynamic axes."""
        return {"features": {0: "batch"}, "mask": {0: "batch"}}


def resolve_onnx_config(
    config: "PreTrainedConfig", *, model_type: str | None = None, task: str = "image-classification"
) -> EDViTOnnxConfig:
    """Ask Optimum's `TasksManager` for the export config of a model config.

    Args:
        config (`PreTrainedConfig`): Of a sub-model, or of the ensemble.
        model_type (`str`): `FUSION_MODEL_TYPE` for the fusion head; by default the config's own.
        task (`str`): An Optimum task name.

    Raises:
        KeyError: From Optimum, if no config is registered for that model type.
        ValueError: From Optimum, if it is registered, but not for that task.
    """
    constructor = TasksManager.get_exporter_config_constructor(
        BACKEND, model_type=model_type or config.model_type, task=task, library_name="transformers"
    )
    return cast(EDViTOnnxConfig, constructor(config))
