"""The devices: data-sheet numbers, dense rates (the sheets' sparse figures halved), memory as the driver shows it."""

from __future__ import annotations

from qmeter.catalog.hardware import Device

MIB, TERA, GIGA = 2**20, 1e12, 1e9
_MEMORY = "memory: total as nvidia-smi shows it"


def _gpu(name: str, title: str, pattern: str, *, memory_mib: int, bandwidth_gb_s: float, tera: dict[str, float],
         tdp_w: float, capability: tuple[int, int], source: str, aliases: tuple[str, ...] = ()) -> Device:  # fmt: skip
    return Device(
        name=name, title=title, kind="gpu", memory_bytes=memory_mib * MIB, bandwidth_bytes_s=bandwidth_gb_s * GIGA,
        rates_op_s={kind: rate * TERA for kind, rate in tera.items()}, tdp_w=tdp_w, compute_capability=capability,
        nvml_pattern=pattern, sources=(source, _MEMORY), aliases=aliases,
    )  # fmt: skip


_HOPPER = {"bf16": 989.4, "f16": 989.4, "fp8": 1978.9, "int8": 1978.9}

DEVICES: tuple[Device, ...] = (
    _gpu("a100-80g", "NVIDIA A100 SXM 80 GB", r"(NVIDIA )?A100-SXM4-80GB", memory_mib=81920, bandwidth_gb_s=2039,
         tera={"bf16": 312, "f16": 312, "int8": 624, "int4": 1248}, tdp_w=400, capability=(8, 0),
         source="NVIDIA A100 Tensor Core GPU datasheet (A100 80GB SXM); INT4: A100 architecture whitepaper",
         aliases=("a100",)),
    _gpu("h100-sxm", "NVIDIA H100 SXM 80 GB", r"(NVIDIA )?H100 80GB HBM3", memory_mib=81559, bandwidth_gb_s=3350,
         tera=_HOPPER, tdp_w=700, capability=(9, 0), aliases=("h100",),
         source="NVIDIA H100 Tensor Core GPU datasheet and Hopper architecture whitepaper (SXM5, dense)"),
    _gpu("h200", "NVIDIA H200 SXM 141 GB", r"(NVIDIA )?H200", memory_mib=143771, bandwidth_gb_s=4800, tera=_HOPPER,
         tdp_w=700, capability=(9, 0), aliases=("h200-sxm",), source="NVIDIA H200 Tensor Core GPU datasheet (SXM)"),
    _gpu("l40s", "NVIDIA L40S 48 GB", r"(NVIDIA )?L40S", memory_mib=46068, bandwidth_gb_s=864,
         tera={"bf16": 362.05, "f16": 362.05, "fp8": 733, "int8": 733, "int4": 733}, tdp_w=350, capability=(8, 9),
         source="NVIDIA L40S datasheet"),
    _gpu("rtx-4090", "NVIDIA GeForce RTX 4090 24 GB", r"(NVIDIA )?GeForce RTX 4090", memory_mib=24564,
         bandwidth_gb_s=1008, tera={"bf16": 165.2, "f16": 165.2, "fp8": 330.3, "int8": 660.6, "int4": 1321.2},
         tdp_w=450, capability=(8, 9), aliases=("4090", "rtx4090"),
         source="NVIDIA Ada GPU architecture whitepaper (RTX 4090; FP16/BF16/FP8 with FP32 accumulate)"),
    _gpu("b200", "NVIDIA B200 180 GB", r"(NVIDIA )?B200", memory_mib=183359, bandwidth_gb_s=8000,
         tera={"bf16": 2250, "f16": 2250, "fp8": 4500, "int8": 4500, "fp4": 9000}, tdp_w=1000, capability=(10, 0),
         source="NVIDIA HGX B200 datasheet (one of eight, dense)"),
    Device(
        name="cpu", title="The host's CPU", kind="cpu", memory_bytes=None, bandwidth_bytes_s=None, rates_op_s={},
        tdp_w=None, compute_capability=None, nvml_pattern=None, sources=(),
        unknown={
            "memory_bytes": "every host has its own: read from the host when a study runs",
            "bandwidth_bytes_s": "every host has its own: measured by the roofline, not catalogued",
            "rates_op_s": "every host has its own: measured by the roofline, not catalogued",
            "tdp_w": "every host has its own: see its RAPL constraints",
        },
    ),
)  # fmt: skip
"""Every device."""
