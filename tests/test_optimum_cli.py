import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from optimum.commands.optimum_cli import main

from edvit_hf.manifest import Manifest
from edvit_hf.runtime import LocalEnsemble
from tiny_export import one_layer_model, save_ensemble


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
    call(monkeypatch, "export", "edvit", "--model", ensemble, "--profile", "raspberry-pi-5", output)
    manifest = Manifest.load(output)
    manifest.verify_files(output)
    (entry,) = manifest.sub_models
    assert [v.name for v in entry.variants] == ["fp32", "qint8_arm64"]
    assert entry.variants[1].profiles == ["raspberry-pi-5"]
    for variant in manifest.variants:
        assert variant.accuracy is None
    assert manifest.ensemble.accuracy is None
    assert "no labelled data" in manifest.ensemble.accuracy_note
    assert manifest.ensemble.parity.num_items == 64 * 2  # random token numbers at two lengths
    loaded = LocalEnsemble.from_pretrained(output, precision="int8")
    assert loaded.manifest == manifest
    assert loaded("word1 word2").labels[0] in manifest.label_names
    assert sorted(ensemble.rglob("*")) == before  # the source is left as it was
    assert sorted(p.name for p in tmp_path.iterdir()) == ["exported"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "raspberry-pi5", "out"], "Did you mean 'raspberry-pi-5'"),
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
    with pytest.raises(SystemExit, match="Expected a saved ensemble"):
        call(monkeypatch, "export", "edvit", "--model", tmp_path / "none", tmp_path / "out")
