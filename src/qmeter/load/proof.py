"""The client's own proof: what it measures of itself in every run, and the thresholds that make a run invalid.

Only the client is judged. A slow or failing server delays tokens and connections, never the moment at which the loop
turns to a request (``dispatched``), so no threshold below can be broken by the server.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qmeter.load.arrivals import FEWEST_GAPS, LAWS, dispersion, ks_p_value
from qmeter.record import ClientProof, Quantity, Reason

F64 = NDArray[np.float64]

LATENESS_SHARE, LATENESS_LEAST_S, LATENESS_MOST_S = 0.05, 2e-3, 20e-3
"""Sends may be late at p99 by this share of the run's median TTFT, at least and at most so much: lateness counts into
the latencies, so it is judged by what it distorts."""
RATE_ERROR = 0.01
"""Largest relative difference between the schedule's rate and the rate sent."""
RATE_SLACK_S = 2e-3
"""The rate may be off by this much time over the whole span (a few requests cannot show 1%)."""
KS_P = 1e-3
"""Sends whose gaps fit the asked law worse than this, while the schedule itself fits it: the client bent them."""
SCHEDULE_KS_P = 1e-9
"""A schedule that fits its own law worse than this was drawn wrongly."""
LAG_P99_S = 5e-3
"""Reads later than this at p99 make user-space stamps worthless (kernel stamps do not mind)."""
KERNEL_SHARE = 0.99
"""With fewer kernel stamps than this the read lag is judged."""
DOUBT_SHARE, DOUBT_LEAST_S = 0.1, 2e-3
"""Token events may have come this share of the run's median gap before their stamps at p99, at least so much."""
CPU_SHARE = 0.95
"""Work (without idle spinning) of the busiest process: beyond it the loop runs behind without knowing."""


@dataclass(frozen=True)
class Observed:
    """What one run showed, all processes merged. Times in s from the load's start.

    Attributes:
        intended_s, dispatched_s: of the requests that were dispatched: when due, and when the loop turned to them.
        law: what the arrivals claim to be; ``open_loop`` whether there was a schedule of times.
        ttft_p50_s: median TTFT from the intended send, ``None`` if no token arrived.
        lag_s: how late reads were: after their kernel stamp where there is one (``lag_source`` "kernel"), else how long
            the loop was away from its sockets ("loop").
        reads, kernel_reads: reads in all, and those with a kernel stamp.
        token_events, coalesced: token events, and those read together with later ones.
        doubt_s: of each token event, how much earlier than its stamp it may have come: since it shares the stamp with
            later ones, or the stamp is the loop's own. ``first_events``: which of them are a request's first.
        gap_p50_s: median time between token events of a request that were not read together, ``None`` without any.
        cpu_share: CPU time of the busiest process without idle spinning, over the run's length.
        client_faults: errno name → how often the client's host refused a socket.
        exhausted: the closed loop ran out of requests before its window ended.
        retried: requests sent again since the server had closed an idle connection.
    """

    intended_s: F64
    dispatched_s: F64
    law: tuple[str, dict[str, float]]
    open_loop: bool
    ttft_p50_s: float | None
    lag_s: F64
    lag_source: str
    reads: int
    kernel_reads: int
    token_events: int
    coalesced: int
    doubt_s: F64
    first_events: NDArray[np.int64]
    gap_p50_s: float | None
    cpu_share: float
    client_faults: dict[str, int]
    exhausted: bool
    retried: int
    processes: int


Checks = dict[str, Quantity]


def prove(seen: Observed) -> ClientProof:
    """Every check and every threshold broken."""
    checks: Checks = {}
    for part in (_lateness, _rate, _arrivals, _stamps, _cpu):
        checks |= part(seen)
    failures = tuple(reason for rule in _RULES if (reason := rule(seen, checks)) is not None)
    return ClientProof(checks=checks, failures=failures, processes=seen.processes)


def _lateness(seen: Observed) -> Checks:
    late = np.maximum(seen.dispatched_s - seen.intended_s, 0.0)
    n = len(late)
    names = {"send_lateness_p50": 50, "send_lateness_p99": 99, "send_lateness_max": 100}
    if not n:
        return {name: Quantity.unknown("s", "no request was sent") for name in names}
    return {name: Quantity.of(float(np.percentile(late, q)), "s", n=n) for name, q in names.items()}


