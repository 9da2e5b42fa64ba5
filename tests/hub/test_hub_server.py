# SPDX-License-Identifier: Apache-2.0
"""The loopback Hub against the real client, and Transformers against what `push` published on it."""

import shutil

import httpx2
import huggingface_hub
import pytest
import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RepositoryNotFoundError
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline

from edvit_hf.auto import EDViTForImageClassification
from edvit_hf.hub import prepare_push, push
from support.hub_ensemble import CARD, PNG, REPO, files_of
from support.hub_server import OTHER, READ, WRITE, Fault
from support.tiny_export import GROUPS, PIXELS, SIZE, exported_images

pytest_plugins = ["support.hub_fixtures"]


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.url, token=WRITE)


def test_the_client_creates_commits_lists_and_deletes(hub, api):
    assert api.create_repo("lab/model", private=True).repo_id == "lab/model"
    assert api.create_repo("lab/model", exist_ok=True).repo_id == "lab/model"
    with pytest.raises(HfHubHTTPError) as exists:
        api.create_repo("lab/model")
    assert exists.value.response.status_code == 409
    files = {"a/b/small.json": b"{}", "a/large.onnx": b"x" * 3000, "README.md": CARD.encode()}
    first = api.create_commit(
        "lab/model", [CommitOperationAdd(p, d) for p, d in files.items()], commit_message="one", parent_commit=None
    )
    tree = {e.path: e for e in api.list_repo_tree("lab/model", recursive=True)}
    assert set(tree) == {*files, "a", "a/b", ".gitattributes"}
    assert tree["a/large.onnx"].lfs.size == 3000
    assert isinstance(tree["a/b/small.json"], RepoFile)
    assert tree["a/b/small.json"].lfs is None
    assert [e.path for e in api.list_repo_tree("lab/model", "a")] == ["a/b", "a/large.onnx"]
    assert [e.path for e in api.get_paths_info("lab/model", ["README.md", "none"])] == ["README.md"]
    second = api.create_commit(
        "lab/model", [CommitOperationDelete("a/large.onnx")], commit_message="two", parent_commit=first.oid
    )
    assert "a/large.onnx" not in api.list_repo_files("lab/model")
    assert "a/large.onnx" in api.list_repo_files("lab/model", revision=first.oid)
    with pytest.raises(HfHubHTTPError) as late:
        api.create_commit("lab/model", [CommitOperationAdd("c", b"c")], commit_message="three", parent_commit=first.oid)
    assert late.value.response.status_code == 412
    api.create_tag("lab/model", tag="v1", revision=first.oid)
    assert {r.name: r.target_commit for r in api.list_repo_refs("lab/model").tags} == {"v1": first.oid}
    assert api.model_info("lab/model", revision="v1").sha == first.oid
    assert api.model_info("lab/model").sha == second.oid


def test_rights_and_errors_are_those_the_client_tells_apart(hub, api, tmp_path):
    hub.create("lab/open", {"config.json": b"{}"})
    hub.create("lab/closed", {"config.json": b"{}"}, private=True)
    assert api.whoami()["name"] == "ada"
    anonymous = HfApi(endpoint=hub.url, token=False)
    assert [m.id for m in anonymous.list_models(author="lab")] == ["lab/open"]
    for token, repo in [(False, "lab/closed"), (OTHER, "lab/closed"), (WRITE, "lab/none")]:
        with pytest.raises(RepositoryNotFoundError):
            HfApi(endpoint=hub.url, token=token).model_info(repo)
    with pytest.raises(RemoteEntryNotFoundError):
        anonymous.hf_hub_download("lab/open", "none.json", local_dir=tmp_path)
    for token, status in [("hf_unknown", 401), (READ, 403), (OTHER, 403)]:
        with pytest.raises(HfHubHTTPError) as refused:
            HfApi(endpoint=hub.url, token=token).create_commit(
                "lab/open", [CommitOperationAdd("x", b"x")], commit_message="x"
            )
        assert refused.value.response.status_code == status


