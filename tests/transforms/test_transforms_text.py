# SPDX-License-Identifier: Apache-2.0
"""Texts become the same tokens as with the stock fast tokenizers; bad texts and files are refused."""

import json
import sys
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from edvit_hf.errors import DataError, MissingExtraError
from edvit_hf.transforms import TextTransform, Transform, load_transform

SENTENCES = [
    "Hello world, the Cat sat on the Mat!",
    "What is the capital of France ? Where does the river end ?",
    "Naïve café owners paid 3.50 for 12 crêpes.",
    "Привет мир, 日本語 のテキスト, مرحبا بالعالم 🎉",
    "antidisestablishmentarianism and electroencephalography",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LENGTH = 24
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=200) | st.lists(
    st.sampled_from([*" ".join(SENTENCES).split(), "[SEP]", "\0", "\u0301", "\u200d", "\n", "x" * 150]), max_size=60
).map(" ".join)


def bert_like(lowercase=True):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def roberta_like():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def save(folder, tokenizer, **config):
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    bert = {"model_max_length": LENGTH, "tokenizer_class": "BertTokenizer"}
    fast = {"model_max_length": LENGTH, "tokenizer_class": "PreTrainedTokenizerFast"}
    return {
        "bert": save(root / "bert", bert_like(), **bert, do_lower_case=True),
        "bert cased": save(root / "cased", bert_like(lowercase=False), **bert, do_lower_case=False),
        "bert whose files disagree": save(root / "disagree", bert_like(lowercase=False), **bert, strip_accents=False),
        "any fast one": save(root / "fast", bert_like(lowercase=False), **fast, pad_token="[PAD]"),
        "bytes": save(root / "bytes", roberta_like(), **fast, pad_token="<pad>"),
        "left": save(root / "left", roberta_like(), **fast, pad_token="<pad>", truncation_side="left"),
    }


@pytest.fixture(scope="module")
def pairs(folders):
    from transformers import AutoTokenizer

    return {
        name: (TextTransform.from_file(folder), AutoTokenizer.from_pretrained(folder))
        for name, folder in folders.items()
    }


