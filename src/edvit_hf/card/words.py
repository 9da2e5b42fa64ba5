# SPDX-License-Identifier: Apache-2.0
"""What a model card says by task, architecture and dataset, and how a recipe made the sub-models."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edvit_hf.card.markup import NOT_RECORDED, code, markdown_table, plain
from edvit_hf.tasks import Task


@dataclass(frozen=True)
class TaskWords:
    """What the card's text and code blocks need for one task.

    Attributes:
        auto_class: Stock class that loads one sub-model.
        ensemble_class: Class of the whole ensemble.
        call: How the pipeline is called, as a comment.
        device_imports: First lines of the device snippet.
        example: Assignment of an input in the device snippet, with what else it may be.
        name: Variable of that input.
        unmeasured: Sentence of the limits: inputs the figures say nothing about.
        architecture: Teacher, where the recipe does not name its type.
    """

    auto_class: str
    ensemble_class: str
    call: str
    device_imports: str
    example: str
    name: str
    unmeasured: str
    architecture: str


TASK_WORDS: dict[Task, TaskWords] = {
    "image-classification": TaskWords(
        auto_class="AutoModelForImageClassification",
        ensemble_class="EDViTForImageClassification",
        call='classifier("photo.png")',
        device_imports="import numpy as np\n",
        example="image = np.zeros((64, 64, 3), dtype=np.uint8)  # or a path, bytes, a PIL image",
        name="image",
        unmeasured="Images of another origin, light or framing were not measured.",
        architecture="Vision Transformer",
    ),
    "audio-classification": TaskWords(
        auto_class="AutoModelForAudioClassification",
        ensemble_class="EDViTForAudioClassification",
        call='classifier({"raw": mono_floats, "sampling_rate": 16000}); a file name needs ffmpeg',
        device_imports="import numpy as np\n",
        example="sound = (np.zeros(16000, dtype=np.float32), 16000)  # or the path or bytes of a sound file",
        name="sound",
        unmeasured=(
            "Recordings of other speakers or sources, microphones, rooms or noise were not measured. What lies beyond "
            "the length the model was trained on is cut off."
        ),
        architecture="Audio Spectrogram Transformer",
    ),
    "text-classification": TaskWords(
        auto_class="AutoModelForSequenceClassification",
        ensemble_class="EDViTForSequenceClassification",
        call='classifier("some text", truncation=True)',
        device_imports="",
        example='text = "some text"',
        name="text",
        unmeasured=(
            "Texts of another origin, style or language were not measured. What lies beyond the length the model was "
            "trained on is cut off."
        ),
        architecture="BERT-like",
    ),
}

ARCHITECTURES: Mapping[str, str] = {
    "vit": "Vision Transformer",
    "deit": "DeiT",
    "audio-spectrogram-transformer": "Audio Spectrogram Transformer",
    "bert": "BERT",
    "distilbert": "DistilBERT",
}


def architecture(task: Task, recipe: Mapping[str, Any]) -> str:
    """Readable name of the teacher's architecture, from the recipe's teacher section; by task where it says none."""
    teacher = recipe.get("teacher") or {}
    values = (teacher.get("from_scratch") or teacher.get("config") or {}) if isinstance(teacher, Mapping) else {}
    model_type = values.get("model_type")
    return ARCHITECTURES.get(str(model_type), plain(model_type)) if model_type else TASK_WORDS[task].architecture


_SCORES = {
    "kl": "exact change of the answers (KL divergence) without the unit",
    "fisher": "change of the answers to second order (Fisher information)",
    "linear": "change of the answers predicted to first order",
    "hybrid": "exact KL divergence for residual channels and heads, Fisher information for FFN units",
    "taylor": "first-order change of the loss",
    "magnitude": "size of the weights",
    "apoz": "share of zero activations",
    "hsic": "dependence of activations and labels (HSIC)",
    "random": "none, drawn at random",
}
_ATTENTION = {
    "whole": "whole heads stay or go",
    "thin": "every head stays, with fewer dimensions",
    "merged": "each new head is made of the best dimensions of several old ones",
}
_OBJECTIVES = {
    "kd": "soft answers of the teacher on the class group and the pooled `other` (KD)",
    "none": "labels alone, no distillation",
}


def making_table(recipe: Mapping[str, Any]) -> str:
    """Score, attention, compensation, distillation and fusion that made the sub-models, from the recipe's values."""
    split, prune, distill, fuse = (recipe.get(name) or {} for name in ("split", "prune", "distill", "fuse"))
    lines = [
        ["class groups", _groups(split)],
        ["pruning score", _named(prune.get("importance"), _SCORES)],
        ["attention", _named(prune.get("attention"), _ATTENTION)],
        ["compensation after pruning", _compensation(prune)],
        ["distillation objective", _objective(distill)],
        ["fusion", _fusion(fuse)],
    ]
    vocabulary = prune.get("vocabulary")
    if vocabulary is not None:
        kept = "all that occur" if vocabulary == "seen" else f"the {vocabulary:,} most frequent"
        lines.insert(4, ["vocabulary", f"{kept} in the training texts, and what every other text is spelt with"])
    entries = prune.get("from_scratch") or []
    if entries:
        new = ", ".join(f"{i} ({code(entry['model_type'])})" for i, entry in enumerate(entries) if entry)
        lines.insert(1, ["not cut from the teacher", f"built from scratch: sub-models {new}"])
    return markdown_table(["step", "how"], lines)


