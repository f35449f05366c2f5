"""GIVEN a program started ahead, WHEN a launch comes, THEN it becomes that launch, or is ended and another starts."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from qmeter.engines import standby
from qmeter.engines.base import Artifact, Launch, MetricsMap
from qmeter.engines.server import serve
from qmeter.record import EffectiveConfig
from qmeter.spec.study import Deployment, EngineRef, ModelRef, Parallelism

AHEAD = (
    "import json, os, sys, time; line = sys.stdin.readline()\n"
    "if not line: sys.exit(0)\n"
    "job = json.loads(line); os.environ.update(job['env'])\n"
    "open(job['log'], 'a').write(f'ready ahead {os.getpid()} {job[\"argv\"][-1]} {os.environ[\"QMETER_X\"]}')\n"
    "time.sleep(60)"
)
AFRESH = "import os, time; print('ready afresh', os.getpid(), flush=True); time.sleep(60)"


class Engine:
    def __init__(self, env: dict[str, str] | None = None):
        self.env = env or {}

    def launch_command(self, deployment: Deployment, artifact: Artifact, port: int, workdir: Path) -> Launch:
        return Launch(
            (sys.executable, "-c", AFRESH, "the-launch"), "http://127.0.0.1:1", "m", workdir / "server.log",
            env={**self.env, "QMETER_X": workdir.name}, standby=(sys.executable, "-c", AHEAD),
        )  # fmt: skip

    def effective(self, launch: Launch) -> EffectiveConfig | None:
        ready = launch.log_path.exists() and "ready" in launch.log_path.read_text()
        return EffectiveConfig() if ready else None

    def metrics_map(self) -> MetricsMap:
        return MetricsMap(None, (), gap="none")


DEPLOYMENT = Deployment(
    model=ModelRef(name="m", source="x", shape="s"), engine=EngineRef(name="fake", ready_timeout="20s"), method="f16",
    device="cpu", parallelism=Parallelism(),
)  # fmt: skip
ARTIFACT = Artifact(Path("none"), "gguf", "")


@pytest.fixture(autouse=True)
def none_left_waiting(monkeypatch):
    monkeypatch.delenv(standby.SWITCH, raising=False)
    yield
    standby.discard_all()


def run(folder: Path, engine: Engine | None = None) -> str:
    """Serve once; the log of the server."""
    with serve(engine or Engine(), DEPLOYMENT, ARTIFACT, folder) as server:
        assert server.pids
        return server.launch.log_path.read_text()


def pid_of(text: str) -> int:
    return int(text.split()[2])


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 8
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_the_first_starts_afresh_and_the_next_becomes_what_waits(tmp_path):
    assert "ready afresh" in run(tmp_path / "one")
    second = run(tmp_path / "two")
    assert "ready ahead" in second
    assert "the-launch two" in second
    assert gone(pid_of(second))


def test_another_environment_is_never_served_by_what_waits(tmp_path):
    run(tmp_path / "one")
    assert "ready afresh" in run(tmp_path / "two", Engine({"ENGINE_FLAG": "1"}))


def test_one_that_died_while_waiting_is_replaced_by_a_fresh_start(tmp_path):
    run(tmp_path / "one")
    waiting = standby._waiting[0].process
    os.kill(waiting.pid, 9)
    waiting.wait(5)
    assert "ready afresh" in run(tmp_path / "two")


def test_it_can_be_turned_off(tmp_path, monkeypatch):
    monkeypatch.setenv(standby.SWITCH, "0")
    run(tmp_path / "one")
    assert standby._waiting == []


def test_discarding_ends_what_waits(tmp_path):
    run(tmp_path / "one")
    process = standby._waiting[0].process
    standby.discard_all()
    assert process.poll() is not None


def test_a_measurement_can_wait_until_the_imports_are_done(tmp_path: Path) -> None:
    busy = "import sys, time\nend = time.monotonic() + 1.5\nwhile time.monotonic() < end: pass\nsys.stdin.readline()"
    launch = Launch(("x",), "http://127.0.0.1:1", "m", tmp_path / "server.log", standby=(sys.executable, "-c", busy))
    began_s = time.monotonic()
    standby.settle()
    assert time.monotonic() - began_s < 0.1, "nothing waits"
    standby.start_ahead(launch, 1.0)
    time.sleep(0.3)
    standby.settle()
    assert time.monotonic() - began_s > 1.5
    began_s = time.monotonic()
    standby.settle()
    assert time.monotonic() - began_s < 1.5, "it is quiet already"
