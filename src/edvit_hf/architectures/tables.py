# SPDX-License-Identifier: Apache-2.0
"""The tables of the architectures we know: ViT, DeiT, Audio Spectrogram Transformer, BERT, DistilBERT."""

from collections.abc import Callable, Mapping
from typing import Any

from edvit_hf.architectures.axes import Architecture, Axes, Config
from edvit_hf.errors import PruningError, did_you_mean

Read = Callable[[str], Any]  # config key -> value

_BASE_SIZES = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "intermediate_size": 3072}
_IMAGE_DEFAULTS = {**_BASE_SIZES, "image_size": 224, "patch_size": 16, "num_channels": 3, "qkv_bias": True}
_PATCHES = {"patch_size": 16, "qkv_bias": True, "frequency_stride": 10, "time_stride": 10}
_SPECTROGRAM_DEFAULTS = {**_PATCHES, "max_length": 1024, "num_mel_bins": 128}
_WORDS = {"vocab_size": 30522, "max_position_embeddings": 512}
# Keys that every stock config takes, whatever its architecture.
_COMMON_KEYS = frozenset({
    "model_type", "transformers_version", "architectures", "output_hidden_states", "output_attentions", "return_dict",
    "dtype", "torch_dtype", "chunk_size_feed_forward", "is_encoder_decoder", "id2label", "label2id", "num_labels",
    "problem_type", "name_or_path", "_name_or_path", "attn_implementation", "_attn_implementation", "auto_map",
})  # fmt: skip
# Config keys beyond those.
_ENCODER_KEYS = (*_BASE_SIZES, "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob",
                 "initializer_range", "layer_norm_eps")  # fmt: skip
_IMAGE_KEYS = (*_ENCODER_KEYS, "image_size", "patch_size", "num_channels", "qkv_bias", "head_dim", "encoder_stride",
               "pooler_output_size", "pooler_act")  # fmt: skip
_TEXT_KEYS = ("vocab_size", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id",
              "tie_word_embeddings")  # fmt: skip
_SPECTROGRAM_KEYS = (
    "patch_size",
    "qkv_bias",
    "head_dim",
    "frequency_stride",
    "time_stride",
    "max_length",
    "num_mel_bins",
)


def linear(path: str, out_axis: str, in_axis: str) -> dict[str, Axes]:
    """The two entries of a Linear."""
    return {f"{path}.weight": (out_axis, in_axis), f"{path}.bias": (out_axis,)}


def norm(path: str) -> dict[str, Axes]:
    """The two entries of a LayerNorm over the residual channels."""
    return {f"{path}.weight": ("residual",), f"{path}.bias": ("residual",)}


def image_sizes(special_tokens: int) -> Callable[[Read], Mapping[str, int]]:
    """Sizes of an image encoder with so many tokens in front of the patches."""

    def sizes(read: Read) -> Mapping[str, int]:
        height, width = _pair(read("image_size"))
        patch_height, patch_width = _pair(read("patch_size"))
        if height % patch_height or width % patch_width:
            raise PruningError(
                f"`image_size` {read('image_size')} is no multiple of `patch_size` {read('patch_size')}: the border "
                "would be cut off. Choose sizes that divide."
            )
        patches = (height // patch_height) * (width // patch_width)
        return {
            "one": 1,
            "channels": int(read("num_channels")),
            "patch_height": patch_height,
            "patch_width": patch_width,
            "patches": patches,
            "tokens": patches + special_tokens,
        }

    return sizes


def _spectrogram_sizes(read: Read) -> Mapping[str, int]:
    patch = int(_pair(read("patch_size"))[0])
    across = (int(read("num_mel_bins")) - patch) // int(read("frequency_stride")) + 1
    along = (int(read("max_length")) - patch) // int(read("time_stride")) + 1
    if across < 1 or along < 1:
        raise PruningError(
            f"A spectrogram of {read('max_length')} frames x {read('num_mel_bins')} bins holds no patch of {patch}. "
            "Choose a smaller `patch_size` or larger spectrograms."
        )
    return {
        "one": 1,
        "patch_height": patch,
        "patch_width": patch,
        "patches": across * along,
        "tokens": across * along + 2,
    }


def _text_sizes(read: Read) -> Mapping[str, int]:
    return {
        "words": int(read("vocab_size")),
        "positions": int(read("max_position_embeddings")),
        "types": int(read("type_vocab_size") or 0),
        "patches": 0,
        "tokens": int(read("max_position_embeddings")),
    }


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int | float):
        return int(value), int(value)
    if len(value) != 2:
        raise PruningError(f"A size of one number or of height and width is needed, got {value}. Correct the config.")
    return int(value[0]), int(value[1])