KINDS = ["bert", "bert cased", "bert whose files disagree", "any fast one", "bytes", "left"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
@example(
    texts=[
        *SENTENCES,
        "",
        " ",
        "\0\x01\x7f",
        "👩‍👩‍👧‍👦",
        "a\u0301\u0301",
        "ΣΑΣ İ ǅ ß",
        "[SEP] [PAD] [CLS]",
        "\ufffd\u2028",
    ]
)
def test_tokens_are_those_of_the_stock_tokenizer(pairs, kind, texts):
    transform, stock = pairs[kind]
    expected = stock(texts, truncation=True, padding=True, return_tensors="np")
    rows = transform.encode(texts)
    assert all(row.dtype == np.int64 and 1 <= len(row) <= LENGTH for row in rows)
    batch = transform.pad(rows)
    assert set(batch) == {"input_ids", "attention_mask"}
    for name, values in batch.items():
        assert values.dtype == np.int64
        np.testing.assert_array_equal(values, expected[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "piece",
    [*SENTENCES[:2], "日本語", "a", " ", "\0", "é", "a" * 120 + " ", "ab.", "x" * 5000 + " cat "],
    ids=lambda piece: ascii(piece[:6]),
)
def test_of_a_long_text_the_first_tokens_are_those_of_the_whole(pairs, kind, piece):
    transform, stock = pairs[kind]
    for text in (piece * (20_000 // len(piece)), "the cat " + piece * (3_000 // len(piece)) + " mat"):
        np.testing.assert_array_equal(transform.inputs(text)["input_ids"][0], stock(text, truncation=True)["input_ids"])


def test_of_a_megabyte_only_the_start_is_looked_at(folders, monkeypatch):
    text = " ".join(SENTENCES) * (1_000_000 // len(" ".join(SENTENCES)))
    transform = TextTransform.from_file(folders["bert"])
    read = []
    run = transform._run
    monkeypatch.setattr(transform, "_run", lambda texts: (read.extend(map(len, texts)), run(texts))[1])
    start = time.process_time()
    row = transform.inputs(text)["input_ids"]
    assert time.process_time() - start < 0.5  # 2 ms measured; the whole text takes seconds
    assert row.shape == (1, LENGTH)
    assert sum(read) < 5_000


def test_rows_of_a_mixed_batch_keep_their_places(pairs):
    transform, _ = pairs["bert"]
    texts = ["the cat", "\0" * 30_000 + "mat", "", "river " * 9_000, "world"]
    for row, text in zip(transform.encode(texts), texts, strict=True):
        np.testing.assert_array_equal(row, transform.encode([text])[0])
    assert transform.encode([]) == []


def test_padding_is_masked_and_one_row_has_none(pairs):
    transform, _ = pairs["bert"]
    batch = transform.pad(transform.encode(["the", "the cat sat on the mat"]))
    short, long = batch["attention_mask"].sum(axis=1)
    assert short < long == batch["input_ids"].shape[1]
    assert (batch["input_ids"][0, short:] == transform.pad_id).all()
    assert transform.inputs("the")["attention_mask"].all()
    assert isinstance(transform, Transform)
    assert transform.task == "text-classification"
    assert batch["input_ids"].max() < transform.vocab_size


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(), max_size=30), half=st.sampled_from(["\ud800", "\udfff"]), where=st.integers(0, 30))
def test_lone_surrogates_become_the_replacement_character(pairs, text, half, where):
    clean = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text[:where] + "." + text[where:])
    broken = clean.replace("\ufffd", half)
    for kind in ("bert", "bytes"):
        transform, _ = pairs[kind]
        np.testing.assert_array_equal(transform.encode([broken])[0], transform.encode([clean])[0])


def test_halves_that_belong_together_become_their_character(pairs):
    transform, _ = pairs["bytes"]
    np.testing.assert_array_equal(transform.encode(["\ud83c\udf89\ud800"])[0], transform.encode(["🎉\ufffd"])[0])


def test_the_empty_text_of_a_tokenizer_without_special_tokens_is_one_padding_token():
    tokenizer = bert_like()
    tokenizer.post_processor = None
    batch = TextTransform(tokenizer, max_length=4, pad_id=0).inputs("")
    assert batch["input_ids"].tolist() == [[0]]
    assert batch["attention_mask"].tolist() == [[1]]


@pytest.mark.parametrize(
    ("text", "says_nothing"),
    [
        *((text, True) for text in ("", " \n\t", "🙂", "\ud800", "[SEP] [PAD] [MASK]", "[UNK]")),
        ("🙂 " * 100 + "Hello", True),  # beyond the tokens that are read
        *((text, False) for text in ("Hello", "🙂 cat", ".", "3")),
    ],
)
def test_a_text_of_which_nothing_is_known_says_nothing(pairs, text, says_nothing):
    transform, _ = pairs["bert"]
    assert transform.says_nothing(text, transform.encode([text])[0]) is says_nothing


def test_blanks_say_nothing_to_a_tokenizer_that_knows_every_byte(pairs):
    transform, _ = pairs["bytes"]
    for text, expected in (("  ", True), ("", True), ("<s>", True), ("🎉", False), ("x", False)):
        assert transform.says_nothing(text, transform.encode([text])[0]) is expected


def test_an_unknown_token_of_any_name_says_nothing():
    tokenizer = Tokenizer(models.WordLevel({"pad": 0, "word": 1, "what?": 2}, unk_token="what?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transform = TextTransform(tokenizer, max_length=4)
    assert transform.says_nothing("other words", transform.encode(["other words"])[0])
    assert not transform.says_nothing("other word", transform.encode(["other word"])[0])


@pytest.mark.parametrize("text", [None, 7, b"bytes", float("nan"), ["nested"], np.str_("x").encode()])
def test_what_is_no_text_is_refused_with_its_row(pairs, text):
    transform, _ = pairs["bert"]
    with pytest.raises(DataError, match=r"Expected a text, got \w+ in row 1"):
        transform.encode(["fine", text])
    with pytest.raises(DataError, match="in row 0"):
        transform.inputs(text)


@pytest.mark.parametrize("texts", ["one text", 7, None])
def test_a_text_in_place_of_a_list_is_refused(pairs, texts):
    with pytest.raises(DataError, match="Expected a list of texts"):
        pairs["bert"][0].encode(texts)


@pytest.mark.parametrize("rows", [[], [np.zeros(0, np.int64)], [np.ones(3, np.int64), np.zeros(0, np.int64)]])
def test_rows_without_tokens_are_not_padded(pairs, rows):
    with pytest.raises(DataError, match="Expected rows of token ids"):
        pairs["bert"][0].pad(rows)


def test_numpy_strings_are_texts(pairs):
    transform, _ = pairs["bert"]
    rows = transform.encode(np.array(["the cat", "mat"]))
    np.testing.assert_array_equal(rows[0], transform.encode(["the cat"])[0])


@pytest.mark.parametrize("huge", [None, int(1e30), 1e30])
def test_a_length_must_be_given_or_found(tmp_path, huge):
    folder = save(tmp_path / "t", bert_like(), **({} if huge is None else {"model_max_length": huge}))
    with pytest.raises(DataError, match=r"`model_max_length` in tokenizer_config\.json"):
        load_transform(folder, "text-classification")
    assert TextTransform.from_file(folder, max_length=7).max_length == 7
    tokenizer = bert_like()
    tokenizer.enable_truncation(9)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]", length=40)
    save(folder, tokenizer)
    transform = load_transform(folder, "text-classification")
    assert transform.max_length == 9
    assert transform.inputs("the")["input_ids"].shape[1] < 9, "the file's own padding is switched off"


def test_a_shorter_length_may_be_given_but_no_longer_one(folders):
    short = TextTransform.from_file(folders["bert"], max_length=5)
    assert len(short.encode(["the cat sat on the mat"])[0]) == 5
    with pytest.raises(DataError, match="at most 24 tokens, got 25"):
        TextTransform.from_file(folders["bert"], max_length=25)


@pytest.mark.parametrize("length", [0, -1, 2, 2_000_000, 5.5, True, "9"])
def test_a_length_without_room_for_a_token_is_refused(length):
    with pytest.raises(DataError, match=r"`max_length` of 3\.\."):
        TextTransform(bert_like(), max_length=length)


@pytest.mark.parametrize(
    ("config", "special", "pad"),
    [
        ({"pad_token": "<pad>"}, None, "<pad>"),
        ({"pad_token": {"content": "<pad>", "special": True}}, None, "<pad>"),
        ({}, {"pad_token": "</s>"}, "</s>"),
        ({}, None, "<pad>"),
    ],
)
def test_the_padding_token_is_found_where_stock_files_write_it(tmp_path, config, special, pad):
    tokenizer = roberta_like()
    folder = save(tmp_path / "t", tokenizer, model_max_length=9, **config)
    if special:
        (folder / "special_tokens_map.json").write_text(json.dumps(special))
    assert TextTransform.from_file(folder).pad_id == tokenizer.token_to_id(pad)


def test_an_unknown_padding_token_is_refused(tmp_path):
    folder = save(tmp_path / "t", roberta_like(), model_max_length=9, pad_token="[PAD]")
    with pytest.raises(DataError, match=r"padding token that .*tokenizer\.json knows, got '\[PAD\]'"):
        TextTransform.from_file(folder)


def test_padding_on_the_left_is_refused_wherever_it_is_written(tmp_path):
    tokenizer = roberta_like()
    with pytest.raises(DataError, match=r"the first token answers.*Set `padding_side` to right"):
        TextTransform.from_file(save(tmp_path / "a", tokenizer, model_max_length=9, padding_side="left"))
    tokenizer.enable_padding(direction="left", pad_id=1, pad_token="<pad>")
    with pytest.raises(DataError, match="the first token answers"):
        TextTransform.from_file(save(tmp_path / "b", tokenizer, model_max_length=9))
    # As in the stock tokenizer, tokenizer_config.json has the last word.
    transform = TextTransform.from_file(save(tmp_path / "c", tokenizer, model_max_length=9, padding_side="right"))
    assert transform.pad([np.array([5]), np.array([5, 6])])["attention_mask"].tolist() == [[1, 0], [1, 1]]


@pytest.mark.parametrize(
    "length", [float("nan"), -5, 0, 5.5, "24", [24], True, float("-inf")], ids=lambda value: repr(value)
)
def test_a_length_in_the_files_that_is_none_is_refused(tmp_path, length):
    folder = save(tmp_path / "t", bert_like(), model_max_length=length)
    for wanted in (None, 5):
        with pytest.raises(DataError, match=r"`model_max_length` to be a whole number|no number of JSON"):
            TextTransform.from_file(folder, max_length=wanted)


def test_a_whole_length_written_as_a_float_is_a_length(tmp_path):
    assert TextTransform.from_file(save(tmp_path / "t", bert_like(), model_max_length=9.0)).max_length == 9


@pytest.mark.parametrize("name", ["do_lower_case", "strip_accents", "tokenize_chinese_chars"])
@pytest.mark.parametrize("value", ["yes", 2, [True]])
def test_a_setting_of_case_and_accents_that_is_neither_on_nor_off_is_refused(tmp_path, name, value):
    folder = save(tmp_path / "t", bert_like(), model_max_length=9, tokenizer_class="BertTokenizer", **{name: value})
    with pytest.raises(DataError, match=rf"`{name}`.*true or false"):
        TextTransform.from_file(folder)


@pytest.mark.parametrize("side", [{"padding_side": "top"}, {"truncation_side": None}, {"truncation_side": []}])
def test_unknown_sides_are_refused(tmp_path, side):
    with pytest.raises(DataError, match=f"`{next(iter(side))}`"):
        TextTransform.from_file(save(tmp_path / "t", roberta_like(), model_max_length=9, **side))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"not json", b"[1]", b"\xff\xfe"])
def test_a_damaged_file_is_named(tmp_path, name, content):
    folder = save(tmp_path / "t", bert_like(), model_max_length=9)
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        TextTransform.from_file(folder)


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "absent", tmp_path / "absent" / "tokenizer.json"):
        with pytest.raises(DataError, match=r"tokenizer\.json|absent"):
            TextTransform.from_file(path)


def test_a_tokenizer_that_cannot_split_an_unknown_word_says_so(tmp_path):
    content = json.loads(bert_like().to_str())
    content["model"]["unk_token"] = "[GONE]"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    transform = TextTransform.from_file(tmp_path, max_length=9)
    with pytest.raises(DataError, match="lack the unknown token"):
        transform.inputs("\u4e00\u4e01")


def test_without_tokenizers_the_error_carries_the_install_line(monkeypatch, folders):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"`tokenizers`.*pip install 'edvit_hf\[device\]'"):
        load_transform(folders["bert"], "text-classification")


def test_tokens_are_written_as_the_vocabulary_has_them():
    transform = TextTransform(bert_like(), max_length=LENGTH)
    (ids,) = transform.encode(["the cat 日"])
    tokens = transform.tokens(ids)
    assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]")
    assert "[UNK]" not in transform.tokens(transform.encode(["the cat"])[0])
    assert "".join(tokens[1:4]).replace("##", "").startswith("the")
    assert transform.tokens([transform.vocab_size + 5]) == ("",)
