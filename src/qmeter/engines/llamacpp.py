"""llama.cpp: ``llama-server`` on PATH or named by ``engine.binary``; what it says of itself; its metrics.

Written against the llama.cpp of 2026: flags of tools/server/README.md, ``/props`` and ``/v1/models`` of
server-context.cpp, log lines of llama-model-loader.cpp and llama-kv-cache.cpp.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from qmeter import catalog
from qmeter.engines.base import Artifact, Launch, MetricsMap, MetricSource
from qmeter.engines.probe import first_model, get_json
from qmeter.errors import EngineCrashed, EngineError, EngineUnavailable, MethodUnsupported, OutOfMemory
from qmeter.record import EffectiveConfig
from qmeter.spec.study import Deployment, EngineRef, Parallelism

NAME = "llamacpp"
PROGRAM = "llama-server"
SEQUENCES, SEQUENCE_TOKENS = 8, 2048
"""Slots, and the longest sequence of each, where the study does not say."""
ALL_LAYERS = "999"
HELP_S = 10.0
"""Longest that ``--help`` may take. Units: s."""
NOT_GGUF = ("safetensors", "synth", "remote")
"""Artifact formats that it cannot read."""

KNOBS: dict[str, tuple[str, ...]] = {
    "token_budget": ("--batch-size",),
    "threads": ("--threads", "--threads-batch"),
}
"""Engine option → the arguments that take its value. ``max_sequences``, ``max_model_tokens``, ``kv_cache_gib`` and
``prefix_cache`` are worked out below; any other option goes on as ``--its-name value``."""
DERIVED = ("max_sequences", "max_model_tokens", "kv_cache_gib", "prefix_cache")

SOURCES = (
    MetricSource("engine.running", "llamacpp:requests_processing", "1"),
    MetricSource("engine.waiting", "llamacpp:requests_deferred", "1"),
    MetricSource("engine.kv_use", "llamacpp:kv_cache_usage_ratio", "1"),
    MetricSource("engine.prefix_hits", "llamacpp:prompt_tokens_cached_total", "token", cumulative=True),
    MetricSource("engine.prompt_tokens", "llamacpp:prompt_tokens_total", "token", cumulative=True),
    MetricSource("engine.generated_tokens", "llamacpp:tokens_predicted_total", "token", cumulative=True),
)
"""Newer servers have no ``kv_cache_usage_ratio``, older ones no ``prompt_tokens_cached_total``: those become gaps."""

_FAMILIES = (("Q8", "int8"), ("Q6", "int6"), ("Q5", "int5"), ("Q4", "int4"), ("IQ4", "int4"), ("Q3", "int3"),
             ("Q2", "int2"), ("BF16", "bf16"), ("F16", "f16"), ("F32", "f32"))  # fmt: skip
"""ggml type or file type → the catalog's word, the first whose name it begins with."""

_TENSORS = re.compile(r"llama_model_loader: - type\s+(\w+):\s+(\d+) tensors")
_KV = re.compile(
    r"llama_kv_cache\w*: size =\s*[\d.]+ MiB \(\s*(\d+) cells,\s*\d+ layers,\s*\d+/(\d+) seqs\), "
    r"K \((\w+)\):\s*[\d.]+ MiB, V \((\w+)\)"
)
_FAILURES: tuple[tuple[re.Pattern[str], type[EngineError], str], ...] = (
    (re.compile(r"^.*(?:unable to allocate|failed to allocate|out of memory|cannot allocate memory).*$", re.I | re.M),
     OutOfMemory, "take a method with fewer bits, fewer max_sequences, or a shorter max_model_tokens"),
    (re.compile(r"^.*(?:V cache quantization requires flash|cache type \S+ with block size|unsupported cache type"
                r"|unknown model architecture|invalid ggml type|has invalid ggml type).*$", re.I | re.M),
     MethodUnsupported, "take another method for this model; `qmeter methods --engine llamacpp` lists them"),
    (re.compile(r"^.*(?:error: invalid argument|error while handling argument|unknown argument"
                r"|failed to open GGUF|failed to read magic|error loading model).*$", re.I | re.M),
     EngineCrashed, "read the server's log; its flags and the model file are in the record's engine command"),
)  # fmt: skip
"""What the log says where the start failed → the error and the next step."""


