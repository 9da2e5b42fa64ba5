# SPDX-License-Identifier: Apache-2.0
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from optimum.commands.optimum_cli import main

from edvit_hf.manifest import Manifest
from edvit_hf.runtime import EDViTRuntime
from support.tiny_export import one_layer_model, save_ensemble


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["optimum-cli", *map(str, arguments)])
    main()


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli") / "ensemble"
    save_ensemble(root, [one_layer_model("distilbert", num_labels=3)], [[0, 1, 2]])
    return root


def test_optimum_finds_the_command_once_and_no_package_file_hides_the_namespace():
    spec = importlib.util.find_spec("optimum.commands.register")
    folders = [Path(folder) for folder in spec.submodule_search_locations]
    assert len([f for folder in folders for f in folder.glob("register_edvit.py")]) == 1, folders
    assert not [f for folder in folders for f in folder.glob("__init__.py")]


def test_reading_the_command_loads_nothing_heavy():
    code = (
        "import sys, optimum.commands.optimum_cli as cli; before = set(sys.modules);"
        "commands = cli.load_optimum_namespace_cli_commands(); new = set(sys.modules) - before;"
        "print([c.COMMAND.name for c, _ in commands], sorted({n.split('.')[0] for n in new} - {'optimum'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['edvit'] []"


def test_the_command_exports_a_copy_and_says_what_it_could_not_measure(ensemble, tmp_path, monkeypatch):
    before = sorted(ensemble.rglob("*"))
    output = tmp_path / "exported"
    options = ["--model", ensemble, "--profile", "raspberry-pi-5"]
    with pytest.raises(SystemExit, match="Expected labelled data to judge int8 by"):
        call(monkeypatch, "export", "edvit", *options, output)
    assert not list(tmp_path.iterdir())
    call(monkeypatch, "export", "edvit", *options, "--without-accuracy-gate", output)
    manifest = Manifest.load(output)
    manifest.verify_files(output)
    (entry,) = manifest.sub_models
    assert [v.name for v in entry.variants] == ["fp32", "qint8_arm64"]
    assert entry.variants[1].profiles == ["raspberry-pi-5"]
    assert [v.file for v in manifest.whole] == ["onnx/model.onnx", "onnx/model_quantized.onnx"]
    for variant in manifest.variants:
        assert variant.accuracy is None
    assert manifest.ensemble.accuracy is None
    reason = "not measured: it was exported without an accuracy gate, as asked"
    assert entry.variants[0].accuracy_note == reason
    assert manifest.ensemble.accuracy_note == f"{reason}; qint8_arm64 passed no accuracy gate"
    assert manifest.ensemble.gates is None
    assert manifest.ensemble.parity.num_items == 64 * 2  # random token numbers at two lengths
    loaded = EDViTRuntime.from_pretrained(output, precision="int8")
    assert loaded.manifest == manifest
    assert loaded("word1 word2").labels[0] in manifest.label_names
    assert sorted(ensemble.rglob("*")) == before  # the source is left as it was
    assert sorted(p.name for p in tmp_path.iterdir()) == ["exported"]


def test_data_are_looked_for_where_those_of_the_copied_folder_lay(ensemble, tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr("edvit_hf.published.export.export_folder", lambda *_, **options: given.update(options))
    call(monkeypatch, "export", "edvit", "--model", ensemble, tmp_path / "out")
    assert given["origin"] == ensemble


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "raspberry-pi5", "out"], "Did you mean `raspberry-pi-5`"),
        (["full"], "not empty"),
        (["ensemble/out"], "lies inside"),
    ],
)
def test_a_refusal_is_one_line_and_leaves_nothing(ensemble, tmp_path, monkeypatch, arguments, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    (tmp_path / "ensemble").symlink_to(ensemble)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        call(monkeypatch, "export", "edvit", "--model", "ensemble", *arguments)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ensemble", "full"]


def test_a_folder_without_an_ensemble_is_refused(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    for model in (tmp_path / "none", tmp_path / "empty"):
        with pytest.raises(SystemExit, match="Expected a saved ensemble"):
            call(monkeypatch, "export", "edvit", "--model", model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def write_snapshot(cache, ensemble, repo="somebody/words", commit="a" * 40):
    """Put a repository into the Hub's cache, as a download leaves it, with code and a pickle beside the ensemble."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    shutil.copytree(ensemble, folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text(commit)
    snapshot = folder / "snapshots" / commit
    config = json.loads((snapshot / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
    (snapshot / "config.json").write_text(json.dumps(config))
    (snapshot / "evil.py").write_text("raise SystemExit('remote code was run')")
    (snapshot / "configuration_edvit.py").write_text("raise SystemExit('remote code was run')")
    (snapshot / "pytorch_model.bin").write_bytes(b"\x80\x04cposix\nsystem\n")


def test_a_repository_is_fetched_without_its_code_and_exported(ensemble, tmp_path, monkeypatch):
    write_snapshot(tmp_path / "cache", ensemble)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    exported = []
    monkeypatch.setattr(
        "edvit_hf.published.export.export_ensemble",
        lambda folder, **values: exported.append((folder, values["config"])),
    )
    output = tmp_path / "out"
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump({"devices": [{"name": "a", "profile": "intel-n100"}]}))
    options = ["--fleet", tmp_path / "fleet.yaml", "--precision", "fp16", "--precision", "int8", "--opset", "18"]
    options += ["--no-whole", "--auto", "--without-accuracy-gate"]
    call(monkeypatch, "export", "edvit", "--model", "somebody/words", *options, output)
    ((folder, config),) = exported
    assert sorted(p.name for p in output.glob("*.py")) == sorted(p.name for p in ensemble.glob("*.py"))
    assert (output / "configuration_edvit.py").read_bytes() == (ensemble / "configuration_edvit.py").read_bytes()
    assert not list(output.rglob("*.bin"))
    assert folder.parent == output.parent
    assert config.profiles == ("intel-n100",)
    assert (config.precisions, config.opset, config.auto, config.whole) == (("fp16", "int8"), 18, True, False)
    assert (output / "config.json").is_file()
    with pytest.raises(SystemExit, match=r"Hub repository 'somebody/other'.*cannot be fetched"):
        call(monkeypatch, "export", "edvit", "--model", "somebody/other", tmp_path / "other")


def test_only_data_are_asked_of_the_hub(ensemble):
    from fnmatch import fnmatch

    from edvit_hf.export.commit import _FETCHED

    files = {p.relative_to(ensemble).as_posix() for p in ensemble.rglob("*") if p.is_file() and p.suffix != ".py"}
    assert all(any(fnmatch(file, pattern) for pattern in _FETCHED) for file in files), files
    for file in ("modeling_edvit.py", "sub_models/00/evil.py", "pytorch_model.bin", "x.pkl", "onnx/model.onnx"):
        assert not any(fnmatch(file, pattern) for pattern in _FETCHED), file


def test_a_full_disk_while_copying_is_one_line_and_leaves_nothing(ensemble, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device")])

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(SystemExit, match=r"cannot be written.*No space left"):
        call(monkeypatch, "export", "edvit", "--model", ensemble, "--profile", "raspberry-pi-5", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