def _pre_norm_layers(path: str) -> dict[str, Axes]:
    """The layers that ViT, DeiT and AST share."""
    return {
        **norm(f"{path}.layernorm_before"),
        **linear(f"{path}.attention.q_proj", "attention", "residual"),
        **linear(f"{path}.attention.k_proj", "attention", "residual"),
        **linear(f"{path}.attention.v_proj", "attention", "residual"),
        **linear(f"{path}.attention.o_proj", "residual", "attention"),
        **norm(f"{path}.layernorm_after"),
        **linear(f"{path}.mlp.fc1", "ffn", "residual"),
        **linear(f"{path}.mlp.fc2", "residual", "ffn"),
    }


def _pre_norm_encoder(base: str, *, model_type: str, model_class: str, **options: Any) -> Architecture:
    layer, projection = f"{base}.layers.{{layer}}", f"{base}.embeddings.patch_embeddings.projection"
    tokens = ("cls_token", "distillation_token")[: options.pop("special_tokens")]
    embeddings: dict[str, Axes] = {f"{base}.embeddings.{token}": ("one", "one", "residual") for token in tokens}
    channels = options.pop("channels", "channels")
    classifier = options.setdefault("classifier", "classifier")
    return Architecture(
        model_type=model_type,
        model_class=model_class,
        parameters={
            **embeddings,
            f"{base}.embeddings.position_embeddings": ("one", "tokens", "residual"),
            f"{projection}.weight": ("residual", channels, "patch_height", "patch_width"),
            f"{projection}.bias": ("residual",),
            **_pre_norm_layers(layer),
            **norm(f"{base}.layernorm"),
            **options.pop("extra", {}),
            **linear(classifier, "label", "residual"),
        },
        layers=f"{base}.layers",
        norms=(f"{layer}.layernorm_before", f"{layer}.layernorm_after", f"{base}.layernorm", *options.pop("norms", ())),
        attention_query=f"{layer}.attention.q_proj",
        attention_key=f"{layer}.attention.k_proj",
        attention_value=f"{layer}.attention.v_proj",
        attention_output=f"{layer}.attention.o_proj",
        ffn_output=f"{layer}.mlp.fc2",
        feature_norm=f"{base}.layernorm",
        patch_projection=projection,
        head=(classifier,),
        file_names={
            f"{base}.layers.": f"{base}.encoder.layer.",
            ".attention.q_proj": ".attention.attention.query",
            ".attention.k_proj": ".attention.attention.key",
            ".attention.v_proj": ".attention.attention.value",
            ".attention.o_proj": ".attention.output.dense",
            ".mlp.fc1": ".intermediate.dense",
            ".mlp.fc2": ".output.dense",
        },
        switches={f"{layer}.attention.{part}_proj.bias": "qkv_bias" for part in "qkv"},
        honours_head_dim=True,
        **options,
    )


VIT = _pre_norm_encoder(
    "vit",
    model_type="vit",
    model_class="ViTForImageClassification",
    special_tokens=1,
    fixed_sizes=image_sizes(special_tokens=1),
    defaults=_IMAGE_DEFAULTS,
    keys=_IMAGE_KEYS,
    residual_keys=("hidden_size", "pooler_output_size"),
)

DEIT = _pre_norm_encoder(
    "deit",
    model_type="deit",
    model_class="DeiTForImageClassification",
    special_tokens=2,
    fixed_sizes=image_sizes(special_tokens=2),
    defaults=_IMAGE_DEFAULTS,
    keys=_IMAGE_KEYS,
    residual_keys=("hidden_size", "pooler_output_size"),
)

