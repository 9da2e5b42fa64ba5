# SPDX-License-Identifier: Apache-2.0
"""Measure how long an export takes: ten sub-models in three variants (fp32, fp16, dynamic int8), parity included.

    python benchmarks/export/export_time.py [ENSEMBLE ...]

ENSEMBLE is a saved ensemble, of which a copy is exported, or the name of one that is built, of ten sub-models with
random weights: `caltech101_small` (2 of 8 heads, 64 px) or `cifar10_vit_base` (2 of 12 heads, 224 px). Each run is a
fresh process that loads everything anew. No data are read, so what is timed is drawing, converting, checking parity on
64 random inputs and hashing, not the measurement of accuracy. `processor_seconds` is what a shared machine cannot blur.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import command_line, sizes_of, write_results

NUM_SUB_MODELS = 10
LIMIT_SECONDS = 300  # for ten sub-models in three variants, on two cores
SIZES = {  # of a sub-model
    "caltech101_small": sizes_of(32, heads=2, layers=4, image_size=64, patch_size=16),
    "cifar10_vit_base": sizes_of(128, heads=2, layers=12, image_size=224, patch_size=16),
}


def build_ensemble(folder: Path, sizes: dict[str, int]) -> None:
    """Save an ensemble of ten ViT sub-models with random weights, one class each."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    from edvit_hf.auto import ensemble_class

    torch.manual_seed(0)
    sub_models = [
        ViTForImageClassification(ViTConfig(**sizes, id2label={0: str(i), 1: "other"})) for i in range(NUM_SUB_MODELS)
    ]
    groups, names = [[i] for i in range(NUM_SUB_MODELS)], {i: str(i) for i in range(NUM_SUB_MODELS)}
    whole = ensemble_class("image-classification").from_sub_models
    whole(sub_models, groups, id2label=names, fusion_hidden_size=256).save_pretrained(folder)
    size = sizes["image_size"]
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": size, "width": size}, "resample": 2}
    processor |= {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255}
    processor |= {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def export_once(folder: Path) -> None:
    """Export in place and print what was written and how long it took, as JSON; runs in a process of its own."""
    started = time.perf_counter()
    from edvit_hf.export import ExportConfig, export_ensemble
    from edvit_hf.export.ensemble import load_config
    from edvit_hf.export.reference import random_inputs

    imported = time.perf_counter()
    config = ExportConfig(precisions=("fp16", "int8"))
    manifest = export_ensemble(folder, config=config, inputs=random_inputs(load_config(folder), 64), progress=False)
    done = time.perf_counter()
    processor = time.process_time()
    files = manifest.variants
    row = {
        "seconds": done - started,
        "seconds_importing": imported - started,
        "processor_seconds": processor,
        "num_sub_models": len(manifest.sub_models),
        "variants": [v.name for v in manifest.sub_models[0].variants],
        "num_files": len(files),
        "mebibytes": sum(v.bytes for v in files) / 2**20,
        "worst_parity_fp32": max(v.parity.relative_to_largest_logit for v in files if v.precision == "fp32"),
        "load_average_after": os.getloadavg()[0],
    }
    print(json.dumps(row))


def measure(name: str, source: Path | None, repeats: int) -> dict[str, Any]:
    """Export so many copies, each in a fresh process."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        ensemble = Path(scratch) / "ensemble"
        if source is None:
            ensemble.mkdir()
            build_ensemble(ensemble, SIZES[name])
        else:
            shutil.copytree(source, ensemble, ignore=shutil.ignore_patterns("onnx", "manifest.json"))
        for _ in range(repeats):
            copy = Path(scratch) / "copy"
            shutil.copytree(ensemble, copy)
            before = os.getloadavg()[0]
            words = [sys.executable, __file__, "--one", str(copy)]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            rows.append({"load_average_before": before, **json.loads(done.stdout.splitlines()[-1])})
            shutil.rmtree(copy)
            print(f"{name}: {rows[-1]['seconds']:.1f} s", flush=True)
    seconds, sizes = statistics.median(row["seconds"] for row in rows), SIZES[name] if source is None else None
    found = {"ensemble": name, "sizes": sizes, "limit_seconds": LIMIT_SECONDS}
    return {**found, "median_seconds": seconds, "rows": rows}


def main() -> None:
    """Measure and write `results/export_time.json`."""
    add, parse = command_line(__doc__)
    add("ensembles", nargs="*", default=list(SIZES), help=f"folders, or {', '.join(SIZES)} (default)")
    add("--repeats", type=int, default=1, help="fresh processes (default: 1)")
    add("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parse()
    if arguments.one is not None:
        export_once(arguments.one)
        return
    given = {Path(each).name: None if each in SIZES else Path(each) for each in arguments.ensembles}
    result = {
        "seed": 0,
        "note": "a load average above the number of cores says that other work shared the machine: an upper bound",
        "ensembles": [measure(name, path, arguments.repeats) for name, path in given.items()],
    }
    write_results(__file__, arguments, result, "repeats", places=" ".join(given))


if __name__ == "__main__":
    main()
