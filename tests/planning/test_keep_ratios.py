# SPDX-License-Identifier: Apache-2.0
"""Ratios that cannot be cut are refused with ratios that can."""

import re

import pytest

from edvit_hf.architectures.axes import Widths, widths_of_ratios
from edvit_hf.architectures.tables import ARCHITECTURES
from edvit_hf.errors import PruningError


def test_the_ratio_named_for_bert_base_is_a_share_of_its_heads():
    widths = Widths(residual=768, heads=12, head_dim=64, ffn=3072, labels=2, layers=12)
    with pytest.raises(PruningError, match=r"the ratio 0\.6667 on both"):
        ARCHITECTURES["bert"].check_ties({"model_type": "bert"}, widths_of_ratios(widths, 0.7, 0.7, 0.7, labels=2))
    after = widths_of_ratios(widths, 0.6667, 0.6667, 0.7, labels=2)
    assert (after.residual, after.heads) == (512, 8)
    ARCHITECTURES["bert"].check_ties({"model_type": "bert"}, after)


@pytest.mark.parametrize("kind", ["whole", "thin", "merged"])
@pytest.mark.parametrize("axis", ["residual", "attention", "ffn"])
@pytest.mark.parametrize(("heads", "head_dim"), [(4, 8), (12, 64), (3, 7), (1, 2)])
def test_the_smallest_ratio_that_is_named_keeps_a_unit(axis, kind, heads, head_dim):
    widths = Widths(residual=heads * head_dim, heads=heads, head_dim=head_dim, ffn=3072, labels=2, layers=1)
    ratios = {"residual": 1.0, "attention": 1.0, "ffn": 1.0}
    with pytest.raises(PruningError, match=f"keep_ratios.{axis}") as refusal:
        widths_of_ratios(widths, **ratios | {axis: 1e-5}, kind=kind, labels=2)
    ratio = float(re.search(r"A ratio of ([\d.]+) is enough", str(refusal.value))[1])
    after = widths_of_ratios(widths, **ratios | {axis: ratio}, kind=kind, labels=2)
    assert min(after.residual, after.heads, after.head_dim, after.ffn) >= 1
