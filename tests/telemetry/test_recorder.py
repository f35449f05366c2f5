"""GIVEN samplers that are well, slow or broken, WHEN recorded, THEN readings stand on the clock and gaps say why."""

from __future__ import annotations

import http.server
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from qmeter.engines.base import Launch, MetricsMap, MetricSource
from qmeter.record import SeriesInfo
from qmeter.telemetry.host import EngineProcessSampler, HostSampler
from qmeter.telemetry.prometheus import EngineSampler, parse_page
from qmeter.telemetry.rapl import RaplSampler
from qmeter.telemetry.recorder import Recorder


class Scripted:
    """A sampler that gives 1, 2, 3, …; ``delay_s`` a reading; raises at reading ``breaks_at``."""

    def __init__(self, name: str, delay_s: float = 0.0, breaks_at: int | None = None):
        self.name, self.delay_s, self.breaks_at, self.count = name, delay_s, breaks_at, 0

    def series(self) -> tuple[SeriesInfo, ...]:
        return (SeriesInfo(name=self.name, unit="1", source="script"),)

    def read(self) -> Mapping[str, float]:
        self.count += 1
        if self.count == self.breaks_at:
            raise OSError("device fell off the bus")
        time.sleep(self.delay_s)
        return {self.name: float(self.count)}

    def close(self) -> None: ...


def record_for(samplers: list[Scripted], seconds: float, rate_hz: float):  # type: ignore[no-untyped-def]
    recorder = Recorder(samplers, rate_hz, time.monotonic())
    recorder.start()
    time.sleep(seconds)
    return recorder.stop()


def test_readings_come_at_the_rate_asked_on_the_cells_clock() -> None:
    table, (info,) = record_for([Scripted("a")], 1.0, 50)
    t_s, values = table.of("a")
    assert info.gap is None and info.rate_hz == pytest.approx(50, rel=0.2)
    assert t_s[0] == pytest.approx(0, abs=0.1) and np.all(np.diff(t_s) > 0)
    np.testing.assert_array_equal(values, np.arange(1, len(values) + 1))


def test_a_slow_sampler_does_not_hold_up_the_others() -> None:
    _, infos = record_for([Scripted("slow", delay_s=0.15), Scripted("fast")], 1.0, 40)
    rates = {i.name: i.rate_hz for i in infos}
    assert rates["slow"] is not None and rates["slow"] < 8
    assert rates["fast"] is not None and rates["fast"] > 30


def test_a_sampler_that_breaks_is_a_gap_with_its_reason_and_keeps_what_it_had() -> None:
    table, (info,) = record_for([Scripted("a", breaks_at=4)], 0.5, 50)
    assert len(table.of("a")[0]) == 3
    assert info.gap and "fell off the bus" in info.gap and "3 readings" in info.gap


def test_the_host_is_read() -> None:
    table, infos = record_for([HostSampler()], 0.3, 20)  # type: ignore[list-item]
    assert not [i.gap for i in infos if i.gap]
    assert table.of("host.memory_used_bytes")[1].min() > 1e6
    assert np.all((table.of("host.cpu_share")[1] >= 0) & (table.of("host.cpu_share")[1] <= 1))


def test_an_engine_that_is_not_ours_has_no_process_series() -> None:
    sampler = EngineProcessSampler(lambda: [])
    assert sampler.read() == {}
    assert all(i.gap for i in sampler.series())


def rapl(root: Path, energies_uj: list[int], wrap_uj: int = 1_000_000) -> Path:
    for i, energy in enumerate(energies_uj):
        zone = root / f"intel-rapl:{i}"
        zone.mkdir(parents=True, exist_ok=True)
        (zone / "energy_uj").write_text(str(energy))
        (zone / "max_energy_range_uj").write_text(str(wrap_uj))
    (root / "intel-rapl:0:0").mkdir(exist_ok=True)
    return root


def test_rapl_sums_sockets_and_survives_a_wrap(tmp_path: Path) -> None:
    sampler = RaplSampler(rapl(tmp_path, [900_000, 500_000]))
    assert sampler.read() == {"cpu.energy_j": pytest.approx(1.4)}
    rapl(tmp_path, [100_000, 600_000])
    assert sampler.read() == {"cpu.energy_j": pytest.approx(1.7)}, "socket 0 wrapped at 1 J: 0.1 + 1.0 + 0.6"


