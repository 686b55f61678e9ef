"""A web server on this machine, for tests: it knows ranges, and breaks off where it is told to."""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = b"\x1f\x8b" + bytes(range(256)) * 40
"""Of a file that begins as gzip does."""


class FileServer(ThreadingHTTPServer):
    """Serves ``files`` (path -> bytes); ``asked`` lists every request's path, Range and If-Range.

    Switches: ``has_ranges``, ``has_tags``, and ``breaks_after``, the bytes of a body before the connection is cut.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.asked: list[tuple[str, str | None, str | None]] = []
        self.has_ranges = self.has_tags = True
        self.breaks_after: int | None = None

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        path, wanted = self.path.lstrip("/"), self.headers.get("Range")
        self.server.asked.append((path, wanted, self.headers.get("If-Range")))
        if path in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[path])
            self.end_headers()
        elif path not in self.server.files:
            self.send_error(404)
        else:
            self.send_content(self.server.files[path], wanted)

    def send_content(self, content: bytes, wanted: str | None) -> None:
        tag = f'"{hashlib.sha256(content).hexdigest()[:8]}"'
        is_same = self.headers.get("If-Range") in (None, tag)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.server.has_ranges and is_same else 0
        if start >= len(content) and start:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.server.has_tags:
            self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.breaks_after])

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[FileServer]:
    """A server that runs while the block does."""
    server = FileServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
