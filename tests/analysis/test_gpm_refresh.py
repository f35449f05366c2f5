"""GIVEN GPM readings faster than their counters are refreshed, WHEN they are used, THEN readings without news count for
nothing, and a GPU that does nothing still reads 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qmeter.analysis.energy import grouped
from qmeter.analysis.refresh import with_news
from qmeter.telemetry.replay import read_recording

RECORDING = Path(__file__).parents[1] / "telemetry" / "fixtures" / "h200-bf16-38-per-s.parquet"


def readings(rate_hz: float, seconds: float = 4.0, refresh_s: float = 0.1) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A GPU 40% busy, read at a rate: 0 in every metric where nothing was refreshed since the reading before."""
    t_s = np.arange(1, round(seconds * rate_hz)) / rate_hz
    fresh = np.diff(np.floor(np.concatenate([[0.0], t_s]) / refresh_s + 1e-9)) > 0
    return {
        "gpu0.gpm.tensor_util": (t_s, np.where(fresh, 0.4, 0.0)),
        "gpu0.gpm.integer_tensor_util": (t_s, np.zeros(len(t_s))),
        "gpu0.gpm.dram_util": (t_s[fresh], np.full(fresh.sum(), 0.3)),
        "gpu0.power_w": (t_s, np.zeros(len(t_s))),
    }


@pytest.mark.parametrize("rate_hz", [5, 10, 20, 50, 100])
def test_means_do_not_depend_on_the_rate_of_reading(rate_hz: float) -> None:
    made = with_news(readings(rate_hz))
    assert made["gpu0.gpm.tensor_util"][1].mean() == pytest.approx(0.4)
    assert made["gpu0.gpm.dram_util"][1].mean() == pytest.approx(0.3)
    # AND a metric that really is 0 keeps its readings, and what is not GPM's stays as it is
    assert len(made["gpu0.gpm.integer_tensor_util"][0]) == len(made["gpu0.gpm.tensor_util"][0])
    np.testing.assert_array_equal(made["gpu0.power_w"][0], readings(rate_hz)["gpu0.power_w"][0])


def test_an_idle_gpu_reads_zero_and_a_second_gpu_is_judged_by_itself() -> None:
    # GIVEN a busy GPU, and one that does nothing: its zeros stand where time had passed
    busy = readings(20)
    idle = {name.replace("gpu0", "gpu1"): (t, np.zeros(len(t))) for name, (t, _) in busy.items()}
    made = with_news({**busy, **idle})
    np.testing.assert_array_equal(made["gpu1.gpm.tensor_util"][0], busy["gpu0.gpm.dram_util"][0])
    assert made["gpu1.gpm.tensor_util"][1].mean() == 0.0
    # AND a refresh that came late: a zero, then twice as much, whose mean is right
    t_s, value = busy["gpu0.gpm.tensor_util"]
    fresh = np.flatnonzero(value)
    value = value.copy()
    value[fresh[3]], value[fresh[4]] = 0.0, 0.8
    late = with_news({**busy, "gpu0.gpm.tensor_util": (t_s, value)})
    assert late["gpu0.gpm.tensor_util"][1].mean() == pytest.approx(0.4)


def test_without_the_dram_metric_nothing_tells_and_all_is_kept() -> None:
    series = {n: v for n, v in readings(20).items() if "dram" not in n}
    made = with_news(series)
    assert {n: len(v[0]) for n, v in made.items()} == {n: len(v[0]) for n, v in series.items()}


def test_the_recorded_h200_read_every_second_time_in_vain() -> None:
    table = read_recording(RECORDING)
    series = grouped(table)
    for name in ("sm_util", "tensor_util"):
        raw, used = table.of(f"gpu0.gpm.{name}")[1], series[f"gpu0.gpm.{name}"][1]
        assert len(used) == pytest.approx(len(raw) / 2, abs=5)
        assert used.mean() == pytest.approx(2 * raw.mean(), rel=0.03)
    assert len(series["gpu0.gpm.dram_util"][1]) == len(table.of("gpu0.gpm.dram_util")[1])
