"""The model card: metadata the Hub's client accepts, honest sentences, no blanks, code blocks that run."""

import contextlib
import copy
import io
import os
import re
import typing
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from edvit_hf.card_figures import _spread, draw_figures
from edvit_hf.card_tables import BASELINE_NOTE, own_vote_finding, splitting_finding, whole_onnx_finding
from edvit_hf.card_words import ARCHITECTURES, KNOWN_DATA, NOT_RECORDED, TASK_WORDS, making_table
from edvit_hf.configuration_edvit import TASK_OF
from edvit_hf.errors import EDViTError
from edvit_hf.model_card import NOT_MEASURED, CardData, render_card, template_path, write_card
from edvit_hf.pruning.config import ImportanceMethod, PruneConfig
from edvit_hf.tasks import TASKS
from edvit_hf.training.config import DistillConfig, FuseConfig
from tiny_ensemble import write_tiny_ensemble
from torch_ensemble import GROUPS as ENSEMBLE_GROUPS
from torch_ensemble import NAMES, mixed_ensemble

OF_TASK = {
    "image-classification": ("deit", "cifar10"),
    "audio-classification": ("audio-spectrogram-transformer", "fsdd"),
    "text-classification": ("distilbert", "trec6"),
}
GOLDEN = Path(__file__).parent / "golden" / "model_card.md"
GROUPS = [[0, 3], [1], [2, 4]]


def interval(difference, low, high):
    return {"difference": difference, "low": low, "high": high}


def row(name, kind, parameters, share, accuracy, teacher, ensemble, note=""):
    per_device = parameters // share
    return {
        "name": name, "kind": kind, "parameters": parameters, "parameters_per_device": per_device,
        "bytes": 4 * parameters, "bytes_per_device": 4 * per_device, "macs": 65 * parameters,
        "macs_per_device": 65 * per_device, "accuracy": accuracy, "macro_f1": accuracy - 0.002,
        "calibration_error": 0.031,
        "per_group_accuracy": [accuracy + 0.01, accuracy - 0.02, accuracy + 0.005],
        "against_teacher": teacher, "against_ensemble": ensemble, "note": note,
    }  # fmt: skip


@pytest.fixture
def results():
    return {
        "schema_version": 1, "recipe": "digits", "task": "image-classification",
        "command": "edvit run recipes/digits.yaml", "seed": 0, "seeds": {"teacher": 0, "split": 0},
        "environment": {
            "commit": "3f2a9c1", "date": "2026-11-21",
            "versions": {"python": "3.12.3", "torch": "2.13.0", "onnx": None},
            "machine": {"cpu": "Example CPU 3000", "architecture": "x86_64", "cores": 2, "memory_gib": 23.5},
        },
        "dataset": {"path": "digits", "num_test_items": 450, "num_labels": 5, "label_names": list("01234")},
        "recipe_values": RECIPE,
        "class_groups": GROUPS,
        "rows": [
            row("teacher", "teacher", 812_042, 1, 0.9778, None, interval(0.0133, 0.002, 0.027)),
            row("ensemble", "ensemble", 287_450, 3, 0.9644, interval(-0.0133, -0.027, -0.002), None),
            row("plain model, per-device size", "baseline", 95_210, 1, 0.9578,
                interval(-0.02, -0.036, -0.007), interval(-0.0067, -0.02, 0.0067), "distilled, same budget"),
            row("plain model, total size", "baseline", 281_004, 1, 0.9711,
                interval(-0.0067, -0.018, 0.004), interval(0.0067, -0.004, 0.02)),
            row("small CNN", "baseline", 96_310, 1, 0.9489,
                interval(-0.0289, -0.047, -0.0133), interval(-0.0155, -0.033, 0.0)),
        ],
        "absent": [
            {"num_absent": k, "accuracy_mean": mean, "accuracy_min": low, "accuracy_max": high,
             "num_subsets": n}
            for k, mean, low, high, n in (
                (0, 0.9644, 0.9644, 0.9644, 1), (1, 0.842, 0.771, 0.893, 3), (2, 0.391, 0.293, 0.462, 3)
            )
        ],
        "sub_models": [
            {"index": i, "classes": [str(c) for c in group], "parameters": 95_817,
             "bytes": 383_268, "macs": 6_228_105,
             "vote_accuracy": 0.95 + 0.01 * i, "group_accuracy": 0.91 + 0.02 * i}
            for i, group in enumerate(GROUPS)
        ],
        "stages": [{"name": "teacher", "seconds": 61.2, "peak_memory_mib": 811.0}],
    }  # fmt: skip


