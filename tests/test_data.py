"""Datasets load from every source, bad ones are refused by name, and augmented views can be replayed."""

import io
import json
import logging

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edvit_hf.data import (
    Augmentation,
    CachedPixels,
    DatasetConfig,
    ImageSplit,
    class_group_indices,
    class_group_labels,
    iterate_batches,
    load_task,
    task,
)
from edvit_hf.data.subsets import stratified_split, stratified_subset
from edvit_hf.errors import DataError
from edvit_hf.transforms import ImageTransform

_OFF = Augmentation()
_AUGMENTATION = Augmentation(shift=0.2, rotate_degrees=20, scale=0.2, flip=True)
_quick = settings(max_examples=25, deadline=None)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")
    monkeypatch.delenv("EDVIT_DATA_DIR", raising=False)
    datasets.disable_progress_bars()


def _png(index, size=10):
    pixels = np.random.default_rng(index).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _write_split(folder, split, labels, label_feature, *, images=None, columns=("image", "label"), declared=None):
    """Write one parquet split; `declared` replaces the label feature in the file's metadata, unchecked."""
    folder.mkdir(exist_ok=True)
    images = images or [_png(index) for index in range(len(labels))]
    features = datasets.Features({columns[0]: datasets.Image(), columns[1]: label_feature})
    rows = {columns[0]: [{"bytes": image, "path": None} for image in images], columns[1]: labels}
    written = datasets.Dataset.from_dict(rows, features=features)
    path = folder / f"{split}-00000-of-00001.parquet"
    written.to_parquet(path)
    if declared is not None:
        table = pq.read_table(path)
        info = json.loads(table.schema.metadata[b"huggingface"])
        info["info"]["features"][columns[1]] = {"names": declared, "_type": "ClassLabel"}
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), path)


def _write_dataset(folder, train, test, label_feature, **options):
    _write_split(folder, "train", train, label_feature, **options)
    _write_split(folder, "test", test, label_feature, **options)


def _config(folder, **options):
    return DatasetConfig(**{"path": "parquet", "data_dir": str(folder), "image_size": 8, **options})


_NAMES = ["cat", "dog", "emu"]
_TRAIN, _TEST = [0, 1, 2] * 10, [2, 1, 0]


@pytest.fixture
def animals(tmp_path):
    _write_dataset(tmp_path / "animals", _TRAIN, _TEST, datasets.ClassLabel(names=_NAMES))
    return tmp_path / "animals"


def _split(num_items=20, size=9, augmentation=_AUGMENTATION):
    pixels = np.random.default_rng(0).integers(0, 256, (num_items, 3, size, size), dtype=np.uint8)
    return ImageSplit(CachedPixels(pixels), np.arange(num_items) % 4, augmentation=augmentation, seed=3)


# --- sources ---


def test_the_embedded_digits_need_no_files():
    loaded = load_task(DatasetConfig(path="digits", image_size=8), _OFF)
    sizes = [len(split) for split in (loaded.train, loaded.validation, loaded.test)]
    assert sum(sizes) == 1797
    assert sizes[2] == round(1797 * 0.25)
    assert sizes[1] == round((1797 - sizes[2]) * 0.1)
    assert loaded.label_names == list("0123456789")
    pixels = loaded.train.pixel_values(range(sizes[0]))
    assert (pixels.min(), pixels.max()) == (-1, 1)
    assert torch.equal(pixels[:, 0], pixels[:, 2])
    for split in (loaded.train, loaded.validation, loaded.test):
        shares = np.bincount(split.labels, minlength=10) / len(split)
        assert np.abs(shares - 0.1).max() < 0.02


def test_equal_configs_give_equal_splits_and_another_seed_gives_others():
    first, second, other = (load_task(DatasetConfig(path="digits", image_size=8, seed=s), _OFF) for s in (0, 0, 1))
    everything = range(len(first.test))
    assert torch.equal(first.test.pixel_values(everything), second.test.pixel_values(everything))
    assert not torch.equal(first.test.pixel_values(everything), other.test.pixel_values(everything))


