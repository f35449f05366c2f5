"""GIVEN a server that somebody else runs, WHEN qMeter attaches, THEN it says what it knows and keeps the key secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from http_fake import fake_http

from qmeter.engines.base import Artifact, Launch
from qmeter.engines.endpoint import EndpointEngine
from qmeter.errors import EngineUnavailable
from qmeter.spec.study import Deployment, EngineRef, ModelRef, Parallelism

REMOTE = Artifact(Path("."), "remote", "")
MODELS = {
    "object": "list",
    "data": [
        {"id": "served-8b", "object": "model", "created": 1, "owned_by": "vllm", "root": "org/m", "max_model_len": 4096}
    ],
}


def deployment(url: str | None, **more: Any) -> Deployment:
    return Deployment(
        model=ModelRef(name="served-8b", source="x", shape="llama-3.1-8b"),
        engine=EngineRef(name="endpoint", url=url, **more),
        method="fp8",
        device="auto",
        parallelism=Parallelism(),
    )


def launch(url: str | None, tmp_path: Path, **more: Any) -> Launch:
    return EndpointEngine().launch_command(deployment(url, **more), REMOTE, 1, tmp_path)


def test_it_attaches_without_a_command_and_reads_what_v1_models_tells(tmp_path: Path) -> None:
    with fake_http({"/v1/models": (200, MODELS)}) as server:
        made = launch(f"{server.url}/v1/", tmp_path)
        found = EndpointEngine().effective(made)
    assert made.argv is None and made.base_url == server.url and made.served_model == "served-8b"
    assert found is not None and found.max_model_tokens == 4096
    assert found.weight_bytes is None and found.kv_type is None and found.kernel is None
    assert found.properties["owned_by"] == "vllm"


def test_the_key_goes_into_the_headers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    with fake_http({"/v1/models": (200, MODELS)}) as server:
        made = launch(server.url, tmp_path, api_key_env="MY_KEY")
        found = EndpointEngine().effective(made)
    assert server.seen[0][1]["Authorization"] == "Bearer sk-very-secret"
    assert found is not None and "secret" not in found.model_dump_json()
    assert "secret" not in repr(made)
    assert "secret" not in deployment(server.url, api_key_env="MY_KEY").model_dump_json()


def test_a_key_that_is_not_set_is_named_by_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(EngineUnavailable, match="MY_KEY is not set"):
        launch("http://127.0.0.1:1", tmp_path, api_key_env="MY_KEY")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (None, "no URL"),
        ("localhost:8000", "no base URL"),
        ("ftp://host", "no base URL"),
        ("http://host/v1?key=1", "no base URL"),
        ("https://user:sk-secret@host", "carries a user or password"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_repeating_a_secret(
    url: str | None, words: str, tmp_path: Path
) -> None:
    with pytest.raises(EngineUnavailable, match=words) as caught:
        launch(url, tmp_path)
    assert caught.value.hint and "sk-secret" not in str(caught.value)


@pytest.mark.parametrize(("status", "key", "words"), [(401, None, "asks for a key"), (403, "k", "refuses the key")])
def test_an_unauthorised_answer_names_the_next_step(
    status: int, key: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "k")
    with fake_http({"/v1/models": (status, {"error": "no"})}) as server:
        made = launch(server.url, tmp_path, api_key_env="MY_KEY" if key else None)
        with pytest.raises(EngineUnavailable, match=words) as caught:
            EndpointEngine().effective(made)
    assert "api_key_env" in str(caught.value.hint)


def test_a_model_that_is_not_served_is_named_beside_those_that_are(tmp_path: Path) -> None:
    with fake_http({"/v1/models": (200, {"data": [{"id": "a"}, {"id": "b"}]})}) as server:
        with pytest.raises(EngineUnavailable, match="it serves a, b") as caught:
            EndpointEngine().effective(launch(server.url, tmp_path))
        assert "served_model" in str(caught.value.hint)
        assert EndpointEngine().effective(launch(server.url, tmp_path, options={"served_model": "b"})) is not None


@pytest.mark.parametrize("answer", [(404, {"error": 1}), (200, "not json"), (200, {"data": 3}), (200, [])])
def test_a_server_without_a_model_list_is_ready_and_all_is_unknown(answer: tuple[int, Any], tmp_path: Path) -> None:
    with fake_http({"/v1/models": answer}) as server:
        found = EndpointEngine().effective(launch(server.url, tmp_path))
    assert found is not None and found.max_model_tokens is None and not found.sources


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_server_that_is_not_up_yet_is_not_ready(status: int, tmp_path: Path) -> None:
    with fake_http({"/v1/models": (status, {})}) as server:
        made = launch(server.url, tmp_path)
        assert EndpointEngine().effective(made) is None
    assert EndpointEngine().effective(made) is None  # and nothing listens now


def test_its_metrics_are_a_gap_with_a_reason() -> None:
    mapping = EndpointEngine().metrics_map()
    assert mapping.path is None and "did not start" in (mapping.gap or "")
