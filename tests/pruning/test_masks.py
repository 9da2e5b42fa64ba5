# SPDX-License-Identifier: Apache-2.0
"""A closed mask removes a unit exactly, an open one changes nothing, and the cheap gradients are the true ones."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import layer_norm

from edvit_hf.architectures.tables import ARCHITECTURES
from edvit_hf.pruning.masks import Masks, OpenMasks, layer_input, masked, masked_layer_norm, resumed_at, with_open_masks
from edvit_hf.pruning.models import architecture_of, linear_at, norm_modules
from support.tiny_architectures import ARCHITECTURE_NAMES, TEXT, tiny_inputs, tiny_model

NAMES = (*ARCHITECTURE_NAMES, "dinov2")


@pytest.fixture(scope="module", autouse=True)
def _table_of_the_guide():
    guide = Path(__file__).resolve().parents[2] / "docs/guides/adding_an_architecture.md"
    (block,) = re.findall(r"```python\n(.*?)```", guide.read_text(), re.DOTALL)
    exec(block, {})
    yield
    del ARCHITECTURES["dinov2"]


@cache
def setting(name):
    """Teacher in float64 (never changed), its table and sizes, and inputs. Fused attention: ViT's eager is float32."""
    model = tiny_model(name).double()
    architecture = architecture_of(model)
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in tiny_inputs(name, 4).items()}
    return model, architecture, architecture.widths(model.config), inputs


def ones(*shape, closed=None):
    mask = torch.ones(shape, dtype=torch.float64)
    if closed is not None:
        mask[:, closed] = 0
    return mask


class ShortNorm(nn.Module):
    """Stands for a LayerNorm of the model without one channel, by cutting the channel out; no weights, no masks."""

    def __init__(self, norm, channel):
        super().__init__()
        self.norm, self.kept = norm, [i for i in range(len(norm.weight)) if i != channel]

    def forward(self, hidden):
        weight, bias = self.norm.weight[self.kept], self.norm.bias[self.kept]
        result = torch.zeros_like(hidden)
        result[..., self.kept] = layer_norm(hidden[..., self.kept], weight.shape, weight, bias, self.norm.eps)
        return result


def without(name, axis, unit):
    """A teacher that has lost one unit of layer 1 by its weights: independent of masks and of the cutting code."""
    model = tiny_model(name).double()
    architecture, widths = architecture_of(model), setting(name)[2]
    size = widths.head_dim if axis == "heads" else 1
    units = slice(unit * size, (unit + 1) * size)
    with torch.no_grad():
        if axis == "residual":
            norms = {id(norm) for norm in norm_modules(architecture, model)}
            for parent in list(model.modules()):
                for child_name, child in list(parent.named_children()):
                    if id(child) in norms:
                        setattr(parent, child_name, ShortNorm(child, unit))
        elif axis == "pooled":
            linear_at(model, architecture.classifier).weight[:, units] = 0
        else:
            output = architecture.ffn_output if axis == "ffn" else architecture.attention_output
            linear_at(model, output, 1).weight[:, units] = 0
        if axis == "attention":
            query = linear_at(model, architecture.attention_query, 1)
            query.weight[units], query.bias[units] = 0, 0
    return model


def masks_without(axis, unit, size, rows=1):
    mask = ones(rows, size, closed=unit)
    return Masks(**{axis: mask if axis in ("residual", "pooled") else {1: mask}})


@pytest.mark.parametrize("ndim", [2, 3])
def test_masked_norm_equals_the_norm_over_the_kept_channels(ndim):
    norm = nn.LayerNorm(6, eps=1e-5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    hidden, kept = torch.randn(2, 3, 6)[(slice(None), 0)[: 4 - ndim]], [0, 2, 5]
    assert hidden.ndim == ndim
    mask = torch.zeros(1, 6).index_fill_(1, torch.tensor(kept), 1.0)
    reduced = nn.LayerNorm(3, eps=1e-5)
    reduced.load_state_dict({"weight": norm.weight[kept], "bias": norm.bias[kept]})
    got = masked_layer_norm(hidden, mask, norm)
    torch.testing.assert_close(got[..., kept], reduced(hidden[..., kept]))
    assert got[..., [1, 3, 4]].abs().max() == 0


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_open_masks_change_nothing(name, rows):
    model, architecture, widths, inputs = setting(name)
    masks = Masks(
        residual=ones(rows, widths.residual),
        heads={0: ones(rows, widths.heads)},
        attention={1: ones(rows, widths.attention)},
        ffn={0: ones(rows, widths.ffn), 1: ones(rows, widths.ffn)},
        pooled=ones(rows, widths.residual) if architecture.has_pooler else None,
    )
    with torch.no_grad():
        expected = model(**inputs).logits
        with masked(model, architecture, masks):
            torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-9, atol=1e-9)
        assert torch.equal(model(**inputs).logits, expected)