def test_the_three_digit_splits_share_no_row_and_lose_none():
    from sklearn.datasets import load_digits

    loaded = load_task(DatasetConfig(path="digits", image_size=8), _OFF)
    splits = (loaded.train, loaded.validation, loaded.test)
    rows = np.concatenate([s.pixel_values(range(len(s)))[:, 0].flatten(1).numpy() for s in splits])
    original = np.rint(load_digits().data * (255 / 16)) / 127.5 - 1
    assert sorted(map(tuple, rows.round(3))) == sorted(map(tuple, original.round(3).astype(np.float32)))


def test_parquet_class_names_become_the_label_names(animals):
    loaded = load_task(_config(animals), _OFF)
    assert loaded.label_names == _NAMES
    assert loaded.test.labels.tolist() == _TEST
    assert np.bincount(loaded.train.labels).tolist() == [9, 9, 9]
    assert np.bincount(loaded.validation.labels).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("values", "dtype", "names"),
    [
        ((0, 1, 2), "int64", ["0", "1", "2"]),
        ((10, 2, 7), "int32", ["2", "7", "10"]),
        (("b", "a", "c"), "string", ["a", "b", "c"]),
    ],
)
def test_labels_without_declared_names_are_mapped_in_sorted_order(tmp_path, values, dtype, names):
    train, test = [values[i] for i in _TRAIN], [values[i] for i in _TEST]
    _write_dataset(tmp_path / "set", train, test, datasets.Value(dtype))
    loaded = load_task(_config(tmp_path / "set"), _OFF)
    assert loaded.label_names == names
    assert [loaded.label_names[label] for label in loaded.test.labels] == [str(label) for label in test]


