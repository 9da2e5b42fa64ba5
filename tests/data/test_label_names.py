# SPDX-License-Identifier: Apache-2.0
"""`label_names` names integer labels and orders string labels; what does not fit is refused by name."""

import re

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit_hf import configuration_edvit
from edvit_hf.data import DatasetConfig, load_task
from edvit_hf.data.columns import RawSplit
from edvit_hf.data.config import dataset_from_values
from edvit_hf.data.labels import class_ids, with_label_names
from edvit_hf.data.split import ArrayStore
from edvit_hf.errors import DataError
from edvit_hf.recipe.schema import recipe_values
from edvit_hf.recipe.stages.plan import plan_recipe
from edvit_hf.tasks import OTHER_LABEL, label_names_fault
from support.dataset_files import NAMES, OFF, TEST, TRAIN, own_cache, parquet, write_animals, write_dataset  # noqa: F401
from support.tiny_recipe import tiny_recipe

INTEGERS, STRINGS = datasets.Value("int64"), datasets.Value("string")


def load(folder, names, **options):
    return load_task(parquet(folder, label_names=names, **options), OFF)


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(["ant", "bee", "cat", "dog"]), labels=st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_a_row_keeps_its_class_whether_labels_are_ids_or_strings(order, labels):
    expected = [order[label] for label in labels]
    for values in (labels, expected):
        named = with_label_names(RawSplit("train", values, None, ArrayStore(None)), order)
        assert named.class_names == list(order)
        assert [order[index] for index in class_ids(named, list(order))] == expected


def test_integer_labels_get_the_names_of_the_recipe(tmp_path):
    write_dataset(tmp_path / "set", TRAIN, TEST, INTEGERS)
    loaded = load(tmp_path / "set", ("zebra", "ape", "gnu"), num_labels=3)
    assert loaded.label_names == ["zebra", "ape", "gnu"]
    assert loaded.test.labels.tolist() == TEST


def test_string_labels_take_the_order_of_the_recipe(tmp_path):
    write_dataset(tmp_path / "set", [NAMES[i] for i in TRAIN], [NAMES[i] for i in TEST], STRINGS)
    order = ("emu", "cat", "dog")
    loaded = load(tmp_path / "set", order)
    assert loaded.label_names == list(order)
    assert [order[label] for label in loaded.test.labels] == [NAMES[i] for i in TEST]


def test_missing_labels_stay_missing(tmp_path):
    train = [None if row == 4 else label for row, label in enumerate(TRAIN)]
    write_dataset(tmp_path / "set", train, TEST, INTEGERS)
    with pytest.raises(DataError, match="row 4: None"):
        load(tmp_path / "set", tuple(NAMES))
    assert load(tmp_path / "set", tuple(NAMES), on_error="skip").skipped["train"] == 1


@pytest.mark.parametrize(
    ("labels", "names", "named"),
    [
        (("cat", "dog", "emu"), ("cat", "dogs", "emu"), r"got 'dog'\. Did you mean `dogs`\?"),
        (("cat", "dog", "emu"), ("cat", "emu"), r"among the 2 `label_names`, got 'dog'"),
        ((0, 1, 2), ("cat", "dog"), r"ids in 0\.\.1 in split 'train'.*got labels up to 2"),
        ((1, 2, 3), ("cat", "dog", "emu"), r"ids in 0\.\.2 .*got labels up to 3"),
        ((0, 1, 2), ("cat", "dog", "emu", "fox"), r"last of the 4 `label_names`, 'fox', .*ids up to 2"),
    ],
)
def test_names_that_do_not_fit_the_labels_are_refused(tmp_path, labels, names, named):
    feature = STRINGS if isinstance(labels[0], str) else INTEGERS
    write_dataset(tmp_path / "set", [labels[i] for i in TRAIN], [labels[i] for i in TEST], feature)
    with pytest.raises(DataError, match=named):
        load(tmp_path / "set", names)


