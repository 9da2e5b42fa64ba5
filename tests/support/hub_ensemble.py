# SPDX-License-Identifier: Apache-2.0
"""A publishable ensemble folder of real but tiny files, and calls that push and pull it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from edvit_hf.hub import prepare_push, pull, push
from edvit_hf.manifest import Manifest, content_files, file_sha256, hash_of_content
from support.tiny_ensemble import write_tiny_ensemble

GROUPS = [[0, 2], [1, 3], [4]]
REPO = "lab/tiny"
PROFILES = ("x86-avx2", "raspberry-pi-5")
PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
CARD = """---
library_name: transformers
license: apache-2.0
pipeline_tag: image-classification
tags:
- edvit
---

# A tiny ensemble

![Accuracy](assets/accuracy.png)

```python
# load it
model = AutoModel.from_pretrained("path/to/this/folder")
```
"""
RESULTS = {
    "dataset": {"path": "digits", "num_test_items": 100},
    "rows": [{"name": "teacher", "kind": "teacher", "accuracy": 0.99}, {"kind": "ensemble", "accuracy": 0.875}],
}
INT8_FILES = {"x86-avx2": "quint8_avx2", "raspberry-pi-5": "qint8_arm64", "x86-avx512-vnni": "qint8_avx512_vnni"}
_BUILT: dict = {}  # what this session has built already, as bytes
PRESETS = {"x86-avx2": "avx2", "raspberry-pi-5": "arm64", "x86-avx512-vnni": "avx512_vnni"}


def write_publishable(root: Path, *, profiles=("x86-avx2",), seed=0) -> Manifest:
    """Graphs, configs, weights (whole and in parts), card, figure, results and a manifest that vouches for them.

    Every sub-model has an fp32 file and an int8 file for each profile. `seed` changes the weights.
    """
    key = (profiles, seed)
    if key in _BUILT:
        for path, data in _BUILT[key].items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data)
        return Manifest.load(root)
    manifest = _build(root, profiles, seed)
    _BUILT[key] = files_of(root)
    return manifest


def _build(root, profiles, seed):
    manifest = write_tiny_ensemble(root, GROUPS)
    (root / "sub_models/00/onnx/model_quint8_avx2.onnx").unlink()
    write_weights(root, seed)
    content = content_files(root)
    entry = replace(manifest.ensemble, id=f"tiny-{seed}", content_hash=hash_of_content(content))
    sub_models = [replace(e, variants=[v for v in e.variants if v.precision == "fp32"]) for e in manifest.sub_models]
    manifest = replace(manifest, ensemble=entry, content=content, sub_models=sub_models)
    for profile in profiles:
        manifest = with_profile(root, manifest, profile)
    manifest.save(root)
    (root / "README.md").write_text(CARD)
    (root / "results.json").write_text(json.dumps(RESULTS))
    (root / "assets").mkdir(exist_ok=True)
    (root / "assets/accuracy.png").write_bytes(PNG)
    return manifest


def with_profile(root, manifest, profile, *, salt=b""):
    """The manifest with an int8 file of every sub-model for `profile`, which is written too."""
    from support.tiny_ensemble import AVX2

    sub_models = []
    for entry in manifest.sub_models:
        fp32 = entry.variants[0]
        file = fp32.file.replace("model.onnx", f"model_{INT8_FILES[profile]}.onnx")
        text = (root / fp32.file).read_bytes()[:400] + profile.encode() + salt
        (root / file).write_bytes(b"\x32" + bytes([len(text) & 127 | 128, len(text) >> 7]) + text)  # a doc string
        variant = replace(
            fp32,
            file=file,
            sha256=file_sha256(root / file),
            bytes=(root / file).stat().st_size,
            precision="int8",
            op_types_quantized=["MatMul"],
            num_quantized_nodes=1,
            profiles=[profile],
            quantization=replace(AVX2, preset=PRESETS[profile]),
        )
        sub_models.append(replace(entry, variants=[*entry.variants, variant]))
    name = INT8_FILES[profile]
    gates = {**(manifest.ensemble.gates or {}), name: {"passed": True}}
    accuracy = {"fp32": {"accuracy": 0.9, "num_items": 10}, **(manifest.ensemble.accuracy or {})}
    accuracy[name] = {"accuracy": 0.8, "num_items": 10}
    return replace(manifest, sub_models=sub_models, ensemble=replace(manifest.ensemble, gates=gates, accuracy=accuracy))


def write_weights(root, seed=0):
    """config.json and safetensors of every sub-model, the fusion head and the whole, which agree."""
    rng, whole = np.random.default_rng(seed), {}
    (root / "config.json").write_text(json.dumps({"model_type": "edvit", "class_groups": GROUPS}))
    processor = (root / "preprocessor_config.json").read_bytes()
    for index, group in enumerate(GROUPS):
        folder = root / f"sub_models/{index:02d}"
        part = {"encoder.weight": rng.normal(size=(8, 4)).astype(np.float32), "head.bias": np.zeros(len(group) + 1)}
        save_file(part, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": "vit", "num_labels": len(group) + 1}))
        (folder / "preprocessor_config.json").write_bytes(processor)
        whole |= {f"sub_models.{index}.{name}": value for name, value in part.items()}
    head = {"layers.0.weight": rng.normal(size=(5, 12)).astype(np.float32)}
    save_file(head, root / "fusion.safetensors")
    whole |= {f"fusion.{name}": value for name, value in head.items()}
    save_file(whole, root / "model.safetensors")


def files_of(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(Path(root).rglob("*")) if p.is_file()}


def pull_small(output, **options):
    """Pull sub-model 2 for a Raspberry Pi, unless told otherwise."""
    options = {"sub_models": [2], "profile": "raspberry-pi-5", **options}
    return pull(REPO, output=output, **options)


def send(root, repo=REPO, *, profile=None, **options):
    """Prepare and push."""
    return push(prepare_push(root, repo, profile=profile), **options)