class LlamaCppEngine:
    """llama.cpp's OpenAI-compatible server on this host."""

    def launch_command(self, deployment: Deployment, artifact: Artifact, port: int, workdir: Path) -> Launch:
        """``llama-server --model FILE …`` with the method's KV types and the deployment's knobs.

        Raises:
            EngineUnavailable: there is no llama-server.
            MethodUnsupported: the catalog has no flags for the method, the artifact is no GGUF, or ``dp`` is over 1.
        """
        flags = catalog.method(deployment.method).flags(NAME)
        if artifact.format in NOT_GGUF:
            raise MethodUnsupported(
                f"llama.cpp reads GGUF files, not {artifact.format}",
                stage="launch",
                hint="give a GGUF as models[].source",
            )
        ref = deployment.engine
        program = _program(ref)
        argv = [
            program, *_log_args(program), "--model", str(artifact.path), "--alias", deployment.model.name,
            "--host", "127.0.0.1", "--port", str(port), "--metrics", "--no-webui",
            # A thread belongs to each open connection, idle ones too: with fewer, a request waits up to 5 s for one.
            "--threads-http", "512", *flags.args,
            *_cache_args(deployment, flags.kv), *_device_args(deployment.device, deployment.parallelism),
            *_knob_args(ref.options), *ref.args,
        ]  # fmt: skip
        return Launch(
            argv=tuple(argv),
            base_url=f"http://127.0.0.1:{port}",
            served_model=deployment.model.name,
            log_path=workdir / "server.log",
            env=dict(flags.env),
        )

    def effective(self, launch: Launch) -> EffectiveConfig | None:
        """``/props``, ``/v1/models`` and the log, once ``/health`` answers 200 (503 while it loads).

        Raises:
            OutOfMemory, MethodUnsupported, EngineCrashed: the log says so.
        """
        health = get_json(launch, "/health")
        if health is None or health.status != 200:
            if health is None and (failed := failure(_read(launch.log_path))):
                raise failed
            return None
        props = get_json(launch, "/props")
        model = first_model(get_json(launch, "/v1/models"), launch.served_model) or {}
        data = props.data if props is not None and isinstance(props.data, dict) else {}
        return effective_config(data, model, _read(launch.log_path))

    def metrics_map(self) -> MetricsMap:
        """``/metrics``."""
        return MetricsMap(path="/metrics", sources=SOURCES)


def effective_config(props: Mapping[str, Any], model: Mapping[str, Any], log: str) -> EffectiveConfig:
    """What ``/props``, the model's entry in ``/v1/models`` and the log say together; the rest stays ``None``."""
    meta = model.get("meta") if isinstance(model.get("meta"), dict) else {}
    assert isinstance(meta, dict)
    tensors, kv = tensor_types(log), _KV.search(log)
    ftype = props.get("model_ftype") or meta.get("ftype")
    settings = props.get("default_generation_settings") or {}
    found: dict[str, tuple[Any, str]] = {
        "engine_version": (props.get("build_info"), "GET /props build_info"),
        "weight_bytes": (meta.get("size"), "GET /v1/models meta.size (bytes of the tensors loaded)"),
        "weight_type": (_weight_type(tensors, ftype), "log: tensors by type" if tensors else "GET /props model_ftype"),
        "kv_type": (_kv_type(kv), "log: llama_kv_cache K and V"),
        "kv_blocks": (int(kv[1]) * int(kv[2]) if kv else None, "log: llama_kv_cache cells"),
        "kv_block_tokens": (1 if kv else None, "one token a cell"),
        "max_sequences": (props.get("total_slots"), "GET /props total_slots"),
        "max_model_tokens": (settings.get("n_ctx"), "GET /props n_ctx of a slot"),
    }
    properties = {f"tensors.{kind}": str(count) for kind, count in tensors.items()}
    if ftype:
        properties["model_ftype"] = str(ftype)
    if kv:
        properties |= {"kv.k": kv[3], "kv.v": kv[4], "kv.streams": kv[2]}
    return EffectiveConfig(
        **{name: value for name, (value, _) in found.items() if value is not None},
        properties=properties,
        sources={name: source for name, (value, source) in found.items() if value is not None},
    )


