"""What the router adds: TTFT and gaps between tokens through it against direct, on the ground-truth server.

    python benchmarks/schedule/overhead.py [--rates 10 50 100] [--runs 3] [--seconds 8]

Server: first token 20 ms after receipt, then one each 5 ms, 64 tokens; its own lateness cancels, since each run is
judged against its log. Direct and routed runs alternate. The router is the real one, in a process of its own, started
by ``qmeter serve-schedule``. Prints medians over the runs of p50 and p99.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from qmeter.load import Target, drive
from qmeter.record import RequestStatus
from qmeter.spec.study import ClientSpec
from qmeter.testing.accuracy import errors
from qmeter.testing.calibration import ITL_S, TTFT_S, schedule_of
from qmeter.testing.ground_truth import GroundTruth, ground_truth

SCHEDULE = """
qmeter_schedule: 1
name: overhead
classes: [truth]
deployments:
  - name: truth
    model: {{name: truth, source: none, shape: smollm2-135m}}
    engine: {{name: endpoint, options: {{served_model: "{model}"}}}}
    method: f16
    urls: ["{url}"]
slots: [{{at: 0s, up: {{truth: 1}}, shares: {{truth: {{truth: 1}}}}}}]
router: {{max_queue: 4096, drain_timeout: 1s}}
"""


def one(truth: GroundTruth, url: str, rate: float, seconds: float, seed: int) -> dict[str, float]:
    """Errors of one run against the server's own log."""
    truth.reset()
    schedule = schedule_of("poisson", rate, seconds, seed=seed)
    origin_s = time.monotonic()
    result = drive(schedule, Target(url, "truth"), origin_monotonic_s=origin_s, client=ClientSpec(processes=1))
    wrong = errors(result, truth.log(), origin_monotonic_s=origin_s)
    sent = result.requests.first_token_s - result.requests.sent_s - TTFT_S
    lost = int((result.requests.status != RequestStatus.OK).sum())
    itl = np.abs(wrong.itl_s) if len(wrong.itl_s) else np.array([np.nan])
    return {"ttft_p50": float(np.nanpercentile(sent, 50)), "ttft_p99": float(np.nanpercentile(sent, 99)),
            "itl_p50": float(np.percentile(itl, 50)), "itl_p99": float(np.percentile(itl, 99)),
            "lost": lost}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[10.0, 50.0, 100.0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    args = parser.parse_args()
    with ground_truth(TTFT_S, ITL_S) as truth, tempfile.TemporaryDirectory() as folder:
        import urllib.request

        with urllib.request.urlopen(f"{truth.base_url}/v1/models") as answer:
            model = json.load(answer)["data"][0]["id"]
        path = Path(folder) / "schedule.yaml"
        path.write_text(SCHEDULE.format(url=truth.base_url, model=model))
        command = [sys.executable, "-m", "qmeter.cli.main", "serve-schedule", str(path), "--port", "0", "--json",
                   "--out", folder]  # fmt: skip
        router = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert router.stdout is not None
        try:
            while (said := json.loads(router.stdout.readline())).get("event") != "ready":
                pass
            for rate in args.rates:
                compare(truth, said["base_url"], rate, args)
        finally:
            router.send_signal(signal.SIGINT)
            router.wait(30)


def compare(truth: GroundTruth, routed_url: str, rate: float, args: argparse.Namespace) -> None:
    runs: dict[str, list[dict[str, float]]] = {"direct": [], "routed": []}
    for seed in range(args.runs):
        for name, url in (("direct", truth.base_url), ("routed", routed_url)):
            runs[name].append(one(truth, url, rate, args.seconds, seed))
    middle = {name: {key: statistics.median(r[key] for r in found) for key in found[0]} for name, found in runs.items()}
    for name, m in middle.items():
        shown = {key: f"{value * 1e3:.3f}" for key, value in m.items() if key != "lost"}
        print(f"{rate:6.0f}/s {name:7} TTFT beyond the truth p50 {shown['ttft_p50']} p99 {shown['ttft_p99']} ms, ITL "
              f"error p50 {shown['itl_p50']} p99 {shown['itl_p99']} ms, lost {m['lost']:.0f}", flush=True)  # fmt: skip
    added = {key: (middle["routed"][key] - middle["direct"][key]) * 1e3 for key in ("ttft_p50", "ttft_p99")}
    print(f"{rate:6.0f}/s the router adds TTFT p50 {added['ttft_p50']:.3f} ms, p99 {added['ttft_p99']:.3f} ms "
          f"(medians of {args.runs})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
