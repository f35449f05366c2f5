"""Two methods resident on one host, the load switching between them: joules beside each method alone, same requests.

    python benchmarks/schedule/one_host.py examples/schedule/one_h200.yaml [--out runs/one-host] [--plan]

Starts `qmeter serve-schedule` once, with both deployments up all the time, and replays one seeded day (24 hours in 24 x
--hour-s seconds, open loop) again and again: under the schedule that switches, and with all requests to either
deployment; every policy --repeats times, the order rotated. Which deployment serves which hour follows from a profile's
measured power at that hour's rate, or from --threshold. Each replay's energy is counted over the same length of time,
its drain included, from the cards' own counters (else the CPU package's; else it is unknown and says why).

Writes OUT/result.json after every replay (a call that finds one goes on with what is missing), the requests' times
and the telemetry of each replay as .npz, and the servers' logs. --table prints the comparison of a result.json again.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import one_host_day as days
import yaml
from one_host_day import SWITCH, Day, Layout, Part, Segment

from qmeter import catalog
from qmeter.analysis.energy import device_energy, devices, grouped
from qmeter.analysis.latency import latencies
from qmeter.errors import QMeterError
from qmeter.load import Target, drive
from qmeter.load.http import RequestEncoder
from qmeter.record import CellTables, Quantity, SeriesInfo, Telemetry, Window
from qmeter.router.file import load_schedule
from qmeter.spec.study import ClientSpec
from qmeter.spec.workload import SLO, LognormalLength
from qmeter.store import open_results, write_atomic
from qmeter.telemetry.base import Sampler
from qmeter.telemetry.recorder import Recorder
from qmeter.telemetry.table import open_samplers
from qmeter.workload import Schedule, Vocabulary
from qmeter.workload.lengths import mean_tokens
from qmeter.workload.schedule import schedule_digest

RATE_HZ = 20.0
AFTER_S = 0.75
"""Telemetry goes on so long after a replay's window: counters refresh at 10 Hz."""
LATE_S = 0.5
"""A replay that began further than this from its slot is marked: its switches came at other requests."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("schedule", type=Path, help="a schedule file with two deployments; its slots are replaced")
    parser.add_argument("--out", type=Path, default=Path("runs/one-host"))
    parser.add_argument("--profile", default="h200-8b-grid", help="whose measured power decides who serves which hour")
    parser.add_argument("--threshold", type=float, help="instead: the second deployment serves from this rate on, 1/s")
    parser.add_argument("--shape", choices=sorted(days.SHAPES), default="site")
    parser.add_argument("--low", type=float, default=2.0, help="requests/s in the quietest hour")
    parser.add_argument("--high", type=float, default=36.0, help="requests/s in the busiest hour")
    parser.add_argument("--hour-s", type=float, default=2.5, help="seconds that an hour of the day takes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warm-s", type=float, default=12.0, help="the day sent once in so long first; not counted")
    parser.add_argument("--gap-s", type=float, default=3.0, help="between two replays, outside both windows")
    parser.add_argument("--drain-s", type=float, default=4.0, help="after the day, within the energy window")
    parser.add_argument("--prompt", type=float, default=450.0, help="median tokens (log-normal, sigma 0.6)")
    parser.add_argument("--output", type=float, default=115.0, help="median tokens (log-normal, sigma 0.5)")
    parser.add_argument("--ttft", type=float, default=0.5, help="SLO, s")
    parser.add_argument("--tpot", type=float, default=0.025, help="SLO, s")
    parser.add_argument("--percentile", type=float, default=0.99)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--samplers", default="nvml,rapl,host", help="telemetry samplers")
    parser.add_argument("--plan", action="store_true", help="print what would run and how long; start nothing")
    parser.add_argument("--table", action="store_true", help="print OUT/result.json's comparison; start nothing")
    return parser.parse_args()


# ---------------------------------------------------------------- what will run


class Plan:
    """Everything decided before anything starts."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.base = args, load_schedule(args.schedule)
        self.written: dict[str, Any] = yaml.safe_load(args.schedule.read_text())
        if len(self.base.deployments) != 2:
            sys.exit(f"{args.schedule}: two deployments are compared, found {len(self.base.deployments)}")
        cached = [d.name for d in self.base.deployments
                  if d.engine.name == "vllm" and d.engine.options.get("prefix_cache") is not False]  # fmt: skip
        if cached:
            sys.exit(f"{', '.join(cached)}: set prefix_cache: false, or later replays find the earlier ones' prompts")
        self.names = tuple(d.name for d in self.base.deployments)
        self.day = days.make_day(args.shape, args.low, args.high, args.hour_s)
        self.prompt = LognormalLength(median=args.prompt, sigma=0.6, low=16, high=4 * math.ceil(args.prompt))
        self.output = LognormalLength(median=args.output, sigma=0.5, low=4, high=4 * math.ceil(args.output))
        self.layout = Layout(args.warm_s, args.gap_s, self.day.length_s, args.drain_s)
        self.expected: dict[str, float] = {}
        self.choice, self.why = self._choice()
        self.parts = days.parts(self.day, self.choice)
        self.order = days.rotated((SWITCH, *reversed(self.names)), args.repeats)
        self.slo = SLO.model_validate({"ttft": f"{args.ttft}s", "tpot": f"{args.tpot}s", "percentile": args.percentile})
        shape = catalog.model(self.base.deployments[0].model.shape)
        self.vocabulary = Vocabulary.of(shape)
        self.trace = self._trace(self.day, args.seed, args.drain_s)

    def _choice(self) -> tuple[list[str], str]:
        if self.args.threshold is not None:
            light, heavy = self.names
            choice = days.by_threshold(self.day, light, heavy, self.args.threshold)
            return choice, f"{heavy} from {self.args.threshold:g} requests/s on"
        methods = {d.name: d.method for d in self.base.deployments}
        found = days.curves(list(open_results(self.args.profile).records()), list(methods.values()))
        power = {name: found[method] for name, method in methods.items()}
        tokens = mean_tokens(self.output) or self.args.output
        choice = days.cheapest(self.day, power, tokens)
        plans = {SWITCH: choice} | {name: [name] * len(choice) for name in self.names}
        self.expected = {name: days.mean_power(self.day, power, plan, tokens) for name, plan in plans.items()}
        return choice, f"least power at each hour's output rate, as {self.args.profile} measured it"

    def _trace(self, day: Day, seed: int, drain_s: float) -> Schedule:
        return days.make_trace(day, self.prompt, self.output, self.vocabulary, seed, drain_s)

    def warm_up(self) -> Schedule:
        """The day in the warm-up's time, with other prompts."""
        short = Day(self.day.rate_hz, (self.args.warm_s - self.args.drain_s) / len(self.day.rate_hz))
        return self._trace(short, self.args.seed + 1000, self.args.drain_s)

    def served(self, segments: Sequence[Segment]) -> dict[str, Any]:
        """The schedule file that serve-schedule gets."""
        made = days.slots(segments, self.names, self.parts, self.layout, self.base.classes)
        length = f"{self.layout.end_s(len(segments)) + 5:.3f}s"
        return self.written | {"name": f"{self.base.name}-replays", "slots": made, "repeat": False, "length": length}

    def settings(self) -> dict[str, Any]:
        """What two calls must have in common to belong to one result."""
        own = {k: v for k, v in vars(self.args).items() if k not in ("out", "plan", "table", "schedule", "repeats")}
        return own | {"expected_w": self.expected, "deployments": self.written["deployments"], "choice": self.choice,
                      "trace_sha256": schedule_digest(self.trace)}  # fmt: skip

    def describe(self, segments: Sequence[Segment]) -> str:
        rates = " ".join(f"{r:.3g}" for r in self.day.rate_hz)
        who = "; ".join(f"{p.start_s:g}-{p.end_s:g} s {p.kind}" for p in self.parts)
        tokens = sum(r.output_tokens for r in self.trace.requests)
        watts = ", ".join(f"{name} {w:.0f} W" for name, w in self.expected.items())
        return (f"day: {rates} requests/s, {self.day.hour_s:g} s each; {len(self.trace)} requests, {tokens} output "
                f"tokens\nschedule: {who} ({self.why})\n"
                f"mean power over the day by that profile: {watts or 'not asked'}\n"
                f"order: {' '.join(s.key for s in segments)}\n"
                f"about {self.layout.end_s(len(segments)) / 60:.1f} min after both are ready")  # fmt: skip


