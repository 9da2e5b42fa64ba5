# SPDX-License-Identifier: Apache-2.0
"""Gather what exported ensembles keep and weigh: accuracy by variant, flips of the gate, int8 weights, one pull.

    python benchmarks/export/exported_ensembles.py FOLDER...

Each folder is one that `edvit export` has written with its gates, named after its recipe. Accuracies are read from its
manifest, which the export measured on the test split; the gate's figures are of the validation split that decided. One
device's share is pulled from the folder into a temporary one, and what lies beside the graph is counted. Writes
results/exported_ensembles.json.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import command_line, write_results

from edvit_hf.hub import pull
from edvit_hf.manifest import Manifest

MAX_WEIGHT_RATIO = 0.27
MAX_BESIDE_KIB = 128
PROFILE = "raspberry-pi-5"


def variant_row(manifest: Manifest, name: str) -> dict[str, Any]:
    """A variant of all sub-models: accuracy with all present, the gate's flips, what its int8 weights weigh."""
    accuracy = (manifest.ensemble.accuracy or {}).get(name) or {}
    gate = (manifest.ensemble.gates or {}).get(name) or {}
    files = [variant for entry in manifest.sub_models for variant in entry.variants if variant.name == name]
    made = [file.quantization for file in files if file.quantization is not None]
    latencies = [file.latency_ms["median"] for file in files if file.latency_ms]
    return {
        "variant": name,
        "accuracy": accuracy.get("accuracy"),
        "num_items": accuracy.get("num_items"),
        "largest_file_bytes": max(file.bytes for file in files),
        "weight_ratio": sum(q.weight_bytes for q in made) / sum(q.weight_bytes_fp32 for q in made) if made else None,
        "kept_float": sum(len(q.kept_float) for q in made),
        "slowest_median_ms": max(latencies) if latencies else None,
        "gate": {key: gate.get(key) for key in ("split", "num_items", "net_flips", "max_net_flips", "passed")},
        "worst_group": max(
            (group for group in gate.get("groups") or []), key=lambda group: group["net_flips"], default=None
        ),
    }


def pulled_row(folder: Path) -> dict[str, Any]:
    """Bytes of one device's share of sub-model 0, and of what lies beside its graph."""
    with tempfile.TemporaryDirectory() as scratch:
        got = pull(str(folder), sub_models=[0], profile=PROFILE, output=Path(scratch) / "share")
        graphs = sum(path.stat().st_size for path in got.folder.rglob("*.onnx"))
    return {"profile": PROFILE, "graph_bytes": graphs, "beside_bytes": got.bytes_on_disk - graphs}


def main() -> None:
    """Gather, write, print."""
    add, parse = command_line(__doc__)
    add("folders", type=Path, nargs="+")
    arguments, rows = parse(), []
    for folder in arguments.folders:
        manifest = Manifest.load(folder)
        names = dict.fromkeys(v.name for v in manifest.sub_models[0].variants if v.inputs == "prepared")
        rows.append(
            {
                "recipe": folder.name,
                "num_sub_models": len(manifest.sub_models),
                "variants": [variant_row(manifest, name) for name in names],
                "pull": pulled_row(folder),
            }
        )
        print(rows[-1])
    goals = {"weight_ratio": MAX_WEIGHT_RATIO, "beside_kib": MAX_BESIDE_KIB}
    write_results(__file__, arguments, {"goals": goals, "ensembles": rows}, places="FOLDER...")


if __name__ == "__main__":
    main()
