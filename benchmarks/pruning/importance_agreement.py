# SPDX-License-Identifier: Apache-2.0
"""Compare how the cheap importance scores and the exact class-wise KL rank units, and what each costs.

    python benchmarks/pruning/importance_agreement.py WORK/01_teacher/model --recipe digits --work-dir WORK

Scores a trained teacher with "kl" (the reference) and with every method of --methods for every class group and writes
Kendall's tau per axis and layer, the overlap of the kept units, and seconds to
results/importance_agreement_<recipe>.json. Attention dimensions overlap as "merged" heads keep them.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from scipy.stats import kendalltau
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import command_line, write_results

from edvit_hf.architectures.axes import Widths, widths_of_heads
from edvit_hf.auto import stock_auto_class
from edvit_hf.planning.splitting import split_classes
from edvit_hf.pruning import UnitScores, architecture_of, make_plan, unit_scores
from edvit_hf.pruning.config import ImportanceMethod
from edvit_hf.recipe.schema import Recipe, load_recipe
from edvit_hf.recipe.trip import Trip
from pruning.prune_accuracy import TEACHER_SIZES

APPROXIMATIONS: tuple[ImportanceMethod, ...] = ("fisher", "linear", "hybrid")
OTHERS = [method for method in get_args(ImportanceMethod) if method != "kl"]


def tau(exact: np.ndarray, other: np.ndarray) -> float | None:
    """Kendall's tau-b of two score arrays; None where a ranking is constant."""
    value = float(kendalltau(exact.ravel(), other.ravel()).statistic)
    return None if np.isnan(value) else round(value, 4)


def overlap(exact: Sequence[list[int]], other: Sequence[list[int]]) -> float:
    """Share of the units kept under the exact scores that the other scores keep too, over all layers."""
    shared = sum(len(set(a) & set(b)) for a, b in zip(exact, other, strict=True))
    return round(shared / sum(map(len, exact)), 4)


