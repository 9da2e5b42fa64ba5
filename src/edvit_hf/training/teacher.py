"""The teacher's logits on replayed views, computed once and stored: none runs while sub-models train."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import PartialState
from torch import nn
from tqdm.auto import tqdm

from edvit_hf.errors import TrainingError
from edvit_hf.training.threads import use_all_cores

if TYPE_CHECKING:
    from edvit_hf.data import ImageSplit


def teacher_logits(
    model: nn.Module, split: "ImageSplit", *, views: int, batch_size: int = 256, progress: bool = True
) -> np.ndarray:
    """Logits of `model` in eval mode for every item and every replayed augmented view.

    Runs on the accelerator if there is one; the model returns to its device and mode. A split that is not
    augmented looks the same in every view, so then one view is computed and repeated.

    Args:
        model (`nn.Module`): Takes `pixel_values`, returns an object with `.logits`.
        split (`ImageSplit`): N items; view v is `split.pixel_values(indices, view=v)`.
        views (`int`): Number of views V, at least 1.
        batch_size (`int`): Items per forward pass; changes memory and speed only.
        progress (`bool`): Show a progress bar on the main process.

    Returns:
        `np.ndarray`: (V, N, C) float32.

    Raises:
        ValueError: If `views` or `batch_size` is below 1.
        TrainingError: If a logit is not finite: every sub-model would learn from it.
    """
    if views < 1 or batch_size < 1:
        raise ValueError(f"`views` and `batch_size` must be at least 1, got {views} and {batch_size}.")
    use_all_cores()
    distinct_views = 1 if split.augmentation.is_off else views
    state, home, was_training = PartialState(), next(model.parameters()).device, model.training
    model.to(state.device).eval()
    is_silent = not progress or not state.is_main_process
    stored = []
    bar = tqdm(
        total=distinct_views * len(split),
        desc="teacher logits",
        unit="sample",
        unit_scale=True,
        disable=is_silent,
    )
    try:
        with torch.inference_mode(), bar:
            for view in range(distinct_views):
                for start in range(0, len(split), batch_size):
                    indices = np.arange(start, min(start + batch_size, len(split)))
                    pixel_values = split.pixel_values(indices, view=view).to(state.device)
                    stored.append(model(pixel_values=pixel_values).logits.float().cpu())
                    bar.update(len(indices))
    finally:
        model.to(home).train(was_training)
    logits = torch.cat(stored).numpy().reshape(distinct_views, len(split), -1)
    if not np.isfinite(logits).all():
        view, item, label = np.argwhere(~np.isfinite(logits))[0]
        raise TrainingError(
            f"The teacher's logit for item {item}, view {view}, label {label} is "
            f"{logits[view, item, label]}; finite numbers were expected, and every sub-model would learn "
            "from this one. Train the teacher again with a lower learning rate or without mixed precision."
        )
    return np.repeat(logits, views // distinct_views, axis=0)