def test_declared_names_may_be_replaced_but_not_moved(tmp_path):
    folder = write_animals(tmp_path)
    loaded = load(folder, ("cat", "hound", "emu"))
    assert loaded.label_names == ["cat", "hound", "emu"]
    assert loaded.test.labels.tolist() == TEST
    with pytest.raises(DataError, match="got 'dog' as id 0, which the dataset declares as id 1"):
        load(folder, ("dog", "cat", "emu"))
    with pytest.raises(DataError, match=r"declares \(3: cat, dog, emu\), got 2"):
        load(folder, ("cat", "dog"))


def test_pooled_splits_of_a_cross_validation_are_named_too(tmp_path):
    write_dataset(tmp_path / "set", TRAIN, TRAIN, INTEGERS, extra={"fold": [f"{row % 5}" for row in range(len(TRAIN))]})
    loaded = load(tmp_path / "set", ("c", "b", "a"), group_column="fold", test_groups=("2",), validation_fraction=0.3)
    assert loaded.label_names == ["c", "b", "a"]
    assert len(loaded.test) == 12


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"label_names": ("a",)}, "`label_names` must be at least two different"),
        ({"label_names": ("a", "b", "a")}, "`label_names` must be at least two different"),
        ({"label_names": ("a", " ")}, "class 1 has the empty name ' '"),
        ({"label_names": ("a", "other", "b")}, "class 1 is named 'other', which every sub-model calls"),
        ({"label_names": ("a", "b"), "num_labels": 3}, "`num_labels` is 3, but `label_names` has 2"),
    ],
)
def test_names_that_cannot_be_classes_are_refused(change, named):
    with pytest.raises(DataError, match=named):
        DatasetConfig(path="digits", **change)


UNFIT = {
    "other": (["cat", "other", "emu"], "class 1 is named 'other'"),
    "blank": (["cat", " ", "emu"], "class 1 has the empty name ' '"),
    "twice": (["cat", "cat", "emu"], "classes 0 and 1 are both named 'cat'"),
    "no text": (["cat", 7, "emu"], "class 1 is named 7, and a name is a text"),
    "half a character": (["cat", "dog", "\ud83d"], "class 2 is named .* half a character"),
}


@pytest.mark.parametrize("names", [["Other", "others", "no other"], ["a", "A", "a "], ["1", "01", "None"]])
def test_names_that_merely_look_alike_are_names(names):
    assert label_names_fault(names) is None


@pytest.mark.parametrize("case", UNFIT)
def test_what_no_class_can_be_named_is_known_in_one_place(case):
    names, fault = UNFIT[case]
    assert re.search(fault, label_names_fault(names))


def test_the_last_label_of_sub_models_has_one_name():
    assert OTHER_LABEL == configuration_edvit.OTHER_LABEL


@pytest.mark.parametrize("declares", [True, False])
@pytest.mark.parametrize("case", ["other", "blank"])
def test_names_in_the_data_are_refused_when_it_is_loaded(tmp_path, case, declares):
    names, fault = UNFIT[case]
    feature = datasets.ClassLabel(names=names) if declares else STRINGS
    train, test = (rows if declares else [names[i] for i in rows] for rows in (TRAIN, TEST))
    write_dataset(tmp_path / "set", train, test, feature)
    order = sorted(names)
    with pytest.raises(DataError, match=fault if declares else f"class {order.index(names[1])} "):
        load_task(parquet(tmp_path / "set"), OFF)
    if declares:
        assert load(tmp_path / "set", ("cat", "dog", "emu")).label_names == ["cat", "dog", "emu"]


def test_a_recipe_is_planned_by_its_label_names_and_recorded_with_them(tmp_path):
    names = [f"class {digit}" for digit in range(10)]
    recipe = tiny_recipe(tmp_path, dataset={"label_names": names, "num_labels": None})
    assert sum(len(s.classes) for s in plan_recipe(recipe).sub_models) == 10
    values = recipe_values(recipe)["dataset"]
    assert dataset_from_values(values) == recipe.dataset.filled()
    assert "label_names" not in recipe_values(tiny_recipe(tmp_path))["dataset"]  # the key of finished stages stays
