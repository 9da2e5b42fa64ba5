# SPDX-License-Identifier: Apache-2.0
"""Rendered cards of measured recipes, and the zoo table that says what they say."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edvit_hf.card.render import CardData
from edvit_hf.cli import app
from edvit_hf.errors import EDViTError
from edvit_hf.tasks import TASKS
from support.card_samples import sample_manifest, sample_results

CARDS = Path(__file__).resolve().parents[2] / "model_cards"
README = (CARDS / "README.md").read_text()
_spec = importlib.util.spec_from_file_location("render", CARDS / "render.py")
render = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(render)


def finished(folder, task):
    """A work directory as far as the script reads it."""
    root = folder / "09_card" / "ensemble"
    root.mkdir(parents=True)
    (root / "results.json").write_text(json.dumps(sample_results(task)))
    sample_manifest(task).save(root)
    return folder


@pytest.fixture
def output(tmp_path):
    (tmp_path / "cards").mkdir()
    shutil.copy(CARDS / "README.md", tmp_path / "cards")
    return tmp_path / "cards"


def zoo_of(readme):
    """The table's rows by file of the card: name of the column -> cell."""
    table = readme.split(render.BEGIN)[1].split(render.END)[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]
    return {
        re.fullmatch(r"\[[\w.-]+\]\((.+)\)", row[0]).group(1): dict(zip(rows[0], row, strict=True)) for row in rows[2:]
    }


def assert_says_what_the_card_says(row, card):
    """Accuracy, N and MiB of a row against the text of the card."""

    def found(pattern):
        return re.search(pattern, card, re.MULTILINE).group(1)

    assert row["N"] == found(r"^\| sub-models \| (\d+) \|$")
    exported = re.search(r"^Accuracy of the whole ensemble on onnxruntime.*`fp32` ([\d.]+ %)", card, re.MULTILINE)
    measured = f"{exported.group(1)} (fp32 ONNX)" if exported else found(r"^\| accuracy \| ([\d.]+ %)") + " (torch)"
    assert row["accuracy"] == measured
    size = float(found(r"^\| `fp32` \| fp32 \| any hardware \| (?:[\d.]+ to )?([\d.]+) MiB \|"))
    assert float(row["MiB per device, fp32"]) == pytest.approx(size, abs=0.0051)
    assert row["task"] == found(r"^pipeline_tag: (.*)$")
    assert row["dataset"] == found(r"^\| data \| (.*), [\d,]+ test items \|$")


def test_cards_figures_and_table_are_rendered_from_finished_folders(tmp_path, output):
    folders = [finished(tmp_path / task, task) for task in TASKS]
    assert render.main([*map(str, folders), "--output", str(output)]) == 0
    zoo = zoo_of((output / "README.md").read_text())
    assert set(zoo) >= {"digits.md", "fsdd.md", "trec6.md"}
    for name in ("digits", "fsdd", "trec6"):
        card = (output / f"{name}.md").read_text()
        assert_says_what_the_card_says(zoo[f"{name}.md"], card)
        links = re.findall(r"!\[[^]]*\]\(([^)]+)\)", card)
        assert len(links) == (4 if name == "digits" else 3)
        assert all(link.startswith(f"assets/{name}/") and (output / link).is_file() for link in links)
        assert str(tmp_path) not in card
    assert zoo["digits.md"]["MiB per device, int8"] == "0.11"
    assert zoo["digits.md"]["ms"].startswith("1.25 ")


def test_rows_of_cards_that_are_not_rendered_anew_stay_and_those_without_a_card_go(tmp_path, output):
    for task in TASKS[:2]:
        assert render.main([str(finished(tmp_path / task, task)), "--output", str(output)]) == 0
    assert set(zoo_of((output / "README.md").read_text())) == {"digits.md", "fsdd.md"}
    (output / "digits.md").unlink()
    before = (output / "README.md").read_text()
    assert render.main([str(tmp_path / TASKS[1]), "--output", str(output)]) == 0
    after = (output / "README.md").read_text()
    assert set(zoo_of(after)) == {"fsdd.md"}
    assert after.split(render.END)[1] == before.split(render.END)[1] == README.split(render.END)[1]


def test_a_card_that_would_name_a_path_of_this_machine_is_refused(tmp_path, output, capsys):
    folder = finished(tmp_path / "work", "image-classification")
    path = folder / "09_card/ensemble/results.json"
    path.write_text(json.dumps({**sample_results(), "command": "edvit run /home/me/digits.yaml"}))
    assert render.main([str(folder), "--output", str(output)]) == 1
    assert "found the paths /home/me/digits.yaml" in capsys.readouterr().err
    assert not (output / "digits.md").exists()


def test_the_command_renews_a_card_after_another_export(tmp_path):
    root = finished(tmp_path, "text-classification") / "09_card/ensemble"
    (root / "README.md").write_text("of an earlier export")
    done = CliRunner().invoke(app, ["card", str(root), "--repo-id", "me/trec6"])
    assert done.exit_code == 0, done.output
    card = (root / "README.md").read_text()
    assert "| `qint8_arm64` | int8, dynamic |" in card
    assert "hf download me/trec6" in card
    done = CliRunner().invoke(app, ["card", str(tmp_path / "nowhere")])
    assert done.exit_code == 1
    assert "found none" in " ".join(done.output.split())


def test_a_folder_without_results_is_refused_by_name(tmp_path):
    sample_manifest().save(tmp_path)
    with pytest.raises(EDViTError, match=r"Expected results\.json in .*found none"):
        CardData.from_folder(tmp_path)


def test_the_zoo_of_this_repository_says_what_its_cards_say():
    cards = sorted(path.name for path in CARDS.glob("*.md") if path.name != "README.md")
    zoo = zoo_of(README)
    assert sorted(zoo) == cards, "every card has a row and every row a card: run model_cards/render.py"
    for name, row in zoo.items():
        card = (CARDS / name).read_text()
        assert_says_what_the_card_says(row, card)
        assert not render._MACHINE_PATH.search(card)
        for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", card):
            assert (CARDS / link).stat().st_size <= 60_000
