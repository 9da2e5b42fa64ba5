# SPDX-License-Identifier: Apache-2.0
"""How long the models take that stand beside an ensemble: graphs of their sizes, timed together with the ensemble's.

The teacher and the plain models are not published with an ensemble. How long a dense transformer takes hangs on its
sizes and not on the values of its weights, so graphs with random weights tell, on any device, from the configs that
`results.json` records. Results of earlier versions record how many heads a plain model kept instead. A model of which
neither is recorded is left out.
"""

import logging
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edvit_hf.architectures.costs import ModelShape
from edvit_hf.bench import BenchReport, bench_ensemble
from edvit_hf.card.rows import LARGE, PLAIN_DEVICE_SIZE, PLAIN_TOTAL_SIZE, REPLICAS
from edvit_hf.errors import DataError, RecipeError, named_extra
from edvit_hf.manifest import Manifest
from edvit_hf.storage import changed_json, read_json_object
from edvit_hf.tasks import Task

logger = logging.getLogger(__name__)

FIGURES = ("median", "p90", "min", "max", "runs", "load_ms", "peak_memory_mib")
_PLAIN = (REPLICAS, LARGE, PLAIN_DEVICE_SIZE, PLAIN_TOTAL_SIZE)  # as results of this version and of earlier ones say
_KEPT = re.compile(r"(\d+) of \d+ heads kept")
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
    results, labels = _read(folder / "results.json"), len(Manifest.load(folder).label_names)
    found: dict[str, ModelShape] = {}
    for row in results.get("rows") or []:
        name, config = str(row.get("name")), row.get("config")
        if isinstance(config, dict):
            found[name] = ModelShape.from_config(config, num_labels=labels)
        elif row.get("kind") == "teacher" or name in _PLAIN:
            shape = _earlier_shape(folder, results, row, labels)
            if shape is None:
                logger.warning("%s: its sizes are not in the results, so it is not timed", name)
            else:
                found[name] = shape
    if not found:
        raise RecipeError(
            f"Expected the configs of the teacher and the plain models in {folder / 'results.json'}, found none. There "
            "is nothing to compare with. Measure the ensemble again with `edvit run`, or bench it alone, without "
            "--compared."
        )
    return found


def _earlier_shape(folder: Path, results: Mapping[str, Any], row: Mapping[str, Any], labels: int) -> ModelShape | None:
    """The sizes of a row without a config: the recipe tells the teacher's, the row's note how many heads stayed.

    None where either is missing, or where they do not give the number of parameters that the row records.
    """
    recipe, own = results.get("recipe_values") or {}, folder / "sub_models/00/config.json"
    given, kept = (recipe.get("teacher") or {}).get("from_scratch"), _KEPT.match(str(row.get("note")))
    if not given or not own.is_file() or (kept is None and row.get("kind") != "teacher"):
        return None
    teacher = ModelShape.from_config({**_read(own), **given}, num_labels=labels)
    heads = teacher.widths.heads if kept is None else int(kept[1])
    shape = teacher.keep(heads, num_labels=labels) if 0 < heads <= teacher.widths.heads else None
    return shape if shape is not None and shape.parameters == row.get("parameters") else None


def draw_compared(folder: Path, target: Path) -> dict[str, Path]:
    """Write a graph with random weights for each of `compared_shapes`, as the exporter writes sub-models.

    Raises:
        RecipeError: See `compared_shapes`.
        MissingExtraError: What exports is not installed.
    """
    task, found = Manifest.load(folder).ensemble.task, {}
    with named_extra("Drawing graphs of the compared models", "train,export"):
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
    with changed_json(path, "an ensemble's results", error=DataError) as results:
        rows = {row.get("name"): row for row in results.get("rows", [])}
        for timed in report.beside:
            if timed.owner not in rows:
                raise DataError(
                    f"Expected the row {timed.owner!r} in {path}, found none. The figures would be of another "
                    "ensemble. Measure again."
                )
            rows[timed.owner]["latency_ms"] = {name: getattr(timed, name) for name in FIGURES}
        results["latency_protocol"] = {**report.protocol, "weights": "random, of the same sizes"}


def _draw(shape: ModelShape, task: Task, path: Path) -> None:
    import torch
    from transformers import AutoConfig

    from edvit_hf.auto import stock_auto_class
    from edvit_hf.export.graphs.draw import draw_sub_model, save_graph
    from edvit_hf.export.optimum_config import resolve_onnx_config

    config = AutoConfig.for_model(**shape.config, num_labels=shape.widths.labels)
    torch.manual_seed(_SEED)
    model = stock_auto_class(task).from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # all zero in a new model: the exporter would store them once
                parameter.normal_(std=0.02)
    save_graph(draw_sub_model(model, resolve_onnx_config(config), opset=20), path)


def _read(path: Path) -> Mapping[str, Any]:
    why = (
        "It tells the sizes of the models; without it there is nothing to compare with. Use a finished ensemble's "
        "folder, or leave --compared out."
    )
    return read_json_object(path, "a config or results", why, error=RecipeError)
