"""Energy over the window: counters, wraps, stuck and missing readings, cross-check, ratios, regression."""

from __future__ import annotations

import numpy as np
import pytest

from qmeter.analysis.energy import Work, energy_metrics
from qmeter.analysis.energy_split import CellEnergy, nnls, split_energy
from qmeter.record import Quantity, SeriesInfo, Telemetry, Window

WINDOW = Window(start_s=2.0, end_s=12.0, method="m", stationary=True)
TIMES = np.arange(-1.0, 14.0, 0.05)


def telemetry(**series: np.ndarray) -> Telemetry:
    """Series (dots as double underscores) on :data:`TIMES`."""
    names = np.repeat(np.array([k.replace("__", ".") for k in series], dtype=object), len(TIMES))
    return Telemetry(names, np.tile(TIMES, len(series)), np.concatenate(list(series.values())))


def work(tokens: int = 1000) -> Work:
    t = np.linspace(2.0, 11.99, tokens)
    return Work(tokens, 2 * tokens, 20, Quantity.of(0.5, "s"), t, np.ones(tokens))


def measured(t: Telemetry, info: tuple[SeriesInfo, ...] = (), idle: Quantity | None = None) -> tuple[dict, list]:  # type: ignore[type-arg]
    return energy_metrics(t, info, WINDOW, work(), idle_power=idle, confidence=0.95)


def staircase(power_w: float, refresh_s: float = 0.1) -> np.ndarray:
    return 1e6 + power_w * np.floor(TIMES / refresh_s + 1e-9) * refresh_s


def test_constant_power_gives_its_energy_within_the_stated_bound() -> None:
    out, warnings = measured(telemetry(gpu0__energy_j=staircase(500.0), gpu0__power_w=np.full(len(TIMES), 500.0)))
    q = out["energy_j"]
    assert q.value == pytest.approx(5000, abs=50)
    assert q.low <= 5000 <= q.high and q.high - q.value == pytest.approx(50, rel=0.3)
    assert out["power_mean_w"].value == pytest.approx(500, rel=0.01)
    assert out["power_peak_w"].value == 500
    assert out["j_per_output_token"].value == pytest.approx(5.0, rel=0.01)
    assert out["j_per_request"].value == pytest.approx(250, rel=0.01)
    assert out["edp_j_s"].value == pytest.approx(125, rel=0.01)
    assert not warnings


def test_edges_between_refreshes_stay_inside_the_bound() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        phase, power = rng.uniform(0, 0.1), rng.uniform(100, 700)
        counted = power * np.floor((TIMES + phase) / 0.1) * 0.1
        q = measured(telemetry(gpu0__energy_j=counted))[0]["energy_j"]
        assert q.low <= power * 10 <= q.high


def test_reset_is_bridged_and_reported() -> None:
    counted = staircase(300.0)
    counted[TIMES > 6.0] -= counted[TIMES > 6.0][0]
    out, warnings = measured(telemetry(gpu0__energy_j=counted))
    assert out["energy_j"].value == pytest.approx(3000, rel=0.02)
    assert [w.kind for w in warnings] == ["energy_counter_reset"]


def test_stuck_counter_is_unknown_not_zero() -> None:
    out, _ = measured(telemetry(gpu0__energy_j=np.full(len(TIMES), 7.0)))
    assert out["energy_j"].value is None and "stuck" in out["energy_j"].why


def test_disagreement_of_counter_and_power_is_a_warning() -> None:
    out, warnings = measured(telemetry(gpu0__energy_j=staircase(500.0), gpu0__power_w=np.full(len(TIMES), 530.0)))
    assert out["energy_j"].known
    assert [w.kind for w in warnings] == ["energy_cross_check"] and "+6" in warnings[0].message


def test_power_alone_is_integrated_and_says_so() -> None:
    info = (SeriesInfo(name="gpu0.energy_j", unit="J", source="NVML", gap="not supported before Volta"),)
    out, _ = measured(telemetry(gpu0__power_w=np.full(len(TIMES), 200.0)), info)
    assert out["energy_j"].value == pytest.approx(2000)
    assert "not counted" in out["energy_j"].why and "Volta" in out["energy_j"].why
    assert "not counted" in out["j_per_output_token"].why


def test_two_gpus_are_summed_and_stand_alone() -> None:
    out, _ = measured(telemetry(gpu0__energy_j=staircase(300.0), gpu1__energy_j=staircase(100.0)))
    assert out["gpu0.energy_j"].value == pytest.approx(3000, rel=0.01)
    assert out["gpu1.energy_j"].value == pytest.approx(1000, rel=0.01)
    assert out["energy_j"].value == pytest.approx(4000, rel=0.01)


def test_one_silent_gpu_makes_the_sum_unknown() -> None:
    info = (SeriesInfo(name="gpu1.energy_j", unit="J", source="NVML", gap="lost at 3.1 s: GPU is lost"),)
    out, _ = measured(telemetry(gpu0__energy_j=staircase(300.0)), info)
    assert out["gpu0.energy_j"].known and out["energy_j"].value is None
    assert "GPU is lost" in out["energy_j"].why


