"""The ground truth tells the truth: both servers, the log, and what calibration makes of it."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from qmeter.errors import LoadError
from qmeter.load import Target, drive, warn_if_beyond
from qmeter.load.limits import Limits, load_limits, machine_name, processes_for, save_limits
from qmeter.spec.study import ClientSpec
from qmeter.testing import calibration
from qmeter.testing.busy_host import Stolen, bare_read_s, stolen
from qmeter.testing.ground_truth import GroundTruth, compiled, ground_truth, read_log
from qmeter.workload.schedule import Schedule, ScheduledRequest

KINDS = ["c", "python"]


def post(truth: GroundTruth, path: str = "/v1/completions", **body: object) -> bytes:
    data = json.dumps({"prompt": "hi", "max_tokens": 5, "stream": True, **body}).encode()
    request = urllib.request.Request(truth.base_url + path, data, {"X-Request-Id": "qmeter-7"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read()


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_come_on_absolute_deadlines_and_are_logged(kind: str) -> None:
    if kind == "c" and compiled() is None:
        pytest.skip("no C compiler")
    with ground_truth(0.05, 0.02, prefer=kind) as truth:  # type: ignore[arg-type]
        assert truth.kind == kind
        before = time.monotonic_ns()
        answer = post(truth)
        after = time.monotonic_ns()
        log = truth.log()
        chat = post(truth, "/v1/chat/completions", messages=[{"role": "user", "content": "hi"}])
    assert answer.count(b" hello") == 5 == chat.count(b" hello")
    assert answer.rstrip().endswith(b"data: [DONE]")
    usage = json.loads(answer.split(b"\n\n")[-3][6:])["usage"]
    assert usage["completion_tokens"] == 5
    assert list(log.id) == [7]
    assert before < log.received_ns[0] <= log.read_ns[0] < log.written_ns[0] < after
    # absolute deadlines: no event is early, and the lateness of one does not push the next
    lateness = log.lateness_s()
    assert (lateness >= 0).all() and len(lateness) == 5
    assert (log.ttft_ns, log.gap_ns) == (50_000_000, 20_000_000)


@pytest.mark.parametrize("kind", KINDS)
def test_several_tokens_share_an_event(kind: str) -> None:
    request = ScheduledRequest("hi", 1, 10)
    one = Schedule(np.asarray([0.0, 0.05]), (request, request), ("constant", {"rate_hz": 20.0}), 0.0, 0.2, 5.0)
    with ground_truth(0.01, 0.005, tokens_per_event=4, prefer=kind) as truth:  # type: ignore[arg-type]
        result = drive(one, Target(truth.base_url, "truth"), origin_monotonic_s=0.0, client=ClientSpec(processes=1))
        log = truth.log()
    # 10 tokens in events of 4, 4 and 2: the client squares its count of events with the usage
    assert list(log.events) == [3, 3]
    assert result.tokens.n.sum() == 20
    assert list(np.bincount(result.tokens.request)) == [3, 3]
    assert log.gap_ns == 20_000_000
    assert list(result.tokens.n[:3]) == [4, 4, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_other_routes_and_wrong_requests(kind: str) -> None:
    with ground_truth(prefer=kind) as truth:  # type: ignore[arg-type]
        with urllib.request.urlopen(truth.base_url + "/v1/models", timeout=10) as answer:
            assert json.load(answer)["data"][0]["id"] == "truth"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(truth.base_url + "/nowhere", timeout=10)
        post(truth)
        truth.reset()
        assert len(truth.log().id) == 0
    with pytest.raises(OSError):
        urllib.request.urlopen(truth.base_url + "/health", timeout=1)


def test_a_client_that_leaves_or_sends_nonsense_harms_nobody() -> None:
    with ground_truth(0.02, 0.005) as truth:
        port = int(truth.base_url.rsplit(":", 1)[1])
        for nonsense in (
            b"",
            b"\x00" * 70_000,
            b"GET /\r\n\r\n",
            b"POST /v1/completions HTTP/1.1\r\ncontent-length: 3\r\n\r\n{}x",
        ):
            with socket.create_connection(("127.0.0.1", port)) as sock:
                sock.sendall(nonsense)
        with socket.create_connection(("127.0.0.1", port)) as sock:
            body = b'{"max_tokens":500,"stream":true}'
            sock.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            sock.recv(100)
        assert post(truth).count(b" hello") == 5


def test_only_loopback_listens() -> None:
    with ground_truth() as truth:
        port = int(truth.base_url.rsplit(":", 1)[1])
        listening = Path("/proc/net/tcp").read_text()
        assert f"0100007F:{port:04X}" in listening
        assert f"00000000:{port:04X}" not in listening


def test_what_is_no_log_is_refused() -> None:
    with pytest.raises(LoadError):
        read_log(b"hello")
    with pytest.raises(LoadError):
        read_log(b"\0" * 100)


def test_without_a_compiler_python_stands_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "/bin/false")
    assert compiled() is None
    with ground_truth() as truth:
        assert truth.kind == "python"
        assert post(truth).count(b" hello") == 5
    assert not list(tmp_path.rglob("ground_truth*"))


# -- calibration and limits ----------------------------------------------------------------------------------------


def point(rate_hz: float, **changes: object) -> calibration.Point:
    values: dict[str, object] = {
        "rate_hz": rate_hz, "sent_hz": rate_hz, "send_error_p99_s": 1e-4, "ttft_mean_s": 1e-5, "ttft_p99_s": 1e-4,
        "ttft_intended_p99_s": 1e-4, "itl_p99_s": 1e-4, "cpu_share": 0.3, "lateness_p99_s": 1e-4,
        "server_late_p99_s": 1e-4, "events_hz": rate_hz * 64, "lost": 0, "failures": (),
    }  # fmt: skip
    return calibration.Point(**{**values, **changes})  # type: ignore[arg-type]


def test_a_point_is_held_only_if_all_of_it_is() -> None:
    assert point(100.0).held
    assert not point(100.0, sent_hz=98.0).held
    assert not point(100.0, ttft_p99_s=1e-3).held
    assert not point(100.0, lost=1).held
    assert not point(100.0, failures=("late",)).held


def test_the_climb_doubles_then_closes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN a client that holds up to 700/s
    monkeypatch.setattr(
        calibration, "measure", lambda s: point(s.law[1]["rate_hz"], lost=int(s.law[1]["rate_hz"] > 700))
    )
    monkeypatch.setattr(calibration, "stolen", lambda cores: Stolen(0.005, 4e-3))
    limits, points = calibration.calibrate(0.1, lambda _: None)
    assert [round(p.rate_hz) for p in points] == [50, 100, 200, 400, 800, 600, 700]
    assert limits is not None and (limits.requests_hz, limits.events_hz) == (700.0, 700.0 * 64)
    # AND one that holds nothing leaves no limits
    monkeypatch.setattr(calibration, "measure", lambda s: point(50.0, lost=1))
    assert calibration.calibrate(0.1, lambda _: None)[0] is None


def test_a_rate_missed_on_a_disturbed_host_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # GIVEN a host that somebody takes 30% of twice, at 50/s
    runs = iter([point(50.0, lost=1), point(50.0, lost=1)])
    monkeypatch.setattr(calibration, "measure", lambda s: next(runs, None) or point(s.law[1]["rate_hz"]))
    monkeypatch.setattr(calibration, "stolen", lambda cores: Stolen(0.3, 8e-3))
    monkeypatch.setattr(calibration, "cores_apart", lambda: ((0,), (1,)))
    points = list(calibration.climb(0.1, most_hz=100.0))
    # THEN the rate is held at the third try, and the climb goes on
    assert [(round(p.rate_hz), p.held, p.disturbed) for p in points] == [
        (50, False, True), (50, False, True), (50, True, False), (100, True, False)
    ]  # fmt: skip
    assert "30.0% of a core's time, up to 8.0 ms" in str(points[0].host)
    # AND where it never calms down, three tries are all there are
    monkeypatch.setattr(calibration, "measure", lambda s: point(50.0, lost=1))
    assert len(list(calibration.climb(0.1))) == 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs to pin a process to a core")
def test_what_a_neighbour_takes_of_a_core_is_seen() -> None:
    core = max(os.sched_getaffinity(0))
    spin = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", spin]) as neighbour:
        try:
            time.sleep(0.5)
            beside = stolen([core], 1.0)
        finally:
            neighbour.kill()
    assert beside.disturbed and beside.share > 0.1 and beside.longest_s > 1e-3
    with pytest.raises(RuntimeError, match="core 100000 ended"):
        stolen([100_000], 0.1)


def limits(**changes: object) -> Limits:
    values: dict[str, object] = {"events_hz": 50_000.0, "requests_hz": 800.0, "ttft_error_p99_s": 2e-4,
                                 "python": "3.11", "machine": machine_name(), "measured_unix_s": 0.0}  # fmt: skip
    return Limits(**{**values, **changes})  # type: ignore[arg-type]


def test_limits_are_kept_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert load_limits() is None
    path = save_limits(limits())
    assert path == tmp_path / "qmeter" / "client_limits.json"
    assert load_limits() == limits()
    save_limits(limits(machine="another"))
    assert load_limits() is None
    for broken in ("", "{}", "[]", '{"format": 99}', '{"format": 1, "what": 2}'):
        path.write_text(broken)
        assert load_limits() is None


def test_limits_that_cannot_be_kept_say_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(LoadError, match="cannot write"):
        save_limits(limits())


def test_a_schedule_beyond_the_limits_is_warned_of() -> None:
    gentle = calibration.schedule_of("constant", 100.0, 1.0)
    many_requests = calibration.schedule_of("constant", 1000.0, 1.0, tokens=1)
    many_tokens = calibration.schedule_of("constant", 500.0, 1.0, tokens=1000)
    assert warn_if_beyond(gentle, 1, limits()) is None
    for schedule in (many_requests, many_tokens):
        reason = warn_if_beyond(schedule, 1, limits())
        assert reason is not None and reason.kind == "client_limits" and reason.hint
    closed = Schedule(np.full(5, np.nan), gentle.requests[:5], ("closed", {}), 0.0, 1.0, 1.0, concurrency=5)
    assert warn_if_beyond(closed, 1, limits()) is None


def test_processes_follow_the_demand_and_leave_the_server_a_core() -> None:
    heavy = calibration.schedule_of("constant", 1000.0, 1.0, tokens=150)
    assert processes_for(heavy, limits(), cores=8) == 3
    assert processes_for(heavy, limits(), cores=2) == 1
    assert processes_for(calibration.schedule_of("constant", 10.0, 1.0), limits(), cores=8) == 1


# -- the bars, on a quiet machine of two cores or more -------------------------------------------------------------


TWO_CORES = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs a core each for server and client")
BARE_READS = 2.9
"""The client's CPU time a token event over a bare read's at the same moment: 2.0 to 2.6 in ten runs, on a quiet host
and on one with slow cores; less (1.7) beside a process that spins on its core."""
FULL = 0.62
"""CPU share of the client at 1,000/s from which one stall of 15 ms takes longer to make up than a p99 over 3 s
leaves out: 49 to 63% on a quiet host, 61 to 66% in runs that just held the bars, 70 to 82% on slow cores."""


@pytest.mark.timing
@TWO_CORES
@pytest.mark.parametrize("rate_hz", [200.0, 1000.0])
def test_bars_at_200_and_1000_a_second(rate_hz: float) -> None:
    """Medians as the bars are stated: of three runs, of five where three miss.

    A miss is the client's unless somebody else took the cores, or it filled its own though it works no more an event
    than it should. Two such misses of three fail; else this host cannot say, and the test says that.
    """
    tries: list[str] = []
    ours = 0
    for first in range(0, 15, 5):
        runs: list[calibration.Point] = []
        for count in (3, 5):
            runs += [one_run(rate_hz, seed=first + i) for i in range(len(runs), count)]
            missed = bars_missed(rate_hz, runs)
            if not missed:
                return
        others = stolen([core for cores in calibration.cores_apart() for core in cores[:1]])
        busy, reads = statistics.median(p.cpu_share for p in runs), bare_reads_an_event(runs)
        ours += not (others.disturbed or (rate_hz >= 500 and busy > FULL and reads <= BARE_READS))
        tries.append(f"{'; '.join(missed)} ({others}; the client worked {busy:.0%}, {reads:.1f} bare reads an event)")
        time.sleep(first)
    assert ours < 2, f"missed at {rate_hz:.0f}/s on a host that does not explain it: {'. '.join(tries)}"
    pytest.skip(f"this host was too busy or too slow to measure the client at {rate_hz:.0f}/s: {'. '.join(tries)}")


def bare_reads_an_event(runs: list[calibration.Point]) -> float:
    return statistics.median(p.cpu_share / p.events_hz for p in runs) / statistics.median(
        bare_read_s() for _ in range(3)
    )


@TWO_CORES
def test_the_client_works_little_more_than_a_bare_reader_must() -> None:
    """A guard that slow cores do not blur: both slow down together. A spinning neighbour makes it milder, not stricter
    (the client's idle spinning is counted by the clock). The best of three, since any may be cut."""
    reads = [bare_reads_an_event([one_run(1000.0, seed=100 + i)]) for i in range(3)]
    assert 0.5 < min(reads) <= BARE_READS, reads


def one_run(rate_hz: float, seed: int) -> calibration.Point:
    return calibration.measure(calibration.schedule_of("poisson", rate_hz, 5.0 if rate_hz < 500 else 3.0, seed=seed))


def bars_missed(rate_hz: float, runs: list[calibration.Point]) -> list[str]:
    """What the medians over runs miss of the bars, in words; empty where they hold."""
    most = {"rate": 1e-3, "ttft_mean_s": 0.05e-3, "ttft_p99_s": 0.2e-3, "itl_p99_s": 0.2e-3}
    if rate_hz >= 500:
        most = {"rate": 5e-3, "ttft_p99_s": 0.5e-3}
    seen = {
        name: statistics.median(abs(p.sent_hz / p.rate_hz - 1) if name == "rate" else getattr(p, name) for p in runs)
        for name in most
    }
    missed = [f"{name} {seen[name]:.6f}, at most {most[name]}" for name in most if not seen[name] <= most[name]]
    failed = [p.failures for p in runs if p.failures or p.lost]
    return missed + ([f"runs that are invalid: {failed}"] if 2 * len(failed) > len(runs) else [])


def test_a_median_that_misses_a_bar_is_told() -> None:
    good, late = point(200.0), point(200.0, ttft_p99_s=3e-4)
    assert not bars_missed(200.0, [good, late, good]) and not bars_missed(1000.0, [late] * 3)
    assert "ttft_p99_s" in bars_missed(200.0, [late, late, good])[0]
    assert "rate" in bars_missed(1000.0, [point(1000.0, sent_hz=990.0)] * 3)[0]
    assert "invalid" in bars_missed(1000.0, [point(1000.0, failures=("late",))] * 2 + [good])[0]
    assert bars_missed(200.0, [point(200.0, ttft_mean_s=float("nan"))] * 3)
