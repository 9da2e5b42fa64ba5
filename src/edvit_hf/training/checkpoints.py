# SPDX-License-Identifier: Apache-2.0
"""Writes and reads checkpoints, each whole or absent, so that a resumed run equals an uninterrupted one."""

import contextlib
import dataclasses
import hashlib
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edvit_hf.errors import CheckpointError
from edvit_hf.storage import PARTIAL_SUFFIX, read_json, whole_folder, write_json
from edvit_hf.training.config import TrainConfig

logger = logging.getLogger(__name__)

PROGRESS_FILE = "progress.json"
BEST_FILE = "best.safetensors"  # weights of the best epoch so far, where a run keeps them
_ADDED = {
    **{"patience": None, "joint_patience": None, "votes": "group", "focus_weight": 1.0, "kind": "mlp", "other": None},
    **{"feedback_weight": 0.0, "diversity_weight": 0.0, "feature_weight": 0.0},
}
NUM_KEPT = 2  # the newest, and one before it in case the newest turns out unreadable


@dataclasses.dataclass(frozen=True)
class TrainLog:
    """What a run did, one dict per epoch.

    Attributes:
        epochs: Each has `epoch` (from 1), `loss`, the objective's figures, `learning_rate`, `seconds` and
            `samples_per_second`; with validation its figures, too.
        passes: Items that went forward and back in all.
        stopped: Why the run ended.
        best_epoch: Whose weights were kept, 0 for those that it began with; None where the last ones were.
    """

    epochs: list[dict[str, float]]
    passes: int = 0
    stopped: str = ""
    best_epoch: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The log, ready for JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass
class Progress:
    """Where a run stands.

    `sums`, `num_items` and `seconds` are totals of the epoch under way; the rest counts from the start. `num_processes`
    are those of the launch that saves; None in checkpoints that do not say. `passes` counts items of finished epochs.
    With `patience`, `best_score` and `best_epoch` are of the best validation so far, and `cooldown` holds the epoch
    from which the learning rate falls and for how many.
    """

    run: str
    epoch: int = 0
    batches_done: int = 0
    optimizer_steps: int = 0
    num_items: float = 0.0
    seconds: float = 0.0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    log: list[dict[str, float]] = dataclasses.field(default_factory=list)
    random_state: str = ""
    num_processes: int | None = None
    passes: int = 0
    stopped: str = "all epochs done"
    best_epoch: int | None = None
    best_score: list[float] | None = None
    cooldown: list[int] | None = None


def run_identity(config: TrainConfig, model: nn.Module, num_items: int, description: str) -> str:
    """A hash of what a checkpoint must share with the run that continues it."""
    values = dataclasses.asdict(config)
    for harmless in ("num_workers", "checkpoint_every_steps", "track"):  # none changes the result
        del values[harmless]
    for added, plain in _ADDED.items():  # checkpoints from before these values existed are continued
        if values.get(added, plain) == plain:
            values.pop(added, None)
    shapes = [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]
    facts = (description, type(config).__name__, sorted(values.items()), num_items, shapes)
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def write_checkpoint(
    accelerator: Accelerator, checkpoint_dir: Path, progress: Progress, best: dict[str, Tensor] | None = None
) -> None:
    """Save model, optimiser and random states, the progress last; rename into place; keep the newest two.

    `best` are the weights of the best epoch so far, if the run keeps them.
    """
    target = checkpoint_dir / f"epoch_{progress.epoch:05d}_step_{progress.optimizer_steps:08d}"
    is_main = accelerator.is_main_process
    with whole_folder(target) if is_main else contextlib.nullcontext(target) as folder:
        (shared,) = broadcast_object_list([str(folder)])  # the main process has made it, under a name of its own
        accelerator.save_state(shared)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            if best is not None:
                save_file(best, folder / BEST_FILE)
            progress.random_state = random_state_digest(accelerator.device)
            write_json(folder / PROGRESS_FILE, dataclasses.asdict(progress))
    if accelerator.is_main_process:
        _drop_old(checkpoint_dir, progress.run)
    accelerator.wait_for_everyone()


def newest_checkpoint(checkpoint_dir: Path, run: str) -> tuple[Path, Progress] | None:
    """The newest complete checkpoint of this run, or None; warns about those of another run."""
    found = _complete_checkpoints(checkpoint_dir)
    own = [(folder, progress) for folder, progress in found if progress.run == run]
    if found and not own:
        logger.warning(
            "%s holds checkpoints of a run with other values, another model or other data: they are not "
            "continued, training starts from the beginning and replaces them",
            checkpoint_dir,
        )
    return own[-1] if own else None


def restore(accelerator: Accelerator, folder: Path, progress: Progress) -> dict[str, Tensor] | None:
    """Load model, optimiser and random states from a checkpoint; returns the weights of the best epoch, if kept.

    Raises:
        CheckpointError: If a file is damaged, or the random state did not come back (accelerate only logs).
    """
    advice = f"Delete {folder} and run again: training continues from the checkpoint before it, or from the beginning."
    try:
        accelerator.load_state(str(folder))
        best = load_file(folder / BEST_FILE) if progress.best_epoch is not None else None
    except Exception as error:  # safetensors, pickle, zip and torch errors have no common base
        raise CheckpointError(
            f"The checkpoint {folder} cannot be loaded ({type(error).__name__}: {error}). {advice}"
        ) from error
    if accelerator.is_main_process and random_state_digest(accelerator.device) != progress.random_state:
        raise CheckpointError(
            f"The random state in {folder} is missing, damaged or from another kind of device. "
            f"A resumed run would differ from an uninterrupted one. {advice}"
        )
    return best


def random_state_digest(device: torch.device) -> str:
    """A hash of torch's random state, to notice one that was not restored."""
    digest = hashlib.sha256(torch.get_rng_state().numpy().tobytes())
    if device.type == "cuda":
        digest.update(torch.cuda.get_rng_state(device).numpy().tobytes())
    return digest.hexdigest()


def _complete_checkpoints(checkpoint_dir: Path) -> list[tuple[Path, Progress]]:
    """Checkpoints in order of their steps; a folder that was never renamed is not among them."""
    found = []
    for file in sorted(checkpoint_dir.glob(f"epoch_*/{PROGRESS_FILE}")):
        if file.parent.name.endswith(PARTIAL_SUFFIX):
            continue
        try:
            found.append((file.parent, Progress(**read_json(file))))
        except (ValueError, TypeError) as error:
            raise CheckpointError(
                f"{file} is not the progress of a training run ({error}). Delete {file.parent} and run again."
            ) from error
    return found


def _drop_old(checkpoint_dir: Path, run: str) -> None:
    found = _complete_checkpoints(checkpoint_dir)
    own = [folder for folder, progress in found if progress.run == run]
    for folder in {folder for folder, _ in found} - set(own[-NUM_KEPT:]):
        shutil.rmtree(folder)
    for partial in checkpoint_dir.glob(f"epoch_*{PARTIAL_SUFFIX}"):
        shutil.rmtree(partial)
