# SPDX-License-Identifier: Apache-2.0
"""The one training loop: Accelerate for devices and precision, an order of items that a run can resume."""

import contextlib
import dataclasses
import logging
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object, set_seed
from torch import Tensor, nn
from tqdm.auto import tqdm

from edvit_hf.errors import TrainingError
from edvit_hf.training import stopping
from edvit_hf.training.checkpoints import Progress, TrainLog, newest_checkpoint, restore, run_identity, write_checkpoint
from edvit_hf.training.config import TrainConfig
from edvit_hf.training.epoch_data import EpochData
from edvit_hf.training.loading import epoch_batches, load_batches, num_steps, share_of
from edvit_hf.training.objectives import Objective
from edvit_hf.training.optimizer import clip_gradients, clip_groups, make_optimizer
from edvit_hf.training.processes import alone, make_accelerator, process_state
from edvit_hf.training.threads import use_all_cores
from edvit_hf.training.tracking import Tracker

logger = logging.getLogger(__name__)

# Losses stay on their device until this many batches or seconds have passed: each read waits for the device.
FLUSH_BATCHES = 20
FLUSH_SECONDS = 1.0
# Epochs of tiny models last less than writing a checkpoint: this much work may be lost.
EPOCH_CHECKPOINT_SECONDS = 5.0


@dataclasses.dataclass
class _BatchFigures:
    """Figures of a batch that are still on their device.

    `weight` is the number of items this process ran of its `size`, `step` the optimiser step it belongs to (from 1),
    `batch` its number in the epoch (from 1), `gradient_norm` that of the step, at the step's last batch.
    """

    figures: dict[str, Tensor]
    weight: int
    size: int
    step: int
    batch: int
    gradient_norm: Tensor | None = None


@dataclasses.dataclass
class _Run:
    """Everything one call of `train` works with."""

    accelerator: Accelerator
    model: nn.Module
    clip_groups: list[list[nn.Parameter]]
    optimizer: AcceleratedOptimizer
    data: EpochData
    objective: Objective
    config: TrainConfig
    checkpoint_dir: Path
    description: str
    progress: Progress
    bar: tqdm
    tracker: Tracker
    bare_model: nn.Module
    validate: stopping.Validate | None = None
    best: dict[str, Tensor] | None = None
    pending: list[_BatchFigures] = dataclasses.field(default_factory=list)
    last_flush: float = dataclasses.field(default_factory=time.perf_counter)
    last_save: float = dataclasses.field(default_factory=time.perf_counter)


def train(
    model: nn.Module,
    data: EpochData,
    objective: Objective,
    config: TrainConfig,
    *,
    checkpoint_dir: Path,
    description: str,
    progress: bool = True,
    distributed: bool = True,
    validate: stopping.Validate | None = None,
) -> TrainLog:
    """Train `model` in place, or continue where an interrupted call with the same arguments stopped.

    The result of an interrupted and resumed run equals that of an uninterrupted one, bit for bit on a CPU
    with the same number of threads: items come in an order that depends only on (seed, epoch, lengths), random
    states travel with the checkpoints, and those appear whole or not at all. With another number of processes than
    the checkpoint's it differs, which is warned of. A finished run returns its result at once. The seed of `config`
    is set globally. The model returns on the device it came from, in eval mode.

    Launched as several processes, they share every batch and take the same steps as one process would, but for
    rounding, and for what is drawn at random while training (dropout, mixed items).

    Args:
        model (`nn.Module`): Parameters that do not require gradients stay as they are. Gradients are clipped together,
            or group by group if the model has a method `clip_groups`.
        data (`EpochData`): The items of every epoch.
        objective (`Objective`): The loss of one batch.
        config (`TrainConfig`): Values of the run.
        checkpoint_dir (`Path`): Folder of this run alone; the newest two checkpoints stay in it.
        description (`str`): Name of the run for the progress bar, the log and the errors.
        progress (`bool`): Show a progress bar on the main process; refreshed rarely if not on a terminal.
        distributed (`bool`): False: within a launch of several processes, this one trains by itself, exactly as if it
            were the only one; see `my_share`.
        validate (`Validate`, *optional*): Needed, and called, with `config.patience` alone: after every epoch and
            before the first, with the model in eval mode.

    Returns:
        `TrainLog`: Loss, figures, seconds and speed of every epoch, those before an interruption included.

    Raises:
        TrainingError: If a loss or gradient is not finite, nothing can be trained, fp16 is asked for without a GPU, or
            `config.patience` is set without `validate`.
        CheckpointError: If the newest checkpoint is damaged.
        MissingExtraError: If `config.track` is set and trackio is not installed.
    """
    use_all_cores()
    data.set_epoch(0)
    stopping.check_trainable(data, config, validate, description)
    is_shown = progress and process_state().is_main_process
    with contextlib.nullcontext() if distributed else alone():
        return _train(model, data, objective, config, Path(checkpoint_dir), description, is_shown, validate)


