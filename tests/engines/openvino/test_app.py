"""GIVEN the routes and a scripted engine process, WHEN clients ask, vanish or the engine fails, THEN each is told."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from qmeter.engines.openvino.app import build
from qmeter.engines.openvino.link import Link

READY = {
    "config": {"max_model_tokens": 64, "served_model": "m"},
    "vocabulary": {"pieces": [base64.b64encode(bytes([i])).decode() for i in range(256)], "special": [], "eos": 0},
}


class FakeCore:
    """The other end of the link: reads requests, writes what the test says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader, self._writer = reader, writer

    async def next(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(await asyncio.wait_for(self._reader.readline(), 5))
        return message

    def say(self, **message: Any) -> None:
        self._writer.write(json.dumps(message).encode() + b"\n")

    def step(self, *out: list[Any]) -> None:
        self.say(step=[1.0, 0.01, len(out), 0, 0, len(out), 0.5], out=list(out))

    def close(self) -> None:
        self._writer.close()


class Client:
    """One ASGI request; ``leave`` makes the client vanish."""

    def __init__(self, app: Any, method: str, path: str, body: Any = None):
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._incoming.put_nowait({"type": "http.request", "body": raw, "more_body": False})
        self.status = 0
        self.events: list[bytes] = []
        path, _, query = path.partition("?")
        scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "headers": [],
                 "query_string": query.encode(), "root_path": "", "scheme": "http", "http_version": "1.1",
                 "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1)}  # fmt: skip
        self.done = asyncio.create_task(app(scope, self._incoming.get, self._send))

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.events.append(message.get("body", b""))

    def leave(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def json(self) -> dict[str, Any]:
        await asyncio.wait_for(self.done, 5)
        answer: dict[str, Any] = json.loads(b"".join(self.events))
        return answer


Case = Callable[[FakeCore, Callable[..., Client], Link], Awaitable[None]]


def run(case: Case, *, ready: bool = True) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        link = Link(100)
        await link.connect(ours)
        core = FakeCore(*await asyncio.open_unix_connection(sock=theirs))
        app = build(link, "m")
        if ready:
            core.say(ready=READY)
            while link.config is None:
                await asyncio.sleep(0.001)
        await case(core, lambda *a: Client(app, *a), link)
        core.close()

    asyncio.run(main())


def completion(**body: Any) -> tuple[str, str, dict[str, Any]]:
    return "POST", "/v1/completions", {"model": "m", "prompt": [72, 105], **body}


async def accepted(core: FakeCore) -> int:
    message = await core.next()
    core.say(accepted=message["id"], ids=message["ids"])
    number: int = message["id"]
    return number


def test_a_stream_has_one_event_a_token_then_usage_then_done() -> None:
    async def case(core: FakeCore, ask: Callable[..., Client], link: Link) -> None:
        client = ask(*completion(stream=True, stream_options={"include_usage": True}))
        number = await accepted(core)
        for byte in b"h\xc3":
            core.step([number, [byte], [0.0], None])
        core.step([number, [0xA9, 33], [0.0, 0.0], "length"])
        await asyncio.wait_for(client.done, 5)
        *tokens, end = client.events
        texts = [json.loads(e[6:])["choices"][0]["text"] for e in tokens]
        assert texts == ["h", "", "é", "!"], "two tokens of one step are two events; half a character is an empty one"
        assert json.loads(tokens[-1][6:])["choices"][0]["finish_reason"] == "length"
        usage, done = end.split(b"\n\n")[:2]
        assert json.loads(usage[6:])["usage"] == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}
        assert done == b"data: [DONE]"
        assert link.metrics.values["qmeter_generated_tokens_total"] == 4

    run(case)


def test_a_client_that_leaves_mid_stream_cancels_its_request() -> None:
    async def case(core: FakeCore, ask: Callable[..., Client], link: Link) -> None:
        client = ask(*completion(stream=True))
        number = await accepted(core)
        core.step([number, [65], [0.0], None])
        while not client.events:
            await asyncio.sleep(0.001)
        client.leave()
        assert await core.next() == {"op": "cancel", "id": number}
        await asyncio.wait_for(client.done, 5)
        core.step([number, [66], [0.0], None])
        await asyncio.sleep(0.01)
        assert len(client.events) == 1
        assert link.metrics.values["qmeter_requests_cancelled_total"] == 1

    run(case)


def test_a_client_that_leaves_before_acceptance_cancels_too() -> None:
    async def case(core: FakeCore, ask: Callable[..., Client], _: Link) -> None:
        client = ask(*completion())
        number = (await core.next())["id"]
        client.leave()
        assert await core.next() == {"op": "cancel", "id": number}

    run(case)


def test_a_stop_string_ends_the_request_and_frees_its_place() -> None:
    async def case(core: FakeCore, ask: Callable[..., Client], _: Link) -> None:
        client = ask(*completion(stop="bc"))
        number = await accepted(core)
        for byte in b"abc":
            core.step([number, [byte], [0.0], None])
        answer = await client.json()
        assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("a", "stop")
        assert await core.next() == {"op": "cancel", "id": number}

    run(case)


def test_echo_gives_prompt_log_probabilities_even_in_several_steps() -> None:
    async def case(core: FakeCore, ask: Callable[..., Client], link: Link) -> None:
        client = ask(*completion(echo=True, logprobs=1, max_tokens=0, return_token_ids=True))
        number = await accepted(core)
        core.step([number, [72], [1.0], None])
        core.step([number, [105], [-0.5], "length"])
        answer = await client.json()
        choice = answer["choices"][0]
        assert choice["text"] == "Hi" and choice["token_ids"] == [] and choice["prompt_token_ids"] == [72, 105]
        assert choice["logprobs"]["token_logprobs"] == [None, -0.5], "the first token has no log-probability"
        assert choice["logprobs"]["top_logprobs"] == [None, None], "alternatives are not known, which is not none"
        assert link.metrics.values["qmeter_generated_tokens_total"] == 0

    run(case)


def test_several_prompts_give_several_choices_in_order() -> None:
    async def case(core: FakeCore, ask: Callable[..., Client], _: Link) -> None:
        client = ask(*completion(prompt=[[65], [66]], max_tokens=1, logprobs=2))
        first, second = await accepted(core), await accepted(core)
        core.step([second, [50], [-0.2], "length"], [first, [49], [-0.1], "length"])
        answer = await client.json()
        assert [c["text"] for c in answer["choices"]] == ["1", "2"]
        assert answer["choices"][0]["logprobs"]["top_logprobs"] == [{"1": -0.1}]
        assert answer["usage"]["prompt_tokens"] == 2

    run(case)


def test_one_greedy_token_alone_lists_the_best_next_tokens() -> None:
    async def case(core: FakeCore, ask: Callable[..., Client], link: Link) -> None:
        asked = {"prompt": [65], "max_tokens": 1, "logprobs": 3, "temperature": 0, "ignore_eos": True}
        client = ask(*completion(**asked, return_tokens_as_token_ids=True))
        message = await core.next()
        assert message["best"] == 3
        core.say(accepted=message["id"], ids=[65])
        core.step([message["id"], [50], [-0.2], "length", [[50, -0.2], [51, -1.8], [52, -4.0]]])
        listed = (await client.json())["choices"][0]["logprobs"]
        assert listed["top_logprobs"] == [{"token_id:50": -0.2, "token_id:51": -1.8, "token_id:52": -4.0}]
        assert listed["token_logprobs"] == [-0.2]
        assert link.metrics.values["qmeter_generated_tokens_total"] == 1

    run(case)


@pytest.mark.parametrize(
    "other",
    [{"max_tokens": 2}, {"temperature": 0.5}, {"ignore_eos": False}, {"logprobs": 1}, {"echo": True}, {"n": 2},
     {"frequency_penalty": 1}, {"stop": "x"}],
)  # fmt: skip
def test_any_other_request_has_the_chosen_token_alone(other: dict[str, Any]) -> None:
    async def case(core: FakeCore, ask: Callable[..., Client], _: Link) -> None:
        asked = {"prompt": [65], "max_tokens": 1, "logprobs": 3, "temperature": 0, "ignore_eos": True}
        ask(*completion(**(asked | other)))
        assert (await core.next())["best"] == 0

    run(case)


def test_a_refusal_of_the_engine_process_is_a_400() -> None:
    async def case(core: FakeCore, ask: Callable[..., Client], _: Link) -> None:
        client = ask(*completion())
        core.say(refused=(await core.next())["id"], message="too long", param="prompt")
        answer = await client.json()
        assert (client.status, answer["error"]["message"], answer["error"]["param"]) == (400, "too long", "prompt")

    run(case)


def test_an_engine_that_fails_mid_stream_sends_an_error_event() -> None:
    async def case(core: FakeCore, ask: Callable[..., Client], _: Link) -> None:
        client = ask(*completion(stream=True))
        number = await accepted(core)
        core.step([number, [65], [0.0], None])
        core.say(fatal="it broke", memory=False)
        await asyncio.wait_for(client.done, 5)
        assert json.loads(client.events[-1][6:])["error"]["message"] == "it broke"
        later = ask(*completion())
        assert "it broke" in (await later.json())["error"]["message"]
        assert later.status == 503

    run(case)


def test_an_engine_process_that_dies_is_a_failure_too() -> None:
    async def case(core: FakeCore, ask: Callable[..., Client], link: Link) -> None:
        client = ask(*completion())
        await accepted(core)
        core.close()
        assert "engine process ended" in (await client.json())["error"]["message"]
        assert link.failed.is_set()

    run(case)


def test_a_request_that_the_full_cache_drops_is_told_so() -> None:
    async def case(core: FakeCore, ask: Callable[..., Client], link: Link) -> None:
        client = ask(*completion())
        number = await accepted(core)
        core.step([number, [], [], "ignored"])
        answer = await client.json()
        assert client.status == 503 and "KV cache" in answer["error"]["message"]
        assert link.metrics.values["qmeter_requests_failed_total"] == 1

    run(case)


@pytest.mark.parametrize(
    ("ready", "path", "status"),
    [(True, "/health", 200), (False, "/health", 503), (False, "/qmeter/config", 503), (True, "/qmeter/config", 200),
     (True, "/v1/models", 200), (True, "/qmeter/steps?since=0", 200), (True, "/qmeter/steps?since=x", 400),
     (True, "/nothing", 404), (True, "/v1/completions", 405)],
)  # fmt: skip
def test_routes_answer_in_json(ready: bool, path: str, status: int) -> None:
    async def case(core: FakeCore, ask: Callable[..., Client], _: Link) -> None:
        client = ask("GET", path)
        answer = await client.json()
        assert client.status == status
        assert status < 400 or "error" in answer or answer["status"] == "loading"

    run(case, ready=ready)


def test_the_metrics_page_is_prometheus_text_and_leaves_out_what_is_unknown() -> None:
    async def case(core: FakeCore, ask: Callable[..., Client], link: Link) -> None:
        client = ask(*completion())
        await accepted(core)
        core.say(step=[1.0, 0.01, 2, 1, -1, 1, 0.5], out=[])
        while not link.steps.count:
            await asyncio.sleep(0.001)
        page = ask("GET", "/metrics")
        await asyncio.wait_for(page.done, 5)
        text = b"".join(page.events).decode()
        assert "\nqmeter_requests_running 2\n" in text and "\nqmeter_kv_cache_usage_ratio 0.5\n" in text
        assert "qmeter_batched_tokens" not in text, "its prompt tokens are unknown"
        client.leave()
        await asyncio.wait_for(client.done, 5)

    run(case)