# ---------------------------------------------------------------- the server


class Server:
    """A running serve-schedule: where it is, and where its schedule's zero lies on the monotonic clock."""

    def __init__(self, url: str):
        self.url = url
        found = []
        for _ in range(5):
            before = time.monotonic()
            t_s = float(self.state()["t_s"])
            found.append((time.monotonic() - before, (before + time.monotonic()) / 2 - t_s))
        self.zero_s = min(found)[1]

    def state(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.url + "/qmeter/schedule", timeout=5) as answer:
            return dict(json.loads(answer.read()))

    def counts(self) -> dict[str, float]:
        """What the router counted so far: retries, restarts, requests served outside their shares."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=5) as answer:
            page = answer.read().decode()
        names = {"retries": "retries_total", "restarts": "restarts_total", "fallbacks": "fallbacks_total"}
        lines = {k: re.findall(rf"^qmeter_router_{n}(?:{{.*}})? (\S+)$", page, re.MULTILINE) for k, n in names.items()}
        return {k: sum(map(float, found)) for k, found in lines.items()}


@contextmanager
def serving(schedule: dict[str, Any], out: Path) -> Iterator[Server]:
    """serve-schedule as a process, ready; ended at the end."""
    file = out / "schedule.yaml"
    file.write_text(yaml.safe_dump(schedule, sort_keys=False))
    command = [sys.executable, "-m", "qmeter.cli.main", "serve-schedule", str(file), "--port", "0", "--json",
               "--out", str(out / "served")]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        said: dict[str, Any] = {}
        for line in process.stdout:
            said = json.loads(line)
            print(f"  server: {said.get('text') or said['event']}", flush=True)
            if said["event"] == "ready":
                break
        if said.get("event") != "ready":
            sys.exit(f"the server did not start (see {out / 'served'})")
        threading.Thread(target=_echo, args=(process.stdout,), daemon=True).start()
        yield Server(said["base_url"])
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait(60)


def _echo(lines: Any) -> None:
    for line in lines:
        said = json.loads(line)
        print(f"  server: {said.get('text') or json.dumps(said)}", flush=True)


# ---------------------------------------------------------------- one replay


class Bench:
    """What every replay uses; ``lead_s`` is what a load's start took last time: the next is called that much ahead."""

    def __init__(self, plan: Plan, server: Server, samplers: Sequence[Sampler]):
        self.plan, self.server, self.samplers = plan, server, samplers
        self.target = Target(server.url, plan.base.classes[0], stall_s=30.0, timeout_s=120.0)
        self.lead_s = 0.5

    def warm_up(self) -> None:
        """Send the warm-up, and learn from it how long a replay's start will take: encoding, and the processes'."""
        warm = self.plan.warm_up()
        self.send(warm, 0.5 + self.lead_s)
        self.lead_s += self._encoding_s(self.plan.trace) - self._encoding_s(warm)

    def _encoding_s(self, schedule: Schedule) -> float:
        encoder, began = RequestEncoder(self.target), time.monotonic()
        for i, request in enumerate(schedule.requests):
            encoder.encode(i, request)
        return time.monotonic() - began

    def send(self, schedule: Schedule, at_s: float) -> tuple[Any, float]:
        """Drive a load from ``at_s`` of the served schedule on; the result, and its zero on the monotonic clock."""
        wait_s = self.server.zero_s + at_s - self.lead_s - time.monotonic()
        time.sleep(max(0.0, wait_s))
        called_s = time.monotonic()
        result = drive(schedule, self.target, origin_monotonic_s=called_s, client=ClientSpec())
        self.lead_s = result.start_s
        return result, called_s + result.start_s

    def replay(self, segment: Segment, index: int, out: Path) -> dict[str, Any]:
        """Send the day once, and everything measured over it."""
        plan, begin_s = self.plan, self.plan.layout.begin_s(index)
        time.sleep(max(0.0, self.server.zero_s + begin_s - plan.args.gap_s + 0.2 - time.monotonic()))
        before, counts = self.server.state(), self.server.counts()
        recorder = Recorder(self.samplers, RATE_HZ, self.server.zero_s)
        recorder.start()
        try:
            result, zero_s = self.send(plan.trace, begin_s)
            window_s = plan.day.length_s + plan.args.drain_s
            time.sleep(max(0.0, zero_s + window_s + AFTER_S - time.monotonic()))
        finally:
            telemetry, info = recorder.stop()
        after, counted = self.server.state(), self.server.counts()
        start_s = zero_s - self.server.zero_s
        shift_s = result.start_s
        tables = CellTables(
            requests=_moved(result.requests, shift_s), tokens=_shifted(result.tokens, shift_s),
            telemetry=Telemetry(telemetry.series, telemetry.t_s - start_s, telemetry.value),
        )  # fmt: skip
        row = {
            "policy": segment.policy,
            "repeat": segment.repeat,
            "number": segment.number,
            "began_unix_s": time.time() - time.monotonic() + zero_s,
            "late_s": start_s - begin_s,
            "window_s": window_s,
        }
        row |= measured(tables, info, plan.parts, plan.slo, window_s)
        row |= {"split": _split(before, after), "router": {k: counted[k] - counts[k] for k in counted},
                "client_faults": [f.message for f in result.proof.failures]}  # fmt: skip
        row["faults"] = _faults(row, before, after, segment, plan)
        _keep(tables, out / segment.key)
        return row


