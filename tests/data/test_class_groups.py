# SPDX-License-Identifier: Apache-2.0
"""Class-group views: the labels and the items of one sub-model."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit_hf.data import class_group_indices, class_group_labels
from edvit_hf.errors import DataError

_quick = settings(max_examples=25, deadline=None)
_labels = st.lists(st.integers(0, 5), min_size=1, max_size=80).map(np.asarray)


_groups = st.sets(st.integers(0, 5), min_size=1, max_size=6).map(sorted)


@_quick
@given(labels=_labels, group=_groups)
def test_group_labels_are_the_index_in_the_group_or_other(labels, group):
    own = class_group_labels(labels, group)
    assert own.dtype == np.int64
    assert [group[o] if o < len(group) else None for o in own] == [x if x in group else None for x in labels]


@settings(max_examples=100, deadline=None)
@given(labels=_labels, group=_groups, ratio=st.floats(0, 4), seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_an_epoch_holds_every_positive_and_an_even_sample_of_the_others(labels, group, ratio, seed, epoch):
    positives = np.flatnonzero(np.isin(labels, group))
    arguments = {"negatives_per_positive": ratio, "seed": seed, "epoch": epoch}
    if len(positives) == 0:
        with pytest.raises(DataError, match="got none"):
            class_group_indices(labels, group, **arguments)
        return
    chosen = class_group_indices(labels, group, **arguments)
    assert len(set(chosen)) == len(chosen)
    assert set(positives) <= set(chosen)
    negatives = labels[np.setdiff1d(chosen, positives)]
    num_others = len(labels) - len(positives)
    assert len(negatives) == min(round(len(positives) * ratio), num_others)
    available = np.bincount(labels, minlength=6)
    counts = {c: (negatives == c).sum() for c in range(6) if c not in group}
    unspent = [count for c, count in counts.items() if count < available[c]]
    assert max(counts.values(), default=0) <= min(unspent, default=len(labels)) + 1
    np.testing.assert_array_equal(chosen, class_group_indices(labels.copy(), list(group), **arguments))


def test_what_a_small_class_cannot_give_is_shared_by_the_others():
    labels = np.repeat(np.arange(5), [12, 2, 20, 20, 20])
    chosen = class_group_indices(labels, [0], negatives_per_positive=1.0, seed=0, epoch=0)
    counts = np.bincount(labels[chosen])
    assert counts[:2].tolist() == [12, 2]
    assert sorted(counts[2:]) == [3, 3, 4]


def test_each_epoch_and_seed_draws_another_sample():
    labels = np.arange(1000) % 10
    draws = [
        set(class_group_indices(labels, [3, 7], negatives_per_positive=1.0, seed=seed, epoch=epoch))
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert draws[0] != draws[1]
    assert draws[0] != draws[2]


def test_the_order_of_an_epoch_is_mixed():
    labels = np.arange(1000) % 10
    chosen = class_group_indices(labels, [3], negatives_per_positive=1.0, seed=0, epoch=0)
    assert 30 < (labels[chosen[:100]] == 3).sum() < 70


@pytest.mark.parametrize("group", [[], [1, 1], [-1, 2], [1.0, 2], [0.7], [True, 0], [np.float32(1)], ["1"]])
def test_a_class_group_that_is_none_is_refused(group):
    with pytest.raises(DataError, match="class group"):
        class_group_labels(np.array([0, 1]), group)
    with pytest.raises(DataError, match="class group"):
        class_group_indices(np.array([0, 1]), group, negatives_per_positive=1.0, seed=0, epoch=0)


@pytest.mark.parametrize("labels", [np.array([0, -1]), np.array([0.5]), np.zeros((2, 2), int)])
def test_labels_that_are_no_class_ids_are_refused(labels):
    with pytest.raises(DataError, match="Expected labels"):
        class_group_labels(labels, [0])


@pytest.mark.parametrize(
    "wrong", [{"negatives_per_positive": v} for v in (-1, float("nan"), 10**400)] + [{"seed": -1}, {"epoch": -1}]
)
def test_numbers_that_no_sample_has_are_refused(wrong):
    with pytest.raises(DataError, match=next(iter(wrong))):
        class_group_indices(np.array([0, 1]), [0], **{"negatives_per_positive": 1.0, "seed": 0, "epoch": 0, **wrong})
