"""GIVEN device rows, WHEN NVML names a GPU, THEN only that very device matches."""

from __future__ import annotations

import pytest

from qmeter import catalog
from qmeter.catalog import Device


@pytest.mark.parametrize(
    ("nvml", "name"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA B200", "b200"),
    ],
)
def test_nvml_names_find_their_row(nvml: str, name: str) -> None:
    found = catalog.device_from_nvml(nvml)
    assert found is not None and found.name == name


@pytest.mark.parametrize(
    "nvml",
    ["NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA H200 NVL", "NVIDIA GH200 480GB", "NVIDIA A100-SXM4-40GB",
     "NVIDIA A100 80GB PCIe", "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GB200",
     "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA L40", "cpu", ""],
)  # fmt: skip
def test_siblings_with_other_memory_power_or_slices_do_not(nvml: str) -> None:
    assert catalog.device_from_nvml(nvml) is None


@pytest.mark.parametrize("device", [d for d in catalog.devices() if d.kind == "gpu"], ids=lambda d: d.name)
def test_a_gpu_states_everything_with_its_source(device: Device) -> None:
    assert device.memory_bytes and device.bandwidth_bytes_s and device.tdp_w and device.compute_capability
    assert {"bf16", "int8"} <= set(device.rates_op_s) and device.sources and not device.unknown
    assert ("fp8" in device.rates_op_s) == (device.compute_capability >= (8, 9))


def test_the_cpu_row_says_why_each_number_is_missing() -> None:
    cpu = catalog.device("cpu")
    for field in ("memory_bytes", "bandwidth_bytes_s", "tdp_w"):
        assert getattr(cpu, field) is None and cpu.unknown[field]
