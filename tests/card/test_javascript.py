# SPDX-License-Identifier: Apache-2.0
"""The JavaScript of a rendered card, run in node as it stands: it must answer like onnxruntime in Python.

Needs node and the packages of tests/card/javascript/package.json, which `make test-js` puts into work/javascript.
"""

import dataclasses
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edvit_hf.card.javascript import PACKAGES, javascript
from edvit_hf.card.render import CardData, render_card
from edvit_hf.configuration_edvit import TASK_OF
from edvit_hf.export import ExportConfig, export_ensemble
from edvit_hf.probabilities import softmax
from edvit_hf.tasks import TASKS
from edvit_hf.transforms import load_transform
from support.card_samples import sample_manifest, sample_results
from support.tiny_architectures import tiny_inputs
from support.tiny_ensemble import WORDS
from support.tiny_export import one_layer_model, save_ensemble

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(__file__).with_name("javascript") / "package.json"
MODULES = Path(os.environ.get("EDVIT_NODE_MODULES", ROOT / "work/javascript/node_modules"))
GROUPS = [[0, 1, 2]]  # one sub-model: exports are what takes the time here
ARCHITECTURE = {
    "image-classification": "vit",
    "audio-classification": "audio-spectrogram-transformer",
    "text-classification": "distilbert",
}
CASES = [
    ("image-classification", "prepared"),
    ("image-classification", "raw"),
    ("audio-classification", "prepared"),
    ("audio-classification", "raw"),
    ("text-classification", "prepared"),
]


def _missing():
    """What the JavaScript lacks here, and the remedy; None if nothing."""
    if shutil.which("node") is None:
        return "node is not installed: install Node.js 18 or newer, then run `make test-js`"
    lacking = [
        name for name in sorted({n for names in PACKAGES.values() for n in names}) if not (MODULES / name).is_dir()
    ]
    return f"{', '.join(lacking)} not found in {MODULES}: run `make test-js` once" if lacking else None


