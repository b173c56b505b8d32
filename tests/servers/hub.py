"""A stand-in for the Hugging Face Hub that the real `huggingface_hub` lists, downloads and commits with.

It speaks the documented endpoints of model repositories: `/api/models/…` for revisions, trees, paths,
preupload and commits, `/OWNER/REPO/resolve/REVISION/PATH`, and Git LFS's batch with uploads of one part and
of many. What is large lies on a second server, the "CDN", which `resolve` redirects to. Xet is not spoken:
`Hub.env` turns it off.

Source: https://huggingface.co/docs/hub/api, https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md,
and what huggingface_hub 2.4 asks for (`file_download.py`, `_commit_api.py`, `lfs.py`, `hf_api.py`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from tests.servers.serving import PIECE_BYTES, Answer, Request, Server

LFS_BYTES = 10 << 10
"""Files from this size on are large: Git LFS keeps them, and the CDN sends them."""
PART_BYTES = 8 << 20
"""Large files beyond this size are uploaded in parts of it."""
PAGE = 100
"""Entries of a tree in one answer; the Hub gives 1,000."""

Tree = dict[str, bytes]
"""The files of a commit, by path."""


class Repository:
    """A model's repository: commits in a row, on `main`; a tag is another name of a commit."""

    def __init__(self, name: str, is_gated: bool = False, is_private: bool = False) -> None:
        self.name = name
        self.is_gated = is_gated
        self.is_private = is_private
        self.commits: dict[str, Tree] = {}
        self.refs: dict[str, str] = {}
        self.commit({}, "initial commit")

    @property
    def head(self) -> str:
        return self.refs["main"]

    @property
    def files(self) -> Tree:
        """The files on `main`."""
        return self.commits[self.head]

    def commit(self, files: Tree, message: str = "", deleted: tuple[str, ...] = ()) -> str:
        """Put `files` on top of `main`; gives the new commit."""
        tree = dict(self.commits[self.head]) if self.refs else {}
        for path in deleted:
            tree = {
                name: data for name, data in tree.items() if name != path and not name.startswith(path + "/")
            }
        tree |= files
        told = json.dumps([self.name, len(self.commits), message, sorted(tree)])
        oid = hashlib.sha1(told.encode()).hexdigest()
        self.commits[oid] = tree
        self.refs["main"] = oid
        return oid

    def find(self, revision: str) -> str | None:
        """The commit that a branch, a tag or (the beginning of) a commit's name means."""
        if revision in self.refs:
            return self.refs[revision]
        found = [oid for oid in self.commits if len(revision) >= 7 and oid.startswith(revision)]
        return found[0] if len(found) == 1 else None


