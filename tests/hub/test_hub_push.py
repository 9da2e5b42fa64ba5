# SPDX-License-Identifier: Apache-2.0
"""`edvit push`: everything in one commit, nothing that is not ready, nobody's work undone."""

import json
import os
import time
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from edvit_hf.cli import app
from edvit_hf.errors import HubError
from edvit_hf.hub import prepare_push
from edvit_hf.hub.checks import LOCAL_FOLDER, card_faults
from edvit_hf.manifest import Manifest, Parity
from support.hub_ensemble import CARD, GROUPS, REPO, files_of, send, write_publishable
from support.hub_server import READ, Fault, account

pytest_plugins = ["support.hub_fixtures"]
runner = CliRunner()


def edit_manifest(root, **changes):
    """Change fields of the manifest's `ensemble`."""
    manifest = Manifest.load(root)
    replace(manifest, ensemble=replace(manifest.ensemble, **changes)).save(root)


def test_everything_arrives_in_one_commit_and_the_tag_names_it(hub, folder):
    done = send(folder, tag="v1")
    repository = hub.repositories[REPO]
    expected = files_of(folder)
    expected["README.md"] = expected["README.md"].replace(LOCAL_FOLDER.encode(), REPO.encode())
    assert {p: d for p, d in repository.files().items() if p != ".gitattributes"} == expected
    assert len(repository.commits) == 2  # the one that a new repository begins with, and ours
    assert repository.tags == {"v1": done.commit} == {"v1": repository.branches["main"]}
    assert len(hub.seen("POST .*/commit/")) == 1


def test_a_second_push_of_the_same_changes_nothing(hub, folder):
    first = send(folder, tag="v1")
    again = send(folder, tag="v1")
    assert (again.commit, again.changed) == (first.commit, False)
    assert len(hub.seen("POST .*/commit/")) == 1
    assert send(folder, tag="v1.0").tag == "v1.0"  # a second name for the same state
    assert set(hub.repositories[REPO].tags) == {"v1", "v1.0"}


def test_a_new_version_removes_what_it_no_longer_has_and_leaves_what_others_put_there(hub, folder, tmp_path):
    send(folder)
    repository = hub.repositories[REPO]
    repository.put("LICENSE.txt", b"by somebody else")
    new = tmp_path / "new"
    write_publishable(new, profiles=("raspberry-pi-5",), seed=1)
    done = send(new)
    assert done.removed == [f"sub_models/{i:02d}/onnx/model_quint8_avx2.onnx" for i in range(3)]
    assert set(files_of(new)) == set(repository.files()) - {".gitattributes", "LICENSE.txt"}


