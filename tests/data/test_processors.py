# SPDX-License-Identifier: Apache-2.0
"""A model that brings its processor is fed by it, as its own stock pipeline feeds it; others are refused."""

import io
import json

import datasets
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)

from edvit_hf.data import AudioConfig, DatasetConfig, TextConfig, load_task, train_tokenizer
from edvit_hf.data.processors import processor_of
from edvit_hf.errors import DataError
from edvit_hf.transforms import load_transform
from support.dataset_files import MOVING, OFF, own_cache, parquet, png, tone, write_split, write_texts  # noqa: F401

IMAGE, AUDIO, TEXT = "image-classification", "audio-classification", "text-classification"
LABELS = datasets.ClassLabel(names=["cat", "dog", "emu"])
TRAIN, TEST = [0, 1, 2] * 4, [2, 1, 0, 1]
WORDS = ["The Cat sat", "a DOG ran far", "an emu", "Two dogs, one Cat"] * 6
LABELLED = {"id2label": dict(enumerate(LABELS.names)), "label2id": {n: i for i, n in enumerate(LABELS.names)}}


def processor_file(folder, **changes):
    """What `save_pretrained` writes, with values that are not the defaults, changed."""
    ViTImageProcessor(size=12, image_mean=[0.1, 0.4, 0.7], image_std=[0.2, 0.25, 0.3], resample=3).save_pretrained(
        folder
    )
    return change(folder, **changes)


def change(folder, name="preprocessor_config.json", **changes):
    values = {**json.loads((folder / name).read_text()), **changes}
    (folder / name).write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))
    return folder


def save_vit(folder, size=12):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
    config = ViTConfig(image_size=size, patch_size=4, initializer_range=0.5, **sizes, **LABELLED)
    ViTForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return save_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture
def pictures(tmp_path):
    for split, labels, first in (("train", TRAIN, 0), ("test", TEST, 100)):
        write_split(tmp_path / "set", split, labels, LABELS, images=[png(first + i, 20) for i in range(len(labels))])
    return tmp_path / "set"


def answers(folder, loaded, model_class):
    """Probabilities of the model in `folder` over the test split as it was loaded."""
    model = model_class.from_pretrained(folder).eval()
    with torch.inference_mode():
        return model(**loaded.test.inputs(range(len(loaded.test)))).logits.softmax(-1).numpy()


def stock_answers(task, folder, sources, **options):
    asked = pipeline(task, model=str(folder), **({} if task == AUDIO else {"use_fast": True}))
    rows = asked(sources, top_k=None, **options)
    return np.array([[next(e["score"] for e in row if e["label"] == n) for n in LABELS.names] for row in rows])


