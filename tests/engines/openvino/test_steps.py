"""GIVEN the iteration log, WHEN it is read, THEN steps lie on the cell's clock and losses are errors, not silence."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from qmeter.engines.base import Launch
from qmeter.engines.openvino.steps import StepLog, read_steps, to_steps
from qmeter.errors import EngineError


def row(start_s: float) -> list[float]:
    return [start_s, 0.5, 3, 1, -1, 3, 0.25]


def test_the_ring_keeps_the_latest_and_counts_what_it_dropped() -> None:
    log = StepLog(3)
    for i in range(5):
        log.append(row(float(i)))
    page = log.page(3.0)
    assert (page["count"], page["dropped"], page["oldest_s"]) == (5, 2, 2.0)
    assert page["columns"]["start_s"] == [3.0, 4.0]


def test_a_page_becomes_a_table_on_the_cells_clock() -> None:
    log = StepLog(10)
    for i in range(5):
        log.append(row(float(i)))
    steps = to_steps(log.page(), 2.0)
    assert steps.start_s.tolist() == [0.0, 1.0, 2.0]
    assert (steps.prefill_tokens == -1).all() and steps.decode_tokens.tolist() == [3, 3, 3]


@pytest.fixture
def served() -> Iterator[tuple[Launch, StepLog]]:
    log = StepLog(3)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            since = parse_qs(urlsplit(self.path).query)["since"][0]
            body = json.dumps(log.page(float(since))).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Launch(None, f"http://127.0.0.1:{server.server_port}", "m", Path("log")), log
    server.shutdown()
    server.server_close()


def test_steps_are_read_over_http(served: tuple[Launch, StepLog]) -> None:
    launch, log = served
    for i in range(3):
        log.append(row(float(i)))
    assert len(read_steps(launch, 1.0)) == 2


def test_steps_lost_from_the_cell_are_an_error_that_names_the_option(served: tuple[Launch, StepLog]) -> None:
    launch, log = served
    for i in range(5):
        log.append(row(float(i)))
    assert len(read_steps(launch, 2.5)) == 2, "only older steps were dropped"
    with pytest.raises(EngineError) as caught:
        read_steps(launch, 0.5)
    assert "steps" in str(caught.value.hint)