def test_folders_of_image_files_load_and_need_not_be_named_as_such(tmp_path):
    for split, count in (("train", 6), ("test", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                (folder / f"{index}.png").write_bytes(_png(index))
    named = load_task(_config(tmp_path / "set", path="imagefolder"), _OFF)
    hub_id = load_task(_config(tmp_path / "set", path="someone/pets"), _OFF)
    assert named.label_names == ["cat", "dog"]
    assert len(named.train) + len(named.validation) == 12
    assert torch.equal(named.test.pixel_values(range(4)), hub_id.test.pixel_values(range(4)))


def test_plain_bytes_and_a_file_struct_load_like_an_image_feature(animals, tmp_path):
    expected = load_task(_config(animals), _OFF).test.pixel_values(range(3))
    for feature, wrap in (
        (datasets.Value("binary"), lambda b: b),
        (
            {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            lambda b: {"bytes": b, "path": "a"},
        ),
    ):
        folder = tmp_path / str(type(feature).__name__)
        folder.mkdir()
        for split, labels in (("train", _TRAIN), ("test", _TEST)):
            features = datasets.Features({"image": feature, "label": datasets.Value("int64")})
            rows = {"image": [wrap(_png(index)) for index in range(len(labels))], "label": labels}
            datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
        assert torch.equal(load_task(_config(folder), _OFF).test.pixel_values(range(3)), expected)


def test_a_folder_under_the_environment_variable_replaces_the_hub(animals, monkeypatch):
    monkeypatch.setenv("EDVIT_DATA_DIR", str(animals.parent))
    config = DatasetConfig(path="someone/animals", local_name="animals", image_size=8)
    assert load_task(config, _OFF).label_names == _NAMES


def test_a_hub_dataset_that_cannot_be_reached_says_how_to_use_local_files(tmp_path, monkeypatch):
    monkeypatch.setenv("EDVIT_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match=r"someone/animals.*set `data_dir`.*animals2.*EDVIT_DATA_DIR"):
        load_task(DatasetConfig(path="someone/animals", local_name="animals2"), _OFF)


def test_a_validation_split_is_used_when_named(animals):
    _write_split(animals, "validation", [1, 1, 0], datasets.ClassLabel(names=_NAMES))
    loaded = load_task(_config(animals, validation_split="validation"), _OFF)
    assert loaded.validation.labels.tolist() == [1, 1, 0]
    assert len(loaded.train) == 30


def test_sample_limits_keep_the_classes_in_balance(animals):
    loaded = load_task(_config(animals, max_train_samples=12, max_test_samples=2), _OFF)
    assert len(loaded.train) + len(loaded.validation) == 12
    assert (np.bincount(loaded.train.labels) + np.bincount(loaded.validation.labels, minlength=3)).tolist() == [4] * 3
    assert len(loaded.test) == 2


@_quick
@given(
    counts=st.lists(st.integers(1, 30), min_size=2, max_size=6),
    fraction=st.floats(0.05, 0.95),
    size=st.integers(1, 100),
    seed=st.integers(0, 9),
)
def test_stratified_choices_keep_rare_classes_and_shares(counts, fraction, size, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    stays, carved = stratified_split(labels, fraction, seed=(seed,))
    assert sorted([*stays, *carved]) == list(range(len(labels)))
    assert set(labels[stays]) == set(labels)
    subset = stratified_subset(labels, size, seed=(seed,))
    assert len(set(subset)) == len(subset) == min(size, len(labels))
    assert len(set(labels[subset])) == len(counts) or size < len(counts)
    shares = np.bincount(labels[subset], minlength=len(counts)) - len(subset) * np.array(counts) / len(labels)
    assert np.abs(shares).max() <= len(counts)


# --- refusals ---


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image_column": "img"}, r"column named 'img'.*got columns: image, label"),
        ({"label_column": "y"}, r"column named 'y'.*got columns: image, label"),
        ({"test_split": "dev"}, r"split named 'dev'.*got only: test, train"),
        ({"validation_split": "dev"}, r"split named 'dev'"),
        ({"label_column": "image"}, "one class per row"),
        ({"data_dir": "absent_folder"}, "existing folder, got 'absent_folder'"),
        ({"data_dir": None}, "needs|Expected `data_dir` beside path 'parquet'"),
        ({"max_train_samples": 1}, "Expected rows for validation|two classes"),
    ],
)
def test_a_description_that_does_not_fit_is_refused_by_name(animals, change, named):
    with pytest.raises(DataError, match=named):
        load_task(_config(animals, **change), _OFF)


def test_the_only_column_of_images_need_not_be_named(tmp_path):
    feature = datasets.ClassLabel(names=_NAMES)
    _write_dataset(tmp_path / "other_name", _TRAIN, _TEST, feature, columns=("img", "label"))
    _write_dataset(tmp_path / "usual_name", _TRAIN, _TEST, feature)
    other, usual = (load_task(_config(tmp_path / name), _OFF) for name in ("other_name", "usual_name"))
    assert torch.equal(other.test.pixel_values([0, 1]), usual.test.pixel_values([0, 1]))


def test_an_image_column_without_images_is_refused(animals):
    with pytest.raises(DataError, match=r"Expected images in column 'label'"):
        load_task(_config(animals, image_column="label"), _OFF)


def test_a_folder_without_parquet_files_and_a_damaged_one_are_refused(tmp_path):
    with pytest.raises(DataError, match="Expected parquet files"):
        load_task(_config(tmp_path), _OFF)
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1 but nothing else")
    with pytest.raises(DataError, match="Expected a readable dataset in"):
        load_task(_config(tmp_path), _OFF)


def test_a_single_class_is_refused(tmp_path):
    _write_dataset(tmp_path / "set", [1] * 9, [1], datasets.ClassLabel(names=["cat", "dog"]))
    with pytest.raises(DataError, match="at least two classes"):
        load_task(_config(tmp_path / "set"), _OFF)


@pytest.mark.parametrize("hidden", [-1, None, 3, 17])
def test_a_label_outside_the_declared_classes_is_refused_with_its_row(tmp_path, hidden):
    _write_split(tmp_path / "set", "train", _TRAIN, datasets.Value("int64"), declared=_NAMES)
    _write_split(tmp_path / "set", "test", [0, 1, hidden, 2, hidden], datasets.Value("int64"), declared=_NAMES)
    with pytest.raises(DataError, match=rf"class ids in 0\.\.2 in split 'test', got 2 row.*row 2: {hidden}, row 4"):
        load_task(_config(tmp_path / "set"), _OFF)


@pytest.mark.parametrize(
    ("train", "test"), [([0, 1] * 5, [5]), ([0, 1] * 5, [-1]), ([0, 1, -1] * 5, [0]), ([0, 1, None] * 5, [0])]
)
def test_an_undeclared_label_that_is_hidden_or_unknown_is_refused(tmp_path, train, test):
    _write_dataset(tmp_path / "set", train, test, datasets.Value("int64"))
    with pytest.raises(DataError, match=r"row \d+: "):
        load_task(_config(tmp_path / "set"), _OFF)


def test_a_class_without_training_rows_is_warned_of(tmp_path, caplog):
    _write_dataset(tmp_path / "set", [0, 1] * 10, [0, 1], datasets.ClassLabel(names=_NAMES))
    load_task(_config(tmp_path / "set"), _OFF)
    assert "1 of 3 classes have no training row" in caplog.text
    assert "emu" in caplog.text


@pytest.mark.parametrize("damaged", [b"no image", _png(0)[:150], b""])
def test_a_damaged_row_is_refused_with_its_number_or_skipped_and_counted(tmp_path, damaged, caplog):
    images = [_png(index) for index in range(30)]
    images[4] = images[11] = damaged
    _write_split(tmp_path / "set", "train", _TRAIN, datasets.Value("int64"), images=images)
    _write_split(tmp_path / "set", "test", _TEST, datasets.Value("int64"))
    _write_split(tmp_path / "set", "validation", _TEST, datasets.Value("int64"))
    config = {"validation_split": "validation"}
    with pytest.raises(DataError, match="Row 4 of split 'train'"):
        load_task(_config(tmp_path / "set", **config), _OFF)
    with caplog.at_level(logging.WARNING):
        loaded = load_task(_config(tmp_path / "set", on_error="skip", **config), _OFF)
    assert "skipped 2 of 30 rows" in caplog.text
    assert loaded.train.labels.tolist() == [label for row, label in enumerate(_TRAIN) if row not in (4, 11)]
    transform = ImageTransform(size=(8, 8))
    np.testing.assert_allclose(loaded.train.pixel_values([10]), transform(images[12]), atol=1e-6)


def test_a_split_of_damaged_rows_only_is_refused_even_when_skipping(tmp_path):
    _write_split(tmp_path / "set", "train", _TRAIN, datasets.Value("int64"))
    _write_split(tmp_path / "set", "test", _TEST, datasets.Value("int64"), images=[b"x"] * 3)
    with pytest.raises(DataError, match="all 3 rows are damaged"):
        load_task(_config(tmp_path / "set", on_error="skip"), _OFF)


@pytest.mark.parametrize(
    "change",
    [
        {"path": ""},
        {"validation_fraction": 0.0},
        {"test_fraction": 1.0},
        {"image_size": 1},
        {"mean": (0.5,)},
        {"std": (0.5, 0.5, 0.0)},
        {"max_train_samples": 0},
        {"seed": -1},
        {"on_error": "ignore"},
        {"local_name": "../secrets"},
    ],
)
def test_a_config_value_out_of_range_is_refused_by_name(change):
    with pytest.raises(DataError, match=f"`{next(iter(change))}`"):
        DatasetConfig(**{"path": "digits", **change})


# --- pixels ---


def test_the_preprocessor_is_what_the_stock_one_saves_and_gives_our_pixels(animals, tmp_path):
    from transformers import AutoImageProcessor, ViTImageProcessor

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    loaded = load_task(_config(animals, mean=mean, std=std), _OFF)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(loaded.preprocessor))
    ours = loaded.test.pixel_values([0, 1, 2]).numpy()
    images = [Image.open(io.BytesIO(_png(index))) for index in range(3)]
    for processor in (
        ViTImageProcessor.from_pretrained(tmp_path),
        AutoImageProcessor.from_pretrained(tmp_path),
    ):
        np.testing.assert_allclose(ours, processor(images, return_tensors="np")["pixel_values"], rtol=0, atol=1e-6)
        processor.save_pretrained(tmp_path / "again")
        assert json.loads((tmp_path / "again" / "preprocessor_config.json").read_text()) == loaded.preprocessor
    device = ImageTransform.from_preprocessor(loaded.preprocessor)
    np.testing.assert_allclose(ours, np.concatenate([device(_png(index)) for index in range(3)]), rtol=0, atol=1e-6)


def test_the_stock_pipeline_sees_the_pixels_that_training_saw(animals):
    from transformers import ViTImageProcessor
    from transformers.image_utils import load_image

    loaded = load_task(_config(animals), _OFF)
    processor = ViTImageProcessor(**loaded.preprocessor)
    grey = Image.open(io.BytesIO(_png(0))).convert("L")
    stock = processor(load_image(grey), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(ImageTransform.from_preprocessor(loaded.preprocessor)(grey), stock, rtol=0, atol=1e-6)
    assert stock.shape == (1, 3, 8, 8)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_images_decoded_on_access_equal_the_cached_ones(animals, monkeypatch, on_error):
    cached = load_task(_config(animals), _AUGMENTATION).train
    monkeypatch.setattr(task, "CACHE_LIMIT_BYTES", 0)
    lazy = load_task(_config(animals, on_error=on_error), _AUGMENTATION).train
    assert type(lazy._store) is not type(cached._store)
    assert lazy.labels.tolist() == cached.labels.tolist()
    chosen = [5, 0, 5, 20]
    for view in (None, 2):
        assert torch.equal(lazy.pixel_values(chosen, view), cached.pixel_values(chosen, view))


def test_a_damaged_row_decoded_on_access_is_refused_when_it_is_read(tmp_path, monkeypatch):
    images = [_png(index) for index in range(30)]
    images[7] = b"no image"
    _write_split(tmp_path / "set", "train", _TRAIN, datasets.Value("int64"), images=images)
    _write_split(tmp_path / "set", "test", _TEST, datasets.Value("int64"))
    _write_split(tmp_path / "set", "validation", _TEST, datasets.Value("int64"))
    monkeypatch.setattr(task, "CACHE_LIMIT_BYTES", 0)
    loaded = load_task(_config(tmp_path / "set", validation_split="validation"), _OFF)
    assert len(loaded.train.pixel_values(range(7))) == 7
    with pytest.raises(DataError, match="Row 7 of split 'train'"):
        loaded.train.pixel_values([3, 7])


@pytest.mark.parametrize("indices", [[20], [-1], [[0, 1]], [0.5], [True, False]])
def test_indices_outside_the_split_are_refused(indices):
    with pytest.raises(IndexError):
        _split().pixel_values(indices)


def test_no_indices_give_an_empty_batch():
    assert _split().pixel_values([], view=1).shape == (0, 3, 9, 9)


def test_a_selection_shares_pixels_and_keeps_each_items_augmentation():
    split = _split()
    chosen = split.select([7, 2, 2, 11]).select(np.array([3, 0]))
    assert chosen.labels.tolist() == [split.labels[11], split.labels[7]]
    for view in (None, 5):
        assert torch.equal(chosen.pixel_values([0, 1], view), split.pixel_values([11, 7], view))


def test_batches_come_in_order_without_augmentation():
    split = _split(10)
    batches = list(iterate_batches(split, 4))
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([batch["pixel_values"] for batch in batches]), split.pixel_values(range(10)))
    (batch,) = iterate_batches(split, 4, indices=[9, 1])
    assert batch["indices"].tolist() == [9, 1]
    assert batch["labels"].tolist() == [split.labels[9], split.labels[1]]


# --- augmentation ---


@_quick
@given(view=st.integers(0, 50), chosen=st.lists(st.integers(0, 19), min_size=1, max_size=12))
def test_an_item_has_the_same_pixels_in_a_view_whatever_batch_it_is_in(view, chosen):
    split = _split()
    together = split.pixel_values(chosen, view)
    alone = torch.cat([split.pixel_values([index], view) for index in chosen])
    assert torch.equal(together, alone)


@_quick
@given(seed=st.integers(0, 9), view=st.integers(0, 9), few=st.integers(0, 30), more=st.integers(0, 30))
def test_parameters_depend_on_seed_view_and_item_alone(seed, view, few, more):
    few, more = sorted((few, more))
    short, long = (_AUGMENTATION.parameters(count, view, seed) for count in (few, more))
    assert long.dtype == np.float32
    np.testing.assert_array_equal(short, long[:few])
    if few:
        assert (short != _AUGMENTATION.parameters(few, view + 1, seed)).any()
        assert (short != _AUGMENTATION.parameters(few, view, seed + 1)).any()


@_quick
@given(view=st.integers(0, 100))
def test_an_augmentation_that_is_off_is_the_identity(view):
    assert _OFF.is_off
    split = _split(augmentation=_OFF)
    assert torch.equal(split.pixel_values(range(20), view), split.pixel_values(range(20)))
    assert (_OFF.parameters(4, view, 0) == [0, 1, 0, 0, 1]).all()


@_quick
@given(
    shift=st.floats(0, 1),
    degrees=st.floats(0, 180),
    scale=st.floats(0, 0.95),
    flip=st.booleans(),
    view=st.integers(0, 9),
)
def test_parameters_stay_in_their_range(shift, degrees, scale, flip, view):
    augmentation = Augmentation(shift=shift, rotate_degrees=degrees, scale=scale, flip=flip)
    angle, zoom, right, down, mirror = augmentation.parameters(200, view, 0).T
    tolerance = 1e-6
    assert np.abs(angle).max() <= np.deg2rad(degrees) + tolerance
    assert np.abs(zoom - 1).max() <= scale + tolerance
    assert max(np.abs(right).max(), np.abs(down).max()) <= shift + tolerance
    assert set(mirror) == ({-1, 1} if flip else {1})


_EXACT = [
    (
        "shift right by two pixels",
        [0, 1, 2 / 8, 0, 1],
        lambda x: torch.roll(x, 2, 3).index_fill(3, torch.tensor([0, 1]), 0),
    ),
    (
        "shift up by one pixel",
        [0, 1, 0, -1 / 6, 1],
        lambda x: torch.roll(x, -1, 2).index_fill(2, torch.tensor([5]), 0),
    ),
    ("mirror", [0, 1, 0, 0, -1], lambda x: x.flip(3)),
    ("half a turn", [np.pi, 1, 0, 0, 1], lambda x: x.flip(2, 3)),
    ("nothing", [0, 1, 0, 0, 1], lambda x: x),
]


@pytest.mark.parametrize(("parameters", "expected"), [case[1:] for case in _EXACT], ids=[case[0] for case in _EXACT])
def test_a_known_movement_gives_the_known_image_with_black_entering(parameters, expected):
    image = torch.rand(1, 3, 6, 8) + 0.5
    moved = _AUGMENTATION.apply(image, torch.tensor([parameters], dtype=torch.float32))
    torch.testing.assert_close(moved, expected(image), rtol=0, atol=2e-6)


def test_a_quarter_turn_of_a_square_image_keeps_its_pixels():
    image = torch.rand(1, 3, 7, 7)
    moved = _AUGMENTATION.apply(image, torch.tensor([[np.pi / 2, 1, 0, 0, 1]], dtype=torch.float32))
    candidates = [torch.rot90(image, turns, (2, 3)) for turns in (1, 3)]
    assert min((moved - candidate).abs().max() for candidate in candidates) < 2e-5


def test_a_zoom_above_one_enlarges():
    image = torch.zeros(1, 1, 9, 9)
    image[..., 3:6, 3:6] = 1
    larger = Augmentation(scale=0.5).apply(image, torch.tensor([[0, 1.5, 0, 0, 1]], dtype=torch.float32))
    assert larger.sum() > 1.5 * image.sum()


def test_what_enters_is_black_after_normalisation():
    pixels = np.full((1, 3, 8, 8), 200, np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    split = ImageSplit(CachedPixels(pixels), np.zeros(1), mean=mean, std=std, augmentation=Augmentation(shift=1.0))
    view = next(v for v in range(50) if np.abs(split.augmentation.parameters(1, v, 0)[0, 2]) > 0.5)
    black = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)])
    entered = split.pixel_values([0], view)[0].amin(dim=(1, 2))
    torch.testing.assert_close(entered, black)


