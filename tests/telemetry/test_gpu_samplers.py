"""GIVEN a card (a stand-in), WHEN it is sampled, THEN units are SI, and what it lacks is a gap with the reason."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
from nvml_fake import FakeNvml

from qmeter.analysis.energy import devices
from qmeter.telemetry import nvml as nvml_module
from qmeter.telemetry.amd import AmdSampler
from qmeter.telemetry.gpm import GpmSampler
from qmeter.telemetry.nvml import NvmlSampler, open_gpus


@pytest.fixture(autouse=True)
def all_gpus_visible(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_readings_are_si():
    sampler = NvmlSampler(FakeNvml())
    values = sampler.read()
    assert values["gpu0.energy_j"] == 1000.0
    assert values["gpu0.power_w"] == pytest.approx(350.0)
    assert values["gpu0.sm_clock_hz"] == 1.98e9
    assert values["gpu0.memory_used_bytes"] == 2**30
    assert values["gpu0.util"] == pytest.approx(0.87)
    assert values["gpu0.throttle_reasons"] == 4
    assert {i.name for i in sampler.series() if i.gap is None} == set(values)
    assert next(i for i in sampler.series() if i.name == "gpu0.energy_j").cumulative


def test_a_missing_counter_is_a_gap_with_nvmls_words_and_never_zero():
    sampler = NvmlSampler(FakeNvml(broken=("nvmlDeviceGetTotalEnergyConsumption",)))
    assert "gpu0.energy_j" not in sampler.read()
    gap = next(i.gap for i in sampler.series() if i.name == "gpu0.energy_j")
    assert "Not Supported" in gap


def test_a_counter_that_fails_later_is_left_out_of_that_reading_only():
    card = FakeNvml()
    sampler = NvmlSampler(card)
    card.broken.add("nvmlDeviceGetTemperature")
    values = sampler.read()
    assert "gpu0.temperature_c" not in values
    assert "gpu0.energy_j" in values


def test_a_field_that_nvml_refuses_is_a_gap():
    class Refusing(FakeNvml):
        def nvmlDeviceGetFieldValues(self, handle, fields):
            return [SimpleNamespace(nvmlReturn=3, value=SimpleNamespace(uiVal=0)) for _ in fields]

    sampler = NvmlSampler(Refusing())
    assert "gpu0.power_w" not in sampler.read()
    assert next(i.gap for i in sampler.series() if i.name == "gpu0.power_w")


def test_several_gpus_are_numbered_as_the_process_sees_them(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    values = NvmlSampler(FakeNvml(count=4)).read()
    assert values["gpu0.energy_j"] == 3000.0
    assert values["gpu1.energy_j"] == 1000.0
    assert "gpu2.energy_j" not in values


def test_gpus_named_by_uuid(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1")
    assert NvmlSampler(FakeNvml(count=2)).read()["gpu0.energy_j"] == 2000.0


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_gpus_are_no_gpus(monkeypatch, hidden):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert "visible" in open_gpus(FakeNvml()).gap


def test_a_host_without_a_card_claims_no_gpu_and_its_cpu_energy_stays_the_hosts():
    card = FakeNvml(broken=("nvmlInit",))
    infos = (*NvmlSampler(card).series(), *GpmSampler(card).series(), *AmdSampler(SimpleNamespace()).series())
    assert all(i.gap for i in infos)
    assert devices({}, infos) == []


def test_no_pynvml_names_the_extra(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(nvml_module.importlib, "import_module", missing)
    assert "qmeter[nvidia]" in open_gpus().gap


def test_closing_lets_nvml_go_and_reads_nothing_more():
    card = FakeNvml()
    sampler = NvmlSampler(card)
    sampler.close()
    sampler.close()
    assert card.alive == 0
    assert sampler.read() == {}


def test_gpm_gives_means_between_readings_in_si():
    card = FakeNvml()
    sampler = GpmSampler(card)
    assert sampler.read() == {}
    card.gpm_refreshes += 1
    values = sampler.read()
    assert values["gpu0.gpm.sm_util"] == pytest.approx(0.02)
    assert values["gpu0.gpm.tensor_util"] == pytest.approx(0.05)
    assert values["gpu0.gpm.dram_util"] == pytest.approx(0.10)
    assert values["gpu0.gpm.pcie_tx_bytes_s"] == 20 * 2**20
    card.gpm_refreshes += 1
    assert sampler.read()


def test_gpm_readings_between_two_refreshes_are_no_zeros():
    # GIVEN counters that are refreshed at 10 Hz, read at 20 Hz
    card, now = FakeNvml(), [0.0]
    sampler = GpmSampler(card, clock=lambda: now[0])
    seen = []
    for i in range(40):
        now[0], card.gpm_refreshes = i * 0.05, i // 2
        seen.append(sampler.read())
    told = [v for v in seen if v]
    assert len(told) == 19 and all(v["gpu0.gpm.tensor_util"] == pytest.approx(0.05) for v in told)
    assert {i.gap for i in sampler.series()} == {None}
    # AND a GPU that does nothing reads 0, if later
    card.gpm_idle = True
    for i in range(40, 60):
        now[0], card.gpm_refreshes = i * 0.05, i // 2
        seen.append(sampler.read())
    assert [v["gpu0.gpm.tensor_util"] for v in seen[-19:] if v] and not any(any(v.values()) for v in seen[-19:])


def test_gpm_says_which_metric_a_card_lacks():
    card = FakeNvml()
    card.gpm_errors = {60, 61}
    sampler = GpmSampler(card)
    sampler.read()
    card.gpm_refreshes += 1
    assert "gpu0.gpm.nvlink_rx_bytes_s" not in sampler.read()
    gaps = {i.name: i.gap for i in sampler.series()}
    assert "error 3" in gaps["gpu0.gpm.nvlink_rx_bytes_s"]
    assert gaps["gpu0.gpm.tensor_util"] is None


def test_a_card_older_than_hopper_says_so():
    sampler = GpmSampler(FakeNvml(gpm=False))
    assert sampler.read() == {}
    assert all("Hopper" in i.gap for i in sampler.series())


def test_gpm_frees_its_samples():
    card = FakeNvml()
    sampler = GpmSampler(card)
    sampler.read()
    sampler.read()
    sampler.close()
    assert card.samples == 0
    assert card.alive == 0


def amdsmi(**changed):
    base = {
        "amdsmi_init": lambda: None,
        "amdsmi_shut_down": lambda: None,
        "amdsmi_get_processor_handles": lambda: ["a", "b"],
        "amdsmi_get_energy_count": lambda h: {"energy_accumulator": 2_000_000, "counter_resolution": 15.3},
        "amdsmi_get_power_info": lambda h: {"current_socket_power": 450, "average_socket_power": "N/A"},
        "amdsmi_get_clock_info": lambda h, kind: {"clk": {"gfx": 2100, "mem": 1300}[kind]},
        "amdsmi_get_temp_metric": lambda h, kind, metric: 55,
        "amdsmi_get_gpu_vram_usage": lambda h: {"vram_used": 1024},
        "amdsmi_get_gpu_activity": lambda h: {"gfx_activity": 90, "umc_activity": 40},
        "AmdSmiClkType": SimpleNamespace(GFX="gfx", MEM="mem"),
        "AmdSmiTemperatureType": SimpleNamespace(HOTSPOT=1),
        "AmdSmiTemperatureMetric": SimpleNamespace(CURRENT=1),
    }
    return SimpleNamespace(**{**base, **changed})


def test_amd_cards_answer_under_the_same_names():
    sampler = AmdSampler(amdsmi())
    values = sampler.read()
    assert values["gpu0.energy_j"] == pytest.approx(30.6)
    assert values["gpu1.power_w"] == 450.0
    assert values["gpu0.sm_clock_hz"] == 2.1e9
    assert values["gpu0.memory_used_bytes"] == 2**30
    assert values["gpu0.util"] == pytest.approx(0.9)


def test_what_an_amd_card_answers_na_to_is_a_gap():
    sampler = AmdSampler(amdsmi())
    assert "gpu0.average_power_w" not in sampler.read()
    assert "N/A" in next(i.gap for i in sampler.series() if i.name == "gpu0.average_power_w")


def test_no_amd_card_is_a_gap():
    sampler = AmdSampler(amdsmi(amdsmi_get_processor_handles=lambda: []))
    assert "no AMD GPU" in sampler.series()[0].gap
    assert sampler.read() == {}


def test_nvlink_traffic_is_counted_over_all_links_in_bytes():
    card = FakeNvml(count=2)
    sampler = NvmlSampler(card)
    values = sampler.read()
    assert values["gpu0.nvlink_tx_bytes"] == 1000 * 1024 and values["gpu1.nvlink_rx_bytes"] == 2 * 2000 * 1024
    assert all(i.cumulative and i.unit == "B" for i in sampler.series() if ".nvlink_" in i.name)
    card.nvlink = False
    gap = next(i.gap for i in NvmlSampler(card).series() if i.name == "gpu0.nvlink_tx_bytes")
    assert gap and "NVLink" in gap


def test_a_deployments_sampler_reads_its_own_gpus_only():
    card = FakeNvml(count=4)
    for sampler in (NvmlSampler(card), GpmSampler(card)):
        sampler.narrow({"gpu1", "gpu3"})
        sampler.read()
        card.gpm_refreshes += 1
        values = sampler.read()
        assert values and {name.partition(".")[0] for name in values} == {"gpu1", "gpu3"}
        assert {i.name.partition(".")[0] for i in sampler.series()} == {"gpu1", "gpu3"}
        sampler.close()
    assert card.alive == 0 and card.samples == 0


def test_gpm_is_asked_by_one_thread_at_a_time():
    # GIVEN four samplers in threads of their own, as deployments side by side have them, and a driver that must not be
    # asked twice at once (NVML of driver 580 ended the process by a segmentation fault)
    card, inside, most = FakeNvml(), [0], [0]

    def entered(call):
        def wrapped(*args):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.0005)
            try:
                return call(*args)
            finally:
                inside[0] -= 1

        return wrapped

    for name in ("nvmlGpmSampleAlloc", "nvmlGpmSampleGet", "nvmlGpmMetricsGet", "nvmlGpmSampleFree"):
        setattr(card, name, entered(getattr(card, name)))

    def lane():
        sampler = GpmSampler(card)
        for _ in range(20):
            sampler.read()
        sampler.close()

    threads = [threading.Thread(target=lane) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # THEN no two calls overlapped, and every sample was given back
    assert most[0] == 1 and card.samples == 0


def test_a_closed_gpm_sampler_reads_nothing():
    sampler = GpmSampler(FakeNvml())
    sampler.close()
    assert sampler.read() == {}


def test_a_gpm_call_that_never_returns_holds_up_no_other_deployment(monkeypatch):
    # GIVEN a reading that is stuck in the driver
    monkeypatch.setattr(nvml_module, "STUCK_S", 0.05)
    card, stuck = FakeNvml(), threading.Event()
    other = GpmSampler(card)
    hanging = FakeNvml()
    hanging.nvmlGpmSampleGet = lambda *args: stuck.wait(30)
    lost = GpmSampler(hanging)
    thread = threading.Thread(target=lost.read, daemon=True)
    thread.start()
    try:
        # WHEN others read, open and close THEN they say why or go on
        with pytest.raises(TimeoutError, match="stuck"):
            other.read()
        assert NvmlSampler(FakeNvml()).read()
        other.close()
    finally:
        stuck.set()
        thread.join(5)
