"""The pure half of ``bench_serve.py``: the arrivals that ``vllm bench serve`` draws, runs paired request by request,
where a difference comes from, and the table. No network, no vLLM.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmeter.analysis.stats import Counts, block_length, resampled, spread, widening

F64 = NDArray[np.float64]

TEXT, BENCH, IDS = "text", "bench", "ids"
CLIENTS = (TEXT, BENCH, IDS)
"""A: qMeter with text prompts; B: ``vllm bench serve`` with the same text; C: qMeter with the same prompts as ids."""
TPOT_BAR, TTFT_BAR = 0.02, 0.05
RESAMPLES = 2000


def bench_offsets(count: int, rate_hz: float, seed: int) -> F64:
    """When ``vllm bench serve`` (0.25.1) sends ``count`` requests, from its start. Units: s.

    It seeds numpy's global generator with ``--seed``, draws one exponential gap a request (gamma, shape 1), sums them,
    and stretches the sums so that the last request falls on count / rate. Source: vllm/benchmarks/serve.py,
    ``main_async`` and ``get_request``.
    """
    generator = np.random.RandomState(seed)
    at = np.cumsum([generator.gamma(shape=1.0, scale=1.0 / rate_hz) for _ in range(count)])
    return np.asarray(at * (count / rate_hz / at[-1]))


def lateness(start_s: F64, offset_s: F64) -> F64:
    """How much later than its schedule each request was sent, against the least late one. Units: s, all >= 0."""
    late = np.asarray(start_s) - np.asarray(offset_s)
    return np.asarray(late - np.nanmin(late))


@dataclass
class Run:
    """One client's run of one load. Times in s; NaN where a request failed; arrays are in schedule order.

    Attributes:
        server: what was asked ("bf16", "ground truth", …).
        ttft_s: from the actual send (as bench counts); ``ttft_intended_s`` from the intended one (bench: the same).
        late_s: sent so much later than due; qMeter's absolute, bench's against its least late request.
        engine: server-side means over the run, from its own metrics: ``ttft_s``, ``queue_s``, ``prefill_s``.
        truth_ttft_s: on the ground truth, when it really wrote the first token after receipt.
        to_server_s: on the ground truth, from the client's send stamp to the server's receive stamp.
        wire_ttft_s: from the request's last segment to the first token's, by the loopback interface's kernel stamps;
            ``wire_before_s`` from the client's send stamp to that last segment; ``tap``: its counts, or why not.
        proof: qMeter's broken thresholds.
    """

    server: str
    rate_hz: float
    round: int
    client: str
    seed: int
    ttft_s: F64
    ttft_intended_s: F64
    tpot_s: F64
    late_s: F64
    prompt_tokens: list[int]
    output_tokens: list[int]
    failed: int
    engine: dict[str, float] = field(default_factory=dict)
    truth_ttft_s: F64 | None = None
    to_server_s: F64 | None = None
    wire_ttft_s: F64 | None = None
    wire_before_s: F64 | None = None
    tap: str | dict[str, int] = ""
    proof: list[str] = field(default_factory=list)
    checks: dict[str, float | None] = field(default_factory=dict)
    reported: dict[str, float] = field(default_factory=dict)
    wall_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, NaN as null, times to the microsecond."""
        return {name: _plain(value) for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Run:
        """What :meth:`as_json` wrote."""
        arrays = {"ttft_s", "ttft_intended_s", "tpot_s", "late_s", "truth_ttft_s", "to_server_s", "wire_ttft_s",
                  "wire_before_s"}  # fmt: skip
        return cls(**{k: _array(v) if k in arrays and v is not None else v for k, v in data.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [None if math.isnan(v) else round(float(v), 7) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _array(values: Iterable[float | None]) -> F64:
    return np.asarray([math.nan if v is None else v for v in values], np.float64)


@dataclass(frozen=True)
class Paired:
    """Means of both sides over the same requests, their difference (first − second) with its 95% interval, and the
    relative difference with its own. Units: s, but the relative ones.
    """

    first: float
    second: float
    value: float
    low: float
    high: float
    relative: float
    relative_low: float
    relative_high: float
    n: int

    def as_json(self) -> dict[str, float]:
        """Plain JSON."""
        return dict(vars(self))


def paired(pairs: Sequence[tuple[F64, F64]], least: int = 1, seed: int = 0) -> Paired | None:
    """Both sides of one or several rounds, request by request; ``None`` where fewer than two pairs are whole.

    Intervals come from a block bootstrap over requests, since requests that ran together share their luck; ``least``
    is how many follow one another before they are taken as independent.
    """
    both = [np.column_stack(p) for p in pairs]
    rows = np.concatenate(both) if both else np.empty((0, 2))
    rows = rows[np.isfinite(rows).all(axis=1)]
    if len(rows) < 2:
        return None
    a, b = rows[:, 0], rows[:, 1]
    block = block_length(a - b, least)

    def draws(counts: Counts) -> F64:
        sums = np.column_stack([counts @ a, counts @ b]) / len(a)
        return np.column_stack([sums[:, 0] - sums[:, 1], sums[:, 0] / sums[:, 1] - 1])

    made = resampled(len(a), block, np.random.default_rng(seed), draws, RESAMPLES)
    widen = widening(len(a), block, 0.95)
    value, relative = float(a.mean() - b.mean()), float(a.mean() / b.mean() - 1)
    low, high = spread(made[:, 0], 0.95, value, widen)
    rlow, rhigh = spread(made[:, 1], 0.95, relative, widen)
    return Paired(float(a.mean()), float(b.mean()), value, low, high, relative, rlow, rhigh, len(a))


def compare(runs: Sequence[Run], client: str, other: str, name: str) -> Paired | None:
    """One quantity (``ttft_s``, ``ttft_intended_s``, ``tpot_s``) of two clients over the rounds that both ran."""
    both = [(getattr(a, _column(a, name)), getattr(b, _column(b, name))) for a, b in rounds(runs, client, other)]
    pairs = [(a, b) for a, b in both if a is not None and b is not None]
    return paired(pairs, least=max(1, round(runs[0].rate_hz))) if pairs else None


def _column(run: Run, name: str) -> str:
    return "ttft_s" if run.client == BENCH and name == "ttft_intended_s" else name


def rounds(runs: Sequence[Run], client: str, other: str) -> list[tuple[Run, Run]]:
    """The runs of both clients, by round, of the same arrivals."""
    by = {(r.client, r.round): r for r in runs}
    found = [(by[client, k], by[other, k]) for c, k in sorted(by) if c == client and (other, k) in by]
    return [(a, b) for a, b in found if a.seed == b.seed and len(a.ttft_s) == len(b.ttft_s)]


def between_rounds(runs: Sequence[Run], client: str, name: str) -> list[float]:
    """Differences in the mean between rounds of one client with the same arrivals: what is noise. Units: s."""
    mine = sorted((r for r in runs if r.client == client), key=lambda r: r.round)
    same = [(a, b) for a, b in itertools.pairwise(mine) if a.seed == b.seed]
    return [float(np.nanmean(getattr(b, name)) - np.nanmean(getattr(a, name))) for a, b in same]


def groups(runs: Iterable[Run]) -> dict[tuple[str, float], list[Run]]:
    """Runs by (server, rate)."""
    out: dict[tuple[str, float], list[Run]] = {}
    for run in runs:
        out.setdefault((run.server, run.rate_hz), []).append(run)
    return out


@dataclass(frozen=True)
class Split:
    """Where the TTFT difference (qMeter, text, from the intended send, minus bench) comes from. Units: s, means.

    ``sending``: intended against actual send, ours. ``engine``: queue and prefill by the engine's own clock.
    ``front``: the server's text handling and hops between its processes. ``outside``: all that the server does not see
    (HTTP, loopback, the clients). ``clients``: what the two clients differ by against the wire's stamps in these very
    runs, else against the ground truth; part of ``outside``. ``rest``: ``outside`` minus ``clients``. ``None`` where
    something was not measured.
    """

    total: float
    sending: float
    engine: float | None
    front: float | None
    outside: float | None
    clients: float | None
    rest: float | None

    def as_json(self) -> dict[str, float | None]:
        """Plain JSON."""
        return dict(vars(self))


def split(runs: Sequence[Run], clients_s: float | None, client: str = TEXT) -> Split | None:
    """The split of one (server, rate), over the rounds that both ran; ``clients_s`` stands in where there is no tap."""
    same = rounds(runs, client, BENCH)
    if not same:
        return None
    if (wire_s := _wire_difference(same)) is not None:
        clients_s = wire_s

    def mean(of: Iterable[float]) -> float:
        return float(np.mean(list(of)))

    total = mean(np.nanmean(a.ttft_intended_s) - np.nanmean(b.ttft_s) for a, b in same)
    sending = mean(np.nanmean(a.ttft_intended_s) - np.nanmean(a.ttft_s) for a, _ in same)
    if not all({"ttft_s", "queue_s", "prefill_s"} <= r.engine.keys() for pair in same for r in pair):
        return Split(total, sending, None, None, None, clients_s, None)
    inside = mean(a.engine["ttft_s"] - b.engine["ttft_s"] for a, b in same)
    engine = mean(sum(s * r.engine[k] for s, r in ((1, a), (-1, b)) for k in ("queue_s", "prefill_s")) for a, b in same)
    outside = total - sending - inside
    rest = None if clients_s is None else outside - clients_s
    return Split(total, sending, engine, inside - engine, outside, clients_s, rest)


def tpot_split(runs: Sequence[Run]) -> dict[str, float] | None:
    """The TPOT difference (qMeter, text, minus bench), and how much of it the engine's own histogram shows.

    The rest is the clients'. Units: s, means over the rounds that both ran; ``None`` where the engine did not tell.
    """
    same = rounds(runs, TEXT, BENCH)
    if not same or not all("tpot_s" in r.engine for pair in same for r in pair):
        return None
    total = float(np.mean([np.nanmean(a.tpot_s) - np.nanmean(b.tpot_s) for a, b in same]))
    engine = float(np.mean([a.engine["tpot_s"] - b.engine["tpot_s"] for a, b in same]))
    return {"total": total, "engine": engine, "clients": total - engine}


def _wire_difference(same: Sequence[tuple[Run, Run]]) -> float | None:
    """Mean over rounds of (first client's TTFT − the wire's) − (second's); ``None`` where a run had no tap."""
    each = [[wire_error([r]) for r in pair] for pair in same]
    known = [a - b for a, b in each if a is not None and b is not None]
    return float(np.mean(known)) if known and len(known) == len(each) else None


def wire_error(runs: Sequence[Run]) -> float | None:
    """Mean of (client's TTFT from its send − the wire's) over runs with a tap. Units: s."""
    errors = [r.ttft_s - r.wire_ttft_s for r in runs if r.wire_ttft_s is not None and np.isfinite(r.wire_ttft_s).any()]
    return float(np.nanmean(np.concatenate(errors))) if errors else None


def client_error(runs: Sequence[Run], client: str) -> float | None:
    """Mean of (client's TTFT from its send − the truth) over its ground-truth runs. Units: s."""
    errors = [r.ttft_s - r.truth_ttft_s for r in runs if r.client == client and r.truth_ttft_s is not None]
    return float(np.nanmean(np.concatenate(errors))) if errors else None


def faults(runs: Sequence[Run]) -> list[str]:
    """What makes a comparison worth less: counts that differ, requests that failed, sends off the schedule."""
    out = []
    for key, mine in groups(runs).items():
        for what in ("prompt", "output"):
            counts = {r.client: sorted(set(getattr(r, f"{what}_tokens"))) for r in mine}
            if len({tuple(c) for c in counts.values()}) > 1:
                told = ", ".join(f"{c} {n[0]} to {n[-1]}" for c, n in counts.items() if n)
                out.append(f"{key[0]}, {key[1]:g}/s: {what} tokens differ between clients: {told}")
    for run in runs:
        where = f"{run.server}, {run.rate_hz:g}/s, round {run.round}, {run.client}"
        out += [f"{where}: {run.failed} requests failed"] if run.failed else []
        out += [f"{where}: {text}" for text in run.proof]
        if isinstance(run.tap, dict) and run.tap["dropped"]:
            out.append(f"{where}: the tap lost {run.tap['dropped']} packets")
        mean_ms = run.reported.get("mean_ttft_ms")
        if mean_ms is not None and abs(mean_ms - float(np.nanmean(run.ttft_s)) * 1e3) > 0.01:
            out.append(
                f"{where}: bench reports a mean TTFT of {mean_ms:.3f} ms, its requests {run.ttft_s.mean() * 1e3:.3f}"
            )
    return out


def summary(runs: Sequence[Run], truth: str) -> dict[str, Any]:
    """Everything the table shows, as plain JSON. ``truth``: the ground truth's name among the servers."""
    errors = {rate: mine for (server, rate), mine in groups(runs).items() if server == truth}
    out: list[dict[str, Any]] = []
    for (server, rate), mine in groups(r for r in runs if r.server != truth).items():
        ours, theirs = (client_error(errors.get(rate, []), c) for c in (TEXT, BENCH))
        clients_s = ours - theirs if ours is not None and theirs is not None else None
        found = {
            "tpot": compare(mine, TEXT, BENCH, "tpot_s"),
            "ttft": compare(mine, TEXT, BENCH, "ttft_intended_s"),
            "ttft_from_send": compare(mine, TEXT, BENCH, "ttft_s"),
            "ttft_on_the_wire": compare(mine, TEXT, BENCH, "wire_ttft_s"),
            "ttft_ids_against_bench": compare(mine, IDS, BENCH, "ttft_intended_s"),
            "tpot_ids_against_bench": compare(mine, IDS, BENCH, "tpot_s"),
            "ttft_text_against_ids": compare(mine, TEXT, IDS, "ttft_intended_s"),
            "tpot_text_against_ids": compare(mine, TEXT, IDS, "tpot_s"),
        }
        parted, parted_ids = split(mine, clients_s), split(mine, clients_s, IDS)
        out.append({
            "server": server, "rate_hz": rate,
            **{k: v.as_json() if v else None for k, v in found.items()},
            "tpot_split": tpot_split(mine),
            "split": parted.as_json() if parted else None, "split_ids": parted_ids.as_json() if parted_ids else None,
            "by_round": [
                {"round": a.round, "ttft_s": float(np.nanmean(a.ttft_intended_s) - np.nanmean(b.ttft_s)),
                 "tpot_s": float(np.nanmean(a.tpot_s) - np.nanmean(b.tpot_s))} for a, b in rounds(mine, TEXT, BENCH)
            ],
            "noise_ttft_s": {c: between_rounds(mine, c, "ttft_s") for c in CLIENTS},
            "noise_tpot_s": {c: between_rounds(mine, c, "tpot_s") for c in CLIENTS},
        })  # fmt: skip
    wires = [
        {"server": server, "rate_hz": rate, "client": c, "ttft_error_s": wire_error(own),
         **_sides([(r.wire_before_s, r.ttft_s - r.wire_ttft_s) for r in own
                   if r.wire_before_s is not None and r.wire_ttft_s is not None])}
        for (server, rate), mine in groups(runs).items()
        for c in CLIENTS if (own := [r for r in mine if r.client == c])
    ]  # fmt: skip
    truths = [
        {"rate_hz": rate, "client": c, "ttft_error_s": client_error(own, c),
         **_sides([(r.to_server_s, r.ttft_s - r.truth_ttft_s) for r in own
                   if r.to_server_s is not None and r.truth_ttft_s is not None])}
        for rate, mine in errors.items() for c in CLIENTS if (own := [r for r in mine if r.client == c])
    ]  # fmt: skip
    late = [
        {"server": r.server, "rate_hz": r.rate_hz, "round": r.round, "client": r.client,
         "mean_s": float(np.nanmean(r.late_s)), "largest_s": float(np.nanmax(r.late_s))} for r in runs
    ]  # fmt: skip
    return {"comparisons": out, "wire": wires, "ground_truth": truths, "lateness": late, "faults": faults(runs)}


def _sides(errors: Sequence[tuple[F64, F64]]) -> dict[str, float | None]:
    """Of a client's error: before the server had the whole request, and after the token was there. Units: s."""
    if not errors:
        return {"before_s": None, "after_s": None}
    before, after = (np.concatenate(side) for side in zip(*((b, whole - b) for b, whole in errors), strict=True))
    return {"before_s": float(np.nanmean(before)), "after_s": float(np.nanmean(after))}


def table(found: Mapping[str, Any]) -> str:
    """The summary for people: milliseconds, first minus second, 95% intervals in brackets."""
    lines = []
    for row in found["comparisons"]:
        lines.append(f"== {row['server']}, {row['rate_hz']:g} requests/s")
        for key, title, bar in (
            ("tpot", "TPOT: qMeter text, bench", TPOT_BAR), ("ttft", "TTFT: qMeter text, bench", TTFT_BAR),
            ("ttft_from_send", "  the same from the actual send", None),
            ("ttft_on_the_wire", "  the same on the wire", None),
            ("tpot_ids_against_bench", "TPOT: qMeter ids, bench", TPOT_BAR),
            ("ttft_ids_against_bench", "TTFT: qMeter ids, bench", TTFT_BAR),
            ("ttft_text_against_ids", "TTFT: qMeter text, ids", None),
        ):  # fmt: skip
            lines.append(_line(title, row[key], bar))
        for key, title in (
            ("tpot_split", "TPOT split, text"),
            ("split", "TTFT split, text"),
            ("split_ids", "TTFT split, ids"),
        ):
            if parts := row[key]:
                told = ", ".join(f"{n} {_ms(v)}" for n, v in parts.items())
                lines.append(f"  {title} - bench (ms): {told}")
        each = "; ".join(f"#{r['round']} TTFT {_ms(r['ttft_s'])}, TPOT {_ms(r['tpot_s'])}" for r in row["by_round"])
        lines.append(f"  text - bench by round (ms): {each or 'none'}")
        noise = "; ".join(f"{c} {' '.join(_ms(v) for v in row['noise_ttft_s'][c]) or '-'}" for c in CLIENTS)
        lines.append(f"  same arrivals, same client, next round - this one, mean TTFT (ms): {noise}")
        noise = "; ".join(f"{c} {' '.join(_ms(v) for v in row['noise_tpot_s'][c]) or '-'}" for c in CLIENTS)
        lines.append(f"  the same, mean TPOT (ms): {noise}")
    lines.append("== TTFT minus the wire's (the loopback's kernel stamps), mean (ms): before the request was there, "
                 "after the token was")  # fmt: skip
    for row in found["wire"]:
        lines.append(f"  {row['server']} {row['rate_hz']:g}/s {row['client']:<6}{_ms(row['ttft_error_s'])}: "
                     f"{_ms(row['before_s'])}, {_ms(row['after_s'])}")  # fmt: skip
    if found["ground_truth"]:
        lines.append("== ground truth: mean TTFT error of each client (ms): before the server had it, after it wrote")
    for row in found["ground_truth"]:
        lines.append(f"  {row['rate_hz']:g}/s {row['client']:<6}{_ms(row['ttft_error_s'])}: "
                     f"{_ms(row['before_s'])}, {_ms(row['after_s'])}")  # fmt: skip
    lines.append("== sends against the schedule, mean and largest lateness (ms)")
    for row in found["lateness"]:
        lines.append(f"  {row['server']} {row['rate_hz']:g}/s #{row['round']} {row['client']:<6}"
                     f"{row['mean_s'] * 1e3:.3f}, {row['largest_s'] * 1e3:.3f}")  # fmt: skip
    lines += [f"! {text}" for text in found["faults"]] or ["no faults"]
    return "\n".join(lines)


def _line(title: str, value: Mapping[str, float] | None, bar: float | None) -> str:
    if value is None:
        return f"  {title:<33} not measured"
    text = (
        f"  {title:<33} {value['first'] * 1e3:.3f}, {value['second'] * 1e3:.3f}: {value['value'] * 1e3:+.3f} "
        f"[{value['low'] * 1e3:+.3f}, {value['high'] * 1e3:+.3f}] ms, {value['relative']:+.2%} "
        f"[{value['relative_low']:+.2%}, {value['relative_high']:+.2%}], n={value['n']:.0f}"
    )
    if bar is None:
        return text
    return f"{text}  {'within' if abs(value['relative']) <= bar else 'NOT within'} {bar:.0%}"


def _ms(value: float | None) -> str:
    return "unknown" if value is None else f"{value * 1e3:+.3f}"
