"""The proof: each threshold breaks on its own fault, and none on the server's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qmeter.load.proof import Observed, prove

RNG = np.random.default_rng(7)
INTENDED = np.cumsum(RNG.exponential(0.005, 2000))
GOOD = Observed(
    intended_s=INTENDED,
    dispatched_s=INTENDED + 20e-6,
    law=("poisson", {"rate_hz": 200.0}),
    open_loop=True,
    ttft_p50_s=0.05,
    lag_s=np.full(100, 30e-6),
    lag_source="kernel",
    reads=1000,
    kernel_reads=1000,
    token_events=1000,
    coalesced=5,
    doubt_s=np.zeros(1000),
    first_events=np.arange(0, 1000, 50),
    gap_p50_s=0.01,
    cpu_share=0.2,
    client_faults={},
    exhausted=False,
    retried=0,
    processes=1,
)


def test_a_good_run_breaks_nothing_and_says_so_in_numbers() -> None:
    proof = prove(GOOD)
    assert proof.failures == ()
    checks = proof.checks
    assert checks["send_lateness_p99"].value == pytest.approx(20e-6)
    assert checks["rate_achieved"].value == pytest.approx(checks["rate_asked"].value, rel=1e-4)
    assert checks["kernel_stamp_share"].value == 1.0
    assert checks["coalesced_share"].value == 0.005
    assert set(checks) >= {"send_lateness_p50", "send_lateness_max", "loop_lag_p99", "arrival_ks_p", "cpu_share"}


def test_stamps_may_be_late_by_what_they_distort() -> None:
    """First tokens are judged by the TTFT, the others by the time between them."""
    every, firsts = np.full(1000, 0.004), np.zeros(1000)
    firsts[GOOD.first_events] = 0.004
    assert [f.kind for f in prove(replace(GOOD, doubt_s=firsts)).failures] == ["client_behind"]
    assert not prove(replace(GOOD, doubt_s=firsts, ttft_p50_s=0.1)).failures, "5% of it is 5 ms"
    assert "later tokens so late" in prove(replace(GOOD, doubt_s=every, ttft_p50_s=1.0)).failures[0].message
    assert not prove(replace(GOOD, doubt_s=every, ttft_p50_s=1.0, gap_p50_s=0.05)).failures
    nothing = prove(replace(GOOD, doubt_s=np.empty(0), first_events=np.empty(0, np.int64), gap_p50_s=None))
    assert not nothing.failures and nothing.checks["ttft_stamp_doubt_p99"].value is None


late = INTENDED.copy()
late[::50] += 0.03
FAULTS = {
    "client_lateness": replace(GOOD, dispatched_s=late),
    "client_rate": replace(GOOD, dispatched_s=INTENDED * 1.02, law=("trace", {"rate_hz": 200.0})),
    "client_arrivals": replace(GOOD, dispatched_s=np.ceil(INTENDED / 0.004) * 0.004, ttft_p50_s=10.0),
    "schedule_law": replace(GOOD, intended_s=np.arange(2000) / 200, dispatched_s=np.arange(2000) / 200),
    "client_stamps": replace(GOOD, kernel_reads=500, lag_s=np.full(100, 0.02)),
    "client_behind": replace(GOOD, doubt_s=np.where(np.arange(1000) % 40, 0.0, 0.004)),
    "client_cpu": replace(GOOD, cpu_share=0.99),
    "client_sockets": replace(GOOD, client_faults={"EMFILE": 3}),
    "schedule_exhausted": replace(GOOD, exhausted=True),
}


@pytest.mark.parametrize("kind", list(FAULTS))
def test_each_fault_breaks_its_own_threshold(kind: str) -> None:
    failures = prove(FAULTS[kind]).failures
    assert kind in {f.kind for f in failures}
    assert all(f.hint and f.stage == "load" for f in failures)
    if kind != "client_rate":
        assert len(failures) == 1


def test_lateness_is_judged_against_what_it_distorts() -> None:
    # GIVEN sends that are 6 ms late now and then
    dispatched = INTENDED.copy()
    dispatched[::40] += 0.006
    run = replace(GOOD, dispatched_s=dispatched, law=("trace", {"rate_hz": 200.0}))
    # THEN a median TTFT of 20 ms is distorted by it, one of 400 ms is not
    assert [f.kind for f in prove(replace(run, ttft_p50_s=0.02)).failures] == ["client_lateness"]
    assert prove(replace(run, ttft_p50_s=0.4)).failures == ()


def test_kernel_stamps_excuse_a_late_read() -> None:
    assert prove(replace(GOOD, lag_s=np.full(100, 0.05))).failures == ()


def test_constant_arrivals_are_tested_by_lateness_and_say_so() -> None:
    even = np.arange(500) / 200
    proof = prove(replace(GOOD, intended_s=even, dispatched_s=even + 1e-5, law=("constant", {"rate_hz": 200.0})))
    assert proof.failures == ()
    assert proof.checks["arrival_ks_p"].value is None
    assert "lateness" in (proof.checks["arrival_ks_p"].why or "")


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_runs_of_a_few_requests_raise_no_false_alarm(n: int) -> None:
    intended = INTENDED[:n]
    proof = prove(replace(GOOD, intended_s=intended, dispatched_s=intended + 5e-4, lag_s=np.empty(0), reads=0,
                          kernel_reads=0, token_events=0, coalesced=0, ttft_p50_s=None))  # fmt: skip
    assert proof.failures == ()
    assert all(q.value is not None or q.why for q in proof.checks.values())


def test_a_rare_draw_is_not_the_clients_fault() -> None:
    # GIVEN a schedule that by chance fits its law badly (p between the two thresholds), sent faithfully
    gaps = np.sort(np.random.default_rng(0).exponential(0.005, 400))
    gaps = np.where(gaps < 0.0006, gaps * 3, gaps)
    intended = np.cumsum(np.random.default_rng(1).permutation(gaps * 1.3))
    proof = prove(replace(GOOD, intended_s=intended, dispatched_s=intended + 1e-5))
    assert 1e-9 < (proof.checks["schedule_ks_p"].value or 0) < 1e-3
    assert proof.failures == ()
