"""GIVEN a real llama-server and the quickstart's model, WHEN a method is served, THEN it is verified and answers.

Needs ``llama-server`` on PATH or its path in ``QMETER_LLAMA_SERVER``.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from qmeter import catalog, sources
from qmeter.engines.base import Launch
from qmeter.engines.llamacpp import LlamaCppEngine
from qmeter.engines.server import serve
from qmeter.engines.verify import verify
from qmeter.spec.study import Deployment, EngineRef, ModelRef, Parallelism
from qmeter.telemetry.prometheus import EngineSampler

PROGRAM = os.environ.get("QMETER_LLAMA_SERVER") or shutil.which("llama-server")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(PROGRAM is None, reason="needs llama-server on PATH or in QMETER_LLAMA_SERVER"),
]
CACHE = Path("~/.cache/qmeter")


def deployment(method: str) -> Deployment:
    quickstart = yaml.safe_load((files("qmeter.study") / "quickstart.yaml").read_text())
    options = {"max_sequences": 4, "max_model_tokens": 512}
    return Deployment(
        model=ModelRef.model_validate(quickstart["models"][0]),
        engine=EngineRef(name="llamacpp", binary=PROGRAM, options=options),
        method=method,
        device="cpu",
        parallelism=Parallelism(),
    )


def complete(launch: Launch, **body: Any) -> list[dict[str, Any]]:
    """Events of one streamed completion."""
    url = urlsplit(launch.base_url)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=60)
    asked = {"model": launch.served_model, "stream": True, "stream_options": {"include_usage": True}, **body}
    connection.request("POST", "/v1/completions", json.dumps(asked), {"Content-Type": "application/json"})
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


@pytest.mark.parametrize("method", ["f16", "gguf-q8_0", "gguf-q4_0", "kv8", "kv4"])
def test_a_method_is_verified_from_what_the_server_says_and_streams_a_token_an_event(
    method: str, tmp_path: Path
) -> None:
    engine, asked = LlamaCppEngine(), deployment(method)
    artifact = sources.prepare(asked.model, catalog.method(method), "llamacpp", CACHE)
    with serve(engine, asked, artifact, tmp_path) as server:
        found = verify(asked, catalog.method(method), catalog.model(asked.model.shape), artifact, server.effective)
        events = complete(
            server.launch, prompt=[504, 3575, 282, 4649, 314], max_tokens=16, ignore_eos=True, temperature=0
        )
        sampler = EngineSampler(server.launch, engine.metrics_map())
        values = sampler.read()
        sampler.close()
    assert found.verified, found
    assert server.effective.max_sequences == 4 and server.effective.kv_blocks == 4 * 512
    texts = [e for e in events if e.get("choices") and e["choices"][0]["finish_reason"] is None]
    usage = [e["usage"] for e in events if e.get("usage")]
    assert len(texts) == 16
    assert (usage[-1]["prompt_tokens"], usage[-1]["completion_tokens"]) == (5, 16)
    assert values["engine.generated_tokens"] == 16 and values["engine.running"] == 0
    assert {"engine.prompt_tokens", "engine.waiting"} <= set(values)
