"""A stand-in for pynvml: one H200 whose counters a test sets."""

from __future__ import annotations

from types import SimpleNamespace


class NVMLError(Exception):
    pass


class FakeNvml:
    """The parts of pynvml that qMeter calls. ``broken`` names functions that raise."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    NVML_GPM_METRICS_GET_VERSION = 1

    def __init__(self, count: int = 1, broken: tuple[str, ...] = (), gpm: bool = True):
        self.count, self.broken, self.gpm = count, set(broken), gpm
        self.energy_mj = [1_000_000 * (i + 1) for i in range(count)]
        self.power_mw = 350_000
        self.nvlink, self.nvlink_kib = True, [1000 * (i + 1) for i in range(count)]
        self.limits_mw = [700_000] * count
        self.set_calls: list[tuple[int, int]] = []
        self.gpm_errors: set[int] = set()
        self.gpm_idle = False
        self.contexts = [0] * count
        self.gpm_refreshes = 0
        self.alive = 0
        self.samples = 0

    def __getattribute__(self, name: str):
        if name.startswith("nvml") and name in object.__getattribute__(self, "broken"):
            raise_it = NVMLError

            def fail(*args):
                raise raise_it("Not Supported")

            return fail
        return object.__getattribute__(self, name)

    def nvmlInit(self):
        self.alive += 1

    def nvmlShutdown(self):
        self.alive -= 1

    def nvmlDeviceGetCount(self):
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index):
        if index >= self.count:
            raise NVMLError("Invalid Argument")
        return index

    def nvmlDeviceGetUUID(self, handle):
        return f"GPU-{handle}"

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return int(uuid.decode().removeprefix("GPU-"))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        return self.energy_mj[handle]

    def nvmlDeviceGetFieldValues(self, handle, fields):
        if isinstance(fields[0], tuple):  # (field, scope): NVLink counters in KiB over all links
            ((field, scope),) = fields
            value = SimpleNamespace(ullVal=self.nvlink_kib[handle] * (2 if field == 139 else 1))
            return [SimpleNamespace(nvmlReturn=0 if self.nvlink and scope == 0xFFFFFFFF else 3, value=value)]
        return [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=self.power_mw + f - 186)) for f in fields]

    def nvmlDeviceGetClockInfo(self, handle, kind):
        return {1: 1980, 2: 3201}[kind]

    def nvmlDeviceGetTemperature(self, handle, kind):
        return 41

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(used=2**30)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [SimpleNamespace(pid=100 + i, usedGpuMemory=2**29) for i in range(self.contexts[handle])]

    def nvmlDeviceGetUtilizationRates(self, handle):
        return SimpleNamespace(gpu=87)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):
        return 4

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):
        return self.limits_mw[handle]

    def nvmlDeviceGetPowerManagementLimit(self, handle):
        return self.limits_mw[handle]

    def nvmlDeviceGetPowerManagementLimitConstraints(self, handle):
        return (200_000, 700_000)

    def nvmlDeviceSetPowerManagementLimit(self, handle, milliwatts):
        self.set_calls.append((handle, milliwatts))
        self.limits_mw[handle] = milliwatts

    def nvmlGpmQueryDeviceSupport(self, handle):
        return SimpleNamespace(isSupportedDevice=int(self.gpm))

    def nvmlGpmSampleAlloc(self):
        self.samples += 1
        return {"sample": None}

    def nvmlGpmSampleFree(self, sample):
        self.samples -= 1

    def nvmlGpmSampleGet(self, handle, sample):
        sample["sample"] = self.gpm_refreshes

    def c_nvmlGpmMetricsGet_t(self):
        metrics = [SimpleNamespace(metricId=0, nvmlReturn=0, value=0.0) for _ in range(400)]
        return SimpleNamespace(version=0, numMetrics=0, sample1=None, sample2=None, metrics=metrics)

    def nvmlGpmMetricsGet(self, asked):
        assert asked.sample1 is not asked.sample2
        news = asked.sample2["sample"] - asked.sample1["sample"]
        for metric in asked.metrics[: asked.numMetrics]:
            metric.nvmlReturn = 3 if metric.metricId in self.gpm_errors else 0
            metric.value = float(metric.metricId) if news and not self.gpm_idle else 0.0
            if metric.metricId == 10 and not news:
                metric.value = float("nan")  # a share of no time, as the driver has it
