"""The small CNN: the promised size, any image size, and it learns."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from edvit_hf.baselines import small_cnn


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("image_size", [8, 28, 32, 64, 224])
@pytest.mark.parametrize("target", [20_000, 83_111, 1_200_000])
def test_its_size_is_within_a_thousandth_of_the_target(image_size, target):
    with torch.device("meta"):
        model = small_cnn(10, image_size, target)
    assert abs(num_parameters(model) - target) <= 0.001 * target, num_parameters(model)


@pytest.mark.parametrize(("image_size", "side"), [(4, 2), (8, 4), (28, 7), (32, 4), (224, 14), (31, 8)])
def test_any_image_size_ends_in_a_map_of_more_than_one_pixel(image_size, side):
    model = small_cnn(10, image_size, 20_000).eval()
    images = torch.randn(2, 3, image_size, image_size)
    assert model.layers(images).shape[-2:] == (side, side)
    assert model(pixel_values=images).logits.shape == (2, 10)


def test_widths_grow_so_that_no_layer_is_a_bottleneck():
    model = small_cnn(10, 32, 200_000)
    *before, last = model.widths
    assert before == sorted(before)
    assert 0.5 * before[-1] <= last <= 1.5 * before[-1]


def test_it_learns_and_its_state_dict_survives_safetensors(tmp_path):
    model = small_cnn(2, 8, 5_000, seed=0)
    images, labels = torch.randn(64, 3, 8, 8) * 0.3, torch.arange(64) % 2
    images[labels == 1, 0, 2:5, 2:5] += 1.5
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = model(pixel_values=images, labels=labels).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.1 * losses[0], losses
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = small_cnn(2, 8, 5_000)
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(again.eval()(images).logits, model.eval()(images).logits)


def test_its_weights_follow_the_seed_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    first, second, other = (small_cnn(3, 8, 4_000, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.layers[0].weight, second.layers[0].weight)
    assert not torch.equal(first.layers[0].weight, other.layers[0].weight)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 32, 50), "target is 50"),
        ((1, 32, 10_000), "at least 2 labels"),
        ((10, 3, 10_000), "at least 4 px"),
    ],
)
def test_impossible_networks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_cnn(*arguments)
