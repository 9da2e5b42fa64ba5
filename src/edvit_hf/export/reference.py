# SPDX-License-Identifier: Apache-2.0
"""What exported files are held against: inputs that an ensemble takes (or random ones) and torch's answers."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from edvit_hf.configuration_edvit import EDViTConfig
from edvit_hf.errors import DataError
from edvit_hf.export.gates import MIN_ITEMS, Arrays, as_feeds
from edvit_hf.export.optimum_config import INPUT_AXES, task_of
from edvit_hf.modeling_edvit import EDViTPreTrainedModel
from edvit_hf.tasks import MAIN_INPUT

_RANDOM_TOKENS = 32
_BATCH = 64
_TEXT = "text-classification"


def input_shape(config: EDViTConfig) -> tuple[int, ...]:
    """Shape of one input: (channels, height, width), (frames, mel bins), or of a text the most tokens it may have."""
    task = task_of(config)
    if task == "image-classification":
        size = config.image_size
        return (config.num_channels, *((size, size) if isinstance(size, int) else size))
    if task == "audio-classification":
        return (config.num_frames, config.num_mel_bins)
    return (config.max_position_embeddings,)


def check_inputs(config: EDViTConfig, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs as graphs take them, repeated up to the number of items that parity needs.

    Raises:
        DataError: If a name, shape or type is not what the ensemble takes.
    """
    task, one = task_of(config), input_shape(config)
    main, names, is_text = MAIN_INPUT[task], tuple(INPUT_AXES[task]), task == _TEXT
    shape = inputs[main].shape if main in inputs else ()
    fits = len(shape) == 2 and 1 <= shape[1] <= one[0] if is_text else shape[1:] == one
    same = all(values.shape == shape and (values.dtype.kind in "iub") == is_text for values in inputs.values())
    if set(inputs) != set(names) or not fits or not shape[0] or not same:
        sizes = f"up to {one[0]} tokens" if is_text else ", ".join(map(str, one))
        got = {name: f"{values.shape} {values.dtype}" for name, values in inputs.items()}
        raise DataError(
            f"Expected {' and '.join(names)} of shape (N, {sizes}) with N >= 1, got {got}. "
            "Parity must be measured on inputs the ensemble takes. Prepare them with the ensemble's own transform."
        )
    num_items = max(shape[0], MIN_ITEMS)
    rows = np.arange(num_items) % shape[0]
    return as_feeds({name: inputs[name][rows] for name in names})


def random_inputs(config: EDViTConfig, num_items: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Seeded random inputs: standard normal like normalised pixels and spectrograms, or token ids of many lengths."""
    rng, main = np.random.default_rng(seed), MAIN_INPUT[task_of(config)]
    if task_of(config) != _TEXT:
        return {main: rng.standard_normal((num_items, *input_shape(config)), dtype=np.float32)}
    num_tokens = min(_RANDOM_TOKENS, config.max_position_embeddings)
    lengths = rng.integers(1, num_tokens, num_items, endpoint=True)
    mask = (np.arange(num_tokens) < lengths[:, None]).astype(np.int64)
    return {main: rng.integers(0, config.vocab_size, mask.shape) * mask, "attention_mask": mask}


def parity_rounds(inputs: Arrays) -> list[Arrays]:
    """The inputs that parity is measured on: as they are and, of texts, cut to half their length as well.

    A graph that froze its number of tokens shows only at another one.
    """
    if "input_ids" not in inputs:
        return [inputs]
    num_tokens = inputs["input_ids"].shape[1]
    return [inputs, {name: values[:, : (num_tokens + 1) // 2] for name, values in inputs.items()}]


@dataclass(frozen=True, kw_only=True)
class TorchReference:
    """What torch answers for all items of all rounds: features (N, d'), votes, and logits (N, L) by who is absent."""

    rounds: list[Arrays]
    features: list[np.ndarray]
    votes: list[np.ndarray]
    logits: dict[tuple[int, ...], np.ndarray]


@torch.no_grad()
def run_torch(model: EDViTPreTrainedModel, inputs: Arrays) -> TorchReference:
    """Run the ensemble with everybody present and with each sub-model absent (unless it is the only one).

    Sub-models are asked through their stock interface, so that an error in what we trace cannot hide.
    """
    num_sub_models, rounds = model.config.num_sub_models, parity_rounds(inputs)
    batches = [batch for each in rounds for batch in _tensor_batches(each)]
    votes = [torch.cat([sub_model(**b).logits for b in batches]).numpy() for sub_model in model.sub_models]
    features = torch.cat([model.features(**b) for b in batches])
    side_by_side = torch.from_numpy(np.concatenate(votes, axis=1))
    logits: dict[tuple[int, ...], np.ndarray] = {(): torch.cat([model(**b).logits for b in batches]).numpy()}
    for absent in range(num_sub_models) if num_sub_models > 1 else ():
        mask = torch.tensor([i != absent for i in range(num_sub_models)]).expand(len(features), -1)
        logits[(absent,)] = model.fusion(features, side_by_side, mask).numpy()
    parts = [part.numpy() for part in features.split(model.config.feature_sizes, dim=1)]
    return TorchReference(rounds=rounds, features=parts, votes=votes, logits=logits)


def _tensor_batches(inputs: Arrays) -> list[dict[str, torch.Tensor]]:
    tensors = {name: torch.from_numpy(values) for name, values in as_feeds(inputs).items()}
    parts = {name: values.split(_BATCH) for name, values in tensors.items()}
    return [dict(zip(parts, batch, strict=True)) for batch in zip(*parts.values(), strict=True)]
