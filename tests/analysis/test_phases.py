"""Prefill and decode told apart inside cells whose requests all have the same lengths."""

from __future__ import annotations

import numpy as np
import pytest

from qmeter.analysis.phases import Slices, slices, split_phases
from qmeter.record import CellTables, Requests, SeriesInfo, Steps, Telemetry, Tokens, Window
from qmeter.store import open_results

PREFILL_J, DECODE_J, STEP_J, BASE_W = 0.012, 0.03, 1.5, 120.0
PREFILL_S, DECODE_S, STEP_S = 20e-6, 30e-6, 4e-3
WINDOW = Window(start_s=1.0, end_s=12.0, method="planned", stationary=True)


def cell(rate_hz: float, seed: int, *, power: bool = True, noise: float = 0.0) -> CellTables:
    """A made run: 512 tokens are prefilled in a step of their own, 128 decoded together with others."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate_hz, int(14 * rate_hz)))
    now, left, rows, waiting = 0.0, [], [], list(arrivals)
    while now < 13.0:
        due = [a for a in waiting if a <= now]
        waiting = waiting[len(due) :]
        prefill, decode = 512 * len(due), len(left)
        if prefill + decode == 0:
            now = waiting[0] if waiting else 13.0
            continue
        took = PREFILL_S * prefill + DECODE_S * decode + STEP_S
        rows.append((now, took, prefill, decode))
        left = [n - 1 for n in left if n > 1] + [127] * len(due)
        now += took
    start, took, prefill, decode = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    n = len(rows)
    steps = Steps(start_s=start, duration_s=took, running=decode, waiting=np.zeros(n), prefill_tokens=prefill,
                  decode_tokens=decode, kv_use=np.zeros(n))  # fmt: skip
    t = np.arange(0.0, 13.0, 0.05)
    power_w = np.full(len(t), BASE_W)
    spent = (PREFILL_J * prefill + DECODE_J * decode + STEP_J) * (1 + noise * rng.standard_normal(n))
    knots = np.stack([start, start + took], axis=1).ravel()
    total = np.cumsum(spent)
    levels = np.stack([total - spent, total], axis=1).ravel()
    energy = BASE_W * t + np.interp(t, knots, levels)
    series = [("gpu0.energy_j", energy), ("gpu0.power_w", power_w)] if power else []
    telemetry = Telemetry(
        series=np.concatenate([np.full(len(t), name, dtype=object) for name, _ in series] or [np.empty(0, object)]),
        t_s=np.concatenate([t for _ in series] or [np.empty(0)]),
        value=np.concatenate([v for _, v in series] or [np.empty(0)]),
    )
    return CellTables(Requests.empty(), Tokens.empty(), telemetry, steps)


INFO = (SeriesInfo(name="gpu0.energy_j", unit="J", source="made"),)


def test_known_costs_are_found_where_whole_cells_cannot_tell_them() -> None:
    cut = [slices(cell(rate, k, noise=0.05), WINDOW, INFO) for k, rate in enumerate((2, 10, 22, 30))]
    found = split_phases([c for c in cut if c is not None])
    for q, truth in (
        (found.j_per_prefill_token, PREFILL_J),
        (found.j_per_decode_token, DECODE_J),
        (found.j_per_step, STEP_J),
        (found.base_power_w, BASE_W),
        (found.s_per_prefill_token, PREFILL_S),
        (found.s_per_step, STEP_S),
    ):
        assert q.value == pytest.approx(truth, rel=0.15)
        assert q.low is not None and q.high is not None and q.low <= q.value <= q.high
    assert found.energy_residual.value is not None and found.energy_residual.value < 0.05


def test_slices_keep_every_token_and_joule() -> None:
    tables = cell(20, 1)
    cut = slices(tables, Window(start_s=0.0, end_s=12.0, method="planned", stationary=True), INFO)
    assert cut is not None and cut.energy_j is not None
    whole = tables.steps.start_s + tables.steps.duration_s <= 12.0
    assert cut.prefill_tokens.sum() == pytest.approx(tables.steps.prefill_tokens[whole].sum(), rel=0.02)
    assert (cut.busy_s <= cut.duration_s + 1e-9).all()


def test_no_iteration_log_and_no_counter_are_unknown_with_the_reason() -> None:
    assert slices(CellTables(Requests.empty(), Tokens.empty()), WINDOW) is None
    cut = [slices(cell(10, k, power=False), WINDOW) for k in range(3)]
    found = split_phases([c for c in cut if c is not None])
    assert found.j_per_step.why == "no energy counter in every cell of this deployment"
    assert found.s_per_step.known
    assert "needs at least" in (split_phases([]).s_per_step.why or "")


def test_on_recorded_runs_a_step_costs_what_its_weights_weigh() -> None:
    results = open_results("h200-8b-grid")
    cut: dict[str, list[Slices]] = {"bf16": [], "fp8": []}
    for record in results.records():
        method = record.cell["deployment"]["method"]
        if method in cut and record.window is not None:
            made = slices(results.tables(record), record.window, record.series)
            assert made is not None and made.energy_j is not None
            cut[method].append(made)
    found = {name: split_phases(cells) for name, cells in cut.items()}
    for split in found.values():
        assert (split.energy_residual.value or 1.0) < 0.10
        assert 100 < (split.base_power_w.value or 0.0) < 180
    assert (found["bf16"].j_per_step.low or 0.0) > (found["fp8"].j_per_step.high or 9.9)
    assert (found["bf16"].s_per_step.value or 0.0) == pytest.approx(5.4e-3, rel=0.1)


def test_replicas_that_step_beside_each_other_add_up() -> None:
    # GIVEN one engine's steps, and the same steps made by two replicas at the same times
    one = cell(10, 3)
    s = one.steps
    both = {name: np.concatenate([column, column]) for name, column in s.columns().items()}
    two = CellTables(one.requests, one.tokens, one.telemetry, Steps(**both | {"replica": np.repeat([0, 1], len(s))}))
    # WHEN they are cut into slices THEN everything counts twice, and nothing is lost where steps overlap
    single, double = slices(one, WINDOW, INFO), slices(two, WINDOW, INFO)
    assert single is not None and double is not None
    for name in ("busy_s", "prefill_tokens", "decode_tokens", "steps"):
        np.testing.assert_allclose(getattr(double, name), 2 * getattr(single, name))


def test_a_cost_that_the_loads_do_not_tell_apart_is_unknown_not_zero() -> None:
    """GIVEN an engine that steps all the time THEN its steps' energy is within the base power, and said so."""
    rng = np.random.default_rng(0)
    cells = []
    for decode in (20.0, 60.0):
        n = 30
        tokens = decode * (1 + 0.2 * rng.standard_normal(n))
        steps = 40 + rng.standard_normal(n)
        cells.append(
            Slices(
                duration_s=np.ones(n), busy_s=np.ones(n), prefill_tokens=100 + 20 * rng.standard_normal(n),
                decode_tokens=tokens, steps=steps, energy_j=500 + 2 * tokens - 2 * (steps - 40),
            )
        )  # fmt: skip
    found = split_phases(cells)
    assert found.j_per_step.value is None and "other terms" in (found.j_per_step.why or "")
    assert found.base_power_w.value == pytest.approx(500, rel=0.05)
