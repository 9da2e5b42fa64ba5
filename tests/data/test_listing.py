# SPDX-License-Identifier: Apache-2.0
"""What lies in a data set's folder: names are literal, links are followed, hidden and foreign files are left out."""

import os

import pytest

from edvit_hf.data import DatasetConfig
from edvit_hf.data.listing import list_folder
from edvit_hf.data.sources import local_files, local_folders
from edvit_hf.errors import DataError

ODD_NAMES = ["run[1]", "run*", "what?", "a::b", "a:b", "~x", "{a,b}", "%41", "née", " padded ", "-dash", "a\nb"]
FOREIGN = [".DS_Store", "._1.png", "Thumbs.db", "desktop.ini", "1.png~", "~$1.csv", ".git/HEAD", "@eaDir/1.png"]
FOREIGN += ["__MACOSX/cat/1.png", "cat/.ipynb_checkpoints/1-checkpoint.png", "__pycache__/a.pyc", "THUMBS.DB"]


def write(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_folder_is_the_one_that_is_named_and_none_like_it(tmp_path, name):
    for other in (name, "run1", "runx", "whatx", "a", "x", "A"):
        write(tmp_path / other / f"{other}.png")
    config = DatasetConfig(path="imagefolder", data_dir=str(tmp_path / name))
    assert local_folders(config) == [tmp_path / name]
    assert local_files(config) == [tmp_path / name / f"{name}.png"]


def test_hidden_and_foreign_files_are_left_out_and_counted(tmp_path, caplog):
    for name in (*FOREIGN, "cat/1.png", "cat/~2.png"):
        write(tmp_path / name)
    with caplog.at_level("INFO", "edvit_hf"):
        found = list_folder(tmp_path)
    assert [path.as_posix() for path in found.files] == ["cat/1.png", "cat/~2.png"]
    assert found.ignored == len(FOREIGN)
    assert f"{len(FOREIGN)} hidden or foreign files and folders" in caplog.text


def test_links_are_followed_and_circles_end(tmp_path, caplog):
    write(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "set" / "dog").mkdir(parents=True)
    (tmp_path / "set" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "dog" / "2.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "set" / "dog" / "round").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "set" / "dog" / "pipe.png")
    found = list_folder(tmp_path / "set")
    assert [path.as_posix() for path in found.files] == ["cat/1.png", "dog/2.png"]
    assert [path.name for path in found.unreadable] == ["gone.png", "pipe.png", "round"]
    assert "3 links that lead nowhere" in caplog.text


def test_links_among_many_folders_and_endless_depth_are_refused_at_once(tmp_path):
    folders = [tmp_path / "web" / f"{number}" for number in range(12)]
    for folder in folders:
        folder.mkdir(parents=True)
    for folder in folders:
        for other in folders:
            (folder / other.name).symlink_to(other)
    with pytest.raises(DataError, match="100 links to one"):
        list_folder(tmp_path / "web")
    (tmp_path / "deep" / "/".join("d" * 70)).mkdir(parents=True)
    with pytest.raises(DataError, match="64 folders in one another"):
        list_folder(tmp_path / "deep")
