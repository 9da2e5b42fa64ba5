# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit_hf.configuration_edvit import EDViTConfig
from edvit_hf.errors import RecipeError
from edvit_hf.splitting import (
    SplitConfig,
    check_class_groups,
    group_sizes,
    placeholder_groups,
    similarity_within,
    split_classes,
)
from edvit_hf.tasks import class_groups_fault, num_labels_of

CASES = st.integers(1, 24).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n), st.integers(0, 9)))


def confusions(num_classes, seed=0):
    return np.random.default_rng(seed).exponential(size=(num_classes, num_classes))


def best_share(matrix, sizes, pick):
    """The best share inside groups of these sizes, by trying every assignment."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    tried = set(itertools.permutations(labels.tolist()))
    groups = ([np.flatnonzero(np.array(p) == g).tolist() for g in range(len(sizes))] for p in tried)
    return pick(similarity_within(g, matrix) for g in groups)


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


@pytest.mark.parametrize("seed", [-1, 0.5, True])
def test_a_seed_that_no_generator_takes_is_refused(seed):
    with pytest.raises(RecipeError, match=r"`split\.seed` must be a whole number of at least 0"):
        SplitConfig(num_sub_models=2, seed=seed)


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
        ([[0, 1.7], [2]], "group 0 holds 1.7"),
        ([[0, 2], [True]], "group 1 holds True"),
    ],
)
def test_groups_that_are_no_partition_are_refused(groups, message):
    with pytest.raises(RecipeError, match=message):
        check_class_groups(groups, 3)


@pytest.mark.parametrize(
    "groups",
    [
        [[0, 1], [2]],
        [[2], [1, 0]],
        [[0, 1, 2]],
        [[0, 1], []],
        [[0, 1], [1, 2]],
        [[0], [1]],
        [[0, 1, 0], [2]],
        [[0, 1, 2], [0]],
        [[0, 3], [1, 2]],
    ],
)
def test_the_config_that_travels_alone_has_the_same_rules_for_class_groups_and_labels(groups):
    stock = [
        {"model_type": "vit", "hidden_size": 8, "num_attention_heads": 2, "num_labels": num_labels_of(group, 3)}
        for group in groups
    ]
    names = {i: str(i) for i in range(3)}
    try:
        EDViTConfig(class_groups=groups, sub_model_configs=stock, id2label=names)
    except ValueError:
        assert class_groups_fault(groups, 3) is not None
    else:
        assert class_groups_fault(groups, 3) is None


def test_given_groups_are_kept_and_sorted():
    config = SplitConfig(num_sub_models=2, strategy="given", class_groups=((2, 0), (1,)))
    assert split_classes(3, config) == [[0, 2], [1]]


def test_given_groups_and_their_number_must_agree():
    with pytest.raises(RecipeError, match="holds 2 groups"):
        split_classes(3, SplitConfig(num_sub_models=3, strategy="given", class_groups=((0, 1), (2,))))
    with pytest.raises(RecipeError, match="go together"):
        SplitConfig(num_sub_models=2, strategy="given")


@settings(max_examples=40, deadline=None)
@given(CASES, st.sampled_from(["group", "separate"]))
def test_groups_by_similarity_are_a_partition_of_even_sizes_that_no_swap_improves(case, kind):
    num_classes, num_groups, seed = case
    matrix = confusions(num_classes, seed)
    config = SplitConfig(num_sub_models=num_groups, strategy="similarity", similarity=kind, seed=seed)
    groups = split_classes(num_classes, config, similarity=matrix)
    assert sorted(c for group in groups for c in group) == list(range(num_classes))
    assert max(map(len, groups)) - min(map(len, groups)) <= 1
    assert groups == split_classes(num_classes, config, similarity=matrix)
    reached, sign = similarity_within(groups, matrix), 1 if kind == "group" else -1
    for a, b in itertools.combinations(range(num_groups), 2):
        for i, j in itertools.product(groups[a], groups[b]):
            other = [list(g) for g in groups]
            other[a][other[a].index(i)], other[b][other[b].index(j)] = j, i
            assert sign * similarity_within(other, matrix) <= sign * reached + 1e-9


@pytest.mark.parametrize(("kind", "pick"), [("group", max), ("separate", min)])
@pytest.mark.parametrize(("num_classes", "num_groups"), [(6, 2), (7, 3), (8, 3), (8, 4)])
def test_the_local_search_finds_the_optimum_of_small_problems(kind, pick, num_classes, num_groups):
    for seed in range(3):
        matrix = confusions(num_classes, seed)
        config = SplitConfig(num_sub_models=num_groups, strategy="similarity", similarity=kind)
        groups = split_classes(num_classes, config, similarity=matrix)
        expected = best_share(matrix, group_sizes(num_classes, config), pick)
        assert similarity_within(groups, matrix) == pytest.approx(expected)


def test_pairs_that_the_teacher_confuses_are_grouped_or_separated():
    matrix = np.full((6, 6), 0.01)
    for a, b in ((0, 3), (1, 4), (2, 5)):
        matrix[a, b] = 1.0  # one direction suffices
    together = SplitConfig(num_sub_models=3, strategy="similarity")
    assert sorted(split_classes(6, together, similarity=matrix)) == [[0, 3], [1, 4], [2, 5]]
    apart = SplitConfig(num_sub_models=2, strategy="similarity", similarity="separate")
    groups = split_classes(6, apart, similarity=matrix)
    assert all(not {a, b} <= set(group) for group in groups for a, b in ((0, 3), (1, 4), (2, 5)))


def test_the_diagonal_and_the_scale_of_the_confusions_do_not_matter():
    config, matrix = SplitConfig(num_sub_models=3, strategy="similarity"), confusions(9)
    scaled = 1e-6 * matrix + np.diag(np.arange(9.0))
    assert split_classes(9, config, similarity=scaled) == split_classes(9, config, similarity=matrix)
    assert similarity_within([[0, 1], [2]], np.zeros((3, 3))) == 0.0


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (None, "needs the teacher's confusions"),
        (np.zeros((3, 4)), r"shape \(4, 4\)"),
        (np.full((4, 4), np.nan), "finite"),
        (-np.ones((4, 4)), "at least 0"),
    ],
)
def test_confusions_that_say_nothing_are_refused(matrix, message):
    with pytest.raises(RecipeError, match=message):
        split_classes(4, SplitConfig(num_sub_models=2, strategy="similarity"), similarity=matrix)


def test_before_the_teacher_is_trained_groups_of_the_same_sizes_stand_in():
    config = SplitConfig(num_sub_models=3, strategy="similarity")
    groups, note = placeholder_groups(10, config)
    assert "placeholders" in note
    real = split_classes(10, config, similarity=confusions(10))
    assert [len(g) for g in groups] == [len(g) for g in real]
    balanced = SplitConfig(num_sub_models=3)
    assert placeholder_groups(10, balanced) == (split_classes(10, balanced), None)


@settings(max_examples=100, deadline=None)
@given(CASES, st.data())
def test_proportional_sizes_follow_the_capability_within_one_class(case, data):
    num_classes, num_groups, _ = case
    speeds = data.draw(st.lists(st.floats(0.01, 100), min_size=num_groups, max_size=num_groups))
    config = SplitConfig(num_sub_models=num_groups, sizes="proportional")
    sizes = group_sizes(num_classes, config, speeds)
    assert sum(sizes) == num_classes
    assert min(sizes) >= 1
    quotas = [speed / sum(speeds) * num_classes for speed in speeds]
    if min(quotas) >= 1:
        assert all(abs(size - quota) < 1 + 1e-6 for size, quota in zip(sizes, quotas, strict=True))
    order = np.argsort(speeds, kind="stable")
    assert all(sizes[a] <= sizes[b] for a, b in itertools.pairwise(order) if speeds[a] < speeds[b])
    groups = split_classes(num_classes, config, capability=speeds)
    assert [len(g) for g in groups] == sizes


def test_proportional_sizes_use_the_largest_remainders():
    config = SplitConfig(num_sub_models=3, sizes="proportional")
    assert group_sizes(10, config, [6, 3, 1]) == [6, 3, 1]
    assert group_sizes(10, config, [1, 1, 1]) == [4, 3, 3]
    assert group_sizes(10, config, [1000, 1, 1]) == [8, 1, 1]


@pytest.mark.parametrize("capability", [None, [1.0], [1.0, 0.0], [1.0, float("nan")]])
def test_proportional_sizes_without_a_figure_per_sub_model_are_refused(capability):
    with pytest.raises(RecipeError, match="one positive number per sub-model"):
        split_classes(6, SplitConfig(num_sub_models=2, sizes="proportional"), capability=capability)


def test_given_groups_leave_no_sizes_to_compute():
    with pytest.raises(RecipeError, match="Both cannot hold"):
        SplitConfig(num_sub_models=2, strategy="given", class_groups=((0,), (1,)), sizes="proportional")
