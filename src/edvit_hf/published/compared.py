# SPDX-License-Identifier: Apache-2.0
"""How long the models take that stand beside an ensemble: graphs of their sizes, timed together with the ensemble's.

The teacher and the plain models are not published with an ensemble. How long a dense transformer takes hangs on its
sizes and not on the values of its weights, so graphs with random weights tell, on any device, from `results.json` and
the configs alone. A model whose sizes these do not give to the parameter is left out.
"""

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edvit_hf.architectures.costs import ModelShape
from edvit_hf.bench import BenchReport, bench_ensemble
from edvit_hf.errors import DataError, EDViTError, RecipeError
from edvit_hf.manifest import Manifest
from edvit_hf.storage import read_json, write_json
from edvit_hf.tasks import Task

logger = logging.getLogger(__name__)

FIGURES = ("median", "p90", "min", "max", "runs", "load_ms", "peak_memory_mib")
_PLAIN = "plain model"
_SEED = 0


def bench_compared(folder: Path, **options: Any) -> BenchReport:
    """Time an ensemble as `bench_ensemble` does, and in the same rounds the models of `compared_shapes`.

    Raises:
        RecipeError: See `compared_shapes`. And what `bench_ensemble` raises.
    """
    with tempfile.TemporaryDirectory() as temporary:
        return bench_ensemble(folder, beside=draw_compared(folder, Path(temporary)), **options)


def compared_shapes(folder: Path) -> dict[str, ModelShape]:
    """Sizes of the teacher and the plain models, by the names of their rows in `results.json`.

    Raises:
        RecipeError: There are no results, or none of these models is known by its sizes.
    """
    results, sub_model = _read(folder / "results.json"), _read(folder / "sub_models/00/config.json")
    rows = {row["name"]: row for row in results.get("rows") or [] if isinstance(row.get("name"), str)}
    given = ((results.get("recipe_values") or {}).get("teacher") or {}).get("from_scratch") or {}
    labels = len(Manifest.load(folder).label_names)
    found: dict[str, ModelShape] = {}
    # All but its widths a sub-model has from its teacher.
    teacher = ModelShape.from_config({**sub_model, **given}, num_labels=labels)
    for name, row in rows.items():
        shapes = [teacher] if row.get("kind") == "teacher" else []
        if name.startswith(_PLAIN):
            shapes = _cuts(teacher, labels)
        fitting = [shape for shape in shapes if shape.parameters == row.get("parameters")]
        if fitting:
            found[name] = fitting[0]
        elif shapes:
            logger.warning("%s: its sizes are not in the results, so it is not timed", name)
    if not found:
        raise RecipeError(
            f"Expected the sizes of the teacher in {folder / 'results.json'}, found none that give its number of "
            "parameters. There is nothing to compare with. Bench the ensemble alone, without --compared."
        )
    return found


def draw_compared(folder: Path, target: Path) -> dict[str, Path]:
    """Write a graph with random weights for each of `compared_shapes`, as the exporter writes sub-models.

    Raises:
        RecipeError: See `compared_shapes`.
        MissingExtraError: What exports is not installed.
    """
    task, found = Manifest.load(folder).ensemble.task, {}
    for place, (name, shape) in enumerate(compared_shapes(folder).items()):
        found[name] = target / f"compared_{place}.onnx"
        _draw(shape, task, found[name])
    return found


def save_compared(report: BenchReport, folder: Path) -> None:
    """Write what was measured beside the ensemble into the rows of its `results.json`, for its card.

    Raises:
        DataError: The results have other rows by now.
    """
    path = folder / "results.json"
    results = read_json(path)
    rows = {row.get("name"): row for row in results["rows"]}
    for timed in report.beside:
        if timed.owner not in rows:
            raise DataError(
                f"Expected the row {timed.owner!r} in {path}, found none. The figures would be of another ensemble. "
                "Measure again."
            )
        rows[timed.owner]["latency_ms"] = {name: getattr(timed, name) for name in FIGURES}
    write_json(path, {**results, "latency_protocol": {**report.protocol, "weights": "random, of the same sizes"}})


def _cuts(teacher: ModelShape, labels: int) -> list[ModelShape]:
    return [teacher.keep(keep, num_labels=labels) for keep in range(1, teacher.widths.heads + 1)]


def _draw(shape: ModelShape, task: Task, path: Path) -> None:
    import torch
    from transformers import AutoConfig

    from edvit_hf.auto import stock_auto_class
    from edvit_hf.export.onnx import draw_sub_model, save_graph
    from edvit_hf.export.optimum_config import resolve_onnx_config

    values = {name: value for name, value in shape.config.items() if name not in ("id2label", "label2id")}
    config = AutoConfig.for_model(**values, num_labels=shape.widths.labels)
    shape.architecture.set_widths(config, shape.widths)
    torch.manual_seed(_SEED)
    model = stock_auto_class(task).from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # all zero in a new model: the exporter would store them once
                parameter.normal_(std=0.02)
    save_graph(draw_sub_model(model, resolve_onnx_config(config), opset=20), path)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        data = read_json(path)
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"Expected {path} to tell the sizes of the models, cannot read it ({type(error).__name__}). There is "
            "nothing to compare with. Use a finished ensemble's folder, or leave --compared out."
        ) from error
    if not isinstance(data, dict):
        raise EDViTError(f"Expected an object in {path}, got a {type(data).__name__}. It is damaged. Fetch it again.")
    return data