AST = _pre_norm_encoder(
    "audio_spectrogram_transformer",
    model_type="audio-spectrogram-transformer",
    model_class="ASTForAudioClassification",
    special_tokens=2,
    channels="one",  # a spectrogram
    fixed_sizes=_spectrogram_sizes,
    main_input="input_values",
    classifier="classifier.dense",
    extra=norm("classifier.layernorm"),
    norms=("classifier.layernorm",),
    feature_tokens=(0, 1),
    defaults={**_BASE_SIZES, **_SPECTROGRAM_DEFAULTS},
    keys=(*_ENCODER_KEYS, *_SPECTROGRAM_KEYS),
)

_ENCODER_ONLY = {"is_decoder": False, "add_cross_attention": False}
_BERT_LAYER = "bert.encoder.layer.{layer}"
BERT = Architecture(
    model_type="bert",
    model_class="BertForSequenceClassification",
    parameters={
        "bert.embeddings.word_embeddings.weight": ("words", "residual"),
        "bert.embeddings.position_embeddings.weight": ("positions", "residual"),
        "bert.embeddings.token_type_embeddings.weight": ("types", "residual"),
        **norm("bert.embeddings.LayerNorm"),
        **linear(f"{_BERT_LAYER}.attention.self.query", "attention", "residual"),
        **linear(f"{_BERT_LAYER}.attention.self.key", "attention", "residual"),
        **linear(f"{_BERT_LAYER}.attention.self.value", "attention", "residual"),
        **linear(f"{_BERT_LAYER}.attention.output.dense", "residual", "attention"),
        **norm(f"{_BERT_LAYER}.attention.output.LayerNorm"),
        **linear(f"{_BERT_LAYER}.intermediate.dense", "ffn", "residual"),
        **linear(f"{_BERT_LAYER}.output.dense", "residual", "ffn"),
        **norm(f"{_BERT_LAYER}.output.LayerNorm"),
        **linear("bert.pooler.dense", "pooled", "residual"),
        **linear("classifier", "label", "pooled"),
    },
    fixed_sizes=_text_sizes,
    layers="bert.encoder.layer",
    norms=("bert.embeddings.LayerNorm", f"{_BERT_LAYER}.attention.output.LayerNorm", f"{_BERT_LAYER}.output.LayerNorm"),
    attention_query=f"{_BERT_LAYER}.attention.self.query",
    attention_key=f"{_BERT_LAYER}.attention.self.key",
    attention_value=f"{_BERT_LAYER}.attention.self.value",
    attention_output=f"{_BERT_LAYER}.attention.output.dense",
    ffn_output=f"{_BERT_LAYER}.output.dense",
    classifier="classifier",
    feature_norm="bert.encoder.layer.{last}.output.LayerNorm",
    main_input="input_ids",
    has_pooler=True,
    head=("bert.pooler.dense", "classifier"),
    required=_ENCODER_ONLY,
    defaults={**_BASE_SIZES, **_WORDS, "type_vocab_size": 2, **_ENCODER_ONLY},
    keys=(*_ENCODER_KEYS, *_TEXT_KEYS, "type_vocab_size", "use_cache", "classifier_dropout", *_ENCODER_ONLY),
)

_DISTILBERT_SIZES = {"n_layers": 6, "n_heads": 12, "dim": 768, "hidden_dim": 3072}
_DISTILBERT_KEYS = ("sinusoidal_pos_embds", "dropout", "attention_dropout", "activation", "initializer_range",
                    "qa_dropout", "seq_classif_dropout")  # fmt: skip
