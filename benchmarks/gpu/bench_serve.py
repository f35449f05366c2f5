"""qMeter's client beside ``vllm bench serve`` (0.25.1) on one deployment: the same arrivals, the same prompts.

    python benchmarks/gpu/bench_serve.py --method bf16,fp8 --ground-truth --out bench_serve.json    # on a GPU host
    python benchmarks/gpu/bench_serve.py --url http://127.0.0.1:8000 --model NAME --tokenizer DIR   # any server
    python benchmarks/gpu/bench_serve.py --ground-truth                                             # the clients alone
    python benchmarks/gpu/bench_serve.py --table bench_serve.json                                   # again the table

For each load the clients take turns: A, qMeter with text prompts; B, ``vllm bench serve`` with the same text; C, qMeter
with the same prompts as token ids; who begins rotates by round. The arrivals are those that bench draws from ``--seed``
(bench_pairs.py), computed ahead for qMeter and checked afterwards against the start times that bench records. Each run
begins with one request of its own, as bench's ready check does. ``--ground-truth`` runs A and B against a server whose
token times are known, at the same rates: what each client adds to TTFT on this host. The output is written after
each run; ``--budget`` ends with what was measured by then.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from bench_pairs import BENCH, CLIENTS, IDS, TEXT, Run, bench_offsets, lateness, summary, table

from qmeter import catalog, sources
from qmeter.engines import standby
from qmeter.engines.server import serve
from qmeter.engines.table import ENGINES
from qmeter.engines.verify import verify
from qmeter.errors import MethodNotApplied, QMeterError
from qmeter.load import Target, drive
from qmeter.record import RequestStatus
from qmeter.sources.synth.config import write_tokenizer
from qmeter.spec.study import ClientSpec, Deployment, EngineRef, ModelRef, Parallelism
from qmeter.store import write_atomic
from qmeter.testing.ground_truth import GroundTruth, ground_truth
from qmeter.workload import Schedule, Vocabulary
from qmeter.workload.schedule import ScheduledRequest

MODEL = "llama-3.1-8b"
OPTIONS: dict[str, str | int | float | bool] = {
    "max_sequences": 256,
    "token_budget": 8192,
    "max_model_tokens": 4096,
    "gpu_memory_fraction": 0.9,
    "prefix_cache": False,
    "cuda_graph_sizes": "1,2,4,8,16,24,32,48,64,96,128,192,256",
    "env.VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS": "0",
}
"""As in studies/h200_8b_grid.yaml."""
PROMPT_TOKENS, OUTPUT_TOKENS = 512, 128
TRUTH = "ground truth"
QUIET_ENV = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
             "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}  # fmt: skip
HISTOGRAMS = {
    "ttft_s": "vllm:time_to_first_token_seconds",
    "queue_s": "vllm:request_queue_time_seconds",
    "prefill_s": "vllm:request_prefill_time_seconds",
    "tpot_s": "vllm:request_time_per_output_token_seconds",
}
IDLE_S, IDLE_POLL_S = 20.0, 0.1
START_S = 100.0
"""No deployment begins with less of the budget left than a start and a first run take."""
BENCH_LIMIT_S = 60.0
"""How long ``vllm bench serve`` may take beyond its load."""


def say(text: str) -> None:
    print(f"[{time.monotonic() - BEGAN_S:6.1f} s] {text}", flush=True)


BEGAN_S = time.monotonic()

# -- servers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """A server that is ready: how it is called, where, the folder of its tokenizer, what is known of it."""

    name: str
    base_url: str
    model: str
    tokenizer: Path
    facts: dict[str, Any] = field(default_factory=dict)
    truth: GroundTruth | None = None


@contextlib.contextmanager
def deployed(method_name: str, folder: Path, *, last: bool) -> Iterator[Served]:
    """vLLM with the synthetic 8B in one method, through qMeter's adapter, verified as a study's deployment is.

    Raises:
        MethodNotApplied: vLLM runs something else.
    """
    deployment = Deployment(
        model=ModelRef(name=MODEL, source=f"synth:{MODEL}", shape=MODEL), device="auto", method=method_name,
        engine=EngineRef(name="vllm", options=OPTIONS), parallelism=Parallelism(),
    )  # fmt: skip
    method, shape = catalog.method(method_name), catalog.model(MODEL)
    artifact = sources.prepare(deployment.model, method, "vllm", folder / "cache")
    workdir = folder / method_name
    workdir.mkdir(parents=True, exist_ok=True)
    if last:
        os.environ[standby.SWITCH] = "0"
    say(f"{method_name}: starting vLLM")
    with serve(ENGINES.create("vllm"), deployment, artifact, workdir) as server:
        checked = verify(deployment, method, shape, artifact, server.effective)
        if failed := checked.failed:
            told = "; ".join(f"{c.name}: expected {c.expected}, the engine runs {c.seen}" for c in failed)
            raise MethodNotApplied(f"the engine does not run {method_name}: {told}", stage="verify")
        verified = "verified" if checked.verified else "NOT verified"
        say(f"{method_name}: ready after {server.startup_s:.0f} s, {verified}, kernel {server.effective.kernel}")
        standby.settle()
        facts = {
            "verification": checked.model_dump(mode="json"), "effective": server.effective.model_dump(mode="json"),
            "startup_s": server.startup_s, "argv": list(server.launch.argv or ()),
        }  # fmt: skip
        tokenizer = artifact.tokenizer or artifact.path
        yield Served(method_name, server.launch.base_url, server.launch.served_model, tokenizer, facts)
        server.check_alive("load")


@contextlib.contextmanager
def truthful(folder: Path, tokenizer: Path | None, ttft_s: float, itl_s: float) -> Iterator[Served]:
    """The ground-truth server, with a tokenizer for bench to count by."""
    with ground_truth(ttft_s, itl_s) as truth:
        facts = {"kind": truth.kind, "ttft_s": ttft_s, "itl_s": itl_s}
        yield Served(TRUTH, truth.base_url, "truth", tokenizer or words(folder), facts, truth)


def words(folder: Path) -> Path:
    """The synthetic checkpoint's tokenizer, by itself."""
    made = folder / "tokenizer"
    made.mkdir(parents=True, exist_ok=True)
    write_tokenizer(made, catalog.model(MODEL).vocab)
    (made / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": catalog.model(MODEL).vocab}))
    return made


def metrics(base_url: str) -> dict[str, float]:
    """Every sample of vLLM's metrics page, summed over labels; empty where there is none."""
    try:
        with urllib.request.urlopen(f"{base_url}/metrics", timeout=5) as answer:
            page = answer.read().decode()
    except OSError:
        return {}
    out: dict[str, float] = {}
    for name, value in re.findall(r"^(vllm:[a-z_]+)(?:\{[^\n]*\})? ([^\s]+)$", page, re.MULTILINE):
        out[name] = out.get(name, 0.0) + float(value)
    return out


def wait_idle(base_url: str) -> None:
    """Until nothing runs or waits in the engine (half a second where it does not say)."""
    time.sleep(0.5)
    until = time.monotonic() + IDLE_S
    while time.monotonic() < until:
        page = metrics(base_url)
        if not sum(page.get(f"vllm:num_requests_{k}", 0.0) for k in ("running", "waiting")):
            return
        time.sleep(IDLE_POLL_S)


def engine_means(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Means of the engine's own histograms between two readings (the run's first request counts too). Units: s."""
    out = {}
    for key, name in HISTOGRAMS.items():
        count = after.get(f"{name}_count", 0.0) - before.get(f"{name}_count", 0.0)
        if count > 0:
            out[key] = (after[f"{name}_sum"] - before.get(f"{name}_sum", 0.0)) / count
            out[key.replace("_s", "_n")] = count
    return out


class Tap:
    """The loopback interface's own stamps of one run (bench_tap.py); says why where the host gives none."""

    def __init__(self, base_url: str, on: bool):
        self.note = "" if on else "not asked for"
        self._process: subprocess.Popen[str] | None = None
        if on:
            command = [sys.executable, str(Path(__file__).with_name("bench_tap.py")), str(urlsplit(base_url).port)]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
            assert self._process.stdout is not None
            if self._process.stdout.readline().strip() != "ready":
                self._end()

    def _end(self) -> str:
        assert self._process is not None
        said, wrong = self._process.communicate()
        if self._process.returncode:
            self.note = (wrong.strip().splitlines() or ["it ended"])[-1]
        self._process = None
        return said

    def close(self) -> dict[str, Any] | None:
        """What was seen, ``None`` where nothing could be."""
        if self._process is None:
            return None
        said = self._end()
        seen: dict[str, Any] | None = json.loads(said) if not self.note else None
        return seen


# -- the load --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """The same requests for every client: arrivals, prompts as token ids and as text."""

    rate_hz: float
    seed: int
    offset_s: np.ndarray
    ids: list[tuple[int, ...]]
    text: list[str]

    @property
    def count(self) -> int:
        return len(self.ids)


def load_of(rate_hz: float, count: int, seed: int, prompt_tokens: int) -> Load:
    """``count`` requests; in the synthetic tokenizer word ``w7`` is token 7, so text and ids are the same prompt."""
    allowed = Vocabulary.of(catalog.model(MODEL)).allowed()
    drawn = allowed[np.random.default_rng(seed).integers(0, allowed.size, size=(count, prompt_tokens))]
    ids = [tuple(row) for row in drawn.tolist()]
    return Load(
        rate_hz, seed, bench_offsets(count, rate_hz, seed), ids, [" ".join(f"w{i}" for i in row) for row in ids]
    )


def schedule_of(load: Load, client: str, output_tokens: int, count: int | None = None) -> Schedule:
    """qMeter's schedule of a load, or of its first ``count`` requests at once."""
    prompts: Sequence[Any] = load.text if client == TEXT else load.ids
    requests = tuple(ScheduledRequest(p, len(i), output_tokens) for p, i in zip(prompts, load.ids, strict=True))[:count]
    send_s = load.offset_s if count is None else np.zeros(count)
    return Schedule(send_s, requests, ("poisson", {"rate_hz": load.rate_hz}), 0.0, float(send_s[-1]) + 1e-3, 120.0)


def run_qmeter(served: Served, load: Load, client: str, number: int, output_tokens: int, tap: Tap) -> Run:
    """A or C. One request first, as bench's ready check."""
    target = Target(served.base_url, served.model)
    before = metrics(served.base_url)
    drive(schedule_of(load, client, output_tokens, 1), target, origin_monotonic_s=time.monotonic(), client=ClientSpec())
    origin_s = time.monotonic()
    result = drive(schedule_of(load, client, output_tokens), target, origin_monotonic_s=origin_s, client=ClientSpec())
    r = result.requests
    ok = r.status == RequestStatus.OK
    counted = np.bincount(result.tokens.request, weights=result.tokens.n, minlength=load.count)
    tokens = np.where(r.output_tokens >= 0, r.output_tokens, counted)
    lost = np.where(ok, 0.0, np.nan)
    run = Run(
        server=served.name, rate_hz=load.rate_hz, round=number, client=client, seed=load.seed,
        ttft_s=r.first_token_s - r.sent_s + lost, ttft_intended_s=r.first_token_s - r.intended_s + lost,
        tpot_s=(r.last_token_s - r.first_token_s) / np.maximum(tokens - 1, 1) + lost,
        late_s=r.sent_s - result.start_s - load.offset_s,
        prompt_tokens=r.prompt_tokens.tolist(), output_tokens=[int(t) for t in tokens], failed=int((~ok).sum()),
        proof=[f"{f.kind}: {f.message}" for f in result.proof.failures],
        checks={k: q.value for k, q in result.proof.checks.items()},
    )  # fmt: skip
    return finish(served, run, before, r.sent_s + origin_s, tap)


def finish(served: Served, run: Run, before: dict[str, float], sent_monotonic_s: np.ndarray, tap: Tap) -> Run:
    """Add what others than the client say: the wire, the server's histograms, the ground truth's log."""
    wait_idle(served.base_url)
    run.engine = engine_means(before, metrics(served.base_url))
    seen = tap.close()
    run.tap = tap.note if seen is None else {k: seen[k] for k in ("packets", "dropped", "unstamped")}
    if seen is not None:
        add_wire(run, seen["rows"], sent_monotonic_s)
    if served.truth is not None:
        log = served.truth.log()
        known = np.flatnonzero(log.id >= 0)
        row = np.full(len(run.ttft_s), -1)
        row[log.id[known]] = known  # the run's own first request has request 0's number too: the later one counts
        run.truth_ttft_s = np.where(row >= 0, (log.written_ns[log.first[row]] - log.received_ns[row]) / 1e9, np.nan)
        run.to_server_s = np.where(row >= 0, log.received_ns[row] / 1e9 - sent_monotonic_s, np.nan)
        late = log.lateness_s()
        run.checks["server_late_p99_s"] = float(np.percentile(late, 99)) if len(late) else None
        served.truth.reset()
    return run


def add_wire(run: Run, rows: Sequence[dict[str, Any]], sent_monotonic_s: np.ndarray) -> None:
    """The wire's TTFT of each request, and how long after the client's send stamp the request was there whole."""
    ttft_s, before_s = (np.full(len(run.ttft_s), np.nan) for _ in range(2))
    for row in rows:  # the run's own first request may have request 0's number too: the later one counts
        if 0 <= row["id"] < len(ttft_s) and row["first_ns"] is not None:
            ttft_s[row["id"]] = (row["first_ns"] - row["asked_ns"]) / 1e9
            before_s[row["id"]] = row["asked_ns"] / 1e9 - sent_monotonic_s[row["id"]]
    run.wire_ttft_s, run.wire_before_s = ttft_s, before_s


def bench_argv(served: Served, load: Load, prompts: Path, out: Path, output_tokens: int) -> list[str]:
    """``vllm …`` for one run of B."""
    return [
        "bench", "serve", "--backend", "openai", "--base-url", served.base_url, "--endpoint", "/v1/completions",
        "--model", served.model, "--tokenizer", str(served.tokenizer),
        "--dataset-name", "custom", "--dataset-path", str(prompts), "--custom-output-len", str(output_tokens),
        "--skip-chat-template", "--disable-shuffle", "--num-prompts", str(load.count),
        "--request-rate", f"{load.rate_hz:g}", "--seed", str(load.seed), "--ignore-eos", "--temperature", "0",
        "--request-id-prefix", "qmeter-", "--disable-tqdm", "--percentile-metrics", "ttft,tpot,itl",
        "--metric-percentiles", "50,99", "--save-result", "--save-detailed",
        "--result-dir", str(out.parent), "--result-filename", out.name, "--ready-check-timeout-sec", "20",
    ]  # fmt: skip


def run_bench(
    worker: BenchWorker, served: Served, load: Load, number: int, output_tokens: int, folder: Path, tap: Tap
) -> Run:
    """B."""
    name = f"bench-{served.name.replace(' ', '-')}-{load.rate_hz:g}-{number}"
    prompts, out, log = (folder / f"{name}.{end}" for end in ("prompts.jsonl", "json", "log"))
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in load.text))
    out.unlink(missing_ok=True)
    before = metrics(served.base_url)
    limit_s = load.count / load.rate_hz + BENCH_LIMIT_S
    argv = bench_argv(served, load, prompts, out, output_tokens)
    code = worker.run(argv, log, limit_s)
    if not out.is_file() and worker.forks and code > 0:
        say(f"bench ended with {code} in a fork ({log}): from scratch from now on")
        worker.forks = False
        code = worker.run(argv, log.with_suffix(".alone.log"), limit_s)
    if not out.is_file():
        raise RuntimeError(f"vllm bench serve ended with {code}; the end of {log}:\n{log.read_text()[-1500:]}")
    run, start_s = read_bench(json.loads(out.read_text()), served.name, load, number)
    return finish(served, run, before, start_s, tap)


