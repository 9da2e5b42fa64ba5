# SPDX-License-Identifier: Apache-2.0
"""Repositories of the loopback Hub: commits, branches and tags, in memory."""

import hashlib
import threading
from dataclasses import dataclass, field

import yaml

# kept by sha256, as the Hub does with LFS
LARGE_SUFFIXES = (".safetensors", ".onnx", ".png", ".bin", ".pt", ".pkl", ".whl", ".wav")


class RefusedError(Exception):
    """An answer other than success: status, error code (as the client reads it) and words."""

    def __init__(self, status, code="", message="", headers=None):
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}


@dataclass(frozen=True)
class Blob:
    """Bytes of a file, and whether the Hub keeps them apart."""

    data: bytes
    large: bool

    @property
    def sha256(self):
        return hashlib.sha256(self.data).hexdigest()

    @property
    def git_id(self):
        data = pointer(self) if self.large else self.data
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def etag(self):
        return self.sha256 if self.large else self.git_id


def pointer(blob):
    """What git itself holds of a large file."""
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{blob.sha256}\nsize {len(blob.data)}\n"
    return text.encode()


@dataclass
class Repository:
    """One repository; every commit is a whole tree."""

    name: str
    private: bool = False
    sdk: str | None = None  # of a Space
    commits: dict = field(default_factory=dict)  # commit -> {path: Blob}
    messages: dict = field(default_factory=dict)
    branches: dict = field(default_factory=dict)
    tags: dict = field(default_factory=dict)
    num_proposals: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self):
        self.commit({".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)}, "initial commit")

    def resolve(self, revision):
        """The commit that a branch, a tag or a commit's name stands for."""
        found = self.branches.get(revision) or self.tags.get(revision) or (revision in self.commits and revision)
        if not found:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def tree(self, revision):
        return self.commits[self.resolve(revision)]

    def blob(self, revision, path):
        tree = self.tree(revision)
        if path not in tree:
            raise RefusedError(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": self.resolve(revision)})
        return tree[path]

    def commit(self, changes, message="a commit", branch="main", parent=None):
        """Land a commit: path -> Blob, or None to delete. `parent`: refuse if the branch has moved on."""
        with self.lock:
            head = self.branches.get(branch)
            if parent is not None and parent != head:
                raise RefusedError(412, "", "A commit has happened since. Please refresh and try again.")
            tree = dict(self.commits.get(head, {}))
            for path, blob in changes.items():
                if blob is None:
                    tree.pop(path, None)
                else:
                    tree[path] = blob
            seed = f"{self.name}{len(self.commits)}{sorted((p, b.etag) for p, b in tree.items())}"
            oid = hashlib.sha1(seed.encode()).hexdigest()
            self.commits[oid], self.messages[oid], self.branches[branch] = tree, message, oid
            return oid

    def put(self, path, data, branch="main"):
        """Land a commit with one file, as somebody else would."""
        return self.commit({path: Blob(data, path.endswith(LARGE_SUFFIXES))}, f"put {path}", branch)

    def files(self, revision="main"):
        return {path: blob.data for path, blob in self.tree(revision).items()}

    def info(self, revision="main"):
        commit = self.resolve(revision)
        card = self.card(revision)
        return {
            "_id": self.name,
            "id": self.name,
            "modelId": self.name,
            "author": self.name.partition("/")[0],
            "sha": commit,
            "private": self.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": card.get("tags") or [],
            "library_name": card.get("library_name"),
            "pipeline_tag": card.get("pipeline_tag"),
            "createdAt": "2026-01-01T00:00:00.000Z",
            "lastModified": "2026-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": p} for p in self.commits[commit]],
            **({"sdk": self.sdk} if self.sdk else {}),
        }

    def card(self, revision="main"):
        readme = self.tree(revision).get("README.md")
        parts = readme.data.decode().split("---\n") if readme else []
        return (yaml.safe_load(parts[1]) or {}) if len(parts) > 2 else {}

    def entries(self, revision, folder="", recursive=False):
        """The tree as the Hub lists it."""
        rows, prefix = {}, f"{folder}/" if folder else ""
        for path, blob in sorted(self.tree(revision).items()):
            if not path.startswith(prefix):
                continue
            parents = path[len(prefix) :].split("/")[:-1]
            for depth in range(len(parents)):
                parent = prefix + "/".join(parents[: depth + 1])
                if recursive or depth == 0:
                    oid = hashlib.sha1(parent.encode()).hexdigest()
                    rows.setdefault(parent, {"type": "directory", "path": parent, "oid": oid, "size": 0})
            if recursive or not parents:
                rows[path] = file_entry(path, blob)
        if folder and not rows:
            raise RefusedError(404, "EntryNotFound", f"{folder} does not exist")
        return list(rows.values())

    def refs(self):
        def rows(kind, refs):
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": c} for n, c in refs.items()]

        return {"branches": rows("heads", self.branches), "tags": rows("tags", self.tags), "converts": []}


def file_entry(path, blob):
    entry = {"type": "file", "path": path, "oid": blob.git_id, "size": len(blob.data)}
    if blob.large:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": len(pointer(blob))}
    return entry