@dataclass
class Hub:
    """The Hub and its CDN: two servers, so that a redirect leads to another host."""

    server: Server = field(init=False)
    cdn: Server = field(init=False)
    repositories: dict[str, Repository] = field(default_factory=dict)
    tokens: dict[str, set[str]] = field(default_factory=lambda: {TOKEN: set()})
    """Who may come in: a token and the gated repositories that it opens."""
    lfs: dict[str, bytes] = field(default_factory=dict)
    """What was uploaded, by SHA-256, whether a commit names it or not."""
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    """Parts of uploads that are not completed, by SHA-256 and number."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.server = Server(self._answer)
        self.cdn = Server(self._answer_cdn)

    def create(
        self, name: str, files: Tree | None = None, is_gated: bool = False, is_private: bool = False
    ) -> str:
        """A new repository `OWNER/REPO` with `files` on `main`; gives the commit."""
        repository = self.repositories[name] = Repository(name, is_gated, is_private)
        return repository.commit(files or {}, "files")

    @property
    def env(self) -> dict[str, str]:
        """What makes huggingface_hub use this Hub, with a token that may write."""
        return {"HF_ENDPOINT": self.server.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"} | QUIET

    def leftovers(self) -> list[str]:
        """SHA-256 of what was uploaded and stands in no commit."""
        with self.lock:
            committed = {
                hashlib.sha256(data).hexdigest()
                for repository in self.repositories.values()
                for tree in repository.commits.values()
                for data in tree.values()
            }
            return sorted((set(self.lfs) | {oid for oid, _ in self.parts}) - committed)

    def _answer(self, request: Request) -> Answer:
        path = urlsplit(request.target).path
        for method, pattern, action in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and request.method in method.split():
                names = [unquote(group or "") for group in match.groups()]
                repository = self.repositories.get(names[0])
                refused = self._refusal(request, repository, is_write=method in ("POST", "PUT"))
                if refused is not None or repository is None:
                    return refused or _error(404, "RepoNotFound", "Repository not found")
                with self.lock:
                    answer: Answer = getattr(self, action)(request, repository, *names[1:])
                    return answer
        return _error(404, "", f"no such endpoint: {request.method} {path}")

    def _refusal(self, request: Request, repository: Repository | None, is_write: bool) -> Answer | None:
        """What somebody hears who may not do this. Source: the Hub answers 401 for what is not there, too."""
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self.tokens:
            return _error(401, "", "Invalid credentials in Authorization header")
        if repository is None or (repository.is_private and not token):
            return _error(404 if token else 401, "RepoNotFound", "Repository not found")
        if is_write and not token:
            return _error(401, "", "Invalid username or password.")
        is_data = "/resolve/" in request.target
        if repository.is_gated and is_data and repository.name not in self.tokens.get(token, ()):
            return _error(
                403 if token else 401, "GatedRepo", f"Access to model {repository.name} is restricted."
            )
        return None

    def _info(self, request: Request, repository: Repository, revision: str = "main") -> Answer:
        commit = repository.find(revision)
        if commit is None:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = [
            {"rfilename": path} | (_entry(path, data) if "blobs" in request.query else {})
            for path, data in sorted(repository.commits[commit].items())
        ]
        return _json(
            {
                "_id": "0" * 24,
                "id": repository.name,
                "modelId": repository.name,
                "sha": commit,
                "private": repository.is_private,
                "gated": "manual" if repository.is_gated else False,
                "siblings": files,
                "tags": [],
            }
        )

    def _tree(self, request: Request, repository: Repository, revision: str, folder: str = "") -> Answer:
        commit = repository.find(revision)
        if commit is None:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        tree = repository.commits[commit]
        inside = folder.strip("/") + "/" if folder.strip("/") else ""
        is_deep = request.query.get("recursive", "false").lower() in ("true", "1")
        entries: dict[str, dict[str, Any]] = {}
        for path, data in sorted(tree.items()):
            if path.startswith(inside):
                first, *deeper = path[len(inside) :].split("/")
                if deeper:
                    name = inside + first
                    entries.setdefault(name, {"type": "directory", "path": name, "size": 0, "oid": _git(b"")})
                if is_deep or not deeper:
                    entries[path] = _entry(path, data)
        if inside and not entries:
            return _error(404, "EntryNotFound", f"{folder} does not exist on {revision!r}")
        begin = int(request.query.get("cursor", 0))
        answer = _json(list(entries.values())[begin : begin + PAGE], X_Repo_Commit=commit)
        if begin + PAGE < len(entries):
            query = "&".join(
                f"{key}={quote(value)}" for key, value in request.query.items() if key != "cursor"
            )
            target = f"{self.server.url}{urlsplit(request.target).path}?{query}&cursor={begin + PAGE}"
            answer.headers["Link"] = f'<{target}>; rel="next"'
        return answer

    def _paths(self, request: Request, repository: Repository, revision: str) -> Answer:
        commit = repository.find(revision)
        if commit is None:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        body = request.body.read()
        if "json" in request.headers.get("content-type", ""):
            paths = json.loads(body)["paths"]
        else:
            paths = [
                unquote(value) for value in re.findall(r"paths=([^&]*)", body.decode().replace("+", " "))
            ]
        tree = repository.commits[commit]
        return _json([_entry(path, tree[path]) for path in paths if path in tree])

    def _resolve(self, request: Request, repository: Repository, revision: str, path: str) -> Answer:
        commit = repository.find(revision)
        if commit is None:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        data = repository.commits[commit].get(path)
        if data is None:
            return _error(404, "EntryNotFound", "Entry not found", X_Repo_Commit=commit)
        if len(data) < LFS_BYTES:
            return _file(request, data, {"ETag": f'"{_git(data)}"', "X-Repo-Commit": commit})
        oid = _sha256(data)
        self.lfs[oid] = data
        return Answer(
            302,
            {
                "Location": f"{self.cdn.url}/{oid}?signature=of-the-cdn",
                "X-Repo-Commit": commit,
                "X-Linked-Size": str(len(data)),
                "X-Linked-Etag": f'"{oid}"',
                "ETag": f'"{oid}"',
                "Accept-Ranges": "bytes",
                "Content-Length": "0",
            },
        )

    def _preupload(self, request: Request, repository: Repository, revision: str) -> Answer:
        commit = repository.find(revision)
        if commit is None:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        tree = repository.commits[commit]
        files = []
        for file in json.loads(request.body.read())["files"]:
            told = {"path": file["path"], "shouldIgnore": False}
            told["uploadMode"] = "lfs" if file["size"] >= LFS_BYTES else "regular"
            if file["path"] in tree:
                told["oid"] = _entry(file["path"], tree[file["path"]])["oid"]
            files.append(told)
        return _json({"files": files})

    def _batch(self, request: Request, repository: Repository) -> Answer:
        objects = []
        for wanted in json.loads(request.body.read())["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            told: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self.lfs:
                upload: dict[str, Any] = {"href": f"{self.cdn.url}/upload/{oid}"}
                if size > PART_BYTES:
                    numbers = range(1, -(-size // PART_BYTES) + 1)
                    parts = {f"{number:05d}": f"{self.cdn.url}/upload/{oid}/{number}" for number in numbers}
                    upload = {
                        "href": f"{self.cdn.url}/complete/{oid}",
                        "header": {"chunk_size": str(PART_BYTES)} | parts,
                    }
                verify = {"href": f"{self.server.url}/{repository.name}.git/info/lfs/objects/verify"}
                told["actions"] = {"upload": upload, "verify": verify}
            objects.append(told)
        return _json({"transfer": "basic", "objects": objects})

    def _verify(self, request: Request, repository: Repository) -> Answer:
        wanted = json.loads(request.body.read())
        is_there = len(self.lfs.get(wanted["oid"], b"")) == wanted["size"]
        return _json({}) if is_there else _error(404, "", "the object was not uploaded")

    def _commit(self, request: Request, repository: Repository, revision: str) -> Answer:
        if revision != "main":
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        lines = [json.loads(line) for line in request.body.read().splitlines() if line.strip()]
        told = next(line["value"] for line in lines if line["key"] == "header")
        parent = told.get("parentCommit")
        if parent is not None and parent != repository.head:
            return _error(412, "", "A commit has happened since. Please refresh and try again.")
        files: Tree = {}
        deleted = []
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.lfs:
                    return _error(400, "", f"LFS pointer {value['oid']} points to nothing")
                files[value["path"]] = self.lfs[value["oid"]]
            elif line["key"] in ("deletedFile", "deletedFolder"):
                path = value["path"].rstrip("/")
                if not any(name == path or name.startswith(path + "/") for name in repository.files):
                    return _error(404, "EntryNotFound", "A file with this name doesn't exist")
                deleted.append(path)
        oid = repository.commit(files, told["summary"], tuple(deleted))
        url = f"{self.server.url}/{repository.name}/commit/{oid}"
        return _json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def _answer_cdn(self, request: Request) -> Answer:
        """The CDN: what it is asked is signed in its URL, so a token has no business here."""
        if "authorization" in request.headers:
            return _error(400, "", "Only one auth mechanism allowed")
        _, *names = request.path.split("/")
        if request.method in ("GET", "HEAD") and len(names) == 1 and names[0] in self.lfs:
            return _file(request, self.lfs[names[0]], {"ETag": f'"{names[0]}"'})
        if request.method == "PUT" and names[0] == "upload":
            body = request.body.read()
            etag = hashlib.md5(body).hexdigest()
            with self.lock:
                if len(names) == 2:
                    if hashlib.sha256(body).hexdigest() != names[1]:
                        return _error(400, "", "the bytes have another SHA-256")
                    self.lfs[names[1]] = body
                else:
                    self.parts[names[1], int(names[2])] = body
            return Answer.of(200, ETag=f'"{etag}"')
        if request.method == "POST" and names[0] == "complete":
            told = json.loads(request.body.read())
            with self.lock:
                numbers = [part["partNumber"] for part in told["parts"]]
                body = b"".join(self.parts.pop((names[1], number), b"") for number in numbers)
                if hashlib.sha256(body).hexdigest() != names[1]:
                    return _error(400, "", "the parts have another SHA-256")
                self.lfs[names[1]] = body
            return _json({})
        return _error(404, "", "not found")


TOKEN = "hf_the-token-of-the-tests"
QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

_NAME = r"([^/]+/[^/]+?)"
ROUTES = [
    ("GET", rf"/api/models/{_NAME}", "_info"),
    ("GET", rf"/api/models/{_NAME}/revision/([^/]+)", "_info"),
    ("GET", rf"/api/models/{_NAME}/tree/([^/]+)(?:/(.*))?", "_tree"),
    ("POST", rf"/api/models/{_NAME}/paths-info/([^/]+)", "_paths"),
    ("POST", rf"/api/models/{_NAME}/preupload/([^/]+)", "_preupload"),
    ("POST", rf"/api/models/{_NAME}/commit/([^/]+)", "_commit"),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", "_batch"),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/verify", "_verify"),
    ("GET HEAD", rf"/{_NAME}/resolve/([^/]+)/(.+)", "_resolve"),
]


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A Hub without repositories, and its CDN."""
    hub = Hub()
    with hub.server, hub.cdn:
        yield hub


