# SPDX-License-Identifier: Apache-2.0
"""What is written for servers that are not ours: Triton's repositories and KServe's shares, for each device."""

import json

import pytest
import yaml
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from typer.testing import CliRunner

from edvit_hf.cli import app
from edvit_hf.errors import EDViTError, HubError
from edvit_hf.fleet.repositories import write_repositories
from edvit_hf.manifest import ContentFile, Manifest
from edvit_hf.manifest.placement import EnsembleIdentity, PlacedDevice, PlacedFile, PlacementFile
from edvit_hf.runtime.device import DeviceHost
from edvit_hf.runtime.engines.oip_wire import model_name
from edvit_hf.tasks import TASKS
from support.tiny_ensemble import SIZE, TASK_GROUPS, bless_content, write_tiny_ensemble


def placed_ensemble(folder, task="image-classification"):
    """An ensemble that can be pulled, and a placement of it: pi0 runs 0 and 1, jetson 2 and stands in for 0."""
    write_tiny_ensemble(folder, TASK_GROUPS, task=task)
    for name in ("", *(f"sub_models/{index:02d}/" for index in range(3))):
        (folder / name / "config.json").write_text(json.dumps({"of": name}))
    bless_content(folder)
    manifest = Manifest.load(folder)
    assert isinstance(manifest.content["config.json"], ContentFile)

    def file(index):
        return PlacedFile(index=index, variant="fp32", file=f"sub_models/{index:02d}/onnx/model.onnx")

    devices = {
        "pi0": PlacedDevice(profile="raspberry-pi-4b", sub_models=[file(0), file(1)]),
        "jetson": PlacedDevice(profile="jetson-orin-nano", sub_models=[file(2)], replicas=[file(0)]),
        "spare": PlacedDevice(profile="raspberry-pi-4b"),
    }
    entry = manifest.ensemble
    identity = EnsembleIdentity(id=entry.id, content_hash=entry.content_hash)
    placement = PlacementFile(ensemble=identity, fleet="test", num_sub_models=3, devices=devices)
    return manifest, placement.save(folder.with_name("placement.json"))


@pytest.mark.parametrize("task", TASKS)
def test_a_triton_repository_for_each_device_with_configurations_that_triton_reads(tmp_path, task):
    manifest, placement = placed_ensemble(tmp_path / "ensemble", task)
    folders = write_repositories(tmp_path / "ensemble", placement, "triton", tmp_path / "out")
    assert [folder.name for folder in folders] == ["pi0", "jetson"]
    held = {folder.name: sorted(path.name for path in folder.iterdir()) for folder in folders}
    names = [model_name(manifest.ensemble.content_hash, index) for index in range(3)]
    assert held == {"pi0": names[:2], "jetson": [names[0], names[2]]}
    for folder in folders:
        for model in folder.iterdir():
            text = (model / "config.pbtxt").read_text()
            config = text_format.Parse(text, model_config_pb2.ModelConfig())
            index = int(model.name.rsplit("-", 1)[1])
            source = tmp_path / f"ensemble/sub_models/{index:02d}/onnx/model.onnx"
            assert (model / "1/model.onnx").read_bytes() == source.read_bytes()
            assert config.name == model.name
            assert config.backend == "onnxruntime"
            assert [output.name for output in config.output] == ["features", "logits"]
            assert config.instance_group[0].kind == (1 if folder.name == "jetson" else 2)
            assert config.dynamic_batching.default_queue_policy.max_queue_size > 0
            if task == "image-classification":
                assert list(config.input[0].dims) == [3, SIZE, SIZE]
            elif task == "text-classification":
                assert {each.data_type for each in config.input} == {model_config_pb2.TYPE_INT64}


def test_a_share_and_a_service_pinned_to_each_device_for_kserve(tmp_path):
    manifest, placement = placed_ensemble(tmp_path / "ensemble")
    folders = write_repositories(tmp_path / "ensemble", placement, "kserve", tmp_path / "out")
    for folder, held in zip(folders, ((0, 1), (0, 2)), strict=True):
        assert DeviceHost.load(folder / "share", num_threads=1).identity.sub_models == held
        service = yaml.safe_load((folder / "inference-service.yaml").read_text())
        predictor = service["spec"]["predictor"]
        assert predictor["nodeSelector"] == {"edvit-device": folder.name}
        assert predictor["containers"][0]["image"] == service["metadata"]["name"]
        assert manifest.ensemble.content_hash[:8] in service["metadata"]["name"]
        assert "edvit_hf.fleet.kserve_server" in (folder / "Dockerfile").read_text()


def test_the_command_writes_beside_the_ensemble_and_refuses_half_of_what_it_needs(tmp_path):
    _, placement = placed_ensemble(tmp_path / "ensemble")
    line = ["export", str(tmp_path / "ensemble"), "--server", "triton"]
    refused = CliRunner().invoke(app, line)
    assert refused.exit_code == 1
    assert "Expected --server and --placement together" in refused.output
    done = CliRunner().invoke(app, [*line, "--placement", str(placement)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "ensemble-triton/pi0").is_dir()
    again = CliRunner().invoke(app, [*line, "--placement", str(placement)])
    assert "does not exist yet" in " ".join(again.output.split())


def test_a_placement_of_another_ensemble_or_an_unknown_server_writes_nothing(tmp_path):
    _, placement = placed_ensemble(tmp_path / "ensemble")
    write_tiny_ensemble(tmp_path / "other", TASK_GROUPS)
    with pytest.raises(HubError, match="Expected a placement of tiny"):
        write_repositories(tmp_path / "other", placement, "triton", tmp_path / "out")
    with pytest.raises(EDViTError, match="`server` must be one of triton, kserve"):
        write_repositories(tmp_path / "ensemble", placement, "seldon", tmp_path / "out")
    assert not (tmp_path / "out").exists()
