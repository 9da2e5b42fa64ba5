# SPDX-License-Identifier: Apache-2.0
"""The Space: ensembles open once for all, whatever is wrong with one is a sentence, and what nobody uses is freed."""

import contextlib
import gc
import json
import shutil
import threading
import time

import numpy as np
import pytest

from answers import answering, ensembles, inputs, runtimes
from answers.documents import read_card
from answers.opening import OpenedOnce, VisitorError
from edvit_hf.errors import EDViTError
from edvit_hf.manifest import Manifest
from support.space_ensembles import write_digits, write_each
from support.tiny_ensemble import write_tiny_ensemble

NAMES = ("digits", "spoken_digits", "question_type")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("toy") / "digits_toy")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    monkeypatch.delenv(ensembles.OWN_VARIABLE, raising=False)
    monkeypatch.delenv(ensembles.SPACE_VARIABLE, raising=False)


def refusal(source):
    with pytest.raises(VisitorError) as caught:
        ensembles.open_other(source)
    sentence = str(caught.value)
    assert "Expected" not in sentence
    assert sentence.endswith(".")
    return sentence


def test_every_bundle_opens_and_says_what_it_takes():
    assert tuple(bundle.name for bundle in ensembles.bundles()) == NAMES
    for bundle in ensembles.bundles():
        opened = ensembles.open_bundle(bundle.name)
        assert (opened.name, opened.title, opened.task) == (bundle.name, bundle.title, bundle.task)
        assert opened.hint.startswith(bundle.hint)
        for label in opened.runtime.label_names:
            assert label.isdigit() or f"({label})" in opened.hint, "a label that is no word is explained"
        assert opened.can_draw == (bundle.name == "digits")
        assert opened.taker.hears_words == (bundle.name == "spoken_digits")
        assert {device.state for device in opened.devices} == {"waiting"}
        assert opened.examples
        assert opened.card.startswith("# ED-ViT ensemble")
        assert "licensed" in opened.credits or "Apache-2.0" in opened.credits
        assert opened.license == "apache-2.0"
        assert opened.plans
        assert [model.name for model in opened.models][:2] == ["teacher", "ensemble"]
        assert answering.card_note(opened, 0)
        assert ensembles.open_named(opened.name) is opened


def test_examples_of_every_bundle_are_answered():
    prepare = {
        "image-classification": inputs.prepare_image,
        "audio-classification": inputs.prepare_sound,
        "text-classification": inputs.prepare_text,
    }
    for name in NAMES:
        opened = ensembles.open_bundle(name)
        views = [answering.view(opened, prepare[opened.task](opened, e.value), []) for e in opened.examples]
        assert {view.state for view in views} == {"answered"}
        if opened.task != "text-classification":
            right = [view.label == example.label for view, example in zip(views, opened.examples, strict=True)]
            assert sum(right) >= len(right) - 1, "its accuracy is above nine in ten"
            assert right[0], "the first one is what visitors try"
        else:
            assert (views[0].label, opened.examples[0].label) == ("DESC", "Why does the moon change its shape ?")
        assert not any("not measured" in view.card_note for view in views)


def test_a_bundle_of_any_name_that_the_spaces_owner_put_there_is_offered(tmp_path, folder):
    shutil.copytree(folder, tmp_path / "flowers")
    shutil.copytree(folder, tmp_path / "No_Bundle")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/manifest.json").write_text("{}")
    broken, flowers = ensembles.bundles(tmp_path)
    assert (flowers.name, flowers.title, flowers.task) == ("flowers", "toy", "image-classification")
    assert (broken.name, broken.task) == ("broken", None)
    opened = ensembles.open_bundle("flowers", tmp_path)
    assert (opened.title, opened.examples, opened.can_draw) == ("toy", (), True)
    with pytest.raises(EDViTError, match="damaged"):
        ensembles.open_bundle("broken", tmp_path)
    with pytest.raises(EDViTError, match="not here"):
        ensembles.open_bundle("No_Bundle", tmp_path)


def test_without_bundles_there_is_nothing_to_choose_and_a_sentence(tmp_path):
    assert ensembles.bundles(tmp_path) == ()
    with pytest.raises(EDViTError, match="not here"):
        ensembles.open_bundle("digits", tmp_path)
    with pytest.raises(EDViTError, match="not here"):
        ensembles.open_bundle("../digits")


