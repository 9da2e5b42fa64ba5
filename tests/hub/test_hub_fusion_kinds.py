# SPDX-License-Identifier: Apache-2.0
"""Replicas, copies and overlapping sub-models go the whole way: pushed, loaded, pulled, planned, served, shown."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from edvit_hf.auto import EDViTForImageClassification
from edvit_hf.hub import prepare_push, pull, push
from edvit_hf.manifest import Manifest
from edvit_hf.published.plan import plan_published
from edvit_hf.runtime import EDViTRuntime
from edvit_hf.runtime.engines.local import LocalEngine
from edvit_hf.space import assemble
from edvit_hf.storage import write_json
from support.hub_ensemble import CARD, PNG, REPO
from support.serving_setup import make_client, make_service, png
from support.tiny_export import PIXELS, SHAPES_OF_FUSION, exported_fusion

pytest_plugins = ["support.hub_fixtures"]
FLEET = """
devices:
  - {name: one, profile: raspberry-pi-5}
  - {name: two, profile: raspberry-pi-5}
  - {name: three, profile: raspberry-pi-5}
"""


@pytest.fixture(params=sorted(SHAPES_OF_FUSION))
def pushed(request, tmp_path, tmp_path_factory, hub, monkeypatch):
    """Shape, torch model and folder of an ensemble that lies on the Hub."""
    root, model, _ = exported_fusion(tmp_path_factory, request.param)
    folder = tmp_path / "ensemble"
    shutil.copytree(root, folder)
    (folder / "README.md").write_text(CARD)
    (folder / "assets").mkdir()
    (folder / "assets/accuracy.png").write_bytes(PNG)
    push(prepare_push(folder, REPO))
    monkeypatch.setenv("EDVIT_CACHE_DIR", str(tmp_path / "cache"))
    return request.param, model, folder


@torch.no_grad()
def test_it_is_loaded_in_whole_and_in_part_by_transformers_and_by_the_runtime(pushed, tmp_path):
    _, model, _ = pushed
    pixels, count = torch.from_numpy(PIXELS[:3]), model.config.num_sub_models
    options = {"cache_dir": tmp_path / "transformers"}
    whole = EDViTForImageClassification.from_pretrained(REPO, **options).eval()
    assert torch.equal(whole(pixels).logits, model(pixels).logits)
    for index in range(count):
        part = EDViTForImageClassification.from_pretrained(REPO, sub_models=[index], **options).eval()
        mask = torch.arange(count) == index
        torch.testing.assert_close(part(pixels).logits, model(pixels, sub_model_mask=mask).logits)
    with EDViTRuntime.from_pretrained(REPO, schedule="in_turn") as runtime:
        expected = model(pixels).logits.softmax(1).numpy()
        np.testing.assert_allclose(runtime.predict(PIXELS[:3]).probabilities, expected, atol=1e-5)


@torch.no_grad()
def test_a_device_pulls_its_share_by_a_placement_and_answers_with_it(pushed, tmp_path):
    shape, model, _ = pushed
    (tmp_path / "fleet.yaml").write_text(FLEET)
    plan, placement = plan_published(REPO, tmp_path / "fleet.yaml")
    assert len(plan.sub_models) == model.config.num_sub_models
    assert plan.fusion_parameters == sum(p.numel() for p in model.fusion.parameters()) or shape != "residual"
    write_json(tmp_path / "placement.json", dataclasses.asdict(placement))
    for name, device in placement.devices.items():
        held = sorted({entry.index for entry in [*device.sub_models, *device.replicas]})
        if not held:
            continue
        done = pull(REPO, placement=tmp_path / "placement.json", device=name, fusion=True, output=tmp_path / name)
        assert sorted(done.selection.variants) == held
        with EDViTRuntime.from_pretrained(tmp_path / name, sub_models=held, schedule="in_turn") as runtime:
            mask = torch.tensor([i in held for i in range(model.config.num_sub_models)])
            expected = model(torch.from_numpy(PIXELS[:3]), sub_model_mask=mask).logits.softmax(1).numpy()
            np.testing.assert_allclose(runtime.predict(PIXELS[:3]).probabilities, expected, atol=1e-5)


def test_it_is_served_with_any_of_several_absent_and_says_how_it_fuses(pushed):
    shape, model, folder = pushed
    service, count = make_service(folder), model.config.num_sub_models
    kind = "average" if shape == "replica" else shape
    with make_client(service) as client:
        info = client.get("/info").json()
        assert info["fusion"] == kind
        assert [each["classes"] for each in info["sub_models"]] == [
            [f"c{c}" for c in group] for group in SHAPES_OF_FUSION[shape]
        ]
        reply = client.post("/predict", files={"file": png()}).json()
        assert (reply["degraded"], reply["missing_classes"]) == (False, [])
        votes = [each["vote"]["label"] for each in reply["sub_models"]]
        assert all(vote != "other" for vote in votes) or shape == "residual"
        for index in range(count) if count > 1 else ():
            reply = client.post("/predict", params={"absent": index}, files={"file": png()}).json()
            assert reply["degraded"]
            assert (reply["missing_classes"] == []) == (shape == "average")
        if count == 1:
            refused = client.post("/predict", params={"absent": 0}, files={"file": png()})
            assert refused.status_code == 422
    assert service.close()


def test_a_space_is_assembled_of_it(pushed, tmp_path):
    _, model, folder = pushed
    space = assemble(tmp_path / "space", {"mine": folder}, library="released")
    manifest = Manifest.load(space / "model/mine", fresh=False)
    assert manifest.fusion.kind == model.config.fusion_kind
    with EDViTRuntime.from_pretrained(space / "model/mine", schedule="in_turn") as runtime:
        assert isinstance(runtime.coordinator.engine, LocalEngine)
        assert runtime.predict(PIXELS[:1]).present == (True,) * model.config.num_sub_models