def read_bench(data: dict[str, Any], server: str, load: Load, number: int) -> tuple[Run, np.ndarray]:
    """Bench's detailed result as a :class:`Run`, and its start times (CLOCK_MONOTONIC, s)."""
    failed = np.asarray([bool(e) for e in data["errors"]]) | (np.asarray(data["ttfts"]) <= 0)
    lost = np.where(failed, np.nan, 0.0)
    ttft_s, start_s = np.asarray(data["ttfts"]) + lost, np.asarray(data["start_times"])
    steps = np.maximum(np.asarray(data["output_lens"]) - 1, 1)
    run = Run(
        server=server, rate_hz=load.rate_hz, round=number, client=BENCH, seed=load.seed,
        ttft_s=ttft_s, ttft_intended_s=ttft_s,
        tpot_s=np.asarray([sum(gaps) for gaps in data["itls"]]) / steps + lost,
        late_s=lateness(start_s, load.offset_s),
        prompt_tokens=list(data["input_lens"]), output_tokens=list(data["output_lens"]), failed=int(failed.sum()),
        reported={k: float(v) for k, v in data.items() if k.endswith("_ms") and isinstance(v, int | float)},
    )  # fmt: skip
    return run, start_s


class BenchWorker:
    """Runs ``vllm bench serve``: each in a fork of one process that has vLLM's imports, or ``alone`` from scratch."""

    def __init__(self, python: str, folder: Path, *, alone: bool):
        self._python, self.forks = python, not alone
        self._env = {**os.environ, **QUIET_ENV}
        self._log = (folder / "bench_worker.log").open("w")
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Begin the imports; :meth:`ready` waits for their end."""
        if self.forks and self._process is None:
            self._process = subprocess.Popen(
                [self._python, str(Path(__file__).with_name("bench_worker.py"))], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=self._log, text=True, env=self._env,
            )  # fmt: skip

    def ready(self) -> None:
        """Wait until no import is left to disturb a run."""
        self.start()
        if self._process is not None and not hasattr(self, "_took_s"):
            self._took_s = self._answer()["ready"]
            say(f"vllm bench serve: imports took {self._took_s:.1f} s")

    def _answer(self) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the bench worker ended: see {self._log.name}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def run(self, argv: list[str], log: Path, limit_s: float) -> int:
        """One run; its exit status."""
        if not self.forks:
            with log.open("w") as out:
                command = [self._python, "-m", "vllm.entrypoints.cli.main", *argv]
                return subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env=self._env,
                                      timeout=limit_s).returncode  # fmt: skip
        self.ready()
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(json.dumps({"argv": argv, "log": str(log), "limit_s": limit_s}) + "\n")
        self._process.stdin.flush()
        code: int = self._answer()["rc"]
        return code

    def close(self) -> None:
        """End the worker."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()