def measured(tables: CellTables, info: Sequence[SeriesInfo], parts: Sequence[Part], slo: SLO, window_s: float
             ) -> dict[str, Any]:  # fmt: skip
    """A replay's numbers: energy and tokens over the window and each part, latencies, promises broken, failures."""
    lat = latencies(tables, Window(start_s=0.0, end_s=window_s, method="replay", stationary=False))
    energy = energy_of(tables.telemetry, info, 0.0, window_s)
    status, n = np.unique(tables.requests.status.astype(str), return_counts=True)
    over = ~lat.ok | (lat.ttft_s > (slo.ttft or np.inf)) | (lat.tpot_s > (slo.tpot or np.inf))
    arrived = tables.tokens.t_s < window_s
    return {
        "j": energy.value, "j_low": energy.low, "j_high": energy.high, "j_why": energy.why,
        "integrated_ratio": check_of(tables.telemetry, info, window_s),
        "tokens": int(tables.tokens.n[arrived].sum()), "due": len(lat.rows), "violations": int(over.sum()),
        "statuses": {str(s): int(c) for s, c in zip(status, n, strict=True)},
        "tokens_late": int(tables.tokens.n[~arrived].sum()),
        **{f"ttft_p{p}_s": _percentile(lat.ttft_s, p) for p in (50, 90, 99)},
        **{f"tpot_p{p}_s": _percentile(lat.tpot_s, p) for p in (50, 90, 99)},
        "parts": [_part(tables, info, p, over, lat.rows) for p in parts],
    }  # fmt: skip