def taus(name: str, exact: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Rank agreement over all layers at once and in every single one; (layers, units)."""
    per_layer = [tau(*layers) for layers in zip(exact, other, strict=True)]
    found = [value for value in per_layer if value is not None]
    return {
        f"{name}_tau_pooled": tau(exact, other),
        f"{name}_tau_per_layer": per_layer,
        f"{name}_tau_median": float(np.median(found)) if found else None,
    }


def compare(exact: UnitScores, other: UnitScores, model: PreTrainedModel, after: Widths) -> dict[str, Any]:
    """All figures of one approximation on one class group."""
    ours, theirs = (make_plan(scores, model.config, after) for scores in (exact, other))
    merged = [make_plan(scores, model.config, after, attention="merged").kept_attention for scores in (exact, other)]
    return {
        "residual_tau": tau(exact.residual, other.residual),
        "residual_overlap": overlap([ours.kept_residual], [theirs.kept_residual]),
        **taus("heads", exact.heads, other.heads),
        "heads_overlap": overlap(ours.kept_attention, theirs.kept_attention),
        **taus("attention", exact.attention, other.attention),
        "attention_overlap": overlap(*merged),
        **taus("ffn", exact.ffn, other.ffn),
        "ffn_overlap": overlap(ours.kept_ffn, theirs.kept_ffn),
    }


def class_groups(recipe: Recipe, num_classes: int, work_dir: Path | None) -> list[list[int]]:
    """The groups of a recipe run, or those that the recipe would make."""
    if work_dir is None:
        return split_classes(num_classes, recipe.split)
    found = sorted(work_dir.glob("*split/class_groups.json"))
    if not found:
        raise SystemExit(f"{work_dir} holds no *split/class_groups.json; run the recipe's split stage first.")
    return json.loads(found[0].read_text(encoding="utf-8"))["class_groups"]


def score_group(
    model: PreTrainedModel,
    inputs: dict[str, torch.Tensor],
    group: list[int],
    after: Widths,
    methods: Sequence[ImportanceMethod],
    batch_size: int,
) -> dict[str, Any]:
    """Exact and approximate scores of one class group, compared and timed."""
    scores: dict[str, UnitScores] = {}
    seconds: dict[str, float] = {}
    for method in ("kl", *methods):
        start = time.perf_counter()
        scores[method] = unit_scores(model, inputs, group, method=method, batch_size=batch_size)
        seconds[method] = round(time.perf_counter() - start, 3)
    row = {"class_group": group, "num_samples": len(next(iter(inputs.values()))), "seconds": seconds}
    return row | {method: compare(scores["kl"], scores[method], model, after) for method in methods}


def summary(rows: list[dict[str, Any]], methods: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Lowest and median figure over the class groups."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for method in methods:
        result[method] = {}
        for name in rows[0][method]:
            values = [row[method][name] for row in rows if isinstance(row[method][name], float)]
            if values:
                result[method][name] = {"min": min(values), "median": float(np.median(values))}
    return result


def main() -> None:
    """Score, compare, write, print."""
    add, parse = command_line(__doc__)
    add("teacher", type=Path, help="folder of a saved stock classifier")
    add("--recipe", required=True, help="name or path; gives the dataset, groups and keep")
    add("--work-dir", type=Path, help="folder of a recipe run, whose class groups are then used")
    add("--methods", nargs="+", choices=OTHERS, default=list(APPROXIMATIONS), help="compared with the exact KL")
    add("--keep-heads", type=int, help="heads kept per layer; default: the recipe's")
    add("--samples-per-class", type=int, help="default: the recipe's")
    add("--num-groups", type=int, help="score only the first so many class groups")
    add("--batch-size", type=int, help="rows per forward; default: the recipe's")
    add("--seed", type=int, default=0, help="of the drawn samples")
    arguments = parse()
    recipe = load_recipe(arguments.recipe)
    keep_heads = arguments.keep_heads or recipe.prune.keep_heads
    if not isinstance(keep_heads, int):
        raise SystemExit('The recipe leaves keep_heads to the planner ("auto"): pass --keep-heads.')
    model = stock_auto_class(recipe.task).from_pretrained(arguments.teacher).eval()
    trip = Trip(recipe, {})
    widths = architecture_of(model).widths(model.config)
    after = widths_of_heads(widths, keep_heads, labels=widths.labels)
    samples_per_class = arguments.samples_per_class or recipe.prune.samples_per_class
    batch_size = arguments.batch_size or recipe.prune.batch_size
    groups = class_groups(recipe, model.config.num_labels, arguments.work_dir)[: arguments.num_groups]
    rows = []
    for group in groups:
        indices = trip.training_sample(group, samples_per_class, arguments.seed)
        inputs = trip.data.train.inputs(indices)
        rows.append(score_group(model, inputs, group, after, arguments.methods, batch_size))
        print(json.dumps(rows[-1]))
    result = {
        "recipe": recipe.name,
        "seed": arguments.seed,
        "samples_per_class": samples_per_class,
        "batch_size": batch_size,
        "keep": {"keep_residual": after.residual, "keep_heads": after.heads, "keep_ffn": after.ffn},
        "torch_threads": torch.get_num_threads(),
        "teacher": {name: getattr(model.config, name) for name in TEACHER_SIZES},
        "summary": summary(rows, arguments.methods),
        "groups": rows,
    }
    names = ("recipe", "work_dir", "methods", "keep_heads", "samples_per_class", "num_groups", "batch_size", "seed")
    shown = {"name": f"importance_agreement_{recipe.name}", "places": "TEACHER_DIR"}
    shown |= {"recipe": Path(arguments.recipe).name, "work_dir": "WORK_DIR" if arguments.work_dir else None}
    shown["methods"] = None if tuple(arguments.methods) == APPROXIMATIONS else arguments.methods
    write_results(__file__, arguments, result, *names, **shown)
    print(json.dumps(result["summary"], indent=2))


if __name__ == "__main__":
    main()
