"""GIVEN a recording, WHEN it is played, THEN the same values come at the same times."""

from __future__ import annotations

import numpy as np
import pytest

from qmeter.errors import TelemetryError
from qmeter.record import Telemetry
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
