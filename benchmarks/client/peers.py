"""The peers: how each is installed into an environment of its own, called, and read. None is imported by qMeter."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

WORDS = 32
TOKENS = 64


@dataclass(frozen=True)
class Job:
    """One run of one peer: ``requests`` at ``rate_hz`` to ``base_url``, its files in ``out``."""

    base_url: str
    rate_hz: float
    requests: int
    tokenizer: Path
    out: Path
    seed: int


@dataclass(frozen=True)
class Reported:
    """What a client says of its own run. Units: s; ``None`` where it does not say.

    The ITL's p99 is over single gaps; aiperf and guidellm give only a mean gap a request, whose p99 is another thing.
    """

    ttft_mean_s: float | None
    ttft_p99_s: float | None
    itl_mean_s: float | None
    itl_p99_s: float | None


@dataclass(frozen=True)
class Peer:
    """One client: the packages to install, its command, and the reader of its result."""

    name: str
    packages: tuple[str, ...]
    command: Callable[[Path, Job], list[str]]
    read: Callable[[Job], Reported]
    pip_options: tuple[str, ...] = ()
    after_install: Callable[[Path], None] | None = None
    offline: bool = True
    """Whether Hugging Face's offline switch is set (aiperf then refuses a local tokenizer folder)."""


def install(peer: Peer, folder: Path) -> None:
    """Make ``folder/<name>`` a virtual environment with the peer in it (nothing happens if it is there)."""
    home = folder / peer.name
    if (home / "installed").exists():
        return
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    if peer.packages:
        subprocess.run([str(home / "bin/pip"), "install", "-q", *peer.pip_options, *peer.packages], check=True)
    if peer.after_install:
        peer.after_install(home)
    (home / "installed").write_text("\n".join(peer.packages) + "\n")


def _ms(value: object) -> float | None:
    return float(value) / 1e3 if isinstance(value, int | float) else None


# -- evalscope -------------------------------------------------------------------------------------------------------


def _evalscope(home: Path, job: Job) -> list[str]:
    prompts = job.out / "prompts.txt"
    prompts.write_text("\n".join(["hello " * WORDS] * job.requests) + "\n")
    return [
        str(home / "bin/evalscope"), "perf", "--url", job.base_url + "/v1/completions", "--api", "openai",
        "--model", "truth",
        "--rate", str(job.rate_hz), "--number", str(job.requests), "--parallel", "1000", "--open-loop",
        "--max-tokens", str(TOKENS), "--min-tokens", str(TOKENS), "--stream", "--tokenizer-path", str(job.tokenizer),
        "--dataset", "line_by_line", "--dataset-path", str(prompts), "--outputs-dir", str(job.out / "evalscope"),
        "--seed", str(job.seed), "--no-test-connection",
    ]  # fmt: skip


def _read_evalscope(job: Job) -> Reported:
    summary = json.loads(next((job.out / "evalscope").rglob("benchmark_summary.json")).read_text())
    percentiles = json.loads(next((job.out / "evalscope").rglob("benchmark_percentile.json")).read_text())
    top = next(row for row in percentiles if str(row.get("Percentiles", row.get("Percentile"))).strip("p%") == "99")

    def pick(row: dict[str, object], *starts: str) -> float | None:
        for key, value in row.items():
            if any(key.lower().startswith(s) for s in starts) and isinstance(value, int | float):
                return float(value) / (1e3 if "(ms)" in key.lower() else 1.0)
        return None

    return Reported(
        pick(summary, "average time to first token", "avg ttft", "ttft"), pick(top, "ttft"),
        pick(summary, "average inter-token", "avg itl", "itl"), pick(top, "itl"),
    )  # fmt: skip


# -- guidellm --------------------------------------------------------------------------------------------------------


def _guidellm(home: Path, job: Job) -> list[str]:
    return [
        str(home / "bin/guidellm"), "run",
        "--backend", f"kind=openai_http,target={job.base_url},model=truth,request_format=/v1/completions",
        "--profile", f"kind=poisson,rate={job.rate_hz}", "--constraint", f"kind=max_requests,count={job.requests}",
        "--tokenizer", f"kind=huggingface_auto,model={job.tokenizer}",
        "--data", f"kind=synthetic_text,prompt_tokens={WORDS},output_tokens={TOKENS}",
        "--seed", f"kind=static,value={job.seed}", "--output", f"kind=json,path={job.out}/benchmarks.json",
        "--disable-console",
    ]  # fmt: skip


def _read_guidellm(job: Job) -> Reported:
    found = [p for p in job.out.rglob("*.json") if "benchmark" in p.name]
    metrics = json.loads(found[0].read_text())["benchmarks"][0]["metrics"]
    ttft = metrics["time_to_first_token_ms"]["successful"]
    itl = metrics["inter_token_latency_ms"]["successful"]
    return Reported(_ms(ttft["mean"]), _ms(ttft["percentiles"]["p99"]), _ms(itl["mean"]), None)


# -- aiperf ----------------------------------------------------------------------------------------------------------


