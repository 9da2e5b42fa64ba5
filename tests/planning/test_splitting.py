# SPDX-License-Identifier: Apache-2.0
import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit_hf.configuration_edvit import EDViTConfig
from edvit_hf.errors import RecipeError
from edvit_hf.planning.splitting import (
    SplitConfig,
    check_class_groups,
    group_sizes,
    placeholder_groups,
    similarity_within,
    split_classes,
)
from edvit_hf.recipe.stages.split import voting_groups
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
        ([[0, 1, 1], [2]], "class 1 stands twice in class group 0"),
    ],
)
def test_groups_that_are_no_partition_are_refused(groups, message):
    with pytest.raises(RecipeError, match=message):
        check_class_groups(groups, 3)


@pytest.mark.parametrize(
    ("groups", "coverage", "message"),
    [
        (
            ((0, 1), (1, 2), (2, 0)),
            1,
            r"class 0 stands in group 0 and in group 2.*exactly 1 sub-model\. .*coverage: 2`",
        ),
        (((0, 1), (1, 2), (2,)), 2, "class 0 stands in group 0, and every class belongs to exactly 2 sub-models"),
        (((0,), (1,), (2,)), 3, r"coverage: 3`: class 0 stands in group 0, .* or write `coverage: 1`"),
        (((0, 1), (0, 1, 2), (1, 0, 2)), 2, "class 0 stands in group 0 and in group 1 and in group 2"),
        (((0, 1), (0, 1), (0, 1)), 3, r"classes \[2\] stand in no class group"),
    ],
)
def test_given_groups_that_contradict_the_coverage_are_refused_with_the_class_that_does(groups, coverage, message):
    config = SplitConfig(num_sub_models=3, strategy="given", class_groups=groups, coverage=coverage)
    with pytest.raises(RecipeError, match=message):
        split_classes(3, config)


def test_given_groups_may_overlap_as_often_as_the_coverage_says():
    config = SplitConfig(num_sub_models=3, strategy="given", class_groups=((1, 0), (2, 1), (0, 2)), coverage=2)
    assert split_classes(3, config) == [[0, 1], [1, 2], [0, 2]]
    config = SplitConfig(num_sub_models=3, strategy="given", class_groups=((1, 0),) * 3, coverage=3)
    assert split_classes(2, config) == [[0, 1]] * 3


@pytest.mark.parametrize("coverage", [0, -1, 1.5, "2", True, None])
def test_a_coverage_that_is_no_number_of_sub_models_is_refused(coverage):
    with pytest.raises(RecipeError, match=r"`split\.coverage` must be a whole number of at least 1, got"):
        SplitConfig(num_sub_models=3, coverage=coverage)


def test_a_coverage_above_the_number_of_sub_models_is_refused():
    with pytest.raises(RecipeError, match=r"`split\.coverage` must be at most `split\.num_sub_models` \(3\), got 4"):
        SplitConfig(num_sub_models=3, coverage=4)


def test_overlap_leaves_no_sizes_to_follow_the_devices():
    with pytest.raises(RecipeError, match="neighbours share their classes"):
        SplitConfig(num_sub_models=3, coverage=2, sizes="proportional")


OVERLAPS = st.integers(2, 12).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(n, 60), st.integers(2, n), st.integers(0, 9))
)


@settings(max_examples=120, deadline=None)
@given(OVERLAPS, st.sampled_from(["balanced", "similarity", "separate"]))
def test_with_overlap_any_single_absent_sub_model_leaves_every_class_known(case, kind):
    num_groups, num_classes, coverage, seed = case
    strategy = "balanced" if kind == "balanced" else "similarity"
    chosen = {"similarity": "separate"} if kind == "separate" else {}
    config = SplitConfig(num_sub_models=num_groups, coverage=coverage, seed=seed, strategy=strategy, **chosen)
    groups = split_classes(num_classes, config, similarity=confusions(num_classes, seed))
    assert len(groups) == num_groups
    for absent in range(num_groups):
        assert {c for i, group in enumerate(groups) if i != absent for c in group} == set(range(num_classes))
    counts = np.bincount([c for group in groups for c in group], minlength=num_classes)
    assert (counts == coverage).all()
    assert all(group == sorted(set(group)) for group in groups)
    assert max(map(len, groups)) - min(map(len, groups)) <= 1
    if coverage == num_groups:
        assert groups == [list(range(num_classes))] * num_groups


