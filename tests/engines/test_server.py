"""GIVEN a real child process as the engine, WHEN the run ends in any way, THEN nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from qmeter.engines.base import Artifact, Launch, MetricsMap
from qmeter.engines.server import serve
from qmeter.errors import EngineCrashed, EngineNotReady, EngineUnavailable
from qmeter.record import EffectiveConfig
from qmeter.spec.study import Deployment, EngineRef, ModelRef, Parallelism

ARTIFACT = Artifact(Path("none"), "gguf", "0" * 64)


def deployment(ready_timeout: str = "20s") -> Deployment:
    return Deployment(
        model=ModelRef(name="m", source="x", shape="s"),
        engine=EngineRef(name="fake", ready_timeout=ready_timeout),
        method="f16",
        device="cpu",
        parallelism=Parallelism(),
    )


class ScriptEngine:
    """An engine whose server is a Python script; ready when the script has written 'ready' to its log."""

    def __init__(self, script: str):
        self.script = script

    def launch_command(self, deployment: Deployment, artifact: Artifact, port: int, workdir: Path) -> Launch:
        argv = (sys.executable, "-c", self.script) if self.script else ("/no/such/program",)
        return Launch(argv, f"http://127.0.0.1:{port}", "m", workdir / "server.log")

    def effective(self, launch: Launch) -> EffectiveConfig | None:
        ready = launch.log_path.exists() and "ready" in launch.log_path.read_text()
        return EffectiveConfig() if ready else None

    def metrics_map(self) -> MetricsMap:
        return MetricsMap(None, (), gap="none")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] != "Z"


def gone(pid: int, within_s: float = 8.0) -> bool:
    deadline = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


SLEEPER = "import os,time; print('ready', flush=True); time.sleep(600)"
STUBBORN = (
    "import os,signal,subprocess,sys,time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "p=subprocess.Popen([sys.executable,'-c','import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(600)'],"
    "start_new_session=True); print('worker', p.pid, flush=True); time.sleep(0.3); print('ready', flush=True);"
    "time.sleep(600)"
)


def test_a_server_is_ended_when_the_block_ends(tmp_path: Path) -> None:
    with serve(ScriptEngine(SLEEPER), deployment(), ARTIFACT, tmp_path) as server:
        pids = server.pids
        assert pids and all(alive(p) for p in pids)
        assert server.startup_s > 0
    assert all(gone(p) for p in pids)


def test_a_server_that_ignores_sigterm_and_its_runaway_worker_are_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qmeter.engines.server.GRACE_S", 0.5)
    with serve(ScriptEngine(STUBBORN), deployment(), ARTIFACT, tmp_path) as server:
        pids = server.pids
        assert len(pids) == 2, "the server and the worker that left its session"
    assert all(gone(p) for p in pids)


def test_a_server_that_ends_early_is_a_crash_with_the_end_of_its_log(tmp_path: Path) -> None:
    engine = ScriptEngine("print('out of luck'); raise SystemExit(7)")
    with (
        pytest.raises(EngineCrashed, match="status 7") as caught,
        serve(engine, deployment(), ARTIFACT, tmp_path),
    ):
        pass
    assert "out of luck" in (caught.value.hint or "")


def test_a_server_that_is_never_ready_is_ended_and_named(tmp_path: Path) -> None:
    engine = ScriptEngine("import time; print('still loading', flush=True); time.sleep(600)")
    with (
        pytest.raises(EngineNotReady) as caught,
        serve(engine, deployment("600ms"), ARTIFACT, tmp_path),
    ):
        pass
    assert "still loading" in (caught.value.hint or "")


def test_a_program_that_does_not_exist_is_said_so(tmp_path: Path) -> None:
    with (
        pytest.raises((EngineUnavailable, EngineCrashed)) as caught,
        serve(ScriptEngine(""), deployment(), ARTIFACT, tmp_path),
    ):
        pass
    assert "/no/such/program" in str(caught.value)


def test_a_crash_under_load_is_seen(tmp_path: Path) -> None:
    with serve(ScriptEngine(SLEEPER), deployment(), ARTIFACT, tmp_path) as server:
        server.check_alive("load")
        for pid in server.pids:
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        with pytest.raises(EngineCrashed):
            while time.monotonic() < deadline:
                server.check_alive("load")
                time.sleep(0.05)


def test_kill_9_of_the_runner_leaves_no_engine(tmp_path: Path) -> None:
    program = (
        "import sys,time; sys.path.insert(0, sys.argv[2]);"
        "from pathlib import Path; import test_server as t; from qmeter.engines.server import serve\n"
        "with serve(t.ScriptEngine(t.STUBBORN), t.deployment(), t.ARTIFACT, Path(sys.argv[1])) as s:\n"
        "    print(*s.pids, flush=True); time.sleep(600)\n"
    )
    runner = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path), str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True
    )
    assert runner.stdout is not None
    pids = [int(p) for p in runner.stdout.readline().split()]
    assert len(pids) == 2
    runner.kill()
    runner.wait()
    assert all(gone(p, within_s=20) for p in pids)


def test_an_earlier_starts_log_is_kept_aside_and_not_read_again(tmp_path: Path) -> None:
    (tmp_path / "server.log").write_text("ready long ago, then out of memory")
    engine = ScriptEngine("print('new start'); raise SystemExit(7)")
    for _ in range(2):
        with pytest.raises(EngineCrashed) as caught, serve(engine, deployment(), ARTIFACT, tmp_path):
            pass
        assert "long ago" not in (caught.value.hint or "")
    assert sorted(p.name for p in tmp_path.glob("*.log")) == ["server.1.log", "server.2.log", "server.log"]
    assert "long ago" in (tmp_path / "server.1.log").read_text()


def test_ctrl_c_while_a_server_is_being_ended_is_not_lost(tmp_path: Path) -> None:
    slow = (
        "import signal,sys,time; signal.signal(15, lambda *_: (time.sleep(1.5), sys.exit()));"
        "print('ready', flush=True); time.sleep(600)"
    )
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), serve(ScriptEngine(slow), deployment(), ARTIFACT, tmp_path) as server:
        pids = server.pids
        time.sleep(0.3)
        timer.start()
    assert pids and all(gone(p, within_s=1) for p in pids), "the server ended first"


def test_a_guard_that_is_killed_takes_its_engine_along(tmp_path: Path) -> None:
    with serve(ScriptEngine(SLEEPER), deployment(), ARTIFACT, tmp_path) as server:
        (engine,) = server.pids
        assert server.guard is not None
        server.guard.kill()
        assert gone(engine)
        assert not server.alive
