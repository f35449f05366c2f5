"""This host's client against the ground truth: error against rate, and the most it holds."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qmeter.load import Limits, LoadResult, Target, drive
from qmeter.load.limits import machine_name
from qmeter.record import RequestStatus
from qmeter.spec.study import ClientSpec
from qmeter.testing.accuracy import Errors, errors
from qmeter.testing.busy_host import Stolen, stolen
from qmeter.testing.ground_truth import Log, ground_truth
from qmeter.workload.schedule import Schedule, ScheduledRequest

TTFT_S, ITL_S, TOKENS = 0.02, 0.005, 64
"""The truth that every point is measured against."""
TTFT_ERROR_P99_S = 0.5e-3
"""A rate counts as held while the TTFT error's p99 stays below this (and the client's own proof holds)."""
RATE_ERROR = 0.005
MOST_CORES = 8
"""Of the cores that server and client may run on, those that are looked at for what others take."""
AGAIN = 2
"""How often a rate is tried again that was not held while the host was disturbed."""
SERVER_LATE_P99_S = 2e-3
"""Where the ground truth itself runs later than this, the server is the limit, not the client."""


@dataclass(frozen=True)
class Point:
    """One run against the ground truth. Errors in s, the server's lateness cancelled.

    Attributes:
        rate_hz, sent_hz: asked (of this very schedule) and sent.
        send_error_p99_s: how much later than due the requests reached the server.
        ttft_mean_s, ttft_p99_s: error of the TTFT counted from the send; ``ttft_intended_p99_s`` from the
            intended send.
        itl_p99_s: magnitude of the error of the gaps between tokens.
        cpu_share, lateness_p99_s: the client's own words.
        server_late_p99_s, events_hz: the ground truth's own lateness and the events a second it wrote.
        lost: requests that were not answered whole.
        failures: the client's broken thresholds.
        host: what others took of the cores right after a rate that was not held; ``None`` where nobody looked.
    """

    rate_hz: float
    sent_hz: float
    send_error_p99_s: float
    ttft_mean_s: float
    ttft_p99_s: float
    ttft_intended_p99_s: float
    itl_p99_s: float
    cpu_share: float
    lateness_p99_s: float
    server_late_p99_s: float
    events_hz: float
    lost: int
    failures: tuple[str, ...]
    host: Stolen | None = None

    @property
    def held(self) -> bool:
        """Whether the client held this rate."""
        on_rate = abs(self.sent_hz - self.rate_hz) <= RATE_ERROR * self.rate_hz
        return not self.failures and not self.lost and on_rate and self.ttft_p99_s <= TTFT_ERROR_P99_S

    @property
    def disturbed(self) -> bool:
        """Whether it was not held on a host too busy to tell."""
        return self.host is not None and self.host.disturbed

    @property
    def server_bound(self) -> bool:
        """Whether the ground truth, not the client, was at its limit."""
        return self.server_late_p99_s > SERVER_LATE_P99_S


def schedule_of(law: str, rate_hz: float, seconds: float, tokens: int = TOKENS, seed: int = 0) -> Schedule:
    """A schedule of equal requests under one of the laws ``constant``, ``poisson``, ``gamma`` (burstiness 0.5)."""
    rng = np.random.default_rng(seed)
    n = max(2, round(rate_hz * seconds))
    draws: dict[str, Callable[[], NDArray[np.float64]]] = {
        "constant": lambda: np.full(n, 1 / rate_hz),
        "poisson": lambda: rng.exponential(1 / rate_hz, n),
        "gamma": lambda: rng.gamma(0.5, 2 / rate_hz, n),
    }
    gaps = draws[law]()
    send_s = np.cumsum(gaps) - gaps[0]
    values = {"rate_hz": rate_hz} | ({"burstiness": 0.5} if law == "gamma" else {})
    request = ScheduledRequest("hello " * 32, 32, tokens)
    return Schedule(send_s, (request,) * n, (law, values), 0.0, float(send_s[-1]) + 1e-3, 10.0)


def cores_apart() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A core for the server and the rest for the client; two empty tuples (no pinning) on one core."""
    cores = sorted(os.sched_getaffinity(0))
    return ((cores[0],), tuple(cores[1:])) if len(cores) > 1 else ((), ())


