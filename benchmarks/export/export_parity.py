# SPDX-License-Identifier: Apache-2.0
"""Measure how far fp32 ONNX graphs are from torch: five architectures, three kinds of input, all batch sizes, lengths.

    python benchmarks/export/export_parity.py

Sub-models of the size that three of twelve heads of a Base model leave (192 wide, 12 layers), with random weights that
keep the signal's scale from layer to layer, and ensembles of two: ViT with DeiT, two ASTs (256 frames), BERT with
DistilBERT. Every graph, each sub-model's and the whole ensemble's, answers in batches of 1, 2 and 5, texts at two
lengths with padding. It is held against torch's stock interface on ten inputs: the largest difference over the largest
value, of features and logits alike, and the answers, which must be the same unless torch's two best labels are closer
than that. The graphs with the preprocessing inside are measured too, against the numpy transforms: there a pixel may be
a grey level apart, so the goal is not theirs. Writes results/export_parity.json.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import CONFIG_MAPPING, PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import command_line, write_results

from edvit_hf.auto import ensemble_class
from edvit_hf.configuration_edvit import NUM_FEATURE_TOKENS, TASK_OF
from edvit_hf.errors import ExportGateError
from edvit_hf.export.gates import GraphSession, check_parity, measure_parity
from edvit_hf.export.graphs.derived import join_graphs
from edvit_hf.export.graphs.draw import FusionGraph, draw_graph, draw_sub_model, save_graph
from edvit_hf.export.graphs.preprocessing import check_raw_graph, prepend_preprocessing
from edvit_hf.export.optimum_config import FUSION_MODEL_TYPE, resolve_onnx_config, task_of
from edvit_hf.modeling_edvit import EDViTPreTrainedModel
from edvit_hf.parts_edvit import STOCK_AUTO_CLASSES
from edvit_hf.transforms import AudioTransform, ImageTransform, Transform

GOAL, OPSET = 1e-4, 20
BATCHES, ITEMS = (1, 2, 5), 10
CLASSES_PER_GROUP = 5
AST, TEXT = "audio-spectrogram-transformer", ("bert", "distilbert")
ENSEMBLES = (("vit", "deit"), (AST, AST), TEXT)
WIDTHS = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "num_hidden_layers": 12}
SIZES = {
    "vit": {"image_size": 224},
    "deit": {"image_size": 224},
    AST: {"max_length": 256},
    "bert": {},
    "distilbert": {},
}
TINY = {"vit": {"image_size": 32}, "deit": {"image_size": 32}, AST: {"max_length": 60}, "bert": {}, "distilbert": {}}
LENGTHS = (128, 16)  # tokens
SPREAD = 0.02  # of biases, and of LayerNorm's weights around one


def stock_model(name: str, seed: int, *, tiny: bool) -> PreTrainedModel:
    """A stock classifier whose random weights keep the signal's scale: logits of order one, answers that vary."""
    values = {**WIDTHS, **({"num_hidden_layers": 2} if tiny else {}), **(TINY if tiny else SIZES)[name]}
    if name == "distilbert":
        names = {"hidden_size": "dim", "num_attention_heads": "n_heads", "intermediate_size": "hidden_dim"}
        names["num_hidden_layers"] = "n_layers"
        values = {names.get(key, key): value for key, value in values.items()}
    config = CONFIG_MAPPING[name](**values, num_labels=CLASSES_PER_GROUP + 1, architectures=[])
    model = STOCK_AUTO_CLASSES[TASK_OF[name]].from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for key, parameter in module.named_parameters(recurse=False):
                is_norm = isinstance(module, torch.nn.LayerNorm)
                is_map = parameter.ndim > 1 and isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
                std = parameter[0].numel() ** -0.5 if is_map else 1.0 if parameter.ndim > 1 else SPREAD
                parameter.normal_(float(is_norm and key == "weight"), std, generator=generator)
        # Around the mean vote, so that small differences in the input decide.
        head = [module for module in model.classifier.modules() if isinstance(module, torch.nn.Linear)][-1]
        head.bias.sub_(model(**make_inputs(model, ITEMS, LENGTHS[0], seed + 2000)).logits.mean(dim=0))
    return model


