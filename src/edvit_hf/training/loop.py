"""The one training loop: Accelerate for devices and precision, an order of items that a run can resume."""

import contextlib
import dataclasses
import logging
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object, send_to_device, set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from edvit_hf.errors import TrainingError
from edvit_hf.training.checkpoints import (
    Progress,
    TrainLog,
    newest_checkpoint,
    restore,
    run_identity,
    write_checkpoint,
)
from edvit_hf.training.config import TrainConfig
from edvit_hf.training.epoch_data import EpochData, epoch_order
from edvit_hf.training.objectives import Objective
from edvit_hf.training.optimizer import learning_rate_scale, make_optimizer
from edvit_hf.training.threads import use_all_cores

logger = logging.getLogger(__name__)

# Losses stay on their device until this many batches or seconds have passed: each read waits for the device.
FLUSH_BATCHES = 20
FLUSH_SECONDS = 1.0
# Epochs of tiny models last less than writing a checkpoint: this much work may be lost.
EPOCH_CHECKPOINT_SECONDS = 5.0


@dataclasses.dataclass
class _Run:
    """Everything one call of `train` works with."""

    accelerator: Accelerator
    model: nn.Module
    parameters: list[nn.Parameter]
    optimizer: AcceleratedOptimizer
    data: EpochData
    objective: Objective
    config: TrainConfig
    checkpoint_dir: Path
    description: str
    progress: Progress
    bar: tqdm
    pending: list[tuple[dict[str, Tensor], float]] = dataclasses.field(default_factory=list)
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
) -> TrainLog:
    """Train `model` in place, or continue where an interrupted call with the same arguments stopped.

    The result of an interrupted and resumed run equals that of an uninterrupted one, bit for bit on a CPU
    with the same number of threads: items come in an order that depends only on (seed, epoch), random states
    travel with the checkpoints, and those appear whole or not at all. A finished run returns its result at
    once. The seed of `config` is set globally. The model returns on the device it came from, in eval mode.

    Args:
        model (`nn.Module`): Parameters that do not require gradients stay as they are.
        data (`EpochData`): The items of every epoch.
        objective (`Objective`): The loss of one batch.
        config (`TrainConfig`): Values of the run.
        checkpoint_dir (`Path`): Folder of this run alone; the newest two checkpoints stay in it.
        description (`str`): Name of the run for the progress bar, the log and the errors.
        progress (`bool`): Show a progress bar on the main process; refreshed rarely if not on a terminal.

    Returns:
        `TrainLog`: Loss, figures, seconds and speed of every epoch, those before an interruption included.

    Raises:
        TrainingError: If a loss is not finite, nothing can be trained, or fp16 is asked for without a GPU.
        CheckpointError: If the newest checkpoint is damaged.
    """
    use_all_cores()
    data.set_epoch(0)
    _check_trainable(data, config, description)
    accelerator = _make_accelerator(config)
    set_seed(config.seed, device_specific=accelerator.num_processes > 1)
    optimizer = make_optimizer(model, config)
    home = next(model.parameters()).device
    identity = run_identity(config, model, len(data), description)
    prepared, prepared_optimizer = accelerator.prepare(model, optimizer)
    try:
        state = _resume(accelerator, Path(checkpoint_dir), identity, config, description)
        bar = _make_bar(config, data, state, description, is_shown=progress and accelerator.is_main_process)
        run = _Run(
            accelerator, prepared, [p for p in model.parameters() if p.requires_grad], prepared_optimizer,
            data, objective, config, Path(checkpoint_dir), description, state, bar,
        )  # fmt: skip
        with bar:
            _train_epochs(run)
    finally:
        # Accelerate wraps `forward` for mixed precision: take that off again.
        accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
        model.__dict__.pop("forward", None)
        model.zero_grad(set_to_none=True)
        model.to(home).eval()
        if accelerator.device.type != "cpu":
            accelerator.free_memory()  # a full garbage collection: on a CPU it costs more than a tiny epoch
    return TrainLog(state.log)


def _check_trainable(data: EpochData, config: TrainConfig, description: str) -> None:
    if len(data) == 0:
        raise TrainingError(f"{description}: there are no items to train on. Check the split and the class group.")
    if config.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise TrainingError(
            f"{description}: `mixed_precision: fp16` needs a GPU and none was found; a CPU has no fast "
            "fp16 and "
            'no loss scaling. Use "bf16", or "no".'
        )


