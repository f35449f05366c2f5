"""A small HTTP server that answers from a table and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Fake:
    """``answers``: path → (status, JSON or text); ``seen``: (path, headers) of every request."""

    def __init__(self, answers: Mapping[str, tuple[int, Any]]):
        self.answers = dict(answers)
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.url = ""


@contextmanager
def fake_http(answers: Mapping[str, tuple[int, Any]]) -> Iterator[Fake]:
    """Serve ``answers`` on a free loopback port while the block runs."""
    fake = Fake(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fake.seen.append((self.path, dict(self.headers)))
            status, body = fake.answers.get(self.path, (404, {"error": {"message": "no such path"}}))
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
