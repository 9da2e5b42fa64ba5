# SPDX-License-Identifier: Apache-2.0
"""`edvit space push`: one commit, nothing that would not start, nobody's other Space undone."""

import json
import re
import shutil

import pytest
from huggingface_hub import HfApi
from test_space_wheel import write_wheel
from typer.testing import CliRunner

from edvit_hf import __version__
from edvit_hf.cli import app
from edvit_hf.errors import HubError
from edvit_hf.hub.client import UnreachableError
from edvit_hf.space import assemble, files_address, publish
from edvit_hf.space.page import page_folder
from support.hub_ensemble import files_of
from support.hub_server import READ, SPACES, WRITE, Fault, account
from support.tiny_ensemble import write_tiny_ensemble

pytest_plugins = ["support.hub_fixtures"]
REPO = "lab/page"
runner = CliRunner()


@pytest.fixture
def ensemble(tmp_path):
    write_tiny_ensemble(tmp_path / "tiny", [[0], [1]])
    return tmp_path / "tiny"


@pytest.fixture
def space(tmp_path, ensemble):
    return assemble(tmp_path / "space", {"tiny": ensemble}, library="released")


def sent(hub, repo=REPO):
    """What the Space holds, without the file that every repository begins with."""
    return {p: d for p, d in hub.repositories[SPACES + repo].files().items() if p != ".gitattributes"}


def test_the_client_knows_spaces_from_models(hub):
    api = HfApi(endpoint=hub.url, token=WRITE)
    hub.create("lab/page", {"config.json": b"{}"})
    with pytest.raises(ValueError, match="space_sdk"):
        api.create_repo("lab/page", repo_type="space")
    url = api.create_repo("lab/page", repo_type="space", space_sdk="gradio")
    assert (url.repo_type, str(url)) == ("space", f"{hub.url}/spaces/lab/page")
    assert api.space_info("lab/page").sdk == "gradio"
    assert api.list_repo_files("lab/page", repo_type="space") == [".gitattributes"]
    assert "config.json" in api.list_repo_files("lab/page")
    assert [m.id for m in api.list_models(author="lab")] == ["lab/page"]


def test_the_command_assembles_and_publishes_in_one_commit(hub, ensemble, tmp_path):
    wheel = write_wheel(tmp_path)
    command = ["space", "push", REPO, "--ensemble", f"tiny={ensemble}", "--wheel", str(wheel)]
    done = runner.invoke(app, command)
    assert done.exit_code == 0, done.output
    assert f"pushed: {hub.url}/spaces/{REPO}" in done.output
    assert re.search(r"[\d,]+ +app\.py\n", done.output)
    files = sent(hub)
    assert len(hub.repositories[SPACES + REPO].commits) == 2  # the one that a new repository begins with, and ours
    assert {"app.py", "README.md", "requirements.txt", "model/tiny/manifest.json", wheel.name} <= set(files)
    code = {p: d for p, d in files_of(page_folder()).items() if p.endswith(".py")}
    assert {"page/figures.py", "answers/answering.py"} <= set(code)
    assert code == {p: d for p, d in files.items() if p.endswith(".py")}
    # What the requirements name can be had there, by anybody, and is what was sent.
    line = next(x for x in files["requirements.txt"].decode().splitlines() if x.startswith("edvit_hf"))
    address = re.fullmatch(r"edvit_hf\[device,hub\] @ (\S+)#sha256=([0-9a-f]{64})", line)
    assert address[1] == f"{files_address(REPO, hub.url)}/{wheel.name}"
    import httpx2

    with httpx2.Client(follow_redirects=True) as client:
        assert client.get(address[1]).content == wheel.read_bytes() == files[wheel.name]
    again = runner.invoke(app, [*command, "--format", "json"])
    answer = json.loads(again.stdout)
    assert (answer["changed"], answer["commit"]) == (False, hub.repositories[SPACES + REPO].branches["main"])
    assert len(hub.seen("POST .*/commit/")) == 1


