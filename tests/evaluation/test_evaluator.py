# SPDX-License-Identifier: Apache-2.0
"""`evaluate.evaluator(task)` on real ensembles: what works, and what does not yet."""

import re
from pathlib import Path

import evaluate
import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer, pipeline

from edvit_hf.auto import ensemble_class
from edvit_hf.evaluation.metrics import Accuracy, ClassGroupAccuracy, ExpectedCalibrationError, MacroF1
from edvit_hf.tasks import TASKS
from support.tiny_ensemble import write_processor
from support.torch_ensemble import GROUPS, NAMES, mixed_ensemble

DOCUMENTATION = Path(__file__).resolve().parents[2] / "docs/guides/metrics.md"
LABELS = [0, 1, 2, 3, 4, 0]
PROCESSORS = {
    "image-classification": ("feature_extractor", AutoImageProcessor),
    "audio-classification": ("feature_extractor", AutoFeatureExtractor),
    "text-classification": ("tokenizer", AutoTokenizer),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A published folder of each task."""
    found = {}
    for task in TASKS:
        found[task] = tmp_path_factory.mktemp(task)
        mixed_ensemble(task).save_pretrained(found[task])
        write_processor(found[task], task)
    return found


def items(task):
    """Raw inputs that `pipeline(task)` takes."""
    random = np.random.default_rng(0)
    if task == "image-classification":
        return [Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in LABELS]
    if task == "audio-classification":
        return [random.normal(size=3200).astype(np.float32) for _ in LABELS]
    return [" ".join(f"word{i}" for i in random.integers(0, 46, 5)) for _ in LABELS]


def dataset(task):
    data = Dataset.from_dict({"input": items(task), "label": LABELS})
    return data.with_format("numpy") if task == "audio-classification" else data


def model_and_processor(folder, task):
    keyword, processor = PROCESSORS[task]
    return ensemble_class(task).from_pretrained(folder), {keyword: processor.from_pretrained(folder)}


def compute(task, model_or_pipeline, metric, data=None, **options):
    return evaluate.evaluator(task).compute(
        model_or_pipeline=model_or_pipeline,
        data=dataset(task) if data is None else data,
        metric=metric,
        input_column="input",
        label_mapping={name: label for label, name in enumerate(NAMES)},
        **options,
    )


@pytest.mark.parametrize("task", TASKS)
def test_a_model_object_with_its_processor_is_measured_as_by_its_pipeline(folders, task):
    model, processor = model_and_processor(folders[task], task)
    metric = evaluate.combine([Accuracy(), MacroF1(), ClassGroupAccuracy(GROUPS)])
    measured = compute(task, model, metric, **processor)
    classify = pipeline(task, model=str(folders[task]))
    answers = [classify(item, top_k=1)[0]["label"] for item in items(task)]
    right = [model.config.label2id[answer] == label for answer, label in zip(answers, LABELS, strict=True)]
    assert measured["accuracy"] == pytest.approx(np.mean(right))
    assert len(measured["class_group_accuracy"]) == len(GROUPS)
    assert 0 <= measured["macro_f1"] <= 1
    assert measured["samples_per_second"] > 0


@pytest.mark.parametrize("task", TASKS)
def test_the_folder_of_a_published_ensemble_is_enough(folders, task):
    model, processor = model_and_processor(folders[task], task)
    expected = compute(task, model, Accuracy(), **processor)
    assert compute(task, str(folders[task]), Accuracy())["accuracy"] == expected["accuracy"]


def test_bootstrap_intervals_surround_the_score(folders):
    task = "text-classification"
    texts = items(task) * 4
    classify = pipeline(task, model=str(folders[task]))
    answers = [NAMES.index(classify(text)[0]["label"]) for text in texts]
    labels = [answer if i % 3 else (answer + 1) % len(NAMES) for i, answer in enumerate(answers)]
    model, processor = model_and_processor(folders[task], task)
    metric, data = evaluate.combine([Accuracy(), MacroF1()]), Dataset.from_dict({"input": texts, "label": labels})
    options = {"strategy": "bootstrap", "n_resamples": 20, "random_state": 0, **processor}
    measured = compute(task, model, metric, data, **options)
    assert measured["accuracy"]["score"] == pytest.approx(2 / 3)
    low, high = measured["accuracy"]["confidence_interval"]
    assert low < 2 / 3 < high
    assert set(measured["macro_f1"]) == {"confidence_interval", "standard_error", "score"}


@pytest.mark.parametrize("task", TASKS)
def test_a_pipeline_object_fails_until_evaluate_knows_transformers_5(folders, task):
    """When this fails, evaluate has learnt it: drop the warning of docs/guides/metrics.md and `evaluation.metrics`."""
    with pytest.raises(AttributeError, match="TFPreTrainedModel"):
        compute(task, pipeline(task, model=str(folders[task])), Accuracy())


@pytest.mark.parametrize("task", TASKS)
def test_the_parts_of_a_pipeline_object_work(folders, task):
    made = pipeline(task, model=str(folders[task]))
    keyword, _ = PROCESSORS[task]
    processor = made.tokenizer or made.feature_extractor or made.image_processor
    assert "accuracy" in compute(task, made.model, Accuracy(), **{keyword: processor})


@pytest.mark.parametrize("task", ["image-classification", "audio-classification"])
def test_a_model_object_without_its_processor_fails(folders, task):
    model, _ = model_and_processor(folders[task], task)
    model.config._name_or_path = ""
    with pytest.raises(Exception, match="guess which"):
        compute(task, model, Accuracy())


def test_audio_as_plain_lists_fails(folders):
    task = "audio-classification"
    model, processor = model_and_processor(folders[task], task)
    with pytest.raises(TypeError, match="numpy ndarray"):
        compute(task, model, Accuracy(), Dataset.from_dict({"input": items(task), "label": LABELS}), **processor)


def test_scores_never_reach_a_metric_of_the_evaluator(folders):
    task = "text-classification"
    model, processor = model_and_processor(folders[task], task)
    with pytest.raises(ValueError, match="prediction_scores"):
        compute(task, model, ExpectedCalibrationError(), **processor)


def test_the_calls_of_the_documentation_run_as_written(folders):
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL)
    assert len(blocks) == 2
    task = "image-classification"
    model, processor = model_and_processor(folders[task], task)
    names = {
        "model": model,
        "image_processor": processor["feature_extractor"],
        "dataset": dataset(task).rename_column("input", "image"),
    }
    for block in blocks:
        exec(block, names)
    assert names["figures"] == {
        "accuracy": 0.5,
        "macro_f1": pytest.approx(1 / 3),
        "class_group_accuracy": [0.5, None],
        "expected_calibration_error": pytest.approx((0.2 + 0.6) / 2),
    }