def _named(value: Any, meanings: Mapping[str, str]) -> str:
    return NOT_RECORDED if value is None else f"{code(value)}: {meanings.get(str(value), 'see the recipe')}"


def _groups(split: Mapping[str, Any]) -> str:
    strategy = split.get("strategy")
    if strategy is None:
        return NOT_RECORDED
    if strategy != "similarity":
        return code(strategy)
    return f"{code(strategy)}, direction {code(split.get('similarity') or NOT_RECORDED)}"


def _compensation(prune: Mapping[str, Any]) -> str:
    rounds = prune.get("rounds") or 1
    after = f"; pruned in {rounds} rounds with retraining between" if rounds > 1 else ""
    if prune.get("compensate") is None:
        return NOT_RECORDED + after
    if not prune["compensate"]:
        return f"none{after}"
    items = prune.get("compensation_samples")
    fitted = f" on up to {items:,} training items" if items else ""
    return f"least-squares refit of what stayed{fitted}{after}"


def _objective(distill: Mapping[str, Any]) -> str:
    objective = distill.get("objective")
    if objective != "dekd":
        return _named(objective, _OBJECTIVES)
    answers = "hard" if distill.get("hard", True) else "soft"
    return f"`dekd`: {answers} answers of the teacher, and its relations of queries, keys and values"


def _fusion(fuse: Mapping[str, Any]) -> str:
    joint, kind = fuse.get("joint"), fuse.get("kind") or "mlp"
    if joint is None:
        return NOT_RECORDED
    if kind != "mlp":
        return _averaged(kind, fuse, is_joint=bool(joint))
    if not joint:
        return "frozen: the fusion head was trained on the features of finished sub-models"
    epochs = fuse.get("joint_epochs")
    length = f" for {epochs} epoch{'' if epochs == 1 else 's'}" if epochs else ""
    return f"joint: after the fusion head, sub-models and head were tuned together, end to end{length}"


def _averaged(kind: str, fuse: Mapping[str, Any], *, is_joint: bool) -> str:
    """How votes are averaged, and what was trained for it."""
    spread = ", `other` spread evenly over the classes of other groups" if fuse.get("other") == "spread" else ""
    said = f"{code(kind)}: log-probabilities of the votes averaged, each at a temperature fitted on validation{spread}"
    if kind == "residual":
        said += "; a head on the features corrects the average as far as validation gains by it"
    return f"{said}; the sub-models were tuned for it together, end to end" if is_joint else said


@dataclass(frozen=True)
class KnownData:
    """What a card says of a dataset: readable name, and license, origin and known limits in words."""

    name: str
    license: str


