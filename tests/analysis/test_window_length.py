"""GIVEN the measured cells that ship, WHEN window lengths are derived, THEN they are what those cells need."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest

from qmeter.analysis import window_length as w
from qmeter.analysis.energy import device_energy, grouped
from qmeter.record import Record, Telemetry, Window
from qmeter.store.profile import open_results
from qmeter.study.check import open_study_text
from qmeter.study.findings import HostFacts

STUDY = """
qmeter: 1
name: s
models: [{name: m, source: "synth:llama-3.1-8b", shape: llama-3.1-8b}]
engines: [{name: vllm}]
methods: [fp8]
repeats: 2
workloads:
  - {name: w, arrivals: ARRIVALS, prompt_tokens: {kind: fixed, tokens: 9},
     output_tokens: {kind: fixed, tokens: 9}, window: WINDOW, warmup: 1s}
"""


def warned(window: str, arrivals: str = "{kind: poisson, rate: 22/s}", extra: str = "", gpu: str | None = "h200"):
    text = STUDY.replace("WINDOW", window).replace("ARRIVALS", arrivals) + extra
    _, warnings = open_study_text(text, "s.yaml", HostFacts(gpus=1 if gpu else None, device=gpu))
    return {warning.kind: warning for warning in warnings}


@pytest.fixture(scope="module")
def measured() -> list[tuple[Record, Telemetry]]:
    profile = open_results("h200-8b-grid")
    return [(record, profile.tables(record).telemetry) for record in profile.records()]


def test_the_scatter_is_what_the_shipped_profile_shows(measured: list[tuple[Record, Telemetry]]) -> None:
    cells = defaultdict(list)
    for record, telemetry in measured:
        cells[record.cell["workload"]["name"]].append((telemetry, record.window))
    found = {name: w.scatter(some) or 0.0 for name, some in cells.items()}
    open_loads = [found[name] for name in ("idle", "light", "medium", "heavy")]
    assert w.SCATTER["open"] == pytest.approx(max(open_loads), rel=0.03)
    assert w.SCATTER["closed"] == pytest.approx(found["saturated"], rel=0.06)


def test_loops_that_fill_a_part_of_the_batch_scatter_as_assumed_and_others_do_not() -> None:
    off = defaultdict(list)
    for profile in ("h100-models", "h100-x2-8b-parallelism"):
        for record in open_results(profile).records():
            arrivals, window = record.cell["workload"]["arrivals"], record.window
            for name, q in record.energy.items():
                if arrivals["kind"] == "closed" and name.endswith("integrated_ratio") and q.value and window:
                    off[arrivals["concurrency"]].append((q.value - 1.0) * math.sqrt(window.length_s))
    found = {n: float(np.sqrt(np.mean(np.square(some)))) for n, some in off.items()}
    assert w.SCATTER["partial"] == pytest.approx(found[32], rel=0.03)
    assert max(found[n] for n in (4, 96, 192)) < w.SCATTER["partial"] / 2


def test_a_loop_that_fills_a_part_of_the_batch_needs_a_longer_window() -> None:
    most = "engines: [{name: vllm, options: {max_sequences: 128}}]"
    for concurrency, kinds in ((4, set()), (32, {"short_energy_window"}), (96, set())):
        text = STUDY.replace("engines: [{name: vllm}]", most).replace("WINDOW", "20s")
        text = text.replace("ARRIVALS", f"{{kind: closed, concurrency: {concurrency}}}")
        _, warnings = open_study_text(text, "s.yaml", HostFacts(gpus=1, device="h200"))
        assert {v.kind for v in warnings} & {"short_energy_window"} == kinds


def test_j_per_token_falls_with_the_rate_as_assumed() -> None:
    by = {}
    for r in open_results("h200-8b-grid").records():
        q, rate = r.energy["j_per_output_token"].value, r.metrics["throughput_tok_s"].value
        if r.cell["repeat"] == 0 and q and rate:
            by[r.cell["deployment"]["method"], r.cell["workload"]["name"]] = (q, rate)
    slopes = []
    for method in {m for m, _ in by}:
        (light, few), (medium, many) = by[method, "light"], by[method, "medium"]
        slopes.append(-math.log(medium / light) / math.log(many / few))
    assert pytest.approx(max(slopes), abs=0.03) == w.ELASTICITY


def test_windows_of_that_length_agree_as_promised() -> None:
    # GIVEN spot readings at 10 Hz of a flickering load (scatter = cv / sqrt(10)), and an exact counter
    rng, window_s = np.random.default_rng(1), w.cross_check_window_s("open")
    cv, mean = w.SCATTER["open"] * math.sqrt(10.0), 500.0
    off = []
    for _ in range(400):
        t = np.arange(-1.0, window_s + 1.0, 0.1)
        power = mean * (1 + cv * rng.standard_normal(len(t)))
        series = np.array(["gpu0.energy_j"] * len(t) + ["gpu0.power_w"] * len(t), dtype=object)
        telemetry = Telemetry(series, np.concatenate([t, t]), np.concatenate([mean * (t + 1.0), power]))
        one = w.scatter([(telemetry, Window(start_s=0, end_s=window_s, method="m", stationary=True))])
        assert one is not None
        off.append(one / math.sqrt(window_s))
    # THEN the disagreement's standard deviation is a third of the tolerance
    assert math.sqrt(float(np.mean(np.square(off)))) == pytest.approx(0.02 / 3, rel=0.1)


def test_a_window_too_short_for_the_cross_check_is_told_with_its_length() -> None:
    found = warned("11s")["short_energy_window"]
    assert "2%" in found.message and found.hint == "window: 44s"
    assert "short_energy_window" not in warned("44s")
    assert "short_energy_window" not in warned("11s", "{kind: closed, concurrency: 8}")
    assert "short_energy_window" not in warned("11s", gpu=None)


def test_repeats_whose_arrivals_alone_would_differ_are_told() -> None:
    found = warned("44s")["repeats_differ"]
    assert (
        "8% by their arrivals" in found.message and "292 s" in found.message and "same_requests" in (found.hint or "")
    )
    assert "repeats_differ" not in warned("44s", extra="same_requests: true\n")
    assert "repeats_differ" not in warned("44s", "{kind: constant, rate: 22/s}")
    assert "repeats_differ" not in warned("44s", extra='exclude: [{workload: w, repeat: "1"}]\n')
    assert w.repeat_spread(22, 44, cv=2.0) == pytest.approx(2 * w.repeat_spread(22, 44))
    assert w.repeat_spread(22, w.repeat_window_s(22)) == pytest.approx(0.03)


def test_no_reading_no_scatter() -> None:
    assert w.scatter([(Telemetry.empty(), Window(start_s=0, end_s=1, method="m", stationary=True))]) is None


def test_power_averaged_by_the_driver_agrees_in_every_shipped_cell(measured: list[tuple[Record, Telemetry]]) -> None:
    known = 0
    for record, telemetry in measured:
        assert record.window is not None
        found = device_energy("gpu0", grouped(telemetry), record.series, record.window)
        averaged, instant = found.checks["averaged_ratio"], found.checks["integrated_ratio"]
        assert instant.known
        known += averaged.known
        assert averaged.value is None or averaged.value == pytest.approx(1.0, abs=0.014)
        for warning in found.warnings:
            assert averaged.value is None or "power averaged over each second gives" in warning.message
    assert known == 53
