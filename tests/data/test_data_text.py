# SPDX-License-Identifier: Apache-2.0
"""Texts load from parquet and csv, get a tokenizer of their own or a teacher's, and are padded to each batch."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit_hf.data import (
    Augmentation,
    DatasetConfig,
    SpecialTokens,
    TextConfig,
    TextSplit,
    TokenStore,
    iterate_batches,
    load_task,
    train_tokenizer,
)
from edvit_hf.data.sources import open_splits
from edvit_hf.errors import DataError
from edvit_hf.transforms import TextTransform
from support.dataset_files import OFF, own_cache, parquet, write_texts  # noqa: F401

_quick = settings(max_examples=30, deadline=None)
_TEXT = TextConfig(max_length=12, vocab_size=120)
_WORDS = ["river", "mountain", "forest", "meadow", "keyboard", "screen", "printer", "mouse"]
_OTHER_WORDS = ["only", "in", "validation", "rows", "qqqq", "zzzz", "jjjj"]


def sentences(count, seed=0):
    """Even rows speak of landscapes, odd ones of computers."""
    random = np.random.default_rng(seed)
    return [
        " ".join(random.choice(_WORDS[4 * (row % 2) : 4 * (row % 2) + 4], 1 + row % 9)) + "." for row in range(count)
    ]


def load(folder, augmentation=OFF, processor_dir=None, **options):
    config = parquet(folder, **{"text": _TEXT, **options})
    return load_task(config, augmentation, task="text-classification", processor_dir=processor_dir)


@pytest.fixture
def texts(tmp_path):
    write_texts(tmp_path / "set", "train", sentences(40), [0, 1] * 20)
    write_texts(tmp_path / "set", "test", sentences(6, seed=1), [0, 1] * 3)
    return tmp_path / "set"


def test_inputs_equal_the_stock_tokenizers_under_every_model_type(texts, tmp_path):
    from transformers import AutoTokenizer

    loaded = load(texts)
    assert loaded.task == "text-classification"
    assert set(loaded.processor) == {"tokenizer.json", "tokenizer_config.json"}
    for model_type in ("bert", "distilbert"):
        folder = tmp_path / model_type
        folder.mkdir()
        for name, text in loaded.processor.items():
            (folder / name).write_text(text, encoding="utf-8")
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.model_max_length == 12
        assert (len(tokenizer), tokenizer.pad_token_id) == (loaded.vocab_size, loaded.pad_token_id)
        names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
        assert tokenizer.convert_tokens_to_ids(list(names)) == [0, 1, 2, 3, 4]
        stock = tokenizer(sentences(6, seed=1), truncation=True, padding=True, return_tensors="pt")
        ours = loaded.test.inputs(range(6))
        assert set(stock) == set(ours) == {"input_ids", "attention_mask"}
        for name in ours:
            assert torch.equal(ours[name], stock[name])
        device = TextTransform.from_file(folder).inputs(sentences(6, seed=1)[4])
        length = int(ours["attention_mask"][4].sum())
        np.testing.assert_array_equal(device["input_ids"][0], ours["input_ids"][4, :length])


def test_a_batch_is_as_long_as_its_longest_text(texts):
    train = load(texts).train
    assert train.lengths is not None
    order = np.argsort(train.lengths)
    for chosen in (order[:3], order[-3:], order[[0, -1]]):
        inputs = train.inputs(chosen)
        assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (len(chosen), train.lengths[chosen].max())
        assert inputs["attention_mask"].sum(dim=1).tolist() == train.lengths[chosen].tolist()
        assert {value.dtype for value in inputs.values()} == {torch.int64}
    assert train.lengths.max() <= 12
    assert train.inputs([])["input_ids"].shape == (0, 1)
    batch = next(iterate_batches(train.select(order[::-1]), 4))
    assert batch["inputs"]["input_ids"].shape[1] == train.lengths.max()
    assert batch["labels"].tolist() == train.labels[order[::-1][:4]].tolist()


def test_the_tokenizer_is_learnt_from_the_training_rows_alone(tmp_path):
    rows = sentences(40)
    write_texts(tmp_path / "set", "train", rows, [0, 1] * 20)
    write_texts(tmp_path / "set", "validation", [" ".join(_OTHER_WORDS)] * 4, [0, 1] * 2)
    write_texts(tmp_path / "set", "test", [" ".join(_OTHER_WORDS)] * 4, [0, 1] * 2)
    named = load(tmp_path / "set", validation_split="validation")
    vocabulary = json.loads(named.processor["tokenizer.json"])["model"]["vocab"]
    assert "river" in vocabulary
    assert not {"q", "z", "j", "##q", "##z", "##j"} & set(vocabulary)
    # Without a named split, too: what is carved out for validation teaches it nothing.
    marked = [f"{text} {chr(0x0430 + row % 32)}{chr(0x0430 + row // 32)}{row}" for row, text in enumerate(rows)]
    write_texts(tmp_path / "other", "train", marked, [0, 1] * 20)
    write_texts(tmp_path / "other", "test", rows[:4], [0, 1] * 2)
    loaded = load(tmp_path / "other", validation_fraction=0.5)
    assert len(loaded.train) == 20
    assert train_tokenizer(marked, _TEXT) != loaded.processor


def test_equal_texts_give_the_same_tokenizer_where_the_stock_trainer_does_not():
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    def stock():
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.train_from_iterator(sentences(60), trainers.WordPieceTrainer(vocab_size=120, show_progress=False))
        return tokenizer.to_str()

    assert len({stock() for _ in range(5)}) > 1, "no longer needed: the hash tables of the trainer have a fixed order"
    assert len({repr(train_tokenizer(sentences(60), _TEXT)) for _ in range(5)}) == 1


def test_a_trained_tokenizer_keeps_to_its_sizes_and_case():
    lower = json.loads(train_tokenizer(["Große KATZE straße katze"] * 9, _TEXT)["tokenizer.json"])
    upper = train_tokenizer(["Große KATZE straße katze"] * 9, TextConfig(max_length=12, vocab_size=80, lowercase=False))
    assert len(lower["model"]["vocab"]) <= 120
    assert len(json.loads(upper["tokenizer.json"])["model"]["vocab"]) <= 80
    assert not any(token.isupper() and not token.startswith("[") for token in lower["model"]["vocab"])
    assert "K" in json.loads(upper["tokenizer.json"])["model"]["vocab"]
    assert {token["content"] for token in lower["added_tokens"]} == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    with pytest.raises(DataError, match="without a single character"):
        train_tokenizer(["", "  "], _TEXT)


def test_a_teachers_tokenizer_is_used_instead_of_training_one(texts, tmp_path):
    own = load(texts)
    folder = tmp_path / "teacher"
    folder.mkdir()
    teacher = train_tokenizer(sentences(90, seed=7), TextConfig(max_length=20, vocab_size=90))
    for name, text in teacher.items():
        (folder / name).write_text(text, encoding="utf-8")
    loaded = load(texts, processor_dir=folder)
    assert loaded.processor["tokenizer.json"] == teacher["tokenizer.json"]
    assert own.processor["tokenizer.json"] != teacher["tokenizer.json"]
    assert json.loads(loaded.processor["tokenizer_config.json"])["model_max_length"] == 12
    lengths = [load(texts, processor_dir=folder, text=text).train.lengths for text in (None, TextConfig(max_length=8))]
    assert [length.max() for length in lengths] == [12, 8]
    with pytest.raises(DataError, match="at most 20 tokens, got 21"):
        load(texts, processor_dir=folder, text=TextConfig(max_length=21))
    settings_of = json.loads(teacher["tokenizer_config.json"])
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings_of, "padding_side": "left"}))
    with pytest.raises(DataError, match="the first token answers"):
        load(texts, processor_dir=folder)


def test_csv_files_named_by_their_split_load(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for split, count in (("train", 20), ("test", 4)):
        rows = [f'"{text}",{"land" if row % 2 == 0 else "desk"}' for row, text in enumerate(sentences(count))]
        (folder / f"{split}.csv").write_text("text,label\n" + "\n".join([*rows, "None,land", '"a, b",desk']) + "\n")
    for path in ("csv", "someone/landscapes"):
        loaded = load(folder, path=path, validation_fraction=0.2)
        assert loaded.label_names == ["desk", "land"]
        assert (len(loaded.train) + len(loaded.validation), len(loaded.test)) == (22, 6)
    plain = load_task(DatasetConfig(path="csv", data_dir=str(folder)), OFF, task="text-classification")
    transform = TextTransform.from_file(write_files(tmp_path / "own", plain.processor))
    np.testing.assert_array_equal(plain.test.inputs([4])["input_ids"], transform.inputs("None")["input_ids"])


def write_files(folder, files):
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_empty_long_and_foreign_texts_have_tokens(tmp_path):
    rows = [*sentences(30), "", "word " * 200_000, "这是一个句子", "مرحبا بالعالم", "\u0000\ufffd", "🙂" * 50]
    write_texts(tmp_path / "set", "train", rows, [0, 1] * 18)
    write_texts(tmp_path / "set", "test", rows[-6:], [0, 1] * 3)
    loaded = load(tmp_path / "set")
    inputs = loaded.test.inputs(range(6))
    assert inputs["input_ids"].shape == (6, 12)
    assert inputs["input_ids"][0, :2].tolist() == [2, 3]
    assert loaded.test.lengths.tolist()[:2] == [2, 12]
    assert sum(loaded.skipped.values()) == 0


def test_a_missing_text_is_refused_with_its_row_or_skipped(tmp_path):
    rows = sentences(20)
    rows[3] = rows[8] = None
    write_texts(tmp_path / "set", "train", rows, [0, 1] * 10)
    write_texts(tmp_path / "set", "test", sentences(4), [0, 1] * 2)
    with pytest.raises(DataError, match=r"Row (3|8) of split 'train': Expected text, got an empty cell"):
        load(tmp_path / "set")
    loaded = load(tmp_path / "set", on_error="skip")
    assert loaded.skipped["train"] + loaded.skipped["validation"] == 2
    assert len(loaded.train) + len(loaded.validation) == 18


def test_an_empty_text_in_a_csv_is_a_text_as_it_is_in_parquet(tmp_path):
    rows = sentences(20)
    rows[4] = rows[7] = ""
    labels = [0, 1] * 10
    for split in ("train", "test"):
        write_texts(tmp_path / "parquet", split, rows, labels)
        lines = [f"{text},{label},{row}" for row, (text, label) in enumerate(zip(rows, labels, strict=True))]
        (tmp_path / "csv").mkdir(exist_ok=True)
        (tmp_path / "csv" / f"{split}.csv").write_text("\n".join(["words,label,number", *lines]) + "\n")
    expected = load(tmp_path / "parquet")
    for streaming in (False, True):
        limits = {"max_train_samples": 20, "max_test_samples": 20} if streaming else {}
        loaded = load(tmp_path / "csv", path="csv", streaming=streaming, **limits)
        assert loaded.skipped == {"train": 0, "validation": 0, "test": 0}
        assert sorted(loaded.test.texts(range(20))) == sorted(rows)
    loaded = load(tmp_path / "csv", path="csv")
    assert loaded.processor == expected.processor
    assert torch.equal(loaded.test.inputs(range(20))["input_ids"], expected.test.inputs(range(20))["input_ids"])
    (tmp_path / "csv" / "test.csv").write_text("words,label,number\na,0,1\n,1,2\nb,,3\n")
    assert load(tmp_path / "csv", path="csv", on_error="skip").skipped["test"] == 1, "a label stays missing"


def test_an_empty_cell_of_a_csvs_group_column_is_no_group(tmp_path):
    (tmp_path / "csv").mkdir()
    lines = [f"{text},{row % 2},{'' if row < 4 else row // 4}" for row, text in enumerate(sentences(40))]
    for split in ("train", "test"):
        (tmp_path / "csv" / f"{split}.csv").write_text("\n".join(["text,label,writer", *lines]) + "\n")
    splits = open_splits(parquet(tmp_path / "csv", path="csv", group_column="writer"), "text-classification")
    assert splits["train"].groups[:5] == [None, None, None, None, splits["train"].groups[4]]
    assert len(set(splits["train"].groups[4:])) == 9


def test_several_text_columns_must_be_told_apart(tmp_path):
    write_texts(tmp_path / "set", "train", sentences(20), ["a", "b"] * 10, columns=("title", "label"))
    write_texts(tmp_path / "set", "test", sentences(4), ["a", "b"] * 2, columns=("title", "label"))
    assert load(tmp_path / "set").label_names == ["a", "b"]
    with pytest.raises(DataError, match="one column of texts, got title, label"):
        load(tmp_path / "set", label_column="kind")


@pytest.mark.parametrize("change", [{"max_length": 2}, {"vocab_size": 10}, {"max_length": True}])
def test_a_text_value_out_of_range_is_refused_by_name(change):
    with pytest.raises(DataError, match=rf"`text\.{next(iter(change))}`"):
        TextConfig(**change)


# --- token dropout ---


def token_split(share, by="unknown", num_items=12):
    random = np.random.default_rng(0)
    rows = [np.array([2, *random.integers(5, 50, 1 + index), 3]) for index in range(num_items)]
    augmentation = Augmentation(token_dropout=share, token_dropout_by=by)
    return TextSplit(TokenStore(rows), np.zeros(num_items), augmentation=augmentation, seed=1)


def tokens(split, index, view=None):
    inputs = split.inputs([index], view)
    return inputs["input_ids"][0][inputs["attention_mask"][0] == 1].tolist()


@_quick
@given(
    view=st.integers(0, 50),
    share=st.floats(0.01, 0.9),
    by=st.sampled_from(["unknown", "removal"]),
    chosen=st.lists(st.integers(0, 11), min_size=1, max_size=12),
)
def test_dropout_spares_the_frame_and_does_not_depend_on_the_batch(view, share, by, chosen):
    split = token_split(share, by)
    inputs = split.inputs(chosen, view)
    for row, index in enumerate(chosen):
        ids, mask = inputs["input_ids"][row], inputs["attention_mask"][row]
        assert (ids[mask == 0] == 0).all()
        changed = ids[mask == 1].tolist()
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)
        assert changed == tokens(split, index, view)
        plain = tokens(split, index)
        assert (changed[0], changed[-1]) == (2, 3)
        if by == "unknown":
            assert all(new in (old, 1) for new, old in zip(changed, plain, strict=True))
        else:
            remaining = iter(plain)
            assert all(token in remaining for token in changed)
    assert inputs["attention_mask"].sum(dim=1).max() == inputs["input_ids"].shape[1]


def test_dropout_takes_its_share_anew_in_every_view():
    split = token_split(0.3, num_items=150)
    shares = []
    for view in range(2):
        inputs = split.inputs(range(150), view)
        inner = inputs["attention_mask"].sum() - 2 * 150
        shares.append(((inputs["input_ids"] == 1).sum() / inner).item())
        assert shares[-1] == pytest.approx(0.3, abs=0.02)
    assert shares[0] != shares[1]
    assert tokens(split, 5) == tokens(token_split(0.0, num_items=150), 5, view=3)


def test_a_row_that_would_lose_every_token_keeps_one():
    special = SpecialTokens(kept=())
    split = TextSplit(
        TokenStore([np.array([7])] * 40),
        np.zeros(40),
        special=special,
        augmentation=Augmentation(token_dropout=0.9, token_dropout_by="removal"),
    )
    assert (split.inputs(range(40), 0)["attention_mask"] == 1).all()
