"""The Space: pictures come into the form of the data, views are honest, the page serves without torch."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

from tiny_ensemble import write_tiny_ensemble

SPACE = Path(__file__).resolve().parents[1] / "space_app"
GROUPS = [[0, 3], [1, 7], [2, 5], [4, 8], [6, 9]]
STROKES = {  # one pen path for each digit, in shares of the canvas
    0: [
        (0.5, 0.1),
        (0.3, 0.2),
        (0.22, 0.5),
        (0.3, 0.8),
        (0.5, 0.9),
        (0.7, 0.8),
        (0.78, 0.5),
        (0.7, 0.2),
        (0.5, 0.1),
    ],
    1: [(0.4, 0.25), (0.55, 0.1), (0.55, 0.9)],
    2: [(0.28, 0.28), (0.4, 0.12), (0.6, 0.12), (0.7, 0.3), (0.6, 0.5), (0.28, 0.88), (0.74, 0.88)],
    4: [(0.6, 0.9), (0.6, 0.1), (0.25, 0.62), (0.78, 0.62)],
    7: [(0.26, 0.12), (0.74, 0.12), (0.45, 0.9)],
}


@pytest.fixture(scope="module", autouse=True)
def _space_on_path():
    sys.path.insert(0, str(SPACE))
    yield
    sys.path.remove(str(SPACE))


@pytest.fixture(scope="module")
def demo(_space_on_path):
    import demo

    return demo


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return data.images / 16, data.target


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, digits):
    """An ensemble of matched filters: linear, yet right on nine digits of ten."""
    images, labels = digits
    folder = tmp_path_factory.mktemp("model")
    means = np.stack([images[labels == digit].mean(axis=0) for digit in range(10)])
    write_tiny_ensemble(folder, GROUPS, label_names=[str(i) for i in range(10)], templates=means)
    return folder


@pytest.fixture(scope="module")
def ensemble(demo, model_dir):
    return demo.load_ensemble(model_dir)


def drawn(digit, *, pen=24, side=280, scale=1.0, shift=(0, 0), colour=(17, 17, 17, 255)):
    """What the sketchpad hands over: a transparent layer with strokes, and the composite on white."""
    layer = Image.new("RGBA", (side, side))
    points = [(shift[0] + x * side * scale, shift[1] + y * side * scale) for x, y in STROKES[digit]]
    pencil = ImageDraw.Draw(layer)
    pencil.line(points, fill=colour, width=pen, joint="curve")
    for x, y in points:
        pencil.ellipse([x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2], fill=colour)
    composite = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return {"background": None, "layers": [np.asarray(layer)], "composite": np.asarray(composite)}


@pytest.mark.parametrize("digit", STROKES)
def test_a_drawn_digit_is_nearest_to_the_same_digit_of_the_data(demo, digits, digit):
    images, labels = digits
    picture = demo.digit_from_drawing(drawn(digit))
    assert picture.shape == (8, 8, 3)
    distances = np.square(images - picture[:, :, 0] / 255).sum(axis=(1, 2))
    nearest = labels[np.argsort(distances)[:5]]
    assert np.bincount(nearest, minlength=10).argmax() == digit, nearest


@pytest.mark.parametrize("digit", STROKES)
@pytest.mark.parametrize("pen", [8, 24, 30])
def test_a_drawing_gets_the_height_the_centre_and_the_ink_of_the_data(demo, digits, digit, pen):
    images, _ = digits
    grey = demo.digit_from_drawing(drawn(digit, pen=pen))[:, :, 0] / 255
    assert (grey.max(axis=1) > 0).all(), "the digit fills all eight rows, as every digit of the data does"
    centres = (images.sum(axis=1) * np.arange(8)).sum(axis=1) / images.sum(axis=(1, 2))
    centre = (grey.sum(axis=0) * np.arange(8)).sum() / grey.sum()
    assert abs(centre - centres.mean()) < 1.0
    assert abs(grey.mean() - images.mean()) < 0.1
    assert grey[:, 0].mean() < 0.1, "the outer columns are nearly empty in the data"


def test_size_place_and_colour_of_a_drawing_do_not_matter(demo):
    reference = demo.digit_from_drawing(drawn(2, pen=20)).astype(int)
    moved = demo.digit_from_drawing(drawn(2, pen=20, shift=(30, -8))).astype(int)
    red = demo.digit_from_drawing(drawn(2, pen=20, colour=(255, 0, 0, 255))).astype(int)
    smaller = demo.digit_from_drawing(drawn(2, pen=10, scale=0.5, shift=(90, 20))).astype(int)
    np.testing.assert_array_equal(reference, moved)
    np.testing.assert_array_equal(reference, red)
    assert np.abs(reference - smaller).mean() < 20


def test_a_composite_without_layers_and_an_upload_on_any_paper_read_the_same(demo, tmp_path):
    drawing = drawn(7)
    expected = demo.digit_from_drawing(drawing)
    np.testing.assert_array_equal(demo.digit_from_drawing({"composite": drawing["composite"]}), expected)
    dark_on_light = Image.fromarray(drawing["composite"]).convert("L")
    for name, picture in (("a.png", dark_on_light), ("b.png", Image.eval(dark_on_light, lambda v: 255 - v))):
        picture.save(tmp_path / name)
        np.testing.assert_array_equal(demo.digit_from_file(tmp_path / name), expected)


@pytest.mark.parametrize(
    "drawing",
    [
        None,
        {},
        {"background": None, "layers": [], "composite": None},
        {"layers": [np.zeros((9, 9, 4), np.uint8)]},
    ],
)
def test_an_empty_drawing_is_answered_with_a_sentence(demo, ensemble, drawing):
    view = demo.view_of_drawing(ensemble, drawing, [])
    assert view.sentence.startswith("The drawing is empty.")
    assert view.picture is None
    assert view.probabilities == {}
    assert view.rows == []


def test_bad_files_are_answered_with_sentences(demo, ensemble, tmp_path):
    (tmp_path / "text.png").write_bytes(b"no picture")
    Image.new("RGB", (200, 200), "white").save(tmp_path / "blank.png")
    Image.new("RGB", (60, 60)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    with (tmp_path / "big.png").open("wb") as file:
        file.truncate(demo.MAX_FILE_BYTES + 1)
    expected = {
        None: "Choose a picture of one digit first",
        "text.png": "not a readable picture",
        "cut.png": "not a readable picture",
        "blank.png": "hardly any contrast",
        "big.png": "larger than 5 MiB",
    }
    for name, part in expected.items():
        view = demo.view_of_file(ensemble, name and tmp_path / name, [])
        assert part in view.sentence, (name, view.sentence)
        assert view.picture is None
        assert str(tmp_path) not in view.sentence, "a page must not show the server's paths"


def test_bundled_examples_are_items_of_the_data_and_taken_as_they_are(demo, digits):
    images, labels = digits
    files = demo.example_files()
    assert len(files) >= 3
    for file in files:
        digit, index = map(int, file.stem.split("_"))
        picture = demo.digit_from_file(file)
        np.testing.assert_array_equal(picture[:, :, 0], np.rint(images[index] * 255).astype(np.uint8))
        assert labels[index] == digit


def test_examples_are_answered_with_one_row_for_each_sub_model(demo, ensemble):
    right = 0
    for file in demo.example_files():
        view = demo.view_of_file(ensemble, file, [])
        answer = max(view.probabilities, key=view.probabilities.get)
        right += answer == file.stem[0]
        assert view.sentence.startswith(f"**{answer}** with")
        assert abs(sum(view.probabilities.values()) - 1) < 1e-5
        assert [row[:2] for row in view.rows] == [[str(i), f"{a}, {b}"] for i, (a, b) in enumerate(GROUPS)]
        assert all(len(row) == len(demo.HEADERS) for row in view.rows)
        assert [row[4] for row in view.rows] == [str(4 * len(group)) for group in GROUPS], "float32 features"
        assert all(float(row[3]) >= 0 for row in view.rows)
    assert right >= len(demo.example_files()) - 1, "the toy ensemble is right on nine of ten"


def test_unplugging_the_sub_model_of_a_digit_changes_the_answer_and_says_so(demo, ensemble):
    file = next(f for f in demo.example_files() if f.name.startswith("0_"))
    before, after = demo.view_of_file(ensemble, file, []), demo.view_of_file(ensemble, file, [0])
    assert max(after.probabilities, key=after.probabilities.get) != "0"
    assert "The answer changes: with all of them it was 0" in after.sentence
    assert "4 of 5 sub-models are left" in after.sentence
    assert after.rows[0][2:] == ["unplugged", "-", "0", "-"]
    winner = max(after.probabilities, key=after.probabilities.get)
    assert before.rows[0][5].startswith(winner), "the table announced what unplugging would do"


def test_unplugging_everything_is_answered_with_a_sentence(demo, ensemble):
    view = demo.view_of_file(ensemble, demo.example_files()[0], [0, 1, 2, 3, 4])
    assert view.sentence == demo.ALL_UNPLUGGED
    assert view.probabilities == {}


def test_a_missing_model_says_what_to_run(demo, tmp_path):
    with pytest.raises(demo.EDViTError, match=r"edvit run recipes/digits.yaml.*space_app/model/"):
        demo.load_ensemble(tmp_path / "model")


def test_the_page_serves_answers_over_http_and_loads_no_torch(model_dir, tmp_path):
    """One fresh interpreter: torch is looked for after a real request went through the running page."""
    code = f"""