PROCESSORS = {
    "own mean, std and filter": {},
    "no normalisation": {"do_normalize": False},
    "no rescaling": {"do_rescale": False, "image_mean": [120.0] * 3, "image_std": [60.0] * 3},
    "another scale": {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
    "nearest pixel": {"resample": 0},
    "an old name": {"image_processor_type": ..., "feature_extractor_type": "ViTFeatureExtractor", "size": 12},
    "no name": {"image_processor_type": ..., "size": 12},
    "one number for all channels": {"image_mean": 0.3, "image_std": 0.4},
    "mean and std of the class": {"image_mean": ..., "image_std": ..., "rescale_factor": ..., "resample": ...},
    "deit without a crop": {"image_processor_type": "DeiTImageProcessor", "do_center_crop": False},
    "deit that crops nothing": {
        **{"image_processor_type": "DeiTImageProcessor", "do_center_crop": True},
        "crop_size": {"height": 12, "width": 12},
    },
}


@pytest.mark.parametrize("case", PROCESSORS)
def test_images_are_prepared_as_the_checkpoints_own_pipeline_does(tmp_path, vit, pictures, case):
    folder = processor_file(tmp_path, **PROCESSORS[case])
    for file in vit.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    images = [Image.open(io.BytesIO(png(100 + i, 20))) for i in range(len(TEST))]
    expected = stock_answers(IMAGE, folder, images)
    for decodes_on_access in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("edvit_hf.data.decoding.CACHE_LIMIT_BYTES", 0 if decodes_on_access else 1 << 30)
            loaded = load_task(parquet(pictures, image_size=None), OFF, processor_dir=folder)
        np.testing.assert_allclose(answers(folder, loaded, ViTForImageClassification), expected, atol=2e-5)
    # What travels with the ensemble says the same to a device.
    (tmp_path / "device").mkdir()
    (tmp_path / "device/preprocessor_config.json").write_text(loaded.processor["preprocessor_config.json"])
    device = load_transform(tmp_path / "device", IMAGE).inputs(images[1])["pixel_values"]
    np.testing.assert_allclose(loaded.test.inputs([1])["pixel_values"].numpy(), device, atol=1e-5)


REFUSED = {
    "centre crop": ({"do_center_crop": True, "crop_size": {"height": 8, "width": 8}}, "do_center_crop"),
    "deit's own crop": ({"image_processor_type": "DeiTImageProcessor"}, "do_center_crop"),
    "shortest edge": ({"size": {"shortest_edge": 12}}, "shortest_edge"),
    "shortest edge in the old form": ({"size": 12, "default_to_square": False}, "size 12"),
    "longest edge": ({"size": {"height": 12, "width": 12, "longest_edge": 14}}, "longest_edge"),
    "ConvNeXt": ({"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.9}, "a ConvNextImageProcessor"),
    "CLIP": ({"image_processor_type": "CLIPImageProcessor"}, "a CLIPImageProcessor"),
    "padding": ({"do_pad": True}, "do_pad"),
    "no resizing": ({"do_resize": False}, "do_resize false"),
    "a sound's": ({"image_processor_type": ..., "feature_extractor_type": "ASTFeatureExtractor"}, "ASTFeature"),
    "a switch that is none": ({"do_rescale": "no"}, "`do_rescale` in .* true or false, got 'no'"),
    "a scale that is none": ({"rescale_factor": "1/255"}, "`rescale_factor` must be a number"),
    "a filter that is none": ({"resample": "bilinear"}, "filter number .* got 'bilinear'"),
    "two channels": ({"image_mean": [0.5, 0.5], "image_std": [0.5, 0.5]}, "three finite numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_image_processors_that_do_something_else_are_refused_by_what_they_do(tmp_path, case):
    changes, named = REFUSED[case]
    with pytest.raises(DataError, match=named):
        processor_of(DatasetConfig(path="x"), IMAGE, processor_file(tmp_path, **changes))


def test_a_processor_that_was_saved_inside_another_is_found(tmp_path):
    processor_file(tmp_path)
    values = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"image_processor": {**values, "image_mean": [0.2] * 3}})
    )
    assert processor_of(DatasetConfig(path="x"), IMAGE, tmp_path)[0].mean == (0.2, 0.2, 0.2)
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "AProcessor"}))
    assert processor_of(DatasetConfig(path="x"), IMAGE, tmp_path)[0].mean == (0.1, 0.4, 0.7)


def test_images_need_not_be_square(tmp_path, pictures):
    folder = processor_file(tmp_path, size={"height": 12, "width": 8})
    loaded = load_task(parquet(pictures, image_size=None), MOVING, processor_dir=folder)
    assert loaded.input_sizes == {"image_size": [12, 8]}
    assert loaded.train.inputs([0, 1], view=1)["pixel_values"].shape == (2, 3, 12, 8)


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "null"])
def test_a_damaged_processor_is_refused_not_replaced_by_the_recipes(tmp_path, content):
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(DataError, match="preprocessor_config"):
        processor_of(DatasetConfig(path="x"), IMAGE, tmp_path)


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ({"image_size": 8}, r"`dataset.image_size` is 8 x 8, .* says 12 x 12"),
        ({"mean": (0.5, 0.5, 0.5)}, r"`dataset.mean` is \[0.5, 0.5, 0.5\], .* says \[0.1, 0.4, 0.7\]"),
        ({"std": (0.5, 0.5, 0.5)}, r"`dataset.std` is \[0.5, 0.5, 0.5\], .* says \[0.2, 0.25, 0.3\]"),
    ],
)
def test_a_recipe_that_says_otherwise_is_refused_with_both_values(tmp_path, written, named):
    with pytest.raises(DataError, match=named):
        processor_of(DatasetConfig(path="x", **written), IMAGE, processor_file(tmp_path))