def test_the_tree_is_printed_before_anything_is_asked_and_a_dry_run_asks_nothing(hub, folder):
    done = runner.invoke(app, ["push", str(folder), REPO, "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "sub_models/" in done.output
    assert f"{(folder / 'model.safetensors').stat().st_size:,}" in done.output
    assert hub.requests == []
    (folder / "weights.pkl").write_bytes(b"x")
    refused = runner.invoke(app, ["push", str(folder), REPO])
    assert refused.exit_code == 1
    assert refused.output.index("sub_models/") < refused.output.index("weights.pkl is a pickle")
    assert hub.requests == []


def test_the_command_line_pushes_and_answers_in_json(hub, folder):
    done = runner.invoke(app, ["push", str(folder), REPO, "--tag", "v1", "--private", "--format", "json"])
    answer = json.loads(done.stdout)
    assert answer["commit"] == hub.repositories[REPO].tags["v1"]
    assert answer["bytes"] == sum(len(data) for data in files_of(folder).values())
    assert hub.repositories[REPO].private


def _cut(path, keep=40):
    path.write_bytes(path.read_bytes()[:keep])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def _rename_tensor(root):
    path = root / "sub_models/01/model.safetensors"
    part = load_file(path)
    part["other.name"] = part.pop("head.bias")
    save_file(part, path)


def _change_tensor(root):
    path = root / "fusion.safetensors"
    save_file({name: value + np.float32(1e-3) for name, value in load_file(path).items()}, path)


def _accept_content(root):
    """Make the manifest vouch for the weights as they are now, so that only their disagreement is left to find."""
    from edvit_hf.manifest import content_files, hash_of_content

    manifest, content = Manifest.load(root, fresh=False), content_files(root)
    entry = replace(manifest.ensemble, content_hash=hash_of_content(content))
    replace(manifest, ensemble=entry, content=content).save(root)


def _miss_parity(root):
    manifest = Manifest.load(root)
    bad = Parity(max_abs=0.1, relative_to_largest_logit=2e-4, argmax_agreement=1.0, num_items=10)
    first = manifest.sub_models[0]
    first = replace(first, variants=[replace(first.variants[0], parity=bad), *first.variants[1:]])
    replace(manifest, sub_models=[first, *manifest.sub_models[1:]]).save(root)


FAULTS = {
    "no manifest": (lambda r: (r / "manifest.json").unlink(), "No manifest"),
    "cut manifest": (lambda r: _cut(r / "manifest.json"), "breaks at line"),
    "newer schema": (
        lambda r: (r / "manifest.json").write_text(
            json.dumps({**json.loads((r / "manifest.json").read_text()), "schema_version": 99})
        ),
        "schema version 99 is newer",
    ),
    "missing graph": (lambda r: (r / "onnx/fusion.onnx").unlink(), "onnx/fusion.onnx is listed .* but missing"),
    "altered graph": (lambda r: _flip(r / "sub_models/02/onnx/model.onnx"), "02/onnx/model.onnx: expected sha256"),
    "cut graph": (lambda r: _cut(r / "sub_models/00/onnx/model.onnx"), "expected .* bytes, got 40"),
    "other config": (lambda r: (r / "sub_models/01/config.json").write_text("{}"), r"not those of the manifest \(sub"),
    "cut weights": (lambda r: (_cut(r / "fusion.safetensors"), _accept_content(r)), "expected safetensors"),
    "renamed tensor": (lambda r: (_rename_tensor(r), _accept_content(r)), "only one of them has sub_models.1."),
    "changed tensor": (lambda r: (_change_tensor(r), _accept_content(r)), "fusion.layers.0.weight differs"),
    "missed gate": (lambda r: edit_manifest(r, gates={"quint8_avx2": {"passed": False}}), "gate of quint8_avx2"),
    "missed gate of one group": (
        lambda r: edit_manifest(r, gates={"quint8_avx2": {"passed": True, "groups": [{"passed": False}]}}),
        "gate of quint8_avx2",
    ),
    "parity": (_miss_parity, "2.0e-04 of the largest logit away from torch"),
    "no card": (lambda r: (r / "README.md").unlink(), "README.md is missing"),
    "pickle": (lambda r: (r / "sub_models/00/pytorch_model.bin").write_bytes(b"x"), "pytorch_model.bin is a pickle"),
    "compiled code": (lambda r: (r / "a.pyc").write_bytes(b"x"), "a.pyc is a pickle"),
    "secret": (lambda r: (r / ".env").write_text("TOKEN=1"), ".env looks like a secret"),
    "token in a text": (lambda r: (r / "notes.txt").write_text("hf_" + "a1B2" * 9), "notes.txt looks like a secret"),
    "key": (lambda r: (r / "deploy.pem").write_text("x"), "deploy.pem looks like a secret"),
    "link": (lambda r: (r / "extra.txt").symlink_to("/etc/hostname"), "extra.txt is a link"),
    "linked folder": (lambda r: (r / "more").symlink_to("/etc"), "more is a link"),
    "hidden": (lambda r: (r / ".export").mkdir() or (r / ".export/x").write_text(""), "hidden or left-over"),
    "half-written": (lambda r: (r / "results.json.partial").write_text("{"), "hidden or left-over"),
    "pipe": (lambda r: os.mkfifo(r / "pipe"), "pipe is no ordinary file"),
    "unknown graph": (lambda r: (r / "onnx/old.onnx").write_bytes(b"x"), "onnx/old.onnx is not in the manifest"),
    "unknown weights": (
        lambda r: (r / "old").mkdir() or (r / "old/model.safetensors").write_bytes(b"x"),
        "old/model.safetensors is not in the manifest",
    ),
    "missing figure": (lambda r: (r / "assets/accuracy.png").unlink(), "shows assets/accuracy.png, which is not there"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_folder_with_a_fault_is_refused_before_anything_is_sent(hub, folder, name):
    break_it, message = FAULTS[name]
    break_it(folder)
    with pytest.raises(HubError, match=message) as refused:
        send(folder)
    assert "Nothing was sent" in str(refused.value)
    assert hub.requests == []


def test_every_fault_is_named_at_once(folder):
    (folder / ".env").write_text("x")
    (folder / "README.md").unlink()
    with pytest.raises(HubError, match="got 2 faults") as refused:
        send(folder, dry_run=True)
    assert ".env" in str(refused.value)
    assert "README.md is missing" in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("---\n", "", "does not begin with a metadata block"),
        ("license: apache-2.0\n", "", "`license` of the metadata block is missing"),
        ("license: apache-2.0", "license: ''", "`license` of the metadata block is missing"),
        ("tags:\n- edvit\n", "", "`tags` of the metadata block is missing"),
        ("- edvit", "- edvit\nx: [", "is no YAML"),
        ("- edvit", "- edvit\nmodel-index: 3", "is not what the Hub takes"),
        ("# A tiny ensemble", "", "has no title"),
        ("# A tiny ensemble", "#  ", "has no title"),
        ("# A tiny ensemble", "# A\n\n[More Information Needed]", "placeholder"),
        ("# A tiny ensemble", "# A\n\nTODO: write", "note to the author"),
        ("# A tiny ensemble", "# A\n\n{{ text.limits }}", "piece of the template"),
        ("# A tiny ensemble", "# A\n\n{{ a {{ b }}", "piece of the template: '{{ b }}'"),
        ("# A tiny ensemble", "# A\n\n{% if a % b %}", "piece of the template: '{% if a % b %}'"),
        ("# A tiny ensemble", "# A\n\n<your <b>name</b> here>", "a placeholder"),
        ("assets/accuracy.png", "assets/other.png", "shows assets/other.png, which is not there"),
        ("![Accuracy](assets/accuracy.png)", '<img src="x.png">', "shows x.png"),
    ],
)
def test_a_card_with_a_blank_is_refused(old, new, message):
    files = {"README.md", "assets/accuracy.png"}
    assert list(card_faults(CARD, files)) == []
    faults = list(card_faults(CARD.replace(old, new, 1 if old == "---\n" else -1), files))
    assert any(message in fault for fault in faults), faults


@pytest.mark.parametrize(
    "piece",
    [
        "![",
        "![a](b ",
        "![](",
        "](",
        "<img ",
        "<img src='",
        "{{ ",
        "{% ",
        "<your ",
        "# A\n\n",
        "more information ",
        "[TO",
    ],
)
def test_a_long_card_is_looked_through_once(piece):
    begin = time.process_time()
    list(card_faults(CARD + piece * (1_000_000 // len(piece)), {"README.md", "assets/accuracy.png"}))
    assert time.process_time() - begin < 15  # of a part of a second's work; going back for every piece takes an hour


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("![a][b] ![c]( <d.png> 'e') ![f](g", ["d.png"]),
        ("[![a](b.png)](c) <img alt='x' src='d.png'> <img alt='y'> ![](e.png)", ["b.png", "d.png", "e.png"]),
        ('![ ![a](b.png) <img\nsrc="c.png"/>', ["b.png", "c.png"]),
    ],
)
def test_the_figures_that_a_card_shows_are_found(text, shown):
    faults = [
        fault for fault in card_faults(f"{CARD}\n{text}", {"assets/accuracy.png"}) if "which is not there" in fault
    ]
    assert faults == [f"README.md shows {name}, which is not there. Render the card anew." for name in shown]


def test_the_place_a_card_names_without_a_repository_is_the_one_that_is_filled_in():
    from edvit_hf.card import render as model_card

    template = (model_card.template_path()).read_text()
    source = "".join(p.read_text() for p in [*model_card.template_path().parents[1].glob("src/edvit_hf/card/*.py")])
    assert LOCAL_FOLDER in template + source


SCOPED = [{"entity": {"type": "user", "name": "ada"}, "permissions": ["repo.content.read"]}]


@pytest.mark.parametrize(
    ("who", "repo", "message"),
    [
        (account("ada", role="read"), "ada/tiny", "which may only read"),
        (account("ada"), "lab/tiny", "belongs to none of that name"),
        (account("ada", orgs=[("lab", "read")]), "lab/tiny", "ada may only read there"),
        (account("ada", role="fineGrained", scoped=SCOPED), "ada/tiny", "may do: ada: repo.content.read"),
        (account("ada", role="fineGrained", scoped=[]), "ada/tiny", "may do: nothing"),
    ],
)
def test_a_token_without_write_rights_is_refused_before_anything_is_sent(hub, folder, who, repo, message):
    hub.accounts["hf_other"] = who
    with pytest.raises(HubError, match=message):
        send(folder, repo, token="hf_other")
    assert hub.requests == ["GET /api/whoami-v2"]


@pytest.mark.parametrize("entity", ["ada", "ada/tiny"])
def test_a_fine_grained_token_that_may_write_is_taken(hub, folder, entity):
    scoped = [{"entity": {"type": "model", "name": entity}, "permissions": ["repo.content.read", "repo.write"]}]
    hub.accounts["hf_other"] = account("ada", role="fineGrained", scoped=scoped)
    assert send(folder, "ada/tiny", token="hf_other").changed


def test_no_token_and_an_invalid_one_are_told_apart(hub, folder, monkeypatch):
    with pytest.raises(HubError, match="does not accept the token") as refused:
        send(folder, token="hf_expired")
    assert refused.value.status == 401
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(folder / "none"))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(HubError, match="found none"):
        send(folder)


def test_the_hub_has_the_last_word_on_rights(hub, folder):
    hub.faults.append(Fault("POST .*/preupload/", status=403, message="this repository is frozen"))
    with pytest.raises(HubError, match="the token may not do this") as refused:
        send(folder)
    assert refused.value.status == 403


def test_a_public_repository_is_not_mistaken_for_a_private_one(hub, folder):
    hub.create(REPO)
    with pytest.raises(HubError, match="exists and is public"):
        send(folder, private=True)
    assert len(hub.repositories[REPO].commits) == 1


def test_a_tag_that_names_another_version_is_refused_before_anything_is_sent(hub, folder, tmp_path):
    send(folder, tag="v1")
    write_publishable(tmp_path / "new", seed=1)
    uploads = len(hub.seen("PUT /lfs"))
    with pytest.raises(HubError, match="Expected a new tag, but 'v1'"):
        send(tmp_path / "new", tag="v1")
    assert len(hub.seen("PUT /lfs")) == uploads
    assert len(hub.repositories[REPO].commits) == 2


def test_a_branch_and_a_proposal_leave_main_alone(hub, folder):
    repository = hub.create(REPO)
    head = repository.branches["main"]
    on_branch = send(folder, revision="trial")
    assert repository.branches["trial"] == on_branch.commit
    stranger = send(folder, create_pr=True, token=READ)  # proposing needs no right to write
    assert stranger.url.endswith("/discussions/1")
    assert repository.branches["refs/pr/1"] == stranger.commit
    assert repository.branches["main"] == head
    with pytest.raises(HubError, match="Leave --revision and --tag out"):
        send(folder, create_pr=True, tag="v1")


@pytest.mark.parametrize("repo", ["tiny", "/tiny", "lab/", "a/b/c", " lab/tiny"])
def test_a_malformed_repository_name_is_refused(folder, repo):
    with pytest.raises(HubError, match="OWNER/NAME"):
        prepare_push(folder, repo)


def test_weights_that_agree_are_accepted_however_they_are_split(folder):
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(whole)
    save_file({n: whole[n] for n in names[:3]}, folder / "model-00001-of-00002.safetensors")
    save_file({n: whole[n] for n in names[3:]}, folder / "model-00002-of-00002.safetensors")
    _accept_content(folder)
    assert len(names) == 2 * len(GROUPS) + 1
    assert send(folder, dry_run=True).commit is None
