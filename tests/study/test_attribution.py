"""GIVEN telemetry of a whole host, WHEN a deployment uses a part of it, THEN only that part counts as its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qmeter.engines.base import Launch
from qmeter.record import SeriesInfo, Telemetry
from qmeter.spec.study import Deployment, EngineRef, ModelRef, Parallelism
from qmeter.study.attribution import ELSEWHERE, mean_power, misplaced, own_readings

UNITS = {"gpu0.power_w": "W", "gpu1.power_w": "W", "gpu10.power_w": "W", "cpu.energy_j": "J", "engine.running": "1"}
SERIES = tuple(SeriesInfo(name=n, unit=u, source="test") for n, u in UNITS.items())
LOCAL = Launch(("engine",), "http://127.0.0.1:1", "m", Path("log"))


def telemetry() -> Telemetry:
    names = [n for n in UNITS for _ in range(3)]
    values = [100.0] * 3 + [30.0] * 3 + [20.0] * 3 + [5.0, 7.0, 9.0] + [1.0] * 3
    return Telemetry(np.array(names, dtype=object), np.array([0.0, 0.5, 1.0] * len(UNITS)), np.array(values))


def deployment(engine: str, tp: int = 1) -> Deployment:
    model = ModelRef(name="m", source="x", shape="s")
    return Deployment(
        model=model, engine=EngineRef(name=engine), method="f16", device="auto", parallelism=Parallelism(tp=tp)
    )


@pytest.mark.parametrize(
    ("engine", "tp", "gpus"),
    [
        ("vllm", 1, ["gpu0"]),
        ("vllm", 2, ["gpu0", "gpu1"]),
        ("openvino", 1, []),
        ("llamacpp", 1, ["gpu0", "gpu1", "gpu10"]),
    ],
)
def test_gpus_that_a_deployment_does_not_use_are_not_its_own(engine: str, tp: int, gpus: list[str]) -> None:
    table, infos = own_readings(deployment(engine, tp), LOCAL, telemetry(), SERIES)
    found = [i.name.split(".")[0] for i in infos if i.name.startswith("gpu")]
    assert found == gpus == [n.split(".")[0] for n in dict.fromkeys(table.series) if n.startswith("gpu")]
    assert len(table.of("engine.running")[0]) == 3


def test_of_a_server_on_another_machine_nothing_of_this_host_is_kept() -> None:
    away = Launch(None, "https://api.example.org", "m", Path("log"))
    table, infos = own_readings(deployment("endpoint"), away, telemetry(), SERIES)
    assert set(table.series) == {"engine.running"}
    assert {i.gap for i in infos if i.name != "engine.running"} == {ELSEWHERE}
    here = Launch(None, "http://localhost:8000", "m", Path("log"))
    assert len(own_readings(deployment("endpoint"), here, telemetry(), SERIES)[0]) == len(telemetry())


def test_mean_power_has_the_scope_of_the_energy() -> None:
    assert mean_power(telemetry(), SERIES).value == pytest.approx(150.0)
    cpu = own_readings(deployment("openvino"), LOCAL, telemetry(), SERIES)
    assert mean_power(*cpu).value == pytest.approx(4.0), "9 - 5 J in 1 s"
    assert mean_power(Telemetry.empty(), ()).why


def test_a_gpu_that_holds_no_weights_is_the_wrong_one():
    def holding(*gib: float) -> Telemetry:
        names = [f"gpu{d}.memory_used_bytes" for d in range(len(gib)) for _ in range(2)]
        return Telemetry(np.array(names, dtype=object), np.array([0.0, 1.0] * len(gib)), np.repeat(gib, 2) * 2**30)

    weights = 16 * 2**30
    assert misplaced((0, 1), weights, holding(40.0, 30.0)) is None
    found = misplaced((0, 1), weights, holding(40.0, 0.4))
    assert found is not None and found.kind == "wrong_gpu" and "gpu1 0.4 GiB" in found.message
    assert misplaced((1,), weights, holding(40.0, 0.4)) is not None
    for unknown in (misplaced(None, weights, holding(0.1)), misplaced((0,), None, holding(0.1)),
                    misplaced((0,), weights, Telemetry.empty())):  # fmt: skip
        assert unknown is None


def test_placed_deployments_get_the_readings_of_their_gpus_and_gaps_for_silent_ones():
    found, infos = own_readings(deployment("vllm"), LOCAL, telemetry(), SERIES, devices=(1,))
    assert {n for n in found.series if n.startswith("gpu")} == {"gpu1.power_w"}
    _, infos = own_readings(deployment("vllm", tp=3), LOCAL, telemetry(), SERIES, devices=(0, 1, 2))
    assert [(i.name, bool(i.gap)) for i in infos if i.name.startswith("gpu2.")] == [("gpu2.energy_j", True)]