def _make_accelerator(config: TrainConfig) -> Accelerator:
    # Accelerate keeps one global precision per process and refuses another; stages of one trip may differ.
    AcceleratorState._reset_state()
    return Accelerator(mixed_precision=config.mixed_precision)


def _resume(
    accelerator: Accelerator, checkpoint_dir: Path, identity: str, config: TrainConfig, description: str
) -> Progress:
    found = newest_checkpoint(checkpoint_dir, identity)
    if found is None:
        if accelerator.is_main_process:
            logger.info(
                "%s: %d epochs on %s, %d process(es)",
                description, config.epochs, accelerator.device, accelerator.num_processes,
            )  # fmt: skip
        return Progress(run=identity)
    folder, state = found
    restore(accelerator, folder, state)
    if accelerator.is_main_process:
        logger.info(
            "%s: continues after %d of %d epochs and %d batches (%s)",
            description, state.epoch, config.epochs, state.batches_done, folder,
        )  # fmt: skip
    else:
        state.sums, state.num_items = {}, 0.0  # the main process carries the totals of all
    return state


def _make_bar(config: TrainConfig, data: EpochData, state: Progress, description: str, *, is_shown: bool) -> tqdm:
    batches = math.ceil(len(data) / config.batch_size)
    done = state.epoch * len(data) + min(len(data), state.batches_done * config.batch_size if batches else 0)
    return tqdm(
        total=config.epochs * len(data), initial=done, desc=description, unit="sample", unit_scale=True,
        disable=not is_shown, mininterval=0.2 if sys.stderr.isatty() else 10.0,
    )  # fmt: skip


def _train_epochs(run: _Run) -> None:
    state = run.progress
    try:
        while state.epoch < run.config.epochs:
            _train_epoch(run)
    except KeyboardInterrupt:
        logger.warning(
            "%s: interrupted in epoch %d of %d; run again to continue from the newest checkpoint in %s",
            run.description, state.epoch + 1, run.config.epochs, run.checkpoint_dir,
        )  # fmt: skip
        raise
    if run.accelerator.is_main_process and state.log:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in state.log[-1].items() if name != "epoch")
        seconds = sum(entry["seconds"] for entry in state.log)
        logger.info("%s: %d epochs in %.1f s; last: %s", run.description, len(state.log), seconds, figures)