def _part(tables: CellTables, info: Sequence[SeriesInfo], part: Part, over: Any, rows: Any) -> dict[str, Any]:
    energy = energy_of(tables.telemetry, info, part.start_s, part.end_s)
    t_s, due = tables.tokens.t_s, tables.requests.intended_s[rows]
    mine = (due >= part.start_s) & (due < part.end_s)
    tokens = int(tables.tokens.n[(t_s >= part.start_s) & (t_s < part.end_s)].sum())
    return {"kind": part.kind, "start_s": part.start_s, "end_s": part.end_s, "j": energy.value, "j_why": energy.why,
            "tokens": tokens, "due": int(mine.sum()), "violations": int(over[mine].sum())}  # fmt: skip


def energy_of(telemetry: Telemetry, info: Sequence[SeriesInfo], start_s: float, end_s: float) -> Quantity:
    """Energy of the GPUs, or where there is none of the CPU package, or unknown with the reason."""
    series = grouped(telemetry)
    window = Window(start_s=start_s, end_s=end_s, method="replay", stationary=False)
    found = [device_energy(n, series, info, window) for n in devices(series, info) or ["cpu"]]
    missing = next((d.energy for d in found if not d.energy.known), None)
    if missing is not None:
        return Quantity.unknown("J", missing.why or "unknown")
    value, bound = sum(d.energy.value or 0.0 for d in found), sum(d.bound_j for d in found)
    notes = "; ".join(sorted({d.energy.why for d in found if d.energy.why}))
    return Quantity.of(value, "J", low=max(0.0, value - bound), high=value + bound, why=notes or None)