def _rate(seen: Observed) -> Checks:
    n = len(seen.intended_s)
    if not seen.open_loop:
        why = "a closed loop asks for a concurrency, not for a rate"
        asked = Quantity.unknown("1/s", why)
    elif n < 2:
        asked = Quantity.unknown("1/s", "fewer than two requests")
    else:
        asked = _over((n - 1), float(seen.intended_s[-1] - seen.intended_s[0]), n)
    if n < 2:
        return {"rate_asked": asked, "rate_achieved": Quantity.unknown("1/s", "fewer than two requests")}
    sent = np.sort(seen.dispatched_s)
    return {"rate_asked": asked, "rate_achieved": _over((n - 1), float(sent[-1] - sent[0]), n)}


def _over(count: int, span_s: float, n: int) -> Quantity:
    return Quantity.of(count / span_s, "1/s", n=n) if span_s > 0 else Quantity.unknown("1/s", "sent in one instant")


def _arrivals(seen: Observed) -> Checks:
    law, values = seen.law
    n = len(seen.dispatched_s)
    sent = np.sort(seen.dispatched_s)
    p = ks_p_value(sent, seen.law) if seen.open_loop else None
    if p is not None:
        strict = ks_p_value(sent, seen.law, with_resolution=False)
        drawn = ks_p_value(seen.intended_s, seen.law)
        checks = {"arrival_ks_p": Quantity.of(p, "1", n=n)}
        checks["arrival_ks_p_strict"] = Quantity.of(strict if strict is not None else float("nan"), "1", n=n)
        checks["schedule_ks_p"] = Quantity.of(drawn if drawn is not None else float("nan"), "1", n=n)
    else:
        if law in (*LAWS, "ramp"):
            why = f"a test of the gaps needs more than {FEWEST_GAPS} requests"
        else:
            why = f"{law} arrivals have no gap distribution of their own: send lateness is their test"
        checks = {"arrival_ks_p": Quantity.unknown("1", why, n=n)}
    rate = values.get("rate_hz")
    spread = dispersion(sent, rate) if rate and seen.open_loop else None
    if spread is None:
        checks["arrival_dispersion"] = Quantity.unknown(
            "1", "needs a law of one rate and a hundred requests or so", n=n
        )
    else:
        checks["arrival_dispersion"] = Quantity.of(spread, "1", n=n)
    return checks


def _stamps(seen: Observed) -> Checks:
    checks: Checks = {}
    lag = f"read_lag of {seen.lag_source} stamps"
    if len(seen.lag_s):
        checks["loop_lag_p99"] = Quantity.of(float(np.percentile(seen.lag_s, 99)), "s", n=len(seen.lag_s), why=lag)
    else:
        checks["loop_lag_p99"] = Quantity.unknown("s", "nothing was read")
    checks["kernel_stamp_share"] = _share(seen.kernel_reads, seen.reads, "nothing was read")
    checks["coalesced_share"] = _share(seen.coalesced, seen.token_events, "no token arrived")
    first, later = seen.doubt_s[seen.first_events], np.delete(seen.doubt_s, seen.first_events)
    for name, doubt in (("ttft_stamp_doubt_p99", first), ("itl_stamp_doubt_p99", later)):
        known = Quantity.of(float(np.percentile(doubt, 99)), "s", n=len(doubt)) if len(doubt) else None
        checks[name] = known or Quantity.unknown("s", "no token arrived")
    return checks


def _share(part: int, whole: int, why: str) -> Quantity:
    return Quantity.of(part / whole, "1", n=whole) if whole else Quantity.unknown("1", why)


def _cpu(seen: Observed) -> Checks:
    return {"cpu_share": Quantity.of(seen.cpu_share, "1", n=seen.processes),
            "retried": Quantity.of(float(seen.retried), "1", n=len(seen.intended_s))}  # fmt: skip


Rule = Callable[[Observed, Checks], Reason | None]

_MORE = "give the client a core of its own (client.cores) or more processes (client.processes), or ask for less load"


def _reason(kind: str, message: str, hint: str = _MORE) -> Reason:
    return Reason(kind=kind, stage="load", message=message, hint=hint)


