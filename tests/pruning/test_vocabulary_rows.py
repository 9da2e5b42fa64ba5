# SPDX-License-Identifier: Apache-2.0
"""A word embedding that is cut answers to kept pieces bit for bit as before."""

import copy

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from edvit_hf.errors import PruningError
from edvit_hf.pruning import architecture_of
from edvit_hf.pruning.vocabulary import cut_vocabulary

BERT = BertConfig(
    **{"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32},
    **{"vocab_size": 50, "max_position_embeddings": 12, "num_labels": 3, "pad_token_id": 4, "initializer_range": 0.3},
)
DISTILBERT = DistilBertConfig(
    **{"dim": 16, "n_heads": 2, "n_layers": 1, "hidden_dim": 32, "vocab_size": 50, "max_position_embeddings": 12},
    **{"num_labels": 3, "pad_token_id": 4, "initializer_range": 0.3},
)
MODELS = {"bert": BertForSequenceClassification(BERT), "distilbert": DistilBertForSequenceClassification(DISTILBERT)}


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_kept_pieces_are_equal_bit_for_bit_and_the_saved_model_too(name, tmp_path):
    model = MODELS[name].eval()
    kept = [1, 4, 5, 9, 20, 33, 49]
    cut = copy.deepcopy(model)
    cut_vocabulary(cut, kept)
    new = torch.tensor([[0, 2, 3, 6, 5], [4, 4, 0, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    old = torch.tensor(kept)[new]
    with torch.inference_mode():
        expected = model(input_ids=old, attention_mask=mask).logits
        assert torch.equal(cut(input_ids=new, attention_mask=mask).logits, expected)
        cut.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path).eval()
        assert torch.equal(loaded(input_ids=new, attention_mask=mask).logits, expected)
    assert (loaded.config.vocab_size, loaded.config.pad_token_id) == (7, 1)
    assert loaded.get_input_embeddings().padding_idx == 1
    assert model.config.vocab_size == 50
    architecture_of(loaded)  # its table describes it still, so it can be cut further


def test_ids_that_are_not_the_models_are_refused():
    model = copy.deepcopy(MODELS["bert"])
    for kept in ([], [3, 2], [1, 1], [-1, 4], [4, 50]):
        with pytest.raises(PruningError, match=r"ascending ids in 0\.\.49"):
            cut_vocabulary(model, kept)
    with pytest.raises(PruningError, match="`pad_token_id` of the model's config is 4"):
        cut_vocabulary(model, [1, 2])
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    picture = ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4))
    with pytest.raises(PruningError, match="which reads no tokens"):
        cut_vocabulary(picture, [0])
    assert model.config.vocab_size == 50
