"""GIVEN a recording, WHEN it is played, THEN the same values come at the same times."""

from __future__ import annotations

import numpy as np
import pytest

from qmeter.analysis.energy import Work, energy_metrics, grouped
from qmeter.analysis.links import link_metrics
from qmeter.errors import TelemetryError
from qmeter.record import Quantity, SeriesInfo, Telemetry, Window
from qmeter.telemetry.replay import ReplaySampler, read_recording, unit_of
from qmeter.telemetry.roofline import Ceiling, Roofline, from_json, to_json

RECORDING = Telemetry(
    series=np.array(["gpu0.power_w"] * 3 + ["gpu0.energy_j"] * 3, dtype=object),
    t_s=np.array([10.0, 10.1, 10.2] * 2),
    value=np.array([300.0, 400.0, 500.0, 1000.0, 1035.0, 1080.0]),
)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_values_are_the_last_recorded_ones_at_the_same_time_since_the_start():
    clock = Clock()
    sampler = ReplaySampler(RECORDING, clock=clock)
    assert sampler.read() == {"gpu0.power_w": 300.0, "gpu0.energy_j": 1000.0}
    clock.now += 0.15
    assert sampler.read() == {"gpu0.power_w": 400.0, "gpu0.energy_j": 1035.0}


def test_past_the_end_it_falls_silent():
    clock = Clock()
    sampler = ReplaySampler(RECORDING, clock=clock)
    clock.now += 1.0
    assert sampler.read() == {}


def test_looping_goes_on_counting():
    clock = Clock()
    sampler = ReplaySampler(RECORDING, loop=True, clock=clock)
    clock.now += 0.31
    values = sampler.read()
    assert values["gpu0.energy_j"] == pytest.approx(1035.0 + 80.0)
    assert values["gpu0.power_w"] == 400.0


def test_units_follow_the_names():
    infos = {i.name: i for i in ReplaySampler(RECORDING).series()}
    assert infos["gpu0.energy_j"].unit == "J"
    assert infos["gpu0.energy_j"].cumulative
    assert infos["gpu0.power_w"].unit == "W"
    assert [unit_of(n) for n in ("gpu0.gpm.pcie_tx_bytes_s", "gpu0.memory_used_bytes", "gpu0.gpm.sm_util")] == [
        "B/s", "B", "1",
    ]  # fmt: skip


def test_a_csv_recording_reads_back(tmp_path):
    path = tmp_path / "it's.csv"
    path.write_text("series,t_s,value\ngpu0.power_w,0.0,250\ngpu0.power_w,0.1,260\n")
    table = read_recording(path)
    assert table.of("gpu0.power_w")[1].tolist() == [250.0, 260.0]


@pytest.mark.parametrize("text", ["a,b\n1,2\n", None])
def test_a_file_that_is_no_recording_says_what_it_needs(tmp_path, text):
    path = tmp_path / "x.csv"
    if text:
        path.write_text(text)
    with pytest.raises(TelemetryError) as caught:
        read_recording(path)
    assert "series, t_s, value" in caught.value.hint


def test_an_empty_recording_is_refused():
    with pytest.raises(TelemetryError, match="no readings"):
        ReplaySampler(Telemetry.empty())


def test_a_roofline_reads_back_and_gives_the_ridge():
    made = Roofline("NVIDIA H200", "9.0", "2.11.0", (
        Ceiling("copy", "B/s", 4.3e12, 0.01), Ceiling("bf16", "FLOP/s", 7.9e14, 0.02),
        Ceiling("int8", "OP/s", None, why="not built"),
    ))  # fmt: skip
    again = from_json(to_json(made))
    assert again == made
    assert again.ridge("bf16") == pytest.approx(183.7, abs=0.1)
    assert again.ridge("int8") is None
    with pytest.raises(TelemetryError):
        from_json('{"device": 1}')


def two_gpus(*, silent: str = "") -> tuple[Telemetry, list[SeriesInfo]]:
    """Twelve seconds of a TP 2 deployment: 400 W and 600 W, 30 and 50 GB/s sent; ``silent`` gives no reading."""
    t = np.arange(0.0, 12.0, 0.05)
    rows, infos = [], []
    for gpu, watts, sent in (("gpu0", 400.0, 3e10), ("gpu1", 600.0, 5e10)):
        made = {"energy_j": watts * t, "power_w": np.full(len(t), watts), "nvlink_tx_bytes": sent * t}
        for name, values in made.items():
            key = f"{gpu}.{name}"
            gap = "the sampler stopped after 3 readings" if gpu == silent else None
            infos.append(SeriesInfo(name=key, unit="1", source="recorded", gap=gap))
            rows += [] if gap else [(key, values)]
    names = np.concatenate([np.full(len(t), key, dtype=object) for key, _ in rows])
    return Telemetry(names, np.tile(t, len(rows)), np.concatenate([v for _, v in rows])), infos


WINDOW = Window(start_s=1.0, end_s=11.0, method="planned", stationary=True)
WORK = Work(1000.0, 5000.0, 10.0, Quantity.of(1.0, "s"), np.linspace(1.0, 11.0, 1000), np.ones(1000))


def test_two_gpus_played_back_are_summed_and_kept_apart():
    telemetry, infos = two_gpus()
    clock = Clock()
    sampler, rows = ReplaySampler(telemetry, clock=clock), []
    for _ in range(230):  # as the recorder would
        rows += [(name, clock.now - 100.0, value) for name, value in sampler.read().items()]
        clock.now += 0.05
    names, t_s, values = zip(*rows, strict=True)
    played = Telemetry(np.array(names, dtype=object), np.array(t_s), np.array(values))
    energy, warnings = energy_metrics(played, infos, WINDOW, WORK, idle_power=None, confidence=0.95)
    assert energy["gpu0.energy_j"].value == pytest.approx(4000.0, rel=0.01)
    assert energy["gpu1.energy_j"].value == pytest.approx(6000.0, rel=0.01)
    assert energy["energy_j"].value == pytest.approx(10000.0, rel=0.01)
    assert energy["power_peak_w"].value == pytest.approx(1000.0)
    assert energy["j_per_output_token"].value == pytest.approx(10.0, rel=0.01)
    assert not warnings
    links = link_metrics(grouped(played), infos, WINDOW, 1000.0)
    assert links["nvlink_bytes_s"].value == pytest.approx(8e10, rel=0.01)
    assert links["nvlink_bytes_per_token"].value == pytest.approx(8e8, rel=0.01)


def test_one_silent_gpu_makes_every_sum_unknown_with_its_reason():
    telemetry, infos = two_gpus(silent="gpu1")
    energy, _ = energy_metrics(telemetry, infos, WINDOW, WORK, idle_power=None, confidence=0.95)
    assert energy["gpu0.energy_j"].value == pytest.approx(4000.0, rel=0.01)
    for name in ("energy_j", "j_per_output_token", "j_per_request", "power_mean_w", "power_peak_w", "edp_j_s"):
        assert energy[name].value is None
        assert "gpu1" in (energy[name].why or ""), name
        assert "stopped after 3 readings" in (energy[name].why or ""), name
    links = link_metrics(grouped(telemetry), infos, WINDOW, 1000.0)
    assert links["nvlink_bytes_s"].value is None and "gpu1" in (links["nvlink_bytes_s"].why or "")


def test_one_gpu_has_no_traffic_between_gpus():
    assert link_metrics({}, [SeriesInfo(name="gpu0.energy_j", unit="J", source="x")], WINDOW, 1.0) == {}
