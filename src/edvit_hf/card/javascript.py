# SPDX-License-Identifier: Apache-2.0
"""The JavaScript of a card: the whole ensemble and one sub-model on onnxruntime-node or onnxruntime-web.

It takes the graphs with the preprocessing inside where they were exported, and otherwise shows what must be prepared.
tests/card/test_javascript.py extracts the code from rendered cards and runs it in node.
"""

import json

from edvit_hf.manifest import Manifest, Variant
from edvit_hf.tasks import Task

PACKAGES: dict[Task, tuple[str, ...]] = {
    "image-classification": ("onnxruntime-node",),
    "audio-classification": ("onnxruntime-node",),
    "text-classification": ("onnxruntime-node", "@huggingface/tokenizers"),
}
"""What node needs by task, from npm."""

_HEAD = """\
import { readFile } from "node:fs/promises"; // in a browser: fetch(url) instead
import * as ort from "onnxruntime-node"; // in a browser: "onnxruntime-web"
"""

_OPEN = """
const root = "."; // the folder of the ensemble; in a browser: its URL
const json = async (name) => JSON.parse(await readFile(`${root}/${name}`, "utf8"));
"""

_IMAGE = """
// Your picture, drawn to the size of the model: context.getImageData(0, 0, width, height).data
const { size, rescale_factor, image_mean, image_std } = await json("preprocessor_config.json");
const { width, height } = size;
const rgba = new Uint8ClampedArray(4 * width * height);

// Red, green and blue planes one after the other, normalised as in training.
const pixels = new Float32Array(3 * width * height);
for (let channel = 0; channel < 3; channel++)
  for (let i = 0; i < width * height; i++)
    pixels[channel * width * height + i] =
      (rgba[4 * i + channel] * rescale_factor - image_mean[channel]) / image_std[channel];
const inputs = [new ort.Tensor("float32", pixels, [1, 3, height, width])];
"""

_RAW_IMAGE = """
// Your picture at any size: red, green, blue of each pixel, row by row. The graph resizes and normalises.
const [width, height] = [64, 48];
const rgb = new Uint8Array(3 * width * height);
const inputs = [new ort.Tensor("uint8", rgb, [1, height, width, 3])];
"""

_AUDIO = """
// The log-mel spectrogram, frame by frame, as transformers' ASTFeatureExtractor makes it.
// To feed samples instead, export with the preprocessing inside: edvit export --with-preprocessing
const { max_length, num_mel_bins } = await json("preprocessor_config.json");
const spectrogram = new Float32Array(max_length * num_mel_bins);
const inputs = [new ort.Tensor("float32", spectrogram, [1, max_length, num_mel_bins])];
"""

_RAW_AUDIO = """
// Your sound: mono samples in -1..1 at the model's rate. The graph makes the spectrogram.
const { sampling_rate } = await json("preprocessor_config.json");
const waveform = new Float32Array(sampling_rate);
const inputs = [new ort.Tensor("float32", waveform, [1, waveform.length])];
"""

_TEXT = """
const config = await json("tokenizer_config.json");
const tokenizer = new Tokenizer(await json("tokenizer.json"), config);
let { ids } = tokenizer.encode("some text");
const limit = config.model_max_length; // longer texts are cut; the last token, [SEP], stays
if (ids.length > limit) ids = [...ids.slice(0, limit - 1), ids.at(-1)];
const int64 = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
const inputs = [int64(ids), int64(ids.map(() => 1))]; // token ids and attention mask
"""

_RUN = """
async function classify(file, names) {
  const session = await ort.InferenceSession.create(`${root}/${file}`);
  const feeds = Object.fromEntries(inputs.map((tensor, i) => [session.inputNames[i], tensor]));
  const { logits } = await session.run(feeds);
  const largest = Math.max(...logits.data);
  const powers = Array.from(logits.data, (logit) => Math.exp(logit - largest)); // softmax: the largest becomes 1
  return { label: names[powers.indexOf(1)], probability: 1 / powers.reduce((sum, power) => sum + power) };
}
"""

_WHOLE = """
const { label_names } = await json("manifest.json");
console.log("ensemble", await classify(%s, label_names));
"""

_SUB_MODEL = """
// One sub-model answers by itself: %s.
const { id2label } = await json("%s/config.json");
console.log("sub-model %d", await classify(%s, Object.values(id2label)));
"""

_INPUTS: dict[Task, dict[str, str]] = {
    "image-classification": {"prepared": _IMAGE, "raw": _RAW_IMAGE},
    "audio-classification": {"prepared": _AUDIO, "raw": _RAW_AUDIO},
    "text-classification": {"prepared": _TEXT, "raw": _TEXT},
}


def javascript(task: Task, manifest: Manifest | None, index: int) -> str:
    """The code: one input, the whole ensemble where it is one graph, and sub-model `index`.

    Args:
        task: What the ensemble classifies.
        manifest: What was exported. Without one, the usual names.
        index: The sub-model to show.
    """
    kind, sub_model, whole = _files(manifest, index)
    folder = f"sub_models/{index:02d}"
    head = _HEAD + ('import { Tokenizer } from "@huggingface/tokenizers";\n' if task == "text-classification" else "")
    parts = [head, _OPEN, _INPUTS[task][kind], _RUN]
    if whole:
        parts.append(_WHOLE % json.dumps(whole))
    knows_all = manifest is not None and len(manifest.class_groups[index]) == len(manifest.label_names)
    labels = "any class" if knows_all else 'one of its own classes, or "other"'
    parts.append(_SUB_MODEL % (labels, folder, index, json.dumps(sub_model)))
    return "".join(parts).strip()


def whole_graph(manifest: Manifest | None) -> str | None:
    """The file of the whole ensemble that the code runs; None where none was exported."""
    return _files(manifest, 0)[2]


def _files(manifest: Manifest | None, index: int) -> tuple[str, str, str | None]:
    """Kind of input, the sub-model's fp32 file and the whole ensemble's, both of that kind.

    Raw where the sub-model has it and the whole graph, if there is one, has it too: one input feeds both.
    """
    if manifest is None:
        return "prepared", f"sub_models/{index:02d}/onnx/model.onnx", None
    own, whole = manifest.sub_models[index].variants, manifest.whole
    for kind in ("raw", "prepared"):
        file, together = _fp32(own, kind), _fp32(whole, kind)
        if file and (together or not whole):
            return kind, file, together
    return "prepared", _fp32(own, "prepared") or own[0].file, None


def _fp32(variants: list[Variant], inputs: str) -> str | None:
    return next((v.file for v in variants if (v.precision, v.inputs) == ("fp32", inputs)), None)