_MNIST = KnownData(
    "MNIST", "Its authors, Y. LeCun and C. Cortes, state no licence with the files; redistributors name CC BY-SA 3.0."
)
_CIFAR10 = KnownData(
    "CIFAR-10",
    "A. Krizhevsky, 2009. Its author states no licence and asks to be cited. A recipe may read a local copy of JPEG "
    "files instead of the lossless original; accuracies can then differ.",
)
_SPEECH_COMMANDS = KnownData("Speech Commands v0.02", "CC BY 4.0, P. Warden, arXiv 1804.03209.")

KNOWN_DATA: Mapping[str, KnownData] = {
    "digits": KnownData(
        "UCI optical handwritten digits, as shipped in scikit-learn",
        "CC BY 4.0, E. Alpaydin and C. Kaynak, https://doi.org/10.24432/C50P49. 1,797 images of 8 by 8 pixels: the "
        "part that UCI calls test, written by 13 people. It is split at random, so the same writers are in training "
        "and test: the accuracy is optimistic for a new writer.",
    ),
    "mnist": _MNIST,
    "ylecun/mnist": _MNIST,
    "cifar10": _CIFAR10,
    "uoft-cs/cifar10": _CIFAR10,
    "google/speech_commands": _SPEECH_COMMANDS,
    "speech_commands12": KnownData(
        "Speech Commands v0.02, 12 classes, a subset of its test set",
        f"{_SPEECH_COMMANDS.license} Training and test items both come from the official 12-class test set, 300 clips "
        "a class, divided by speaker: accuracies are not comparable with published ones.",
    ),
    "fsdd": KnownData(
        "Free Spoken Digit Dataset, five of its six speakers",
        "CC BY-SA 4.0, Z. Jackson and others, https://github.com/Jakobovski/free-spoken-digit-dataset. The same "
        "speakers are in training and test: the accuracy is optimistic for a new speaker.",
    ),
    "esc10": KnownData(
        "ESC-10 environmental sounds",
        "CC BY 3.0 as a whole, K. J. Piczak, 2015, https://github.com/karolpiczak/ESC-10 (most clips CC0 or CC BY, two "
        "CC Sampling+; its README credits each). 400 clips in five folds: a test of one fold has 80. The clips were "
        "reduced to 16 kHz.",
    ),
    "caltech101": KnownData(
        "Caltech-101, a subset of at most 60 images a class",
        "L. Fei-Fei, R. Fergus and P. Perona, 2004. The copy states no licence; the record at Caltech "
        "(https://doi.org/10.22002/D1.20086) is listed elsewhere as CC BY 4.0, which was not checked. There is no "
        "official split, and the images were scaled down to a short side of 112 px.",
    ),
    "newsgroups20": KnownData(
        "20 Newsgroups, version sorted by date",
        "K. Lang, 1995. No licence is stated; the messages are by their writers. Copies differ in whether headers, "
        "quotes and signatures are in the texts; with them the accuracy is optimistic for message bodies alone.",
    ),
    "sst2": KnownData(
        "Stanford Sentiment Treebank, two classes, whole sentences",
        "R. Socher and others, 2013. No licence is stated. Two of the 1,821 test sentences are also in the training "
        "sentences, as in the original.",
    ),
    "ag_news": KnownData(
        "AG News, 6,000 rows of its test file",
        "X. Zhang, J. Zhao and Y. LeCun, 2015, from A. Gulli's corpus: research and other non-commercial use. Training "
        "and test items both come from the official test file, so accuracies are not comparable with published ones.",
    ),
    "trec6": KnownData(
        "TREC questions, six classes",
        "X. Li and D. Roth, 2002. No licence is stated. Ten of the 500 test questions are also in the training "
        "questions, as in the original.",
    ),
}
"""By a dataset's path, or by the name of its local folder, which comes first: it may hold a subset of the other."""


def known_data(dataset: Mapping[str, Any]) -> KnownData | None:
    """What is known of a recipe's or a result's dataset section."""
    names = (dataset.get("local_name"), dataset.get("path"))
    return next((KNOWN_DATA[str(name)] for name in names if str(name) in KNOWN_DATA), None)
