"""GIVEN two cells that served the same requests, WHEN they are compared, THEN what the requests do cancels, intervals
hold the true ratio as often as they say, and cells of other requests are not paired."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qmeter.analysis.energy import grouped
from qmeter.analysis.links import link_metrics
from qmeter.analysis.paired import PARTS, _jackknife, paired_ratios
from qmeter.record import CellStatus, CellTables, Quantity, Record, Requests, Steps, Telemetry, Tokens, Window
from qmeter.store import open_results
from qmeter.testing.records import made_records, made_study

PROFILE = "h100-x2-8b-parallelism"
BASE = next(r for r in made_records(made_study(rates=(4,), window="4s")) if r.status is CellStatus.OK)


def a_cell(
    rng: np.random.Generator, shared: np.ndarray, slower: float, *, seed: int = 5, noise: float = 0.1, drop: int = 0
) -> tuple[Record, CellTables]:
    """A cell of 120 requests over 20 s, whose TTFT and TPOT follow what the requests ask, times ``slower`` and luck."""
    n = len(shared)
    due = np.linspace(0.0, 19.9, n)
    ttft = 0.05 * shared * slower * np.exp(noise * rng.standard_normal(n))
    tpot = 0.008 * np.sqrt(shared) * slower * np.exp(noise * rng.standard_normal(n))
    first = due + ttft
    counts: dict[str, Any] = {k: np.full(n, 64) for k in Requests.dtypes if "tokens" in k}
    words: dict[str, Any] = {
        k: np.full(n, "", dtype=object) for k in ("finish_reason", "task", "item", "text", "error")
    }
    status = np.array(["ok"] * n, dtype=object)
    status[:drop] = "timeout"
    last = first + 63 * tpot
    requests = Requests(
        intended_s=due, sent_s=due, first_token_s=first, last_token_s=last, end_s=last, status=status,
        http_status=np.full(n, 200), **counts, **words,
    )  # fmt: skip
    record = BASE.model_copy(
        update={
            "cell": {**BASE.cell, "seed": seed},
            "window": Window(start_s=0.0, end_s=20.0, method="planned", stationary=True),
        }
    )
    return record, CellTables(requests, Tokens.empty(), Telemetry.empty(), Steps.empty())


def test_intervals_hold_the_true_ratio_and_are_far_narrower_than_independent_ones() -> None:
    rng = np.random.default_rng(1)
    held = {"ttft_p50_s": 0, "tpot_mean_s": 0}
    widths = []
    trials = 60
    for _ in range(trials):
        shared = np.exp(0.8 * rng.standard_normal(120))  # what the requests ask spreads by a factor of two
        found = paired_ratios([(a_cell(rng, shared, 1.2), a_cell(rng, shared, 1.0))])
        for name in held:
            q = found[name]
            assert q.value is not None and q.low is not None and q.high is not None
            held[name] += q.low <= 1.2 <= q.high
        widths.append((found["tpot_mean_s"].high or 0) - (found["tpot_mean_s"].low or 0))
    assert min(held.values()) >= 0.85 * trials, held
    assert np.median(widths) < 0.1  # two independent means of 120 would leave ±11%


def test_leaving_out_parts_covers_a_ratio_of_sums() -> None:
    rng = np.random.default_rng(2)
    held, trials, halves = 0, 300, []
    for _ in range(trials):
        demand = np.exp(0.4 * rng.standard_normal(PARTS))
        a, b = (demand * f * np.exp(0.03 * rng.standard_normal(PARTS)) for f in (1.05, 1.0))
        half = _jackknife(lambda keep, a=a, b=b: float(a[keep].sum() / b[keep].sum()), 0.95)
        held += abs(np.log(a.sum() / b.sum() / 1.05)) <= half
        halves.append(half)
    assert held >= 0.9 * trials
    assert np.median(halves) < 0.04  # the demand alone spreads by 0.4


def test_other_requests_and_too_few_are_not_paired() -> None:
    rng = np.random.default_rng(3)
    shared = np.exp(rng.standard_normal(120))
    a = a_cell(rng, shared, 1.0)
    assert paired_ratios([(a, a_cell(rng, shared, 1.0, seed=6))]) == {}
    assert paired_ratios([(a, a_cell(rng, shared, 1.0, drop=110))]) == {}
    assert paired_ratios([]) == {}
    # AND a request that only one of them served leaves both
    (q,) = {paired_ratios([(a, a_cell(rng, shared, 1.0, drop=20))])["tpot_mean_s"].n}
    assert q == 100


def test_several_repeats_pair_each_with_its_own() -> None:
    rng = np.random.default_rng(4)
    pairs = []
    for seed in (5, 6, 7):
        shared = np.exp(rng.standard_normal(120))
        pairs.append((a_cell(rng, shared, 1.2, seed=seed), a_cell(rng, shared, 1.0, seed=seed)))
    q = paired_ratios(pairs)["tpot_mean_s"]
    assert q.n == 3 and q.value == pytest.approx(1.2, rel=0.05)


@pytest.fixture(scope="module")
def shipped() -> dict[tuple[str, int, str, str], tuple[Record, CellTables]]:
    """(method, TP, placement, workload) → cell of the shipped two-GPU profile."""
    results = open_results(PROFILE)
    out = {}
    for record in results.records():
        d = record.cell["deployment"]
        if record.status is CellStatus.OK:
            key = (d["method"], d["parallelism"]["tp"], d["placement"], record.cell["workload"]["name"])
            out[key] = (record, results.tables(record))
    return out


def test_the_shipped_two_gpu_records_are_what_the_documentation_says(shipped: Any) -> None:
    assert len(shipped) == 24
    assert all(record.verification.verified for record, _ in shipped.values())
    two, one = shipped["bf16", 2, "alone", "light"], shipped["bf16", 1, "alone", "light"]
    found = paired_ratios([(two, one)])
    assert found["tpot_mean_s"].high is not None and found["tpot_mean_s"].high < 0.65
    assert found["j_per_output_token"].low is not None and found["j_per_output_token"].low > 1.4
    # the same arrivals: the rate is the same, and its interval is narrow
    assert found["throughput_tok_s"].value == pytest.approx(1.0, abs=0.01)
    # energy of two GPUs is their sum, and the devices are named
    energy = two[0].energy
    assert energy["energy_j"].value == pytest.approx(
        (energy["gpu0.energy_j"].value or 0) + (energy["gpu1.energy_j"].value or 0)
    )
    assert two[0].devices == (0, 1) and one[0].devices == (0,)


def test_gpms_rates_agree_with_the_nvlink_counter(shipped: Any) -> None:
    for key, (record, tables) in shipped.items():
        if key[1] != 2:
            continue
        series = grouped(tables.telemetry)
        counted = link_metrics(series, record.series, record.window, 1.0)["nvlink_bytes_s"]
        assert counted.value == pytest.approx(record.metrics["nvlink_bytes_s"].value, rel=1e-3)
        gpm = {n: v for n, v in series.items() if not n.endswith((".nvlink_tx_bytes", ".nvlink_rx_bytes"))}
        other: Quantity = link_metrics(gpm, record.series, record.window, 1.0)["nvlink_bytes_s"]
        assert other.value == pytest.approx(counted.value, rel=0.06)  # half of it, with the readings of no time