@pytest.mark.parametrize(
    ("name", "axis"),
    [(n, a) for n in NAMES for a in ("residual", "heads", "attention", "ffn", "pooled") if a != "pooled" or n in TEXT],
)
def test_a_closed_mask_equals_a_teacher_that_has_lost_the_unit(name, axis):
    model, architecture, widths, inputs = setting(name)
    size = architecture.unit_shapes(widths)[axis][-1]
    with torch.no_grad():
        intact = model(**inputs).logits
        for unit in (0, size - 2):
            with masked(model, architecture, masks_without(axis, unit, size)):
                got = model(**inputs).logits
            torch.testing.assert_close(got, without(name, axis, unit)(**inputs).logits, rtol=1e-8, atol=1e-8)
            assert axis == "pooled" or not torch.allclose(got, intact)


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_every_row_has_its_own_masks(name):
    model, architecture, widths, inputs = setting(name)
    per_row = ones(4, widths.ffn)
    per_row[2, 5] = 0
    with torch.no_grad():
        intact = model(**inputs).logits
        with masked(model, architecture, Masks(ffn={0: per_row})):
            got = model(**inputs).logits
        with masked(model, architecture, Masks(ffn={0: ones(1, widths.ffn, closed=5)})):
            without_unit = model(**inputs).logits
    torch.testing.assert_close(got[[0, 1, 3]], intact[[0, 1, 3]])
    torch.testing.assert_close(got[2], without_unit[2])
    assert not torch.allclose(got[2], intact[2])


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_resuming_at_a_layer_equals_the_whole_forward(name, layer):
    model, architecture, _, inputs = setting(name)
    # The mask is made from the inputs even when resuming.
    others = {key: value if key == "attention_mask" else torch.zeros_like(value) for key, value in inputs.items()}
    with torch.no_grad():
        expected = model(**inputs).logits
        hidden = layer_input(model, architecture, layer, inputs)
        with resumed_at(model, architecture, layer, hidden):
            assert torch.equal(model(**others).logits, expected)
        assert not torch.allclose(model(**others).logits, expected)


def test_masks_are_gone_after_the_block_even_after_an_error():
    model, architecture, widths, inputs = setting("vit")
    with torch.no_grad():
        expected = model(**inputs).logits
    masks = Masks(
        residual=ones(1, widths.residual, closed=0),
        attention={0: ones(1, widths.attention, closed=1)},
        ffn={1: ones(1, widths.ffn, closed=2)},
    )

    def fail_inside():
        with masked(model, architecture, masks), resumed_at(model, architecture, 1, expected):
            raise KeyError("inside")

    with pytest.raises(KeyError):
        fail_inside()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("name", NAMES)
def test_open_masks_leave_the_answer_alone_and_give_the_gradients_by_masks(name):
    model, architecture, widths, inputs = setting(name)

    def leaf(size):
        return ones(4, size).requires_grad_()

    sizes = (("heads", widths.heads), ("attention", widths.attention), ("ffn", widths.ffn))
    masks = {axis: {layer: leaf(size) for layer in range(widths.layers)} for axis, size in sizes}
    masks |= {"residual": leaf(widths.residual), "pooled": leaf(widths.residual) if architecture.has_pooler else None}
    with masked(model, architecture, Masks(**masks)):
        expected_logits = model(**inputs).logits
    leaves = [masks["residual"], *masks["heads"].values(), *masks["attention"].values(), *masks["ffn"].values()]
    leaves += [masks["pooled"]] if architecture.has_pooler else []
    opened = OpenMasks.of(architecture, widths, 4, like=expected_logits.detach())
    with with_open_masks(model, architecture, opened):
        logits = model(**inputs).logits
    torch.testing.assert_close(logits, expected_logits, rtol=1e-9, atol=1e-9)
    for k in (0, 3):
        expected = torch.cat(torch.autograd.grad(expected_logits[:, k].sum(), leaves, retain_graph=True), dim=1)
        got = opened.gradients(logits[:, k], widths, keep_graph=True)
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)
        assert got.abs().max() > 1e-2