def test_a_recipe_may_say_what_the_processor_says(tmp_path):
    agrees = DatasetConfig(path="x", image_size=12, mean=(0.1, 0.4, 0.7), std=(0.2, 0.25, 0.30000001192))
    assert processor_of(agrees, IMAGE, processor_file(tmp_path))[0].resample == 3
    with pytest.raises(DataError, match=r"says no normalisation"):
        processor_of(agrees, IMAGE, processor_file(tmp_path, do_normalize=False))


def test_a_checkpoint_without_a_processor_is_fed_as_the_recipe_says_and_that_is_logged(tmp_path, vit, caplog):
    transform, values = processor_of(DatasetConfig(path="x", image_size=12, mean=(0.1, 0.2, 0.3)), IMAGE, vit)
    assert (transform.size, transform.mean, transform.std) == ((12, 12), (0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert "holds no processor" in caplog.text
    assert values["image_processor_type"] == "ViTImageProcessor"


SOUNDS = {
    "own mean and std": {},
    "no normalisation": {"do_normalize": False},
    "no name": {"feature_extractor_type": ...},
    "mean and std of the class": {"mean": ..., "std": ...},
}


@pytest.mark.parametrize("case", SOUNDS)
def test_sounds_are_prepared_as_the_checkpoints_own_pipeline_does(tmp_path, case):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
    strides = {"patch_size": 4, "frequency_stride": 4, "time_stride": 4, "max_length": 20, "num_mel_bins": 16}
    config = ASTConfig(initializer_range=0.5, **sizes, **strides, **LABELLED)
    ASTForAudioClassification(config).save_pretrained(tmp_path / "ast")
    extractor = ASTFeatureExtractor(sampling_rate=8000, num_mel_bins=16, max_length=20, mean=-7.5, std=2.5)
    extractor.save_pretrained(tmp_path / "ast")
    change(tmp_path / "ast", **SOUNDS[case])
    clips = [tone(200 + 300 * i, rate=8000) for i in range(len(TRAIN) + len(TEST))]
    write_split(
        tmp_path / "set", "train", TRAIN, LABELS, images=clips[len(TEST) :], sounds=True, columns=("audio", "label")
    )
    write_split(
        tmp_path / "set", "test", TEST, LABELS, images=clips[: len(TEST)], sounds=True, columns=("audio", "label")
    )
    config = DatasetConfig(path="parquet", data_dir=str(tmp_path / "set"))
    loaded = load_task(config, OFF, task=AUDIO, processor_dir=tmp_path / "ast")
    waves = [soundfile.read(io.BytesIO(clip), dtype="float32")[0] for clip in clips[: len(TEST)]]
    expected = stock_answers(AUDIO, tmp_path / "ast", [{"raw": wave, "sampling_rate": 8000} for wave in waves])
    np.testing.assert_allclose(answers(tmp_path / "ast", loaded, ASTForAudioClassification), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "written", "named"),
    [
        ({}, {"mean": -4.2677393}, r"`dataset.audio.mean` is -4.2677393, .* says -7.5"),
        ({}, {"std": 4.5}, r"`dataset.audio.std` is 4.5, .* says 2.5"),
        ({}, {"sampling_rate": 16_000}, r"`dataset.audio.sampling_rate` is 16000, .* says 8000"),
        ({}, {"max_length": 10}, r"`dataset.audio.max_length` is 10, .* says 20"),
        ({}, {"num_mel_bins": 8}, r"`dataset.audio.num_mel_bins` is 8, .* says 16"),
        ({"do_normalize": False}, {"mean": -7.5}, r"`dataset.audio.mean` is -7.5, .* says no normalisation"),
        ({"feature_extractor_type": "WhisperFeatureExtractor"}, {}, "a WhisperFeatureExtractor"),
        ({"feature_extractor_type": "Wav2Vec2FeatureExtractor"}, {}, "a Wav2Vec2FeatureExtractor"),
        ({"feature_size": 2}, {}, "feature_size 2"),
        ({"do_ceptral_normalize": True}, {}, "do_ceptral_normalize"),
        ({"do_normalize": 1}, {}, "true or false, got 1"),
    ],
)
def test_extractors_and_recipes_that_do_not_fit_are_refused(tmp_path, changes, written, named):
    extractor = ASTFeatureExtractor(sampling_rate=8000, num_mel_bins=16, max_length=20, mean=-7.5, std=2.5)
    extractor.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=named):
        processor_of(DatasetConfig(path="x", audio=AudioConfig(**written)), AUDIO, change(tmp_path, **changes))


