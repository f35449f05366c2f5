"""GIVEN an idle baseline WHEN it is taken THEN the record says what the GPUs were like: power alone does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qmeter.engines import standby
from qmeter.record import SeriesInfo, Telemetry
from qmeter.spec.study import Deployment, EngineRef, ModelRef, Parallelism
from qmeter.store import open_results
from qmeter.study import idle
from qmeter.telemetry.nvml import NvmlSampler

sys.path.insert(0, str(Path(__file__).parents[1] / "telemetry"))
from nvml_fake import FakeNvml

TWO = Deployment(
    model=ModelRef(name="m", source="x", shape="s"), engine=EngineRef(name="vllm"), method="f16", device="auto",
    parallelism=Parallelism(tp=2),
)  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "IDLE_S", 0.2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_clock_temperature_memory_and_processes_are_kept_beside_the_power() -> None:
    card = FakeNvml(count=3)
    card.contexts = [1, 0, 5]  # the third GPU is not this deployment's
    found = idle.measure_idle([NvmlSampler(card)], TWO, (0, 1), 20.0)
    values = {name: q.value for name, q in found.conditions.items()}
    assert values == {
        "idle_sm_clock_hz": 1.98e9, "idle_temperature_c": 41.0, "idle_memory_used_bytes": 2.0**30,
        "idle_processes": 1.0, "idle_standbys": 0.0,
    }  # fmt: skip
    assert found.power.value == pytest.approx(700.0)
    assert found.power.why == (
        "before the launch: SM clock 1980 MHz, 41 °C, 1.0 GiB in use, processes on the GPU 1, programs started ahead 0"
    )


def test_a_program_started_ahead_counts_while_it_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    monkeypatch.setattr(standby, "_waiting", [standby.Waiting(child, -1, (), {})])
    found = idle.measure_idle([NvmlSampler(FakeNvml(count=2))], TWO, (0, 1), 20.0)
    child.kill()
    child.wait()
    assert found.conditions["idle_standbys"].value == 1.0 and "started ahead 1" in (found.power.why or "")
    assert idle.measure_idle([NvmlSampler(FakeNvml(count=2))], TWO, (0, 1), 20.0).conditions["idle_standbys"].value == 0


def test_what_the_card_does_not_tell_is_unknown_with_the_reason() -> None:
    card = FakeNvml(count=2, broken=("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetTemperature"))
    found = idle.measure_idle([NvmlSampler(card)], TWO, (0, 1), 20.0)
    assert found.conditions["idle_processes"].why == "no sampler lists the processes on these GPUs"
    assert found.conditions["idle_temperature_c"].why == "no reading of temperature_c on every GPU"
    assert "temperature unknown" in (found.power.why or "") and found.power.known


def test_a_host_without_a_gpu_has_no_conditions() -> None:
    names = np.array(["cpu.energy_j"] * 3, dtype=object)
    made = Telemetry(names, np.array([0.0, 1.0, 2.0]), np.array([5.0, 70.0, 135.0]))
    found = idle.baseline(made, (SeriesInfo(name="cpu.energy_j", unit="J", source="rapl"),), {}, 1)
    assert found.power.value == pytest.approx(65.0) and found.power.why is None and not found.conditions
    assert not idle.measure_idle([], TWO, (0, 1), 20.0).power.known


def test_records_from_before_have_no_conditions_and_load() -> None:
    record = next(iter(open_results("h200-8b-grid").records()))
    assert record.energy["idle_power_w"].known and record.energy["energy_above_idle_j"].known
    assert not any(name.startswith("idle_") for name in record.energy if name != "idle_power_w")
