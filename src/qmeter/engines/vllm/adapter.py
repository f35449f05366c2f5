"""The vLLM adapter: how to start it, what it really runs, where its metrics are."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

from qmeter import catalog
from qmeter.catalog.scheme import EngineFlags
from qmeter.engines.base import Artifact, Launch, MetricsMap, MetricSource, Over
from qmeter.engines.vllm import log, steplog
from qmeter.engines.vllm.flags import knob_args, knob_env, parallel_args
from qmeter.errors import EngineUnavailable, MethodUnsupported
from qmeter.record import EffectiveConfig, Steps
from qmeter.spec.study import Deployment

SYNTH_FORMAT = "synth"
"""``Artifact.format`` of a model whose weights are made inside the engine (:mod:`qmeter.sources.synth`)."""
SYNTH_ARGS = (
    "--load-format", "qmeter_synth", "--worker-extension-cls", "qmeter.sources.synth.inplace.SynthWorker",
)  # fmt: skip
QUIET_ENV = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
SEVERAL_ENV = {"NCCL_NVLS_ENABLE": "0"}
"""Where there are several GPUs: no NVLink multicast, which hangs or fails on hosts that do not offer it to guests."""
FORK = "VLLM_WORKER_MULTIPROC_METHOD"
"""``fork`` unless the user's environment says otherwise: the engine process inherits the front end's imports instead
of repeating them (vLLM itself falls back to ``spawn`` where CUDA was touched)."""

SOURCES = (
    MetricSource("engine.running", "vllm:num_requests_running", "1"),
    MetricSource("engine.waiting", "vllm:num_requests_waiting", "1"),
    MetricSource("engine.kv_use", "vllm:kv_cache_usage_perc", "1", over=Over.MEAN),
    MetricSource("engine.preemptions", "vllm:num_preemptions_total", "1", cumulative=True),
    MetricSource("engine.prefix_hits", "vllm:prefix_cache_hits_total", "token", cumulative=True),
    MetricSource("engine.prefix_queries", "vllm:prefix_cache_queries_total", "token", cumulative=True),
    MetricSource("engine.prompt_tokens", "vllm:prompt_tokens_total", "token", cumulative=True),
    MetricSource("engine.generated_tokens", "vllm:generation_tokens_total", "token", cumulative=True),
)
"""vLLM's gauges and counters, one sample a data-parallel rank. It has no gauge of the tokens batched in a step: the
step log has them."""
_RANKS = re.compile(r'^vllm:cache_config_info\{[^\n]*?\bengine="(\d+)"', re.MULTILINE)

KV_TYPES = {
    "auto": None, "bfloat16": "bf16", "float16": "f16", "fp8": "fp8", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8",
    "fp8_per_token_head": "fp8", "int8_per_token_head": "int8", "int4_per_token_head": "int4",
}  # fmt: skip
"""``--kv-cache-dtype`` → the catalog's word; ``None``: the model's own type."""


class VllmEngine:
    """vLLM's OpenAI-compatible server, one process group on this host."""

    def launch_command(self, deployment: Deployment, artifact: Artifact, port: int, workdir: Path) -> Launch:
        """``python -m vllm.entrypoints.cli.main serve …`` with the method's flags and the deployment's knobs.

        ``engine.binary`` names another ``vllm`` program; it then has neither qMeter's step log nor in-place weights.

        Raises:
            EngineUnavailable: vLLM is not installed, or the weights need qMeter beside it and it is another program.
            MethodUnsupported: the catalog has no vLLM flags for the method.
        """
        flags = _flags(deployment)
        ref = deployment.engine
        own = ref.binary is None
        if own and not artifact.planned and importlib.util.find_spec("vllm") is None:
            raise EngineUnavailable(
                "vLLM is not installed for this Python", stage="launch",
                hint="pip install vllm==0.25.1, or name its program in engines[].binary",
            )  # fmt: skip
        if artifact.format == SYNTH_FORMAT and not own:
            raise EngineUnavailable(
                "in-place synthetic weights need qMeter importable in vLLM's own Python", stage="launch",
                hint="leave engines[].binary out, or write the checkpoint first: qmeter synth MODEL --out DIR",
            )  # fmt: skip
        logged = own and bool(ref.options.get("step_log", True))
        program = [ref.binary] if ref.binary else [sys.executable, "-m", "vllm.entrypoints.cli.main"]
        argv = [
            *program, "serve", str(artifact.path), "--host", "127.0.0.1", "--port", str(port),
            "--served-model-name", deployment.model.name, "--disable-uvicorn-access-log",
            *(["--tokenizer", str(artifact.tokenizer)] if artifact.tokenizer else []),
            *flags.args, *([] if _quantized(artifact.path) else flags.load_args),
            *parallel_args(deployment.parallelism), *knob_args(ref.options),
            *(SYNTH_ARGS if artifact.format == SYNTH_FORMAT else ()),
            *(["--scheduler-cls", steplog.QUALNAME] if logged else []), *ref.args,
        ]  # fmt: skip
        env = {
            **QUIET_ENV,
            **(SEVERAL_ENV if deployment.parallelism.devices > 1 else {}),
            **({FORK: os.environ.get(FORK, "fork")} if own else {}),
            **flags.env,
            **knob_env(ref.options),
        }
        if logged:
            env[steplog.PATH_ENV] = str(workdir)
        return Launch(
            argv=tuple(str(a) for a in argv),
            base_url=f"http://127.0.0.1:{port}",
            served_model=deployment.model.name,
            log_path=workdir / "server.log",
            env=env,
            standby=(sys.executable, "-m", "qmeter.engines.vllm.standby") if own else None,
        )

    def effective(self, launch: Launch) -> EffectiveConfig | None:
        """The log's lines and ``/metrics``' cache_config_info, once ``/health`` answers.

        Raises:
            OutOfMemory, MethodUnsupported, EngineCrashed: the log says so.
        """
        if _get(launch, "/health") is None:
            if failed := log.failure(_read(launch.log_path)):
                raise failed
            return None
        return effective_config(_read(launch.log_path), _get(launch, "/metrics") or "")

    def metrics_map(self) -> MetricsMap:
        """``/metrics`` and the step log."""
        return MetricsMap(path="/metrics", sources=SOURCES, steps=_steps)


