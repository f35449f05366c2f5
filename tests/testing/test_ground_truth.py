"""The ground truth tells the truth: both servers, the log, and what calibration makes of it."""

from __future__ import annotations

import json
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qmeter.errors import LoadError
from qmeter.load import Target, drive, warn_if_beyond
from qmeter.load.limits import Limits, load_limits, machine_name, processes_for, save_limits
from qmeter.spec.study import ClientSpec
from qmeter.testing import calibration
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
    limits, points = calibration.calibrate(0.1, lambda _: None)
    assert [round(p.rate_hz) for p in points] == [50, 100, 200, 400, 800, 600, 700]
    assert limits is not None and (limits.requests_hz, limits.events_hz) == (700.0, 700.0 * 64)
    # AND one that holds nothing leaves no limits
    monkeypatch.setattr(calibration, "measure", lambda s: point(50.0, lost=1))
    assert calibration.calibrate(0.1, lambda _: None)[0] is None


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


@pytest.mark.timing
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs a core each for server and client")
def test_bars_at_200_and_1000_a_second() -> None:
    def low(p: calibration.Point) -> bool:
        on_rate = abs(p.sent_hz / p.rate_hz - 1) < 1e-3
        return on_rate and p.ttft_mean_s <= 0.05e-3 and p.ttft_p99_s <= 0.2e-3 and p.itl_p99_s <= 0.2e-3

    def high(p: calibration.Point) -> bool:
        return abs(p.sent_hz / p.rate_hz - 1) < 5e-3 and p.ttft_p99_s <= 0.5e-3 and not p.failures

    assert low(point := _middle(200.0, low)), point
    assert high(point := _middle(1000.0, high)), point


def _middle(rate_hz: float, holds: Callable[[calibration.Point], bool], rounds: int = 3) -> calibration.Point:
    """The median by TTFT error of three runs; of five, as the bars are stated, where three miss one; of fresh ones,
    where a noisy host kept those from it too."""
    seconds = 5.0 if rate_hz < 500 else 3.0
    for first in range(0, 5 * rounds, 5):
        runs: list[calibration.Point] = []
        for count in (3, 5):
            runs += [calibration.measure(calibration.schedule_of("poisson", rate_hz, seconds, seed=first + i))
                     for i in range(len(runs), count)]  # fmt: skip
            middle = sorted(runs, key=lambda p: p.ttft_p99_s)[len(runs) // 2]
            if holds(middle):
                return middle
    return middle