def test_large_files_come_from_elsewhere_in_ranges_and_without_the_token(hub):
    data = bytes(range(256)) * 8
    hub.create("lab/private", {"model.onnx": data, "small.txt": b"0123456789"}, private=True)
    headers = {"Authorization": f"Bearer {WRITE}"}
    with httpx2.Client() as client:
        head = client.head(f"{hub.url}/lab/private/resolve/main/model.onnx", headers=headers)
        assert head.status_code == 302
        assert head.headers["X-Linked-Size"] == "2048"
        assert head.headers["X-Repo-Commit"] == hub.repositories["lab/private"].branches["main"]
        place = head.headers["Location"]
        assert client.get(place, headers=headers).status_code == 400
        part = client.get(place, headers={"Range": "bytes=100-"})
        assert (part.status_code, part.content) == (206, data[100:])
        assert part.headers["Content-Range"] == "bytes 100-2047/2048"
        assert client.get(place, headers={"Range": "bytes=9999-"}).status_code == 416
        small = f"{hub.url}/lab/private/resolve/main/small.txt"
        assert client.get(small, headers={**headers, "Range": "bytes=2-4"}).content == b"234"
        assert client.get(small).status_code == 401


def test_snapshot_download_gives_back_every_byte_even_through_faults(hub, waits, tmp_path):
    files = {"config.json": b"{}", "a/model.onnx": bytes(5000), "b.safetensors": b"z" * 7000}
    hub.create("lab/model", files)
    hub.faults += [Fault("GET /cdn/", cut=True), Fault("HEAD .*config.json", status=503)]
    snapshot_download("lab/model", local_dir=tmp_path / "copy", token=WRITE, endpoint=hub.url)
    found = {p: d for p, d in files_of(tmp_path / "copy").items() if not p.startswith(".")}
    assert found == files
    only = snapshot_download("lab/model", allow_patterns=["a/*"], cache_dir=tmp_path / "cache", endpoint=hub.url)
    assert set(files_of(only)) == {"a/model.onnx"}


@pytest.mark.slow
def test_transformers_loads_runs_and_pushes_what_was_published(hub, tmp_path, tmp_path_factory, monkeypatch):
    root, model, _, _ = exported_images(tmp_path_factory)
    folder = tmp_path / "ensemble"
    shutil.copytree(root, folder)
    (folder / "README.md").write_text(CARD)
    (folder / "assets").mkdir()
    (folder / "assets/accuracy.png").write_bytes(PNG)
    push(prepare_push(folder, REPO), tag="v1")

    Image.new("RGB", (SIZE, SIZE), (200, 30, 90)).save(tmp_path / "picture.png")
    pixels = torch.from_numpy(PIXELS[:3])
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)  # what `push_to_hub` asks
    whole = EDViTForImageClassification.from_pretrained(REPO).eval()
    auto = AutoModelForImageClassification.from_pretrained(REPO, revision="v1")
    part = EDViTForImageClassification.from_pretrained(REPO, sub_models=[1])
    alone = AutoModelForImageClassification.from_pretrained(REPO, subfolder="sub_models/00")
    told = pipeline("image-classification", model=REPO, top_k=4)(str(tmp_path / "picture.png"))
    whole.push_to_hub("lab/from_class", private=True)

    expected = model(pixels).logits
    assert torch.allclose(whole(pixels).logits, expected, atol=1e-5)
    assert auto(pixels).logits.tolist() == whole(pixels).logits.tolist()
    assert part.present == (1,)
    assert type(alone).__name__ == "ViTForImageClassification"
    assert torch.allclose(alone(pixels).logits, model.sub_models[0](pixels).logits, atol=1e-5)
    assert {row["label"] for row in told} == {f"c{i}" for i in range(4)}

    pushed = hub.repositories["lab/from_class"]
    assert pushed.private
    assert len(pushed.commits) == 2
    files = pushed.files()
    same = ["model.safetensors", "fusion.safetensors", *(f"sub_models/{i:02d}/model.safetensors" for i in (0, 1))]
    assert all(len(files[path]) == (folder / path).stat().st_size for path in same)
    assert len(GROUPS) == 2
    assert not hub.seen(r"GET .*\.bin")
    assert not hub.seen("modeling_edvit.py")  # the installed package is used: no code is fetched, let alone run