def test_the_owners_ensemble_comes_first(monkeypatch, folder, tmp_path):
    monkeypatch.setenv(ensembles.OWN_VARIABLE, str(folder))
    monkeypatch.setenv(ensembles.SPACE_VARIABLE, "ada/space")  # what its owner names may be a folder there too
    first, *rest = ensembles.bundles()
    assert (first.name, first.title, first.task) == ("own", "toy", "image-classification")
    assert tuple(bundle.name for bundle in rest) == NAMES
    assert ensembles.open_bundle("own").can_draw
    assert ensembles.open_named("own") is ensembles.open_bundle("own")
    monkeypatch.setenv(ensembles.OWN_VARIABLE, str(tmp_path))
    first, *rest = ensembles.bundles()
    assert (first.task, len(rest)) == (None, 3)
    assert "holds no ensemble" in first.hint
    with pytest.raises(EDViTError, match="holds no ensemble"):
        ensembles.open_bundle("own")


def test_a_folder_opens_where_the_page_runs_locally_and_nowhere_else(monkeypatch, folder):
    assert ensembles.open_other(f"  {folder}/ ") is ensembles.open_other(str(folder)), "opened once for all"
    monkeypatch.chdir(folder.parent)
    assert ensembles.open_other(folder.name) is ensembles.open_other(str(folder))
    monkeypatch.setenv(ensembles.SPACE_VARIABLE, "ada/space")
    assert "neither a name on the Hub" in refusal(f"{folder}/../{folder.name}")


@pytest.mark.parametrize("source", ["", "   ", None, "a\nb", "x" * 5000, "\0"])
def test_no_name_at_all_is_refused(source):
    assert "OWNER/NAME" in refusal(source)


@pytest.mark.parametrize(
    "source",
    ["../../no/such", "https://example.org/a/b", "file:///etc", "a/b/c", "--help", "a b", "/no/such/folder", "-x/y"],
)
def test_what_is_no_hub_id_never_reaches_the_hub(source, monkeypatch):
    monkeypatch.setattr(ensembles, "fetch_ensemble", lambda *_: pytest.fail("the Hub was asked"))
    assert "neither a name on the Hub nor a folder" in refusal(source)


def damage(how, folder):
    graphs = sorted(folder.glob("sub_models/*/onnx/*.onnx"))
    if how == "empty":
        (folder / "manifest.json").unlink()
    elif how == "no graphs":
        for path in graphs:
            path.unlink()
    elif how == "one graph missing":
        graphs[-1].unlink()
    elif how == "no fusion head":
        (folder / "onnx/fusion.onnx").unlink()
    elif how == "altered graph":
        graphs[-1].write_bytes(graphs[-1].read_bytes()[:-1] + b"!")
    elif how == "no preprocessing":
        (folder / "preprocessor_config.json").unlink()
    elif how == "manifest cut":
        (folder / "manifest.json").write_text((folder / "manifest.json").read_text()[:500])
    elif how == "manifest of the future":
        data = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**data, "schema_version": 99}))
    elif how == "no JSON":
        (folder / "manifest.json").write_bytes(b"\xff\xfe\0")
    elif how == "deep JSON":
        (folder / "manifest.json").write_text("[" * 100_000)


@pytest.mark.parametrize(
    ("how", "part"),
    [
        ("empty", "holds no ensemble: there is no manifest.json"),
        ("no graphs", "holds no ONNX files"),
        ("one graph missing", "holds no ONNX files for all"),
        ("no fusion head", "holds no ONNX files"),
        ("altered graph", "is damaged, incomplete"),
        ("no preprocessing", "is damaged, incomplete"),
        ("manifest cut", "is damaged, incomplete"),
        ("manifest of the future", "another version of edvit_hf"),
        ("no JSON", "is damaged, incomplete"),
        ("deep JSON", "is damaged, incomplete"),
    ],
)
def test_a_folder_that_is_no_whole_ensemble_is_one_sentence(tmp_path, how, part):
    folder = tmp_path / "given"
    write_tiny_ensemble(folder, [[0, 1], [2]])
    damage(how, folder)
    sentence = refusal(str(folder))
    assert part in sentence
    assert str(tmp_path) not in sentence
    write_tiny_ensemble(folder, [[0, 1], [2]])
    assert len(ensembles.open_other(str(folder)).devices) == 2, "a mended folder opens: refusals are not remembered"


