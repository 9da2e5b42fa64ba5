# SPDX-License-Identifier: Apache-2.0
"""How an export takes the place of a former one: whole, last the manifest, or not at all."""

import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edvit_hf.errors import CheckpointError, DataError, ExportGateError, ManifestError, WorkDirError
from edvit_hf.export import ExportConfig, export_ensemble
from edvit_hf.export.commit import (
    COMMITTED_NAME,
    STAGING_NAME,
    ExportedFiles,
    finish_interrupted,
    keep_former,
    publish,
    staging_folder,
)
from edvit_hf.export.ensemble import load_ensemble
from edvit_hf.manifest import MANIFEST_NAME, Manifest, content_hash, file_sha256
from edvit_hf.manifest.document import STALE_NAME
from edvit_hf.runtime import EDViTRuntime
from edvit_hf.storage import held_folder
from support.tiny_export import PIXELS, SIZE, exported_images


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return exported_images(tmp_path_factory)


@pytest.fixture
def root(exported, tmp_path):
    """A copy of the exported ensemble."""
    shutil.copytree(exported[0], tmp_path / "copy")
    return tmp_path / "copy"


def new_fp32(manifest):
    """What an export without int8 would have written anew."""
    sub_models = [[entry.variants[0]] for entry in manifest.sub_models]
    return ExportedFiles(sub_models=sub_models, fusion=manifest.fusion.variants[0], whole=manifest.whole[:1])


def test_files_for_other_hardware_stay_as_long_as_they_are_intact(exported, root):
    manifest = exported[-1]
    kept = new_fp32(manifest)
    keep_former(root, content_hash(root), kept)
    assert [[v.name for v in files] for files in kept.sub_models] == [["fp32", "quint8_avx2"]] * 2
    assert [v.file for v in kept.whole] == ["onnx/model.onnx", "onnx/model_quantized.onnx"]
    assert set(kept.gates) == {"quint8_avx2"}
    assert kept.accuracy == manifest.ensemble.accuracy

    other_weights = new_fp32(manifest)
    keep_former(root, "b" * 64, other_weights)
    assert other_weights == new_fp32(manifest)

    (root / manifest.sub_models[1].variants[1].file).write_bytes(b"damaged")
    (root / "onnx/model_quantized.onnx").unlink()
    damaged = new_fp32(manifest)
    keep_former(root, content_hash(root), damaged)
    assert damaged.names == ["fp32"]
    assert [v.file for v in damaged.whole] == ["onnx/model.onnx"]
    assert set(damaged.accuracy) == {"fp32"}


def test_a_file_made_of_another_goes_when_that_one_changes(exported, root):
    """A raw or a whole graph holds a copy of what the gate judged: beside a newer file it would pass for that one."""
    manifest = exported[-1]

    def with_raw(entry):
        int8 = entry.variants[1]
        raw = int8.file.replace("model_", "model_raw_")
        shutil.copyfile(root / int8.file, root / raw)
        return replace(entry, variants=[*entry.variants, replace(int8, file=raw, inputs="raw")])

    replace(manifest, sub_models=[with_raw(entry) for entry in manifest.sub_models]).save(root)
    same, other = new_fp32(manifest), new_fp32(manifest)
    for index, (entry, kept, changed) in enumerate(
        zip(manifest.sub_models, same.sub_models, other.sub_models, strict=True)
    ):
        kept.append(entry.variants[1])
        changed.append(replace(entry.variants[1], sha256="c" * 64) if index == 1 else entry.variants[1])
    keep_former(root, content_hash(root), same)
    assert same.names == ["fp32", "quint8_avx2", "raw_quint8_avx2"]
    assert [v.file for v in same.whole] == ["onnx/model.onnx", "onnx/model_quantized.onnx"]
    keep_former(root, content_hash(root), other)
    assert other.names == ["fp32", "quint8_avx2"]
    assert [v.file for v in other.whole] == ["onnx/model.onnx"]


def test_a_former_manifest_that_lists_weights_as_a_graph_takes_none_away(exported, root):
    former = exported[-1]
    extra = replace(former.whole[0], file="model.safetensors")
    replace(former, whole=[*former.whole, extra]).save(root)
    publish(root / STAGING_NAME, root, stage_fp32(root, former))
    assert (root / "model.safetensors").is_file()


@pytest.mark.parametrize("text", ['{"do_resize": ', "[]"])
def test_an_ensemble_whose_processor_is_damaged_is_not_exported(exported, root, text):
    (root / "preprocessor_config.json").write_text(text)
    former = (root / MANIFEST_NAME).read_bytes()
    with pytest.raises(CheckpointError, match="preprocessor_config"):
        export_ensemble(root, config=ExportConfig(), inputs={"pixel_values": PIXELS}, progress=False)
    assert (root / MANIFEST_NAME).read_bytes() == former