def test_cpu_counter_is_the_energy_where_there_is_no_gpu() -> None:
    out, _ = measured(telemetry(cpu__energy_j=staircase(65.0, 0.001)))
    assert out["energy_j"].value == pytest.approx(650, rel=0.01)
    assert "CPU package only" in out["energy_j"].why


def test_readings_that_do_not_span_the_window_are_refused() -> None:
    late = telemetry(gpu0__energy_j=staircase(100.0))
    keep = late.t_s > 3.0
    out, _ = measured(Telemetry(late.series[keep], late.t_s[keep], late.value[keep]))
    assert out["energy_j"].value is None and "window" in out["energy_j"].why


def test_idle_baseline_is_taken_off() -> None:
    out, _ = measured(telemetry(gpu0__energy_j=staircase(500.0)), idle=Quantity.of(120.0, "W"))
    assert out["energy_above_idle_j"].value == pytest.approx(3800, rel=0.02)
    assert out["energy_above_idle_j"].why is None
    warm = Quantity.of(104.0, "W", why="before the launch: SM clock 1980 MHz")
    out, _ = measured(telemetry(gpu0__energy_j=staircase(500.0)), idle=warm)
    assert out["energy_above_idle_j"].why == "above 104 W before the launch: SM clock 1980 MHz"
    none, _ = measured(telemetry(gpu0__energy_j=staircase(500.0)))
    assert none["energy_above_idle_j"].why == "no idle baseline was measured"


def _cells(rng: np.random.Generator, n: int = 12, noise: float = 0.01) -> list[CellEnergy]:
    out = []
    for _ in range(n):
        prefill, decode = rng.uniform(1e3, 6e4), rng.uniform(1e3, 2e4)
        energy = 0.01 * prefill + 0.2 * decode + 110 * 10
        out.append(CellEnergy(energy * rng.normal(1, noise), prefill, decode, 10.0))
    return out


def test_split_finds_the_planted_coefficients() -> None:
    made = split_energy(_cells(np.random.default_rng(0)))
    for q, truth in ((made.j_per_prefill_token, 0.01), (made.j_per_decode_token, 0.2), (made.base_power_w, 110)):
        assert q.value == pytest.approx(truth, rel=0.15) and q.low <= truth <= q.high


def test_split_intervals_cover() -> None:
    hits = 0
    for seed in range(40):
        q = split_energy(_cells(np.random.default_rng(seed), noise=0.02), seed=seed).j_per_decode_token
        hits += q.low <= 0.2 <= q.high
    assert hits >= 33


def test_split_refuses_cells_that_cannot_tell_prefill_from_decode() -> None:
    cells = [CellEnergy(100 + k, 512.0 * k, 64.0 * k, 10.0) for k in range(1, 8)]
    made = split_energy(cells)
    assert made.j_per_decode_token.value is None and "vary prompt and output lengths" in made.j_per_decode_token.why
    assert split_energy(cells[:2]).residual.why == "needs at least 4 cells with energy; there are 2"


@pytest.mark.parametrize(
    ("prefill_j", "decode_j", "base_w", "gone"),
    [(0.0, 0.2, 110.0, "prefill"), (0.01, 0.0, 110.0, "decode"), (0.01, 0.2, 0.0, "base")],
)
def test_a_coefficient_at_its_bound_is_unknown_not_zero(
    prefill_j: float, decode_j: float, base_w: float, gone: str
) -> None:
    """GIVEN cells in which one term pulls a little below 0 THEN it is unknown, and the others stay."""
    rng = np.random.default_rng(3)
    cells = []
    for _ in range(12):
        prefill, decode, seconds = rng.uniform(1e4, 6e4), rng.uniform(1e4, 2e4), rng.uniform(5, 20)
        column = {"prefill": prefill, "decode": decode, "base": 1e3 * seconds}[gone]
        energy = prefill_j * prefill + decode_j * decode + base_w * seconds
        cells.append(CellEnergy(energy - 1e-4 * column, prefill, decode, seconds))
    made = split_energy(cells)
    found = {"prefill": made.j_per_prefill_token, "decode": made.j_per_decode_token, "base": made.base_power_w}
    truth = {"prefill": prefill_j, "decode": decode_j, "base": base_w}
    for name, q in found.items():
        if name == gone:
            assert q.value is None and "cannot be told from 0 at these loads" in (q.why or "")
            assert q.unit == ("W" if name == "base" else "J/token")
        else:
            assert q.value == pytest.approx(truth[name], rel=0.05)
    assert made.residual.known


def test_a_base_power_above_all_that_was_measured_leaves_both_costs_unknown() -> None:
    made = split_energy(_cells(np.random.default_rng(0)), base_power=Quantity.of(1e6, "W"))
    assert not made.j_per_prefill_token.known and not made.j_per_decode_token.known
    assert "decode energy" in (made.j_per_decode_token.why or "") and made.base_power_w.value == 1e6


def test_nnls_never_goes_negative() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        a, b = rng.normal(size=(8, 3)), rng.normal(size=8)
        x = nnls(a, b)
        assert (x >= 0).all()
        gradient = a.T @ (a @ x - b)
        assert (gradient[x == 0] >= -1e-9).all() and np.abs(gradient[x > 0]).max(initial=0) < 1e-8
