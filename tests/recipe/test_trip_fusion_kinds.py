# SPDX-License-Identifier: Apache-2.0
"""Replicas go through every stage, and what comes out answers, is measured, exported anew, planned and described."""

import json

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from edvit_hf.auto import EDViTForImageClassification
from edvit_hf.cli import app
from edvit_hf.manifest import Manifest
from edvit_hf.recipe import run
from edvit_hf.runtime import EDViTRuntime
from support.tiny_recipe import FLEET, tiny_recipe

runner = CliRunner()


@pytest.fixture(scope="module")
def replicas(tmp_path_factory):
    """The finished folder of one plain model for every device."""
    folder = tmp_path_factory.mktemp("replicas")
    changes = {"fuse": {"kind": "average"}, "evaluate": {"baselines": False}}
    recipe = tiny_recipe(folder, split={"num_sub_models": 1}, **changes)
    return run(recipe, folder / "work"), folder


def test_torch_and_runtime_give_the_same_answers_and_the_card_speaks_of_replicas(replicas):
    _, folder = replicas
    root = folder / "work/09_card/ensemble"
    manifest = Manifest.load(root)
    assert (manifest.fusion.kind, manifest.class_groups, manifest.vote_sizes) == ("average", [list(range(10))], [10])
    pixels = np.random.default_rng(0).normal(size=(6, 3, 8, 8)).astype(np.float32)
    model = EDViTForImageClassification.from_pretrained(root).eval()
    with torch.no_grad(), EDViTRuntime.from_pretrained(root, schedule="in_turn") as runtime:
        answer = runtime.predict(pixels)
        expected = model(torch.from_numpy(pixels)).logits
        np.testing.assert_allclose(answer.probabilities, expected.softmax(1).numpy(), atol=1e-5)
        own = model.sub_models[0](torch.from_numpy(pixels)).logits
        assert torch.equal(expected.argmax(1), own.argmax(1))
    card = (root / "README.md").read_text()
    assert "Each **device** holds a replica of it" in card
    assert "| vote sent | own vote |" in card
    assert "absent=[" not in card.partition("### On a device")[2]  # nobody is left without the only one


def test_the_commands_take_it_as_any_ensemble(replicas, tmp_path):
    _, folder = replicas
    root = folder / "work/09_card/ensemble"
    results = json.loads((root / "results.json").read_text())
    (ensemble,) = [row for row in results["rows"] if row["kind"] == "ensemble"]
    done = runner.invoke(app, ["evaluate", str(root), "--format", "json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["rows"]
    assert [row["accuracy"] for row in rows] == [pytest.approx(ensemble["accuracy"])]
    devices = [*FLEET["devices"], {**FLEET["devices"][0], "name": "d2"}]
    (tmp_path / "three.yaml").write_text(yaml.safe_dump({"devices": devices}))
    placement = tmp_path / "placement.json"
    done = runner.invoke(app, ["plan", str(root), "--fleet", str(tmp_path / "three.yaml"), "--output", str(placement)])
    assert done.exit_code == 0, done.output
    devices = json.loads(placement.read_text())["devices"].values()
    held = [[entry["index"] for entry in [*device["sub_models"], *device["replicas"]]] for device in devices]
    assert held == [[0], [0], [0]]
    before = Manifest.load(root)
    done = runner.invoke(app, ["export", str(root), "--precision", "fp32", "--without-accuracy-gate"])
    assert done.exit_code == 0, done.output
    assert Manifest.load(root).fusion.kind == before.fusion.kind == "average"
