"""GIVEN real processes of the fake engine, WHEN a schedule switches, replicas die or the program is killed, THEN no
request is lost in silence and no process stays."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import yaml

from qmeter.engines.base import Artifact
from qmeter.engines.table import ENGINES
from qmeter.router.file import ScheduleFile, load_schedule
from qmeter.router.run import Served, serve_schedule

ARTIFACT = Artifact(Path("none.gguf"), "gguf", "0" * 64, weight_bytes=1000)
MODEL = {"name": "m", "source": "none.gguf", "shape": "smollm2-135m"}


@pytest.fixture(autouse=True)
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES._rows, "fake", "qmeter.testing.fake_engine:FakeEngine")


def schedule(slots: list[dict[str, Any]], *, tpot_ms: float = 5, **rest: Any) -> ScheduleFile:
    kinds = [
        {"name": method, "model": MODEL, "method": method, "replicas": 2, "startup": "1s",
         "engine": {"name": "fake", "options": {"tpot_ms": tpot_ms, "ttft_ms": 5}}}
        for method in ("f16", "w8a16")
    ]  # fmt: skip
    limits = {"health_interval": "200ms", "queue_timeout": "20s", "drain_timeout": "10s"}
    return ScheduleFile.model_validate(
        {"qmeter_schedule": 1, "name": "t", "classes": ["chat"], "deployments": kinds, "slots": slots,
         "router": limits, **rest}
    )  # fmt: skip


def slot(at: str, **up: int) -> dict[str, Any]:
    return {"at": at, "up": up, "shares": {"chat": {kind: 1 / len(up) for kind in up}}}


class Load:
    """Requests sent at a steady rate; each ends as "ok", "error event" or the HTTP status."""

    def __init__(self, rate_hz: float, tokens: int):
        self.rate_hz, self.tokens = rate_hz, tokens
        self.ends: Counter[str] = Counter()
        self.by: Counter[str] = Counter()

    async def run(self, url: str, stop: asyncio.Event) -> None:
        tasks = []
        async with aiohttp.ClientSession() as session:
            while not stop.is_set():
                tasks.append(asyncio.create_task(self._one(session, url)))
                await asyncio.sleep(1 / self.rate_hz)
            await asyncio.gather(*tasks)

    async def _one(self, session: aiohttp.ClientSession, url: str) -> None:
        body = {"prompt": [1, 2, 3], "max_tokens": self.tokens, "stream": True}
        async with session.post(url + "/v1/completions", json=body) as answer:
            text = await answer.text()
        if answer.status != 200:
            self.ends[f"http {answer.status}"] += 1
            return
        self.by[answer.headers["X-QMeter-Replica"].rpartition("-")[0]] += 1
        whole = text.endswith("[DONE]\n\n") and text.count('"text": " t') == self.tokens
        self.ends["ok" if whole else "error event" if '"replica_lost"' in text else "lost in silence"] += 1


async def serve(made: ScheduleFile, folder: Path, load: Load, during: Any = None, for_s: float = 60.0) -> Served:
    """Serve under load until the schedule or ``during`` ends."""
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    quiet, stop = asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(
        serve_schedule(made, {d.name: ARTIFACT for d in made.deployments}, folder, for_s=for_s, stop=stop,
                       on_ready=lambda port: url.set_result(f"http://127.0.0.1:{port}"))
    )  # fmt: skip
    try:
        await asyncio.wait((serving, url), return_when=asyncio.FIRST_COMPLETED)
        if not url.done():
            return serving.result()
        loading = asyncio.create_task(load.run(url.result(), quiet))
        await during(url.result())
        quiet.set()
        await loading
    finally:
        stop.set()
        served = await serving
    return served


async def state(url: str) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session, session.get(url + "/qmeter/schedule") as answer:
        return dict(await answer.json())


def no_process_of(folder: Path) -> bool:
    """No engine that works in the folder is left (other tests' helpers may be)."""
    left = [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    return not [p for p in left if any(word in " ".join(p.cmdline()) for word in ("guard.py", "fake_engine"))]


def test_switching_under_load_loses_nothing(tmp_path: Path) -> None:
    slots = [slot(f"{1.5 * i}s", **({"f16": 1} if i % 2 == 0 else {"w8a16": 2})) for i in range(5)]
    made = schedule(slots, length="7.5s", repeat=True)
    load = Load(20, 60)

    async def during(url: str) -> None:
        await asyncio.sleep(12)

    served = asyncio.run(serve(made, tmp_path, load, during))
    assert set(load.ends) == {"ok"} and load.ends["ok"] > 150, load.ends
    assert served.slots_changed >= 5 and served.outcomes == {"ok": load.ends["ok"]}
    assert min(load.by["f16"], load.by["w8a16"]) > 20, load.by
    assert served.restarts == 0 and no_process_of(tmp_path)


@pytest.mark.parametrize("gpus", [((0,), (0,)), ((0,), (1,))])
def test_replicas_that_share_a_gpu_start_one_after_another(tmp_path: Path, gpus: tuple[tuple[int], ...]) -> None:
    made = schedule([slot("0s", f16=1, w8a16=1)])
    placed = [d.model_copy(update={"replicas": 1, "gpus": (g,)}) for d, g in zip(made.deployments, gpus, strict=True)]
    made = made.model_copy(update={"deployments": tuple(placed)})
    seen: list[tuple[float, float]] = []

    async def during(url: str) -> None:
        for row in (await state(url))["replicas"]:
            seen.append((psutil.Process(row["pids"][0]).create_time(), row["startup_s"]))

    served = asyncio.run(serve(made, tmp_path, Load(5, 2), during))
    (first_s, took_s), (second_s, _) = sorted(seen)
    shared = gpus[0] == gpus[1]
    assert (second_s - first_s > took_s - 0.1) == shared, seen
    assert served.restarts == 0 and made.shares_gpus(made.deployments[0]) == shared


def test_a_replica_killed_under_load_costs_only_what_it_had(tmp_path: Path) -> None:
    made = schedule([slot("0s", f16=2)])
    load = Load(25, 40)
    flight: list[int] = []

    async def during(url: str) -> None:
        await asyncio.sleep(1.5)
        victim = next(r for r in (await state(url))["replicas"] if r["name"] == "f16-1")
        flight.append(victim["in_flight"])
        os.kill(victim["pids"][0], signal.SIGKILL)
        for _ in range(100):
            await asyncio.sleep(0.1)
            now = {r["name"]: r for r in (await state(url))["replicas"]}
            if "f16-1" in now and now["f16-1"]["state"] == "ready" and now["f16-1"]["pids"] != victim["pids"]:
                break
        else:
            pytest.fail("it was not started again")
        await asyncio.sleep(1)

    served = asyncio.run(serve(made, tmp_path, load, during))
    assert set(load.ends) <= {"ok", "error event"} and load.ends["ok"] > 60, load.ends
    assert load.ends["error event"] <= flight[0] + 2 and served.restarts == 1
    assert no_process_of(tmp_path)


def test_the_only_replica_killed_requests_wait_for_its_return(tmp_path: Path) -> None:
    made = schedule([slot("0s", f16=1)])
    load = Load(10, 10)

    async def during(url: str) -> None:
        await asyncio.sleep(0.5)
        os.kill((await state(url))["replicas"][0]["pids"][0], signal.SIGKILL)
        await asyncio.sleep(4)

    asyncio.run(serve(made, tmp_path, load, during))
    assert set(load.ends) <= {"ok", "error event"} and load.ends["error event"] <= 3, load.ends


def test_with_no_room_for_both_the_old_one_goes_first(tmp_path: Path) -> None:
    made = schedule([slot("0s", f16=1), slot("1s", w8a16=1)], most_running=1)
    load, most = Load(10, 10), 0

    async def during(url: str) -> None:
        nonlocal most
        for _ in range(40):
            await asyncio.sleep(0.1)
            most = max(most, len((await state(url))["replicas"]))

    asyncio.run(serve(made, tmp_path, load, during))
    assert set(load.ends) == {"ok"} and load.by["w8a16"] > 5 and most == 1, (load.ends, load.by, most)


def test_a_long_stream_outlives_the_switch(tmp_path: Path) -> None:
    made = schedule([slot("0s", f16=1), slot("1s", w8a16=1)], tpot_ms=20)
    load = Load(2, 150)  # three seconds each

    async def during(url: str) -> None:
        await asyncio.sleep(2.5)
        names = {r["deployment"]: r["state"] for r in (await state(url))["replicas"]}
        assert names == {"f16": "draining", "w8a16": "ready"}

    asyncio.run(serve(made, tmp_path, load, during))
    assert set(load.ends) == {"ok"} and load.by["f16"] and load.by["w8a16"], (load.ends, load.by)


def test_a_first_replica_that_cannot_start_is_the_error(tmp_path: Path) -> None:
    made = schedule([slot("0s", f16=1)])
    kind = made.deployments[0]
    broken = kind.model_copy(update={"engine": kind.engine.model_copy(update={"options": {"fault": "out-of-memory"}})})
    made = made.model_copy(update={"deployments": (broken, made.deployments[1])})
    with pytest.raises(Exception, match=r"f16-0 could not be started: .*out of memory"):
        asyncio.run(serve_schedule(made, {"f16": ARTIFACT, "w8a16": ARTIFACT}, tmp_path))
    assert no_process_of(tmp_path)


PROGRAM = """
import asyncio, sys, pathlib
from qmeter.engines.table import ENGINES
from qmeter.router.file import load_schedule
from qmeter.router.run import serve_schedule
from qmeter.engines.base import Artifact
ENGINES._rows["fake"] = "qmeter.testing.fake_engine:FakeEngine"
sys.path.insert(0, sys.argv[1])
made = load_schedule(pathlib.Path(sys.argv[2]))
artifact = Artifact(pathlib.Path("none.gguf"), "gguf", "0" * 64, weight_bytes=1000)
asyncio.run(serve_schedule(made, {d.name: artifact for d in made.deployments}, pathlib.Path(sys.argv[3]),
                           on_ready=lambda port: print(port, flush=True)))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_however_the_program_ends_its_engines_end(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "schedule.yaml"
    path.write_text(yaml.safe_dump(json.loads(_seconds(schedule([slot("0s", f16=2)]).model_dump_json()))))
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(path), str(tmp_path / "logs")],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline().strip().isdigit()
    left = psutil.Process(process.pid).children(recursive=True)
    assert len([p for p in left if "fake_engine" in " ".join(p.cmdline())]) >= 2
    process.send_signal(number)
    assert process.wait(30) == (0 if number == signal.SIGINT else -9)
    deadline = time.monotonic() + 15
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in left):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def _seconds(text: str) -> str:
    """A dumped schedule with its durations as text again."""
    data = json.loads(text)
    for d in data["deployments"]:
        d["startup"] = f"{d['startup']}s"
        d["engine"]["ready_timeout"] = "60s"
    for s in data["slots"]:
        s["at"] = f"{s['at']}s"
    del data["length"], data["most_running"]
    data["router"] = {"drain_timeout": "2s"}
    return json.dumps(data)


def test_faults_of_a_file_are_named(tmp_path: Path) -> None:
    from qmeter.errors import SpecError

    text = """
qmeter_schedule: 1
name: t
classes: [chat, code]
deployments:
  - {name: a, model: {name: m, source: x, shape: smollm2-135m}, engine: {name: openvin}, method: f16, replicas: 2}
  - {name: b, model: {name: m, source: x, shape: smollm2-135m}, engine: {name: endpoint}, method: f17}
slots:
  - {at: 0s, up: {a: 3, c: 1}, shares: {chat: {a: 0.5, b: 0.2}}}
  - {at: 0s, up: {a: 0}, shares: {chat: {a: 1}, code: {a: -1}}}
repeat: true
"""
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_schedule(path)
    said = dict(caught.value.faults)
    assert "openvino" in said["deployments[0].engine.name"] and "deployments[1].method" in said
    assert "deployments[1].urls" in said and "0 to 2, found 3" in said["slots[0].up.a"]
    assert "slots[0].up.c" in said and "b is not up" in said["slots[0].shares.chat.b"]
    assert "0.7" in said["slots[0].shares.chat"] and "who serves it" in said["slots[0].shares.code"]
    assert "sort" in said["slots[1].at"] and "no replica is up" in said["slots[1].up"]
    assert "negative" in said["slots[1].shares.code.a"] and "24h" in said["repeat"]