def test_a_dry_run_prints_everything_and_asks_nothing(hub, ensemble):
    done = runner.invoke(app, ["space", "push", REPO, "--ensemble", f"tiny={ensemble}", "--released", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "manifest.json" in done.output
    assert f"dry run: ready for {hub.url}/spaces/{REPO}" in done.output
    assert hub.requests == []


def test_the_bundled_page_is_ready_to_be_published(hub, tmp_path):
    space = assemble(tmp_path / "space", library="released")
    done = publish(space, REPO)
    assert done.changed
    assert sent(hub) == files_of(space)


def test_a_new_version_removes_what_it_no_longer_has_and_leaves_what_others_put_there(hub, ensemble, tmp_path, space):
    publish(space, REPO)
    repository = hub.repositories[SPACES + REPO]
    stale = {"old_module.py", "page/old.py", "edvit_hf-0.0-py3-none-any.whl", "examples/gone/1.png"}
    for path in (*stale, "notes.md", "docs/x.py"):
        repository.put(path, b"older")
    other = assemble(tmp_path / "other", {"other": ensemble}, library="released")
    done = publish(other, REPO)
    gone = {p for p in files_of(space) if p.startswith("model/tiny/")}
    assert set(done.removed) == stale | gone
    assert set(sent(hub)) == {*files_of(other), "notes.md", "docs/x.py"}
    assert len(hub.seen("POST .*/commit/")) == 2


def test_somebodys_other_space_is_not_written_over(hub, space):
    there = {"app.py": b"print('mine')", "README.md": b"---\ntitle: Mine\nsdk: gradio\n---\n"}
    repository = hub.create(REPO, there, sdk="gradio")
    head = repository.branches["main"]
    with pytest.raises(HubError, match=r"holds another one \(app.py, and no tag `edvit`"):
        publish(space, REPO)
    assert repository.branches["main"] == head
    repository.put("README.md", b"no settings at all")
    with pytest.raises(HubError, match="holds another one"):
        publish(space, REPO)
    repository.put("README.md", b"---\ntitle: Mine\ntags: [edvit]\n---\n")  # its owner agrees
    assert publish(space, REPO).changed
    assert sent(hub) == files_of(space)


def test_an_empty_space_that_was_made_by_hand_is_filled(hub, space):
    hub.create(REPO, {"README.md": b"---\ntitle: Mine\nsdk: gradio\n---\n"}, sdk="gradio")
    publish(space, REPO)
    assert sent(hub) == files_of(space)


def test_a_refused_commit_changes_nothing(hub, space):
    hub.faults.append(Fault("POST .*/commit/", status=403, message="this Space is frozen"))
    with pytest.raises(HubError, match=r"may not do this \(this Space is frozen") as refused:
        publish(space, REPO)
    assert refused.value.status == 403
    assert sent(hub) == {}


def test_a_commit_of_somebody_else_meanwhile_is_kept(hub, space, waits):
    repository = hub.create(REPO, sdk="gradio")
    hub.faults.append(Fault("POST .*/commit/", before=lambda: repository.put("notes.md", b"theirs")))
    publish(space, REPO)
    assert sent(hub) == {**files_of(space), "notes.md": b"theirs"}
    counter = iter(range(100))
    (space / "examples/x").mkdir(parents=True)
    (space / "examples/x/questions.txt").write_text("new")
    busy = Fault("POST .*/commit/", times=99, before=lambda: repository.put("notes.md", b"%d" % next(counter)))
    hub.faults.append(busy)
    with pytest.raises(HubError, match="changed 5 times meanwhile"):
        publish(space, REPO)
    assert "examples/x/questions.txt" not in sent(hub)


def test_passing_trouble_is_waited_out_and_an_unreachable_hub_named(hub, space, waits):
    hub.faults.append(Fault("GET .*/tree/", status=503))
    assert publish(space, REPO).changed
    with pytest.raises(UnreachableError, match=r"the connection failed.*Check the network"):
        publish(space, REPO, endpoint="http://127.0.0.1:9")
    assert waits


@pytest.mark.parametrize("repo", ["page", "/page", "lab/", "a/b/c", " lab/page", "lab/pa ge", "../page", "lab/-x"])
def test_a_malformed_name_is_refused_before_anything_is_written(hub, ensemble, repo):
    done = runner.invoke(app, ["space", "push", "--ensemble", f"tiny={ensemble}", "--released", "--", repo])
    assert done.exit_code == 1
    assert "OWNER/NAME" in done.output.replace("\n", "")
    assert hub.requests == []


def test_a_token_that_may_not_write_is_refused_before_anything_is_sent(hub, space):
    hub.accounts["hf_other"] = account("eve")
    for token, message in [(READ, "may only read"), ("hf_other", "belongs to none of that name")]:
        with pytest.raises(HubError, match=message):
            publish(space, REPO, token=token)
    assert hub.requests == ["GET /api/whoami-v2"] * 2


def test_the_command_asks_for_the_token_before_anything_is_made_or_printed(hub, ensemble, monkeypatch):
    monkeypatch.setattr("edvit_hf.space.assembling.write_bundle", lambda *_: pytest.fail("nothing is made"))
    command = ["space", "push", REPO, "--ensemble", f"tiny={ensemble}", "--released"]
    hub.accounts["hf_other"] = account("eve")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    done = runner.invoke(app, command)
    assert (done.exit_code, "belongs to none of that name" in done.output.replace("\n", " ")) == (1, True)
    assert "app.py" not in done.output


def test_the_command_asks_for_the_token_once(hub, ensemble):
    done = runner.invoke(app, ["space", "push", REPO, "--ensemble", f"tiny={ensemble}", "--released"])
    assert done.exit_code == 0, done.output
    assert len(hub.seen("GET /api/whoami-v2")) == 1


def test_a_private_space_is_private_and_has_no_wheel(hub, ensemble, tmp_path, space):
    with_wheel = assemble(tmp_path / "wheel", {"tiny": ensemble}, library=write_wheel(tmp_path))
    with pytest.raises(HubError, match="fetches the wheel without a token"):
        publish(with_wheel, REPO, private=True)
    assert hub.requests == []
    publish(space, REPO, private=True)
    repository = hub.repositories[SPACES + REPO]
    assert repository.private
    head = repository.branches["main"]
    with pytest.raises(HubError, match="is private and edvit_hf"):
        publish(with_wheel, REPO)
    repository.private = False
    with pytest.raises(HubError, match="exists and is public"):
        publish(space, REPO, private=True)
    assert repository.branches["main"] == head


def change_settings(old, new):
    def change(root):
        text = (root / "README.md").read_text()
        assert old in text
        (root / "README.md").write_text(text.replace(old, new, 1))

    return change


def change_requirements(old, new):
    def change(root):
        text = (root / "requirements.txt").read_text()
        assert old in text
        (root / "requirements.txt").write_text(text.replace(old, new, 1))

    return change


FAULTS = {
    "no page": (lambda r: (r / "app.py").unlink(), "app.py is missing"),
    "no settings": (lambda r: (r / "README.md").write_text("# A page\n"), "does not begin with settings"),
    "broken settings": (change_settings("sdk: gradio", "sdk: ["), "are no YAML"),
    "a setting twice": (change_settings("sdk: gradio", "sdk: gradio\nsdk: docker"), "given twice"),
    "another sdk": (change_settings("sdk: gradio", "sdk: docker"), "`sdk` must be gradio"),
    "another page": (change_settings("app_file: app.py", "app_file: main.py"), "`app_file` must be app.py"),
    "no title": (change_settings("title: ", "name: "), "`title` must be a text"),
    "a version as a number": (change_settings('python_version: "3.12"', "python_version: 3.12"), "`python_version`"),
    "a long description": (change_settings("short_description: ", "short_description: " + "x" * 60), "1 to 60 char"),
    "a colour": (change_settings("colorFrom: blue", "colorFrom: bluish"), "`colorFrom` must be one of blue, gray"),
    "no tag": (change_settings("- edvit\n", ""), "`tags` must hold `edvit`"),
    "another gradio": (change_requirements("gradio==", "gradio>="), "pins gradio to None"),
    "no library": (change_requirements("edvit_hf[device,hub]==", "edvit_hf[device,hub]>="), "names neither a wheel"),
    "an older wheel": (lambda r: write_wheel(r, "0.0"), "got edvit_hf-0.0-py3-none-any.whl of edvit_hf 0.0"),
    "a wheel nobody names": (lambda r: write_wheel(r), "requirements.txt does not name it"),
    "pickle": (lambda r: (r / "model/tiny/x.pkl").write_bytes(b"x"), "x.pkl is a pickle"),
    "link": (lambda r: (r / "model/tiny/x.txt").symlink_to("/etc/hostname"), "x.txt is a link"),
    "secret": (lambda r: (r / "notes.txt").write_text("hf_" + "a1B2" * 9), "notes.txt looks like a secret"),
    "left-over": (lambda r: (r / "x.partial").write_text("x"), "x.partial is a hidden or left-over file"),
    "empty file": (lambda r: (r / "model/tiny/results.json").write_text(""), "results.json is empty"),
    "altered graph": (lambda r: (r / "model/tiny/onnx/fusion.onnx").write_bytes(b"x"), "onnx/fusion.onnx: expected"),
    "unknown graph": (lambda r: (r / "model/tiny/old.onnx").write_bytes(b"x"), "old.onnx is not in the manifest"),
    "no ensemble": (lambda r: shutil.rmtree(r / "model"), "holds no ensemble"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_space_with_a_fault_is_refused_before_anything_is_sent(hub, space, name):
    break_it, message = FAULTS[name]
    break_it(space)
    with pytest.raises(HubError, match=re.escape(message)) as refused:
        publish(space, REPO)
    assert "Nothing was sent" in str(refused.value)
    assert hub.requests == []


def test_too_large_a_space_is_refused(space, monkeypatch):
    monkeypatch.setattr("edvit_hf.space.checks.MAX_BYTES", 1000)
    with pytest.raises(HubError, match="a Space may hold 1,000"):
        publish(space, REPO, dry_run=True)


def test_the_released_version_is_named_without_a_wheel(space):
    assert f"edvit_hf[device,hub]=={__version__}\n" in (space / "requirements.txt").read_text()
    assert publish(space, REPO, dry_run=True).commit is None
