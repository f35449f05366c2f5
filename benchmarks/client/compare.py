"""qMeter's client and its peers against the ground truth, in turn, pinned to separate cores.

    python benchmarks/client/compare.py FOLDER --install          # once; several gigabytes of peers
    python benchmarks/client/compare.py FOLDER --rates 50,200,1000,2000 --runs 5

The server runs on core 0, the client on core 1. The clients take turns, run by run; the table gives medians over runs.
The sent rate is the server's: (n - 1) over the time between the first and the last request's arrival. The errors of
TTFT and ITL are what the client reports (mean, p99) minus what the server's log says the truth was (mean, p99) for the
same requests. Peers draw their own arrivals, so their sent rate carries the draw's noise (2% for 2,000 requests);
qMeter's is divided by its draw.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from peers import PEERS, TOKENS, Job, Reported, install
from tokenizer import write_tokenizer

from qmeter.load import Target, drive
from qmeter.spec.study import ClientSpec
from qmeter.testing.calibration import ITL_S, TTFT_S, schedule_of
from qmeter.testing.ground_truth import Log, ground_truth

LONGEST_S = 180.0


@dataclass(frozen=True)
class Row:
    """One run of one client. Errors in ms."""

    client: str
    asked_hz: float
    sent_hz: float | None
    ttft_mean_ms: float | None
    ttft_p99_ms: float | None
    itl_p99_ms: float | None
    server_late_p99_ms: float | None
    note: str = ""


def truth_of(log: Log, requests: int) -> tuple[float, np.ndarray, np.ndarray, float]:
    """Sent rate, true TTFTs and ITLs of the last ``requests`` (warm-up came before), server lateness p99."""
    rows = np.argsort(log.received_ns)[-requests:]
    received = log.received_ns[rows]
    rate = (len(rows) - 1) / ((received[-1] - received[0]) / 1e9)
    written = [log.written_ns[log.first[r] : log.first[r] + log.events[r]] for r in rows]
    written = [w[w >= 0] for w in written]
    ttft = np.asarray([(w[0] - log.received_ns[r]) / 1e9 for r, w in zip(rows, written, strict=True) if len(w)])
    itl = np.concatenate([np.diff(w) for w in written]) / 1e9
    return rate, ttft, itl, float(np.percentile(log.lateness_s(), 99))


def row_of(client: str, rate_hz: float, log: Log, requests: int, said: Reported) -> Row:
    """The client's words against the log."""
    if len(log.received_ns) < 2:
        return Row(client, rate_hz, None, None, None, None, None, "sent nothing")
    sent, ttft, itl, late = truth_of(log, requests)

    def error(value: float | None, truth: float) -> float | None:
        return None if value is None else (value - truth) * 1e3

    return Row(client, rate_hz, sent, error(said.ttft_mean_s, float(ttft.mean())),
               error(said.ttft_p99_s, float(np.percentile(ttft, 99))),
               error(said.itl_p99_s, float(np.percentile(itl, 99))), late * 1e3)  # fmt: skip


def run_qmeter(rate_hz: float, requests: int, seed: int) -> Row:
    """qMeter: one process, TTFT counted from the send as the peers count it."""
    schedule = schedule_of("poisson", rate_hz, requests / rate_hz, seed=seed)
    with ground_truth(TTFT_S, ITL_S, cores=(0,)) as truth:
        result = drive(schedule, Target(truth.base_url, "truth"), origin_monotonic_s=time.monotonic(),
                       client=ClientSpec(processes=1, cores=(1,)))  # fmt: skip
        log = truth.log()
    ttft = result.requests.first_token_s - result.requests.sent_s
    same = np.diff(result.tokens.request) == 0
    itl = np.diff(result.tokens.t_s)[same]
    said = Reported(float(np.nanmean(ttft)), float(np.nanpercentile(ttft, 99)), float(itl.mean()),
                    float(np.percentile(itl, 99)))  # fmt: skip
    row = row_of("qmeter", rate_hz, log, requests, said)
    asked = (requests - 1) / float(schedule.send_s[-1] - schedule.send_s[0])
    note = "; ".join(f.kind for f in result.proof.failures)
    return Row(**{**asdict(row), "asked_hz": rate_hz, "sent_hz": (row.sent_hz or 0) * rate_hz / asked, "note": note})