def test_figures_stay_with_files_of_the_same_bytes_and_go_with_others(exported, root):
    manifest = exported[-1]

    def unmeasured(variant, **changes):
        return replace(variant, accuracy=None, accuracy_note="no data", **changes)

    latency = {"median": 1.5}
    first = manifest.sub_models[0]
    measured = replace(first.variants[0], latency_ms=latency, latency_note=None)
    timed = [replace(first, variants=[measured, *first.variants[1:]]), *manifest.sub_models[1:]]
    replace(manifest, sub_models=timed).save(root)
    again = new_fp32(manifest)
    again.sub_models = [[unmeasured(variant) for variant in files] for files in again.sub_models]
    keep_former(root, content_hash(root), again)
    assert again.sub_models[0][0].accuracy == first.variants[0].accuracy
    assert again.sub_models[0][0].latency_ms == latency
    assert again.accuracy["fp32"] == manifest.ensemble.accuracy["fp32"]

    other = new_fp32(manifest)
    other.sub_models = [[unmeasured(variant, sha256="c" * 64) for variant in files] for files in other.sub_models]
    keep_former(root, content_hash(root), other)
    assert other.sub_models[0][0].accuracy is None
    assert other.sub_models[0][0].latency_ms is None
    assert set(other.accuracy) == {"quint8_avx2"}


def test_a_file_drawn_anew_for_another_board_still_serves_the_one_before(exported, root):
    manifest = exported[-1]
    again = new_fp32(manifest)
    for files, entry in zip(again.sub_models, manifest.sub_models, strict=True):
        files.append(replace(entry.variants[1], profiles=["intel-n100"]))
    keep_former(root, content_hash(root), again)
    assert [files[1].profiles for files in again.sub_models] == [["intel-n100", "x86-avx2"]] * 2
    assert [files[0].profiles for files in again.sub_models] == [[]] * 2


def stage_fp32(root, manifest):
    """A staging folder in which the first sub-model's graph has other bytes than before; returns its manifest."""
    staging = root / STAGING_NAME
    variant = manifest.sub_models[0].variants[0]
    (staging / variant.file).parent.mkdir(parents=True)
    (staging / variant.file).write_bytes((root / variant.file).read_bytes() + b"new")
    (staging / "sub_models/00/onnx/model_refused.onnx").write_bytes(b"a variant that missed its gate")
    changed = replace(variant, sha256=file_sha256(staging / variant.file), bytes=variant.bytes + 3)
    kept = [replace(entry, variants=entry.variants[:1]) for entry in manifest.sub_models]
    kept[0] = replace(kept[0], variants=[changed])
    return replace(manifest, sub_models=kept, whole=[])


def is_new(root, new):
    """Whether the folder is the published one, all of it."""
    Manifest.load(root).verify_files(root)
    return (
        Manifest.load(root) == new
        and sorted(p.name for p in root.rglob("*.onnx")) == ["fusion.onnx", "model.onnx", "model.onnx"]
        and not [p for p in root.iterdir() if p.name.startswith(".")]
    )


def test_publishing_replaces_files_together_and_removes_what_is_no_longer_listed(exported, root):
    new = stage_fp32(root, exported[-1])
    publish(root / STAGING_NAME, root, new)
    assert is_new(root, new)


class Cut(BaseException):
    """Stands for a loss of power."""


def cut_at(monkeypatch, step):
    """Let the process end instead of its `step`-th rename or removal."""
    left = [step]
    for name in ("replace", "unlink"):
        original = getattr(Path, name)

        def counted(self, *args, original=original, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise Cut
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Path, name, counted)


@pytest.mark.parametrize("step", range(12))
def test_an_export_cut_off_anywhere_leaves_the_former_state_or_is_finished_by_the_next(
    exported, root, monkeypatch, step
):
    former, new = exported[-1], stage_fp32(root, exported[-1])
    with monkeypatch.context() as patch:
        cut_at(patch, step)
        try:
            publish(root / STAGING_NAME, root, new)
            was_cut = False
        except Cut:
            was_cut = True
    assert was_cut == (step < 11)  # a later step would never be reached, and the test would prove nothing
    if (root / MANIFEST_NAME).is_file():
        found = Manifest.load(root)
        found.verify_files(root)
        assert found in (former, new)
    else:
        with pytest.raises(ManifestError, match="No manifest"):
            EDViTRuntime.from_pretrained(root)
    with staging_folder(root):
        pass
    if (root / MANIFEST_NAME).is_file() and Manifest.load(root) == former:
        former.verify_files(root)
        assert not [p for p in root.iterdir() if p.name.startswith(".")]
    else:
        assert is_new(root, new)


