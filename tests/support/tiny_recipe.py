# SPDX-License-Identifier: Apache-2.0
"""The smallest recipe that goes through every stage with real classes and real digits, in seconds."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from edvit_hf.recipe import Recipe, load_recipe

FLEET = {"devices": [{"name": f"d{i}", "profile": "x86-avx2", "memory_mib": 8} for i in range(2)]}
VALUES: dict[str, Any] = {
    "task": "image-classification",
    "dataset": {"path": "digits", "num_labels": 10, "image_size": 8, "max_train_samples": 200, "max_test_samples": 60},
    "augmentation": {"shift": 0.05},
    "teacher": {
        "from_scratch": {
            "model_type": "vit",
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "intermediate_size": 32,
            "patch_size": 4,
            "hidden_dropout_prob": 0.1,
        },
        "epochs": 3,
        "batch_size": 32,
        "learning_rate": 0.003,
        "checkpoint_every_steps": 4,
    },
    "fleet": "fleet.yaml",
    "split": {"num_sub_models": 2},
    "prune": {"keep_heads": 1, "importance": "hybrid", "samples_per_class": 4},
    "distill": {"epochs": 2, "batch_size": 32, "views": 2, "checkpoint_every_steps": 4},
    "fuse": {"epochs": 2, "batch_size": 32, "hidden_size": 8, "views": 2, "checkpoint_every_steps": 4, "joint": False},
    "evaluate": {"baselines": True},
    "export": {"max_accuracy_loss": 1.0, "max_group_accuracy_loss": 1.0},
}


def write_tiny_recipe(folder: Path, **changes: dict[str, Any]) -> Path:
    """Write the recipe and its fleet; `changes` update sections (`fuse={"epochs": 1}`)."""
    values = copy.deepcopy(VALUES)
    for section, update in changes.items():
        values.setdefault(section, {}).update(update)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fleet.yaml").write_text(yaml.safe_dump(FLEET))
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def tiny_recipe(folder: Path, **changes: dict[str, Any]) -> Recipe:
    return load_recipe(write_tiny_recipe(folder, **changes))


def hashes(folder: Path) -> dict[str, str]:
    """Every file of weights and every graph, by its path in the folder."""
    files = sorted(p for p in folder.rglob("*") if p.suffix in {".safetensors", ".onnx"})
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def fingerprint(work_dir: Path) -> dict[str, Any]:
    """What two runs with the same inputs must share: every weight file, the exports, the predictions."""
    results = json.loads((work_dir / "07_evaluate" / "results.json").read_text())
    rows = [{key: value for key, value in row.items() if key != "minutes"} for row in results["rows"]]
    kept = ("absent", "sub_models", "class_groups", "gap", "choice")
    return {"files": hashes(work_dir), "rows": rows, **{key: results[key] for key in kept}}
