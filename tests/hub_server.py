"""A local server that speaks as much of the Hub's API as pushes and pulls need; `hub` is a pytest fixture.

Repositories live in memory, with commits, branches and pull requests. `hub.fail(...)` makes requests fail,
`hub.requests` lists those that came, and `hub.run(code)` runs Python in a fresh process that takes this server for the
Hub.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

TOKEN = "hf_localtoken"
REQUEST_SECONDS = 30
PROCESS_SECONDS = 400
LFS_SUFFIXES = (".parquet", ".safetensors", ".arrow", ".bin")


@dataclass
class Repo:
    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    # Commit -> path -> content; the commit's name is a hash of its content and its parent's name.
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    num_pull_requests: int = 0

    def __post_init__(self):
        self.branches["main"] = self.commit({}, parent=None)

    def commit(self, files: dict[str, bytes], parent: str | None) -> str:
        text = json.dumps({path: hashlib.sha1(content).hexdigest() for path, content in files.items()}, sort_keys=True)
        name = hashlib.sha1(f"{parent} {len(self.commits)} {text}".encode()).hexdigest()
        self.commits[name] = files
        return name

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.resolve(revision)]


class HubServer:
    def __init__(self, folder: Path):
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, int]] = []
        self.folder = folder
        self._failures: list[dict] = []
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(REQUEST_SECONDS)

    def fail(self, method: str, path: str, *, status: int | None = None, times: int = 1, after: int = 0) -> None:
        """Answer requests whose path matches with `status`, or drop the connection where it is None.

        The first `after` of them pass, then `times` fail.
        """
        rule = {"method": method, "path": re.compile(path), "status": status, "times": times, "after": after}
        self._failures.append(rule)

    def failure(self, method: str, path: str) -> dict | None:
        with self._lock:
            for rule in self._failures:
                if rule["method"] == method and rule["times"] and rule["path"].search(path):
                    if rule["after"]:
                        rule["after"] -= 1
                        continue
                    rule["times"] -= 1
                    return rule
        return None

    def count(self, method: str, path: str, status: int | None = None) -> int:
        """How many requests came whose path matches."""
        return sum(
            m == method and re.search(path, p) is not None and status in (None, s) for m, p, s in list(self.requests)
        )

    def repo(self, repo_id: str, repo_type: str = "dataset") -> Repo:
        return self.repos[repo_type, repo_id]

    def environment(self, token: str | None = TOKEN) -> dict[str, str]:
        """What makes a process take this server for the Hub; every process has caches of its own."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        home = self.folder / f"home-{len(list(self.folder.glob('home-*')))}"
        home.mkdir(parents=True)
        return {
            **kept,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",
            "no_proxy": "127.0.0.1",
            **({"HF_TOKEN": token} if token else {}),
        }

    def run(self, code: str, *, token: str | None = TOKEN, with_package: bool = False) -> str:
        """What `code` prints in a fresh process; one without this package, unless `with_package`.

        Raises:
            AssertionError: the process failed; its last words are the message.
        """
        if not with_package:
            code = f"import sys\nsys.modules['unicorn_hf'] = None\n{code}"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=self.environment(token),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=PROCESS_SECONDS,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on a free port; this process's huggingface_hub takes it for the real one while the test runs."""
    from huggingface_hub import constants
    from transformers.utils import hub as transformers_hub

    server = HubServer(tmp_path / "hub")
    # transformers keeps its client, which an earlier test may have made for another server.
    monkeypatch.setattr(transformers_hub, "_hf_api", None)
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    timeout = REQUEST_SECONDS
    # A HEAD and its GET come on one connection; without this, each waits for the other's acknowledgement.
    disable_nagle_algorithm = True

    def do_GET(self):
        self._answer()

    def do_HEAD(self):
        self._answer()

    def do_POST(self):
        self._answer()

    def do_PUT(self):
        self._answer()

    def log_message(self, *_):
        pass

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        path = unquote(url.path)
        failure = self.hub.failure(self.command, path)
        if failure and failure["status"] is None:
            # Half of what is sent has arrived when the connection breaks.
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            self.hub.requests.append((self.command, path, 0))
            self.close_connection = True
            self.connection.close()
            return
        self.body = self._read_body()
        if failure:
            self._send(failure["status"], {"error": "the server is unwell"})
            return
        for method, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                answer(self, **match.groupdict())
                return
        self._send(404, {"error": "no such page"})

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status: int, value=None, headers: dict[str, str] | None = None) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.hub.requests.append((self.command, unquote(urlsplit(self.path).path), status))
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _repo(self, kind: str, name: str) -> Repo | None:
        """The repository, if it is there for whoever asks; as on the Hub, a private one is not there for strangers."""
        repo = self.hub.repos.get((kind, name))
        if repo is None or (repo.private and not self._is_known()):
            self._send(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        return repo

    def _is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _may_write(self) -> bool:
        if not self._is_known():
            self._send(401, {"error": "Invalid username or password."})
        return self._is_known()

    def _whoami(self):
        if self._may_write():
            self._send(200, {"type": "user", "name": "org", "orgs": [], "auth": {"type": "access_token"}})

    def _create(self):
        if not self._may_write():
            return
        asked = json.loads(self.body)
        kind, name = asked.get("type") or "model", f"{asked.get('organization') or 'org'}/{asked['name']}"
        exists = (kind, name) in self.hub.repos
        if not exists:
            self.hub.repos[kind, name] = Repo(asked.get("visibility") == "private" or bool(asked.get("private")))
        self._send(
            409 if exists else 200, {"url": f"{self.hub.endpoint}/{_prefix(kind)}{name}", "name": name, "id": name}
        )

    def _validate_yaml(self):
        text = json.loads(self.body)["content"]
        errors = []
        try:
            metadata = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else {}
            for name in ("license", "pretty_name"):
                if not isinstance((metadata or {}).get(name, ""), str):
                    errors.append({"message": f'"{name}" must be a string'})
        except yaml.YAMLError as error:
            errors.append({"message": str(error)})
        self._send(400 if errors else 200, {"errors": errors, "warnings": []})

    def _preupload(self, kind, name, revision):
        repo = self._repo(kind, name)
        if repo is None or not self._may_write():
            return
        there = repo.commits[repo.resolve(revision)]
        files = []
        for file in json.loads(self.body)["files"]:
            content = there.get(file["path"])
            oid = content and _oid(file["path"], content)
            mode = "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._send(200, {"files": files})

    def _lfs_batch(self, name):
        if not self._may_write():
            return
        objects = []
        for item in json.loads(self.body)["objects"]:
            href = f"{self.hub.endpoint}/lfs/{item['oid']}"
            actions = {} if item["oid"] in self.hub.lfs else {"actions": {"upload": {"href": href, "header": {}}}}
            objects.append({"oid": item["oid"], "size": item["size"], **actions})
        self._send(200, {"objects": objects, "transfer": "basic"})

    def _lfs_put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            self._send(400, {"error": "the content is not what was announced"})
            return
        self.hub.lfs[oid] = self.body
        self._send(200, {})

    def _commit(self, kind, name, revision):
        repo = self._repo(kind, name)
        if repo is None or not self._may_write():
            return
        parent = repo.resolve(revision)
        if parent is None:
            self._send(404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"})
            return
        files = dict(repo.commits[parent])
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    self._send(400, {"error": f"{value['path']}: its content was never uploaded"})
                    return
                files[value["path"]] = self.hub.lfs[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
            elif item["key"] == "deletedFolder":
                files = {path: content for path, content in files.items() if not path.startswith(value["path"])}
        commit = repo.commit(files, parent)
        pull_request = None
        if self.query.get("create_pr") == ["1"]:
            repo.num_pull_requests += 1
            repo.branches[f"refs/pr/{repo.num_pull_requests}"] = commit
            pull_request = f"{self.hub.endpoint}/{_prefix(kind)}{name}/discussions/{repo.num_pull_requests}"
        else:
            repo.branches[revision] = commit
        url = f"{self.hub.endpoint}/{_prefix(kind)}{name}/commit/{commit}"
        self._send(200, {"commitUrl": url, "commitOid": commit, "pullRequestUrl": pull_request, "success": True})

    def _branch(self, kind, name, revision):
        repo = self._repo(kind, name)
        if repo is None or not self._may_write():
            return
        if revision in repo.branches:
            self._send(409, {"error": "the branch exists"})
            return
        repo.branches[revision] = repo.branches["main"]
        self._send(200, {})

    def _at(self, kind, name, revision) -> tuple[str, dict[str, bytes]] | None:
        repo = self._repo(kind, name)
        if repo is None:
            return None
        commit = repo.resolve(revision or "main")
        if commit is None:
            self._send(404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit, repo.commits[commit]

    def _info(self, kind, name, revision="main"):
        found = self._at(kind, name, revision)
        if found:
            commit, files = found
            siblings = [{"rfilename": path} for path in sorted(files)]
            private = self.hub.repos[kind, name].private
            tags, date = [], "2026-01-01T00:00:00.000Z"
            self._send(
                200,
                {
                    "_id": "1",
                    "id": name,
                    "sha": commit,
                    "private": private,
                    "siblings": siblings,
                    "tags": tags,
                    "gated": False,
                    "disabled": False,
                    "downloads": 0,
                    "likes": 0,
                    "createdAt": date,
                    "lastModified": date,
                },
            )

    def _refs(self, kind, name):
        repo = self._repo(kind, name)
        if repo is not None:
            branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repo.branches.items()]
            self._send(200, {"branches": branches, "converts": [], "tags": []})

    def _tree(self, kind, name, revision, folder=""):
        found = self._at(kind, name, revision)
        if not found:
            return
        _, files = found
        folder = folder.strip("/")
        inside = {path: content for path, content in files.items() if not folder or path.startswith(f"{folder}/")}
        if folder and not inside:
            self._send(404, {"error": "no such entry"}, {"X-Error-Code": "EntryNotFound"})
            return
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        depth = folder.count("/") + 1 if folder else 0
        entries, folders = [], set()
        for path, content in sorted(inside.items()):
            parts = path.split("/")
            folders |= {"/".join(parts[:end]) for end in range(depth + 1, len(parts))}
            if recursive or len(parts) == depth + 1:
                entries.append(_entry(path, content))
        if not recursive:
            folders = {each for each in folders if each.count("/") == depth}
        self._send(
            200, [{"type": "directory", "path": f, "oid": "0" * 40, "size": 0} for f in sorted(folders)] + entries
        )

    def _paths_info(self, kind, name, revision):
        found = self._at(kind, name, revision)
        if not found:
            return
        _, files = found
        if self.headers.get("Content-Type", "").startswith("application/json"):
            asked = json.loads(self.body)["paths"]
        else:
            asked = parse_qs(self.body.decode()).get("paths", [])
        entries = []
        for path in [asked] if isinstance(asked, str) else asked:
            if path in files:
                entries.append(_entry(path, files[path]))
            elif any(file.startswith(f"{path}/") for file in files):
                entries.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        self._send(200, entries)

    def _resolve(self, name, revision, path, prefix=""):
        found = self._at({"datasets/": "dataset"}.get(prefix, "model"), name, revision)
        if not found:
            return
        commit, files = found
        headers = {"X-Repo-Commit": commit}
        if path not in files:
            self._send(404, {"error": "Entry not found"}, {**headers, "X-Error-Code": "EntryNotFound"})
            return
        content = files[path]
        headers |= {"ETag": f'"{_oid(path, content)}"', "Accept-Ranges": "bytes"}
        headers |= {"Content-Type": "application/octet-stream"}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span:
            start, stop = int(span[1]), min(int(span[2] or len(content) - 1), len(content) - 1)
            if start >= len(content):
                self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                return
            headers["Content-Range"] = f"bytes {start}-{stop}/{len(content)}"
            content = content[start : stop + 1]
        headers |= {"Content-Length": str(len(content))}
        self._send(206 if span else 200, content, headers)


def _prefix(kind: str) -> str:
    return "" if kind == "model" else f"{kind}s/"


def _oid(path: str, content: bytes) -> str:
    """The name git gives the content, or LFS."""
    if path.endswith(LFS_SUFFIXES):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict:
    entry = {"type": "file", "path": path, "size": len(content), "oid": _oid(path, content)}
    if path.endswith(LFS_SUFFIXES):
        entry["lfs"] = {"oid": entry["oid"], "size": len(content), "pointerSize": 130}
    return entry


_API = r"/api/(?P<kind>model|dataset)s/(?P<name>[^/]+/[^/]+)"
_REVISION = r"(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+)"
_ROUTES = [
    (("GET",), r"/api/whoami-v2", _Handler._whoami),
    (("POST",), r"/api/repos/create", _Handler._create),
    (("POST",), r"/api/validate-yaml", _Handler._validate_yaml),
    (("POST",), rf"{_API}/preupload/{_REVISION}", _Handler._preupload),
    (("POST",), rf"{_API}/commit/{_REVISION}", _Handler._commit),
    (("POST",), rf"{_API}/branch/{_REVISION}", _Handler._branch),
    (("POST",), rf"{_API}/paths-info/{_REVISION}", _Handler._paths_info),
    (("GET",), rf"{_API}/refs", _Handler._refs),
    (
        ("GET",),
        rf"{_API}/tree/{_REVISION}(?P<folder>/.*)?",
        lambda self, folder=None, **at: self._tree(**at, folder=folder or ""),
    ),
    (("GET", "HEAD"), rf"{_API}/revision/{_REVISION}", _Handler._info),
    (("GET", "HEAD"), _API, _Handler._info),
    (("PUT",), r"/lfs/(?P<oid>[0-9a-f]{64})", _Handler._lfs_put),
    (
        ("POST",),
        r"/(?:datasets/)?(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch",
        _Handler._lfs_batch,
    ),
    (
        ("GET", "HEAD"),
        rf"/(?P<prefix>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/{_REVISION}/(?P<path>.+)",
        lambda self, prefix=None, **at: self._resolve(**at, prefix=prefix or ""),
    ),
]
