# SPDX-License-Identifier: Apache-2.0
"""A tokenizer cut to the pieces that texts need reads kept pieces as before and spells everything else."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from edvit_hf.data import Augmentation, TextConfig, load_task, train_tokenizer, with_vocabulary
from edvit_hf.data.vocabulary import cut_tokenizer
from edvit_hf.errors import DataError
from edvit_hf.transforms import TextTransform
from support.dataset_files import own_cache, parquet, write_texts  # noqa: F401

_quick = settings(max_examples=20, deadline=None)
_TEXTS = [
    "the cat sat on the mat",
    "a dog ran over the hill",
    "cats and dogs and mats",
    "überall straßen",
    "日本 日",
] * 5
_WORD = st.text("thecatsondgrüß日本xq.,!é ", max_size=12)


def word_piece(texts=_TEXTS, size=160):
    return train_tokenizer(texts, TextConfig(max_length=64, vocab_size=size))


def byte_pairs(texts=_TEXTS, size=330):
    """As GPT-2's and RoBERTa's: bytes, merges, a template of special tokens in RoBERTa's own form."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    settings_of = {"model_max_length": 64, "pad_token": "<pad>", "unk_token": "<unk>"}
    settings_of["added_tokens_decoder"] = {"1": {"content": "<pad>"}, "2": {"content": "</s>"}}
    return {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": json.dumps(settings_of)}


def suffixed_pairs(texts=_TEXTS, size=120):
    """As the first BPE models': characters, words end in a mark, new characters are unknown."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]", end_of_word_suffix="</w>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["[UNK]", "[PAD]"], end_of_word_suffix="</w>")
    tokenizer.train_from_iterator(texts, trainer)
    return {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": json.dumps({"model_max_length": 64})}


KINDS = {"WordPiece": word_piece(), "bytes": byte_pairs(), "suffixes": suffixed_pairs()}


def transform(files, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return TextTransform.from_file(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return {kind: transform(files, tmp_path_factory.mktemp(kind)) for kind, files in KINDS.items()}


def counts_of(tokenizer, texts):
    return np.bincount(np.concatenate(tokenizer.encode(texts)), minlength=tokenizer.vocab_size)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@_quick
def test_texts_of_kept_pieces_are_read_as_before_and_nothing_known_becomes_unknown(kind, whole, tmp_path_factory, data):
    before, files = whole[kind], KINDS[kind]
    seen = data.draw(st.lists(st.sampled_from(_TEXTS) | _WORD, min_size=1, max_size=4))
    counts = counts_of(before, seen)
    least = cut_tokenizer(files, counts, 10**6).num_fallback
    wanted = data.draw(st.just("seen") | st.integers(least, before.vocab_size + 5))
    cut = cut_tokenizer(files, counts, wanted)
    after = transform(cut.files, tmp_path_factory.mktemp("cut"))
    assert after.vocab_size == len(cut.kept) == (len(cut.kept) if wanted == "seen" else min(wanted, before.vocab_size))
    unknown = {before._tokenizer.token_to_id(name) for name in ("[UNK]", "<unk>")} - {None}
    for text in [*seen, *data.draw(st.lists(_WORD, max_size=4))]:
        (old,), (new,) = before.encode([text]), after.encode([text])
        if set(old.tolist()) <= set(cut.kept.tolist()):
            assert cut.kept[new].tolist() == old.tolist()
        elif len(new) < after.max_length:
            assert not unknown & set(cut.kept[new].tolist()) or unknown & set(old.tolist())
        if wanted == "seen" and text in seen:
            assert cut.kept[new].tolist() == old.tolist()
    (blank,) = after.encode([""])
    assert cut.kept[blank].tolist() == before.encode([""])[0].tolist()  # special tokens have their new numbers
    assert cut.kept[after.pad_id] == before.pad_id


@pytest.mark.parametrize("kind", KINDS)
def test_the_cut_tokenizer_is_read_by_the_stock_class_as_by_devices(kind, whole, tmp_path):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    before = whole[kind]
    files = dict(KINDS[kind])
    files["vocab.txt"] = "stale"
    cut = cut_tokenizer(files, counts_of(before, _TEXTS[:1]), "seen")
    assert "vocab.txt" not in cut.files
    after = transform(cut.files, tmp_path / "cut")
    if kind == "WordPiece":
        (tmp_path / "cut" / "config.json").write_text(json.dumps({"model_type": "bert"}))
        stock = AutoTokenizer.from_pretrained(tmp_path / "cut")
        assert len(stock) == len(cut.kept)
    else:
        stock = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "cut" / "tokenizer.json"))
    for text in (*_TEXTS[:5], "something else"):
        assert stock(text)["input_ids"] == after.encode([text])[0].tolist()


def test_the_most_frequent_pieces_stay_then_the_earlier_ones_of_the_vocabulary(whole):
    before, files = whole["WordPiece"], KINDS["WordPiece"]
    vocabulary = json.loads(files["tokenizer.json"])["model"]["vocab"]
    counts = np.zeros(before.vocab_size, np.int64)
    counts[[vocabulary["dogs"], vocabulary["cats"]]] = 3, 7
    least = cut_tokenizer(files, counts, 10**6).num_fallback
    one, two, more = (cut_tokenizer(files, counts, least + extra).kept.tolist() for extra in (1, 2, 4))
    assert set(one) - set(cut_tokenizer(files, counts, least).kept.tolist()) == {vocabulary["cats"]}
    assert set(two) - set(one) == {vocabulary["dogs"]}
    unseen = sorted(set(range(before.vocab_size)) - set(two))
    assert set(more) - set(two) == set(unseen[:2])


def test_a_piece_of_byte_pairs_keeps_its_chain_of_merges(whole):
    before, files = whole["bytes"], KINDS["bytes"]
    counts = np.zeros(before.vocab_size, np.int64)
    counts[before.encode(["the cats"])[0]] = 1
    cut = json.loads(cut_tokenizer(files, counts, "seen").files["tokenizer.json"])["model"]
    made = {first + second for first, second in (m.split(" ") if isinstance(m, str) else m for m in cut["merges"])}
    assert {
        piece for piece in cut["vocab"] if len(piece) > 1 and piece not in ("<s>", "<pad>", "</s>", "<unk>")
    } == made
    assert len(made) < 12
    assert sorted(cut["vocab"].values()) == list(range(len(cut["vocab"])))


def test_what_cannot_be_cut_is_refused_with_what_to_do(whole):
    counts = np.ones(10, np.int64)
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    for tokenizer in (unigram, words):
        with pytest.raises(DataError, match=r"WordPiece or BPE, got (Unigram|WordLevel)"):
            cut_tokenizer({"tokenizer.json": tokenizer.to_str()}, counts, "seen")
    for kind, files in KINDS.items():
        least = cut_tokenizer(files, counts, 10**6).num_fallback
        with pytest.raises(DataError, match=f"at least {least} pieces, got {least - 1}"):
            cut_tokenizer(files, counts_of(whole[kind], _TEXTS), least - 1)
    document = json.loads(KINDS["WordPiece"]["tokenizer.json"])
    document["model"]["unk_token"] = "[NONE]"
    with pytest.raises(DataError, match="without it"):
        cut_tokenizer({"tokenizer.json": json.dumps(document)}, counts, "seen")


def test_a_piece_with_a_character_that_stands_nowhere_alone_stays():
    vocabulary = {name: i for i, name in enumerate(["[UNK]", "a", "##b", "##bc", "ab", "abd", "##d"])}
    document = json.dumps({"model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": vocabulary}})
    kept = cut_tokenizer({"tokenizer.json": document}, np.zeros(7, np.int64), 10**6).num_fallback
    assert kept == 5  # all but "ab" and "abd"


_PIECES = [prefix + text for prefix in ("", "##") for text in ("w", "x", "y", "z", "wx", "xy", "yz", "wxy", "xyz")]


@given(st.lists(st.sampled_from(_PIECES), unique=True), st.text("wxyz", min_size=1, max_size=6), st.data())
@settings(max_examples=150, deadline=None)
def test_a_word_whose_characters_have_pieces_of_their_own_is_known_whatever_is_cut(pieces, word, data):
    ids = {name: number for number, name in enumerate(["[UNK]", *pieces])}
    whole = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    counts = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(ids), max_size=len(ids))))
    cut = cut_tokenizer({"tokenizer.json": whole.to_str()}, counts, "seen")
    before = whole.encode(word).tokens
    after = Tokenizer.from_str(cut.files["tokenizer.json"]).encode(word).tokens
    if {ids[piece] for piece in before} <= set(cut.kept.tolist()):
        assert after == before
    if all(("##" * (i > 0)) + character in ids for i, character in enumerate(word)):
        assert "[UNK]" not in after


def test_a_word_with_a_character_that_has_no_piece_of_its_own_can_become_unknown():
    ids = {name: i for i, name in enumerate(["[UNK]", "a", "##w", "##x", "##y", "##wx", "##xy", "##yz"])}
    whole = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    assert whole.encode("awxyz").tokens == ["a", "##wx", "##yz"]
    counts = np.array([0, 1, 1, 1, 1, 0, 1, 1])
    cut = Tokenizer.from_str(cut_tokenizer({"tokenizer.json": whole.to_str()}, counts, "seen").files["tokenizer.json"])
    assert cut.encode("awxyz").tokens == ["[UNK]"]  # "##xy" ends where "##yz" no longer fits
    assert cut.encode("ayz").tokens == ["a", "##yz"]


def load(folder, dropout, by="removal"):
    augmentation = Augmentation(token_dropout=dropout, token_dropout_by=by)
    return load_task(
        parquet(folder, text=TextConfig(max_length=24, vocab_size=400)), augmentation, task="text-classification"
    )


@pytest.fixture
def task(tmp_path):
    random = np.random.default_rng(0)
    words = ["river", "mountain", "forest", "keyboard", "screen", "printer", "rarely", "seldom"]
    rows = [" ".join(random.choice(words, 2 + row % 9, p=[0.19] * 4 + [0.1, 0.1, 0.02, 0.02])) for row in range(60)]
    write_texts(tmp_path / "set", "train", rows, [0, 1] * 30)
    write_texts(tmp_path / "set", "test", [*rows[:5], "new words"], [0, 1] * 3)
    return tmp_path / "set"


def test_a_view_drops_of_the_new_tokens_what_it_drops_of_the_old_ones(task):
    from tokenizers import Tokenizer as Reader

    data = load(task, 0.4)
    cut = with_vocabulary(data, cut_tokenizer(data.processor, np.zeros(1), 10**6).num_fallback + 3)
    assert cut.kept_pieces is not None
    old_names, new_names = (Reader.from_str(each.processor["tokenizer.json"]) for each in (data, cut))

    def text(split, names, rows, view):
        found = split.inputs(rows, view=view)
        lengths = found["attention_mask"].sum(1)
        lines = zip(found["input_ids"].tolist(), lengths.tolist(), strict=True)
        return ["".join(names.id_to_token(i).removeprefix("##") for i in ids[:length]) for ids, length in lines]

    for view in range(4):
        rows = [row for row in range(len(data.train)) if cut.train.lengths[row] < 24]
        assert len(rows) > 20
        assert text(data.train, old_names, rows, view) == text(cut.train, new_names, rows, view)
    plain = [text(each.test, names, range(6), None) for each, names in ((data, old_names), (cut, new_names))]
    assert plain[0] == plain[1]


def test_with_every_seen_piece_training_views_are_the_same_under_new_numbers(task):
    for by in ("removal", "unknown"):
        data = load(task, 0.3, by)
        cut = with_vocabulary(data, "seen")
        assert cut.vocab_size == len(cut.kept_pieces) < data.vocab_size
        assert (cut.pad_token_id, cut.input_sizes["vocab_size"]) == (0, cut.vocab_size)
        for view in (None, 0, 5):
            old, new = data.train.inputs(range(54), view=view), cut.train.inputs(range(54), view=view)
            assert cut.kept_pieces[new["input_ids"].numpy()].tolist() == old["input_ids"].tolist()
            assert new["attention_mask"].tolist() == old["attention_mask"].tolist()
        assert cut.train.texts([3]) == data.train.texts([3])
        assert cut.fingerprint("test") == data.fingerprint("test")