def check_of(telemetry: Telemetry, info: Sequence[SeriesInfo], window_s: float) -> float | None:
    """Integrated instant power over the counter's energy, for one GPU; ``None`` where there is none, or several."""
    series = grouped(telemetry)
    names = devices(series, info)
    if len(names) != 1:
        return None
    window = Window(start_s=0.0, end_s=window_s, method="replay", stationary=False)
    found = device_energy(names[0], series, info, window).checks.get("integrated_ratio")
    return found.value if found else None


def _percentile(values: Any, p: int) -> float | None:
    """``None`` where the percentile is a request that never got that far."""
    known = values[~np.isnan(values)]
    found = float(np.percentile(known, p, method="higher")) if len(known) else math.inf
    return found if math.isfinite(found) else None


def _moved(requests: Any, by_s: float) -> Any:
    names = ("intended_s", "sent_s", "first_token_s", "last_token_s", "end_s")
    return replace(requests, **{n: getattr(requests, n) - by_s for n in names})


def _shifted(tokens: Any, by_s: float) -> Any:
    return replace(tokens, t_s=tokens.t_s - by_s)


def _split(before: dict[str, Any], after: dict[str, Any]) -> dict[str, int]:
    """Requests that each deployment was given in between, as the router counts them."""
    earlier = {r["name"]: r["served"] for r in before["replicas"]}
    split: dict[str, int] = {}
    for r in after["replicas"]:
        split[r["deployment"]] = split.get(r["deployment"], 0) + r["served"] - earlier.get(r["name"], 0)
    return split


def _faults(row: dict[str, Any], before: dict[str, Any], after: dict[str, Any], segment: Segment, plan: Plan
            ) -> list[str]:  # fmt: skip
    """Why a replay does not count."""
    out = [f"the client: {f}" for f in row["client_faults"]]
    if {r["name"]: r["pids"] for r in before["replicas"]} != {r["name"]: r["pids"] for r in after["replicas"]}:
        out.append("a replica was started again during it")
    if abs(row["late_s"]) > LATE_S:
        out.append(f"it began {row['late_s']:+.2f} s from its slot")
    given = {k: n for k, n in row["split"].items() if n}
    expected = set(plan.choice) if segment.policy == SWITCH else {segment.policy}
    if set(given) != expected:
        out.append(f"served by {given}, not by {', '.join(sorted(expected))} alone")
    if row["tokens_late"]:
        out.append(f"{row['tokens_late']} tokens came after its window: lengthen --drain-s")
    return out


def _keep(tables: CellTables, path: Path) -> None:
    r, t = tables.requests, tables.telemetry
    np.savez_compressed(
        path.with_suffix(".npz"), intended_s=r.intended_s, first_token_s=r.first_token_s, last_token_s=r.last_token_s,
        output_tokens=np.bincount(tables.tokens.request, weights=tables.tokens.n, minlength=len(r)),
        status=r.status.astype(str), series=t.series.astype(str), t_s=t.t_s, value=t.value,
    )  # fmt: skip


# ---------------------------------------------------------------- all replays


def run(plan: Plan, out: Path) -> dict[str, Any]:
    """Every replay that is still missing; the result is written after each."""
    file = out / "result.json"
    settings = json.loads(json.dumps(plan.settings()))
    result: dict[str, Any] = {"settings": settings, "segments": []}
    if file.exists():
        result = json.loads(file.read_text())
        if result["settings"] != settings:
            sys.exit(f"{file} was made with other settings: choose another --out")
    done = {(r["policy"], r["repeat"]) for r in result["segments"] if not r["faults"]}
    segments = [s for s in plan.order if (s.policy, s.repeat) not in done]
    print(plan.describe(segments), flush=True)
    if plan.args.plan or not segments:
        return result
    out.mkdir(parents=True, exist_ok=True)
    gpus = {g for d in plan.base.deployments for group in d.gpus for g in group}
    samplers = open_samplers(plan.args.samplers.split(","), gpus or None)
    try:
        with serving(plan.served(segments), out) as server:
            bench = Bench(plan, server, samplers)
            began = server.state()
            result["starts"] = {r["name"]: r["startup_s"] for r in began["replicas"]}
            bench.warm_up()
            for index, segment in enumerate(segments):
                try:
                    row = bench.replay(segment, index, out)
                except (QMeterError, OSError) as error:
                    print(f"{segment.key}: not measured, {error}", flush=True)
                    continue
                result["segments"].append(row)
                result["summary"] = days.summarise([r for r in result["segments"] if not r["faults"]],
                                                   plan.args.percentile)  # fmt: skip
                write_atomic(file, json.dumps(result, indent=1))
                print(line(row), flush=True)
    finally:
        for sampler in samplers:
            sampler.close()
    return result


