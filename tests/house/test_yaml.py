# SPDX-License-Identifier: Apache-2.0
"""YAML of strangers: recipes, fleets and profiles that are damaged, or made to cost more than they weigh."""

import itertools
import os
import time

import pytest
import yaml

from edvit_hf.errors import EDViTError, ManifestError, RecipeError
from edvit_hf.hardware.profiles import load_profile
from edvit_hf.planning.fleet import load_fleet
from edvit_hf.recipe import load_recipe
from edvit_hf.space.checks import read_settings
from edvit_hf.storage import read_yaml
from edvit_hf.strict import MAX_YAML_BYTES, load_yaml

LETTERS = "abcdefghijkl"


def laughs(begin="[x, x, x, x, x, x, x, x, x, x]", each="[{0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}]"):
    """Each line names the one before ten times."""
    lines = [f"a: &a {begin}"]
    lines += [f"{own}: &{own} {each.format('*' + before)}" for before, own in itertools.pairwise(LETTERS)]
    return "\n".join(lines)


HARMFUL = {
    "aliases that multiply": laughs(),
    "merges that multiply": laughs("{x: 1}", "{{<<: [{0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}]}}"),
    "an alias within itself": "devices: &d [*d]",
    "a merge of itself": "devices: &d {<<: *d}",
    "lists in lists": "devices: " + "[" * 5000 + "]" * 5000,
    "mappings in mappings": "devices: " + "{a: " * 2000 + "1" + "}" * 2000,
    "more than anybody writes": "#" * (MAX_YAML_BYTES + 1),
    "a key twice": "devices: []\ndevices: []",
    "a key twice within": "devices: [{name: a, name: b}]",
    "a key twice, quoted": "devices: []\n'devices': []",
    "tabs": "devices:\n\t- {name: a}",
    "a date that no calendar has": "devices: 2020-13-45",
    "a number of many digits": "devices: " + "9" * 5000,
    "a list as a key": "? [a]\n: b",
    "an unknown tag": "devices: !!python/object/apply:os.system [true]",
    "two documents": "devices: []\n---\ndevices: []",
    "an alias of nothing": "devices: *none",
    "a control character": "devices: \x07",
}
NOT_UTF8 = "name: Zürich".encode("latin-1")
READERS = {load_recipe: RecipeError, load_fleet: RecipeError, load_profile: ManifestError}


@pytest.mark.parametrize("name", HARMFUL)
def test_what_would_harm_is_refused_soon(name):
    begin = time.process_time()
    with pytest.raises(yaml.YAMLError):
        load_yaml(HARMFUL[name])
    assert time.process_time() - begin < 2


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", HARMFUL)
def test_every_reader_says_so_in_its_own_error(tmp_path, read, name):
    path = tmp_path / "file.yaml"
    path.write_text(HARMFUL[name])
    with pytest.raises(READERS[read], match=r"file\.yaml") as refused:
        read(path)
    assert len(str(refused.value)) < 2000


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("content", [NOT_UTF8, b"", b"\x00", b"\xff\xfe", b"[]", b"7", b"null", b"- a", b"%YAML 9.9"])
def test_what_is_no_mapping_of_values_is_refused(tmp_path, read, content):
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    with pytest.raises(READERS[read]):
        read(path)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "long", "device"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path, read, kind):
    path = tmp_path / "file.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path = tmp_path / ("x" * 300 + ".yaml")
    with pytest.raises(EDViTError):
        read(path)


def test_aliases_merges_and_a_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_bytes("\ufeffbase: &b {x: 1, y: [2]}\nother: {<<: *b, x: ü}\nagain: *b\n".encode())
    base = {"x": 1, "y": [2]}
    assert read_yaml(path) == {"base": base, "other": {"x": "ü", "y": [2]}, "again": base}


def test_the_settings_of_a_page_are_read_as_strictly():
    for name in ("aliases that multiply", "merges that multiply", "a key twice", "a date that no calendar has"):
        with pytest.raises(EDViTError):
            read_settings(f"---\n{HARMFUL[name]}\n---\n")