# -- the order of things ---------------------------------------------------------------------------------------------


class Session:
    """All runs of one call, written to ``--out`` after each."""

    def __init__(self, asked: argparse.Namespace, folder: Path, worker: BenchWorker):
        self.asked, self.folder, self.worker = asked, folder, worker
        self.runs: list[Run] = []
        self.servers: dict[str, Any] = {}
        self.notes: list[str] = []
        self._longest_s: dict[tuple[float, str], float] = {}

    def keep(self) -> None:
        """Write everything so far."""
        head = {k: v for k, v in vars(self.asked).items() if isinstance(v, str | int | float | list)}
        data = {"asked": head, "clock": time.time(), "servers": self.servers, "notes": self.notes,
                "runs": [r.as_json() for r in self.runs], "summary": summary(self.runs, TRUTH)}  # fmt: skip
        write_atomic(self.asked.out, json.dumps(data))

    def time_for(self, seconds: float) -> bool:
        """Whether the budget has that much left."""
        return time.monotonic() - BEGAN_S + seconds <= self.asked.budget

    def measure(self, served: Served, clients: Sequence[str], rounds: int, seconds: float) -> None:
        """Rounds × rates × clients in turn, until the budget ends."""
        self.servers[served.name] = {**served.facts, "base_url": served.base_url}
        loads = [self._load(rate, 0, seconds) for rate in self.asked.rates]
        self.worker.ready()
        for load in loads[-1:]:  # first-use work is nobody's
            warm = schedule_of(load, TEXT, self.asked.output_tokens, min(8, load.count))
            drive(warm, Target(served.base_url, served.model), origin_monotonic_s=time.monotonic(), client=ClientSpec())
            wait_idle(served.base_url)
        if served.truth is not None:
            served.truth.reset()
        for number in range(rounds):
            turn = [*clients[number % len(clients) :], *clients[: number % len(clients)]]
            for load in (
                loads if not self.asked.vary_seed else [self._load(r, number, seconds) for r in self.asked.rates]
            ):
                for client in turn:
                    self._one(served, load, client, number)

    def _load(self, rate_hz: float, number: int, seconds: float) -> Load:
        seed = self.asked.seed + (number if self.asked.vary_seed else 0)
        return load_of(rate_hz, max(2, round(rate_hz * seconds)), seed, self.asked.prompt_tokens)

    def _one(self, served: Served, load: Load, client: str, number: int) -> None:
        what = f"{served.name}, {load.rate_hz:g}/s, round {number}, {client}"
        expected_s = self._longest_s.get((load.rate_hz, client), load.count / load.rate_hz + 6)
        if not self.time_for(expected_s):
            self.notes.append(f"{what}: no time left for it")
            say(self.notes[-1])
            return
        began_s = time.monotonic()
        tap = Tap(served.base_url, on=not self.asked.no_tap)
        try:
            if client == BENCH:
                run = run_bench(self.worker, served, load, number, self.asked.output_tokens, self.folder, tap)
            else:
                run = run_qmeter(served, load, client, number, self.asked.output_tokens, tap)
        except (
            RuntimeError,
            QMeterError,
            OSError,
            ValueError,
            KeyError,
            subprocess.SubprocessError,
        ) as error:  # the next run may do better
            tap.close()
            self.notes.append(f"{what}: {error}")
            say(self.notes[-1])
            return
        run.wall_s = time.monotonic() - began_s
        self._longest_s[load.rate_hz, client] = run.wall_s
        self.runs.append(run)
        self.keep()
        say(f"{what}: TTFT {np.nanmean(run.ttft_s) * 1e3:.2f} ms, TPOT {np.nanmean(run.tpot_s) * 1e3:.3f} ms, "
            f"{run.failed} failed, {run.wall_s:.1f} s")  # fmt: skip


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--method", default="", help="methods to deploy, one after another: bf16,fp8")
    made.add_argument("--url", help="measure this server instead of starting one")
    made.add_argument("--model", default="", help="with --url: the model's name there")
    made.add_argument("--tokenizer", type=Path, help="with --url: folder of its tokenizer (default: the synthetic one)")
    made.add_argument("--ground-truth", action="store_true", help="also A and B against exact token times")
    made.add_argument("--truth-seconds", type=float, default=12.0)
    made.add_argument("--truth-rounds", type=int, default=1)
    made.add_argument("--truth-ttft", type=float, default=0.04, help="s; its first token after receipt")
    made.add_argument("--truth-itl", type=float, default=0.006, help="s; its gap between tokens")
    made.add_argument("--rates", default="8,20", help="requests/s")
    made.add_argument("--seconds", type=float, default=20.0, help="of load a run")
    made.add_argument("--rounds", type=int, default=2)
    made.add_argument("--clients", default=",".join(CLIENTS))
    made.add_argument("--prompt-tokens", type=int, default=PROMPT_TOKENS)
    made.add_argument("--output-tokens", type=int, default=OUTPUT_TOKENS)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--vary-seed", action="store_true", help="other arrivals each round (then no noise from repeats)")
    made.add_argument("--no-tap", action="store_true", help="do not stamp the loopback's packets (needs CAP_NET_RAW)")
    made.add_argument("--budget", type=float, default=3600.0, help="s; no run begins that would end after it")
    made.add_argument("--bench-python", default=sys.executable, help="a Python that has vLLM, for the bench client")
    made.add_argument("--bench-alone", action="store_true", help="start bench from scratch each time, without the fork")
    made.add_argument("--folder", type=Path, help="for logs and prompts (default: a temporary one, kept)")
    made.add_argument("--out", type=Path, default=Path("bench_serve.json"))
    made.add_argument("--table", type=Path, help="print the table of an earlier output and end")
    return made


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the table is printed and the server ended
    asked = parser().parse_args()
    if asked.table:
        try:
            runs = [Run.from_json(r) for r in json.loads(asked.table.read_text())["runs"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            parser().error(f"--table takes what --out wrote; {asked.table} is not: {type(error).__name__}: {error}")
        print(table(summary(runs, TRUTH)))
        return
    asked.rates = [float(r) for r in asked.rates.split(",")]
    clients = [c for c in asked.clients.split(",") if c]
    methods = [m for m in asked.method.split(",") if m]
    if unknown := set(clients) - set(CLIENTS):
        parser().error(f"no client {', '.join(unknown)}: {', '.join(CLIENTS)}")
    if not (methods or asked.url or asked.ground_truth):
        parser().error("nothing to measure: --method, --url or --ground-truth")
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="bench-serve-"))
    folder.mkdir(parents=True, exist_ok=True)
    worker = BenchWorker(asked.bench_python, folder, alone=asked.bench_alone)
    session = Session(asked, folder, worker)
    say(f"logs in {folder}")
    try:
        worker.start()
        if asked.url:
            served = Served("attached", asked.url.rstrip("/"), asked.model, asked.tokenizer or words(folder))
            session.measure(served, clients, asked.rounds, asked.seconds)
        for k, method in enumerate(methods):
            if not session.time_for(START_S):
                session.notes.append(f"{method}: no time left to start it")
                say(session.notes[-1])
                continue
            try:
                with deployed(method, folder, last=k == len(methods) - 1) as served:
                    session.measure(served, clients, asked.rounds, asked.seconds)
            except QMeterError as error:  # the next method may do better
                session.notes.append(f"{method}: {error.kind}: {error.message} {error.hint or ''}")
                say(session.notes[-1])
        if asked.ground_truth:
            with truthful(folder, asked.tokenizer, asked.truth_ttft, asked.truth_itl) as served:
                session.measure(served, [c for c in clients if c != IDS], asked.truth_rounds, asked.truth_seconds)
    finally:
        worker.close()
        standby.discard_all()
        session.keep()
        print(table(summary(session.runs, TRUTH)), flush=True)
    say(f"written to {asked.out}")


if __name__ == "__main__":
    main()
