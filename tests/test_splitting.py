import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit_hf.errors import RecipeError
from edvit_hf.splitting import SplitConfig, check_class_groups, split_classes


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 120).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n), st.integers(0, 9))))
def test_every_class_lands_in_exactly_one_group_and_sizes_differ_by_at_most_one(case):
    num_classes, num_groups, seed = case
    groups = split_classes(num_classes, SplitConfig(num_sub_models=num_groups, seed=seed))
    assert sorted(c for group in groups for c in group) == list(range(num_classes))
    assert len(groups) == num_groups
    assert max(map(len, groups)) - min(map(len, groups)) <= 1
    assert all(group == sorted(group) for group in groups)


def test_the_seed_decides_the_groups():
    first = split_classes(20, SplitConfig(num_sub_models=4, seed=0))
    assert first == split_classes(20, SplitConfig(num_sub_models=4, seed=0))
    assert first != split_classes(20, SplitConfig(num_sub_models=4, seed=1))


def test_more_sub_models_than_classes_is_refused():
    with pytest.raises(RecipeError, match="only 3 classes"):
        split_classes(3, SplitConfig(num_sub_models=4))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[0, 1], []], "class group 1 is empty"),
        ([[0, 1], [1, 2]], "class 1 stands in group 0 and in group 1"),
        ([[0], [1]], r"classes \[2\] stand in no class group"),
        ([[0, 1], [2, 3]], "names class 3; classes run from 0 to 2"),
    ],
)
def test_groups_that_are_no_partition_are_refused(groups, message):
    with pytest.raises(RecipeError, match=message):
        check_class_groups(groups, 3)


def test_given_groups_are_kept_and_sorted():
    config = SplitConfig(num_sub_models=2, strategy="given", class_groups=((2, 0), (1,)))
    assert split_classes(3, config) == [[0, 2], [1]]


def test_given_groups_and_their_number_must_agree():
    with pytest.raises(RecipeError, match="holds 2 groups"):
        split_classes(3, SplitConfig(num_sub_models=3, strategy="given", class_groups=((0, 1), (2,))))
    with pytest.raises(RecipeError, match="go together"):
        SplitConfig(num_sub_models=2, strategy="given")