def measure(schedule: Schedule, processes: int = 1) -> Point:
    """Drive a schedule against a ground truth started for it, server and client on cores apart."""
    server_cores, client_cores = cores_apart()
    with ground_truth(TTFT_S, ITL_S, cores=server_cores) as truth:
        origin_s = time.monotonic()
        client = ClientSpec(processes=processes, cores=client_cores)
        result = drive(schedule, Target(truth.base_url, "truth"), origin_monotonic_s=origin_s, client=client)
        log = truth.log()
    return point_of(result, log, errors(result, log, origin_monotonic_s=origin_s))


def point_of(result: LoadResult, log: Log, wrong: Errors) -> Point:
    """Sum a run up."""
    intended = result.requests.intended_s
    sent = np.sort(log.received_ns) / 1e9
    n = len(intended)
    return Point(
        rate_hz=(n - 1) / float(intended[-1] - intended[0]),
        sent_hz=(len(sent) - 1) / float(sent[-1] - sent[0]),
        send_error_p99_s=_p99(wrong.send_s),
        ttft_mean_s=float(wrong.ttft_s.mean()) if len(wrong.ttft_s) else math.nan,
        ttft_p99_s=_p99(wrong.ttft_s),
        ttft_intended_p99_s=_p99(wrong.ttft_intended_s),
        itl_p99_s=_p99(np.abs(wrong.itl_s)),
        cpu_share=result.proof.checks["cpu_share"].value or math.nan,
        lateness_p99_s=result.proof.checks["send_lateness_p99"].value or math.nan,
        server_late_p99_s=_p99(log.lateness_s()),
        events_hz=log.events_hz(),
        lost=int((result.requests.status != RequestStatus.OK).sum()),
        failures=tuple(f.message for f in result.proof.failures),
    )


def _p99(values: np.ndarray) -> float:
    return float(np.percentile(values, 99)) if len(values) else math.nan


def _with_host(point: Point) -> Point:
    """The point; where it was not held, with a look at what others take of the cores at this moment."""
    server_cores, client_cores = cores_apart()
    cores = (*server_cores, *client_cores)[:MOST_CORES]
    return replace(point, host=stolen(cores)) if cores and not point.held else point


def _judged(rate_hz: float, seconds: float) -> Generator[Point, None, Point]:
    """Yield a rate's point, and again where a disturbed host kept it from being held; returns the last."""
    for _ in range(1 + AGAIN):
        point = _with_host(measure(schedule_of("poisson", rate_hz, seconds)))
        yield point
        if point.held or not point.disturbed:
            break
    return point


def climb(seconds: float = 3.0, start_hz: float = 50.0, most_hz: float = 3200.0) -> Iterator[Point]:
    """Points at doubling rates until one is not held, then two between the last held and that one.

    A rate missed on a disturbed host is tried again, so a rate may have several points.
    """
    low, high = 0.0, start_hz
    while high <= most_hz:
        point = yield from _judged(high, seconds)
        if not point.held:
            break
        low, high = high, high * 2
    else:
        return
    for _ in range(2):
        middle = (low + high) / 2
        if low == 0.0:
            return
        point = yield from _judged(middle, seconds)
        low, high = (middle, high) if point.held else (low, middle)


def limits_of(points: list[Point]) -> Limits | None:
    """The most that was held, as :func:`qmeter.load.limits.save_limits` keeps it; ``None`` if nothing was."""
    held = [p for p in points if p.held]
    if not held:
        return None
    best = max(held, key=lambda p: p.rate_hz)
    return Limits(
        events_hz=best.rate_hz * TOKENS,
        requests_hz=best.rate_hz,
        ttft_error_p99_s=best.ttft_p99_s,
        python=platform.python_version(),
        machine=machine_name(),
        measured_unix_s=time.time(),
    )


def calibrate(seconds: float, on_point: Callable[[Point], None]) -> tuple[Limits | None, list[Point]]:
    """Climb, telling each point; returns the limits found and every point."""
    points: list[Point] = []
    for point in climb(seconds):
        points.append(point)
        on_point(point)
    return limits_of(points), points