def _train_epoch(run: _Run) -> None:
    config, state, accelerator = run.config, run.progress, run.accelerator
    run.data.set_epoch(state.epoch)
    order = epoch_order(len(run.data), config.seed, state.epoch)
    positions = [order[start : start + config.batch_size] for start in range(0, len(order), config.batch_size)]
    num_batches, accumulation = len(positions), config.gradient_accumulation_steps
    num_steps = math.ceil(num_batches / accumulation)
    run.model.train()
    clock = time.perf_counter()
    for index, batch in enumerate(_load(run, positions[state.batches_done :]), start=state.batches_done):
        first_of_step = index - index % accumulation
        step_size = min(accumulation, num_batches - first_of_step)
        is_last_of_step = index + 1 == first_of_step + step_size
        with contextlib.nullcontext() if is_last_of_step else accelerator.no_sync(run.model):
            loss, figures = run.objective(run.model, batch)
            accelerator.backward(loss / step_size)
        weight = len(positions[index]) / accelerator.num_processes
        run.pending.append(({"loss": loss.detach(), **figures}, weight))
        state.batches_done = index + 1
        if is_last_of_step:
            _take_step(run, (state.epoch + (first_of_step // accumulation + 0.5) / num_steps) / config.epochs)
        now = time.perf_counter()
        if len(run.pending) >= FLUSH_BATCHES or now - run.last_flush >= FLUSH_SECONDS:
            _flush(run)
        every = config.checkpoint_every_steps
        if is_last_of_step and every and state.optimizer_steps % every == 0:
            now = time.perf_counter()
            state.seconds, clock = state.seconds + now - clock, now
            _save(run)
    _close_epoch(run, time.perf_counter() - clock)


def _take_step(run: _Run, fraction_done: float) -> None:
    config = run.config
    run.accelerator.clip_grad_norm_(run.parameters, config.max_grad_norm)
    rate = config.learning_rate * learning_rate_scale(fraction_done, config.warmup_fraction)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.progress.optimizer_steps += 1


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
    state.epoch += 1
    state.batches_done, state.num_items, state.seconds, state.sums = 0, 0.0, 0.0, {}
    if state.epoch == config.epochs or _is_epoch_saved(run):
        _save(run)


def _is_epoch_saved(run: _Run) -> bool:
    if run.config.checkpoint_every_steps is not None:
        return False
    # Several processes must decide alike, and their clocks differ.
    is_due = time.perf_counter() - run.last_save >= EPOCH_CHECKPOINT_SECONDS
    return is_due or run.accelerator.num_processes > 1


def _flush(run: _Run) -> None:
    """Read the pending losses and figures, refuse a loss that is not finite, and update the bar."""
    run.last_flush = time.perf_counter()
    if not run.pending:
        return
    state = run.progress
    names = list(run.pending[0][0])
    table = torch.stack([torch.stack([row[name].float() for name in names]) for row, _ in run.pending]).tolist()
    for index, (values, (_, weight)) in enumerate(zip(table, run.pending, strict=True)):
        if not math.isfinite(values[0]):
            batch = state.batches_done - len(run.pending) + index + 1
            raise TrainingError(_not_finite(run, values[0], batch))
        for name, value in zip(names, values, strict=True):
            state.sums[name] = state.sums.get(name, 0.0) + value * weight
        state.num_items += weight
    run.bar.set_postfix(
        {"epoch": f"{state.epoch + 1}/{run.config.epochs}"}
        | {name: f"{state.sums[name] / state.num_items:.4f}" for name in names},
        refresh=False,
    )
    run.bar.update(round(sum(weight for _, weight in run.pending) * run.accelerator.num_processes))
    run.pending.clear()


def _not_finite(run: _Run, value: float, batch: int) -> str:
    config = run.config
    return (
        f"{run.description}: the loss became {value} in epoch {run.progress.epoch + 1} of {config.epochs}, "
        f"batch {batch}; a finite number was expected, and from here on every weight would be lost. Try a "
        f"lower `learning_rate` (now {config.learning_rate}), a longer `warmup_fraction` (now "
        f"{config.warmup_fraction}), "
        f'a smaller `max_grad_norm` (now {config.max_grad_norm}) or `mixed_precision: "no"` (now '
        f"{config.mixed_precision}), and check the data for values that are not finite."
    )


def _save(run: _Run) -> None:
    _flush(run)
    state = run.progress
    sums, num_items = _over_processes(run)
    state.sums, state.num_items = (sums, num_items) if run.accelerator.is_main_process else ({}, 0.0)
    write_checkpoint(run.accelerator, run.checkpoint_dir, state)
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


class _Batches(Dataset):
    """Batches by position, so that a DataLoader can build them in other processes."""

    def __init__(self, data: EpochData, positions: list[np.ndarray]) -> None:
        self.data, self.positions = data, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.data.batch(self.positions[index])


def _load(run: _Run, positions: list[np.ndarray]) -> Iterator[dict[str, Tensor]]:
    """This process's share of every batch, on its device. Takes nothing from the global random state."""
    accelerator = run.accelerator
    count, rank = accelerator.num_processes, accelerator.process_index
    if count > 1:  # equal shares, or one process would wait for ever: short batches repeat items
        sizes = [math.ceil(len(batch) / count) * count for batch in positions]
        positions = [np.resize(batch, n)[rank::count] for batch, n in zip(positions, sizes, strict=True)]
    if run.config.num_workers == 0:
        batches: Iterator[dict[str, Tensor]] = (run.data.batch(batch) for batch in positions)
    else:
        # Each iteration of a DataLoader draws a seed; from the global generator that would break resuming.
        batches = iter(
            DataLoader(
                _Batches(run.data, positions), batch_size=None, num_workers=run.config.num_workers,
                pin_memory=accelerator.device.type == "cuda", generator=torch.Generator().manual_seed(0),
            )
        )  # fmt: skip
    if accelerator.device.type == "cpu":
        yield from batches
    else:
        for batch in batches:
            yield send_to_device(batch, accelerator.device, non_blocking=True)