def _train(
    model: nn.Module,
    data: EpochData,
    objective: Objective,
    config: TrainConfig,
    checkpoint_dir: Path,
    description: str,
    is_shown: bool,
    validate: stopping.Validate | None,
) -> TrainLog:
    accelerator = make_accelerator(config.mixed_precision)
    set_seed(config.seed, device_specific=accelerator.num_processes > 1)
    optimizer = make_optimizer(model, config)
    home = next(model.parameters()).device
    identity = run_identity(config, model, len(data), description)
    prepared, prepared_optimizer = accelerator.prepare(model, optimizer)
    tracker = Tracker(config, description, identity, checkpoint_dir, is_active=accelerator.is_main_process)
    try:
        state, best = _resume(accelerator, checkpoint_dir, identity, config, description)
        bar = _make_bar(config, data, state, description, is_shown=is_shown)
        trained = (accelerator, prepared, clip_groups(model), prepared_optimizer)
        run = _Run(*trained, data, objective, config, checkpoint_dir, description, state, bar, tracker, model)
        run.validate, run.best = (None if config.patience is None else validate), best
        with bar:
            _train_epochs(run)
    finally:
        tracker.close()
        # Accelerate wraps `forward` for mixed precision: take that off again.
        accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
        model.__dict__.pop("forward", None)
        model.zero_grad(set_to_none=True)
        model.to(home).eval()
        if accelerator.device.type != "cpu":
            accelerator.free_memory()  # a full garbage collection: on a CPU it costs more than a tiny epoch
    return TrainLog(state.log, state.passes, state.stopped, state.best_epoch)


def _resume(
    accelerator: Accelerator, checkpoint_dir: Path, identity: str, config: TrainConfig, description: str
) -> tuple[Progress, dict[str, Tensor] | None]:
    found = newest_checkpoint(checkpoint_dir, identity)
    if found is None:
        if accelerator.is_main_process:
            where = (accelerator.device, accelerator.num_processes)
            logger.info("%s: %d epochs on %s, %d process(es)", description, config.epochs, *where)
        return Progress(run=identity, num_processes=accelerator.num_processes), None
    folder, state = found
    best = restore(accelerator, folder, state)
    if accelerator.is_main_process and state.num_processes not in (None, accelerator.num_processes):
        processes = (state.num_processes, accelerator.num_processes)
        logger.warning(
            "%s: %s was saved by %d process(es), %d go on: the result will differ from an uninterrupted run's by "
            "rounding, and by what is drawn at random. Launch as many as before if it has to be equal",
            *(description, folder, *processes),
        )
    state.num_processes = accelerator.num_processes
    if accelerator.is_main_process:
        done = (state.epoch, config.epochs, state.batches_done)
        logger.info("%s: continues after %d of %d epochs and %d batches (%s)", description, *done, folder)
    else:
        state.sums, state.num_items = {}, 0.0  # the main process carries the totals of all
    return state, best


def _make_bar(config: TrainConfig, data: EpochData, state: Progress, description: str, *, is_shown: bool) -> tqdm:
    """A bar that stands where the run stands, so that its speed and time left count new items only."""
    data.set_epoch(min(state.epoch, config.epochs - 1))
    sizes = [len(batch) for batch in _batches(config, data, state.epoch)][: state.batches_done]
    done = state.epoch * len(data) + sum(sizes)
    look = {"unit": "sample", "unit_scale": True, "mininterval": 0.2 if sys.stderr.isatty() else 10.0}
    total = stopping.last_epoch(config, state) * len(data)
    return tqdm(total=total, initial=done, desc=description, disable=not is_shown, **look)


