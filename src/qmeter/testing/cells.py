"""Made-up cells: plausible, seeded tables of a load on a small server model. Nothing here was measured."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from qmeter.record import CellTables, Requests, RequestStatus, SeriesInfo, Steps, Telemetry, Tokens
from qmeter.spec.workload import ClosedArrivals, FixedLength, WorkloadSpec

PROMPT_TOKENS, OUTPUT_TOKENS = 512, 64


@dataclass(frozen=True)
class MadeServer:
    """A server as a few numbers.

    Attributes:
        prefill_s: of one prompt.
        step_s: of a decode step of one sequence; ``load_step_s`` is added for each sequence beside it.
        slots: sequences running at once; others wait.
        noise: log-normal sigma of each step.
        tokens_per_event: tokens each event carries.
        fail_share: share of requests that end with a 503.
        idle_w, busy_w: power with no and with all slots taken; ``gpus`` cards share it (0: no power telemetry).
        refresh_s: how often the energy counter moves.
    """

    prefill_s: float = 0.03
    step_s: float = 0.006
    load_step_s: float = 0.0003
    slots: int = 32
    noise: float = 0.05
    tokens_per_event: int = 1
    fail_share: float = 0.0
    idle_w: float = 120.0
    busy_w: float = 650.0
    gpus: int = 1
    refresh_s: float = 0.1


def made_tables(workload: WorkloadSpec, server: MadeServer | None = None, *, seed: int = 0) -> CellTables:
    """Tables of one cell, as :func:`qmeter.load.drive` and the recorder would leave them (made up, seeded)."""
    server = server or MadeServer()
    rng = np.random.default_rng(seed)
    until_s = workload.warmup + workload.window
    spans, streams = _served(workload, server, rng, until_s)
    horizon_s = until_s + workload.drain
    requests = _requests(workload, server, spans, streams, horizon_s, rng)
    tokens = _tokens(requests, streams, horizon_s, server.tokens_per_event)
    telemetry = _telemetry(spans, streams, server, until_s + 2.0, rng)
    return CellTables(requests, tokens, telemetry, Steps.empty())


def made_series(server: MadeServer) -> tuple[SeriesInfo, ...]:
    """The series that :func:`made_tables` holds, and the gaps that a real host would have."""
    state = [SeriesInfo(name=f"engine.{n}", unit="1", source="made up") for n in ("running", "waiting", "kv_use")]
    power = [
        info
        for g in range(server.gpus)
        for info in (
            SeriesInfo(name=f"gpu{g}.power_w", unit="W", source="made up", rate_hz=20.0),
            SeriesInfo(name=f"gpu{g}.energy_j", unit="J", source="made up", cumulative=True, rate_hz=20.0),
        )
    ]
    gap = "no RAPL: /sys/class/powercap is empty (usual in virtual machines)"
    return (*state, *power, SeriesInfo(name="cpu.energy_j", unit="J", source="RAPL package", cumulative=True, gap=gap))


def _arrivals(workload: WorkloadSpec, rng: np.random.Generator, until_s: float) -> list[float]:
    law = workload.arrivals
    if law.kind == "constant":
        return list(np.arange(0.0, until_s, 1 / law.rate))
    rate = float(getattr(law, "rate", 0.0) or getattr(law, "start", 1.0))
    shape = float(getattr(law, "burstiness", 1.0))
    gaps = rng.gamma(shape, 1 / (shape * rate), size=int(rate * until_s * 2 + 50))
    times = np.cumsum(gaps)
    return list(times[times < until_s])


def _served(
    workload: WorkloadSpec, server: MadeServer, rng: np.random.Generator, until_s: float
) -> tuple[list[tuple[float, float]], list[np.ndarray]]:
    """First come, first served on ``slots``: ``(intended_s, start_s)`` and token times of each request."""
    closed = isinstance(workload.arrivals, ClosedArrivals)
    due = [0.0] * workload.arrivals.concurrency if isinstance(workload.arrivals, ClosedArrivals) else []
    pending = due or _arrivals(workload, rng, until_s)
    free = [0.0] * server.slots
    spans, streams = [], []
    heapq.heapify(pending)
    ends: list[float] = []
    while pending:
        at = heapq.heappop(pending)
        start = max(at, heapq.heappop(free))
        beside = sum(1 for e in ends if e > start)
        tokens = _length(workload, rng)
        step = (server.step_s + server.load_step_s * beside) * rng.lognormal(0, server.noise, size=tokens - 1)
        first = start + server.prefill_s * rng.lognormal(0, server.noise)
        stream = np.concatenate([[first], first + np.cumsum(step)])
        heapq.heappush(free, float(stream[-1]))
        ends = [e for e in ends if e > at] + [float(stream[-1])]
        spans.append((at, start))
        streams.append(stream)
        if closed and stream[-1] < until_s:
            heapq.heappush(pending, float(stream[-1]) + 1e-4)
    return spans, streams


def _length(workload: WorkloadSpec, rng: np.random.Generator) -> int:
    law = workload.output_tokens
    if isinstance(law, FixedLength):
        return law.tokens
    return int(rng.integers(OUTPUT_TOKENS // 2, OUTPUT_TOKENS * 3 // 2))


def _requests(
    workload: WorkloadSpec,
    server: MadeServer,
    spans: list[tuple[float, float]],
    streams: list[np.ndarray],
    horizon_s: float,
    rng: np.random.Generator,
) -> Requests:
    n = len(spans)
    intended = np.array([s[0] for s in spans])
    first = np.array([s[0] for s in streams])
    last = np.array([s[-1] for s in streams])
    lengths = np.array([len(s) for s in streams])
    status = np.where(last <= horizon_s, RequestStatus.OK.value, RequestStatus.CANCELLED.value).astype(object)
    broken = rng.random(n) < server.fail_share
    status[broken] = RequestStatus.HTTP_503.value
    first = np.where(broken | (first > horizon_s), np.nan, first)
    last = np.where(broken, np.nan, np.minimum(last, horizon_s))
    last = np.where(np.isnan(first), np.nan, last)
    prompt = workload.prompt_tokens.tokens if isinstance(workload.prompt_tokens, FixedLength) else PROMPT_TOKENS
    ok = status == RequestStatus.OK.value
    none = np.array([None] * n, dtype=object)
    return Requests(
        intended_s=intended, sent_s=intended + rng.exponential(2e-5, n), first_token_s=first, last_token_s=last,
        end_s=np.where(ok, last, np.where(broken, intended + 0.002, horizon_s)),
        prompt_tokens_asked=np.full(n, prompt), output_tokens_asked=lengths, prompt_tokens=np.where(ok, prompt, -1),
        output_tokens=np.where(ok, lengths, -1), status=status, http_status=np.where(broken, 503, 200),
        finish_reason=np.where(ok, "length", ""), task=none, item=none, text=none, error=none,
    )  # fmt: skip


def _tokens(requests: Requests, streams: list[np.ndarray], horizon_s: float, each: int) -> Tokens:
    rows, times, counts = [], [], []
    for i, stream in enumerate(streams):
        if np.isnan(requests.first_token_s[i]):
            continue
        groups = [stream[:1], *(stream[k : k + each] for k in range(1, len(stream), each))]
        kept = [g for g in groups if g[-1] <= horizon_s]
        rows += [i] * len(kept)
        times += [float(g[-1]) for g in kept]
        counts += [len(g) for g in kept]
    n = len(rows)
    return Tokens(request=rows, t_s=times, n=counts, clock=np.zeros(n), coalesced=np.zeros(n))  # type: ignore[arg-type]


def _telemetry(
    spans: list[tuple[float, float]],
    streams: list[np.ndarray],
    server: MadeServer,
    until_s: float,
    rng: np.random.Generator,
) -> Telemetry:
    t = np.arange(-1.0, until_s, 0.05) + rng.uniform(0, 0.002)
    intended, start = np.array([s[0] for s in spans]), np.array([s[1] for s in spans])
    end = np.array([s[-1] for s in streams])
    running = _open_at(start, end, t)
    waiting = _open_at(intended, start, t)
    series: dict[str, np.ndarray] = {
        "engine.running": running,
        "engine.waiting": waiting,
        "engine.kv_use": np.minimum(1.0, 0.02 + 0.9 * running / server.slots),
    }
    fine = np.arange(-1.2, until_s + 0.1, 0.01)
    load = _open_at(start, end, fine) / server.slots
    power = server.idle_w + (server.busy_w - server.idle_w) * np.sqrt(load)
    energy = np.concatenate([[0.0], np.cumsum(power[:-1]) * 0.01]) + 5e5
    stale = np.floor(t / server.refresh_s) * server.refresh_s
    for g in range(server.gpus):
        series[f"gpu{g}.power_w"] = np.interp(t, fine, power)
        series[f"gpu{g}.energy_j"] = np.interp(stale, fine, energy)
    names = np.repeat(np.array(list(series), dtype=object), len(t))
    return Telemetry(series=names, t_s=np.tile(t, len(series)), value=np.concatenate(list(series.values())))


def _open_at(begin: np.ndarray, end: np.ndarray, t: np.ndarray) -> np.ndarray:
    made: np.ndarray = np.searchsorted(np.sort(begin), t, side="right") - np.searchsorted(np.sort(end), t, side="right")
    return made
