"""The harness with a local task and data file against a server that knows seven of eight capitals."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from qmeter.errors import MissingExtra, QualityError
from qmeter.load.target import Target
from qmeter.quality.lm_eval import run_lm_eval

TASKS = Path(__file__).with_name("lm_eval_tasks")
KNOWN = dict(json.loads(line).values() for line in (TASKS / "capitals.jsonl").read_text().splitlines())


@pytest.fixture
def target() -> Iterator[Target]:
    class Handler(BaseHTTPRequestHandler):
        wbufsize = 1 << 16

        def log_message(self, *args: Any) -> None: ...

        def do_POST(self) -> None:
            assert self.headers["Authorization"] == "Bearer key"
            prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"]
            prompts = [prompt] if isinstance(prompt, str) else prompt
            answers = [next((v for k, v in KNOWN.items() if k in p and k != "Peru"), "?") for p in prompts]
            data = json.dumps({"choices": [{"index": i, "text": f" {a}"} for i, a in enumerate(answers)]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield Target(f"http://127.0.0.1:{server.server_port}", "m", headers={"Authorization": "Bearer key"})
    server.shutdown()
    server.server_close()


def test_without_the_harness_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtra, match="lm-eval"):
        run_lm_eval(Target("http://127.0.0.1:9", "m"), ["x"])


def test_a_local_task_is_run_against_the_endpoint(
    target: Target, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.chdir(TASKS)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    found = run_lm_eval(target, ["qmeter_local_capitals"], include=TASKS)
    quantity = found["lm_eval.qmeter_local_capitals.exact_match.stripped"]
    assert quantity.value == 7 / 8 and quantity.n == 8
    assert quantity.low < 7 / 8 and quantity.high == 1.0


def test_an_unknown_task_is_refused(target: Target) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(QualityError, match="has no task 'nonsense'"):
        run_lm_eval(target, ["nonsense"], include=TASKS)
