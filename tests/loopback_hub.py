"""A model hub on loopback: a real HTTP server that speaks the hub's protocol, and its troubles.

It serves model info with file digests, `resolve` with etags and redirects to a second host for
large files, byte ranges, tokens, private and gated repositories. What goes wrong is asked for
beforehand: an answer of some status, a connection that is cut half-way, a wrong length, wrong
bytes.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import unquote, urlsplit

LARGE = 10_000
"""Bytes from which a file is kept apart, with a SHA-256 and a redirect, as the hub does."""


@dataclass(slots=True)
class Repository:
    """Commits by hash, each a mapping of names to bytes; `refs` are branches and tags."""

    commits: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: Mapping[str, bytes], ref: str = "main") -> str:
        """Add a commit and let `ref` point to it; returns its hash."""
        text = json.dumps([(name, sha256(data)) for name, data in sorted(files.items())])
        number = hashlib.sha1(f"{len(self.commits)} {text}".encode()).hexdigest()
        self.commits[number] = dict(files)
        self.refs[ref] = number
        return number


@dataclass(slots=True)
class Trouble:
    """What is to go wrong at the next `times` requests whose line holds `where`.

    `status`: the answer. `cut`: bytes after which the connection ends. `shorter`: bytes that the
    file lacks at its end. `flip`: a byte is changed. `hold`: the answer stops half-way until it is
    set. `header`: sent as well.
    """

    where: str
    times: int = 1
    status: int = 0
    cut: int | None = None
    shorter: int = 0
    flip: bool = False
    hold: threading.Event | None = None
    header: tuple[str, str] | None = None


@dataclass(slots=True)
class LoopbackHub:
    """The state of the server; tests change it and read `requests`, lines as in `GET /path`."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    token: str = "hf_right"
    troubles: list[Trouble] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    headers: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    endpoint: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, files: Mapping[str, bytes]) -> Repository:
        """A repository with one commit."""
        self.repositories[name] = Repository()
        self.repositories[name].commit(files)
        return self.repositories[name]

    def asked(self, part: str) -> list[str]:
        """The requests so far whose line holds `part`."""
        return [line for line in self.requests if part in line]

    def trouble(self, line: str) -> Trouble | None:
        """The trouble that this request meets, counted down."""
        with self.lock:
            for each in self.troubles:
                if each.where in line and each.times:
                    each.times -= 1
                    return each
        return None

    def large(self, digest: str) -> bytes | None:
        """A file by its SHA-256, as the second host keeps it."""
        for repository in self.repositories.values():
            for files in repository.commits.values():
                for data in files.values():
                    if sha256(data) == digest:
                        return data
        return None


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_sha1(data: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serving() -> Iterator[LoopbackHub]:
    """Run a hub on a free port of loopback."""
    hub = LoopbackHub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: ClassVar[LoopbackHub]

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def log_message(self, *_: object) -> None:
        """Requests are counted, not printed."""

    def _serve(self) -> None:
        line = f"{self.command} {self.path}"
        self.state.requests.append(line)
        self.state.headers.append((line, {k.lower(): v for k, v in self.headers.items()}))
        trouble = self.state.trouble(line)
        if trouble and trouble.status:
            extra = dict([trouble.header] if trouble.header else [])
            self._answer(trouble.status, b"trouble", extra)
        else:
            self._route(unquote(urlsplit(self.path).path), trouble)

    def _route(self, path: str, trouble: Trouble | None) -> None:
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._model_info(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3], trouble)
        elif match := re.fullmatch(r"/cdn/([0-9a-f]{64})", path):
            data = self.state.large(match[1])
            if data is None:
                self._answer(404, b"")
            else:
                self._send(data, {"ETag": f'"{match[1]}"'}, trouble)
        elif path == "/api/agent-harnesses":
            self._answer(200, b'{"standardEnvVars": [], "harnesses": {}}')
        else:
            self._answer(404, b"no such place")

    def _commit(self, name: str, revision: str) -> tuple[str, Mapping[str, bytes]] | None:
        """The commit that was asked for, if whoever asks may have it; else says why not."""
        repository = self.state.repositories.get(name)
        known = self.headers.get("Authorization") == f"Bearer {self.state.token}"
        if self.headers.get("Authorization") and not known:
            self._answer(
                401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"}
            )
        elif repository is None or (repository.private and not known):
            self._answer(404 if known else 401, b"", {"X-Error-Code": "RepoNotFound"})
        elif repository.gated:
            self._answer(403 if known else 401, b"", {"X-Error-Code": "GatedRepo"})
        else:
            commit = repository.refs.get(revision, revision)
            if commit in repository.commits:
                return commit, repository.commits[commit]
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        return None

    def _model_info(self, name: str, revision: str) -> None:
        found = self._commit(name, revision)
        if found:
            commit, files = found
            siblings = [_sibling(file, data) for file, data in files.items()]
            info = {"_id": "1", "id": name, "modelId": name, "sha": commit, "siblings": siblings}
            self._answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name: str, revision: str, file: str, trouble: Trouble | None) -> None:
        found = self._commit(name, revision)
        if not found:
            return
        commit, files = found
        if file not in files:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        data, headers = files[file], {"X-Repo-Commit": commit}
        if len(data) < LARGE:
            self._send(data, headers | {"ETag": f'"{git_sha1(data)}"'}, trouble)
            return
        host = self.state.endpoint.replace("127.0.0.1", "localhost")
        headers |= {
            "Location": f"{host}/cdn/{sha256(data)}",
            "X-Linked-Etag": f'"{sha256(data)}"',
            "X-Linked-Size": str(len(data)),
            "ETag": '"of-the-redirect"',
        }
        self._answer(302, b"", headers)

    def _send(self, data: bytes, headers: Mapping[str, str], trouble: Trouble | None) -> None:
        """A file, or the range of it that was asked for, with what goes wrong on the way."""
        status, first = 200, 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            status, first = 206, int(match[1])
            headers = {**headers, "Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}
        body = bytearray(data[first:])
        promised = len(body)
        if trouble and trouble.flip:
            body[len(body) // 2] ^= 1
        if trouble and trouble.shorter:
            del body[-trouble.shorter :]
            promised = len(body)
        self.send_response(status)
        for name, value in {"Accept-Ranges": "bytes", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(promised))
        self.end_headers()
        if self.command == "GET":
            self._write(bytes(body), trouble or Trouble(""))

    def _write(self, body: bytes, trouble: Trouble) -> None:
        if trouble.hold:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            trouble.hold.wait(60)
            body = body[len(body) // 2 :]
        with suppress(ConnectionError):
            self.wfile.write(body if trouble.cut is None else body[: trouble.cut])
        self.close_connection = self.close_connection or trouble.cut is not None

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _sibling(name: str, data: bytes) -> dict[str, object]:
    """A file as model info lists it when it is asked for blobs."""
    if len(data) < LARGE:
        return {"rfilename": name, "size": len(data), "blobId": git_sha1(data)}
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(data)}\n".encode()
    lfs = {"size": len(data), "sha256": sha256(data), "pointerSize": len(pointer)}
    return {"rfilename": name, "size": len(data), "blobId": git_sha1(pointer), "lfs": lfs}
