# SPDX-License-Identifier: Apache-2.0
"""Names in a card are shown as they are: whatever they hold, tables, code, figures and metadata stay whole."""

import dataclasses
import json
import re

import pytest
import yaml
from markdown_it import MarkdownIt

from edvit_hf.card.data import CardData
from edvit_hf.card.figures import draw_figures
from edvit_hf.card.javascript import javascript
from edvit_hf.card.markup import code, markdown_table, plain
from edvit_hf.card.render import render_card
from edvit_hf.card.zoo import zoo_row, zoo_table_markdown
from edvit_hf.manifest import Manifest
from support.card_samples import sample_manifest, sample_results

HOSTILE = [
    "<unk>",
    "_silence_",
    "__init__",
    "*bold*",
    "`code`",
    "``",
    "a|b",
    "a\\|b",
    "\\",
    "trailing\\",
    "[link](https://evil.example)",
    "![image](x.png)",
    "<script>alert(1)</script>",
    "<!-- hidden",
    "&lt;",
    "# heading",
    "- item",
    "12. item",
    "---",
    "===",
    "~~gone~~",
    "$x^2$",
    "https://evil.example/a",
    "www.evil.example",
    "two\nlines",
    "\u202egnp.exe",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "`a\\|b`",
    "class_1",
    "日本",
    "C++ & C#",
]
MARKDOWN = MarkdownIt("gfm-like", {"linkify": False})


def shown(tokens):
    """What a reader sees of inline tokens, and the kinds of those that are no text."""
    inline = [child for token in tokens if token.type == "inline" for child in token.children]
    kinds = {
        token.type for token in [*inline, *tokens] if token.type not in ("text", "text_special", "softbreak", "inline")
    }
    return "".join(child.content for child in inline), kinds


def expected(name):
    return " ".join(name.replace("\u202e", "\\u202e").split())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_shown_as_it_is_in_a_line_and_in_code(name):
    text, kinds = shown(MARKDOWN.parse(plain(name).replace("|", "\\|")))
    assert (text, kinds) == (expected(name), {"paragraph_open", "paragraph_close"})
    text, kinds = shown(MARKDOWN.parse(f"- {plain(name)}: note"))
    assert text == f"{expected(name)}: note"
    assert not kinds & {"heading_open", "html_block", "html_inline", "em_open", "strong_open", "link_open", "hr"}
    text, _ = shown(MARKDOWN.parse(f"x {code(name)} y"))
    assert text == f"x {expected(name)} y"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_cell_holds_a_name_and_breaks_no_table(name):
    table = markdown_table(["a", "b", "c"], [[plain(name), code(name), "end"]])
    tokens = MARKDOWN.parse(table)
    cells = [tokens[place + 1] for place, token in enumerate(tokens) if token.type == "td_open"]
    assert ["".join(c.content for c in cell.children) for cell in cells] == [expected(name), expected(name), "end"]


def with_names(value, name, kept):
    """Every text of a record replaced by a hostile one, but for those that are read as values."""
    if isinstance(value, dict):
        return {key: each if key in kept else with_names(each, name, kept) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [with_names(each, name, kept) for each in value]
    return f"{name}{value}" if isinstance(value, str) and value else value


KEPT = {"task", "class_groups", "name", "kind", "path", "license", "language", "repo_id", "config", "mode", "date"}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_card_of_hostile_names_has_the_structure_of_an_honest_one(name):
    def structure(results, manifest):
        card = render_card(CardData.from_run(results, manifest))
        front, body = re.fullmatch(r"---\n(.*?)\n---\n\n(.*)", card, re.DOTALL).groups()
        tokens = MARKDOWN.parse(body)
        inline = [child.type for token in tokens if token.type == "inline" for child in token.children]
        blocks = [(token.type, token.tag) for token in tokens]
        marks = {
            kind: inline.count(kind)
            for kind in ("html_inline", "link_open", "image", "em_open", "strong_open", "s_open")
        }
        return yaml.safe_load(front).keys(), blocks, marks

    def named(by):
        results, manifest = with_names(sample_results(), by, KEPT), sample_manifest()
        results["dataset"]["label_names"] = names = [f"{by} {index}" for index in range(len(manifest.label_names))]
        return structure(results, dataclasses.replace(manifest, label_names=names))

    assert named(name) == named("word")


@pytest.mark.parametrize("name", HOSTILE)
def test_metadata_with_a_hostile_title_is_whole_and_says_it(name):
    card = render_card(
        CardData.from_run(sample_results(), sample_manifest(), model_name=f"{name} x", dataset_name=f"{name} y")
    )
    front = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])
    (model,) = front["model-index"]
    assert model["name"].split()[-1] == "x"
    assert front["license"] == "apache-2.0"
    assert model["results"][0]["dataset"]["name"].endswith(" y")


@pytest.mark.parametrize("name", HOSTILE)
def test_the_zoo_stays_one_table(name):
    row = zoo_row(sample_manifest(), sample_results(), name, place=name)
    rows = [token for token in MARKDOWN.parse(zoo_table_markdown([row])) if token.type == "td_open"]
    assert len(rows) == 9
    linked = zoo_table_markdown([dataclasses.replace(row, name="digits")], link="{}.md")
    assert "| [digits](digits.md) |" in linked


@pytest.mark.parametrize("name", ["onnx/a'b.onnx", "onnx/`${x}`.onnx", "onnx/a$b.onnx", "onnx/ä.onnx", "onnx/```.onnx"])
def test_the_javascript_names_a_file_as_a_string_whatever_it_is_called(name):
    manifest = sample_manifest()
    whole = [dataclasses.replace(v, file=name) for v in manifest.whole if v.name == "fp32"]
    script = javascript("text-classification", dataclasses.replace(manifest, whole=whole), 0)
    assert f"classify({json.dumps(name)}, label_names)" in script
    assert "\n" not in json.dumps(name)


def test_figures_show_names_and_set_no_formula(tmp_path):
    names = ["$x^{2$", "$\\frac$", "a$b$c", "_silence_", "<unk>", "\\"]
    results = sample_results()
    results["dataset"]["label_names"] = [f"{names[index % len(names)]} {index}" for index in range(10)]
    results["command"] = f"edvit run {' '.join(names)}"
    assert "groups" in draw_figures(results, tmp_path, Manifest.from_json(sample_manifest().to_json()))
