"""Switching under load on the real engine, through the real command line: no request may fail.

    python benchmarks/schedule/switching.py [--minutes 30] [--rate 0.7] [--kill-every 0]

Serves examples/schedule/two_methods.yaml (another with --schedule), sends open-loop streaming requests, and counts how
each ended: whole, an error event, refused, or lost in silence. With --kill-every N a replica is killed (SIGKILL) each
N seconds; only what it had in flight may end in an error event. Prints one JSON line a minute and a last one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp

EXAMPLE = Path(__file__).parents[2] / "examples" / "schedule" / "two_methods.yaml"


class Run:
    """Counts of one run."""

    def __init__(self, tokens: int):
        self.tokens = tokens
        self.ends: Counter[str] = Counter()
        self.by: Counter[str] = Counter()
        self.ttft_s: list[float] = []
        self.kills: list[dict[str, Any]] = []

    async def one(self, session: aiohttp.ClientSession, url: str, number: int) -> None:
        body = {"model": random.choice(("chat", "batch")), "prompt": f"Request {number}: the sky is", "stream": True,
                "max_tokens": self.tokens, "temperature": 0, "ignore_eos": True}  # fmt: skip
        began, first, text = time.monotonic(), None, b""
        try:
            async with session.post(url + "/v1/completions", json=body) as answer:
                async for part in answer.content.iter_any():
                    first = first or time.monotonic()
                    text += part
            self.ends[self.how(answer.status, text)] += 1
            if answer.status == 200:
                self.by[answer.headers["X-QMeter-Replica"].rpartition("-")[0]] += 1
                self.ttft_s.append((first or time.monotonic()) - began)
        except (aiohttp.ClientError, OSError) as error:
            self.ends[f"lost: {type(error).__name__}"] += 1

    def how(self, status: int, text: bytes) -> str:
        if status != 200:
            return f"http {status}"
        events = [line for line in text.split(b"\n") if line.startswith(b"data: {")]
        if b'"replica_lost"' in text:
            return "error event"
        tokens = sum(len((json.loads(e[6:]).get("choices") or [{}])[0].get("text") or "") > 0 for e in events)
        return "ok" if text.rstrip().endswith(b"data: [DONE]") and tokens > 0 else "cut in silence"

    def summary(self, wall_s: float, changes: int | None) -> dict[str, Any]:
        ttft = sorted(self.ttft_s) or [0.0]
        return {"minutes": round(wall_s / 60, 1), "ends": dict(self.ends), "by": dict(self.by),
                "ttft_p50_s": round(ttft[len(ttft) // 2], 3), "ttft_p99_s": round(ttft[int(len(ttft) * 0.99)], 3),
                "slot_changes": changes, "kills": self.kills}  # fmt: skip


async def page(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with session.get(url + "/qmeter/schedule") as answer:
        return dict(await answer.json())


async def kill_now_and_then(run: Run, session: aiohttp.ClientSession, url: str, every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        ready = [r for r in (await page(session, url))["replicas"] if r["state"] == "ready" and r["pids"]]
        victim = random.choice(ready)
        os.kill(victim["pids"][-1], signal.SIGKILL)
        run.kills.append({"replica": victim["name"], "in_flight": victim["in_flight"]})


async def load(url: str, args: argparse.Namespace, run: Run) -> int | None:
    began, number, tasks = time.monotonic(), 0, set()
    minute, changes, last = 1, 0, None
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        killer = asyncio.create_task(kill_now_and_then(run, session, url, args.kill_every)) if args.kill_every else None
        while (passed := time.monotonic() - began) < args.minutes * 60:
            task = asyncio.create_task(run.one(session, url, number))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
            await asyncio.sleep(random.expovariate(args.rate))
            slot = (await page(session, url))["slot"]
            changes, last = changes + (last is not None and slot != last), slot
            if passed > minute * 60:
                print(json.dumps(run.summary(passed, changes)), flush=True)
                minute += 1
        if killer:
            killer.cancel()
        await asyncio.gather(*tasks)
    return changes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedule", type=Path, default=EXAMPLE)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=0.7)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--kill-every", type=float, default=0.0)
    parser.add_argument("--out", default="runs/switching")
    args = parser.parse_args()
    random.seed(1)
    command = [sys.executable, "-m", "qmeter.cli.main", "serve-schedule", str(args.schedule), "--port", "0",
               "--out", args.out, "--json"]  # fmt: skip
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    run, began, said = Run(args.tokens), time.monotonic(), {}
    try:
        while (said := json.loads(server.stdout.readline())).get("event") != "ready":
            print(said.get("text", ""), flush=True)
        changes = asyncio.run(load(said["base_url"], args, run))
    finally:
        server.send_signal(signal.SIGINT)
        told = server.communicate(timeout=90)[0].splitlines()
    print(json.dumps(run.summary(time.monotonic() - began, changes)), flush=True)
    print("server:", told[-1] if told else "(nothing)", "exit", server.returncode)
    bad = sum(n for how, n in run.ends.items() if how not in ("ok", "error event"))
    allowed = sum(k["in_flight"] for k in run.kills)
    sys.exit(bad > 0 or run.ends["error event"] > allowed + 2 * len(run.kills))


if __name__ == "__main__":
    main()