@pytest.mark.parametrize(("num_groups", "num_classes"), [(1, 1), (5, 3), (4, 4), (7, 1)])
def test_more_sub_models_than_classes_are_taken_where_each_knows_all(num_groups, num_classes):
    config = SplitConfig(num_sub_models=num_groups, coverage=num_groups, strategy="similarity")
    assert split_classes(num_classes, config) == [list(range(num_classes))] * num_groups
    assert placeholder_groups(num_classes, config) == ([list(range(num_classes))] * num_groups, None)
    if 1 < num_classes < num_groups:
        with pytest.raises(RecipeError, match=rf"only {num_classes} classes.*or `coverage: {num_groups}`"):
            split_classes(num_classes, SplitConfig(num_sub_models=num_groups, coverage=2))


@pytest.mark.parametrize(("kind", "pick"), [("group", max), ("separate", min)])
@pytest.mark.parametrize(("num_groups", "coverage"), [(4, 2), (5, 2), (6, 2), (6, 3), (6, 4)])
def test_neighbours_in_the_circle_are_those_that_confuse_most_or_least(kind, pick, num_groups, coverage):
    num_classes = 2 * num_groups
    for seed in range(3):
        matrix = confusions(num_classes, seed)
        config = SplitConfig(num_sub_models=num_groups, strategy="similarity", similarity=kind, coverage=coverage)
        groups = split_classes(num_classes, config, similarity=matrix)
        base = split_classes(num_classes, dataclasses.replace(config, coverage=1), similarity=matrix)

        def seen(found, matrix=matrix):
            return sum(float(matrix[np.ix_(g, g)].sum()) for g in found)

        def overlap(order, base=base):
            turns = range(num_groups)
            return [[c for s in range(coverage) for c in base[order[(i + s) % num_groups]]] for i in turns]

        orders = [(0, *rest) for rest in itertools.permutations(range(1, num_groups))]
        assert seen(groups) == pytest.approx(pick(seen(overlap(order)) for order in orders))


def test_a_confused_pair_that_base_groups_must_part_meets_in_a_sub_model():
    matrix = np.full((8, 8), 0.01)
    for ring in ((0, 4), (4, 1), (1, 5), (5, 0)):  # one strong ring of pairs, whose middle two base groups part
        matrix[ring] = 1.0
    for pair in ((2, 3), (6, 7), (0, 1), (4, 5)):
        matrix[pair] = 3.0
    config = SplitConfig(num_sub_models=4, strategy="similarity", coverage=2)
    groups = split_classes(8, config, similarity=matrix)
    assert [0, 1, 4, 5] in groups


def test_confusions_inside_overlapping_groups_count_once():
    matrix = np.ones((3, 3))
    assert similarity_within([[0, 1], [1, 2], [0, 1]], matrix) == pytest.approx(2 / 3)
    assert similarity_within([[0, 1, 2]] * 2, matrix) == 1.0


@pytest.mark.parametrize("coverage", [1, 2, 4])
def test_placeholders_of_overlapping_groups_have_their_sizes(coverage):
    config = SplitConfig(num_sub_models=4, strategy="similarity", coverage=coverage)
    real = split_classes(10, config, similarity=confusions(10))
    groups, note = placeholder_groups(10, config)
    assert [len(group) for group in groups] == [len(group) for group in real]
    assert (note is None) == (coverage == 4)


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


def test_sub_models_that_vote_over_all_classes_are_still_cut_for_their_groups():
    groups, recipe = [[0, 2], [1]], SimpleNamespace(distill=SimpleNamespace(votes="all"))
    assert voting_groups(recipe, groups, 3) == [[0, 1, 2]] * 2
    recipe.distill.votes = "group"
    assert voting_groups(recipe, groups, 3) == groups
