"""A hub on this machine: an HTTP server that answers what `huggingface_hub` asks about models, and nothing else.

Revisions, model information, listings of files, and files with ETag and ranges; files of weights are redirected to
another address, as the hub does with large files.  Every request is kept, and a download can be made to break.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin")
PIECE = 2**18


@cache
def sha256(content):
    """The digest of a file's content, computed once."""
    return hashlib.sha256(content).hexdigest()


def commit_of(files):
    """A commit's name, by the content of its files."""
    digest = hashlib.sha1()
    for name in sorted(files):
        digest.update(name.encode() + sha256(files[name]).encode())
    return digest.hexdigest()


class LocalHub:
    """Repositories {name: {revision: {file: bytes}}} behind `url`; a context that ends the server.

    requests: (method, path, Range or None) in order.  breaking: files whose next download ends half-way, by how often.
    gated: repositories whose files are refused.  rate: bytes of weights a second.
    """

    rate: float | None = None

    def __init__(self):
        self.repositories, self.requests, self.breaking, self.gated = {}, [], {}, set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        port = self._server.server_address[1]
        self.url, self._store = f"http://127.0.0.1:{port}", f"http://localhost:{port}"  # two hosts, as of the hub

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def add(self, repository, revision, folder):
        """The files of a folder as a revision."""
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        self.repositories.setdefault(repository, {})[revision] = files
        return commit_of(files)

    def asked(self, kind):
        """The paths of requests that hold a word, in order."""
        return [path for _, path, _ in self.requests if kind in path]

    def fetched(self):
        """The files of weights that were downloaded, by their digests."""
        return [path.rpartition("/")[2] for method, path, _ in self.requests if method == "GET" and "/large/" in path]

    def answer(self, request):
        path = unquote(urlsplit(request.path).path)
        self.requests.append((request.command, path, request.headers.get("Range")))
        parts = path.strip("/").split("/")
        if parts[0] == "large":
            self._send_large(request, parts[1])
        elif parts[:2] == ["api", "models"]:
            self._send_about(request, "/".join(parts[2:4]), parts[4:])
        elif "resolve" in parts:
            self._send_file(request, "/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            _refuse(request, 404, "EntryNotFound")

    def _files(self, request, repository, revision):
        """The commit and files of a revision or commit; None after a refusal."""
        if repository not in self.repositories:
            return _refuse(request, 404, "RepoNotFound")
        for name, files in self.repositories[repository].items():
            if revision in (name, commit_of(files)):
                return commit_of(files), files
        return _refuse(request, 404, "RevisionNotFound")

    def _send_about(self, request, repository, rest):
        if rest == ["refs"]:
            if repository not in self.repositories:
                _refuse(request, 404, "RepoNotFound")
                return
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit_of(files)}
                for name, files in self.repositories[repository].items()
            ]
            _send_json(request, {"branches": branches, "converts": [], "tags": []})
            return
        found = self._files(request, repository, "/".join(rest[1:]) or "main")
        if found is None:
            return
        commit, files = found
        if rest[:1] == ["tree"]:
            _send_json(request, [self._entry(name, content) for name, content in files.items()])
        else:
            siblings = [{"rfilename": name} for name in files]
            _send_json(request, {"id": repository, "modelId": repository, "sha": commit, "siblings": siblings})

    def _entry(self, name, content):
        entry = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        if name.endswith(LARGE):
            entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
        return entry

    def _send_file(self, request, repository, revision, name):
        if repository in self.gated:
            _refuse(request, 403, "GatedRepo")
            return
        found = self._files(request, repository, revision)
        if found is None:
            return
        commit, files = found
        if name not in files:
            _refuse(request, 404, "EntryNotFound", {"X-Repo-Commit": commit})
            return
        content = files[name]
        own = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        if not name.endswith(LARGE):
            self._send(request, content, own, name)
            return
        digest = sha256(content)
        linked = {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        _head(request, 302, {**own, **linked, "Location": f"{self._store}/large/{digest}", "Content-Length": "0"})

    def _send_large(self, request, digest):
        every = (files for revisions in self.repositories.values() for files in revisions.values())
        for files in every:
            for name, content in files.items():
                if sha256(content) == digest:
                    self._send(request, content, {"ETag": f'"{digest}"'}, name)
                    return
        _refuse(request, 404, "EntryNotFound")

    def _send(self, request, content, headers, name):
        asked = request.headers.get("Range")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        rest = content[start:]
        own = {**headers, "Content-Length": str(len(rest)), "Accept-Ranges": "bytes"}
        if asked:
            own["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        _head(request, 206 if asked else 200, own)
        if request.command == "HEAD":
            return
        if self.breaking.get(name, 0) > 0:
            self.breaking[name] -= 1
            request.wfile.write(rest[: len(rest) // 2])
            request.wfile.flush()
            request.close_connection = True
            request.connection.shutdown(2)
            return
        self._write(request, rest, name)

    def _write(self, request, content, name):
        if self.rate is None or not name.endswith(LARGE):
            request.wfile.write(content)
            return
        for start in range(0, len(content), PIECE):
            piece = content[start : start + PIECE]
            request.wfile.write(piece)
            time.sleep(len(piece) / self.rate)


def _head(request, status, headers):
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.end_headers()


def _send_json(request, content):
    body = json.dumps(content).encode()
    _head(request, 200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
    if request.command != "HEAD":
        request.wfile.write(body)


def _refuse(request, status, code, headers=None):
    _head(request, status, {**(headers or {}), "X-Error-Code": code, "Content-Length": "0"})