def tensor_types(log: str) -> dict[str, int]:
    """ggml type → tensors of it in the file, as the loader logs them."""
    return {match[1]: int(match[2]) for match in _TENSORS.finditer(log)}


def failure(log: str) -> EngineError | None:
    """Why the start failed, by the log; ``None`` while nothing in it says that it did."""
    for pattern, kind, hint in _FAILURES:
        if match := pattern.search(log):
            return kind(f"llama-server: {match[0].strip()[:300]}", stage="ready", hint=hint)
    return None


def _weight_type(tensors: Mapping[str, int], ftype: str | None) -> str | None:
    """The type of most matrices (norms are always f32, so f32 counts only where there is nothing else)."""
    matrices = Counter({kind: count for kind, count in tensors.items() if kind.lower() != "f32"})
    if matrices:
        return _word(matrices.most_common(1)[0][0])
    return _word("f32" if tensors else ftype)


def _kv_type(kv: re.Match[str] | None) -> str | None:
    if kv is None:
        return None
    k, v = _word(kv[3]), _word(kv[4])
    return k if k == v else f"{k}+{v}"


def _word(kind: str | None) -> str | None:
    """The catalog's word for a ggml type; the type itself where the catalog has none."""
    if not kind:
        return None
    bare = re.sub(r"^(?:\(guessed\)|all)\s+", "", kind).upper()
    return next((word for prefix, word in _FAMILIES if bare.startswith(prefix)), kind)


def _program(ref: EngineRef) -> str:
    found = shutil.which(ref.binary or PROGRAM)
    if found is None:
        raise EngineUnavailable(
            f"{ref.binary} is no program" if ref.binary else f"{PROGRAM} is not on PATH",
            stage="launch",
            hint="build llama.cpp (cmake --build build --target llama-server) and name it in engines[].binary",
        )
    return found


@cache
def _log_args(program: str) -> tuple[str, ...]:
    """What makes the loader log tensors and KV cache: level 4 where levels go from 0 to 5 ("trace", some 30 lines a
    request and none a token); older servers log them anyway, and know level 4 as something else."""
    try:
        told = subprocess.run([program, "--help"], capture_output=True, text=True, errors="replace", timeout=HELP_S)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return ("--verbosity", "4") if "- 4: trace" in told.stdout else ()


def _cache_args(deployment: Deployment, kv: catalog.KVFormat) -> list[str]:
    """Slots and KV cells: each slot's longest sequence times the slots, or as many cells as ``kv_cache_gib`` holds."""
    options = deployment.engine.options
    sequences = int(options.get("max_sequences", SEQUENCES))
    cells = sequences * int(options.get("max_model_tokens", SEQUENCE_TOKENS))
    if "kv_cache_gib" in options:
        per_token = catalog.model(deployment.model.shape).kv_bytes_per_token(kv)
        cells = int(float(options["kv_cache_gib"]) * 2**30 / per_token)
    args = ["--parallel", str(sequences), "--ctx-size", str(cells)]
    if "prefix_cache" in options:
        args += ["--cache-prompt"] if options["prefix_cache"] else ["--no-cache-prompt", "--cache-ram", "0"]
    return args


def _device_args(device: str, parallelism: Parallelism) -> list[str]:
    if parallelism.dp > 1:
        raise MethodUnsupported(
            "llama-server has no data parallelism", stage="launch", hint="set parallelism.dp to 1 for llamacpp"
        )
    if device == "cpu":
        return ["--gpu-layers", "0"]
    if parallelism.tp > 1:
        return ["--gpu-layers", ALL_LAYERS, "--split-mode", "row"]
    return ["--gpu-layers", ALL_LAYERS, "--split-mode", "layer"] if parallelism.pp > 1 else []


def _knob_args(options: Mapping[str, str | int | float | bool]) -> list[str]:
    args: list[str] = []
    for name, value in options.items():
        if name in DERIVED:
            continue
        for flag in KNOBS.get(name, (f"--{name.replace('_', '-')}",)):
            if value is True:
                args.append(flag)
            elif value is not False:
                args += [flag, str(value)]
    return args


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
