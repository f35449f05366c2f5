"""GIVEN a study that runs, WHEN Ctrl-C comes, THEN its engine ends, what was measured stays, and the code is 130."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

STUDY = Path(__file__).parents[1] / "study"
PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); import fake_study; fake_study.install();"
    "from qmeter.cli.main import main; main()"
)


@pytest.mark.parametrize(("event", "value"), [("stage", "launch"), ("stage", "load"), ("cell", None)])
def test_ctrl_c_ends_the_engine_and_keeps_the_records(tmp_path: Path, event: str, value: str | None) -> None:
    sys.path.insert(0, str(STUDY))
    import fake_study

    study = tmp_path / "study.yaml"
    text = fake_study.TEXT.replace("./none.gguf", '"synth:smollm2-135m"').replace("OPTIONS", "")
    study.write_text(text)
    out = tmp_path / "out"
    command = [sys.executable, "-c", PROGRAM, str(STUDY), "run", str(study), "--out", str(out), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        seen = json.loads(line)
        if seen["event"] == event and value in (None, seen.get("stage")):
            break
    time.sleep(0.5)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert all(json.loads(line) for line in rest.splitlines())
    assert f"qmeter resume {out}" in errors and "Traceback" not in errors
    _, alive = psutil.wait_procs(children, timeout=5)
    assert children and not alive
    records = out / "records.jsonl"
    kept = records.read_text().splitlines() if records.exists() else []
    assert len(kept) == (1 if event == "cell" else 0)
    assert all(json.loads(line)["status"] != "failed" for line in kept)