def effective_config(text: str, page: str) -> EffectiveConfig:
    """What a log and a metrics page say together; fields that neither names stay ``None``."""
    facts = log.parse(text)
    cache = cache_info(page)
    weight, activation = facts.types()
    dtype = cache.get("cache_dtype") or facts.values.get("kv_cache_dtype")
    kv = (KV_TYPES.get(dtype, dtype) or _sixteen(facts)) if dtype else None
    sources = {
        "weight_bytes": "log: Model loading took", "kernel": "log: Using/Selected …Kernel for …",
        "weight_type": "log: scheme of the chosen kernel; the model's dtype where none was chosen",
        "activation_type": "log: scheme of the chosen kernel; the model's dtype where none was chosen",
        "kv_type": "metrics: vllm:cache_config_info cache_dtype",
        "kv_blocks": "metrics: vllm:cache_config_info; of several replicas the smallest, by the log",
        "kv_block_tokens": "metrics: vllm:cache_config_info", "token_budget": "log: max_num_batched_tokens",
        "max_model_tokens": "log: max_seq_len", "engine_version": "log: Initializing a V1 LLM engine",
    }  # fmt: skip
    found = {
        "engine_version": facts.values.get("engine_version"),
        "weight_bytes": facts.weight_bytes,
        "weight_excess_bytes": facts.weight_excess_bytes,
        "weight_type": weight,
        "activation_type": activation,
        "kv_type": kv,
        "kernel": facts.kernel,
        "kv_blocks": replica_blocks(facts, page),
        "kv_block_tokens": _int(cache.get("block_size")),
        "token_budget": _int(facts.values.get("token_budget")),
        "max_model_tokens": _int(facts.values.get("max_seq_len")),
    }
    properties = {f"log.{name}": value for name, value in facts.values.items()}
    properties |= {f"cache.{name}": value for name, value in cache.items() if value != "None"}
    properties |= {f"kernel.{scheme}": kernel for kernel, scheme in facts.kernels}
    properties |= {"worker_gib": " ".join(f"{g:g}" for g in facts.worker_gib)} if len(facts.worker_gib) > 1 else {}
    properties |= {"replicas": str(facts.replicas)} if facts.replicas > 1 else {}
    known = {name: value for name, value in found.items() if value is not None}
    return EffectiveConfig.model_validate(
        {**known, "properties": properties, "sources": {n: s for n, s in sources.items() if n in known}}
    )


def cache_info(page: str) -> dict[str, str]:
    """Labels of ``vllm:cache_config_info`` on a metrics page (the first engine's); empty where it is not there."""
    match = re.search(r"^vllm:cache_config_info\{(.*)\} ", page, re.MULTILINE)
    return dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[1])) if match else {}


def _flags(deployment: Deployment) -> EngineFlags:
    flags = catalog.method(deployment.method).engines.get("vllm")
    if flags is None:
        raise MethodUnsupported(
            f"vLLM has no way to run {deployment.method}", stage="launch", hint="`qmeter methods` says where it runs"
        )
    return flags


def _quantized(path: Path) -> bool:
    """Whether the checkpoint says itself that it is quantized."""
    try:
        return bool(json.loads((path / "config.json").read_text()).get("quantization_config"))
    except (OSError, ValueError):
        return False


def _sixteen(facts: log.LogFacts) -> str | None:
    return {"bfloat16": "bf16", "float16": "f16"}.get(facts.values.get("dtype", ""))


def _steps(launch: Launch, origin_monotonic_s: float) -> Steps:
    folder = launch.env.get(steplog.PATH_ENV)
    steps: Steps = steplog.read_steps(Path(folder), origin_monotonic_s) if folder else Steps.empty()
    return steps


def replica_blocks(facts: log.LogFacts, page: str) -> int | None:
    """KV-cache blocks of one replica, the smallest where there are several.

    vLLM 0.25 puts the **sum** over the data-parallel ranks into ``cache_config_info``'s ``num_gpu_blocks``, under each
    rank's label; each rank's own size stands in the log.
    """
    cache, ranks = cache_info(page), max(len(set(_RANKS.findall(page))), facts.replicas)
    block, total = _int(cache.get("block_size")), _int(cache.get("num_gpu_blocks"))
    logged = min(facts.replica_kv_tokens) // block if block and facts.replica_kv_tokens else None
    if total is None:
        return logged
    if ranks == 1:
        return total
    return logged if logged and len(facts.replica_kv_tokens) == ranks else total // ranks


def _int(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _get(launch: Launch, path: str) -> str | None:
    """Body of a 200 answer, else ``None``."""
    url = urlsplit(launch.base_url)
    connection = http.client.HTTPConnection(url.hostname or "127.0.0.1", url.port, timeout=2.0)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read().decode(errors="replace")
        return body if answer.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
