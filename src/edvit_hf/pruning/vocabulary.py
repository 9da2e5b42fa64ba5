# SPDX-License-Identifier: Apache-2.0
"""Cut the word embedding of a text model to the pieces that its tokenizer was cut to (`edvit_hf.data.vocabulary`)."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from edvit_hf.errors import PruningError

_NUMBERED = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id")


def cut_vocabulary(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Keep some rows of the word embedding, in place: afterwards token i is what `kept[i]` was.

    Nothing else changes: what the model answers to kept tokens is equal bit for bit. The config states the new number
    of words and the new ids of its special tokens.

    Args:
        model: A stock text classifier.
        kept: (K,) ids that stay, ascending.

    Raises:
        PruningError: A model without word embeddings, ids that it does not have, or a special token of its config that
            would go.
    """
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding) or getattr(model.config, "vocab_size", None) is None:
        raise PruningError(
            f"Expected a model with word embeddings, got a {type(model).__name__}, which reads no tokens. There is no "
            "vocabulary to cut. Remove `prune.vocabulary`."
        )
    ids = [int(number) for number in kept]
    if not ids or ids != sorted(set(ids)) or ids[0] < 0 or ids[-1] >= embedding.num_embeddings:
        raise PruningError(
            f"Expected ascending ids in 0..{embedding.num_embeddings - 1} to keep, got {len(ids)} from "
            f"{min(ids, default=None)} to {max(ids, default=None)}. The tokenizer does not belong to this model. Name "
            "the checkpoint whose tokenizer it is."
        )
    places = {number: place for place, number in enumerate(ids)}
    special = {name: getattr(model.config, name, None) for name in _NUMBERED}
    lost = [name for name, number in special.items() if isinstance(number, int) and number not in places]
    if "pad_token_id" in lost:
        raise PruningError(
            f"`pad_token_id` of the model's config is {special['pad_token_id']}, which is not among the kept pieces. "
            "Shorter texts could not be filled up. Correct the config or the tokenizer, which must name one padding."
        )
    weight = embedding.weight.detach().index_select(0, torch.tensor(ids, device=embedding.weight.device))
    padding = None if embedding.padding_idx is None else places.get(int(embedding.padding_idx))
    cut = nn.Embedding(len(ids), embedding.embedding_dim, padding, _weight=weight)
    cut.weight.requires_grad_(embedding.weight.requires_grad)
    model.set_input_embeddings(cut.train(embedding.training))
    model.config.vocab_size = len(ids)
    for name, number in special.items():
        if isinstance(number, int):
            setattr(model.config, name, places.get(number))