@pytest.mark.parametrize("padding", ["border", "reflection"])
def test_other_paddings_bring_no_black_in(padding):
    image = torch.full((1, 3, 8, 8), 200.0)
    moved = Augmentation(shift=0.5, padding=padding).apply(image, torch.tensor([[0, 1, 0.4, 0.3, 1.0]]))
    assert moved.min() > 199


@pytest.mark.parametrize(
    "change",
    [
        {"shift": -0.1},
        {"shift": 2.0},
        {"rotate_degrees": 200},
        {"scale": 1.0},
        {"scale": float("nan")},
        {"padding": "x"},
    ],
)
def test_an_augmentation_out_of_range_is_refused_by_name(change):
    with pytest.raises(DataError, match=f"`{next(iter(change))}`"):
        Augmentation(**change)


# --- class groups ---

_labels = st.lists(st.integers(0, 5), min_size=1, max_size=80).map(np.asarray)
_groups = st.sets(st.integers(0, 5), min_size=1, max_size=6).map(sorted)


@_quick
@given(labels=_labels, group=_groups)
def test_group_labels_are_the_index_in_the_group_or_other(labels, group):
    own = class_group_labels(labels, group)
    assert own.dtype == np.int64
    assert [group[o] if o < len(group) else None for o in own] == [x if x in group else None for x in labels]


