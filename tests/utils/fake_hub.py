"""A Hugging Face Hub on the loopback that serves a few small repositories, with faults.

Small files come from the hub itself. Large ones (by their suffix) are announced by the hub, together with the headers
of its Xet storage, and come from another origin, so that a client that speaks plain HTTP follows a redirect.
"""

import hashlib
import json
import os
import threading
import time
from collections import namedtuple
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants, file_download

DiskUsage = namedtuple("DiskUsage", "total used free")
LARGE = (".safetensors", ".bin", ".h5", ".hdf5", ".ckpt", ".zip", ".gz", ".tar")


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request for a file's body.

    cut: the connection breaks after so many bytes; served: content in place of the announced one; status: HTTP status
    in place of content; stall: the server waits after so many bytes until it is closed; ranges: Range is understood.
    """

    cut: int | None = None
    served: bytes | None = None
    status: int | None = None
    stall: int | None = None
    ranges: bool = True


@dataclass
class Hosted:
    """A repository at one commit.

    gated: its conditions must be accepted first; listed: the names in its listing, if not its files'; faults: file ->
    what goes wrong with the next requests for its body.
    """

    files: dict[str, bytes]
    commit: str
    branch: str = "main"
    gated: bool = False
    listed: list[str] | None = None
    faults: dict[str, list[Fault]] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """One request that was made. kind: api, hub (a file's address) or cdn (the body of a large one)."""

    kind: str
    method: str
    path: str
    revision: str
    range: str | None
    authorization: str | None


class FakeHub:
    """The servers, what they host and what they were requested; a context manager."""

    def __init__(self) -> None:
        self.hosted: dict[str, Hosted] = {}
        self.raw: dict[str, bytes] = {}  # path -> content, of addresses like those of GitHub's raw files
        self.requests: list[Request] = []
        self.status: int | None = None  # of every answer, when set
        self._closing = threading.Event()
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), self._handler()) for _ in range(2)]
        self.url, self.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def __enter__(self) -> "FakeHub":
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def host(self, name: str, files: Mapping[str, bytes], commit: str = "c" * 40) -> Hosted:
        """Serve a repository."""
        self.hosted[name] = Hosted(dict(files), commit)
        return self.hosted[name]

    def bodies(self) -> list[str]:
        """The files whose bodies were requested for, in order."""
        small = [r.path for r in self.requests if r.kind == "hub" and r.method == "GET" and not r.path.endswith(LARGE)]
        return small + [r.path for r in self.requests if r.kind == "cdn"]

    def ranges(self, path: str) -> list[str | None]:
        """The Range headers with which a file's body was requested for."""
        kind = "cdn" if path.endswith(LARGE) else "hub"
        return [r.range for r in self.requests if (r.kind, r.method, r.path) == (kind, "GET", path)]

    def environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Point the huggingface_hub of this process here, without a token, and wait for neither network nor disk."""
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for module in (constants, file_download):  # releases before 1.0 read it from the second
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent/token")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_HEAD(self) -> None:
                fake._answer(self)

            def do_GET(self) -> None:
                fake._answer(self)

        return Handler

    def _answer(self, http: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(http.path).path)
        kind = "cdn" if path.startswith("/cdn/") else "api" if path.startswith("/api/") else "hub"
        name, _, rest = path.removeprefix("/cdn").removeprefix("/api/models").strip("/").partition("/resolve/")
        if kind == "api":
            name, _, rest = name.partition("/revision/")
        revision, _, file = (rest or "main").partition("/")
        sent = http.headers
        self.requests.append(Request(kind, http.command, file or name, revision, sent["Range"], sent["Authorization"]))
        if self.status is not None:
            return _refuse(http, self.status, "")
        if path.strip("/") in self.raw:
            return _send_range(http, self.raw[path.strip("/")], {"ETag": '"0"'}, ranges=True)
        hosted = self.hosted.get(name)
        if hosted is None:  # the real hub does not tell strangers what exists
            return _refuse(http, 401, "RepoNotFound")
        if revision not in (hosted.branch, hosted.commit):
            return _refuse(http, 404, "RevisionNotFound")
        if kind == "api":
            siblings = [{"rfilename": path} for path in hosted.listed or hosted.files]
            body = {"id": name, "sha": hosted.commit, "siblings": siblings, "gated": hosted.gated}
            return _send(http, json.dumps(body).encode(), {})
        if hosted.gated:
            return _refuse(http, 403, "GatedRepo")
        if file not in hosted.files:
            return _refuse(http, 404, "EntryNotFound")
        self._answer_file(http, kind, hosted, f"{name}/resolve/{revision}/{file}")

    def _answer_file(self, http: BaseHTTPRequestHandler, kind: str, hosted: Hosted, path: str) -> None:
        file = path.partition("/resolve/")[2].partition("/")[2]
        content = hosted.files[file]
        headers = {"X-Repo-Commit": hosted.commit, "ETag": f'"{git_hash(content)}"'}
        if path.endswith(LARGE) and kind == "hub":
            headers |= {"X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(len(content))}
            headers |= {"X-Xet-Hash": "0" * 64, "Link": f'<{self.url}/xet>; rel="xet-auth"'}
            return _send(http, b"", headers | {"Location": f"{self.cdn}/cdn/{path}"}, status=302)
        faults = hosted.faults.get(file, []) if http.command == "GET" else []
        fault = faults.pop(0) if faults else Fault()
        if fault.status is not None:
            return _refuse(http, fault.status, "")
        cut = fault.cut if fault.stall is None else fault.stall
        _send_range(http, content if fault.served is None else fault.served, headers, fault.ranges, cut)
        if fault.stall is not None:
            http.wfile.flush()
            self._closing.wait(30)


def visible_files(folder: Path) -> dict[str, bytes]:
    """Contents of the files below a folder, without hidden ones."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def git_hash(content: bytes) -> str:
    """What git, and so the hub, calls a small file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _refuse(http: BaseHTTPRequestHandler, status: int, code: str) -> None:
    _send(http, json.dumps({"error": code}).encode(), {"X-Error-Code": code} if code else {}, status)


def _send_range(
    http: BaseHTTPRequestHandler, content: bytes, headers: dict[str, str], ranges: bool, cut: int | None = None
) -> None:
    requested = http.headers["Range"] if ranges else None
    if requested is None:
        return _send(http, content, headers, cut=cut)
    start = int(requested.removeprefix("bytes=").removesuffix("-"))
    if start >= len(content):
        return _send(http, b"", headers | {"Content-Range": f"bytes */{len(content)}"}, 416)
    headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    _send(http, content[start:], headers, 206, cut)


def _send(
    http: BaseHTTPRequestHandler, body: bytes, headers: Mapping[str, str], status: int = 200, cut: int | None = None
) -> None:
    http.send_response(status)
    for name, value in headers.items():
        http.send_header(name, value)
    http.send_header("Content-Length", str(len(body)))
    http.end_headers()
    if http.command == "GET":
        http.wfile.write(body if cut is None else body[:cut])
    if cut is not None:
        http.close_connection = True
