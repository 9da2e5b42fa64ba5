# SPDX-License-Identifier: Apache-2.0
"""A stage is up to date only as long as what it read is the same, to the byte: no size and no time stands for that."""

import dataclasses
import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import yaml

from edvit_hf.data.contents import FileHashes
from edvit_hf.errors import DataError
from edvit_hf.recipe import keys, run, running
from edvit_hf.recipe.running import _read_sources, open_trip, stages_of
from support.dataset_files import own_cache, png  # noqa: F401
from support.tiny_recipe import tiny_recipe
from support.tiny_tasks import TEXT, task_recipe, write_texts


def sources(recipe, hashes=None):
    return json.dumps(keys.teacher_sources(recipe, hashes or FileHashes()), sort_keys=True)


def rewrite(file, change):
    """Change a file's bytes and give it its size and times back, as `touch -r` does."""
    before, content = file.stat(), file.read_bytes()
    changed = change(content)
    assert len(changed) == len(content)
    assert changed != content
    file.write_bytes(changed)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def flip_last(content):
    return content[:-1] + bytes([content[-1] ^ 1])


def swap_labels(content):
    return content.replace(b",0\n", b",x\n").replace(b",1\n", b",0\n").replace(b",x\n", b",1\n")


LAYOUTS = {
    "csv": ("csv", {"train.csv": b"image,label\na.png,0\nb.png,1\n", "a.png": png(0), "b.png": png(1)}, "train.csv"),
    "parquet": ("parquet", {"train-0.parquet": b"PAR1 0 0 0 1", "test-0.parquet": b"PAR1"}, "train-0.parquet"),
    "images": ("imagefolder", {f"train/{c}/{i}.png": png(i) for c in "ab" for i in range(2)}, "train/a/1.png"),
    "nested": ("imagefolder", {"train/a/deep/er/0.png": png(0), "train/b/1.png": png(1)}, "train/a/deep/er/0.png"),
}


@pytest.fixture(params=["data_dir", "local_name", "path"])
def named_by(request, monkeypatch, tmp_path):
    """How the recipe names its local folder: three ways, each a function of the layout."""

    def recipe(path):
        if request.param == "local_name":
            monkeypatch.setenv("EDVIT_DATA_DIR", str(tmp_path))
        named = {
            "data_dir": {"path": path, "data_dir": str(tmp_path / "set")},
            "local_name": {"path": path, "local_name": "set"},
            "path": {"path": str(tmp_path / "set")},
        }
        return tiny_recipe(tmp_path / "recipe", dataset=named[request.param])

    return recipe


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_change_of_the_data_is_another_run(tmp_path, named_by, layout):
    path, files, changed = LAYOUTS[layout]
    folder = tmp_path / "set"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    recipe = named_by(path)
    found = [sources(recipe)]
    rewrite(folder / changed, swap_labels if layout == "csv" else flip_last)
    found.append(sources(recipe))
    (folder / changed).rename((folder / changed).with_name(f"other{(folder / changed).suffix}"))
    found.append(sources(recipe))
    (folder / "train").mkdir(exist_ok=True)
    (folder / "train/more.png").write_bytes(b"")
    found.append(sources(recipe))
    (folder / "train/more.png").unlink()
    assert sources(recipe) == found[2]
    first = next(folder / name for name in files if name != changed)
    (folder / "elsewhere").mkdir()
    first.rename(folder / "elsewhere" / first.name)
    found.append(sources(recipe))
    assert len(set(found)) == 5
    (folder / ".DS_Store").write_bytes(b"left by a file browser")
    assert sources(recipe) == found[-1]


def test_the_same_data_in_another_folder_are_the_same_run(tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path / "recipe", dataset={"path": "imagefolder", "local_name": "set"})
    found = []
    for root in ("here", "there"):
        (tmp_path / root / "set/train/a").mkdir(parents=True)
        (tmp_path / root / "set/train/a/0.png").write_bytes(png(0))
        monkeypatch.setenv("EDVIT_DATA_DIR", str(tmp_path / root))
        found.append(sources(recipe))
    assert found[0] == found[1]
    assert "0.png" in found[0]


@pytest.mark.parametrize("file", ["vocab.txt", "preprocessor_config.json", "model.safetensors", "part/weights.bin"])
def test_every_file_of_a_local_checkpoint_counts(tmp_path, file):
    (tmp_path / "model/part").mkdir(parents=True)
    (tmp_path / "model" / file).write_bytes(b"one")
    teacher = {"checkpoint": str(tmp_path / "model"), "from_scratch": None}
    recipe = tiny_recipe(tmp_path / "recipe", teacher=teacher)
    found = [sources(recipe)]
    rewrite(tmp_path / "model" / file, flip_last)
    found.append(sources(recipe))
    (tmp_path / "model/other").mkdir()
    shutil.move(tmp_path / "model" / file, tmp_path / "model/other")
    assert len({*found, sources(recipe)}) == 3


