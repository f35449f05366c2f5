"""GIVEN request bodies, WHEN they are wrong, THEN each is refused with the field at fault in the API's own shape."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qmeter.engines.openvino.protocol import BadRequest, Generation, parse


def completion(**body: Any) -> Generation:
    return parse(json.dumps({"model": "m", "prompt": "a", **body}).encode(), False, "m")


def chat(**body: Any) -> Generation:
    return parse(json.dumps({"model": "m", "messages": [{"role": "user", "content": "a"}], **body}).encode(), True, "m")


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"[1]", b'"x"', b"[" * 100_000])
def test_what_is_no_json_object_is_a_400(raw: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(raw, False, "m")
    assert caught.value.status == 400
    assert caught.value.body()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", None), ("prompt", []), ("prompt", 3), ("prompt", [1, "a"]), ("prompt", [[]]), ("prompt", [True]),
        ("prompt", [1.5]), ("prompt", {}), ("max_tokens", "x"), ("max_tokens", -1), ("max_tokens", 1.5),
        ("max_tokens", True), ("max_tokens", 0), ("temperature", -0.1), ("temperature", "hot"), ("top_p", 0),
        ("top_p", 1.1), ("seed", -1), ("n", 0), ("stream", "yes"), ("echo", 1), ("logprobs", 99), ("stop", [""]),
        ("stop", 3), ("stop", ["a"] * 17), ("ignore_eos", "no"), ("stream_options", []), ("tools", [{}]),
        ("response_format", {"type": "json_object"}), ("logit_bias", {"1": 2}), ("best_of", 3), ("suffix", "x"),
        ("model", 3), ("presence_penalty", 3), ("min_p", 0.5),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(field: str, value: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        completion(**{field: value})
    assert caught.value.status == 400
    assert caught.value.param == field
    assert field in caught.value.message or field == "prompt"


def test_an_unknown_model_is_a_404_that_names_the_served_one() -> None:
    with pytest.raises(BadRequest) as caught:
        completion(model="other")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    assert "'m'" in caught.value.message


@pytest.mark.parametrize(
    "messages",
    [[], "hi", [3], [{"role": "user"}], [{"content": "x"}], [{"role": "user", "content": [{"type": "image_url"}]}]],
)
def test_wrong_messages_are_refused(messages: Any) -> None:
    with pytest.raises(BadRequest):
        chat(messages=messages)


def test_values_that_ask_for_nothing_are_taken() -> None:
    asked = completion(tools=[], best_of=1, suffix=None, logit_bias={}, response_format={"type": "text"}, top_k=-1)
    assert asked.sampling["top_k"] == 0


def test_prompts_may_be_text_ids_or_lists_of_these() -> None:
    assert completion(prompt="a").prompts == ("a",)
    assert completion(prompt=[1, 2]).prompts == ([1, 2],)
    assert completion(prompt=["a", "b"]).prompts == ("a", "b")
    assert completion(prompt=[[1], [2, 3]]).prompts == ([1], [2, 3])


def test_echo_alone_may_generate_nothing() -> None:
    assert completion(max_tokens=0, echo=True, logprobs=1).max_tokens == 0


@pytest.mark.parametrize("body", [{"echo": True, "stream": True}, {"n": 2, "stream": True}])
def test_combinations_that_are_not_supported_are_refused(body: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        completion(**body)


def test_copies_get_seeds_of_their_own() -> None:
    generation = completion(n=2, temperature=1, seed=7)
    assert [generation.message("a", copy)["seed"] for copy in range(2)] == [7, 8]


def test_chat_text_parts_are_joined_and_token_limits_have_two_names() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked = chat(messages=[{"role": "user", "content": parts}], max_completion_tokens=5, max_tokens=9)
    assert asked.prompts == ([{"role": "user", "content": "ab"}],)
    assert asked.max_tokens == 5
