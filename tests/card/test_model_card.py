# SPDX-License-Identifier: Apache-2.0
"""The model card: metadata the Hub's client accepts, honest sentences, no blanks, code blocks that run."""

import copy
import os
import re
import typing
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from edvit_hf.card.markup import NOT_MEASURED, NOT_RECORDED
from edvit_hf.card.render import CardData, render_card, template_path, write_card
from edvit_hf.card.tables import BASELINE_NOTE, splitting_finding
from edvit_hf.card.words import ARCHITECTURES, KNOWN_DATA, TASK_WORDS, making_table
from edvit_hf.configuration_edvit import TASK_OF
from edvit_hf.errors import EDViTError
from edvit_hf.manifest import hash_of_files
from edvit_hf.pruning.config import ImportanceMethod, PruneConfig
from edvit_hf.tasks import TASKS
from edvit_hf.training.config import DistillConfig, FuseConfig
from support.card_samples import GROUPS, OF_TASK, RECIPE, interval, row, sample_manifest, sample_results
from support.hub_server import loopback_hub

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def results():
    return sample_results()


MANIFEST = sample_manifest()
FIGURES = {name: f"assets/accuracy_{name}.png" for name in ("size", "latency", "absent", "groups")}


@pytest.mark.parametrize("task", TASKS)
def test_the_card_reads_as_agreed(task):
    """Golden files; renew them after a wanted change by running this test with EDVIT_RENEW_GOLDEN=1."""
    path = GOLDEN / f"model_card_{task.split('-')[0]}.md"
    manifest = sample_manifest(task)
    figures = FIGURES if task == "image-classification" else {k: v for k, v in FIGURES.items() if k != "latency"}
    repo_id = "someone/ensemble" if task == "text-classification" else None
    card = render_card(CardData.from_run(sample_results(task), manifest, repo_id=repo_id), figures=figures)
    if os.environ.get("EDVIT_RENEW_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(card, encoding="utf-8")
    assert card == path.read_text(encoding="utf-8")


def test_the_sections_stand_in_the_agreed_order(results):
    card = render_card(CardData.from_run(results, MANIFEST), figures=FIGURES)
    assert re.findall("^## (.*)$", card, re.MULTILINE) == [
        "What it is",
        "Class groups and sub-models",
        "Results",
        "Figures",
        "How to load it",
        "Limits",
        "Licence",
        "Citation",
    ]


def test_the_metadata_survives_the_hubs_own_client(results):
    recipe = {"teacher": {"checkpoint": "google/vit-base-patch16-224-in21k"}, "card": {"license": "mit", "title": "T"}}
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
    assert [(r.metric_type, r.metric_value) for r in parsed.eval_results] == [("accuracy", 0.9644), ("f1", 0.9624)]
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
    content = render_card(CardData.from_run(results, sample_manifest(task), recipe))
    parsed = ModelCard(content).data
    assert parsed.pipeline_tag == task
    assert "datasets" not in parsed.to_dict(), "a local folder has no Hub id"
    assert {(r.task_type, r.dataset_type, r.dataset_name) for r in parsed.eval_results} == {
        (task, local_name, KNOWN_DATA[local_name].name)
    }
    assert f"one **teacher** ({ARCHITECTURES[model_type]})" in content
    assert f'pipeline("{task}", model=' in content
    assert f"Data: {KNOWN_DATA[local_name].name}. {KNOWN_DATA[local_name].license}" in content
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
    assert "not comparable with published ones" in card.dataset_license
    card = CardData.from_run(results, MANIFEST, {"dataset": {**recipe["dataset"], "local_name": "unknown"}})
    assert card.dataset_license == "CC BY 4.0, P. Warden, arXiv 1804.03209."
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
    "teacher", [{"from_scratch": {"model_type": "vit"}, "checkpoint": None}, {"checkpoint": "tests/card/golden"}]
)
def test_a_teacher_that_is_no_hub_checkpoint_claims_no_base_model(results, teacher, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
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


def test_results_and_manifest_of_two_ensembles_are_refused(results):
    results["class_groups"] = [[0], [1], [2, 3, 4]]
    with pytest.raises(EDViTError, match="They are of two ensembles"):
        CardData.from_run(results, MANIFEST)


def test_without_a_repository_the_code_loads_a_local_folder_and_downloads_nothing(results):
    card = render_card(CardData.from_run(results, MANIFEST))
    assert card.count('"path/to/this/folder"') == 3
    assert "edvit pull path/to/this/folder --sub-model 2 --profile raspberry-pi-5 " in card
    assert "hf download" not in card
    assert "your-name" not in card
    card = render_card(CardData.from_run(results, MANIFEST, {"card": {"repo_id": "me/digits"}}))
    assert card.count('"me/digits"') == 3
    assert "hf download me/digits --local-dir ensemble && cd ensemble" in card
    assert "edvit pull me/digits --sub-model 2 " in card
    assert "path/to/" not in card


def test_the_digits_card_says_whose_hands_wrote_them(results):
    card = render_card(CardData.from_run(results, MANIFEST))
    assert "written by 13 people" in card
    assert "optimistic for a new writer" in card


def test_what_nobody_measured_reads_not_measured_and_no_cell_is_blank(results):
    bare = {"task": results["task"], "class_groups": GROUPS, "rows": [{"name": "ensemble", "kind": "ensemble"}]}
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
    whole = render_card(CardData.from_run(results, MANIFEST))
    for key in ("environment", "dataset", "absent", "sub_models", "stages", "command", "seed", "recipe_values"):
        without = {k: v for k, v in copy.deepcopy(results).items() if k != key}
        card = render_card(CardData.from_run(without, MANIFEST))
        missing = [text.count(NOT_MEASURED) + text.count(NOT_RECORDED) for text in (card, whole)]
        assert missing[0] > missing[1], key
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
    for text in ("edvit run recipes/digits.yaml", "3f2a9c1", "Example CPU 3000", "23.5 GiB", "teacher 0, split 0"):
        assert text in card
    for number in ("2410.11650", "2309.05015"):
        assert f"https://arxiv.org/abs/{number}" in card
    assert "token pruning" not in card  # a card names what the library does, and it does not do that yet
    assert "-1.3 [-2.7, -0.2]" in card


def test_a_missing_folder_is_refused(results, tmp_path):
    with pytest.raises(EDViTError, match="Export it first"):
        write_card(tmp_path / "nowhere", CardData.from_run(results))


def test_the_template_of_the_checkout_is_found():
    assert template_path().name == "ensemble.md.j2"


@pytest.mark.parametrize("task", TASKS)
def test_the_hubs_own_check_of_the_metadata_passes(task, monkeypatch):
    """`ModelCard.validate` as `push_to_hub` calls it; the lists of licences and languages are the Hub's alone."""
    recipe = {**RECIPE, "teacher": {"checkpoint": "someone/base"}, "card": {"language": "en", "repo_id": "me/digits"}}
    with loopback_hub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        card = ModelCard(render_card(CardData.from_run(sample_results(task), sample_manifest(task), recipe)))
        card.validate()
        assert hub.seen("POST /api/validate-yaml")
    again = ModelCard(str(card)).data
    assert again.to_dict() == card.data.to_dict(), "a round trip through the client's classes loses nothing"
    assert again.eval_results


@pytest.mark.parametrize(
    "text", [{"license": "Apache 2.0"}, {"language": "English"}, {"repo_id": "digits"}, {"dataset_id": "a/b/c"}]
)
def test_metadata_that_the_hub_would_refuse_is_refused_here(results, text):
    with pytest.raises(EDViTError, match=f"`{next(iter(text))}` of a card must be"):
        CardData.from_run(results, MANIFEST, **text)


def runtime_record(manifest, changed=()):
    """What the runtime measured of every variant; of those in `changed` the files are others now."""
    names = dict.fromkeys(v.name for entry in manifest.sub_models for v in entry.variants)
    variants = {}
    for place, name in enumerate(names):
        files = [v for entry in manifest.sub_models for v in entry.variants if v.name == name]
        absent = [
            {"num_absent": k, "accuracy_mean": mean, "accuracy_min": low, "accuracy_max": high, "num_subsets": 3}
            for k, mean, low, high in ((0, 0.96, 0.96, 0.96), (1, 0.8125 - place / 100, 0.7, 0.875))
        ]
        files_hash = "0" * 64 if name in changed else hash_of_files(files)
        variants[name] = {"files_hash": files_hash, "absent": absent, "macro_f1": 0.9}
    return {
        "command": "edvit evaluate DIR --save",
        "num_items": 450,
        "measured_on": "x86-avx2",
        "variants": variants,
        "environment": {"commit": "1a2b3c4d5e6f", "date": "2026-11-26"},
    }


def test_the_runtimes_own_answers_with_sub_models_absent_stand_by_variant():
    results = {**sample_results(), "runtime": runtime_record(MANIFEST)}
    card = render_card(CardData.from_run(results, MANIFEST))
    names = list(results["runtime"]["variants"])
    assert len(names) > 1
    assert f"| sub-models absent | subsets measured | {' | '.join(f'`{name}`' for name in names)} |" in card
    assert "| 1 | 3 | 81.2 % (70.0 % to 87.5 %) |" in card
    assert "goes from 96.0 % to 81.2 % on average, 70.0 % at worst" in card
    assert "on hardware of kind `x86-avx2`, on 450 test items" in card
    assert "| one sub-model absent | 81.2 % on average |" in card
    assert "| answers of the runtime, absences by variant | `edvit evaluate DIR --save` |" in card


def test_figures_of_files_that_changed_since_are_left_out():
    names = list(runtime_record(MANIFEST)["variants"])
    results = {**sample_results(), "runtime": runtime_record(MANIFEST, changed=names[1:])}
    card = render_card(CardData.from_run(results, MANIFEST))
    assert f"| sub-models absent | subsets measured | `{names[0]}` |\n" in card
    results["runtime"] = runtime_record(MANIFEST, changed=names)
    card = render_card(CardData.from_run(results, MANIFEST))
    assert "| sub-models absent | subsets measured | torch |" in card
    assert "the runtime's own answers are not measured" in card
    assert "| answers of the runtime" not in card