_DISTILBERT_LAYER = "distilbert.transformer.layer.{layer}"
DISTILBERT = Architecture(
    model_type="distilbert",
    model_class="DistilBertForSequenceClassification",
    parameters={
        "distilbert.embeddings.word_embeddings.weight": ("words", "residual"),
        "distilbert.embeddings.position_embeddings.weight": ("positions", "residual"),
        **norm("distilbert.embeddings.LayerNorm"),
        **linear(f"{_DISTILBERT_LAYER}.attention.q_lin", "attention", "residual"),
        **linear(f"{_DISTILBERT_LAYER}.attention.k_lin", "attention", "residual"),
        **linear(f"{_DISTILBERT_LAYER}.attention.v_lin", "attention", "residual"),
        **linear(f"{_DISTILBERT_LAYER}.attention.out_lin", "residual", "attention"),
        **norm(f"{_DISTILBERT_LAYER}.sa_layer_norm"),
        **linear(f"{_DISTILBERT_LAYER}.ffn.lin1", "ffn", "residual"),
        **linear(f"{_DISTILBERT_LAYER}.ffn.lin2", "residual", "ffn"),
        **norm(f"{_DISTILBERT_LAYER}.output_layer_norm"),
        **linear("pre_classifier", "pooled", "residual"),
        **linear("classifier", "label", "pooled"),
    },
    fixed_sizes=_text_sizes,
    layers="distilbert.transformer.layer",
    norms=(
        "distilbert.embeddings.LayerNorm",
        f"{_DISTILBERT_LAYER}.sa_layer_norm",
        f"{_DISTILBERT_LAYER}.output_layer_norm",
    ),
    attention_query=f"{_DISTILBERT_LAYER}.attention.q_lin",
    attention_key=f"{_DISTILBERT_LAYER}.attention.k_lin",
    attention_value=f"{_DISTILBERT_LAYER}.attention.v_lin",
    attention_output=f"{_DISTILBERT_LAYER}.attention.out_lin",
    ffn_output=f"{_DISTILBERT_LAYER}.ffn.lin2",
    classifier="classifier",
    feature_norm="distilbert.transformer.layer.{last}.output_layer_norm",
    main_input="input_ids",
    has_pooler=True,
    head=("pre_classifier", "classifier"),
    defaults={**_DISTILBERT_SIZES, **_WORDS},
    keys=(*_TEXT_KEYS, *_DISTILBERT_SIZES, *_DISTILBERT_KEYS),
    residual_keys=("dim",),
    heads_key="n_heads",
    ffn_key="hidden_dim",
    layers_key="n_layers",
)

ARCHITECTURES: dict[str, Architecture] = {table.model_type: table for table in (VIT, DEIT, AST, BERT, DISTILBERT)}


def register_architecture(table: Architecture) -> None:
    """Make another architecture known to scoring, cutting and the cost model, for this process."""
    ARCHITECTURES[table.model_type] = table


def architecture_of_config(config: Config) -> Architecture:
    """Find the table for a stock config, or for a dict with its `model_type`.

    Raises:
        PruningError: If there is none.
    """
    model_type = str(config.get("model_type") if isinstance(config, Mapping) else config.model_type)
    table = ARCHITECTURES.get(model_type)
    if table is None:
        raise PruningError(
            f"No axis table for model type {model_type!r}; known: {', '.join(sorted(ARCHITECTURES))}. "
            f"Without one, nothing says which weights belong together. Use a known architecture, or add its "
            f"table: docs/guides/adding_an_architecture.md."
        )
    return table


def own_values(config: Config) -> dict[str, Any]:
    """The values of a stock config that are its model type's own: they fix every size but the number of labels.

    Raises:
        PruningError: If there is no table for the model type.
    """
    table = architecture_of_config(config)
    return {key: value for key, value in config.to_dict().items() if key in ("model_type", *table.keys)}


def check_keys(config: Mapping[str, Any], where: str) -> None:
    """Refuse a key that is none of the stock config's: the default of the key that was meant would count silently.

    A table that does not list its config's keys takes any.

    Args:
        config: A stock config as a dict with its `model_type`, as a person wrote it.
        where: Dotted path of the dict, for the message.

    Raises:
        PruningError: Names the key and the nearest that exists; or there is no table for the model type.
    """
    table = architecture_of_config(config)
    known = {*table.keys, *_COMMON_KEYS} if table.keys else set(config)
    for key in config:
        if key not in known:
            hint = did_you_mean(str(key), known, f"{where}.")
            raise PruningError(
                f"`{where}.{key}` is no key of a {table.model_type} config.{hint} The stock default of what was meant "
                f"would be planned with. Valid keys: {', '.join(table.keys)}."
            )
