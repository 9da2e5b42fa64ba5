# SPDX-License-Identifier: Apache-2.0
"""What a new Space or bundle takes the place of: an older one of ours, whole, and nothing of somebody else's."""

from pathlib import Path

import pytest

from edvit_hf.errors import EDViTError
from edvit_hf.space import assemble, bundle
from support.hub_ensemble import files_of
from support.tiny_ensemble import write_tiny_ensemble


@pytest.fixture
def ensemble(tmp_path):
    root = tmp_path / "ensemble"
    write_tiny_ensemble(root, [[0, 1], [2, 3]])
    (root / "README.md").write_text("the card")
    return root


def test_an_error_while_the_new_folder_takes_its_place_leaves_the_old_one(ensemble, tmp_path, monkeypatch):
    out = bundle(ensemble, tmp_path / "out")
    before = files_of(out)
    (ensemble / "README.md").write_text("another card")
    real = Path.replace

    def replace_path(path, target):
        if Path(target) == out and path.suffix == ".partial" and "older" not in path.name:
            raise KeyboardInterrupt
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace_path)
        with pytest.raises(KeyboardInterrupt):
            bundle(ensemble, out)
    assert files_of(out) == before
    assert files_of(bundle(ensemble, out)) != before
    assert {path.name for path in tmp_path.iterdir()} == {"ensemble", "out"}


def test_a_folder_that_is_no_bundle_is_not_replaced(ensemble, tmp_path):
    other = tmp_path / "extension"  # a browser's extension has a manifest.json too
    other.mkdir()
    (other / "manifest.json").write_text('{"manifest_version": 3}')
    (other / "main.js").write_text("precious")
    mixed = bundle(ensemble, tmp_path / "mixed")
    (mixed / "notes.txt").write_text("precious")
    for folder in (other, mixed):
        before = files_of(folder)
        with pytest.raises(EDViTError, match="holds other things"):
            bundle(ensemble, folder)
        assert files_of(folder) == before
    (mixed / "notes.txt").unlink()
    assert bundle(ensemble, mixed) == mixed


@pytest.mark.parametrize("target", [".", "..", "/"])
def test_a_folder_without_a_name_is_refused_in_words(ensemble, tmp_path, monkeypatch, target):
    (tmp_path / "empty/inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "empty/inner")
    for write in (bundle, lambda source, place: assemble(place, {"tiny": source}, library="released")):
        with pytest.raises(EDViTError, match="Expected a folder by its name"):
            write(ensemble, target)
