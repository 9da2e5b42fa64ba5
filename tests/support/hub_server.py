# SPDX-License-Identifier: Apache-2.0
"""A Hub on loopback: the HTTP API as `huggingface_hub` uses it, kept in memory, with faults on request.

Written from what the client sends and reads (huggingface_hub 2.4). Not here: Xet, discussions, gates, quotas.
"""

import base64
import json
import re
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from support.hub_store import LARGE_SUFFIXES, Blob, RefusedError, Repository, file_entry

SPACES = "spaces/"  # a Space may have the name of a model: they are kept apart by it, as in the Hub's addresses
WRITE, READ, OTHER = "hf_writer", "hf_reader", "hf_stranger"  # tokens of `LoopbackHub.accounts`


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that `match` finds (a pattern on "METHOD /path").

    `status` answers with an error, `cut` ends the connection after half of the body, `damage` flips a byte of it,
    `endless` sends so many bytes after it, whatever its length was said to be,
    `before` is called first (for example to land a commit), and the request then goes on as usual.
    """

    match: str
    times: int = 1
    status: int | None = None
    headers: dict = field(default_factory=dict)
    message: str = "a fault made for the test"
    cut: bool = False
    damage: bool = False
    endless: int = 0
    before: object = None


def account(name, role="write", orgs=(), scoped=None):
    """What whoami answers for a token. `role`: read, write or fineGrained, the latter with `scoped` rights."""
    token = {"displayName": f"{name}'s token", "role": role}
    if scoped is not None:
        token["fineGrained"] = {"global": [], "canReadGatedRepos": False, "scoped": scoped}
    groups = [{"type": "org", "name": n, "roleInOrg": r} for n, r in orgs]
    return {"type": "user", "name": name, "orgs": groups, "auth": {"type": "access_token", "accessToken": token}}


class LoopbackHub:
    """The state: repositories, uploaded bytes, accounts by token, faults to come, and every request so far."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.accounts = {
            WRITE: account("ada", orgs=[("lab", "write"), ("museum", "read")]),
            READ: account("ada", role="read"),
            OTHER: account("eve"),
        }
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.sent_beyond = 0  # bytes after the end, see `Fault.endless`
        self.part_size = 1 << 20  # larger uploads go in parts
        self.lock = threading.RLock()
        self.url = self.cdn = ""

    def create(self, name, files=(), private=False, sdk=None):
        """A repository with these files (path -> bytes) in one commit; with `sdk` a Space, known as spaces/NAME."""
        repository = self.repositories[f"{SPACES}{name}" if sdk else name] = Repository(name, private, sdk)
        blobs = {path: Blob(data, path.endswith(LARGE_SUFFIXES)) for path, data in dict(files).items()}
        if blobs:
            repository.commit(blobs, "files")
        return repository

    def fault_for(self, line):
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.match, line):
                    fault.times -= 1
                    return fault
        return None

    def seen(self, pattern):
        """The requests that a pattern finds."""
        return [line for line in self.requests if re.search(pattern, line)]


@contextmanager
def loopback_hub():
    """Run a Hub as long as the block lasts."""
    hub = LoopbackHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    port = server.server_address[1]
    # Large files come from another host name, as on the Hub: the client must not send its token there.
    hub.url, hub.cdn = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


