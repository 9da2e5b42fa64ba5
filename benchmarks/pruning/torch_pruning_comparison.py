# SPDX-License-Identifier: Apache-2.0
"""Compare with Torch-Pruning: same trained model, sizes and retraining, its own importance and groups.

    pip install torch-pruning==1.6.1
    python benchmarks/pruning/torch_pruning_comparison.py WORK/01_teacher/model --recipe mnist_small

Cuts a trained ViT to `--keep-heads` of its heads (residual channels and FFN units in the same ratio) with this library,
with and without compensation, and with Torch-Pruning's group magnitude and group Taylor importance; as a plain model of
all classes, and for the first class groups. Torch-Pruning knows no class groups, so its class-wise runs start from the
teacher with the classifier of the sub-model ("other" included) and Taylor takes the gradients of that task. Its result
is written back into the stock config and loaded as a stock model. All are retrained alike, by distillation from the
teacher's stored logits. Writes results/torch_pruning_<recipe>.json: accuracy before and after retraining, seconds and
memory of the cut (growth of the process; memory that it had freed before and took again is not seen).
"""

import argparse
import copy
import importlib.metadata
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import SPLITS, command_line, write_results

from edvit_hf.architectures.axes import Widths, widths_of_heads
from edvit_hf.data.class_groups import class_group_labels
from edvit_hf.hardware.provenance import peak_memory_mib, reset_peak_memory
from edvit_hf.planning.splitting import split_classes
from edvit_hf.pruning import architecture_of, compensate, make_plan, prune, unit_scores
from edvit_hf.recipe.schema import load_recipe
from edvit_hf.recipe.trip import Trip
from edvit_hf.training import DistillConfig, DistillData, distill_objective, teacher_outputs, train
from pruning.prune_accuracy import balanced_items
from report.figures import percent, table

try:
    import torch_pruning
except ImportError:
    torch_pruning = None