def save_distilbert(folder, *, lowercase, max_length=12, vocab_txt=False):
    """A tiny checkpoint with its tokenizer; `vocab_txt` leaves the files of an earlier kind of tokenizer alone."""
    files = train_tokenizer(WORDS, TextConfig(max_length=max_length, vocab_size=90, lowercase=lowercase))
    words = json.loads(files["tokenizer.json"])["model"]["vocab"]
    torch.manual_seed(0)
    sizes = {"dim": 16, "n_heads": 2, "n_layers": 1, "hidden_dim": 32, "max_position_embeddings": 16}
    config = DistilBertConfig(vocab_size=len(words) + 3, initializer_range=0.5, **sizes, **LABELLED)
    DistilBertForSequenceClassification(config).save_pretrained(folder)
    if vocab_txt:
        (folder / "vocab.txt").write_text("\n".join(sorted(words, key=words.get)) + "\n")
        settings = {"tokenizer_class": "DistilBertTokenizer", "do_lower_case": lowercase}
        files = {"tokenizer_config.json": json.dumps(settings)}
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("vocab_txt", [True, False])
def test_texts_are_cut_into_the_checkpoints_own_tokens(tmp_path, lowercase, vocab_txt):
    folder = save_distilbert(tmp_path / "bert", lowercase=lowercase, vocab_txt=vocab_txt)
    write_texts(tmp_path / "set", "train", WORDS, [0, 1, 2] * 8)
    texts = ["A cat and the DOG", "Far, far dogs", "emu", "one Two one Two one Two one Two one Two one Two one Two"]
    write_texts(tmp_path / "set", "test", texts, TEST)
    config = DatasetConfig(path="parquet", data_dir=str(tmp_path / "set"))
    loaded = load_task(config, OFF, task=TEXT, processor_dir=folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = tokenizer(texts, truncation=True, max_length=16 if vocab_txt else 12, padding=True)
    np.testing.assert_array_equal(loaded.test.inputs(range(4))["input_ids"], expected["input_ids"])
    short = stock_answers(TEXT, folder, texts[:3])
    np.testing.assert_allclose(answers(folder, loaded, DistilBertForSequenceClassification)[:3], short, atol=2e-5)
    with pytest.raises(
        DataError, match=rf"`dataset.text.lowercase` is {not lowercase}, .*{folder if not vocab_txt else ''}"
    ):
        load_task(
            DatasetConfig(path="parquet", data_dir=config.data_dir, text=TextConfig(lowercase=not lowercase)),
            OFF,
            task=TEXT,
            processor_dir=folder,
        )