def _batches(config: TrainConfig, data: EpochData, epoch: int) -> list[np.ndarray]:
    return epoch_batches(len(data), config.batch_size, config.seed, epoch, data.lengths)


def _train_epochs(run: _Run) -> None:
    state = run.progress
    try:
        if run.validate is not None and state.best_score is None:
            _validate(run)
        while state.epoch < stopping.last_epoch(run.config, state):
            _train_epoch(run)
        if run.best is not None:
            stopping.put_back(run.bare_model, run.best)
    except KeyboardInterrupt:
        logger.warning(
            "%s: interrupted in epoch %d of %d; run again to continue from the newest checkpoint in %s",
            *(run.description, state.epoch + 1, run.config.epochs, run.checkpoint_dir),
        )
        raise
    if run.accelerator.is_main_process and state.log:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in state.log[-1].items() if name != "epoch")
        seconds = sum(entry["seconds"] for entry in state.log)
        kept = "" if state.best_epoch is None else f", the weights after epoch {state.best_epoch} are kept"
        ended = f"{len(state.log)} epochs, {state.passes} item passes in {seconds:.1f} s: {state.stopped}{kept}"
        logger.info("%s: %s; last: %s", run.description, ended, figures)


def _train_epoch(run: _Run) -> None:
    config, state, accelerator = run.config, run.progress, run.accelerator
    run.data.set_epoch(state.epoch)
    batches = _batches(config, run.data, state.epoch)
    # Epochs of sub-models in lockstep differ in length: what is left is told from the one under way.
    done_of_epoch = sum(map(len, batches[: state.batches_done]))
    run.bar.total = run.bar.n - done_of_epoch + (stopping.last_epoch(config, state) - state.epoch) * len(run.data)
    num_batches, accumulation = len(batches), config.gradient_accumulation_steps
    shares = [share_of(batch, accelerator.process_index, accelerator.num_processes) for batch in batches]
    steps = num_steps(num_batches, accumulation)
    steps_before = state.optimizer_steps - state.batches_done // accumulation
    run.model.train()
    clock = time.perf_counter()
    loaded = load_batches(
        run.data, shares[state.batches_done :], num_workers=config.num_workers, device=accelerator.device
    )
    for index, batch in enumerate(loaded, start=state.batches_done):
        step = index // accumulation
        step_size = min(accumulation, num_batches - step * accumulation)
        is_last_of_step = index + 1 == step * accumulation + step_size
        with contextlib.nullcontext() if is_last_of_step else accelerator.no_sync(run.model):
            loss, figures = run.objective(run.model, batch)
            accelerator.backward(loss * shares[index].scale / step_size)
        counts = (shares[index].num_items, len(batches[index]), steps_before + step + 1, index + 1)
        row = _BatchFigures({"loss": loss.detach(), **figures}, *counts)
        run.pending.append(row)
        state.batches_done = index + 1
        if is_last_of_step:
            row.gradient_norm = _take_step(run, state.epoch + (step + 0.5) / steps)
        now = time.perf_counter()
        if len(run.pending) >= FLUSH_BATCHES or now - run.last_flush >= FLUSH_SECONDS:
            _flush(run)
        every = config.checkpoint_every_steps
        if is_last_of_step and every and state.optimizer_steps % every == 0:
            now = time.perf_counter()
            state.seconds, clock = state.seconds + now - clock, now
            _save(run)
    _close_epoch(run, time.perf_counter() - clock)


def _take_step(run: _Run, epochs_done: float) -> Tensor | None:
    """One step of the optimiser; returns the norm of its gradient, which fp16 may rightly find infinite."""
    config = run.config
    run.accelerator.unscale_gradients()
    norm = clip_gradients(run.clip_groups, config.max_grad_norm)
    rate = config.learning_rate * stopping.rate_scale(epochs_done, config, run.progress)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.progress.optimizer_steps += 1
    return norm if config.mixed_precision != "fp16" else None