MANIFEST = {
    "ensemble": {
        "accuracy": {
            "fp32": {"split": "test", "accuracy": 0.9644, "num_items": 450},
            "qint8_arm64": {"split": "test", "accuracy": 0.9622, "num_items": 450},
        },
        "gates": {
            "qint8_arm64": {
                "split": "validation", "num_items": 60, "accuracy_fp32": 0.9833, "accuracy_int8": 0.9667,
                "net_flips": 1, "max_net_flips": 2, "max_loss": 0.005, "tolerance": 2 / 60,
            }
        },
    },
    "sub_models": [
        {
            "index": index,
            "feature_size": 32,
            "variants": [
                {
                    "file": f"sub_models/{index:02d}/onnx/model.onnx", "precision": "fp32",
                    "bytes": 391_000, "profile": None,
                    "parity": {"relative_to_largest_logit": 2.1e-6, "argmax_agreement": 1.0},
                    "accuracy": {"split": "test", "num_items": 450, "accuracy": 0.95},
                    "latency_ms": None, "latency_note": "not measured by the export",
                }
            ],
        }
        for index in range(3)
    ],
    "fusion": {"variants": []},
}  # fmt: skip
RECIPE = {
    "dataset": {"path": "digits", "local_name": None},
    "teacher": {"from_scratch": {"model_type": "vit"}, "checkpoint": None},
    "split": {"strategy": "similarity", "similarity": "group"},
    "prune": {
        "importance": "fisher", "attention": "whole", "compensate": True, "compensation_samples": 1024, "rounds": 1
    },
    "distill": {"objective": "dekd", "hard": True},
    "fuse": {"joint": False, "joint_epochs": 5},
}  # fmt: skip
FIGURES = {name: f"assets/accuracy_{name}.png" for name in ("size", "absent", "groups")}