def build_ensemble(sub_models: list[PreTrainedModel], seed: int) -> EDViTPreTrainedModel:
    """An ensemble of these, whose fusion head knows its features' mean and deviation."""
    torch.manual_seed(seed)
    groups = np.arange(CLASSES_PER_GROUP * len(sub_models)).reshape(len(sub_models), -1).tolist()
    task = task_of(sub_models[0].config)
    model = ensemble_class(task).from_sub_models(sub_models, groups)
    with torch.no_grad():
        features = model.features(**make_inputs(model, 2 * ITEMS, LENGTHS[0], seed + 1000))
    model.fusion.set_feature_statistics(features.mean(dim=0), features.std(dim=0))
    return model


def make_inputs(model: PreTrainedModel, items: int, tokens: int, seed: int) -> dict[str, torch.Tensor]:
    """Random inputs as the forward takes them; every text has another number of tokens."""
    config, generator = model.config, torch.Generator().manual_seed(seed)
    task = task_of(config)
    if task == "text-classification":
        lengths = torch.randint(2, tokens + 1, (items, 1), generator=generator)
        mask = (torch.arange(tokens) < lengths).long()
        tokens_of_all = torch.randint(1, config.vocab_size, mask.shape, generator=generator) * mask
        return {"input_ids": tokens_of_all, "attention_mask": mask}
    if task == "audio-classification":
        frames = config.num_frames if config.model_type == "edvit" else config.max_length
        return {"input_values": torch.randn(items, frames, config.num_mel_bins, generator=generator)}
    return {"pixel_values": torch.randn(items, 3, config.image_size, config.image_size, generator=generator)}