@settings(max_examples=100, deadline=None)
@given(labels=_labels, group=_groups, ratio=st.floats(0, 4), seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_an_epoch_holds_every_positive_and_an_even_sample_of_the_others(labels, group, ratio, seed, epoch):
    positives = np.flatnonzero(np.isin(labels, group))
    arguments = {"negatives_per_positive": ratio, "seed": seed, "epoch": epoch}
    if len(positives) == 0:
        with pytest.raises(DataError, match="got none"):
            class_group_indices(labels, group, **arguments)
        return
    chosen = class_group_indices(labels, group, **arguments)
    assert len(set(chosen)) == len(chosen)
    assert set(positives) <= set(chosen)
    negatives = labels[np.setdiff1d(chosen, positives)]
    num_others = len(labels) - len(positives)
    assert len(negatives) == min(round(len(positives) * ratio), num_others)
    available = np.bincount(labels, minlength=6)
    counts = {c: (negatives == c).sum() for c in range(6) if c not in group}
    unspent = [count for c, count in counts.items() if count < available[c]]
    assert max(counts.values(), default=0) <= min(unspent, default=len(labels)) + 1
    np.testing.assert_array_equal(chosen, class_group_indices(labels.copy(), list(group), **arguments))


def test_what_a_small_class_cannot_give_is_shared_by_the_others():
    labels = np.repeat(np.arange(5), [12, 2, 20, 20, 20])
    chosen = class_group_indices(labels, [0], negatives_per_positive=1.0, seed=0, epoch=0)
    counts = np.bincount(labels[chosen])
    assert counts[:2].tolist() == [12, 2]
    assert sorted(counts[2:]) == [3, 3, 4]


def test_each_epoch_and_seed_draws_another_sample():
    labels = np.arange(1000) % 10
    draws = [
        set(class_group_indices(labels, [3, 7], negatives_per_positive=1.0, seed=seed, epoch=epoch))
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert draws[0] != draws[1]
    assert draws[0] != draws[2]


def test_the_order_of_an_epoch_is_mixed():
    labels = np.arange(1000) % 10
    chosen = class_group_indices(labels, [3], negatives_per_positive=1.0, seed=0, epoch=0)
    assert 30 < (labels[chosen[:100]] == 3).sum() < 70


@pytest.mark.parametrize("group", [[], [1, 1], [-1, 2]])
def test_a_class_group_that_is_none_is_refused(group):
    with pytest.raises(DataError, match="class group"):
        class_group_labels(np.array([0, 1]), group)


@pytest.mark.parametrize("labels", [np.array([0, -1]), np.array([0.5]), np.zeros((2, 2), int)])
def test_labels_that_are_no_class_ids_are_refused(labels):
    with pytest.raises(DataError, match="Expected labels"):
        class_group_labels(labels, [0])
