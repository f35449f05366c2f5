"""The adapter to the embedded server: its command line, its effective configuration, its metrics."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qmeter import catalog
from qmeter.engines.base import Artifact, Launch, MetricsMap, MetricSource
from qmeter.engines.openvino.options import KV_BLOCK_TOKENS, ServerOptions, to_argv
from qmeter.engines.openvino.steps import read_steps
from qmeter.errors import EngineCrashed, EngineUnavailable, MethodUnsupported, OutOfMemory
from qmeter.record import EffectiveConfig
from qmeter.spec.study import Deployment

ENGINE = "openvino"
PACKAGES = ("openvino_genai", "starlette", "uvicorn", "uvloop", "httptools")

_INTEGERS = ("kv_blocks", "token_budget", "max_sequences", "max_model_tokens", "steps")
"""Study options that are server options of the same name."""

_SOURCES = (
    MetricSource("engine.running", "qmeter_requests_running", "1"),
    MetricSource("engine.waiting", "qmeter_requests_waiting", "1"),
    MetricSource("engine.batched_tokens", "qmeter_batched_tokens", "token"),
    MetricSource("engine.kv_use", "qmeter_kv_cache_usage_ratio", "1"),
    MetricSource("engine.preemptions", "qmeter_preemptions_total", "1", cumulative=True),
    MetricSource("engine.prefix_hits", "qmeter_prefix_hits_total", "1", cumulative=True),
    MetricSource("engine.prefix_queries", "qmeter_prefix_queries_total", "1", cumulative=True),
    MetricSource("engine.prompt_tokens", "qmeter_prompt_tokens_total", "token", cumulative=True),
    MetricSource("engine.generated_tokens", "qmeter_generated_tokens_total", "token", cumulative=True),
)
"""GenAI counts neither preemptions nor prefix hits: those series get a gap."""


class OpenVinoEngine:
    """Runs GGUF F16, Q8_0 and Q4_0 (or an OpenVINO folder) on the CPU."""

    def launch_command(self, deployment: Deployment, artifact: Artifact, port: int, workdir: Path) -> Launch:
        """The embedded server's command line for the deployment's method and knobs.

        Raises:
            EngineUnavailable: the ``openvino`` extra is not installed.
            MethodUnsupported: no OpenVINO flags for the method, more than one device, an unknown knob.
        """
        if missing := [name for name in PACKAGES if find_spec(name) is None]:
            raise EngineUnavailable(
                f"the embedded engine needs {', '.join(missing)}", stage="launch", hint="pip install 'qmeter[openvino]'"
            )
        if deployment.parallelism.devices != 1:
            raise MethodUnsupported(
                "the embedded engine runs on one CPU: it has no tensor, pipeline or data parallelism",
                stage="launch", hint="take parallelism out of the study for this engine",
            )  # fmt: skip
        options = _options(deployment, artifact, port)
        return Launch(
            argv=(sys.executable, "-m", "qmeter.engines.openvino", *to_argv(options), *deployment.engine.args),
            base_url=f"http://127.0.0.1:{port}",
            served_model=options.served_model,
            log_path=workdir / "server.log",
        )

    def effective(self, launch: Launch) -> EffectiveConfig | None:
        """What ``GET /qmeter/config`` says; ``None`` while the model loads.

        Raises:
            OutOfMemory, EngineCrashed: the engine process says why it failed.
        """
        try:
            with urllib.request.urlopen(f"{launch.base_url}/qmeter/config", timeout=10) as answer:
                page: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 500:
                _raise_failure(error.read())
            return None
        except (OSError, ValueError):
            return None
        return to_effective(page)

    def metrics_map(self) -> MetricsMap:
        """The Prometheus page and the iteration log."""
        return MetricsMap(path="/metrics", sources=_SOURCES, steps=read_steps)


def to_effective(page: dict[str, Any]) -> EffectiveConfig:
    """The server's configuration page in the record's words."""
    properties = {key: str(value) for key, value in page["properties"].items()}
    properties["kv_bytes"] = str(page["kv_bytes"])
    properties["weight_bytes_by_type"] = json.dumps(page["weight_bytes_by_type"], sort_keys=True)
    properties["primitives"] = json.dumps(page["primitives"], sort_keys=True)
    return EffectiveConfig(
        engine_version=page["engine_version"],
        weight_bytes=page["weight_bytes"],
        weight_type=page["weight_type"],
        activation_type=page["activation_type"],
        kv_type=page["kv_type"],
        kernel=page["kernel"],
        kv_blocks=page["kv_blocks"],
        kv_block_tokens=page["kv_block_tokens"],
        token_budget=page["token_budget"],
        max_sequences=page["max_sequences"],
        max_model_tokens=page["max_model_tokens"],
        properties=properties,
        sources={key: f"GET /qmeter/config: {text}" for key, text in page["sources"].items() if text},
    )


def _raise_failure(body: bytes) -> None:
    try:
        page = json.loads(body)
    except ValueError:
        page = {}
    message = f"the engine could not load the model: {page.get('error', 'no reason given')}"
    if page.get("memory"):
        raise OutOfMemory(message, stage="ready", hint="lower kv_blocks or kv_cache_gib, or take a smaller model")
    raise EngineCrashed(message, stage="ready", hint="the server's log has the whole error")


def _options(deployment: Deployment, artifact: Artifact, port: int) -> ServerOptions:
    method = catalog.method(deployment.method)
    flags = method.engines.get(ENGINE)
    if flags is None:
        raise MethodUnsupported(
            f"the embedded engine has no way to run {method.name}",
            stage="launch", hint="qmeter methods --engine openvino lists what it runs",
        )  # fmt: skip
    properties = dict(flags.properties)
    knobs: dict[str, int] = {}
    prefix_cache = False
    for name, value in deployment.engine.options.items():
        if name in _INTEGERS:
            knobs[name] = int(value)
        elif name == "prefix_cache":
            prefix_cache = bool(value)
        elif name == "threads":
            properties["INFERENCE_NUM_THREADS"] = str(int(value))
        elif name == "kv_cache_gib":
            per_block = method.kv_bytes_per_token(catalog.model(deployment.model.shape), ENGINE) * KV_BLOCK_TOKENS
            knobs["kv_blocks"] = max(1, int(float(value) * 2**30 / per_block))
        elif name.isupper():
            properties[name] = str(value)
        else:
            raise MethodUnsupported(
                f"the embedded engine has no option {name!r}",
                stage="launch",
                hint=f"it has {', '.join(_INTEGERS)}, kv_cache_gib, prefix_cache, threads and OpenVINO's own "
                "properties in capitals",
            )
    return ServerOptions(
        model=artifact.path,
        port=port,
        served_model=deployment.model.name,
        properties=tuple(sorted(properties.items())),
        prefix_cache=prefix_cache,
        **knobs,
    )
