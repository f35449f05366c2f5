"""One cell's analysis on tables whose truth is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qmeter.analysis.cell import CellAnalysis, analyse
from qmeter.analysis.latency import gaps
from qmeter.record import CellTables, Requests, Tokens, Window
from qmeter.spec.workload import WorkloadSpec
from qmeter.testing.cells import MadeServer, made_series, made_tables


def workload(rate: float = 10, **changes: Any) -> WorkloadSpec:
    base: dict[str, Any] = {
        "name": "w",
        "arrivals": {"kind": "constant", "rate": f"{rate}/s"},
        "warmup": "2s",
        "window": "10s",
        "drain": "5s",
        "slo": {"ttft": "100ms", "tpot": "20ms"},
    }
    return WorkloadSpec.model_validate(base | changes)


def exact(rate: float = 10, until: float = 12.0, tokens: int = 11, ttft: float = 0.05, gap: float = 0.01) -> CellTables:
    """Every request the same: TTFT 50 ms, ten gaps of 10 ms; sent 1 ms late."""
    intended = np.arange(0, until, 1 / rate)
    n = len(intended)
    first = intended + ttft
    last = first + gap * (tokens - 1)
    none = np.array([None] * n, dtype=object)
    requests = Requests(
        intended_s=intended, sent_s=intended + 0.001, first_token_s=first, last_token_s=last, end_s=last + 0.0005,
        prompt_tokens_asked=np.full(n, 100), output_tokens_asked=np.full(n, tokens), prompt_tokens=np.full(n, 100),
        output_tokens=np.full(n, tokens), status=np.array(["ok"] * n, dtype=object), http_status=np.full(n, 200),
        finish_reason=none, task=none, item=none, text=none, error=none,
    )  # fmt: skip
    rows = np.repeat(np.arange(n), tokens)
    times = (first[:, None] + gap * np.arange(tokens)).ravel()
    ones = np.ones(len(rows))
    return CellTables(requests, Tokens(rows, times, ones, np.zeros(len(rows)), np.zeros(len(rows), dtype=bool)))


def changed(tables: CellTables, rows: Any, **columns: Any) -> CellTables:
    """The tables with some request columns set at some rows."""
    own = {k: v.copy() for k, v in tables.requests.columns().items()}
    for name, value in columns.items():
        own[name][rows] = value
    return CellTables(Requests(**own), tables.tokens, tables.telemetry, tables.steps)


def test_exact_stream_gives_exact_numbers() -> None:
    found = analyse(exact(), workload())
    m = found.metrics
    assert (found.window.start_s, found.window.end_s, found.window.stationary) == (2.0, 12.0, True)
    assert m["ttft_p50_s"].value == pytest.approx(0.05)
    assert m["ttft_from_sent_mean_s"].value == pytest.approx(0.049)
    assert m["tpot_mean_s"].value == pytest.approx(0.01)
    assert m["itl_p99_s"].value == pytest.approx(0.01)
    assert m["e2e_p50_s"].value == pytest.approx(0.15)
    assert m["throughput_tok_s"].value == pytest.approx(110, rel=0.01)
    assert m["total_tok_s"].value == pytest.approx(1110, rel=0.01)
    assert m["goodput_hz"].value == pytest.approx(10)
    assert m["in_flight_mean"].value == pytest.approx(1.5, rel=0.02)
    assert m["slo_attainment"].value == 1.0 and (m["slo_attainment"].low or 1) < 0.97
    assert not found.warnings


def test_same_seed_same_numbers() -> None:
    tables = made_tables(workload(20), seed=3)
    assert analyse(tables, workload(20), seed=5) == analyse(tables, workload(20), seed=5)


def test_time_shift_outside_the_window_changes_nothing_inside() -> None:
    """GIVEN awful requests in the warm-up WHEN analysed THEN no metric of the window knows of them."""
    clean, dirty = exact(), changed(exact(), slice(0, 20), first_token_s=1.99, last_token_s=1.995)
    for name in ("ttft_p99_s", "tpot_mean_s", "slo_attainment", "goodput_hz"):
        assert analyse(clean, workload()).metrics[name] == analyse(dirty, workload()).metrics[name]


def test_p99_with_few_requests_is_unknown_and_says_how_many_it_needs() -> None:
    found = analyse(exact(rate=3), workload(3))
    q = found.metrics["ttft_p99_s"]
    assert q.value is None and q.why == "p99 needs at least 100 requests in the window; there were 30"
    assert found.metrics["ttft_p50_s"].known


def test_unfinished_requests_are_censored_not_dropped() -> None:
    """GIVEN 5 of 100 requests unfinished at drain WHEN analysed THEN p90 stands, p99 and mean do not."""
    rows = np.arange(100, 105)
    tables = changed(exact(), rows, status="cancelled", first_token_s=np.nan, last_token_s=np.nan, end_s=np.nan)
    keep = ~np.isin(tables.tokens.request, rows)
    tokens = Tokens(**{k: v[keep] for k, v in tables.tokens.columns().items()})
    found = analyse(CellTables(tables.requests, tokens), workload())
    m = found.metrics
    assert m["ttft_p90_s"].value == pytest.approx(0.05)
    assert m["ttft_p99_s"].value is None and "5 of 100" in str(m["ttft_p99_s"].why)
    assert m["e2e_mean_s"].value is None and "at least" in str(m["e2e_mean_s"].why)
    assert m["slo_attainment"].value == pytest.approx(0.95)
    assert m["failed_share"].value == pytest.approx(0.05)
    assert any(w.kind == "failed_requests" and "5 cancelled" in w.message for w in found.warnings)


def test_failures_are_named_by_status() -> None:
    tables = changed(exact(), [50, 51, 60], status="http_503", first_token_s=np.nan, last_token_s=np.nan)
    messages = [w.message for w in analyse(tables, workload()).warnings if w.kind == "failed_requests"]
    assert messages == ["3 of 100 requests did not end well: 3 http_503"]


def test_no_slo_means_unknown_goodput() -> None:
    q = analyse(exact(), workload(slo=None)).metrics["goodput_hz"]
    assert q.value is None and q.why == "the workload has no SLO"


def test_itl_spreads_an_events_gap_over_its_tokens_and_joins_coalesced_events() -> None:
    one = np.zeros(5, dtype=bool)
    window = Window(start_s=0, end_s=10, method="m", stationary=True)
    requests = Requests.empty()
    base = exact(rate=1, until=1.0).requests
    assert len(base) == 1
    tokens = Tokens([0] * 5, [1.0, 1.04, 1.08, 1.08, 1.12], [1, 4, 1, 1, 2], one, one)
    got = gaps(CellTables(base, tokens), window).seconds
    assert sorted(got) == pytest.approx(sorted([0.01] * 4 + [0.02] * 2 + [0.02] * 2))
    flagged = Tokens([0] * 3, [1.0, 1.04, 1.05], [1, 1, 1], one[:3], np.array([False, True, False]))
    assert gaps(CellTables(base, flagged), window).seconds == pytest.approx([0.025, 0.025])
    assert len(gaps(CellTables(requests, Tokens.empty()), window).seconds) == 0


def test_a_server_count_that_disagrees_is_a_warning() -> None:
    tables = changed(exact(), slice(None), output_tokens=22, output_tokens_asked=22)
    kinds = [w.kind for w in analyse(tables, workload()).warnings]
    assert kinds == ["token_count"]


def test_overload_is_called_overload() -> None:
    found = analyse(made_tables(workload(60), MadeServer(slots=16), seed=1), workload(60))
    assert not found.window.stationary
    assert "overloaded" in [w.kind for w in found.warnings]


def test_a_warm_up_that_is_too_short_is_cut_not_called_overload() -> None:
    """GIVEN requests that last 4 s and no warm-up WHEN analysed THEN the filling phase is cut by MSER-5."""
    spec = workload(20, warmup="0s", window="30s", arrivals={"kind": "poisson", "rate": "20/s"})
    server = MadeServer(step_s=0.06, load_step_s=0.0, slots=500, gpus=0)
    found = analyse(made_tables(spec, server, seed=2), spec)
    assert found.window.stationary and "MSER-5" in found.window.method
    assert 2.0 < found.window.start_s < 12.0


def test_false_alarms_are_rare_on_stationary_load() -> None:
    spec = workload(20, arrivals={"kind": "poisson", "rate": "20/s"})
    flagged = [not analyse_quick(spec, seed).window.stationary for seed in range(30)]
    assert sum(flagged) <= 2


def analyse_quick(spec: WorkloadSpec, seed: int) -> CellAnalysis:
    return analyse(made_tables(spec, MadeServer(gpus=0), seed=seed), spec, seed=seed)


def test_closed_loop_is_never_overloaded() -> None:
    spec = workload(arrivals={"kind": "closed", "concurrency": 8})
    found = analyse(made_tables(spec, MadeServer(slots=2), seed=1), spec)
    assert "overloaded" not in [w.kind for w in found.warnings]
    assert found.metrics["in_flight_mean"].value == pytest.approx(8, rel=0.05)


def closed_loop(slots: int, prefill_s: float, tokens: int = 20, gap: float = 0.05, until: float = 14.0) -> CellTables:
    """A closed loop whose first prompts, all sent at 0, are prefilled one after another; later ones take 50 ms."""
    sent, first = [], []
    for slot in range(slots):
        at, ready = 0.0, prefill_s * (slot + 1)
        while at < until:
            sent.append(at)
            first.append(ready)
            at = ready + gap * (tokens - 1) + 0.001
            ready = at + 0.05
    base = exact(rate=len(sent) / until, until=until - 1e-9, tokens=tokens).requests
    start = np.array(first)
    ended = start + gap * (tokens - 1)
    requests = replace(
        base, intended_s=np.full(len(sent), np.nan), sent_s=np.array(sent), first_token_s=start, last_token_s=ended,
        end_s=ended + 0.0005,
    )  # fmt: skip
    rows = np.repeat(np.arange(len(sent)), tokens)
    times = (start[:, None] + gap * np.arange(tokens)).ravel()
    none = np.zeros(len(rows))
    return CellTables(requests, Tokens(rows, times, np.ones(len(rows)), none, none.astype(bool)))


@pytest.mark.parametrize(("prefill_s", "begins"), [(0.05, 2.0), (0.3, 6.0), (0.38, None)])
def test_a_closed_loops_window_begins_when_its_first_prompts_are_done(prefill_s: float, begins: float | None) -> None:
    """GIVEN 20 prompts sent at once and worked off one after another until 1, 6 or 7.6 s of a window from 2 to 12 s
    WHEN analysed THEN the start is cut off, or where more than half would be lost the window is not stationary."""
    spec = workload(arrivals={"kind": "closed", "concurrency": 20})
    found = analyse(closed_loop(20, prefill_s), spec)
    assert found.window.stationary == (begins is not None)
    if begins is None:
        assert "had its first token at 7.6 s" in str(found.window.why)
    else:
        assert found.window.start_s == pytest.approx(begins)
        # 20 requests of 20 tokens, one every second
        assert found.metrics["throughput_tok_s"].value == pytest.approx(400, rel=0.03)
    assert "young_loop" not in [w.kind for w in found.warnings if begins]


def test_a_window_that_begins_before_a_loop_has_turned_over_says_so() -> None:
    """GIVEN requests of 6 s in a closed loop WHEN its window begins at 2 s THEN all of the first still run, and it is
    said; from 8 s on nothing is."""
    tables = closed_loop(20, 0.01, tokens=120)
    early = workload(arrivals={"kind": "closed", "concurrency": 20})
    [told] = [w for w in analyse(tables, early).warnings if w.kind == "young_loop"]
    assert "20 of the loop's first 20 requests" in told.message
    late = workload(arrivals={"kind": "closed", "concurrency": 20}, warmup="8s", window="5s")
    assert "young_loop" not in [w.kind for w in analyse(tables, late).warnings]


def test_ramp_is_not_stationary_by_design() -> None:
    spec = workload(arrivals={"kind": "ramp", "start": "5/s", "end": "20/s"})
    window = analyse(made_tables(spec, seed=1), spec).window
    assert not window.stationary and "by design" in str(window.why)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_hardly_any_requests_give_reasons_not_crashes(n: int) -> None:
    full = exact()
    keep = full.tokens.request < n
    tables = CellTables(
        Requests(**{k: v[:n] for k, v in full.requests.columns().items()}),
        Tokens(**{k: v[keep] for k, v in full.tokens.columns().items()}),
    )
    found = analyse(tables, workload(warmup="0s"))
    assert not found.window.stationary and "too few" in str(found.window.why)
    assert found.metrics["ttft_p99_s"].value is None
    assert all(q.value is not None or q.why for q in {**found.metrics, **found.energy}.values())


def test_missing_series_keep_the_samplers_reason() -> None:
    server = MadeServer(gpus=0)
    found = analyse(made_tables(workload(), server), workload(), made_series(server))
    assert "no RAPL" in str(found.energy["energy_j"].why)
    assert found.energy["energy_j"].value is None
    assert found.metrics["preemptions"].value is None


def test_tails_of_gaps_that_share_batches_carry_a_caveat() -> None:
    spec = workload(20, arrivals={"kind": "poisson", "rate": "20/s"})
    m = analyse(made_tables(spec, MadeServer(gpus=0), seed=1), spec).metrics
    assert "gaps of one batch are alike" in str(m["itl_p99_s"].why) and m["itl_p50_s"].why is None


def test_intervals_cover_the_truth_at_a_moderate_load() -> None:
    """GIVEN 25 runs of one law WHEN analysed THEN most intervals hold the long run's mean."""
    spec = workload(12, arrivals={"kind": "poisson", "rate": "12/s"})
    long = workload(12, arrivals={"kind": "poisson", "rate": "12/s"}, window="120s")
    truth = analyse_quick(long, 999).metrics
    for name in ("ttft_mean_s", "tpot_mean_s", "throughput_tok_s"):
        found = [analyse_quick(spec, seed).metrics[name] for seed in range(25)]
        hits = sum((q.low or 0.0) <= (truth[name].value or 0.0) <= (q.high or 0.0) for q in found)
        assert hits >= 18, (name, hits)