import sys
sys.path.insert(0, {str(SPACE)!r})
import app, httpx
from gradio_client import Client, handle_file
from pathlib import Path
page = app.build_page(Path({str(model_dir)!r}))
_, url, _ = app.launch(page, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
client = Client(url, verbose=False)
example = app.example_files()[0]
_, label, table, sentence = client.predict(handle_file(str(example)), [], api_name="/upload")
assert label["label"] == "0", label
assert len(table["data"]) == 5, table
_, label, table, sentence = client.predict([0], api_name="/unplug")
assert "The answer changes" in sentence, sentence
assert client.predict(0, [], api_name="/example")[1]["label"] == "0"
layers = dict(background=None, layers=[], composite=None, id=None)
assert "empty" in client.predict(layers, [], api_name="/draw")[-1]
samples = next(c for c in page.config["components"] if c["type"] == "dataset")["props"]["samples"]
path = samples[0][0]["path"] if isinstance(samples[0][0], dict) else samples[0][0]
assert httpx.get(f"{{url}}gradio_api/file={{path}}").content == example.read_bytes(), samples[0]
assert not page.analytics_enabled
page.close()
missing = app.build_page(Path({str(tmp_path)!r}))
assert "edvit run" in str(missing.config["components"]), "the page says what is missing"
heavy = {{"torch", "transformers"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_front_matter_and_pins_agree():
    front = yaml.safe_load((SPACE / "README.md").read_text().split("---")[1])
    pins = dict(re.findall(r"^([\w\[\]]+)==(\S+)$", (SPACE / "requirements.txt").read_text(), re.MULTILINE))
    from edvit_hf import __version__

    assert front["sdk"] == "gradio"
    assert front["sdk_version"] == pins["gradio"]
    assert (SPACE / front["app_file"]).is_file()
    assert len(front["short_description"]) <= 60
    assert pins["edvit_hf[device]"] == __version__
