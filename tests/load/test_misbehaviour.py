"""Each way a server can fail is counted under its own name; nothing hangs; the requests around it come to no harm."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest

from qmeter.load import LoadResult, Target, drive
from qmeter.record import RequestStatus
from qmeter.spec.study import ClientSpec
from qmeter.testing.misbehaving import BEHAVIOURS, misbehaving
from qmeter.workload.schedule import Schedule, ScheduledRequest

EXPECTED = {
    "ok": RequestStatus.OK,
    "keep_alives": RequestStatus.OK,
    "byte_by_byte": RequestStatus.OK,
    "whole_answer": RequestStatus.OK,
    "until_close": RequestStatus.OK,
    "reset": RequestStatus.RESET,
    "reset_at_once": RequestStatus.RESET,
    "early_close": RequestStatus.EARLY_CLOSE,
    "close_at_once": RequestStatus.EARLY_CLOSE,
    "no_end": RequestStatus.EARLY_CLOSE,
    "stall": RequestStatus.STALL,
    "silence": RequestStatus.TIMEOUT,
    "slow_loris_head": RequestStatus.TIMEOUT,
    "slow_loris_body": RequestStatus.TIMEOUT,
    "garbage": RequestStatus.GARBAGE,
    "garbage_chunks": RequestStatus.GARBAGE,
    "garbage_json": RequestStatus.GARBAGE,
    "html": RequestStatus.GARBAGE,
    "redirect": RequestStatus.GARBAGE,
    "error_event": RequestStatus.ERROR_EVENT,
    "error_event_named": RequestStatus.ERROR_EVENT,
    "http_400": RequestStatus.HTTP_4XX,
    "http_429": RequestStatus.HTTP_429,
    "http_500": RequestStatus.HTTP_5XX,
    "http_503": RequestStatus.HTTP_503,
}


def open_loop(prompts: list[str], rate_hz: float = 200.0, tokens: int = 8) -> Schedule:
    requests = tuple(ScheduledRequest(p, 3, tokens) for p in prompts)
    send_s = np.arange(len(prompts)) / rate_hz
    law = ("constant", {"rate_hz": rate_hz})
    return Schedule(send_s, requests, law, warmup_s=0.0, window_s=len(prompts) / rate_hz, drain_s=10.0)


def run(schedule: Schedule, base_url: str, **target: object) -> LoadResult:
    where = Target(base_url, "m", **{"stall_s": 0.4, "timeout_s": 1.2, **target})  # type: ignore[arg-type]
    return drive(schedule, where, origin_monotonic_s=time.monotonic(), client=ClientSpec(processes=1))


def test_every_behaviour_has_an_expectation() -> None:
    assert set(EXPECTED) == set(BEHAVIOURS)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_each_misbehaviour_is_counted_under_its_own_name(path: str) -> None:
    # GIVEN a run in which every behaviour comes four times, mixed with as many good requests
    names = [n for name in BEHAVIOURS for n in (name, "ok")] * 4
    with misbehaving() as server:
        begun = time.monotonic()
        # WHEN it is driven
        result = run(open_loop([f"{n} please" for n in names]), server.base_url, path=path)
        took_s = time.monotonic() - begun
    # THEN each request has its name, the good ones are whole, and nothing took longer than its timeout allows
    by_name: dict[str, Counter[str]] = {}
    for name, status in zip(names, result.requests.status, strict=True):
        by_name.setdefault(name, Counter())[status.value] += 1
    assert {n: set(c) for n, c in by_name.items()} == {n: {s.value} for n, s in EXPECTED.items()}
    counts = np.bincount(result.tokens.request, weights=result.tokens.n, minlength=len(names))
    good = np.asarray([EXPECTED[n] is RequestStatus.OK for n in names])
    assert (counts[good] == 8).all()
    lasted = result.requests.end_s - result.requests.sent_s
    assert np.nanmax(lasted) < 1.2 + 1.0
    assert took_s < 10
    assert all(
        (e is None) == (s is RequestStatus.OK)
        for e, s in zip(result.requests.error, result.requests.status, strict=True)
    )


def test_errors_say_what_the_server_said() -> None:
    names = ["http_429", "http_503", "error_event", "html", "redirect"]
    with misbehaving() as server:
        result = run(open_loop(names), server.base_url)
    errors = list(result.requests.error)
    assert errors[0] == "HTTP 429, Retry-After: 1: no, thank you"
    assert errors[1] == "HTTP 503, Retry-After: 7: no, thank you"
    assert "CUDA out of memory" in errors[2]
    assert "not an event stream" in errors[3]
    assert errors[4] == "HTTP 302"
    assert list(result.requests.http_status) == [429, 503, 200, 200, 302]


def test_tokens_before_a_failure_are_kept() -> None:
    with misbehaving() as server:
        result = run(open_loop(["reset", "stall", "early_close"]), server.base_url)
    assert list(np.bincount(result.tokens.request, minlength=3)) == [3, 3, 3]
    assert np.isfinite(result.requests.first_token_s).all()


def test_a_server_that_is_not_there_is_no_crash() -> None:
    # GIVEN a port on which nobody listens
    result = run(open_loop(["ok"] * 5), "http://127.0.0.1:9")
    assert set(result.requests.status) == {RequestStatus.CONNECT}
    assert np.isnan(result.requests.sent_s).all()
    assert set(result.requests.error) == {"ECONNREFUSED"}
    # AND the client is not blamed for it
    assert result.proof.failures == ()


def test_a_closed_loop_does_not_hammer_a_server_that_refuses() -> None:
    requests = tuple(ScheduledRequest("http_503", 1, 4) for _ in range(5000))
    schedule = Schedule(np.full(5000, np.nan), requests, ("closed", {"concurrency": 4}), 0.0, 1.0, 1.0, concurrency=4)
    with misbehaving() as server:
        result = run(schedule, server.base_url)
    # Retry-After says 7 s: longer than the window, cut to 5 s
    assert server.seen["http_503"] == 4
    assert Counter(s.value for s in result.requests.status) == {"http_503": 4, "unsent": 4996}


def test_connections_are_used_again_and_survive_a_server_that_closes_idle_ones() -> None:
    with misbehaving() as server:
        result = run(open_loop(["ok"] * 40, rate_hz=40.0, tokens=2), server.base_url, open_ahead=1)
        reused = server.connections
        closing = run(open_loop(["ok"] * 10), server.base_url, keep_alive=False, open_ahead=0)
    assert set(result.requests.status) == {RequestStatus.OK} == set(closing.requests.status)
    assert reused < 10
    assert server.connections - reused == 10
