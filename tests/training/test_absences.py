# SPDX-License-Identifier: Apache-2.0
"""What a fusion is worth with sub-models absent, and the temperatures of votes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from edvit_hf.modeling_edvit import VoteAverage
from edvit_hf.tasks import MAX_SUBSETS, absent_subsets
from edvit_hf.training import absence_masks, fit_temperatures, shares_right


@given(st.integers(1, 14))
@settings(max_examples=14, deadline=None)
def test_absences_are_every_subset_of_up_to_two_or_a_sample_of_them_but_never_all(num_sub_models):
    found = absence_masks(num_sub_models)
    assert len(found) == min(3, num_sub_models)
    for absent, masks in enumerate(found):
        gone = [tuple(np.flatnonzero(~row)) for row in masks.numpy()]
        assert gone == absent_subsets(num_sub_models, absent), "evaluation measures with the same ones absent"
        assert len(masks) == min(math.comb(num_sub_models, absent), MAX_SUBSETS)
        assert (masks.sum(dim=1) == num_sub_models - absent).all()
        assert len({tuple(row) for row in masks.tolist()}) == len(masks)
    assert all(torch.equal(a, b) for a, b in zip(found, absence_masks(num_sub_models), strict=True))


def average_of(num_sub_models, num_classes):
    groups = [list(range(num_classes))] * num_sub_models
    return VoteAverage(groups, [num_classes] * num_sub_models, num_classes, [1] * num_sub_models).eval()


def test_the_share_of_subsets_that_is_right_is_counted_by_item(monkeypatch):
    monkeypatch.setattr("edvit_hf.training.absences.BATCH_SIZE", 2)
    sure, wrong = torch.tensor([5.0, 0.0]), torch.tensor([0.0, 3.0])
    votes = torch.stack([torch.cat([sure, wrong, wrong]), torch.cat([sure] * 3), torch.cat([wrong] * 3)])
    found = shares_right(average_of(3, 2), torch.zeros(3, 3), votes, np.zeros(3, np.int64))
    # One sure vote of 5 loses to two of 3, wins over one of them, and is right alone.
    np.testing.assert_allclose(found, [[0, 1, 0], [2 / 3, 1, 0], [1 / 3, 1, 0]])


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_the_fitted_temperature_undoes_a_factor_of_the_logits(factor):
    torch.manual_seed(0)
    logits = 2 * torch.randn(4000, 3)
    labels = torch.distributions.Categorical(logits=logits).sample().numpy()
    found = fit_temperatures(factor * logits, labels, [[0, 1, 2]], [3])
    assert float(found) == pytest.approx(factor, rel=0.1)


def test_temperatures_are_bounded_and_one_for_each_vote():
    labels = np.array([0, 1, 2, 0])
    right = 20 * F.one_hot(torch.tensor([0, 1, 2, 0]), 3).float()
    group = 20 * F.one_hot(torch.tensor([2, 0, 2, 2]), 3).float()  # of the group [1, 5], "other" last
    votes = torch.cat([right, -right, group], dim=1)
    found = fit_temperatures(votes, labels, [[0, 1, 2], [0, 1, 2], [1, 5]], [3, 3, 3])
    assert found.tolist() == pytest.approx([0.25, 4.0, 0.25])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), min_size=3, max_size=3).filter(any), st.floats(0.5, 2.0))
def test_an_absent_sub_model_gets_no_gradient_from_the_average(present, temperature):
    votes = torch.randn(4, 9, requires_grad=True)
    fusion = average_of(3, 3)
    fusion.set_temperatures(torch.full((3,), temperature))
    answers = fusion(torch.zeros(4, 3), votes, torch.tensor(present).expand(4, -1))
    F.cross_entropy(answers, torch.tensor([0, 1, 2, 0])).backward()
    gradients = votes.grad.view(4, 3, 3).abs().sum(dim=(0, 2))
    assert [float(value) > 0 for value in gradients] == present