# `make test-js` sets EDVIT_REQUIRE_NODE: there a missing tool is a failure, not a skip.
needs_node = pytest.mark.skipif(
    _missing() is not None and not os.environ.get("EDVIT_REQUIRE_NODE"), reason=_missing() or "all there"
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """By task, a tiny ensemble exported with raw inputs where they exist: folder and manifest."""
    made = {}

    def of(task):
        if task not in made:
            root = tmp_path_factory.mktemp("javascript") / "ensemble"
            name = ARCHITECTURE[task]
            assert TASK_OF[name] == task
            save_ensemble(root, [one_layer_model(name, num_labels=4)], GROUPS)
            inputs = {key: values.numpy() for key, values in tiny_inputs(name, 8).items()}
            config = ExportConfig(precisions=(), with_preprocessing=task != "text-classification")
            made[task] = root, export_ensemble(root, config=config, inputs=inputs, progress=False)
        return made[task]

    return of


def only(manifest, kind):
    """The manifest without the files of the other kind of input."""
    entries = [
        dataclasses.replace(e, variants=[v for v in e.variants if v.inputs == kind]) for e in manifest.sub_models
    ]
    return dataclasses.replace(manifest, sub_models=entries, whole=[v for v in manifest.whole if v.inputs == kind])


def code_of_card(task, manifest):
    results = {**sample_results(task), "class_groups": GROUPS, "rows": [], "sub_models": []}
    card = render_card(CardData.from_run(results, manifest))
    return re.search(r"```javascript\n(.*?)```", card, re.DOTALL).group(1)


def run_node(folder, code):
    """Lines that the code prints, by what they are of: (label, probability)."""
    assert _missing() is None, _missing()
    (folder / "node_modules").unlink(missing_ok=True)
    (folder / "node_modules").symlink_to(MODULES, target_is_directory=True)
    (folder / "card.mjs").write_text(code)
    done = subprocess.run(["node", "card.mjs"], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^(.+) \{ label: '(.+)', probability: ([\d.e+-]+) \}$", done.stdout, re.MULTILINE)
    assert len(found) == len(done.stdout.strip().splitlines()), done.stdout
    return {what: (label, float(probability)) for what, label, probability in found}


def answer(path, inputs, names):
    """Label and probability on onnxruntime in Python."""
    session = onnxruntime.InferenceSession(path)
    feeds = dict(zip([i.name for i in session.get_inputs()], inputs, strict=True))
    shares = softmax(session.run(["logits"], feeds)[0])[0]
    return names[int(shares.argmax())], pytest.approx(float(shares.max()), abs=1e-4)


def expected(root, manifest, kind, inputs):
    suffix = "_raw" if kind == "raw" else ""
    entry = manifest.sub_models[0]
    own = [manifest.label_names[c] for c in entry.class_group] + ["other"]
    return {
        "ensemble": answer(root / f"onnx/model{suffix}.onnx", inputs, manifest.label_names),
        "sub-model 0": answer(root / f"{entry.path}/onnx/model{suffix}.onnx", inputs, own),
    }


def an_input(root, task, kind):
    """Some input as files for JavaScript, the lines of the card that it replaces, and the same for Python."""
    rng = np.random.default_rng(5)
    preprocessor = json.loads((root / "preprocessor_config.json").read_text()) if task != "text-classification" else {}
    if task == "image-classification":
        height, width = (37, 52) if kind == "raw" else (preprocessor["size"]["height"], preprocessor["size"]["width"])
        rgb = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        if kind == "raw":
            there = {"[64, 48]": f"[{width}, {height}]", "new Uint8Array(3 * width * height)": "bytes"}
            return rgb, there, [rgb[None]]
        rgba = np.concatenate([rgb, np.full((height, width, 1), 255, np.uint8)], axis=2)
        return rgba, {"new Uint8ClampedArray(4 * width * height)": "bytes"}, [load_transform(root, task)(rgb)]
    if task == "audio-classification":
        if kind == "raw":
            wave = (rng.random(3000, dtype=np.float32) - 0.5) / 2
            return wave, {"new Float32Array(sampling_rate)": "new Float32Array(bytes.buffer)"}, [wave[None]]
        frames = rng.standard_normal((preprocessor["max_length"], preprocessor["num_mel_bins"])).astype(np.float32)
        there = {"new Float32Array(max_length * num_mel_bins)": "new Float32Array(bytes.buffer)"}
        return frames, there, [frames[None]]
    text = " ".join(rng.choice(WORDS[4:], 40))  # longer than the model reads
    prepared = load_transform(root, task).inputs(text)
    return np.zeros(1, np.uint8), {'"some text"': json.dumps(text)}, [prepared["input_ids"], prepared["attention_mask"]]


@needs_node
@pytest.mark.parametrize(("task", "kind"), CASES)
def test_the_code_runs_as_it_stands_in_the_card(exported, task, kind):
    root, manifest = exported(task)
    code = code_of_card(task, only(manifest, kind))
    found = run_node(root, code)
    assert set(found) == {"ensemble", "sub-model 0"}


@needs_node
@pytest.mark.parametrize(("task", "kind"), CASES)
def test_it_answers_like_python_on_a_real_input(exported, task, kind):
    root, manifest = exported(task)
    code = code_of_card(task, only(manifest, kind))
    values, replaced, inputs = an_input(root, task, kind)
    (root / "input.bin").write_bytes(values.tobytes())
    for old, new in replaced.items():
        assert code.count(old) == 1, f"{old} is not in the card"
        code = code.replace(old, new)
    reading = 'const bytes = new Uint8Array(await readFile("input.bin"));\n'
    assert run_node(root, code.replace("\nconst root", f"\n{reading}const root")) == expected(
        root, manifest, kind, inputs
    )


@pytest.mark.parametrize("task", TASKS)
def test_the_card_names_the_packages_that_the_code_imports_and_the_tests_install(task):
    code = code_of_card(task, None)
    imported = set(re.findall(r'from "((?:@[\w-]+/)?[\w-]+)"', code))
    assert imported == set(PACKAGES[task])
    assert imported <= set(json.loads(PACKAGE.read_text())["dependencies"])


def test_graphs_with_the_preprocessing_inside_come_first_and_one_input_feeds_both():
    manifest = sample_manifest("image-classification")
    assert "onnx/model_raw.onnx" in javascript("image-classification", manifest, 0)
    prepared = dataclasses.replace(manifest, whole=[v for v in manifest.whole if v.inputs == "prepared"])
    code = javascript("image-classification", prepared, 0)
    assert "model_raw" not in code, "the whole graph takes prepared inputs alone"
    assert '"onnx/model.onnx"' in code
    code = javascript("image-classification", dataclasses.replace(manifest, whole=[]), 0)
    assert "sub_models/00/onnx/model_raw.onnx" in code
    assert "ensemble" not in code.split("async function")[1], "no graph of the whole, no call of it"
