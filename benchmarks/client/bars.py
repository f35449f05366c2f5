"""The load client's bars, measured: server on one core, client on the other, medians of several runs.

python benchmarks/client/bars.py accuracy --runs 5    # 200/s and 1,000/s x 64 tokens, and the most it holds
python benchmarks/client/bars.py arrivals             # distribution tests at 1,000/s, one process and four
python benchmarks/client/bars.py hold                 # 10,000 streams held open for a minute
python benchmarks/client/bars.py truth                # the ground truth's own events/s and lateness
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections import Counter
from dataclasses import fields

import numpy as np
import psutil

from qmeter.load import LoadResult, Target, drive
from qmeter.load.arrivals import dispersion
from qmeter.spec.study import ClientSpec
from qmeter.testing.calibration import Point, cores_apart, measure, schedule_of
from qmeter.testing.ground_truth import ground_truth
from qmeter.workload.schedule import Schedule, ScheduledRequest


def median(points: list[Point]) -> dict[str, float]:
    """Field → median over runs."""
    numbers = [f.name for f in fields(Point) if f.name not in ("failures", "host")]
    return {name: statistics.median(getattr(p, name) for p in points) for name in numbers}


def show(label: str, values: dict[str, float], failures: Counter[str]) -> None:
    def ms(name: str) -> str:
        return f"{values[name] * 1e3:.3f}"

    print(f"{label}: sent {values['sent_hz'] / values['rate_hz'] - 1:+.3%}, TTFT error mean {ms('ttft_mean_s')} p99 "
          f"{ms('ttft_p99_s')} ms (from the intended send p99 {ms('ttft_intended_p99_s')}), ITL error p99 "
          f"{ms('itl_p99_s')} ms, CPU {values['cpu_share']:.0%}, server late p99 {ms('server_late_p99_s')} ms, "
          f"{values['events_hz']:.0f} events/s, lost {values['lost']:.0f}, failures {dict(failures)}",
          flush=True)  # fmt: skip


def accuracy(runs: int, seconds: float) -> None:
    for rate in (50.0, 200.0, 1000.0, 1400.0):
        points = [measure(schedule_of("poisson", rate, seconds, seed=i)) for i in range(runs)]
        show(f"{rate:.0f}/s x 64", median(points), Counter(f for p in points for f in p.failures))


def arrivals(runs: int, seconds: float) -> None:
    server, client = cores_apart()
    for law in ("constant", "poisson", "gamma"):
        for processes in (1, 4):
            values, passed = [], 0
            for seed in range(runs):
                schedule = schedule_of(law, 1000.0, seconds, tokens=8, seed=seed)
                with ground_truth(cores=server) as truth:
                    result: LoadResult = drive(
                        schedule, Target(truth.base_url, "truth"), origin_monotonic_s=0.0,
                        client=ClientSpec(processes=processes, cores=client),
                    )  # fmt: skip
                checks = result.proof.checks
                sent = np.sort(result.requests.sent_s) - result.start_s
                kinds = [f.kind for f in result.proof.failures]
                passed += not kinds
                strict = checks.get("arrival_ks_p_strict")
                values.append((checks["arrival_ks_p"].value, strict and strict.value, dispersion(sent, 1000.0),
                               checks["send_lateness_p99"].value))  # fmt: skip
                if kinds:
                    print("  failed:", "; ".join(f.message for f in result.proof.failures))
            middle = [statistics.median(v) if None not in v else None for v in zip(*values, strict=True)]
            print(f"{law}, {processes} process(es): {passed}/{runs} runs pass; medians: KS p {middle[0]}, "
                  f"strict {middle[1]}, dispersion {middle[2]:.3f}, lateness p99 {middle[3] * 1e3:.3f} ms",
                  flush=True)  # fmt: skip


def hold(streams: int) -> None:
    peak = [0]

    def watch() -> None:
        me = psutil.Process()
        while True:
            used = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    if "ground_truth" not in process.name():
                        used += process.memory_full_info().uss
                except psutil.Error:
                    pass
            peak[0] = max(peak[0], used)
            time.sleep(0.5)

    threading.Thread(target=watch, daemon=True).start()
    server, client = cores_apart()
    request = ScheduledRequest("hello " * 32, 32, 66)
    ramp_s = 5.0
    schedule = Schedule(np.arange(streams) * ramp_s / streams, (request,) * streams,
                        ("constant", {"rate_hz": streams / ramp_s}), 0.0, ramp_s, 100.0)  # fmt: skip
    with ground_truth(1.0, 1.0, cores=server) as truth:
        result = drive(schedule, Target(truth.base_url, "truth"), origin_monotonic_s=0.0,
                       client=ClientSpec(processes=1, cores=client))  # fmt: skip
    requests = result.requests
    together_s = float(requests.end_s.min() - requests.sent_s.max())
    endings = dict(Counter(s.value for s in requests.status))
    print(f"{streams} streams: {endings}, all open together for {together_s:.1f} s, {int(result.tokens.n.sum())} of "
          f"{streams * 66} tokens, peak {peak[0] / 2**20:.0f} MiB (parent and client), "
          f"failures {[f.kind for f in result.proof.failures]}")  # fmt: skip


def truth_limits(runs: int, seconds: float) -> None:
    for rate in (600.0, 940.0, 1400.0):
        points = [measure(schedule_of("constant", rate, seconds, seed=i)) for i in range(runs)]
        values = median(points)
        print(f"{rate * 64:.0f} events/s asked: {values['events_hz']:.0f} written, own lateness p99 "
              f"{values['server_late_p99_s'] * 1e3:.3f} ms", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["accuracy", "arrivals", "hold", "truth"])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--streams", type=int, default=10_000)
    asked = parser.parse_args()
    if asked.what == "hold":
        hold(asked.streams)
    else:
        {"accuracy": accuracy, "arrivals": arrivals, "truth": truth_limits}[asked.what](asked.runs, asked.seconds)


if __name__ == "__main__":
    main()
