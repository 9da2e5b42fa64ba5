# SPDX-License-Identifier: Apache-2.0
"""A Space folder is written whole or not at all, with what its page needs and nothing else."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edvit_hf import __version__
from edvit_hf.cli import app
from edvit_hf.errors import EDViTError, ManifestError, WorkDirError
from edvit_hf.hub import pull
from edvit_hf.hub.checks import list_files
from edvit_hf.manifest import Calibration, Manifest, content_files, hash_of_content
from edvit_hf.runtime import EDViTRuntime
from edvit_hf.space import assemble, assembling, bundle, named_ensembles
from edvit_hf.space.bundle import slim_manifest
from edvit_hf.space.checks import check_space
from edvit_hf.space.page import bundled_ensembles, page_folder
from support.hub_ensemble import files_of, write_publishable
from support.tiny_ensemble import write_tiny_ensemble

PAGE = page_folder()
runner = CliRunner()


@pytest.fixture
def ensemble(tmp_path):
    """A finished ensemble: the exports the page needs, and the rest of a published folder."""
    root = tmp_path / "ensemble"
    manifest = write_tiny_ensemble(root, [[0, 1], [2, 3]])
    (root / "README.md").write_text("the card")
    (root / "results.json").write_text(json.dumps({"rows": []}))
    (root / "assets").mkdir()
    (root / "assets/figure.png").write_bytes(b"png")
    for name in ("model.safetensors", "config.json", "modeling_edvit.py", "sub_models/00/model.safetensors"):
        (root / name).write_text("not needed")
    content = content_files(root)
    entry = replace(manifest.ensemble, content_hash=hash_of_content(content))
    replace(manifest, ensemble=entry, content=content).save(root)  # else the graphs would be of other weights
    return root


BUNDLED = {
    "manifest.json",
    "preprocessor_config.json",
    "results.json",
    "MODEL_CARD.md",
    "assets/figure.png",
    "onnx/fusion.onnx",
    "sub_models/00/onnx/model.onnx",
    "sub_models/00/onnx/model_quint8_avx2.onnx",
    "sub_models/01/onnx/model.onnx",
}


def test_a_bundle_holds_what_the_page_needs_and_nothing_else(ensemble, tmp_path):
    done = runner.invoke(app, ["space", "bundle", str(ensemble), str(tmp_path / "out/tiny")])
    assert done.exit_code == 0, done.output
    assert "model_quint8_avx2.onnx" in done.output
    out = tmp_path / "out/tiny"
    assert set(files_of(out)) == BUNDLED
    assert (out / "MODEL_CARD.md").read_text() == "the card"
    pixels = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    original, copied = (EDViTRuntime.from_pretrained(f, schedule="in_turn") for f in (ensemble, out))
    assert np.array_equal(original.predict(pixels).probabilities, copied.predict(pixels).probabilities)
    bundle(out, tmp_path / "again")  # a bundle of a bundle is the same, card included
    assert files_of(tmp_path / "again") == files_of(out)


def test_what_the_page_does_not_run_is_left_out_of_the_manifest_too(ensemble, tmp_path):
    full = Manifest.load(ensemble)
    first = full.sub_models[0]
    fp32, int8 = first.variants

    def another(variant, file, **changes):
        (ensemble / file).write_bytes((ensemble / variant.file).read_bytes())
        return replace(variant, file=file, **changes)

    static = replace(
        int8.quantization, mode="static", calibration=Calibration(method="minmax", split="train", num_items=8)
    )
    others = [
        another(fp32, "sub_models/00/onnx/model_raw.onnx", inputs="raw"),
        another(fp32, "sub_models/00/onnx/model_fp16.onnx", precision="fp16"),
        another(int8, "sub_models/00/onnx/model_static.onnx", quantization=static),
    ]
    names = ("fp32", "quint8_avx2", "fp16", "static", "raw")
    entry = replace(
        full.ensemble, accuracy={n: {"accuracy": 0.5} for n in names}, gates={n: {"passed": True} for n in names[1:]}
    )
    full = replace(
        full,
        ensemble=entry,
        sub_models=[replace(first, variants=[fp32, *others, int8]), full.sub_models[1]],
        whole=[another(fp32, "onnx/model.onnx")],
    )
    full.save(ensemble)
    full.verify_files(ensemble)
    slim = Manifest.load(bundle(ensemble, tmp_path / "bundle"))
    slim.verify_files(tmp_path / "bundle")
    assert [[v.name for v in entry.variants] for entry in slim.sub_models] == [["fp32", "quint8_avx2"], ["fp32"]]
    assert slim.whole == []
    assert (slim.ensemble.content_hash, slim.content) == (full.ensemble.content_hash, full.content)
    assert set(slim.ensemble.accuracy) == {"fp32", "quint8_avx2"}
    assert set(slim.ensemble.gates) == {"quint8_avx2"}
    assert set(files_of(tmp_path / "bundle")) == BUNDLED


def test_files_with_the_same_bytes_are_kept_once_and_serve_both_kinds_of_hardware(tmp_path):
    manifest = write_tiny_ensemble(tmp_path, [[0], [1]])
    entries = []
    for entry in manifest.sub_models:
        int8 = manifest.sub_models[0].variants[1]
        avx2 = replace(int8, file=f"{entry.path}/onnx/model_quint8_avx2.onnx")
        twin = replace(avx2, file=f"{entry.path}/onnx/model_qint8_arm64.onnx", profiles=["raspberry-pi-5"])
        timed = replace(
            twin,
            file=f"{entry.path}/onnx/model_other.onnx",
            sha256="1" * 64,
            latency_note=None,
            latency_ms={"protocol": 1},
        )
        entries.append(replace(entry, variants=[entry.variants[0], avx2, twin, timed]))
    slim = slim_manifest(replace(manifest, sub_models=entries, latency_protocols=[{"a": 1}, {"b": 2}]))
    for entry in slim.sub_models:
        assert [(v.name, v.profiles) for v in entry.variants[1:]] == [
            ("quint8_avx2", ["x86-avx2", "raspberry-pi-5"]),
            ("other", ["raspberry-pi-5"]),
        ]
        assert entry.variant("int8", "raspberry-pi-5").name == "quint8_avx2"
        assert entry.variants[2].latency_ms == {"protocol": 0}
    assert slim.latency_protocols == [{"b": 2}]
    # Where only one sub-model's bytes agree, both kinds stay for all of them.
    first, second = entries
    second = replace(second, variants=[*second.variants[:2], replace(second.variants[2], sha256="2" * 64)])
    slim = slim_manifest(replace(manifest, sub_models=[first, second], latency_protocols=[{"a": 1}, {"b": 2}]))
    assert {"quint8_avx2", "qint8_arm64"} <= {v.name for v in slim.sub_models[0].variants}


def test_an_ensemble_without_fp32_files_is_refused(tmp_path):
    manifest = write_tiny_ensemble(tmp_path, [[0], [1]])
    entry = manifest.sub_models[0]
    with pytest.raises(ManifestError, match="Expected an fp32 file of sub-model 0"):
        slim_manifest(
            replace(manifest, sub_models=[replace(entry, variants=entry.variants[1:]), *manifest.sub_models[1:]])
        )


def test_a_bare_export_without_a_card_is_enough(tmp_path):
    write_tiny_ensemble(tmp_path / "bare", [[0], [1]])
    found = files_of(bundle(tmp_path / "bare", tmp_path / "out"))
    assert not {"MODEL_CARD.md", "results.json"} & set(found)


def test_texts_bring_their_whole_tokenizer(tmp_path):
    write_tiny_ensemble(tmp_path / "texts", [[0], [1]], task="text-classification")
    manifest = Manifest.load(tmp_path / "texts")
    content = content_files(tmp_path / "texts")
    replace(manifest, content=content, ensemble=replace(manifest.ensemble, content_hash=hash_of_content(content))).save(
        tmp_path / "texts"
    )
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(files_of(bundle(tmp_path / "texts", tmp_path / "out")))


def test_a_device_pulls_from_a_bundle_what_it_pulls_from_the_ensemble(tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    write_publishable(whole)
    for _ in range(2):  # what is there is known as a bundle
        bundle(whole, out)
    pulled = [
        pull(str(source), sub_models=[1], precision="fp32", fusion=True, output=tmp_path / f"from_{source.name}")
        for source in (whole, out)
    ]
    files = [{p: d for p, d in files_of(each.folder).items() if p != "manifest.json"} for each in pulled]
    assert files[0] == files[1]
    assert "sub_models/01/config.json" in files[0]
    (whole / "sub_models/01/config.json").write_text("{}")
    with pytest.raises(ManifestError, match=r"sub_models/01/config\.json"):
        bundle(whole, out)


def test_links_are_left_behind(ensemble, tmp_path):
    (tmp_path / "private.txt").write_text("mine")
    (ensemble / "README.md").unlink()
    (ensemble / "README.md").symlink_to(tmp_path / "private.txt")
    (ensemble / "assets/link.png").symlink_to(tmp_path / "private.txt")
    found = files_of(bundle(ensemble, tmp_path / "out"))
    assert b"mine" not in found.values()
    assert "MODEL_CARD.md" not in found


DAMAGES = {
    "no manifest": (lambda r: (r / "manifest.json").unlink(), ManifestError, "manifest.json"),
    "no fusion head": (lambda r: (r / "onnx/fusion.onnx").unlink(), ManifestError, "fusion.onnx"),
    "empty graph": (lambda r: (r / "sub_models/01/onnx/model.onnx").write_bytes(b""), ManifestError, "sub_models/01"),
    "no preprocessing": (
        lambda r: (r / "preprocessor_config.json").unlink(),
        ManifestError,
        "preprocessor_config.json",
    ),
    "cut results": (lambda r: (r / "results.json").write_text("{"), EDViTError, "results.json"),
    "binary card": (lambda r: (r / "README.md").write_bytes(b"\xff\xfe\xff"), EDViTError, "UTF-8"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_an_unfinished_ensemble_is_refused_and_the_last_space_stays(ensemble, tmp_path, name):
    damage, error, message = DAMAGES[name]
    space = assemble(tmp_path / "space", {"tiny": ensemble}, library="released")
    before = files_of(space)
    damage(ensemble)
    with pytest.raises(error, match=message):
        assemble(space, {"tiny": ensemble}, library="released")
    done = runner.invoke(app, ["space", "assemble", str(space), "--ensemble", f"tiny={ensemble}", "--released"])
    assert done.exit_code == 1
    assert message in done.output.replace("\n", "")
    assert files_of(space) == before
    assert not list(tmp_path.glob("*.partial"))


def test_a_source_that_changes_while_it_is_copied_is_noticed(ensemble, tmp_path, monkeypatch):
    real = shutil.copyfile

    def copy(source, target):
        done = real(source, target)
        if str(source).endswith("sub_models/01/onnx/model.onnx"):
            Path(target).write_bytes(Path(source).read_bytes()[:-1] + b"?")
        return done

    monkeypatch.setattr(shutil, "copyfile", copy)
    with pytest.raises(ManifestError, match=r"stay as it is while it is copied, but sub_models/01"):
        bundle(ensemble, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device", "x"), KeyboardInterrupt()])
def test_a_full_disk_or_an_interruption_leaves_the_last_space(ensemble, tmp_path, monkeypatch, error):
    space = assemble(tmp_path / "space", {"tiny": ensemble}, library="released")
    before = files_of(space)
    (ensemble / "README.md").write_text("another card")

    def fail(*_args):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(assembling, "name_library", fail)
        kind, message = (
            (WorkDirError, "No space left.*unchanged") if isinstance(error, OSError) else (KeyboardInterrupt, None)
        )
        with pytest.raises(kind, match=message):
            assemble(space, {"tiny": ensemble}, library="released")
    assert files_of(space) == before
    assert not list(tmp_path.glob("*.partial"))
    assert files_of(assemble(space, {"tiny": ensemble}, library="released")) != before


def test_a_space_is_the_page_with_the_bundled_ensembles_and_their_examples(tmp_path):
    space = assemble(tmp_path / "space", library="released")
    files = list_files(space)
    check_space(space, files)
    paths = {file.path for file in files}
    top = {p.name for p in PAGE.iterdir() if p.is_file() and p.suffix != ".whl"}
    assert {path for path in paths if "/" not in path} == top
    assert {path.split("/")[1] for path in paths if path.startswith("model/")} == set(bundled_ensembles())
    written, page = (
        {p: d for p, d in files_of(folder).items() if "/" in p and not p.endswith(".pyc")} for folder in (space, PAGE)
    )
    assert written == page
    assert {path.split("/")[0] for path in written} == {"page", "answers", "model", "examples"}
    assert (space / "README.md").read_text() == (PAGE / "README.md").read_text()
    assert f"edvit_hf[device,hub]=={__version__}\n" in (space / "requirements.txt").read_text()


def test_other_ensembles_take_the_place_of_the_bundled_ones_and_the_readme_says_so(ensemble, tmp_path):
    space = assemble(tmp_path / "space", {"tiny": ensemble, "digits": PAGE / "model/digits"}, library="released")
    check_space(space, list_files(space))
    readme = (space / "README.md").read_text()
    settings, _, body = readme.removeprefix("---\n").partition("---\n")
    assert settings == (PAGE / "README.md").read_text().removeprefix("---\n").partition("---\n")[0]
    assert "`tiny`: its card is [MODEL_CARD.md](model/tiny/MODEL_CARD.md)" in body
    assert "spoken" not in body
    assert {p.name for p in (space / "model").iterdir()} == {"tiny", "digits"}
    assert {p.name for p in (space / "examples").iterdir()} == {"digits"}
    again = assemble(space, {"tiny": ensemble}, library="released")  # nothing of the last one stays
    assert not [path for path in files_of(again) if "digits" in path]


@pytest.mark.parametrize("name", ["Tiny", "a-b", "..", "a/b", "", "é", "x" * 65])
def test_a_name_that_could_not_be_a_folder_everywhere_is_refused(ensemble, tmp_path, name):
    with pytest.raises(EDViTError, match="small letters, digits and underscores"):
        assemble(tmp_path / "space", {name: ensemble}, library="released")
    with pytest.raises(EDViTError, match="NAME=DIR" if not name else "small letters"):
        named_ensembles([f"{name}={ensemble}" if name else str(ensemble)])
    assert not (tmp_path / "space").exists()


def test_names_on_the_command_line_are_given_once():
    assert named_ensembles(["a=x", "b_2=y=z"]) == {"a": Path("x"), "b_2": Path("y=z")}
    with pytest.raises(EDViTError, match="'a' twice: for x and y"):
        named_ensembles(["a=x", "a=y"])
    with pytest.raises(EDViTError, match="at least one ensemble"):
        assemble("anywhere", {})


def test_a_folder_with_other_things_in_it_is_not_overwritten(ensemble, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "home")
    (tmp_path / "flask").mkdir()
    (tmp_path / "flask/app.py").write_text("my own program")
    (tmp_path / "flask/README.md").write_text("# Mine\n")
    clone = assemble(tmp_path / "clone", {"tiny": ensemble}, library="released")
    (clone / ".git").mkdir()
    for target in ("home", "file", "link", "flask", "clone"):
        for write in (lambda t: assemble(t, {"tiny": ensemble}, library="released"), lambda t: bundle(ensemble, t)):
            with pytest.raises(EDViTError, match="would be lost"):
                write(tmp_path / target)
    with pytest.raises(EDViTError, match="would be lost"):
        bundle(ensemble, ensemble)  # the trained weights are there
    assert (ensemble / "model.safetensors").exists()
    with pytest.raises(EDViTError, match="Name a new folder"):
        assemble(PAGE, {"tiny": ensemble}, library="released")
    assert (tmp_path / "home/letter.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert set(files_of(bundle(ensemble, tmp_path / "empty"))) == BUNDLED


def test_the_page_in_a_source_checkout_is_never_replaced(ensemble, tmp_path):
    """An installed command run inside a checkout: the source folder looks like a Space that was written earlier."""
    target = assemble(tmp_path / "space_app", {"toy": ensemble}, library="released")
    (tmp_path / "src" / "edvit_hf").mkdir(parents=True)
    with pytest.raises(EDViTError, match="holds other things"):
        assemble(target, {"toy": ensemble}, library="released")
    assert (target / "app.py").is_file()