_NAME = r"(?P<repo>(?:spaces/)?[\w.-]+/[\w.-]+)"
_API = r"/api/(?P<kind>models|spaces)/(?P<repo>[\w.-]+/[\w.-]+)"
_ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create_repo"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("GET", r"/api/models", "list_models"),
    ("GET", rf"{_API}", "info"),
    ("GET", rf"{_API}/revision/(?P<rev>[^/]+)", "info"),
    ("GET", rf"{_API}/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?", "tree"),
    ("POST", rf"{_API}/paths-info/(?P<rev>[^/]+)", "paths_info"),
    ("GET", rf"{_API}/refs", "refs"),
    ("POST", rf"{_API}/tag/(?P<rev>[^/]+)", "tag"),
    ("POST", rf"{_API}/branch/(?P<rev>[^/]+)", "branch"),
    ("POST", rf"{_API}/preupload/(?P<rev>[^/]+)", "preupload"),
    ("POST", rf"{_API}/commit/(?P<rev>[^/]+)", "commit"),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})/(?P<part>\d+)", "lfs_put"),
    ("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/complete", "lfs_complete"),
    ("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/verify", "lfs_verify"),
    ("HEAD|GET", rf"/{_NAME}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
    ("HEAD|GET", rf"/cdn/{_NAME}/(?P<oid>[0-9a-f]{{64}})", "cdn"),
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm, wbufsize = True, -1  # or every answer waits 40 ms for an acknowledgement
    hub: LoopbackHub

    def log_message(self, *_):
        pass

    def _handle(self):
        parts = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        self.body = self._read_body()
        line = f"{self.command} {parts.path}"
        self.hub.requests.append(line)
        self.fault = self.hub.fault_for(line)
        try:
            if self.fault and self.fault.before:
                self.fault.before()
            if self.fault and self.fault.status:
                raise RefusedError(self.fault.status, "", self.fault.message, self.fault.headers)
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
            if token and token not in self.hub.accounts:
                raise RefusedError(401, "", "Invalid credentials in Authorization header")
            self.account = self.hub.accounts.get(token)
            for methods, pattern, name in _ROUTES:
                match = re.fullmatch(pattern, parts.path)
                if match and self.command in methods.split("|"):
                    groups = {k: unquote(v) for k, v in match.groupdict().items() if v is not None}
                    if groups.pop("kind", "models") == "spaces":
                        groups["repo"] = SPACES + groups["repo"]
                    return getattr(self, f"_{name}")(**groups)
            raise RefusedError(404, "", f"no such route: {line}")
        except RefusedError as refused:
            headers = {"X-Error-Message": refused.message, **refused.headers}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            return self._send(json.dumps({"error": refused.message}).encode(), refused.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815

    def _read_body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, data, status=200, headers=None, kind="application/json"):
        fault = self.fault
        if fault and fault.damage and data:
            data = bytes([data[0] ^ 0xFF]) + data[1:]
        self.send_response(status)
        said = {"Connection": "close"} if fault and fault.endless else {"Content-Length": len(data)}
        for name, value in {"Content-Type": kind, **said, **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.endless:
            self.close_connection = True
            with suppress(OSError):  # the client has had enough
                self.wfile.write(data)
                for _ in range(fault.endless >> 16):
                    self.wfile.write(bytes(1 << 16))
                    self.hub.sent_beyond += 1 << 16
            return
        if fault and fault.cut:
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self.wfile.write(data)

    def _json(self, data, status=200):
        self._send(json.dumps(data).encode(), status)

    def _repo(self, name, write=False):
        """The repository, if the caller may see it or, with `write`, change it."""
        plain, user = name.removeprefix(SPACES), self.account and self.account["name"]
        owners = {user: "write", **{org["name"]: org["roleInOrg"] for org in (self.account or {}).get("orgs", ())}}
        role, repository = owners.get(plain.partition("/")[0]), self.hub.repositories.get(name)
        if repository is None or (repository.private and role is None):
            raise RefusedError(401 if self.account is None else 404, "RepoNotFound", "Repository not found")
        if write and (self.account is None or role not in ("write", "admin") or not self._may_write(plain)):
            raise RefusedError(403 if self.account else 401, "", "Forbidden: pass a token with write access")
        return repository

    def _may_write(self, name):
        token = self.account["auth"]["accessToken"]
        scopes = {s["entity"]["name"]: s["permissions"] for s in token.get("fineGrained", {}).get("scoped", ())}
        fits = any("repo.write" in scopes.get(entity, ()) for entity in (name, name.partition("/")[0]))
        return token["role"] == "write" or (token["role"] == "fineGrained" and fits)

    def _whoami(self):
        if self.account is None:
            raise RefusedError(401, "", "Invalid username or password.")
        self._json(self.account)

    def _create_repo(self):
        data = json.loads(self.body)
        name = f"{data.get('organization') or (self.account or {}).get('name')}/{data['name']}"
        owners = {(self.account or {}).get("name"), *(o["name"] for o in (self.account or {}).get("orgs", ()))}
        if self.account is None or name.partition("/")[0] not in owners or not self._may_write(name):
            raise RefusedError(403 if self.account else 401, "", "You don't have the rights to create a model here")
        is_space, sdk = data.get("type") == "space", data.get("sdk")
        if is_space and sdk not in ("gradio", "docker", "static", "streamlit"):
            raise RefusedError(400, "", "a Space needs an sdk")
        key = SPACES + name if is_space else name
        with self.hub.lock:
            known = key in self.hub.repositories
            if not known:
                self.hub.create(name, private=data.get("visibility") == "private", sdk=sdk if is_space else None)
        self._json({"url": f"{self.hub.url}/{key}", "name": name}, 409 if known else 200)

    def _validate_yaml(self):
        try:
            block = json.loads(self.body)["content"].split("---\n")[1]
            errors = [] if isinstance(yaml.safe_load(block), dict) else [{"message": "metadata is no mapping"}]
        except (IndexError, yaml.YAMLError) as error:
            errors = [{"message": str(error)}]
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _list_models(self):
        rows = [r.info() for _, r in sorted(self.hub.repositories.items()) if not (r.private or r.sdk)]
        author, tag = self.query.get("author"), self.query.get("filter")
        self._json([r for r in rows if author in (None, r["author"]) and (tag is None or tag in r["tags"])])

    def _info(self, repo, rev="main"):
        self._json(self._repo(repo).info(rev))

    def _tree(self, repo, rev, path=""):
        self._json(self._repo(repo).entries(rev, path, self.query.get("recursive", "").lower() == "true"))

    def _paths_info(self, repo, rev):
        tree = self._repo(repo).tree(rev)
        paths = parse_qs(self.body.decode()).get("paths", [])
        self._json([file_entry(path, tree[path]) for path in paths if path in tree])

    def _refs(self, repo):
        self._json(self._repo(repo).refs())

    def _tag(self, repo, rev):
        repository, tag = self._repo(repo, write=True), json.loads(self.body)["tag"]
        if tag in repository.tags:
            raise RefusedError(409, "", f"Tag reference exists already: {tag}")
        repository.tags[tag] = repository.resolve(rev)
        self._json({})

    def _branch(self, repo, rev):
        repository = self._repo(repo, write=True)
        if rev in repository.branches:
            raise RefusedError(409, "", f"Reference already exists: {rev}")
        repository.branches[rev] = repository.branches["main"]
        self._json({})

    def _preupload(self, repo, rev):
        tree = self._repo(repo, write="create_pr" not in self.query).tree(rev)
        rows = []
        for entry in json.loads(self.body)["files"]:
            large, there = entry["path"].endswith(LARGE_SUFFIXES), tree.get(entry["path"])
            row = {"path": entry["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            rows.append(row | ({"oid": there.etag} if there and there.large == large else {}))
        self._json({"files": rows})

    def _lfs_batch(self, repo):
        self._repo(repo)
        rows = []
        for entry in json.loads(self.body)["objects"]:
            oid, size = entry["oid"], entry["size"]
            row = {"oid": oid, "size": size}
            if oid not in self.hub.uploads:
                base, header = f"{self.hub.url}/lfs/{oid}", {}
                if size > self.hub.part_size:
                    count = -(-size // self.hub.part_size)
                    header = {"chunk_size": str(self.hub.part_size)}
                    header |= {str(i): f"{base}/{i}" for i in range(1, count + 1)}
                upload = {"href": f"{base}/complete" if header else base, "header": header}
                row["actions"] = {"upload": upload, "verify": {"href": f"{base}/verify"}}
            rows.append(row)
        self._json({"transfer": "basic", "objects": rows})

    def _lfs_put(self, oid, part=None):
        if part is None:
            self._store(oid, self.body)
        else:
            self.hub.parts.setdefault(oid, {})[int(part)] = self.body
        self._send(b"", headers={"ETag": f'"{oid[:8]}-{part}"'})

    def _lfs_complete(self, oid):
        numbers = [part["partNumber"] for part in json.loads(self.body)["parts"]]
        self._store(oid, b"".join(self.hub.parts[oid][number] for number in numbers))
        self._json({})

    def _store(self, oid, data):
        if Blob(data, True).sha256 != oid:
            raise RefusedError(400, "", "the uploaded bytes do not have the promised hash")
        self.hub.uploads[oid] = data

    def _lfs_verify(self, oid):
        if len(self.hub.uploads.get(oid, b"")) != json.loads(self.body)["size"]:
            raise RefusedError(400, "", "the object is not there")
        self._json({})

    def _commit(self, repo, rev):
        proposal = self.query.get("create_pr") == "1"
        repository = self._repo(repo, write=not proposal)
        header, changes = {}, {}
        for line in self.body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                header = value
            elif item["key"] == "file":
                changes[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.uploads:
                    raise RefusedError(400, "", f"{value['path']} was never uploaded")
                changes[value["path"]] = Blob(self.hub.uploads[value["oid"]], True)
            elif item["key"] == "deletedFile":
                changes[value["path"]] = None
        repository.resolve(rev)
        if proposal:
            repository.num_proposals += 1
            target = f"refs/pr/{repository.num_proposals}"
            repository.branches[target] = repository.resolve(rev)
        oid = repository.commit(changes, header["summary"], target if proposal else rev, header.get("parentCommit"))
        url = f"{self.hub.url}/{repo}"
        answer = {"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}", "hookOutput": ""}
        self._json(answer | ({"pullRequestUrl": f"{url}/discussions/{repository.num_proposals}"} if proposal else {}))

    def _resolve(self, repo, rev, path):
        repository = self._repo(repo)
        blob = repository.blob(rev, path)
        headers = {"X-Repo-Commit": repository.resolve(rev), "ETag": f'"{blob.git_id}"', "Accept-Ranges": "bytes"}
        if not blob.large:
            return self._bytes(blob.data, headers)
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": len(blob.data)}
        return self._send(b"", 302, {**headers, "Location": f"{self.hub.cdn}/cdn/{repo}/{blob.sha256}"})

    def _cdn(self, repo, oid):
        if self.headers.get("Authorization"):
            raise RefusedError(400, "", "a signed address takes no token")
        blobs = (b for tree in self.hub.repositories[repo].commits.values() for b in tree.values() if b.large)
        blob = next(b for b in blobs if b.sha256 == oid)
        self._bytes(blob.data, {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def _bytes(self, data, headers):
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not asked:
            return self._send(data, 200, headers, "application/octet-stream")
        first, last = int(asked[1]), int(asked[2]) if asked[2] else len(data) - 1
        if first >= len(data):
            raise RefusedError(416, "", "range not satisfiable", {"Content-Range": f"bytes */{len(data)}"})
        headers = {**headers, "Content-Range": f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"}
        return self._send(data[first : last + 1], 206, headers, "application/octet-stream")