def test_results_and_card_that_are_nonsense_cost_only_themselves(tmp_path):
    write_tiny_ensemble(tmp_path, [[0, 1], [2]])
    (tmp_path / "results.json").write_text('{"rows": 3, "absent": [{"num_absent": -1}], "recipe": ["x"]}')
    (tmp_path / "README.md").write_bytes(
        b"---\n[: not yaml\n---\n# Card \xff\n![x](https://a.example/x.png)<script>1</script>"
    )
    opened = ensembles.open_other(str(tmp_path))
    assert [model.name for model in opened.models] == ["ensemble"]
    assert opened.absent == ()
    assert opened.license == ""
    assert opened.card.startswith("# Card")
    assert "example" not in opened.card
    assert "<script" not in opened.card


def test_a_card_is_shown_without_settings_pictures_and_html(tmp_path):
    text = "---\nlicense: mit\n---\n# T\n\n![a](b.png) ![c][d] <img src='https://x'> a < b\n\n| x | y |\n"
    (tmp_path / "MODEL_CARD.md").write_text(text)
    assert read_card(tmp_path) == ("# T\n\n   a < b\n\n| x | y |", "mit")
    assert read_card(tmp_path / "absent") == ("", "")


def test_visitors_who_ask_at_once_open_an_ensemble_once():
    calls, go = [], threading.Event()

    def load():
        calls.append(1)
        go.wait(60)
        return object()

    openings = OpenedOnce(max_named=2, max_opening=2, seconds=60)
    found = []
    askers = [threading.Thread(target=lambda: found.append(openings.get("a", load, is_bundle=False))) for _ in range(6)]
    for asker in askers:
        asker.start()
    go.set()
    for asker in askers:
        asker.join()
    assert (len(calls), len(found), len(set(map(id, found)))) == (1, 6, 1)


def test_opening_is_bounded_in_time_and_number_and_goes_on_behind_the_visitor():
    go, loaded = threading.Event(), object()

    def slow():
        go.wait(60)
        return loaded

    openings = OpenedOnce(max_named=4, max_opening=1, seconds=0.05)
    with pytest.raises(EDViTError, match="goes on: try again"):
        openings.get("slow", slow, is_bundle=False)
    with pytest.raises(EDViTError, match="Others open ensembles"):
        openings.get("another", object, is_bundle=False)
    openings._seconds = 60  # what is quick takes long on a busy machine
    assert openings.get("bundle", lambda: 7, is_bundle=True) == 7, "what the page came with is always there"
    go.set()
    assert openings.get("slow", pytest.fail, is_bundle=False) is loaded
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(EDViTError):  # the thread that opened the first one may not have ended
            assert openings.get("another", lambda: 3, is_bundle=False) == 3
            break
    assert openings.find("another") == 3


def test_whatever_breaks_while_opening_is_a_sentence_and_the_next_try_is_free():
    openings = OpenedOnce(max_named=1, max_opening=1, seconds=60)

    def fail():
        raise ZeroDivisionError("inside")

    for _ in range(3):
        with pytest.raises(VisitorError, match="cannot be opened here") as caught:
            openings.get("x", fail, is_bundle=False)
        assert "inside" not in str(caught.value)


def test_the_last_few_stay_open_and_an_ensemble_that_nobody_uses_ends_its_threads(tmp_path_factory):
    before = set(threading.enumerate())  # not their numbers: those of ended threads are given again
    openings = OpenedOnce(max_named=1, max_opening=1, seconds=60)
    first, second = (str(folder) for folder in list(write_each(tmp_path_factory).values())[:2])

    def load(source):
        return lambda: ensembles._open_source(source, name=source, may_be_folder=True)

    held = openings.get(first, load(first), is_bundle=False)
    openings.get(second, load(second), is_bundle=False)
    assert held.runtime.predict({"pixel_values": np.zeros((1, 3, 8, 8), "float32")}).labels, "in use: it lives"
    del held
    gc.collect()
    end = time.monotonic() + 60
    while time.monotonic() < end:
        mine = [t for t in threading.enumerate() if t not in before and t.name.startswith("edvit-local")]
        if len(mine) <= 1:
            break
        time.sleep(0.01)
    assert len(mine) == 1, "that of the second"


def test_of_those_that_visitors_named_the_one_asked_for_longest_ago_goes_first():
    openings = OpenedOnce(max_named=2, max_opening=1, seconds=60)
    openings.get("bundle", lambda: 7, is_bundle=True)
    for key in ("a", "b", "a", "c"):
        openings.get(key, lambda key=key: key.upper(), is_bundle=False)
    assert [openings.find(key) for key in ("bundle", "a", "b", "c", "absent")] == [7, "A", None, "C", None]
    openings.find("a")
    openings.get("d", lambda: "D", is_bundle=False)
    assert [openings.find(key) for key in ("a", "c", "d")] == ["A", None, "D"]


