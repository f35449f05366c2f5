"""GIVEN a deployment, WHEN the adapter plans and reads, THEN the catalog's flags are asked for, failures named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qmeter import catalog
from qmeter.engines.base import Artifact
from qmeter.engines.openvino import OpenVinoEngine, adapter
from qmeter.engines.openvino.options import parse
from qmeter.errors import EngineCrashed, EngineUnavailable, MethodUnsupported, OutOfMemory
from qmeter.spec.study import Deployment, EngineRef, ModelRef, Parallelism

pytest.importorskip("openvino_genai")
METHODS = ("f16", "w8a16", "w4a16", "w8a8", "w4a8", "kv8", "kv4", "w8a8-kv8", "w4a8kv4")


def deployment(method: str = "f16", tp: int = 1, **options: Any) -> Deployment:
    return Deployment(
        model=ModelRef(name="smol", source="x", shape="smollm2-135m"),
        engine=EngineRef(name="openvino", options=options),
        method=method,
        device="cpu",
        parallelism=Parallelism(tp=tp),
    )


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    path = tmp_path / "m.gguf"
    path.touch()
    return Artifact(path, "gguf", "")


def launched(d: Deployment, artifact: Artifact) -> Any:
    launch = OpenVinoEngine().launch_command(d, artifact, 8123, artifact.path.parent)
    assert launch.argv is not None
    return launch, parse(launch.argv[3:])


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_flags_reach_the_command_line_and_kv_precision_is_always_explicit(
    method: str, artifact: Artifact
) -> None:
    launch, options = launched(deployment(method), artifact)
    assert dict(options.properties) == dict(catalog.method(method).engines["openvino"].properties)
    assert "KV_CACHE_PRECISION" in dict(options.properties), "the CPU's default is u8"
    assert (launch.base_url, options.served_model, options.port) == ("http://127.0.0.1:8123", "smol", 8123)


def test_knobs_are_the_fields_own_names(artifact: Artifact) -> None:
    _, options = launched(
        deployment(max_sequences=3, token_budget=99, max_model_tokens=77, prefix_cache=True, threads=1, kv_blocks=5),
        artifact,
    )
    assert (options.max_sequences, options.token_budget, options.max_model_tokens) == (3, 99, 77)
    assert options.prefix_cache and options.kv_blocks == 5
    assert dict(options.properties)["INFERENCE_NUM_THREADS"] == "1"


def test_a_cache_in_gib_holds_more_blocks_when_they_are_quantized(artifact: Artifact) -> None:
    blocks = [launched(deployment(m, kv_cache_gib=0.5), artifact)[1].kv_blocks for m in ("f16", "kv8", "kv4")]
    assert blocks[0] < blocks[1] < blocks[2]
    assert blocks[0] == int(0.5 * 2**30 / (30 * 2 * 3 * 64 * 2 * 32))


@pytest.mark.parametrize("bad", [deployment("gptq-w4a16"), deployment(tp=2), deployment(no_such_knob=1)])
def test_what_cannot_run_is_refused_before_a_start(bad: Deployment, artifact: Artifact) -> None:
    with pytest.raises(MethodUnsupported) as caught:
        launched(bad, artifact)
    assert caught.value.hint


def test_a_missing_package_names_the_extra(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "PACKAGES", ("no_such_package",))
    with pytest.raises(EngineUnavailable) as caught:
        launched(deployment(), artifact)
    assert "qmeter[openvino]" in str(caught.value.hint)


def test_not_listening_yet_is_not_ready(artifact: Artifact) -> None:
    launch, _ = launched(deployment(), artifact)
    assert OpenVinoEngine().effective(launch) is None


@pytest.mark.parametrize(("memory", "kind"), [(True, OutOfMemory), (False, EngineCrashed)])
def test_a_failed_load_is_named(memory: bool, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="because"):
        adapter._raise_failure(json.dumps({"error": "because", "memory": memory}).encode())