def test_what_is_known_of_the_hardware_is_part_of_the_plan(tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path)
    before = keys.fleet_sources(recipe, FileHashes())
    fleet = yaml.safe_load(recipe.fleet_path.read_text())
    known = keys.load_profiles()
    other = {**known, "x86-avx2": dataclasses.replace(known["x86-avx2"], cores=77)}
    monkeypatch.setattr("edvit_hf.planning.fleet.load_profiles", lambda: other)
    assert fleet["devices"][0]["profile"] == "x86-avx2"
    assert keys.fleet_sources(recipe, FileHashes()) != before


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train-0.parquet").write_bytes(b"PAR1")
    recipe = tiny_recipe(tmp_path / "recipe", dataset={"path": "parquet", "data_dir": str(tmp_path / "set")})

    class Refusing(FileHashes):
        def of(self, file):
            raise PermissionError(13, "Permission denied", str(file))

    with pytest.raises(DataError, match=r"set/train-0\.parquet, got: Permission denied"):
        keys.teacher_sources(recipe, Refusing())


def test_files_that_did_not_change_are_not_read_again(tmp_path, monkeypatch):
    for index in range(300):
        (tmp_path / f"set/train/{index % 10}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"set/train/{index % 10}/{index}.png").write_bytes(b"%d" % index)
    monkeypatch.setattr("edvit_hf.data.contents._SETTLED_NS", 0)
    recipe = tiny_recipe(tmp_path / "recipe", dataset={"path": "imagefolder", "data_dir": str(tmp_path / "set")})
    (tmp_path / "work").mkdir()
    found = _read_sources(stages_of(recipe), recipe, tmp_path / "work")["teacher"]
    rewrite(tmp_path / "set/train/7/17.png", flip_last)
    read, original = [], hashlib.file_digest
    monkeypatch.setattr("edvit_hf.data.contents.hashlib.file_digest", lambda *a: read.append(a[0].name) or original(*a))
    again = _read_sources(stages_of(recipe), recipe, tmp_path / "work")["teacher"]
    assert read == [str(tmp_path / "set/train/7/17.png")]
    changed = [
        name for (name, before), (_, after) in zip(found["data"][0], again["data"][0], strict=True) if before != after
    ]
    assert changed == ["train/7/17.png"]


def test_inverted_labels_of_equal_size_and_time_are_read_anew(tmp_path):
    """By the library behind, too, which keeps what it prepared of the earlier files."""
    recipe = task_recipe(tmp_path, TEXT)
    found = []
    for _ in range(2):
        trip = open_trip(recipe, tmp_path / "work", "")
        found.append((sources(recipe), trip.data.test.labels))
        for split in ("train.csv", "test.csv"):
            rewrite(tmp_path / "data" / split, invert)
    assert found[0][0] != found[1][0]
    np.testing.assert_array_equal(found[1][1], np.array([2, 1, 0, 3])[found[0][1]])


def invert(content):
    names = b",animals", b",numbers"
    return content.replace(names[0], b",-------").replace(names[1], names[0]).replace(b",-------", names[1])


def test_a_stage_whose_data_changed_runs_again(tmp_path, monkeypatch):
    recipe = task_recipe(tmp_path, TEXT)
    idle = [dataclasses.replace(stage, function=lambda trip: None) for stage in running.STAGES]
    monkeypatch.setattr(running, "STAGES", tuple(idle))
    assert [r.skipped for r in run(recipe, tmp_path / "work", stages=["teacher"])] == [False]
    assert [r.skipped for r in run(recipe, tmp_path / "work", stages=["teacher"])] == [True]
    rewrite(tmp_path / "data/test.csv", invert)
    assert [r.skipped for r in run(recipe, tmp_path / "work", stages=["teacher"])] == [False]


def test_a_picture_that_a_table_names_by_its_whole_path_is_compared(tmp_path):
    (tmp_path / "picture.png").write_bytes(png(0))
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train.csv").write_text(f"image,label\n{tmp_path / 'picture.png'},a\n")
    recipe = tiny_recipe(tmp_path, dataset={"path": "csv", "data_dir": str(tmp_path / "set")})
    found = sources(recipe)
    rewrite(tmp_path / "picture.png", flip_last)
    assert sources(recipe) != found


def test_a_trip_reads_every_folder_of_a_list_and_a_change_in_any_is_another_run(tmp_path):
    for name, seed in (("old", 0), ("new", 1)):
        write_texts(tmp_path / name, per_class=8, seed=seed)
    folders = [str(tmp_path / name) for name in ("old", "new")]
    options = {"teacher": {"epochs": 1}, "evaluate": {"baselines": False}}
    recipe = task_recipe(tmp_path / "recipe", TEXT, dataset={"data_dir": folders}, **options)
    assert recipe.dataset.data_dir == tuple(folders)
    stages = ["teacher", "split", "plan"]
    assert not any(record.skipped for record in run(recipe, tmp_path / "work", stages=stages))
    assert all(record.skipped for record in run(recipe, tmp_path / "work", stages=stages))
    alone = task_recipe(tmp_path / "alone", TEXT, dataset={"data_dir": folders[0]}, **options)
    counts = [len(open_trip(each, tmp_path / "work").data.test) for each in (recipe, alone)]
    assert counts[0] == 2 * counts[1]
    before = sources(recipe)
    rewrite(tmp_path / "new/train.csv", lambda content: content.replace(b",animals", b",weather", 1))
    assert sources(recipe) != before
    assert not run(recipe, tmp_path / "work", stages=stages)[0].skipped
