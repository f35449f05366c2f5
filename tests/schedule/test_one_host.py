"""GIVEN one day replayed under the switching schedule and under each method alone, WHEN it is laid out, served and
counted, THEN every policy gets the same requests in windows of one length, and the comparison is paired and honest."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import yaml

from qmeter.record import CellTables, Requests, RequestStatus, SeriesInfo, Telemetry, Tokens
from qmeter.router.file import ScheduleFile, load_schedule
from qmeter.spec.workload import SLO, LognormalLength
from qmeter.store import open_results
from qmeter.workload import Vocabulary
from qmeter.workload.schedule import schedule_digest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "benchmarks" / "schedule"
EXAMPLE = ROOT / "examples" / "schedule" / "one_h200.yaml"


@pytest.fixture
def days(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import one_host_day

    return one_host_day


@pytest.fixture
def host(days):
    import one_host

    return one_host


def trace(days, day, seed=1):
    length = LognormalLength(median=40, sigma=0.6, low=4, high=200)
    return days.make_trace(day, length, length, Vocabulary(5000), seed, drain_s=4.0)


def test_the_day_has_the_rates_of_its_hours_and_the_same_bytes_for_the_same_seed(days):
    day = days.make_day("site", 2.0, 36.0, 10.0)
    assert min(day.rate_hz) == 2.0 and max(day.rate_hz) == 36.0 and day.length_s == 240.0
    made = trace(days, day)
    assert np.all(np.diff(made.send_s) >= 0) and made.send_s[0] >= 0 and made.send_s[-1] < 240.0
    counts, _ = np.histogram(made.send_s, np.arange(0, 250, 10.0))
    expected = 10 * np.asarray(day.rate_hz)
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))
    assert schedule_digest(trace(days, day)) == schedule_digest(made) != schedule_digest(trace(days, day, seed=2))


def test_the_shipped_profile_gives_the_light_hours_to_w4a16_and_the_heavy_ones_to_w8a8(days):
    methods = ("gptq-w4a16", "smoothquant-w8a8")
    power = days.curves(list(open_results("h200-8b-grid").records()), methods)
    assert all(len(c.tok_s) == 4 and np.all(np.diff(c.tok_s) > 0) for c in power.values())
    day = days.make_day("site", 2.0, 36.0, 2.5)
    choice = days.cheapest(day, power, 130.0)
    heavy = [r for r, k in zip(day.rate_hz, choice, strict=True) if k == "smoothquant-w8a8"]
    light = [r for r, k in zip(day.rate_hz, choice, strict=True) if k == "gptq-w4a16"]
    assert max(light) < min(heavy) and 6 <= max(light) + min(heavy) <= 40
    watts = [days.mean_power(day, power, plan, 130.0) for plan in (choice, *([m] * 24 for m in methods))]
    assert watts[0] < min(watts[1:])
    with pytest.raises(ValueError, match="--threshold"):
        days.curves(list(open_results("h200-8b-grid").records()), ["no-such-method"])


def test_each_policy_is_at_each_place_once_and_its_slots_are_what_it_says(days):
    names = ("w4a16", "w8a8")
    order = days.rotated((days.SWITCH, *names), 3)
    assert [s.number for s in order] == list(range(9))
    assert {(s.policy, s.number % 3) for s in order} == {(p, i) for p in (days.SWITCH, *names) for i in range(3)}
    day = days.make_day("site", 2.0, 36.0, 2.5)
    choice = days.by_threshold(day, *names, 12.0)
    layout = days.Layout(warm_s=12.0, gap_s=3.0, day_s=day.length_s, drain_s=4.0)
    made = days.slots(order, names, days.parts(day, choice), layout, ("chat",))
    written = yaml.safe_load(EXAMPLE.read_text()) | {"slots": made, "repeat": False,
                                                     "length": f"{layout.end_s(len(order)) + 5}s"}  # fmt: skip
    served = ScheduleFile.model_validate(written)
    assert all(slot.up == {"w4a16": 1, "w8a8": 1} for slot in served.slots)
    for i, segment in enumerate(order):
        for hour, kind in enumerate(choice):
            at_s = layout.begin_s(i) + (hour + 0.5) * day.hour_s
            shares = served.slots[served.slot_at(at_s)].shares["chat"]
            assert shares == {kind if segment.policy == days.SWITCH else segment.policy: 1.0}
        drained = served.slots[served.slot_at(layout.begin_s(i) + day.length_s + 3.9)].shares["chat"]
        assert drained == shares, "a replay's last requests are no other policy's"


def tables(*, joules=True) -> tuple[CellTables, list[SeriesInfo]]:
    """Ten requests a second apart, four tokens each; 400 W for 5 s, then 600 W; one slow, one failed."""
    sent = np.arange(10.0)
    first = sent + 0.1
    first[3] = sent[3] + 0.9  # beyond the TTFT limit
    status = np.array([RequestStatus.OK.value] * 10, dtype=object)
    status[7] = RequestStatus.STALL.value
    n = len(sent)
    ints, none = np.full(n, 4, np.int32), np.full(n, None, dtype=object)
    requests = Requests(
        intended_s=sent, sent_s=sent, first_token_s=first, last_token_s=first + 0.03, end_s=first + 0.03,
        prompt_tokens_asked=ints, output_tokens_asked=ints, prompt_tokens=ints, output_tokens=ints, status=status,
        http_status=np.full(n, 200, np.int32), finish_reason=none, task=none, item=none, text=none, error=none,
    )  # fmt: skip
    t_s = (first[:, None] + np.arange(4) * 0.01).ravel()
    ones = np.ones(4 * n)
    tokens = Tokens(request=np.repeat(np.arange(n), 4).astype(np.int32), t_s=t_s, n=ones.astype(np.int16),
                    clock=ones.astype(np.int8), coalesced=np.zeros(4 * n, bool))  # fmt: skip
    at = np.arange(-1.0, 13.0, 0.1)
    energy = 400.0 * (at + 1) + 200.0 * np.maximum(at - 5.0, 0)
    telemetry = Telemetry(np.full(len(at), "gpu0.energy_j", dtype=object), at, energy) if joules else Telemetry.empty()
    gap = None if joules else "NVML says no"
    info = [SeriesInfo(name="gpu0.energy_j", unit="J", source="made", cumulative=True, gap=gap)]
    return CellTables(requests, tokens, telemetry), info


def test_a_replay_is_counted_over_its_window_and_each_part(days, host):
    made, info = tables()
    parts = [days.Part("light", 0.0, 5.0), days.Part("heavy", 5.0, 10.0)]
    slo = SLO.model_validate({"ttft": "500ms", "tpot": "25ms", "percentile": 0.99})
    row = host.measured(made, info, parts, slo, 12.0)
    assert row["j"] == pytest.approx(400 * 5 + 600 * 7, rel=0.01) and row["j_low"] < row["j"] < row["j_high"]
    assert [p["j"] for p in row["parts"]] == [pytest.approx(2000, rel=0.03), pytest.approx(3000, rel=0.03)]
    assert (row["tokens"], row["tokens_late"], row["due"]) == (40, 0, 10)
    assert [p["tokens"] for p in row["parts"]] == [20, 20]
    assert row["violations"] == 2 and [p["violations"] for p in row["parts"]] == [1, 1]
    assert row["statuses"] == {"ok": 9, "stalled": 1}
    assert row["ttft_p50_s"] == pytest.approx(0.1) and row["tpot_p99_s"] is None, "its p99 is the one that failed"


def test_energy_that_nobody_reads_is_unknown_and_says_why(days, host):
    made, info = tables(joules=False)
    row = host.measured(made, info, [], SLO.model_validate({"ttft": "1s"}), 12.0)
    assert row["j"] is None and "NVML says no" in row["j_why"]
    rows = [{"policy": p, "repeat": 0, **row} for p in (days.SWITCH, "a", "b")]
    found = days.summarise(rows, 0.5)
    assert found["ratio"] is None and "NVML says no" in found["why"]
    result = {"segments": [{**r, "faults": []} for r in rows]}
    assert "unknown, because" in host.table(result, 0.5)


def replay(policy, repeat, joules, violations=0):
    return {"policy": policy, "repeat": repeat, "j": joules, "tokens": 1000, "violations": violations, "due": 100,
            "parts": [{"kind": "a", "start_s": 0.0, "end_s": 10.0, "j": joules}]}  # fmt: skip


def test_the_best_static_choice_is_the_cheapest_that_holds_the_slo(days):
    rows = [replay(days.SWITCH, 0, 950.0), replay("a", 0, 800.0, violations=9), replay("b", 0, 1000.0)]
    rows += [replay(days.SWITCH, 1, 960.0), replay("a", 1, 810.0, violations=7), replay("b", 1, 1000.0)]
    found = days.summarise(rows, 0.95)
    assert found["best_static"] == "b" and found["best_static_holds"]
    assert found["ratio"]["each"] == [pytest.approx(0.95), pytest.approx(0.96)]
    assert found["ratio"]["low"] < 0.95 < found["ratio"]["value"] < 0.96 < found["ratio"]["high"]
    assert found["policies"]["a"]["violation_share"] == pytest.approx(0.08) and not found["policies"]["a"]["holds"]
    assert found["policies"]["b"]["parts"][0]["power_w"] == pytest.approx(100.0)
    assert days.summarise(rows, 0.9)["best_static"] == "a"


def test_repeats_are_paired_and_one_repeat_has_no_interval(days):
    rows = [replay(days.SWITCH, 0, 950.0), replay("b", 0, 1000.0), replay(days.SWITCH, 1, 700.0)]
    ratio = days.summarise(rows, 0.9)["ratio"]
    assert ratio["each"] == [pytest.approx(0.95)] and ratio["low"] is None and "no spread" in ratio["why"]
    assert days.summarise([replay(days.SWITCH, 1, 1.0), replay("b", 0, 1.0)], 0.9)["ratio"] is None
    three = days.ratio([1.0, 1.0, 1.0], [1.0, 1.1, 1.21])
    half = 4.302653 * np.log(1.1) / np.sqrt(3)
    assert three["low"] == pytest.approx(np.exp(-np.log(1.1) - half), rel=1e-5)


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.timeout(120)
def test_the_program_replays_one_day_under_three_policies_and_goes_on_where_it_stopped(tmp_path):
    ports = {"light": port(), "heavy": port()}
    engines: list[subprocess.Popen[bytes]] = []
    fake = ["--method=f16", "--noise=0", "--weight-bytes=1", "--fault=none", "--tpot-ms=2", "--ttft-ms=5"]
    model = {"name": "fake", "source": "none.gguf", "shape": "smollm2-135m"}
    engine = {"name": "endpoint", "options": {"served_model": "fake"}}
    kinds = [{"name": name, "model": model, "engine": engine, "method": "f16", "urls": [f"http://127.0.0.1:{number}"]}
             for name, number in ports.items()]  # fmt: skip
    file = tmp_path / "two.yaml"
    both = {"light": 1, "heavy": 1}
    file.write_text(yaml.safe_dump({
        "qmeter_schedule": 1, "name": "two", "classes": ["chat"], "deployments": kinds,
        "slots": [{"at": "0s", "up": both, "shares": {"chat": {"light": 1}}}],
    }))  # fmt: skip
    assert load_schedule(file)
    command = [sys.executable, str(SCRIPTS / "one_host.py"), str(file), "--out", str(tmp_path / "out"), "--threshold",
               "6", "--low", "2", "--high", "12", "--hour-s", "0.1", "--repeats", "1", "--warm-s", "2.5", "--drain-s",
               "1", "--prompt", "20", "--output", "5", "--samplers", "host"]  # fmt: skip
    try:
        for number in ports.values():
            program = [sys.executable, "-m", "qmeter.testing.fake_engine", f"--port={number}", *fake]
            engines.append(subprocess.Popen(program))
        for number in ports.values():
            _wait(number)
        done = subprocess.run(command, capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stdout + done.stderr
        result = json.loads((tmp_path / "out" / "result.json").read_text())
        rows = {r["policy"]: r for r in result["segments"]}
        assert set(rows) == {"schedule", "light", "heavy"}
        assert len({r["due"] for r in rows.values()}) == 1 and len({r["tokens"] for r in rows.values()}) == 1
        assert all(set(r["statuses"]) == {"ok"} for r in rows.values()), done.stdout
        assert rows["light"]["split"] == {"light": rows["light"]["due"], "heavy": 0}
        assert min(rows["schedule"]["split"].values()) > 0
        assert "unknown, because" in done.stdout
        again = subprocess.run([*command, "--plan"], capture_output=True, text=True, timeout=60)
        left = [r["policy"] for r in result["segments"] if r["faults"]]
        assert again.returncode == 0 and all(f"{policy}-0" in again.stdout for policy in left)
        other = subprocess.run([*command, "--seed", "2"], capture_output=True, text=True, timeout=60)
        assert other.returncode != 0 and "other settings" in other.stderr
    finally:
        for engine in engines:
            engine.kill()
            engine.wait()


def _wait(number: int) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{number}/health", timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"the fake engine {os.getpid()} on {number} did not start")
