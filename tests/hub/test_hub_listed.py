# SPDX-License-Identifier: Apache-2.0
"""`edvit push` sends the files of an ensemble and no others: no foreign code, no keys, no stale card."""

from pathlib import Path

import pytest

import edvit_hf
from edvit_hf.errors import HubError
from edvit_hf.hub.listed import holds_secret, made_from
from edvit_hf.tasks import CODE_FILES
from support.hub_ensemble import REPO, send

pytest_plugins = ["support.hub_fixtures"]

KEYS = {
    "Hugging Face": "hf_" + "a1B2" * 9,
    "AWS": "AKIA" + "ABCD" * 4,
    "AWS, secret": "aws_secret_access_key = " + "wJalrXUt" * 5,
    "OpenAI": "sk-" + "proj-" + "aB3_" * 10,
    "OpenAI, older": "sk-" + "aB3d" * 12,
    "Anthropic": "sk-" + "ant-api03-" + "aB3-" * 10,
    "GitHub": "ghp_" + "aB3d" * 9,
    "GitHub, fine": "github_pat_" + "aB3d" * 9,
    "GitLab": "glpat-" + "aB3d" * 5,
    "Google": "AIza" + "aB3d-" * 7,
    "Slack": "xoxb-" + "1234567890-" * 2 + "abcdef",
    "Stripe": "sk_live_" + "aB3d" * 6,
    "npm": "npm_" + "aB3d" * 9,
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----\nMII",
    "private key, OpenSSH": "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
    "signed token": "eyJhbGciOiJIUzI1NiJ9AAAA" + ".eyJzdWIiOiIxMjM0NTY3ODkwIn0" + "." + "SflKxwRJSMeKKF2QT4fw",
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
@pytest.mark.parametrize("file", ["README.md", "sub_models/00/config.json", "LICENSE", "assets/accuracy.png"])
def test_the_key_of_any_service_in_any_file_is_found(tmp_path, key, file):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_bytes(b"\x89PNG \xff text: '" + key.encode() + b"'\n")
    assert holds_secret(tmp_path / file)


@pytest.mark.parametrize(
    "text", ["task-sk-learn-contrib-imbalanced-learning", "a sha256 " + "0a" * 32, "hf_hub_download", "AKIA", "eyJhbGc"]
)
def test_ordinary_words_are_no_keys(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    assert not holds_secret(tmp_path / "README.md")


FOREIGN = [
    "run.py",
    "setup.sh",
    "lib.so",
    "demo.ipynb",
    "notes.txt",
    "sub_models/00/hook.py",
    "assets/x.html",
    "a/b.json",
]


@pytest.mark.parametrize("name", [*FOREIGN, "manifest.json.stale", "sub_models/07/tokenizer.json", "data.csv"])
def test_a_file_that_nobody_listed_is_not_sent(hub, folder, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("x")
    with pytest.raises(HubError, match=rf"{name} is no file of an ensemble"):
        send(folder)
    assert not hub.seen("POST .*/commit/")


@pytest.mark.parametrize("name", CODE_FILES)
def test_code_that_is_not_the_librarys_is_not_sent(hub, folder, name):
    own = (Path(edvit_hf.__file__).parent / name).read_bytes()
    (folder / name).write_bytes(own)
    assert send(folder).changed
    (folder / name).write_bytes(own + b"\nimport os\n")
    with pytest.raises(HubError, match=rf"{name} is not that of this version"):
        send(folder)


def test_what_a_killed_process_left_neither_blocks_a_push_nor_is_sent(hub, folder):
    left = ["results.json.0123ab-12-0123abcd.partial", "onnx/fusion.onnx.0123ab-9-0123abcd.partial"]
    for name in left:
        (folder / name).write_text("")
    (folder / "sub.0123ab-9-0123abcd.partial").mkdir()
    (folder / "sub.0123ab-9-0123abcd.partial/x.py").write_text("")
    for name in (".saving-ab3_xyz9.partial", ".saving.0123ab-9-0123abcd.partial"):  # of `save_pretrained`
        (folder / name / "sub_models/00").mkdir(parents=True)
        (folder / name / "sub_models/00/model.safetensors").write_text("")
    assert send(folder).changed
    assert not [path for path in hub.repositories[REPO].files() if "partial" in path]


@pytest.mark.parametrize("changed", ["manifest.json", "results.json"])
def test_a_card_of_other_figures_is_noticed(hub, folder, changed):
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace("\n---\n", f"\nmade_from: {made_from(folder)}\n---\n", 1))
    assert send(folder).changed
    (folder / changed).write_text((folder / changed).read_text() + "\n")
    with pytest.raises(HubError, match=r"README\.md was made from another manifest\.json or results\.json"):
        send(folder)
