"""A server for one page on this machine alone: the standard library's, on the loopback address, read-only.

It answers `/` with the page and `/progress.json` with its state, and nothing else: no file of the folder is served by
its name.  Requests whose Host is not this address are refused, so that no page of another site can read it through a
name that it made point here.
"""

from __future__ import annotations

import errno
import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ptq_eval.errors import OptionError
from ptq_eval.report.web.live import Folder

ADDRESS = "127.0.0.1"


def bind(folder: Folder, port: int = 0) -> ThreadingHTTPServer:
    """A server of the page of `folder`, not yet serving; port 0 is any free one.  Raises OptionError for one in use."""

    class Handler(_Handler):
        source = folder

    try:
        return ThreadingHTTPServer((ADDRESS, port), Handler)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise OptionError(
            "--port cannot be used",
            got=f"{port}: {error.strerror}",
            remedy="choose another, or omit --port for any that is free",
        ) from None


class _Handler(BaseHTTPRequestHandler):
    source: Folder
    server_version, sys_version = "ptq-eval", ""

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").rpartition(":")[0]
        if host not in (ADDRESS, "localhost"):
            return self.send_error(HTTPStatus.FORBIDDEN)
        if self.path == "/":
            return self._answer("text/html", self.source.html())
        if self.path == "/progress.json":
            return self._answer("application/json", json.dumps(self.source.state()))
        return self.send_error(HTTPStatus.NOT_FOUND)

    do_HEAD = do_GET

    def _answer(self, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the command line shows one line, the address."""