def test_a_killed_process_leaves_nothing_half_written(exported, root):
    new = stage_fp32(root, exported[-1])
    new.save(root / STAGING_NAME)
    (root.parent / "new.json").write_text(new.to_json())
    code = f"""
import os, signal
from pathlib import Path
from edvit_hf.export.commit import publish
from edvit_hf.manifest import Manifest
from edvit_hf.manifest.document import STALE_NAME
root, original, left = Path({str(root)!r}), Path.replace, [3]
def counted(self, target):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, target)
Path.replace = counted
publish(root / {STAGING_NAME!r}, root, Manifest.load(root.parent / "new.json"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.raises(ManifestError, match="No manifest"):
        EDViTRuntime.from_pretrained(root)
    finish_interrupted(root)
    assert is_new(root, new)


@pytest.mark.parametrize("damage", ["file", "manifest", "weights"])
def test_a_cut_off_export_that_cannot_be_trusted_is_dropped(exported, root, monkeypatch, damage):
    new = stage_fp32(root, exported[-1])
    with monkeypatch.context() as patch:
        cut_at(patch, 4)  # the former manifest is out of the way, no file has moved
        with pytest.raises(Cut):
            publish(root / STAGING_NAME, root, new)
    committed = root / COMMITTED_NAME
    assert committed.is_dir()
    if damage == "file":
        (root / new.sub_models[1].variants[0].file).write_bytes(b"other")
    elif damage == "manifest":
        (committed / MANIFEST_NAME).write_text("{")
    else:
        (root / "config.json").write_text((root / "config.json").read_text() + " ")
    finish_interrupted(root)
    assert not committed.exists()
    with pytest.raises(ManifestError, match="No manifest"):
        EDViTRuntime.from_pretrained(root)


@pytest.mark.parametrize("file", ["sub_models/00/onnx/model.onnx", MANIFEST_NAME])
def test_a_full_disk_is_reported_and_leaves_the_former_state(exported, root, file, monkeypatch):
    former, write_text = exported[-1], Path.write_text

    def write(path, *arguments, **options):
        # The manifest is written under a temporary name. /dev/full takes no byte: the kernel's own "no space left".
        full = path.parent.name == STAGING_NAME and MANIFEST_NAME in path.name
        return write_text(Path("/dev/full") if full else path, *arguments, **options)

    (root / STAGING_NAME).mkdir()
    (root / STAGING_NAME / "left_over").write_text("of a killed export")

    def run_out_of_space():
        with staging_folder(root) as staging:
            assert not list(staging.iterdir())
            if file == MANIFEST_NAME:
                monkeypatch.setattr(Path, "write_text", write)
            else:
                (staging / file).parent.mkdir(parents=True, exist_ok=True)
                (staging / file).symlink_to("/dev/full")
                (staging / file).write_bytes(b"half")
            publish(staging, root, former)

    with pytest.raises(WorkDirError, match="No space left"):
        run_out_of_space()
    assert not (root / STAGING_NAME).exists()
    assert Manifest.load(root) == former
    former.verify_files(root)


def test_a_refused_export_leaves_the_former_state(root):
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    pixels = PIXELS.copy()
    pixels[3] = np.nan  # torch's own answer is not finite then
    with pytest.raises(ExportGateError, match="not finite"):
        export_ensemble(root, config=ExportConfig(precisions=()), inputs={"pixel_values": pixels}, progress=False)
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("file", ["preprocessor_config.json", "config.json", "model.safetensors"])
def test_a_folder_that_holds_no_whole_ensemble_is_refused(root, file):
    (root / file).unlink()
    with pytest.raises(CheckpointError):
        load_ensemble(root)


@pytest.mark.parametrize("shape", [(4, 3, SIZE, SIZE + 4), (0, 3, SIZE, SIZE), (3, SIZE, SIZE)])
def test_items_that_do_not_fit_the_ensemble_are_refused(exported, shape):
    with pytest.raises(DataError):
        export_ensemble(exported[0], config=ExportConfig(), inputs={"pixel_values": np.zeros(shape)})


def test_two_exports_of_one_folder_run_one_after_the_other(root, monkeypatch):
    """The second begins to write only when whoever holds the folder has let go; else their files would mix."""
    began = threading.Event()

    class BeganError(Exception):
        """Enough is known."""

    def noticed(_):
        began.set()
        raise BeganError

    monkeypatch.setattr("edvit_hf.export.ensemble.staging_folder", noticed)
    config = ExportConfig(precisions=(), whole=False)
    with ThreadPoolExecutor(1) as pool:
        with held_folder(root):
            second = pool.submit(
                export_ensemble, root, config=config, inputs={"pixel_values": PIXELS[:2]}, progress=False
            )
            assert not began.wait(0.5)
            assert not second.done()
        with pytest.raises(BeganError):
            second.result(timeout=60)
    assert began.is_set()


def test_an_export_takes_away_the_manifest_that_a_save_of_other_weights_put_aside(exported, root):
    new = stage_fp32(root, exported[-1])
    (root / MANIFEST_NAME).replace(root / STALE_NAME)
    publish(root / STAGING_NAME, root, new)
    assert Manifest.load(root) == new
    assert not (root / STALE_NAME).exists()