def test_the_card_reads_as_agreed(results):
    """Golden file; renew it after a wanted change by running this test with EDVIT_RENEW_GOLDEN=1."""
    card = render_card(CardData.from_run(results, MANIFEST), figures=FIGURES)
    if os.environ.get("EDVIT_RENEW_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(card, encoding="utf-8")
    assert card == GOLDEN.read_text(encoding="utf-8")


def test_the_metadata_survives_the_hubs_own_client(results):
    recipe = {
        "teacher": {"checkpoint": "google/vit-base-patch16-224-in21k"},
        "card": {"license": "mit", "title": "T"},
    }
    results["dataset"]["path"] = "uoft-cs/cifar10"
    parsed = ModelCard(render_card(CardData.from_run(results, MANIFEST, recipe, language="en"))).data
    assert parsed.to_dict()["library_name"] == "transformers"
    assert parsed.pipeline_tag == "image-classification"
    assert parsed.license == "mit"
    assert parsed.language == "en"
    assert parsed.datasets == ["uoft-cs/cifar10"]
    assert parsed.base_model == "google/vit-base-patch16-224-in21k"
    assert parsed.base_model_relation == "finetune"
    assert parsed.model_name == "T"
    assert [(r.metric_type, r.metric_value) for r in parsed.eval_results] == [
        ("accuracy", 0.9644),
        ("f1", 0.9624),
    ]
    assert {r.dataset_type for r in parsed.eval_results} == {"uoft-cs/cifar10"}


@pytest.mark.parametrize("task", TASKS)
def test_the_card_of_each_task_speaks_of_its_own_inputs_and_classes(results, task):
    model_type, local_name = OF_TASK[task]
    recipe = {
        "task": task,
        "dataset": {"path": "parquet", "local_name": local_name},
        "teacher": {"from_scratch": {"model_type": model_type}},
        "card": {"language": "en"},
    }
    results |= {"task": task, "dataset": {**results["dataset"], "path": "parquet"}}
    content = render_card(CardData.from_run(results, MANIFEST, recipe))
    parsed = ModelCard(content).data
    assert parsed.pipeline_tag == task
    assert "datasets" not in parsed.to_dict(), "a local folder has no Hub id"
    assert {(r.task_type, r.dataset_type, r.dataset_name) for r in parsed.eval_results} == {
        (task, local_name, KNOWN_DATA[local_name].name)
    }
    assert f"one **teacher** ({ARCHITECTURES[model_type]})" in content
    assert f'pipeline("{task}", model=' in content
    assert f"Data: {KNOWN_DATA[local_name].name}. {KNOWN_DATA[local_name].licence}" in content
    for other, words in TASK_WORDS.items():
        for word in (words.auto_class, words.ensemble_class, words.unmeasured, words.example):
            assert (word in content) == (other == task), word


def test_the_words_cover_what_an_ensemble_can_be_and_a_recipe_can_say():
    assert set(ARCHITECTURES) == set(TASK_OF)
    for method in typing.get_args(ImportanceMethod):
        assert "see the recipe" not in making_table({"prune": {"importance": method}})


def test_a_task_that_the_hub_does_not_know_is_refused(results):
    with pytest.raises(EDViTError, match="got 'object-detection'"):
        CardData.from_run({**results, "task": "object-detection"})


def test_the_card_says_how_the_sub_models_were_made():
    """From the values of real configs, so that a renamed field shows here."""
    made = {
        "split": {"strategy": "balanced", "similarity": "group"},
        "prune": vars(PruneConfig(importance="linear", attention="merged", compensate=False, rounds=3)),
        "distill": vars(DistillConfig(epochs=1, objective="none")),
        "fuse": vars(FuseConfig(epochs=1, joint=True, joint_epochs=7)),
    }
    table = making_table(made)
    for line in (
        "| class groups | `balanced` |",
        "| pruning score | `linear`: change of the answers predicted to first order |",
        "| attention | `merged`: each new head is made of the best dimensions of several old ones |",
        "| compensation after pruning | none; pruned in 3 rounds with retraining between |",
        "| distillation objective | `none`: labels alone, no distillation |",
        "tuned together, end to end for 7 epochs |",
    ):
        assert line in table
    made |= {
        "split": {"strategy": "similarity", "similarity": "spread"},
        "prune": vars(PruneConfig(compensation_samples=2048)),
        "distill": vars(DistillConfig(epochs=1, objective="dekd", hard=False)),
        "fuse": vars(FuseConfig(epochs=1, joint=False)),
    }
    table = making_table(made)
    for line in (
        "| class groups | `similarity`, direction `spread` |",
        "least-squares refit of what stayed on up to 2,048 training items |",
        "`dekd`: soft answers of the teacher, and its relations of queries, keys and values |",
        "| fusion | frozen: the fusion head was trained",
    ):
        assert line in table
    assert making_table({}).count(NOT_RECORDED) == 6


@pytest.mark.parametrize(("objective", "is_distilled"), [("kd", True), ("none", False)])
def test_sub_models_that_learnt_from_labels_alone_are_not_said_to_be_distilled(results, objective, is_distilled):
    card = render_card(CardData.from_run(results, MANIFEST, {**RECIPE, "distill": {"objective": objective}}))
    assert ("distilled from it, and answers" in card) == is_distilled


def test_the_local_folder_says_more_about_the_data_than_the_path(results):
    """A folder may hold a subset of what the path names."""
    results["dataset"]["path"] = "google/speech_commands"
    recipe = {"dataset": {"path": "google/speech_commands", "local_name": "speech_commands12"}}
    card = CardData.from_run(results, MANIFEST, recipe)
    assert "not comparable with published ones" in card.dataset_licence
    card = CardData.from_run(results, MANIFEST, {"dataset": {**recipe["dataset"], "local_name": "unknown"}})
    assert card.dataset_licence == "CC BY 4.0, P. Warden, arXiv 1804.03209."
    assert card.dataset_id == "google/speech_commands"


def test_tf_idf_is_not_said_to_have_been_distilled_and_its_size_is_judged(results):
    del results["rows"][4]
    beside = interval(0.02, 0.01, 0.03)
    results["rows"].append(row("TF-IDF + linear", "baseline", 500_000, 1, 0.98, beside, beside, "30,000 words"))
    card = render_card(CardData.from_run(results, MANIFEST))
    assert f"- Every distilled baseline: {BASELINE_NOTE}" in card
    assert "The TF-IDF + linear, larger than what one device holds: +2.0 [+1.0, +3.0] points." in card
    assert "Better than the ensemble" not in card
    results["rows"][-1]["parameters_per_device"] = 50_000
    card = render_card(CardData.from_run(results, MANIFEST))
    assert "Better than the ensemble: the TF-IDF + linear." in card


@pytest.mark.parametrize(
    "teacher", [{"from_scratch": {"model_type": "vit"}, "checkpoint": None}, {"checkpoint": "tests/golden"}]
)
def test_a_teacher_that_is_no_hub_checkpoint_claims_no_base_model(results, teacher, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    parsed = ModelCard(render_card(CardData.from_run(results, MANIFEST, {"teacher": teacher}))).data.to_dict()
    assert "base_model" not in parsed
    assert "base_model_relation" not in parsed
    assert "datasets" not in parsed, "the embedded digits have no Hub id"


@pytest.mark.parametrize(
    ("plain", "cnn", "verdict"),
    [
        ((-0.05, -0.01), (-0.03, -0.002), "All of them fall short: in this run splitting pays on this task."),
        ((-0.05, -0.01), (-0.03, 0.0), "cannot tell the ensemble from the small CNN: these results are no evidence"),
        ((-0.02, 0.01), (-0.05, -0.01), "cannot tell the ensemble from the plain model of per-device size:"),
        ((-0.02, 0.01), (-0.02, 0.01), "from the plain model of per-device size and the small CNN:"),
        (
            (-0.05, -0.01),
            (0.01, 0.05),
            "Better than the ensemble: the small CNN. So on this task splitting does not pay",
        ),
        ((0.01, 0.05), (-0.02, 0.01), "Better than the ensemble: the plain model of per-device size. So"),
    ],
)
def test_splitting_pays_only_if_every_baseline_of_one_devices_size_falls_short(results, plain, cnn, verdict):
    for index, ends in ((2, plain), (4, cnn)):
        results["rows"][index]["against_ensemble"] = interval(sum(ends) / 2, *ends)
    finding = splitting_finding(results)
    assert verdict in finding
    assert "In one trained run" in finding
    assert "points (the small CNN)" in finding


def test_a_baseline_larger_than_one_device_holds_has_no_say(results):
    results["rows"][2]["against_ensemble"] = interval(-0.03, -0.05, -0.01)
    assert "cannot tell" in splitting_finding(results), "the small CNN is level"
    results["rows"][4]["parameters_per_device"] *= 2
    assert "in this run splitting pays" in splitting_finding(results)


@pytest.mark.parametrize("index", [2, 4])
def test_without_every_interval_the_finding_is_not_measured(results, index):
    del results["rows"][index]["against_ensemble"]
    assert NOT_MEASURED in splitting_finding(results)
    del results["rows"][2]
    assert NOT_MEASURED in splitting_finding(results)


def test_baselines_are_said_not_to_be_tuned_and_only_where_there_are_any(results):
    assert BASELINE_NOTE in render_card(CardData.from_run(results, MANIFEST))
    results["rows"] = results["rows"][:2]
    assert BASELINE_NOTE not in render_card(CardData.from_run(results, MANIFEST))


def test_the_int8_gate_is_stated_as_it_binds_and_its_absence_too():
    assert (
        "on the validation split, 60 items: fp32 98.3 %, int8 96.7 %. Up to 2 more items wrong than fp32 were "
        "allowed, which is 3.33 points of so many items (set: 0.50 points)."
    ) in whole_onnx_finding(MANIFEST)
    variants = [{"precision": "int8", "file": "sub_models/00/onnx/model_qint8_arm64.onnx"}]
    assert "`qint8_arm64` passed no accuracy gate." in whole_onnx_finding({"sub_models": [{"variants": variants}]})


def test_the_own_votes_name_their_items():
    assert "on 450 items of the test split." in own_vote_finding(MANIFEST)
    assert NOT_MEASURED in own_vote_finding({})


def test_without_a_repository_the_code_loads_a_local_folder_and_downloads_nothing(results):
    card = render_card(CardData.from_run(results, MANIFEST))
    assert card.count('"path/to/this/folder"') == 4
    assert "hf download" not in card
    assert "your-name" not in card
    card = render_card(CardData.from_run(results, MANIFEST, {"card": {"repo_id": "me/digits"}}))
    assert card.count('"me/digits"') == 3
    assert "hf download me/digits --local-dir ensemble" in card
    assert "path/to/" not in card


def test_the_digits_card_says_whose_hands_wrote_them(results):
    card = render_card(CardData.from_run(results, MANIFEST))
    assert "written by 13 people" in card
    assert "optimistic for a new writer" in card


def test_what_nobody_measured_reads_not_measured_and_no_cell_is_blank(results):
    bare = {
        "task": results["task"],
        "class_groups": GROUPS,
        "rows": [{"name": "ensemble", "kind": "ensemble"}],
    }
    card = render_card(CardData.from_run(bare))
    table_lines = [line for line in card.splitlines() if line.startswith("|")]
    assert table_lines
    for line in table_lines:
        assert all(cell.strip() for cell in line.strip("|").split("|")), line
    assert card.count(NOT_MEASURED) > 15
    assert not re.search(r"\b(None|nan|Undefined)\b", card)
    assert "model-index" not in card, "no figure, no claim"
    assert "![" not in card


def test_every_single_missing_value_still_gives_a_full_card(results):
    for key in ("environment", "dataset", "absent", "sub_models", "stages", "command", "seed", "recipe_values"):
        without = {k: v for k, v in copy.deepcopy(results).items() if k != key}
        card = render_card(CardData.from_run(without, MANIFEST))
        assert NOT_MEASURED in card, key
        assert "None" not in card, key


def test_results_without_rows_are_refused():
    with pytest.raises(EDViTError, match="class_groups, rows missing"):
        CardData.from_run({"task": "image-classification"})


def test_label_names_cannot_break_a_table(results):
    results["dataset"]["label_names"][1] = "a|b\nc"
    card = render_card(CardData.from_run(results, MANIFEST))
    assert "| a\\|b c |" in card


def test_the_machine_command_and_commit_stand_beside_the_results(results):
    card = render_card(CardData.from_run(results, MANIFEST))
    for text in (
        "edvit run recipes/digits.yaml",
        "3f2a9c1",
        "Example CPU 3000",
        "23.5 GiB",
        "teacher 0, split 0",
    ):
        assert text in card
    for number in ("2410.11650", "2309.05015", "2407.05941"):
        assert f"https://arxiv.org/abs/{number}" in card
    assert "-1.3 [-2.7, -0.2]" in card


def test_write_card_leaves_readme_and_figures_and_nothing_else(results, tmp_path):
    path = write_card(tmp_path, CardData.from_run(results, MANIFEST))
    found = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert found == [
        "README.md",
        "assets/accuracy_absent.png",
        "assets/accuracy_groups.png",
        "assets/accuracy_size.png",
    ]
    for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", path.read_text()):
        with Image.open(tmp_path / link) as image:
            assert image.width >= 1000, "readable at the width of a Hub page"
    first = {name: (tmp_path / name).read_bytes() for name in found}
    write_card(tmp_path, CardData.from_run(results, MANIFEST))
    assert {name: (tmp_path / name).read_bytes() for name in found} == first, "same results, same bytes"


def test_figures_without_values_are_not_drawn(tmp_path):
    assert draw_figures({"class_groups": GROUPS, "rows": [{"name": "teacher"}]}, tmp_path / "assets") == {}
    assert not (tmp_path / "assets").exists()


def test_marks_of_nearly_equal_size_stand_side_by_side_and_others_stay():
    places = _spread([1.0, 1.01, 5.0])
    assert places[2] == pytest.approx(5.0)
    assert places[0] < 1.0 < 1.01 < places[1]


def test_a_missing_folder_is_refused(results, tmp_path):
    with pytest.raises(EDViTError, match="Export it first"):
        write_card(tmp_path / "nowhere", CardData.from_run(results))


def test_the_template_of_the_checkout_is_found():
    assert template_path().name == "ensemble.md.j2"


SOURCES = {
    "image-classification": Image.fromarray(np.zeros((20, 20, 3), np.uint8)),
    "audio-classification": {"raw": np.zeros(3200, np.float32), "sampling_rate": 16000},
    "text-classification": "word1 word2",
}


@pytest.fixture(scope="module", params=TASKS)
def published(request, tmp_path_factory):
    """A folder as it lies on the Hub: a real ensemble at toy size with exported graphs beside it, and its task."""
    root = tmp_path_factory.mktemp("published") / "ensemble"
    mixed_ensemble(request.param).save_pretrained(root)
    write_tiny_ensemble(root, ENSEMBLE_GROUPS, label_names=NAMES, task=request.param)
    return root, request.param


@pytest.mark.parametrize("repo_id", [True, False])
def test_every_code_block_of_the_card_runs(results, published, monkeypatch, repo_id):
    root, task = published
    monkeypatch.chdir(root.parent)  # the card downloads to the folder `ensemble` and loads it from there
    results = {**results, "task": task}
    card = render_card(CardData.from_run(results, MANIFEST, repo_id=str(root) if repo_id else None))
    assert ("path/to/this/folder" in card) != repo_id
    card = card.replace("path/to/this/folder", str(root))
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 4
    names: dict = {}
    printed = io.StringIO()
    for block in blocks:
        with contextlib.redirect_stdout(printed):
            exec(compile(block, "card", "exec"), names)
    assert "other" in printed.getvalue()
    top = names["classifier"](SOURCES[task], top_k=5)
    assert {entry["label"] for entry in top} == set(NAMES)
    assert names["answer"].degraded
    assert (f"hf download {root} --local-dir ensemble" in card) == repo_id