@cache
def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@cache
def _git(data: bytes) -> str:
    """The name of a blob. Source: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": _git(data)}
    if len(data) >= LFS_BYTES:
        oid = _sha256(data)
        entry["lfs"] = {"oid": oid, "sha256": oid, "size": len(data), "pointerSize": 135}
    return entry


def _file(request: Request, data: bytes, headers: dict[str, str]) -> Answer:
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"} | headers
    begin, end, status = 0, len(data), 200
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if wanted:
        first, last = wanted.groups()
        begin = int(first) if first else max(0, len(data) - int(last))
        end = min(len(data), int(last) + 1) if first and last else len(data)
        if begin >= end:
            return Answer.of(416, Content_Range=f"bytes */{len(data)}")
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
        status = 206
    headers["Content-Length"] = str(end - begin)
    pieces = (data[at : min(end, at + PIECE_BYTES)] for at in range(begin, end, PIECE_BYTES))
    return Answer(status, headers, pieces)


def _json(value: object, **headers: str) -> Answer:
    return Answer.of(200, json.dumps(value).encode(), "application/json", **headers)


def _error(status: int, code: str, message: str, **headers: str) -> Answer:
    """Source: huggingface_hub's `hf_raise_for_status` goes by these headers."""
    named = ({"X_Error_Code": code} if code else {}) | {"X_Error_Message": message} | headers
    return Answer.of(status, json.dumps({"error": message}).encode(), "application/json", **named)