def _close_epoch(run: _Run, seconds: float) -> None:
    """Append the epoch to the log, start the next one, and save."""
    config, state = run.config, run.progress
    _flush(run)
    sums, num_items = _over_processes(run)
    state.seconds += seconds
    entry: dict[str, float] = {"epoch": state.epoch + 1}
    entry |= {name: total / num_items for name, total in sums.items()}
    entry["learning_rate"] = run.optimizer.param_groups[0]["lr"]
    entry |= {"seconds": state.seconds, "samples_per_second": num_items / max(state.seconds, 1e-9)}
    state.log.append(entry)
    state.passes += round(num_items)
    state.epoch += 1
    state.batches_done, state.num_items, state.seconds, state.sums = 0, 0.0, 0.0, {}
    if run.validate is not None:
        entry |= {f"validation_{name}": value for name, value in _validate(run).items()}
    run.tracker.log(entry)
    if state.epoch == stopping.last_epoch(config, state) or _is_epoch_saved(run):
        _save(run)


def _validate(run: _Run) -> dict[str, float]:
    """Measure the model, and keep its weights if it is the best so far."""
    assert run.validate is not None
    figures = stopping.figures_of(run.bare_model, run.validate, run.accelerator.num_processes)
    if stopping.note_epoch(run.config, run.progress, figures):
        run.best = stopping.copy_of(run.bare_model)
    return figures


def _is_epoch_saved(run: _Run) -> bool:
    if run.config.checkpoint_every_steps is not None:
        return False
    # Several processes must decide alike, and their clocks differ.
    is_due = time.perf_counter() - run.last_save >= EPOCH_CHECKPOINT_SECONDS
    return is_due or run.accelerator.num_processes > 1


def _flush(run: _Run) -> None:
    """Read the pending losses and figures, refuse what is not finite, and update the bar."""
    run.last_flush = time.perf_counter()
    if not run.pending:
        return
    state = run.progress
    names = list(run.pending[0].figures)
    zero = run.pending[0].figures["loss"].new_zeros((), dtype=torch.float32)
    rows = [
        torch.stack(
            [*(row.figures[name].float() for name in names), zero if row.gradient_norm is None else row.gradient_norm]
        )
        for row in run.pending
    ]
    for row, (*values, norm) in zip(run.pending, torch.stack(rows).tolist(), strict=True):
        if not math.isfinite(values[0]):
            raise TrainingError(_not_finite(run, "loss", values[0], row))
        if not math.isfinite(norm):
            raise TrainingError(_not_finite(run, "gradient", norm, row))
        for name, value in zip(names, values, strict=True):
            state.sums[name] = state.sums.get(name, 0.0) + value * row.weight
        state.num_items += row.weight
    run.bar.set_postfix(
        {"epoch": f"{state.epoch + 1}/{run.config.epochs}"}
        | {name: f"{state.sums[name] / max(1, state.num_items):.4f}" for name in names},
        refresh=False,
    )
    run.bar.update(sum(row.size for row in run.pending))
    run.pending.clear()


def _not_finite(run: _Run, what: str, value: float, row: _BatchFigures) -> str:
    config = run.config
    return (
        f"{run.description}: the {what} became {value} in optimiser step {row.step} (epoch {run.progress.epoch + 1} of "
        f"{config.epochs}, batch {row.batch}); a finite number was expected, and from here on every weight would be "
        f"lost. Try a lower `learning_rate` (now {config.learning_rate}), a longer `warmup_fraction` (now "
        f"{config.warmup_fraction}), "
        f'a smaller `max_grad_norm` (now {config.max_grad_norm}) or `mixed_precision: "no"` (now '
        f"{config.mixed_precision}), and check the data for values that are not finite."
    )


def _save(run: _Run) -> None:
    _flush(run)
    state = run.progress
    sums, num_items = _over_processes(run)
    state.sums, state.num_items = (sums, num_items) if run.accelerator.is_main_process else ({}, 0.0)
    write_checkpoint(run.accelerator, run.checkpoint_dir, state, run.best)
    run.last_save = time.perf_counter()


def _over_processes(run: _Run) -> tuple[dict[str, float], float]:
    """Item-weighted totals of the epoch and its number of items, summed over all processes."""
    state = run.progress
    if run.accelerator.num_processes == 1:
        return state.sums, state.num_items
    parts = gather_object([(state.sums, state.num_items)])
    names = next((list(sums) for sums, _ in parts if sums), [])
    totals = {name: sum(sums.get(name, 0.0) for sums, _ in parts) for name in names}
    return totals, sum(num_items for _, num_items in parts)