def run_peer(name: str, folder: Path, rate_hz: float, requests: int, seed: int) -> Row:
    """One run of a peer on core 1."""
    peer = PEERS[name]
    out = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    tokenizer = write_tokenizer(folder / "tokenizer")
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    if peer.offline:
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    with ground_truth(TTFT_S, ITL_S, cores=(0,)) as truth:
        job = Job(truth.base_url, rate_hz, requests, tokenizer, out, seed)
        command = ["taskset", "-c", "1", *peer.command(folder / name, job)]
        note = ""
        with (out / "log").open("w") as log_file:
            try:
                done = subprocess.run(command, stdout=log_file, stderr=subprocess.STDOUT, cwd=out, env=environment,
                                      timeout=LONGEST_S)  # fmt: skip
                note = f"exit code {done.returncode}" if done.returncode else ""
            except subprocess.TimeoutExpired:
                note = f"not done after {LONGEST_S:g} s"
        log = truth.log()
    try:
        said = peer.read(job)
    except (OSError, LookupError, ValueError, StopIteration) as error:
        said = Reported(None, None, None, None)
        note = f"{note}; {type(error).__name__}: {error}; see {out}/log".strip("; ")
        return Row(**{**asdict(row_of(name, rate_hz, log, requests, said)), "note": note})
    shutil.rmtree(out, ignore_errors=True)
    return Row(**{**asdict(row_of(name, rate_hz, log, requests, said)), "note": note})


def table(rows: list[Row]) -> str:
    """Markdown: medians over runs, by rate, then client."""
    lines = ["| asked/s | client | runs | sent/s | TTFT error mean, ms | TTFT error p99, ms | ITL error p99, ms |",
             "|---:|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    for rate in sorted({r.asked_hz for r in rows}):
        for client in dict.fromkeys(r.client for r in rows):
            mine = [r for r in rows if r.client == client and r.asked_hz == rate]
            if not mine:
                continue
            cells = []
            for key, form in (("sent_hz", "{:.1f}"), ("ttft_mean_ms", "{:+.3f}"), ("ttft_p99_ms", "{:+.3f}"),
                              ("itl_p99_ms", "{:+.3f}")):  # fmt: skip
                values = [v for r in mine if (v := getattr(r, key)) is not None]
                cells.append(form.format(statistics.median(values)) if values else "–")
            lines.append(f"| {rate:g} | {client} | {len(mine)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the peers' environments are")
    parser.add_argument("--install", action="store_true")
    parser.add_argument("--peers", default=",".join(p for p in PEERS if p != "vllm"))
    parser.add_argument("--rates", default="50,200,1000,2000")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000, help="most requests of one run (about 10 s at low rates)")
    parser.add_argument("--out", type=Path, default=Path("client_comparison.jsonl"))
    asked = parser.parse_args()
    names = [n for n in asked.peers.split(",") if n]
    if asked.install:
        for name in names:
            print(f"installing {name}", flush=True)
            install(PEERS[name], asked.folder)
        return
    rows: list[Row] = []
    for run in range(asked.runs):
        for rate in (float(r) for r in asked.rates.split(",")):
            requests = min(asked.requests, round(rate * 10))
            for name in ("qmeter", *names):
                row = (
                    run_qmeter(rate, requests, run)
                    if name == "qmeter"
                    else run_peer(name, asked.folder, rate, requests, run)
                )
                rows.append(row)
                print(json.dumps(asdict(row)), flush=True)
                with asked.out.open("a") as file:
                    file.write(json.dumps(asdict(row) | {"run": run, "tokens": TOKENS}) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
