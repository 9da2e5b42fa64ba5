# SPDX-License-Identifier: Apache-2.0
"""The teacher's outputs on replayed views, computed once and stored: none runs while sub-models learn from them."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from accelerate.utils import send_to_device
from tqdm.auto import tqdm

from edvit_hf.errors import TrainingError
from edvit_hf.modeling_edvit import forward_sub_model
from edvit_hf.training.processes import process_state
from edvit_hf.training.threads import use_all_cores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edvit_hf.data.split import Split


class TeacherOutputs(NamedTuple):
    """What a teacher says of every item in every stored view.

    Attributes:
        logits: (V, N, C) float32.
        features: (V, N, D) float32, the mean of the leading tokens after the last norm, as `forward_sub_model` reads
            it: what joint tuning compares the mapped features with.
    """

    logits: np.ndarray
    features: np.ndarray


def teacher_outputs(
    model: "PreTrainedModel", split: "Split", *, views: int, batch_size: int = 256, progress: bool = True
) -> TeacherOutputs:
    """Logits and features of `model` in eval mode for every item and every replayed augmented view.

    Runs on the accelerator if there is one; the model returns to its device and mode. A split that is not augmented
    looks the same in every view, so then one view is computed and repeated. Items that are padded are taken in the
    order of their lengths, longest first, so that little padding is computed and a batch that does not fit into memory
    fails at once.

    Args:
        model: A stock classifier.
        split: N items; view v is `split.inputs(indices, view=v)`.
        views: Number of views V, at least 1.
        batch_size: Items per forward pass; changes memory and speed only.
        progress: Show a progress bar on the main process.

    Raises:
        TrainingError: If an output is not finite: every sub-model would learn from it.
    """
    use_all_cores()
    distinct_views = 1 if split.augmentation.is_off else views
    order = np.arange(len(split)) if split.lengths is None else np.argsort(-split.lengths, kind="stable")
    state, home, was_training = process_state(), model.device, model.training
    is_silent = not progress or not state.is_main_process
    stored: list[np.ndarray] = []
    bar = tqdm(
        total=distinct_views * len(split), desc="teacher outputs", unit="sample", unit_scale=True, disable=is_silent
    )
    model.to(state.device).eval()
    try:
        with torch.inference_mode(), bar:
            for view in range(distinct_views):
                for start in range(0, len(order), batch_size):
                    indices = order[start : start + batch_size]
                    inputs = send_to_device(split.inputs(indices, view=view), state.device)
                    feature, logits = forward_sub_model(model, inputs)
                    if not stored:
                        sizes = logits.shape[1], feature.shape[1]
                        stored = [np.empty((distinct_views, len(split), size), np.float32) for size in sizes]
                    stored[0][view, indices] = logits.float().cpu().numpy()
                    stored[1][view, indices] = feature.float().cpu().numpy()
                    bar.update(len(indices))
    finally:
        model.to(home).train(was_training)
    for name, array in zip(("logit", "feature"), stored, strict=True):
        _refuse_not_finite(name, array)
    return TeacherOutputs(*(np.repeat(array, views // distinct_views, axis=0) for array in stored))


def _refuse_not_finite(name: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        view, item, column = np.argwhere(~np.isfinite(array))[0]
        raise TrainingError(
            f"The teacher's {name} {column} for item {item}, view {view} is {array[view, item, column]}; finite "
            "numbers were expected, and every sub-model would learn from this one. Train the teacher again with a "
            "lower learning rate or without mixed precision."
        )