@torch.no_grad()
def ask_torch(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """What the graph should answer, asked through the stock interface."""
    logits = {"logits": model(**inputs).logits.numpy()}
    if model.config.model_type == "edvit":
        return logits
    hidden = model.base_model(**inputs).last_hidden_state
    return {"features": hidden[:, : NUM_FEATURE_TOKENS[model.config.model_type]].mean(dim=1).numpy(), **logits}


def rows_of(model: PreTrainedModel, path: Path, seed: int) -> Iterator[dict[str, Any]]:
    """One row per length and batch size."""
    session, onnx_config = GraphSession(path), resolve_onnx_config(model.config)
    is_text = onnx_config.modality == "text-classification"
    for tokens in LENGTHS if is_text else LENGTHS[:1]:
        inputs = make_inputs(model, ITEMS, tokens, seed)
        reference = ask_torch(model, inputs)
        for batch in BATCHES:
            parts = [
                session(**{k: v[i : i + batch].numpy() for k, v in inputs.items()}) for i in range(0, ITEMS, batch)
            ]
            got = {key: np.concatenate([part[key] for part in parts]) for key in reference}
            parity = measure_parity(reference, got, what=path.name)
            try:
                check_parity(parity, reference, got, tolerance=GOAL, atol=0.0, what=path.name)
                is_within_goal = True
            except ExportGateError:
                is_within_goal = False
            yield {
                "tokens": tokens if is_text else None,
                "batch": batch,
                "items": ITEMS,
                "largest_logit": round(float(np.abs(reference["logits"]).max()), 4),
                "answers": len(set(reference["logits"].argmax(axis=1).tolist())),
                **figures_of(parity),
                "is_within_goal": is_within_goal,
            }


def figures_of(parity: Any) -> dict[str, float]:
    """What a row says of a parity."""
    relative = parity.relative_to_largest_logit
    return {"max_abs": parity.max_abs, "relative": relative, "argmax_agreement": parity.argmax_agreement}


def transform_of(model: PreTrainedModel) -> Transform | None:
    """What prepares a sub-model's inputs, DeiT's by the bicubic filter as it was published; None for texts."""
    config = model.config
    if config.model_type in TEXT:
        return None
    if config.model_type == AST:
        return AudioTransform(num_mel_bins=config.num_mel_bins, max_length=config.max_length)
    size = (config.image_size, config.image_size)
    return ImageTransform(size=size, resample=3 if config.model_type == "deit" else 2)


def measure(
    names: tuple[str, ...], seed: int, folder: Path, bar: Any, *, tiny: bool
) -> dict[str, list[dict[str, Any]]]:
    """All rows of one ensemble: its sub-models', its own, and those of raw inputs."""
    sub_models = [stock_model(name, 100 * seed + i, tiny=tiny) for i, name in enumerate(names)]
    ensemble = build_ensemble(sub_models, seed)
    found: dict[str, list[dict[str, Any]]] = {"rows": [], "raw": []}
    files = [folder / f"model_{index}.onnx" for index in range(len(names))]
    for index, (name, sub_model, file) in enumerate(zip(names, sub_models, files, strict=True)):
        graph = draw_sub_model(sub_model, resolve_onnx_config(sub_model.config), opset=OPSET)
        save_graph(graph, file)
        if name in names[:index]:  # one of each architecture is measured by itself
            continue
        about = {"graph": "sub-model", "architectures": [name], "seed": seed}
        found["rows"] += [about | row for row in rows_of(sub_model, file, seed)]
        if (transform := transform_of(sub_model)) is not None:
            save_graph(prepend_preprocessing(graph, transform), folder / "raw.onnx")
            parity = check_raw_graph(folder / "raw.onnx", file, transform, what=name, seed=seed)
            found["raw"].append({**about, **figures_of(parity), "items": parity.num_items})
        bar.update()
    fusion_config = resolve_onnx_config(ensemble.config, model_type=FUSION_MODEL_TYPE)
    save_graph(draw_graph(FusionGraph(ensemble.fusion).eval(), fusion_config, opset=OPSET), folder / "fusion.onnx")
    whole = join_graphs(files, folder / "fusion.onnx", resolve_onnx_config(ensemble.config))
    save_graph(whole, folder / "whole.onnx")
    about = {"graph": "whole ensemble", "architectures": list(names), "seed": seed}
    found["rows"] += [about | row for row in rows_of(ensemble, folder / "whole.onnx", seed)]
    bar.update()
    return found


def summarise(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The worst of every graph over batches, lengths and seeds."""
    worst: dict[tuple[Any, ...], dict[str, Any]] = {}
    for kind, rows in found.items():
        for row in rows:
            key = (kind, row["graph"], *row["architectures"])
            about = {
                "inputs": "raw" if kind == "raw" else "prepared",
                **{k: row[k] for k in ("graph", "architectures")},
            }
            old = worst.setdefault(key, {**about, "relative": 0.0, "argmax_agreement": 1.0})
            old["relative"] = max(old["relative"], row["relative"])
            old["argmax_agreement"] = min(old["argmax_agreement"], row["argmax_agreement"])
            if kind == "rows":
                old["is_within_goal"] = old.get("is_within_goal", True) and row["is_within_goal"]
    return list(worst.values())


def main() -> None:
    """Measure and write."""
    add, parse = command_line(__doc__)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of weights and inputs")
    add("--threads", type=int, default=1, help="of torch")
    add("--tiny", action="store_true", help="two layers and small inputs, to try the script")
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    found: dict[str, list[dict[str, Any]]] = {"rows": [], "raw": []}
    num_graphs = len(arguments.seeds) * sum(len(set(names)) + 1 for names in ENSEMBLES)
    with tempfile.TemporaryDirectory() as folder, tqdm(total=num_graphs, unit="graph") as bar:
        for seed in arguments.seeds:
            for names in ENSEMBLES:
                for kind, rows in measure(names, seed, Path(folder), bar, tiny=arguments.tiny).items():
                    found[kind] += rows
    results = {"goal": GOAL, "opset": OPSET, "torch_threads": arguments.threads, "summary": summarise(found), **found}
    write_results(__file__, arguments, results, "seeds", "threads", "tiny")
    for row in results["summary"]:
        verdict = {True: "within", False: "MISSED", None: "no goal"}[row.get("is_within_goal")]
        print(
            f"{row['inputs']:9} {row['graph']:15} {'+'.join(row['architectures']):60} {row['relative']:.1e} {verdict}"
        )


if __name__ == "__main__":
    main()