def test_rapl_does_not_count_the_platform_domain_with_its_packages(tmp_path: Path) -> None:
    root = rapl(tmp_path, [500_000, 900_000])
    (root / "intel-rapl:0" / "name").write_text("package-0\n")
    (root / "intel-rapl:1" / "name").write_text("psys\n")
    assert RaplSampler(root).read() == {"cpu.energy_j": pytest.approx(0.5)}


def test_shares_are_never_counted_from_the_cell_before() -> None:
    host, engine = HostSampler(), EngineProcessSampler(lambda: [os.getpid()])
    for sampler, name in ((host, "host.cpu_share"), (engine, "engine_process.cpu_share")):
        first, _ = record_for([sampler], 0.35, 10)  # type: ignore[list-item]
        assert len(first.of(name)[0]) >= 1 and first.of(name)[0][0] > 0.05
        setattr(sampler, "_last" if sampler is host else "_read_s", None)
        assert name not in sampler.read(), "as after a pause between cells"


def test_an_engine_that_ended_keeps_its_readings_and_is_not_called_foreign() -> None:
    pids = [os.getpid()]
    sampler = EngineProcessSampler(lambda: list(pids))
    assert sampler.read()["engine_process.rss_bytes"] > 0
    pids.clear()
    assert not [i.gap for i in sampler.series() if i.gap]


def test_a_reading_that_is_no_number_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Scripted("a")
    monkeypatch.setattr(broken, "read", lambda: {"a": "n/a"})
    _, (info,) = record_for([broken], 0.1, 20)
    assert info.gap and "ValueError" in info.gap


def test_a_reading_that_is_stuck_does_not_hold_up_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qmeter.telemetry.recorder.STUCK_S", 0.2)
    _, (info,) = record_for([Scripted("a", delay_s=1.5)], 0.1, 20)
    assert info.gap and "stuck" in info.gap


def test_no_rapl_is_a_gap_not_zero(tmp_path: Path) -> None:
    sampler = RaplSampler(tmp_path)
    assert sampler.read() == {}
    assert "virtual machines" in (sampler.series()[0].gap or "")


PAGE = b"""# HELP vllm:num_requests_running x
vllm:num_requests_running{engine="0",model_name="a}b"} 3.0
vllm:num_requests_running{engine="1",model_name="ab"} 4.0 1700000000000
vllm:kv_cache_usage_perc{engine="0"} 2.5e-01
vllm:bad NaN
up 1
"""


def test_a_prometheus_page_is_summed_over_labels() -> None:
    found = parse_page(PAGE.decode(), {"vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:bad", "up"})
    assert found == {"vllm:num_requests_running": 7.0, "vllm:kv_cache_usage_perc": 0.25, "up": 1.0}


@pytest.fixture
def page_url() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.send_header("Content-Length", str(len(PAGE)))
            self.end_headers()
            self.wfile.write(PAGE)

        def log_message(self, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


MAPPING = MetricsMap(
    "/metrics",
    (
        MetricSource("engine.running", "vllm:num_requests_running", "1"),
        MetricSource("engine.waiting", "vllm:no_such_metric", "1"),
    ),
)


def test_engine_state_is_read_and_an_absent_metric_is_a_gap(page_url: str) -> None:
    sampler = EngineSampler(Launch(None, page_url, "m", Path("log")), MAPPING)
    assert sampler.read() == {"engine.running": 7.0}
    gaps = {i.name: i.gap for i in sampler.series()}
    assert gaps["engine.running"] is None and "no_such_metric" in (gaps["engine.waiting"] or "")


def test_an_engine_that_does_not_answer_is_a_gap_with_the_error() -> None:
    sampler = EngineSampler(Launch(None, "http://127.0.0.1:9", "m", Path("log")), MAPPING)
    assert sampler.read() == {}
    assert all("ConnectionRefused" in (i.gap or "") for i in sampler.series())
