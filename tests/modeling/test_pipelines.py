# SPDX-License-Identifier: Apache-2.0
"""The stock pipelines take an ensemble's folder, and each sub-model's: by registration, and by remote code alone."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ASTFeatureExtractor, AutoFeatureExtractor, AutoTokenizer, ViTImageProcessor, pipeline

from edvit_hf.auto import ensemble_class
from edvit_hf.tasks import TASKS
from support.ready import run_ready
from support.torch_ensemble import GROUPS, NAMES, mixed_ensemble, mixed_sub_models

RATE = 8000
SENTENCES = ["The ant and the bee.", "A cat saw the dog eat an eel!", "bee", "the dog " * 40]
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
every_task = pytest.mark.parametrize("task", TASKS)


def write_tokenizer(folder, tokenizer_class="PreTrainedTokenizerFast"):
    """A WordPiece tokenizer trained on the sentences: tokenizer.json and tokenizer_config.json."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=50, special_tokens=list(SPECIAL.values()), show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    values = {"tokenizer_class": tokenizer_class, "model_max_length": 16, **SPECIAL}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))


def write_processor(folder, task):
    if task == "image-classification":
        ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    elif task == "audio-classification":
        ASTFeatureExtractor(num_mel_bins=16, max_length=20, sampling_rate=RATE).save_pretrained(folder)
    else:
        write_tokenizer(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    for task in TASKS:
        (root / task).mkdir()
        write_processor(root / task, task)
        mixed_ensemble(task).save_pretrained(root / task)
    return root


def raw_inputs(task):
    rng = np.random.default_rng(0)
    if task == "image-classification":
        return [Image.fromarray(rng.integers(0, 256, (12, 20, 3), np.uint8)) for _ in range(2)]
    if task == "audio-classification":
        return [rng.normal(0, 0.3, n).astype(np.float32) for n in (900, 4000)]
    return list(SENTENCES)


def prepared(task, folder, raw):
    """Model inputs as the stock processor in the folder makes them, used directly."""
    if task == "image-classification":
        return ViTImageProcessor.from_pretrained(folder)(raw, return_tensors="pt")
    if task == "audio-classification":
        return AutoFeatureExtractor.from_pretrained(folder)(raw, sampling_rate=RATE, return_tensors="pt")
    return AutoTokenizer.from_pretrained(folder)(raw, truncation=True, return_tensors="pt")


def options(task):
    return {"truncation": True} if task == "text-classification" else {}


def scores(answer, names):
    """The scores of a pipeline's answer in the order of `names`, which must be all of its labels."""
    assert sorted(row["label"] for row in answer) == sorted(names)
    found = {row["label"]: row["score"] for row in answer}
    return [found[name] for name in names]


# P-13: `pipeline` loads only what is registered under a model type of its own for the task.
@every_task
@torch.no_grad()
def test_the_pipeline_of_every_task_runs_the_ensemble(task, folders):
    classify = pipeline(task, model=str(folders / task))
    assert type(classify.model) is ensemble_class(task)
    for raw in raw_inputs(task):
        expected = classify.model(**prepared(task, folders / task, raw)).logits[0].softmax(-1)
        answer = scores(classify(raw, top_k=5, **options(task)), NAMES)
        assert answer == pytest.approx(expected.tolist(), abs=1e-5)
        assert len({round(score, 4) for score in answer}) > 1


@every_task
@torch.no_grad()
def test_the_pipeline_of_every_task_runs_each_sub_model_alone(task, folders):
    for i, expected in enumerate(mixed_sub_models(task)):
        folder = folders / task / f"sub_models/{i:02d}"
        alone = pipeline(task, model=str(folder))
        assert type(alone.model) is type(expected)
        raw = raw_inputs(task)[0]
        names = [*(NAMES[c] for c in GROUPS[i]), "other"]
        logits = expected(**prepared(task, folder, raw)).logits[0]
        assert scores(alone(raw, top_k=5, **options(task)), names) == pytest.approx(
            logits.softmax(-1).tolist(), abs=1e-5
        )


def test_a_batch_of_texts_gets_the_answers_of_its_texts(folders):
    classify = pipeline("text-classification", model=str(folders / "text-classification"))
    together = classify(SENTENCES, batch_size=4, top_k=5, truncation=True)
    for text, answer in zip(SENTENCES, together, strict=True):
        alone = classify(text, top_k=5, truncation=True)
        assert scores(answer, NAMES) == pytest.approx(scores(alone, NAMES), abs=1e-4)


def test_audio_comes_with_its_sampling_rate_too(folders):
    classify = pipeline("audio-classification", model=str(folders / "audio-classification"))
    wave = raw_inputs("audio-classification")[1]
    for source in ({"array": wave, "sampling_rate": RATE}, {"raw": wave, "sampling_rate": RATE}):
        assert classify(source) == classify(wave)


@pytest.mark.parametrize("tokenizer_class", ["PreTrainedTokenizerFast", "TokenizersBackend", "BertTokenizerFast"])
def test_the_tokenizer_is_found_beside_the_ensemble_and_each_sub_model(tokenizer_class, folders, tmp_path):
    write_tokenizer(tmp_path, tokenizer_class)
    mixed_ensemble("text-classification").save_pretrained(tmp_path)
    expected = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for folder in (tmp_path, *sorted((tmp_path / "sub_models").iterdir())):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for text in SENTENCES:
            assert tokenizer(text)["input_ids"] == expected.encode(text).ids
            assert len(tokenizer(text, truncation=True)["input_ids"]) <= 16
        padded = tokenizer(SENTENCES, truncation=True, padding=True)["input_ids"]
        assert padded[2][-1] == expected.token_to_id("[PAD]")


CLEAN_PROCESS = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "edvit_hf":
            raise ImportError("edvit_hf is not installed here")
sys.meta_path.insert(0, Blocked())
assert "edvit_hf" not in sys.modules
import os
import transformers.dynamic_module_utils as remote
remote.HF_MODULES_CACHE = os.environ["HF_MODULES_CACHE"]  # else that of the process from which this one was forked
import json
import numpy as np
from PIL import Image
from safetensors.numpy import load_file
from transformers import pipeline
root, answers = sys.argv[1], {}
for task, sources in json.load(open(sys.argv[2])).items():
    classify = pipeline(task, model=f"{root}/{task}", trust_remote_code=True)
    assert type(classify.model).__module__.startswith("transformers_modules."), type(classify.model)
    options = {"truncation": True} if task.startswith("text") else {}
    if not task.startswith("text"):
        arrays = load_file(sys.argv[3])
        sources = [arrays[name] for name in sources]
    if task.startswith("image"):
        sources = [Image.fromarray(array) for array in sources]
    answers[task] = [classify(source, top_k=5, **options) for source in sources]
assert "edvit_hf" not in sys.modules
json.dump(answers, open(sys.argv[4], "w"))
"""


# P-14: remote code of three flat files must be found and run by every pipeline where the package is not installed.
def test_every_pipeline_runs_by_remote_code_where_the_package_is_not_installed(folders, tmp_path):
    raw = {task: raw_inputs(task) for task in TASKS}
    arrays = {f"{t}/{i}": np.asarray(x) for t in TASKS if t[:4] != "text" for i, x in enumerate(raw[t])}
    save_file(arrays, tmp_path / "arrays.safetensors")
    sources = {t: raw[t] if t[:4] == "text" else [name for name in arrays if name.startswith(t)] for t in TASKS}
    (tmp_path / "sources.json").write_text(json.dumps(sources))
    env = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    files = [str(tmp_path / name) for name in ("sources.json", "arrays.safetensors", "answers.json")]
    done = run_ready(CLEAN_PROCESS, folders, *files, kind="stock", env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads((tmp_path / "answers.json").read_text())
    for task in TASKS:
        classify = pipeline(task, model=str(folders / task))
        for source, answer in zip(raw[task], answers[task], strict=True):
            here = classify(source, top_k=5, **options(task))
            assert scores(answer, NAMES) == pytest.approx(scores(here, NAMES), abs=1e-5)