def line(row: dict[str, Any]) -> str:
    """One replay in one line."""
    energy = f"J unknown ({row['j_why']})"
    if row["j"]:
        energy = f"{row['j']:.0f} J, {row['j'] / row['tokens']:.4f} J/token"
    tails = f"TTFT p99 {_ms(row['ttft_p99_s'])}, TPOT p99 {_ms(row['tpot_p99_s'])}"
    faults = f"  NOT COUNTED: {'; '.join(row['faults'])}" if row["faults"] else ""
    return (f"{row['policy']:>12} #{row['repeat']}: {energy}, {row['tokens']} tokens, {tails}, {row['violations']} of "
            f"{row['due']} beyond the SLO, {row['statuses']}, split {row['split']}, late {row['late_s'] * 1e3:+.0f} ms"
            f"{faults}")  # fmt: skip


def _ms(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds * 1e3:.1f} ms"


def table(result: dict[str, Any], percentile: float) -> str:
    """The comparison as Markdown."""
    rows = [r for r in result["segments"] if not r["faults"]]
    found = days.summarise(rows, percentile)
    out = ["| policy | replays | J a replay | J/token | spread | beyond the SLO | TTFT p99 | TPOT p99 | failed |",
           "|---|--:|--:|--:|--:|--:|--:|--:|--:|"]  # fmt: skip
    for name, p in found["policies"].items():
        mine = [r for r in rows if r["policy"] == name]
        joules = ["unknown"] * 3 if p["j_mean"] is None else [
            f"{p['j_mean']:,.0f}", f"{p['j_per_token']:.4f}", f"{p['spread']:.2%}"]  # fmt: skip
        tails = [" / ".join(_ms(r[k]) for r in mine) for k in ("ttft_p99_s", "tpot_p99_s")]
        failed = sum(n for r in mine for s, n in r["statuses"].items() if s != "ok")
        cells = [name, str(p["repeats"]), *joules, f"{p['violation_share']:.2%}", *tails, str(failed)]
        out.append("| " + " | ".join(cells) + " |")
    out.append("")
    for name, p in found["policies"].items():
        for part in p.get("parts", ()):
            watts = "unknown" if part["power_w"] is None else f"{part['power_w']:.0f} W"
            out.append(f"{name}: {part['start_s']:g}-{part['end_s']:g} s ({part['kind']} by the schedule): {watts}")
    out.append(_verdict(found))
    return "\n".join(out)


def _verdict(found: dict[str, Any]) -> str:
    if not found["ratio"]:
        return f"joules beside the best static choice: unknown, because {found['why']}"
    r = found["ratio"]
    held = "holds the SLO" if found["best_static_holds"] else "none holds the SLO; this one takes the least energy"
    span = f"[{1 - r['high']:+.2%}, {1 - r['low']:+.2%}]" if r["low"] is not None else f"(no interval: {r['why']})"
    each = ", ".join(f"{1 - v:+.2%}" for v in r["each"])
    return (f"the schedule saves {1 - r['value']:+.2%} {span} of the joules a token of the best static choice, "
            f"{found['best_static']} ({held}); by repeat: {each}")  # fmt: skip


def main() -> None:
    args = arguments()
    if args.table:
        made = args.out / "result.json"
        if not made.is_file():
            sys.exit(f"error: {args.out} has no result.json; name the folder of a run: --out DIR --table")
        result = json.loads(made.read_text())
        print(table(result, result["settings"]["percentile"]))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are ended with this
    plan = Plan(args)
    result = run(plan, args.out)
    if result["segments"] and not args.plan:
        print(table(result, args.percentile))


if __name__ == "__main__":
    main()
