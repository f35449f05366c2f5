"""What this host can measure, and what makes its measurements noisy."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

import psutil

from qmeter.engines.table import ENGINES, availability
from qmeter.study import provenance
from qmeter.telemetry.table import open_samplers

TIMER_TRIES = 200


class Verdict(StrEnum):
    """How a finding bears on measuring here."""

    GOOD = "good"
    NOISY = "noisy"
    MISSING = "missing"
    INFO = "info"


@dataclass(frozen=True)
class Finding:
    """One thing found: what, how it is, and what to do about it where something can be done."""

    topic: str
    verdict: Verdict
    text: str
    advice: str | None = None


def examine_host() -> list[Finding]:
    """Look at cores, load, clocks, timers, memory, disk, telemetry sources and engines. Takes about a second."""
    return [*_processor(), _load(), _timer(), _memory(), _disk(), *_telemetry(), *_engines(), *_extras()]


def _processor() -> list[Finding]:
    host = provenance.host()
    found = [Finding("processor", Verdict.INFO, f"{host['cpu']}, {host['threads']} threads")]
    if (host["threads"] or 1) < 4:
        found.append(
            Finding("cores", Verdict.NOISY, f"{host['threads']} threads: engine and client share them",
                    "quote ratios measured in one study; the client's own proof says whether it kept up")
        )  # fmt: skip
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor.exists() and (name := governor.read_text().strip()) != "performance":
        found.append(
            Finding("clocks", Verdict.NOISY, f"frequency governor is {name}", "cpupower frequency-set -g performance")
        )
    elif not governor.exists():
        found.append(
            Finding("clocks", Verdict.INFO, "the host does not show its frequency governor (usual in virtual machines)")
        )
    return found


def _load() -> Finding:
    list(psutil.process_iter(["cpu_percent"]))  # each process's share counts from the call before
    busy = psutil.cpu_percent(interval=0.5) / 100
    if busy > 0.2:
        others = [p for p in psutil.process_iter(["name", "cpu_percent"]) if p.pid != os.getpid()]
        top = max(others, key=lambda p: p.info["cpu_percent"] or 0.0, default=None)
        name = top.info["name"] if top else "?"
        return Finding(
            "other load", Verdict.NOISY, f"{busy:.0%} of the processor is busy now (most: {name})", "end it, or wait"
        )
    return Finding("other load", Verdict.GOOD, f"{busy:.0%} of the processor is busy now")


def _timer() -> Finding:
    late_s = []
    for _ in range(TIMER_TRIES):
        due = time.monotonic() + 0.001
        time.sleep(0.001)
        late_s.append(time.monotonic() - due)
    late_s.sort()
    p99_s = late_s[int(0.99 * TIMER_TRIES)]
    verdict = Verdict.GOOD if p99_s < 0.001 else Verdict.NOISY
    return Finding(
        "timer", verdict, f"a 1 ms sleep ends {late_s[TIMER_TRIES // 2] * 1e6:.0f} µs late (p99 {p99_s * 1e6:.0f} µs)"
    )


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    return Finding(
        "memory", Verdict.INFO, f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB available"
    )


def _disk() -> Finding:
    free = shutil.disk_usage(".").free
    verdict = Verdict.GOOD if free > 2 * 2**30 else Verdict.MISSING
    return Finding("disk", verdict, f"{free / 2**30:.1f} GiB free here", None if free > 2 * 2**30 else "free 2 GiB")


def _telemetry() -> list[Finding]:
    found = []
    for sampler in open_samplers(()):
        for info in sampler.series():
            verdict, text = (Verdict.MISSING, info.gap) if info.gap else (Verdict.GOOD, f"{info.source} [{info.unit}]")
            found.append(Finding(info.name, verdict, text))
        sampler.close()
    return found


def _engines() -> list[Finding]:
    found = []
    for name in ENGINES.names():
        here = availability(name)
        verdict = Verdict.GOOD if here.available else Verdict.MISSING
        found.append(Finding(f"engine {name}", verdict, here.found or here.why or here.title, here.advice))
    return found


def _extras() -> list[Finding]:
    charts = find_spec("altair") is not None and find_spec("vl_convert") is not None
    found = [
        Finding("report", Verdict.GOOD if charts else Verdict.MISSING,
                "charts can be made" if charts else "altair and vl-convert are not installed",
                None if charts else "pip install 'qmeter[report]'")
    ]  # fmt: skip
    if os.geteuid() == 0:
        found.append(Finding("user", Verdict.INFO, "running as root: not needed, except to read RAPL on some hosts"))
    return found