def test_an_ensemble_of_giant_inputs_is_refused(monkeypatch, tmp_path):
    write_tiny_ensemble(tmp_path, [[0, 1], [2]])
    monkeypatch.setattr(runtimes, "MAX_INPUT_VALUES", 3 * 8 * 8 - 1)
    assert "inputs that are too large for this page" in refusal(str(tmp_path))
    monkeypatch.setattr(runtimes, "MAX_INPUT_VALUES", 3 * 8 * 8)
    assert len(ensembles.open_other(str(tmp_path)).devices) == 2


def test_an_ensemble_of_int8_files_alone_opens(tmp_path):
    manifest = write_tiny_ensemble(tmp_path, [[0, 1]])
    entry = manifest.sub_models[0]
    int8 = [v for v in entry.variants if v.precision == "int8"]
    data = json.loads((tmp_path / "manifest.json").read_text())
    data["sub_models"][0]["variants"] = [v for v in data["sub_models"][0]["variants"] if v["file"] == int8[0].file]
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    Manifest.load(tmp_path)
    opened = ensembles.open_other(str(tmp_path))
    assert len(opened.devices) == 3  # replicas of the one sub-model


def test_one_visitor_has_one_ensemble_opened_at_a_time_and_keeps_the_last_two():
    go, begun = threading.Event(), threading.Event()

    def slow():
        begun.set()
        go.wait(60)
        return object()

    openings = OpenedOnce(max_named=4, max_opening=2, seconds=60, max_each=2)
    asking = threading.Thread(target=openings.get, args=("slow", slow), kwargs={"is_bundle": False, "visitor": "a"})
    asking.start()
    begun.wait(60)
    with pytest.raises(EDViTError, match="being opened for you"):
        openings.get("other", object, is_bundle=False, visitor="a")
    assert openings.get("other", lambda: 1, is_bundle=False, visitor="b") == 1
    go.set()
    asking.join(60)
    for name in ("x", "y"):
        openings.get(name, lambda: name, is_bundle=False, visitor="a")  # noqa: B023
    assert [openings.find(name) is not None for name in ("slow", "x", "y", "other")] == [False, True, True, True]


def test_not_all_places_are_taken_by_those_who_wait_for_one_ensemble():
    go = threading.Event()
    openings = OpenedOnce(max_named=4, max_opening=2, seconds=60, max_waiting=2)
    load = {"load": lambda: go.wait(60), "is_bundle": False}
    asking = [threading.Thread(target=openings.get, args=("slow",), kwargs=load) for _ in range(2)]
    for each in asking:
        each.start()
    while len(openings._waiting) < 2:
        time.sleep(0.001)
    with pytest.raises(EDViTError, match="Others open ensembles"):
        openings.get("slow", pytest.fail, is_bundle=False)
    go.set()
    for each in asking:
        each.join(60)
    assert openings.get("slow", pytest.fail, is_bundle=False) is True


def test_one_address_holds_no_more_than_its_part_of_the_places_to_wait_in():
    go = threading.Event()
    openings = OpenedOnce(max_named=4, max_opening=3, seconds=60, max_waiting=6, max_waiting_each=2)
    load = {"load": lambda: go.wait(60), "is_bundle": False, "visitor": "192.0.2.1"}
    asking = [threading.Thread(target=openings.get, args=("slow",), kwargs=load) for _ in range(2)]
    for each in asking:
        each.start()
    while len(openings._waiting) < 2:
        time.sleep(0.001)
    with pytest.raises(EDViTError, match="Try again in a minute"):
        openings.get("slow", pytest.fail, is_bundle=False, visitor="192.0.2.1")
    assert openings.get("other", lambda: 1, is_bundle=False, visitor="192.0.2.2") == 1
    go.set()
    for each in asking:
        each.join(60)
    assert len(openings._waiting) == 0


def test_one_whose_process_is_gone_counts_as_closed():
    alive = {"is": True}
    openings = OpenedOnce(max_named=4, max_opening=2, seconds=60, is_usable=lambda _: alive["is"])
    assert openings.get("a", lambda: 1, is_bundle=False) == 1
    alive["is"] = False
    assert openings.find("a") is None
    assert openings.get("a", lambda: 2, is_bundle=False) == 2
