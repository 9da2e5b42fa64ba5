# SPDX-License-Identifier: Apache-2.0
"""A tokenizer.json is a small program: what no honest one needs is refused before the library builds anything of it."""

import json

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from edvit_hf.errors import DataError
from edvit_hf.transforms import TextTransform

VOCABULARY = {"[UNK]": 0, "[PAD]": 1, "a": 2, "b": 3}


def tokenizer(normalizer=None, pre_tokenizer=None):
    made = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    if normalizer is not None:
        made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizer or pre_tokenizers.Whitespace()
    return made


def opened(folder, content):
    (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    settings = {"model_max_length": 16, "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return TextTransform.from_file(folder)


def replacing(pattern, content, times):
    return normalizers.Sequence([normalizers.Replace(pattern, content)] * times)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: tokenizer(replacing("a", "aa", 40)), "4096 times as long"),
        (lambda: tokenizer(replacing(Regex("."), "aa", 20)), "4096 times as long"),
        (lambda: tokenizer(replacing(Regex(""), "a", 40)), "4096 times as long"),
        (lambda: tokenizer(normalizers.Replace("a", "a" * 5000)), "4096 times as long"),
        (lambda: tokenizer(normalizers.Sequence([replacing("a", "aa", 10), replacing("a", "aa", 10)])), "4096 times"),
        (lambda: tokenizer(normalizers.Sequence([normalizers.NFKC()] * 100)), "at most 64 steps"),
        (lambda: tokenizer(None, pre_tokenizers.Split(Regex("a?" * 3000), "isolated")), "at most 4000 characters"),
    ],
)
def test_steps_that_no_honest_tokenizer_has_are_refused(tmp_path, made, words):
    with pytest.raises(DataError, match=words):
        opened(tmp_path, made().to_str())


def test_replacements_of_stock_tokenizers_are_taken(tmp_path):
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁"), normalizers.Replace(Regex(" {2,}"), " ")]
    steps += [
        normalizers.Replace("``", '"'),
        normalizers.Replace("''", '"'),
        normalizers.NFKC(),
        normalizers.StripAccents(),
    ]
    made = tokenizer(normalizers.Sequence([*steps, normalizers.Replace("▁", " ")]))
    assert opened(tmp_path, made.to_str()).encode(["a  b"])[0].tolist() == [2, 3]


def test_a_key_that_is_there_twice_is_refused_wherever_it_is(tmp_path):
    honest = tokenizer().to_str()
    hostile = json.dumps({"normalizer": json.loads(tokenizer(replacing("a", "aa", 40)).to_str())["normalizer"]})[1:-1]
    for content in (f"{honest[:-1]}, {hostile}}}", f"{{{hostile}, {honest[1:]}"):
        with pytest.raises(DataError, match="twice"):
            opened(tmp_path, content)


@pytest.mark.parametrize("content", ["", "[]", "3", "{}", "[" * 100_000, "{" * 10, '{"model": 3}', "\ufeff"])
def test_what_is_no_tokenizer_is_refused(tmp_path, content):
    with pytest.raises(DataError, match="Expected"):
        opened(tmp_path, content)


def test_a_tokenizer_larger_than_any_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("edvit_hf.transforms.text.MAX_TOKENIZER_BYTES", 200)
    with pytest.raises(DataError, match="more than 200 bytes"):
        opened(tmp_path, tokenizer().to_str())


class Panic(BaseException):
    """What the library raises where its Rust fails: no `Exception`."""


@pytest.mark.parametrize("panic", [Panic("index out of bounds"), ValueError("damaged")])
def test_a_panic_of_the_library_is_an_error_of_ours(tmp_path, monkeypatch, panic):
    transform = opened(tmp_path, tokenizer().to_str())

    class Panicking:
        def encode_batch(self, texts):
            raise panic

    monkeypatch.setattr(transform, "_tokenizer", Panicking())
    with pytest.raises(DataError, match="Expected texts that the tokenizer can split"):
        transform.encode(["a"])

    def from_str(content):
        raise panic

    monkeypatch.setattr("tokenizers.Tokenizer.from_str", from_str, raising=False)
    with pytest.raises(DataError, match="Expected a tokenizer"):
        TextTransform.from_file(tmp_path)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), MemoryError()])
def test_what_is_no_fault_of_the_tokenizer_passes(tmp_path, monkeypatch, stop):
    transform = opened(tmp_path, tokenizer().to_str())

    class Stopped:
        def encode_batch(self, texts):
            raise stop

    monkeypatch.setattr(transform, "_tokenizer", Stopped())
    with pytest.raises(type(stop)):
        transform.encode(["a"])
