# SPDX-License-Identifier: Apache-2.0
"""The small CNN: the promised size, images and spectrograms of any shape, and it learns."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from edvit_hf.evaluation import small_cnn


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("input_shape", [(3, 8, 8), (3, 28, 28), (3, 32, 64), (3, 224, 224), (98, 40), (1024, 128)])
@pytest.mark.parametrize("target", [20_000, 83_111, 1_200_000])
def test_its_size_is_that_of_the_target(input_shape, target):
    with torch.device("meta"):
        model = small_cnn(10, input_shape, target)
    # With one input channel the first width moves the number less: at 20 k, 0.3 %.
    tolerance = 0.001 if len(input_shape) == 3 else 0.003
    assert abs(num_parameters(model) - target) <= tolerance * target, num_parameters(model)


@pytest.mark.parametrize(
    ("input_shape", "last_map"),
    [
        ((3, 4, 4), (2, 2)),
        ((3, 8, 8), (4, 4)),
        ((3, 28, 28), (7, 7)),
        ((3, 32, 32), (4, 4)),
        ((3, 224, 224), (14, 14)),
        ((3, 31, 31), (8, 8)),
        ((3, 32, 64), (4, 8)),
        ((1, 16, 40), (4, 10)),
        ((98, 40), (13, 5)),
        ((4, 64), (2, 32)),
    ],
)
def test_any_shape_ends_in_a_map_of_more_than_one_value(input_shape, last_map):
    model = small_cnn(10, input_shape, 20_000).eval()
    inputs = torch.randn(2, *input_shape)
    maps = inputs if len(input_shape) == 3 else inputs[:, None]
    assert model.layers(maps).shape[-2:] == last_map
    name = "pixel_values" if len(input_shape) == 3 else "input_values"
    assert model.main_input_name == name
    assert model(**{name: inputs}).logits.shape == (2, 10)


def test_a_spectrogram_is_read_as_an_image_of_one_channel():
    heard, seen = small_cnn(4, (40, 16), 9_000, seed=0).eval(), small_cnn(4, (1, 40, 16), 9_000, seed=0).eval()
    frames = torch.randn(3, 40, 16)
    assert torch.equal(heard(input_values=frames).logits, seen(pixel_values=frames[:, None]).logits)


@pytest.mark.parametrize("inputs", [{}, {"pixel_values": 0}, {"pixel_values": 0, "input_values": 0}])
def test_the_input_of_another_task_is_refused(inputs):
    given = {name: torch.zeros(1, 40, 16) for name in inputs}
    with pytest.raises(ValueError, match="takes `input_values` alone"):
        small_cnn(4, (40, 16), 9_000)(**given)


def test_widths_grow_so_that_no_layer_is_a_bottleneck():
    model = small_cnn(10, (3, 32, 32), 200_000)
    *before, last = model.widths
    assert before == sorted(before)
    assert 0.5 * before[-1] <= last <= 1.5 * before[-1]


@pytest.mark.parametrize("name", ["pixel_values", "input_values"])
def test_it_learns_and_its_state_dict_survives_safetensors(tmp_path, name):
    shape = (3, 8, 8) if name == "pixel_values" else (16, 8)
    model = small_cnn(2, shape, 5_000, seed=0)
    inputs, labels = torch.randn(64, *shape) * 0.3, torch.arange(64) % 2
    inputs[labels == 1, ..., 2:5, 2:5] += 1.5
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = model(**{name: inputs}, labels=labels).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.1 * losses[0], losses
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = small_cnn(2, shape, 5_000)
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(again.eval()(**{name: inputs}).logits, model.eval()(**{name: inputs}).logits)


def test_its_weights_follow_the_seed_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    first, second, other = (small_cnn(3, (3, 8, 8), 4_000, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.layers[0].weight, second.layers[0].weight)
    assert not torch.equal(first.layers[0].weight, other.layers[0].weight)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, (3, 32, 32), 50), "target is 50"),
        ((1, (3, 32, 32), 10_000), "At least 2 labels"),
        ((10, (3, 3, 32), 10_000), "at least 4"),
        ((10, (3, 40), 10_000), "at least 4"),
        ((10, (32,), 10_000), r"\(frames, mel bins\)"),
        ((10, (0, 32, 32), 10_000), r"got 10 labels and \(0, 32, 32\)"),
    ],
)
def test_impossible_networks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_cnn(*arguments)
