"""Hardware counters of Hopper and newer by NVML GPM: tensor and SM activity, DRAM bandwidth, PCIe, NVLink.

GPM needs no profiler and does not slow kernels down. A value is the mean between two of its refreshes, which come about
every 100 ms (driver 580). For a reading in between no time has passed: NVML answers 0 for every metric, and no number
for the DRAM's share. Such a reading is left out, and the next one still counts from the last that was kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from qmeter.record import SeriesInfo
from qmeter.telemetry.nvml import STUCK_S, Gpus, one_at_a_time, open_gpus

ABSENT = "gpm.devices"
MIB = float(2**20)
LONGEST_S = 0.25
"""Time after which a reading of nothing but zeros is believed, whatever the DRAM's share says. Units: s."""


@dataclass(frozen=True)
class Metric:
    """One GPM metric: NVML's number for it, and the factor from its unit to ours."""

    name: str
    number: int
    unit: str
    scale: float


METRICS: tuple[Metric, ...] = (
    Metric("graphics_util", 1, "1", 0.01),
    Metric("sm_util", 2, "1", 0.01),
    Metric("sm_occupancy", 3, "1", 0.01),
    Metric("integer_util", 4, "1", 0.01),
    Metric("tensor_util", 5, "1", 0.01),
    Metric("half_tensor_util", 7, "1", 0.01),
    Metric("integer_tensor_util", 9, "1", 0.01),
    Metric("dram_util", 10, "1", 0.01),
    Metric("fp32_util", 12, "1", 0.01),
    Metric("fp16_util", 13, "1", 0.01),
    Metric("pcie_tx_bytes_s", 20, "B/s", MIB),
    Metric("pcie_rx_bytes_s", 21, "B/s", MIB),
    Metric("nvlink_rx_bytes_s", 60, "B/s", MIB),
    Metric("nvlink_tx_bytes_s", 61, "B/s", MIB),
)
"""``nvmlGpmMetricId_t`` in nvml.h: utilizations in percent of peak, traffic in MiB/s."""


class GpmSampler:
    """Reads :data:`METRICS` of every visible GPU that has GPM.

    Args:
        nvml: a stand-in for ``pynvml``, for tests.
        clock: monotonic time in seconds, for tests.
    """

    def __init__(self, nvml: Any = None, clock: Callable[[], float] = time.monotonic):
        self._gpus: Gpus = open_gpus(nvml)
        self._clock = clock
        self._pairs: dict[str, list[Any]] = {}
        self._kept_s: dict[str, float] = {}
        self._gaps: dict[str, str] = {}
        with one_at_a_time():
            for gpu, handle in self._gpus.handles:
                self._open(gpu, handle)

    def series(self) -> tuple[SeriesInfo, ...]:
        """Every metric of every GPU, or its gap."""
        if self._gpus.gap:
            return (SeriesInfo(name=ABSENT, unit="1", source="NVML GPM", gap=self._gpus.gap),)
        return tuple(
            SeriesInfo(
                name=f"{gpu}.gpm.{metric.name}",
                unit=metric.unit,
                source=f"NVML GPM metric {metric.number}",
                gap=self._gaps.get(gpu) or self._gaps.get(f"{gpu}.gpm.{metric.name}"),
            )
            for gpu, _ in self._gpus.handles
            for metric in METRICS
        )

    def read(self) -> Mapping[str, float]:
        """Means since the reading before; empty at the first, and for a GPU whose counters have no news.

        Raises:
            TimeoutError: another thread's call is stuck.
        """
        values: dict[str, float] = {}
        with one_at_a_time() as mine:
            if not mine:
                raise TimeoutError(f"another GPM call has been stuck for more than {STUCK_S:g} s")
            for gpu, handle in self._gpus.handles:
                if gpu in self._pairs:
                    values |= self._read(gpu, handle)
        return values

    def narrow(self, gpus: Collection[str]) -> None:
        """Read these GPUs and no others."""
        self._gpus = replace(self._gpus, handles=tuple(h for h in self._gpus.handles if h[0] in gpus))

    def close(self) -> None:
        """Free the samples and let NVML go."""
        nvml = self._gpus.nvml
        with one_at_a_time() as mine:
            for pair in self._pairs.values() if mine else ():  # what a stuck call may still use is not freed
                for sample in pair:
                    if sample is not None:
                        nvml.nvmlGpmSampleFree(sample)
            self._pairs = {}
        if nvml is not None:
            nvml.nvmlShutdown()
        self._gpus = Gpus(gap="closed")

    def _open(self, gpu: str, handle: Any) -> None:
        nvml = self._gpus.nvml
        try:
            if not nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
                self._gaps[gpu] = "this GPU has no GPM (Hopper and newer have): use DCGM, or a profiler run"
                return
            spare = nvml.nvmlGpmSampleAlloc()
            self._pairs[gpu] = [None, spare]
        except (nvml.NVMLError, AttributeError) as error:
            self._gaps[gpu] = f"NVML GPM: {error}"

    def _read(self, gpu: str, handle: Any) -> dict[str, float]:
        nvml, pair = self._gpus.nvml, self._pairs[gpu]
        before, now = pair
        nvml.nvmlGpmSampleGet(handle, now)
        if before is None:
            pair[:], self._kept_s[gpu] = [now, nvml.nvmlGpmSampleAlloc()], self._clock()
            return {}
        asked = nvml.c_nvmlGpmMetricsGet_t()
        asked.version = nvml.NVML_GPM_METRICS_GET_VERSION
        asked.numMetrics = len(METRICS)
        asked.sample1, asked.sample2 = before, now
        for i, metric in enumerate(METRICS):
            asked.metrics[i].metricId = metric.number
        nvml.nvmlGpmMetricsGet(asked)
        if _between_refreshes(asked) and self._clock() - self._kept_s[gpu] < LONGEST_S:
            return {}
        pair[:], self._kept_s[gpu] = [now, before], self._clock()
        return self._values(gpu, asked)

    def _values(self, gpu: str, answer: Any) -> dict[str, float]:
        values = {}
        for i, metric in enumerate(METRICS):
            name, got = f"{gpu}.gpm.{metric.name}", answer.metrics[i]
            if got.nvmlReturn == 0 and got.value == got.value:
                values[name] = got.value * metric.scale
                self._gaps.pop(name, None)
            else:
                self._gaps.setdefault(name, f"NVML GPM answers error {got.nvmlReturn} for it on this GPU")
        return values


def _between_refreshes(answer: Any) -> bool:
    """Whether some metric is a share of no time, and none is other than 0."""
    values = [float(answer.metrics[i].value) for i in range(len(METRICS)) if answer.metrics[i].nvmlReturn == 0]
    return any(math.isnan(v) for v in values) and all(math.isnan(v) or v == 0.0 for v in values)