class Task:
    """All classes (`group` None), or a class group and "other": items, labels and accuracy."""

    def __init__(self, trip: Trip, group: list[int] | None, num_classes: int, arguments: argparse.Namespace) -> None:
        self.trip, self.group, self.seed = trip, group, arguments.seed
        self.classes = list(range(num_classes)) if group is None else group
        self.num_labels = num_classes if group is None else len(group) + 1
        train_split = trip.data.train
        scored = trip.training_sample(self.classes, trip.recipe.prune.samples_per_class, self.seed)
        self.scored = train_split.inputs(scored)
        items = balanced_items(train_split.labels, self.classes, arguments.samples, self.seed)
        self.fitted = train_split.inputs(items)["pixel_values"]
        self.fitted_labels = self.labels(train_split.labels[items])

    def labels(self, labels: np.ndarray) -> np.ndarray:
        """The labels of this task."""
        return labels if self.group is None else class_group_labels(labels, self.group)

    def accuracy(self, model: PreTrainedModel) -> dict[str, float]:
        """Share of right answers; of a group: over as many items from outside as from it."""
        result = {}
        model.eval()
        with torch.inference_mode():
            for name in SPLITS:
                split = getattr(self.trip.data, name)
                items = balanced_items(split.labels, self.classes, len(split), self.seed)
                parts = np.array_split(items, max(1, len(items) // 512))
                answers = torch.cat([model(**split.inputs(part)).logits.argmax(dim=-1) for part in parts])
                result[name] = round(float((answers.numpy() == self.labels(split.labels[items])).mean()), 5)
        return result


def ours(teacher: PreTrainedModel, task: Task, after: Widths, *, is_compensated: bool) -> PreTrainedModel:
    """This library's cut."""
    config = task.trip.recipe.prune
    how = {"batch_size": config.batch_size, "seed": task.seed, "progress": False}
    scores = unit_scores(teacher, task.scored, task.classes, method=config.importance, **how)
    plan = make_plan(scores, teacher.config, after)
    pruned = prune(teacher, plan, task.classes)
    if is_compensated:
        compensate(pruned, teacher, plan, task.classes, task.fitted, progress=False)
    return pruned


def theirs(start: PreTrainedModel, task: Task, after: Widths, importance: Any, *, needs_gradient: bool) -> Any:
    """Torch-Pruning's cut of a model that already has the task's labels, reloaded as a stock model."""
    model, before = copy.deepcopy(start), architecture_of(start).widths(start.config)
    attentions = [m for m in model.modules() if hasattr(m, "q_proj")]
    heads = {getattr(m, f"{part}_proj"): before.heads for m in attentions for part in "qkv"}
    ratio = 1 - after.heads / before.heads
    whole_heads = {"num_heads": heads, "prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": ratio}
    rest = {"ignored_layers": [model.classifier], "output_transform": lambda output: output.logits.sum()}
    example = {"pixel_values": task.fitted[:2]}
    pruner = torch_pruning.pruner.BasePruner(
        model, example, importance=importance, pruning_ratio=ratio, **whole_heads, **rest
    )
    if needs_gradient:
        model.zero_grad()
        for pixels, labels in zip(task.fitted.split(64), torch.as_tensor(task.fitted_labels).split(64), strict=True):
            loss: Tensor = nn.functional.cross_entropy(model(pixels).logits, labels, reduction="sum")
            (loss / len(task.fitted)).backward()
    for group in pruner.step(interactive=True):
        group.prune()
    config = copy.deepcopy(start.config)
    architecture_of(start).set_widths(config, after)
    stock = type(start)(config).eval()
    stock.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(stock(task.fitted[:8]).logits, model(task.fitted[:8]).logits, rtol=1e-4, atol=1e-4)
    return stock


def with_labels_of(teacher: PreTrainedModel, task: Task) -> PreTrainedModel:
    """The teacher at full width, its classifier cut to the task."""
    widths = architecture_of(teacher).widths(teacher.config)
    everything = unit_scores(teacher, task.scored[:1], task.classes, method="random", progress=False)
    return prune(teacher, make_plan(everything, teacher.config, widths), task.classes)


def methods(teacher: PreTrainedModel, task: Task, after: Widths) -> dict[str, Callable[[], PreTrainedModel]]:
    """Name -> what makes the cut model."""
    name, start = task.trip.recipe.prune.importance, with_labels_of(teacher, task)
    importance = torch_pruning.importance
    return {
        f"edvit_hf {name}": lambda: ours(teacher, task, after, is_compensated=False),
        f"edvit_hf {name}, compensated": lambda: ours(teacher, task, after, is_compensated=True),
        "torch-pruning magnitude": lambda: theirs(
            start, task, after, importance.GroupMagnitudeImportance(), needs_gradient=False
        ),
        "torch-pruning taylor": lambda: theirs(
            start, task, after, importance.GroupTaylorImportance(), needs_gradient=True
        ),
    }


def retrain(model: PreTrainedModel, task: Task, stored: np.ndarray, config: DistillConfig) -> float:
    """Distil into the model as the recipe does; returns seconds."""
    start = time.perf_counter()
    drawn = {"negatives_per_positive": config.negatives_per_positive, "seed": config.seed}
    data = DistillData(task.trip.data.train, stored, class_group=task.group, **drawn)
    objective = distill_objective(
        task.group, config.temperature, config.distillation_weight, label_smoothing=config.label_smoothing
    )
    with tempfile.TemporaryDirectory() as folder:
        train(model, data, objective, config, checkpoint_dir=Path(folder) / "checkpoints", description="retraining")
    return round(time.perf_counter() - start, 2)


def measure(teacher: PreTrainedModel, task: Task, stored: np.ndarray, arguments: argparse.Namespace) -> list[Any]:
    """One row per method for one task."""
    widths = architecture_of(teacher).widths(teacher.config)
    after = widths_of_heads(widths, arguments.keep_heads, labels=task.num_labels)
    config = DistillConfig(**{**vars(task.trip.recipe.distill), "epochs": arguments.epochs, "seed": arguments.seed})
    rows = []
    for name, cut in methods(teacher, task, after).items():
        reset_peak_memory()
        memory, start = peak_memory_mib(), time.perf_counter()
        model = cut()
        seconds, memory = round(time.perf_counter() - start, 3), round(peak_memory_mib() - memory, 1)
        row: dict[str, Any] = {"method": name, "class_group": task.group}
        row |= {"parameters": sum(p.numel() for p in model.parameters()), "seconds": seconds, "memory_mib": memory}
        row |= {"before": task.accuracy(model)}
        row |= {"retraining_seconds": retrain(model, task, stored, config), "after": task.accuracy(model)}
        rows.append(row)
        print(row, flush=True)
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table of all tasks and methods."""
    lines = []
    for row in rows:
        classes = "all" if row["class_group"] is None else ", ".join(map(str, row["class_group"]))
        accuracy = [percent(row[when]["test"]) for when in ("before", "after")]
        lines.append([classes, row["method"], *accuracy, f"{row['seconds']:.2f}", f"{row['memory_mib']:.0f}"])
    return "\n".join(table(["classes", "method", "before %", "after %", "cut s", "cut MiB"], lines, num_texts=2))


def main() -> None:
    """Measure all tasks, write, print."""
    add, parse = command_line(__doc__)
    add("teacher", type=Path, help="folder of a saved stock ViT classifier")
    add("--recipe", required=True, help="name or path; gives the dataset, groups, importance and retraining")
    add("--keep-heads", type=int, default=2, help="heads kept per layer")
    add("--num-groups", type=int, default=2, help="class groups, beside the plain model of all classes")
    add("--epochs", type=int, default=4, help="of retraining")
    add("--samples", type=int, default=512, help="fitted on by the compensation, and shown to Taylor")
    add("--seed", type=int, default=0)
    arguments = parse()
    if torch_pruning is None:
        raise SystemExit("This benchmark compares with Torch-Pruning: pip install torch-pruning==1.6.1")
    recipe = load_recipe(arguments.recipe)
    trip = Trip(recipe, {})
    teacher = AutoModelForImageClassification.from_pretrained(arguments.teacher).eval()
    num_classes = teacher.config.num_labels
    stored = teacher_outputs(teacher, trip.data.train, views=recipe.distill.views, batch_size=512).logits
    groups: list[list[int] | None] = [None, *split_classes(num_classes, recipe.split)[: arguments.num_groups]]
    rows = []
    for group in groups:
        rows += measure(teacher, Task(trip, group, num_classes, arguments), stored, arguments)
    options = ("keep_heads", "num_groups", "epochs", "samples", "seed")
    settings = {name: getattr(arguments, name) for name in options}
    result = {
        "recipe": recipe.name,
        "seed": arguments.seed,
        "settings": settings,
        "torch_pruning": importlib.metadata.version("torch-pruning"),
        "torch_threads": torch.get_num_threads(),
        "rows": rows,
    }
    print(markdown(rows))
    shown = {"name": f"torch_pruning_{recipe.name}", "places": "TEACHER_DIR", "recipe": recipe.name}
    write_results(__file__, arguments, result, "recipe", *options, **shown)


if __name__ == "__main__":
    main()