def _rule_lateness(seen: Observed, checks: Checks) -> Reason | None:
    late = checks["send_lateness_p99"].value
    limit = _ttft_limit_s(seen)
    if late is None or late <= limit:
        return None
    text = f"the client sent late: {late * 1e3:.2f} ms at p99, limit {limit * 1e3:.3g} ms"
    return _reason("client_lateness", text)


def _ttft_limit_s(seen: Observed) -> float:
    return min(max(LATENESS_SHARE * (seen.ttft_p50_s or 0.0), LATENESS_LEAST_S), LATENESS_MOST_S)


def _rule_rate(seen: Observed, checks: Checks) -> Reason | None:
    asked, got = checks["rate_asked"].value, checks["rate_achieved"].value
    n = len(seen.intended_s)
    if asked is None or got is None:
        return None
    off_s = abs((n - 1) / got - (n - 1) / asked)
    if off_s <= max(RATE_ERROR * (n - 1) / asked, RATE_SLACK_S):
        return None
    return _reason("client_rate", f"the client sent {got:.4g} requests/s where {asked:.4g}/s were asked")


def _rule_arrivals(seen: Observed, checks: Checks) -> Reason | None:
    p, drawn = checks["arrival_ks_p"].value, checks.get("schedule_ks_p")
    if p is None or drawn is None or drawn.value is None:
        return None
    if drawn.value < SCHEDULE_KS_P:
        return _reason(
            "schedule_law", f"the schedule does not follow its {seen.law[0]} law (KS p = {drawn.value:.1g})",
            "a fault of the workload's generator: report it with the study file",
        )  # fmt: skip
    if p < KS_P <= drawn.value:
        return _reason(
            "client_arrivals", f"the gaps sent do not follow the {seen.law[0]} law asked for (KS p = {p:.1g})"
        )
    return None


def _rule_stamps(seen: Observed, checks: Checks) -> Reason | None:
    share, lag = checks["kernel_stamp_share"].value, checks["loop_lag_p99"].value
    if share is None or lag is None or share >= KERNEL_SHARE or lag <= LAG_P99_S:
        return None
    return _reason(
        "client_stamps",
        f"only {share:.1%} of reads had kernel stamps and the loop read {lag * 1e3:.2f} ms late at p99, "
        f"limit {LAG_P99_S * 1e3:g} ms",
    )


def _rule_doubt(seen: Observed, checks: Checks) -> Reason | None:
    if seen.kernel_reads < KERNEL_SHARE * seen.reads:
        return None  # stamps are the loop's own: how late it reads is judged above
    limits = {
        "ttft_stamp_doubt_p99": ("first tokens", _ttft_limit_s(seen)),
        "itl_stamp_doubt_p99": ("later tokens", max(DOUBT_SHARE * (seen.gap_p50_s or 0.0), DOUBT_LEAST_S)),
    }
    for name, (what, limit) in limits.items():
        doubt = checks[name].value
        if doubt is not None and doubt > limit:
            return _reason(
                "client_behind",
                f"the client read {what} so late that several shared one stamp: they may have come "
                f"{doubt * 1e3:.2f} ms before it at p99, limit {limit * 1e3:.3g} ms",
            )
    return None


def _rule_cpu(seen: Observed, checks: Checks) -> Reason | None:
    if seen.cpu_share <= CPU_SHARE:
        return None
    return _reason("client_cpu", f"a client process worked {seen.cpu_share:.0%} of the time, limit {CPU_SHARE:.0%}")


def _rule_sockets(seen: Observed, checks: Checks) -> Reason | None:
    if not seen.client_faults:
        return None
    names = ", ".join(f"{name} {count}×" for name, count in sorted(seen.client_faults.items()))
    return _reason(
        "client_sockets", f"this host refused the client sockets: {names}",
        "raise the open files limit (ulimit -n) or the port range (net.ipv4.ip_local_port_range)",
    )  # fmt: skip


def _rule_exhausted(seen: Observed, checks: Checks) -> Reason | None:
    if not seen.exhausted:
        return None
    return _reason(
        "schedule_exhausted", "the closed loop ran out of requests before its window ended",
        "lengthen the outputs or shorten the window, so that the schedule holds enough requests",
    )  # fmt: skip


_RULES: tuple[Rule, ...] = (
    _rule_lateness, _rule_rate, _rule_arrivals, _rule_stamps, _rule_doubt, _rule_cpu, _rule_sockets, _rule_exhausted,
)  # fmt: skip
