"""How an export takes the place of a former one: whole, last the manifest, or not at all."""

import errno
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from edvit_hf.errors import CheckpointError, DataError, ExportGateError, ManifestError, WorkDirError
from edvit_hf.export import ExportConfig, export_ensemble
from edvit_hf.export.ensemble import _keep_other_profiles, _publish, _staging_folder, load_ensemble
from edvit_hf.manifest import Manifest, content_hash
from edvit_hf.runtime import LocalEnsemble
from tiny_export import PIXELS, SIZE, exported_images


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return exported_images(tmp_path_factory)


def test_files_for_other_hardware_stay_as_long_as_they_are_intact(exported, tmp_path):
    source, _, _, manifest = exported
    root = tmp_path / "copy"
    shutil.copytree(source, root)
    identity = content_hash(root)
    new = [[entry.variants[0]] for entry in manifest.sub_models]

    accuracy, gates = {}, {}
    files = [list(each) for each in new]
    _keep_other_profiles(root, identity, files, accuracy, gates)
    assert [[v.name for v in each] for each in files] == [["fp32", "quint8_avx2"]] * 2
    assert set(accuracy) == set(gates) == {"quint8_avx2"}

    files = [list(each) for each in new]
    _keep_other_profiles(root, "b" * 64, files, accuracy, gates)  # other weights
    assert files == new

    (root / manifest.sub_models[1].variants[1].file).write_bytes(b"damaged")
    _keep_other_profiles(root, identity, files, accuracy, gates)
    assert files == new


def test_publishing_replaces_files_together_and_removes_what_is_no_longer_listed(exported, tmp_path):
    source, _, _, manifest = exported
    root = tmp_path / "copy"
    shutil.copytree(source, root)
    staging = root / ".export"
    target = root / manifest.sub_models[0].variant().file
    (staging / "sub_models/00/onnx").mkdir(parents=True)
    shutil.copy(target, staging / "sub_models/00/onnx/model.onnx")
    target.write_bytes(b"old")
    kept = [replace(entry, variants=entry.variants[:1]) for entry in manifest.sub_models]
    _publish(staging, root, replace(manifest, sub_models=kept))
    Manifest.load(root).verify_files(root)
    assert len(list(root.rglob("*.onnx"))) == 3


def test_an_export_cut_off_while_publishing_cannot_be_loaded(exported, tmp_path):
    source, _, _, manifest = exported
    root = tmp_path / "copy"
    shutil.copytree(source, root)
    staging = root / ".export"
    (staging / "onnx/fusion.onnx").mkdir(parents=True)  # a folder where a file must go: the move fails
    (staging / "onnx/fusion.onnx/x").write_text("x")
    with pytest.raises(FileExistsError):
        _publish(staging, root, manifest)
    with pytest.raises(ManifestError, match="No manifest"):
        LocalEnsemble.from_pretrained(root)


def test_a_full_disk_is_reported_and_leaves_the_former_state(exported, tmp_path):
    source = exported[0]
    root = tmp_path / "copy"
    shutil.copytree(source, root)
    (root / ".export").mkdir()
    (root / ".export" / "left_over").write_text("of a killed export")

    def run_out_of_space():
        with _staging_folder(root) as staging:
            assert not list(staging.iterdir())
            (staging / "half.onnx").write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(WorkDirError, match="No space left"):
        run_out_of_space()
    assert not (root / ".export").exists()
    Manifest.load(root).verify_files(root)


def test_a_refused_export_leaves_the_former_state(exported, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(exported[0], root)
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    pixels = PIXELS.copy()
    pixels[3] = np.nan  # torch's own answer is not finite then
    with pytest.raises(ExportGateError, match="not finite"):
        export_ensemble(root, config=ExportConfig(int8=False), inputs={"pixel_values": pixels}, progress=False)
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("file", ["preprocessor_config.json", "config.json", "model.safetensors"])
def test_a_folder_that_holds_no_whole_ensemble_is_refused(exported, tmp_path, file):
    root = tmp_path / "copy"
    shutil.copytree(exported[0], root)
    (root / file).unlink()
    with pytest.raises(CheckpointError):
        load_ensemble(root)


@pytest.mark.parametrize("shape", [(4, 3, SIZE, SIZE + 4), (0, 3, SIZE, SIZE), (3, SIZE, SIZE)])
def test_items_that_do_not_fit_the_ensemble_are_refused(exported, shape):
    with pytest.raises(DataError):
        export_ensemble(exported[0], config=ExportConfig(), inputs={"pixel_values": np.zeros(shape)})
