# SPDX-License-Identifier: Apache-2.0
"""The Space: a stranger's model card loads nothing, holds no HTML, and takes neither time nor memory."""

import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from answers.documents import MAX_CARD_CHARACTERS, read_card
from page import figures


def test_a_card_loads_nothing_from_elsewhere_and_keeps_its_code():
    card = (
        "---\nlicense: mit\n---\n# Title\n\n![plot](https://example.com/a.png) and ![b][ref]\n\n<img src='https://x/y'>\n"
        "\n```python\na = b < c  # ![kept](x)\n```\n<script>alert(1)</script> 1 < 2\n"
    )
    shown = figures.card_markdown(card)
    assert "license: mit" not in shown
    assert "example.com" not in shown
    assert "<img" not in shown
    assert "<script" not in shown
    assert "a = b < c  # ![kept](x)" in shown
    assert shown.startswith("# Title")


PIECES = ["![", "](", ")", "[", "]", "<", "!", "<!--", "-->", "<b>", "<img", ">", "<!-<b>-", "a", "://h/x", "```"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*PIECES, " ", "\n"]), max_size=24).map("".join))
@example("!<!-<b>- x -->[a](https://example.com/x.png)")
@example("!<b>[a](https://example.com/x.png)")
@example("~~~\n```\n~~~\n<<b>img src=https://example.com/x.png>\n```\n")
@example("```a`b\n\n![x](https://example.com/x.png)\n<img src=x>\n```")
def test_no_card_loads_a_picture_or_holds_a_tag(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp()
    (folder / "README.md").write_text(text)
    shown = figures.card_markdown(read_card(folder)[0])
    assert "![" not in shown
    assert not re.search(r"<[A-Za-z/!]", shown)


@pytest.mark.parametrize("piece", ["<!--", "<a", "![", "!", "![](", "[", "```\n", "```a ", "---\n", "<!-<a>"])
def test_a_strangers_card_takes_no_time(tmp_path, piece):
    (tmp_path / "README.md").write_text(piece * (MAX_CARD_CHARACTERS // len(piece)))
    begin = time.process_time()
    figures.card_markdown(read_card(tmp_path)[0])
    assert time.process_time() - begin < 0.5


def test_the_settings_of_a_strangers_card_take_neither_time_nor_memory(tmp_path):
    merged = "".join(f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 7))
    (tmp_path / "README.md").write_text(f"---\na0: &a0 {{k: 1}}\n{merged}license: mit\n---\n# T\n")
    begin = time.process_time()
    assert read_card(tmp_path) == ("# T", "mit")
    assert time.process_time() - begin < 0.1  # 0.3 s where it is merged, and nine times that with each further line


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("license: mit", "mit"),
        ('license: "cc-by-4.0"  # so', "cc-by-4.0"),
        ("license: [a, b]", ""),
        ("license:", ""),
        ("xlicense: mit", ""),
        ("license: " + "x" * 61, ""),
    ],
)
def test_the_license_of_a_card_is_one_word(tmp_path, line, found):
    (tmp_path / "README.md").write_text(f"---\ntags:\n- a\n{line}\n---\n# T\n")
    assert read_card(tmp_path) == ("# T", found)