def _aiperf(home: Path, job: Job) -> list[str]:
    return [
        str(home / "bin/aiperf"), "profile", "--url", job.base_url, "--model", "truth",
        "--endpoint-type", "completions", "--streaming", "--request-rate", str(job.rate_hz),
        "--request-rate-mode", "poisson",
        "--request-count", str(job.requests), "--isl", str(WORDS), "--osl", str(TOKENS),
        "--tokenizer", str(job.tokenizer),
        "--artifact-dir", str(job.out / "aiperf"), "--ui", "none", "--random-seed", str(job.seed),
        "--extra-inputs", "ignore_eos:true", "--use-server-token-count",
    ]  # fmt: skip


def _read_aiperf(job: Job) -> Reported:
    for path in (job.out / "aiperf").rglob("profile_export_aiperf.json"):
        data = json.loads(path.read_text())
        data = data.get("records", data)
        ttft, itl = data["time_to_first_token"], data["inter_token_latency"]
        return Reported(_ms(ttft["avg"]), _ms(ttft["p99"]), _ms(itl["avg"]), None)
    for path in (job.out / "aiperf").rglob("*.csv"):
        rows = {row[0]: row for row in csv.reader(path.open()) if row}
        head = rows["Metric"]
        pick = {name: dict(zip(head, rows[name], strict=False)) for name in rows if name.endswith("(ms)")}
        ttft, itl = pick["Time to First Token (ms)"], pick["Inter Token Latency (ms)"]
        return Reported(*(float(r[k]) / 1e3 for r, k in ((ttft, "avg"), (ttft, "p99"), (itl, "avg"))), None)
    raise FileNotFoundError("aiperf left no result")


# -- sglang's Rust client, from its wheel ----------------------------------------------------------------------------

_RUST = """
import sys, importlib.util, pathlib
path = next(pathlib.Path(sys.argv[1]).glob("_bench.*.so"))
spec = importlib.util.spec_from_file_location("_bench", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.run_argv(["sglang-bench", *sys.argv[2:]])
"""


def _unpack_sglang(home: Path) -> None:
    """Only the Rust extension: the wheel's other dependencies (torch, CUDA) are not needed."""
    subprocess.run(
        [str(home / "bin/pip"), "download", "-q", "--no-deps", "-d", str(home), "sglang==0.5.23"], check=True
    )
    with zipfile.ZipFile(next(home.glob("sglang-*.whl"))) as wheel:
        for name in wheel.namelist():
            if "/rust_extensions/_bench" in name:
                (home / Path(name).name).write_bytes(wheel.read(name))
    (home / "client.py").write_text(_RUST)


def _sglang(home: Path, job: Job) -> list[str]:
    return [
        str(home / "bin/python"), str(home / "client.py"), str(home), "--backend", "sglang", "--base-url", job.base_url,
        "--model", "truth", "--dataset-name", "random-ids", "--tokenize-prompt", "--vocab-size", "2000",
        "--random-input-len", str(WORDS), "--random-output-len", str(TOKENS), "--random-range-ratio", "1",
        "--num-prompts", str(job.requests), "--request-rate", str(job.rate_hz), "--worker-threads", "1",
        "--warmup-requests", "0", "--disable-tqdm", "--output-file", str(job.out / "sglang.jsonl"),
        "--seed", str(job.seed),
    ]  # fmt: skip


def _read_sglang(job: Job) -> Reported:
    data = json.loads((job.out / "sglang.jsonl").read_text().splitlines()[-1])
    return Reported(*(_ms(data[k]) for k in ("mean_ttft_ms", "p99_ttft_ms", "mean_itl_ms", "p99_itl_ms")))


# -- vLLM ------------------------------------------------------------------------------------------------------------


def _vllm(home: Path, job: Job) -> list[str]:
    return [
        str(home / "bin/vllm"), "bench", "serve", "--backend", "openai", "--base-url", job.base_url, "--model", "truth",
        "--tokenizer", str(job.tokenizer), "--dataset-name", "random", "--random-input-len", str(WORDS),
        "--random-output-len", str(TOKENS), "--num-prompts", str(job.requests), "--request-rate", str(job.rate_hz),
        "--percentile-metrics", "ttft,itl", "--metric-percentiles", "99", "--save-result",
        "--result-filename", "vllm.json",
        "--result-dir", str(job.out), "--seed", str(job.seed), "--ignore-eos",
    ]  # fmt: skip


def _read_vllm(job: Job) -> Reported:
    data = json.loads((job.out / "vllm.json").read_text())
    return Reported(*(_ms(data[k]) for k in ("mean_ttft_ms", "p99_ttft_ms", "mean_itl_ms", "p99_itl_ms")))


PEERS: dict[str, Peer] = {
    p.name: p
    for p in (
        Peer("sglang-rust", (), _sglang, _read_sglang, after_install=_unpack_sglang),
        Peer("evalscope", ("evalscope[perf]==1.14.1",), _evalscope, _read_evalscope),
        Peer("aiperf", ("aiperf==0.13.0",), _aiperf, _read_aiperf, offline=False),
        Peer("guidellm", ("guidellm==0.8.1",), _guidellm, _read_guidellm),
        Peer("vllm", ("vllm",), _vllm, _read_vllm),
    )
}
"""Peer name → peer, at the versions measured in docs/client_accuracy.md."""
