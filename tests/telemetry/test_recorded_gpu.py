"""GIVEN NVML and GPM readings recorded on an H200 at 700 W (BF16, 38 requests/s), WHEN played or analysed, THEN they
behave as the real ones did: a 100 ms counter, clocks held back by the power cap, power readings that scatter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qmeter.analysis.energy import device_energy, grouped
from qmeter.record import SeriesInfo, Window
from qmeter.telemetry.replay import ReplaySampler, read_recording

RECORDING = Path(__file__).parent / "fixtures" / "h200-bf16-38-per-s.parquet"
WINDOW = Window(start_s=2.0, end_s=13.0, method="planned", stationary=True)
INFO = tuple(SeriesInfo(name=f"gpu0.{n}", unit=u, source="nvml") for n, u in (("energy_j", "J"), ("power_w", "W")))


def test_played_back_the_counter_rises_by_what_was_recorded():
    table = read_recording(RECORDING)
    t_s, energy_j = table.of("gpu0.energy_j")
    now = [0.0]
    sampler = ReplaySampler(table, clock=lambda: now[0])
    first = sampler.read()["gpu0.energy_j"]
    now[0] = float(t_s[-1] - t_s[0])
    assert sampler.read()["gpu0.energy_j"] - first == pytest.approx(energy_j[-1] - energy_j[0])
    assert {i.name for i in sampler.series()} >= {"gpu0.gpm.tensor_util", "gpu0.gpm.dram_util", "gpu0.sm_clock_hz"}


def test_counter_and_power_disagree_by_no_more_than_the_readings_scatter():
    found = device_energy("gpu0", grouped(read_recording(RECORDING)), INFO, WINDOW)
    assert found.energy.value == pytest.approx(7103, abs=2)
    assert found.curve is not None and found.curve.refresh_s == pytest.approx(0.1, abs=0.01)
    assert found.bound_j < 0.015 * (found.energy.value or 0.0)
    (warning,) = found.warnings
    assert warning.kind == "energy_cross_check"
    assert "-3.0%" in warning.message and "explains" in warning.message


def test_the_power_cap_held_the_clocks_below_what_the_card_reaches():
    table = read_recording(RECORDING)
    inside = slice(40, 260)
    assert set(table.of("gpu0.power_limit_w")[1]) == {700.0}
    assert (table.of("gpu0.throttle_reasons")[1][inside] == 4.0).all()  # NVML: software power cap
    assert 1.7e9 < table.of("gpu0.sm_clock_hz")[1][inside].mean() < 1.9e9
    for name in ("sm_util", "tensor_util", "dram_util"):
        values = table.of(f"gpu0.gpm.{name}")[1]
        assert (values >= 0.0).all() and (values <= 1.0).all() and np.ptp(values) > 0.0
