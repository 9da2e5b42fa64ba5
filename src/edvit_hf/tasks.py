"""The kinds of classification an ensemble can do, and what their models are fed. Light: standard library only."""

from typing import Literal, get_args

Task = Literal["image-classification", "audio-classification", "text-classification"]

TASKS: tuple[Task, ...] = get_args(Task)

GRAPH_INPUTS: dict[Task, tuple[str, ...]] = {
    "image-classification": ("pixel_values",),
    "audio-classification": ("input_values",),
    "text-classification": ("input_ids", "attention_mask"),
}
"""What every exported sub-model is fed by task, the main input first."""

MAIN_INPUT: dict[Task, str] = {task: names[0] for task, names in GRAPH_INPUTS.items()}
"""Name of the forward's first argument: pixels (B, 3, H, W), spectrograms (B, T, F), token ids (B, T)."""

PREPROCESSING_FILE: dict[Task, str] = {
    "image-classification": "preprocessor_config.json",
    "audio-classification": "preprocessor_config.json",
    "text-classification": "tokenizer.json",
}
"""The file that says how a raw input becomes the model's: image processor, feature extractor or tokenizer."""

PROCESSOR_FILES = (
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)
"""Every file that a stock processor may consist of; those that are there travel beside each sub-model."""
