"""GIVEN upstreams that behave or misbehave, WHEN requests go through the router, THEN each ends in an answer, a retry
that the client does not see, or a clear error; and nobody can hold the router up."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from upstream import Upstream, routed, running

from qmeter.router.file import RouterLimits

LIMITS = RouterLimits(
    first_token_timeout="1s", stall_timeout="500ms", queue_timeout="1s", connect_timeout="500ms", body_timeout="500ms",
    keep_alive="1s", drain_timeout="1s", health_interval="100ms", max_queue=2, max_body_bytes=50_000,
)  # fmt: skip
ONE = {"chat": {"a": 1.0}}
BOTH = {"chat": {"a": 0.5, "b": 0.5}}


def run(body: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 30))


async def ask(url: str, *, stream: bool = True, path: str = "/v1/completions", headers: dict[str, str] | None = None,
              **body: Any) -> tuple[int, str, Any]:  # fmt: skip
    """Status, text and headers of one request."""
    data = {"model": "chat", "prompt": "x", "stream": stream, **body}
    async with aiohttp.ClientSession() as s, s.post(url + path, json=data, headers=headers) as answer:
        return answer.status, await answer.text(), answer.headers


def tokens(text: str) -> int:
    return sum('"text": " t' in line for line in text.splitlines())


def errors(text: str) -> list[dict[str, Any]]:
    found = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    return [event["error"] for event in found if "error" in event]


def test_a_stream_passes_whole_with_the_replicas_model_name() -> None:
    async def body() -> None:
        a = Upstream()
        async with routed(LIMITS, ONE, a=a) as (url, _, metrics):
            status, text, headers = await ask(url, temperature=0.5)
            assert status == 200 and tokens(text) == 5 and text.endswith("data: [DONE]\n\n")
            assert headers["X-QMeter-Replica"] == "a" and headers["Content-Type"].startswith("text/event-stream")
            assert a.bodies == [{"model": "served-a", "prompt": "x", "stream": True, "temperature": 0.5}]
            assert metrics.outcomes() == {"ok": 1}

    run(body)


def test_an_answer_that_is_no_stream_passes_whole() -> None:
    async def body() -> None:
        async with routed(LIMITS, ONE, a=Upstream()) as (url, _, _):
            status, text, _ = await ask(url, stream=False, path="/v1/chat/completions")
            assert status == 200 and json.loads(text)["choices"][0]["text"] == "aaaaa"

    run(body)


@pytest.mark.parametrize(
    "fault", ["close_at_once", "500", "503", "429", "silent", "head_then_close", "error_event", "half_body"]
)
def test_before_the_first_token_another_replica_is_tried(fault: str) -> None:
    async def body() -> None:
        bad, good = Upstream(fault), Upstream()
        async with routed(LIMITS, BOTH, a=bad, b=good) as (url, _, metrics):
            for _ in range(4):
                status, text, headers = await ask(url, stream=fault != "half_body")
                assert status == 200 and headers["X-QMeter-Replica"] == "b", text
                assert fault == "half_body" or (tokens(text) == 5 and not errors(text))
            assert bad.bodies, "the bad replica was never tried"
            assert metrics.outcomes() == {"ok": 4}
            assert b'qmeter_router_retries_total{class_name="chat"}' in metrics.page()

    run(body)


@pytest.mark.parametrize(
    ("fault", "code"), [("die", "replica_lost"), ("die_inside_event", "replica_lost"), ("stall", "stalled"),
                        ("no_end", "replica_lost")]
)  # fmt: skip
def test_after_the_first_token_the_stream_says_what_happened(fault: str, code: str) -> None:
    async def body() -> None:
        a, b = Upstream(fault), Upstream()
        async with routed(LIMITS, {"chat": {"a": 1.0}}, a=a, b=b) as (url, _, metrics):
            status, text, _ = await ask(url)
            assert status == 200 and tokens(text) == (5 if fault == "no_end" else 2)
            (error,) = errors(text)  # every data line is whole JSON, also where an event was torn
            assert error["code"] == code and "send the request again" in error["message"]
            assert "[DONE]" not in text and not b.bodies
            assert metrics.outcomes() == {code: 1}

    run(body)


def test_events_torn_over_reads_arrive_whole() -> None:
    async def body() -> None:
        async with routed(LIMITS, ONE, a=Upstream("split")) as (url, _, _):
            _, text, _ = await ask(url)
            assert tokens(text) == 5 and not errors(text)

    run(body)


def test_a_429_of_every_replica_reaches_the_client_with_its_retry_after() -> None:
    async def body() -> None:
        a, b = Upstream("429"), Upstream("429")
        async with routed(LIMITS, BOTH, a=a, b=b) as (url, _, _):
            status, text, headers = await ask(url)
            assert status == 429 and headers["Retry-After"] == "7" and "said 429" in text
            assert len(a.bodies) + len(b.bodies) == 2, "each was asked once"

    run(body)


def test_a_503_of_the_only_replica_is_waited_out() -> None:
    """An engine whose core died answers 503 until it is started again: requests that come meanwhile must not fail."""

    async def body() -> None:
        from qmeter.router.health import watch

        a = Upstream("sick")
        limits = LIMITS.model_copy(update={"queue_timeout": 25.0, "health_timeout": 20.0, "max_queue": 8})
        async with routed(limits, ONE, a=a) as (url, board, metrics):
            watching = asyncio.create_task(watch(board, limits))
            asking = [asyncio.create_task(ask(url)) for _ in range(3)]
            while not a.bodies:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.5)
            assert not any(task.done() for task in asking)
            a.behave = "ok"
            assert {(await task)[0] for task in asking} == {200} and metrics.outcomes() == {"ok": 3}
            watching.cancel()

    run(body)


def test_a_503_that_lasts_reaches_the_client_with_a_retry_after() -> None:
    async def body() -> None:
        async with routed(LIMITS, ONE, a=Upstream("503")) as (url, _, _):
            status, text, headers = await ask(url)
            assert status == 503 and "said 503" in text and headers["Retry-After"] == "1"

    run(body)


def test_a_clients_own_fault_is_passed_on_and_not_retried() -> None:
    async def body() -> None:
        a, b = Upstream("400"), Upstream("400")
        async with routed(LIMITS, BOTH, a=a, b=b) as (url, _, _):
            status, text, _ = await ask(url)
            assert status == 400 and "said 400" in text and len(a.bodies) + len(b.bodies) == 1

    run(body)


def test_with_every_replica_down_the_answer_is_a_503_with_retry_after() -> None:
    async def body() -> None:
        gone = Upstream()
        async with routed(LIMITS, ONE, a=gone) as (url, board, _):
            board.replicas["a"].base_url = "http://127.0.0.1:9"
            status, text, headers = await ask(url)
            assert status == 503 and int(headers["Retry-After"]) >= 1, text
            assert "a:" in json.loads(text)["error"]["message"]
            async with aiohttp.ClientSession() as s, s.get(url + "/health") as answer:
                assert answer.status == 503

    run(body)


def test_the_queue_is_bounded() -> None:
    async def body() -> None:
        slow = Upstream(tokens=150, gap_s=0.01)
        limits = LIMITS.model_copy(update={"queue_timeout": 25.0, "first_token_timeout": 20.0, "stall_timeout": 20.0})
        async with routed(limits, ONE, a=slow) as (url, board, metrics):
            board.replicas["a"].limit = 1
            answers = await asyncio.gather(*(ask(url) for _ in range(8)))
            count = Counter(status for status, _, _ in answers)
            assert count[503] == 5 and count[200] == 3, "one is served, two wait, the others are told to come back"
            refused = next(h for s, _, h in answers if s == 503)
            assert 1 <= int(refused["Retry-After"]) <= 60
            assert board.replicas["a"].in_flight == 0 and metrics.outcomes()["refused"] == count[503]

    run(body)


def test_shares_hold_and_spill_where_a_replica_is_full() -> None:
    async def body() -> None:
        a, b = Upstream(tokens=1, gap_s=0), Upstream(tokens=1, gap_s=0)
        async with routed(LIMITS, {"chat": {"a": 0.25, "b": 0.75}}, a=a, b=b) as (url, board, _):
            for _ in range(40):
                await ask(url)
            assert (len(a.bodies), len(b.bodies)) == (10, 30)
            board.replicas["b"].limit = 0
            assert (await ask(url))[2]["X-QMeter-Replica"] == "a"
            board.replicas["b"].limit = 10
            for _ in range(8):
                await ask(url)
            assert len(a.bodies) <= 14, "a kind that was away must not be made up for in a burst, nor the other one"

    run(body)


def test_a_client_that_leaves_ends_the_work_upstream() -> None:
    async def body() -> None:
        a = Upstream(tokens=2000, gap_s=0.005)
        async with routed(LIMITS, ONE, a=a) as (url, board, metrics):
            async with aiohttp.ClientSession() as s:
                answer = await s.post(url + "/v1/completions", json={"prompt": "x", "stream": True})
                await answer.content.readany()
                answer.close()
            for _ in range(100):
                await asyncio.sleep(0.02)
                if a.left:
                    break
            assert a.left == 1 and board.replicas["a"].in_flight == 0
            assert metrics.outcomes() == {"cancelled": 1}

    run(body)


def test_a_client_that_leaves_while_it_waits_leaves_the_queue() -> None:
    async def body() -> None:
        async with routed(LIMITS, ONE, a=Upstream(tokens=100, gap_s=0.01)) as (url, board, _):
            board.replicas["a"].limit = 1
            first = asyncio.create_task(ask(url))
            await asyncio.sleep(0.1)
            second = asyncio.create_task(ask(url))
            await asyncio.sleep(0.1)
            assert board.waiting("chat") == 1
            second.cancel()
            await asyncio.sleep(0.1)
            assert board.waiting("chat") == 0
            assert (await first)[0] == 200 and board.replicas["a"].in_flight == 0

    run(body)


async def raw(url: str, data: bytes, wait_s: float = 3.0) -> bytes:
    """What the router answers to these bytes until it closes, or nothing more comes."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    got = b""
    try:
        async with asyncio.timeout(wait_s):
            while part := await reader.read(65536):
                got += part
    except (TimeoutError, ConnectionError):
        got += b"<open>" if not got else b""
    writer.close()
    return got


def post(head: bytes, body: bytes = b"") -> bytes:
    return b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n" + body


BODY = b'{"prompt":"x","stream":true}'
SMUGGLED = {
    "both lengths": post(
        b"Content-Length: 28\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n"
    ),
    "two lengths": post(b"Content-Length: 28\r\nContent-Length: 5\r\n", BODY),
    "bad length": post(b"Content-Length: +28\r\n", BODY),
    "folded": post(b"Content-Length: 28\r\nX-A: b\r\n Transfer-Encoding: chunked\r\n", BODY),
    "space before colon": post(b"Content-Length : 28\r\n", BODY),
    "bad chunk": post(b"Transfer-Encoding: chunked\r\n", b"zz\r\n" + BODY),
    "unknown coding": post(b"Transfer-Encoding: identity, chunkedx\r\n", BODY),
    "huge head": post(b"X-A: " + b"a" * 20_000 + b"\r\nContent-Length: 28\r\n", BODY),
}


@pytest.mark.parametrize("name", SMUGGLED)
def test_ambiguous_requests_reach_no_replica(name: str) -> None:
    async def body() -> None:
        a = Upstream()
        async with routed(LIMITS, ONE, a=a) as (url, _, _):
            got = await raw(url, SMUGGLED[name], 1.5)
            assert b" 400 " in got.split(b"\r\n", 1)[0] + b" ", got[:200]
            assert not a.heads and b"qmeter_router" not in got

    run(body)


def test_a_clients_headers_do_not_reach_the_replica() -> None:
    async def body() -> None:
        a = Upstream()
        async with routed(LIMITS, ONE, a=a) as (url, board, _):
            board.replicas["a"].headers = {"Authorization": "Bearer replica-key"}
            sent = {"Authorization": "Bearer client-key", "Cookie": "c=1", "Connection": "close, X-Hop", "X-Hop": "1",
                    "X-Forwarded-For": "9.9.9.9", "X-Request-Id": "r1"}  # fmt: skip
            status, _, headers = await ask(url, headers=sent)
            head = a.heads[0].lower()
            assert status == 200 and b"bearer replica-key" in head and b"x-request-id: r1" in head
            assert not any(word in head for word in (b"client-key", b"cookie", b"x-hop", b"x-forwarded"))
            assert "authorization" not in {h.lower() for h in headers}

    run(body)


def test_slow_and_greedy_clients_are_put_out() -> None:
    async def body() -> None:
        a = Upstream()
        async with routed(LIMITS.model_copy(update={"max_connections": 8}), ONE, a=a) as (url, _, _):
            half_head = asyncio.create_task(raw(url, b"POST /v1/completions HTTP/1.1\r\nHost: local", 4))
            half_body = asyncio.create_task(raw(url, post(b"Content-Length: 28\r\n", BODY[:9]), 4))
            assert (await ask(url))[0] == 200, "others are served meanwhile"
            assert b" 408 " in await half_body
            assert await half_head in (b"",) or b" 408 " in await half_head
            assert (await ask(url, prompt="x" * 60_000))[0] == 413
            many = [asyncio.create_task(raw(url, b"", 1.0)) for _ in range(40)]
            done = await asyncio.gather(*many)
            assert sum(d == b"" for d in done) >= 32, "connections beyond the limit are closed"
            assert (await ask(url))[0] == 200 and len(a.bodies) == 2

    run(body)


def test_a_client_that_does_not_read_is_cut_off_in_the_end() -> None:
    async def body() -> None:
        limits = LIMITS.model_copy(update={"request_timeout": 1.5})
        a = Upstream(tokens=400_000, gap_s=0)
        async with routed(limits, ONE, a=a) as (url, board, metrics):
            host, port = url.removeprefix("http://").split(":")
            _, writer = await asyncio.open_connection(host, int(port), limit=1024)
            writer.write(post(b"Content-Length: 28\r\n", BODY))
            for _ in range(60):
                await asyncio.sleep(0.1)
                if metrics.outcomes():
                    break
            assert board.replicas["a"].in_flight == 0 and metrics.outcomes()
            writer.close()

    run(body)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example"])
def test_a_foreign_host_name_is_refused(host: str) -> None:
    async def body() -> None:
        a = Upstream()
        async with routed(LIMITS, ONE, a=a) as (url, _, _):
            status, text, _ = await ask(url, headers={"Host": host})
            assert status == 421 and "router.hosts" in text and not a.bodies

    run(body)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"[" * 20_000, b'"x"'])
def test_a_body_that_is_no_object_is_a_400(data: bytes) -> None:
    async def body() -> None:
        a = Upstream()
        async with routed(LIMITS, ONE, a=a) as (url, _, _), aiohttp.ClientSession() as s:
            async with s.post(url + "/v1/completions", data=data) as answer:
                assert answer.status == 400 and "JSON" in (await answer.json())["error"]["message"]
            assert not a.bodies

    run(body)


def test_classes_go_by_header_then_by_model_then_the_first() -> None:
    async def body() -> None:
        a, b = Upstream(), Upstream()
        async with routed(LIMITS, {"chat": {"a": 1.0}, "code": {"b": 1.0}}, a=a, b=b) as (url, _, _):
            assert (await ask(url, model="code"))[2]["X-QMeter-Replica"] == "b"
            assert (await ask(url, model="gpt"))[2]["X-QMeter-Replica"] == "a"
            assert (await ask(url, headers={"X-QMeter-Class": "code"}))[2]["X-QMeter-Replica"] == "b"
            status, text, _ = await ask(url, headers={"X-QMeter-Class": "cod"})
            assert status == 400 and "chat, code" in text

    run(body)


def test_a_sick_replica_gets_nothing_until_it_is_well() -> None:
    async def body() -> None:
        from qmeter.router.health import watch

        a, b = Upstream(), Upstream()
        async with routed(LIMITS, BOTH, a=a, b=b) as (url, board, _):
            watching = asyncio.create_task(watch(board, LIMITS))
            a.behave = "sick"
            await asyncio.sleep(0.5)
            assert not board.replicas["a"].live
            for _ in range(4):
                assert (await ask(url))[2]["X-QMeter-Replica"] == "b"
            a.behave = "ok"
            await asyncio.sleep(0.3)
            assert board.replicas["a"].live
            watching.cancel()

    run(body)


def test_no_live_replica_of_a_class_another_of_the_same_model_stands_in() -> None:
    async def body() -> None:
        async with routed(LIMITS, ONE, a=Upstream(), b=Upstream()) as (url, board, metrics):
            board.replicas["a"].healthy = False
            assert (await ask(url))[2]["X-QMeter-Replica"] == "b"
            assert b"qmeter_router_fallbacks_total 1.0" in metrics.page()
            del board.replicas["a"]
            assert (await ask(url))[2]["X-QMeter-Replica"] == "b"
            board.replicas["b"].model = "another"
            assert (await ask(url))[0] == 503, "another model is no stand-in"

    run(body)


def test_pages() -> None:
    async def body() -> None:
        async with running(), routed(LIMITS, ONE, a=Upstream()) as (url, _, _), aiohttp.ClientSession() as s:
            await ask(url)
            async with s.get(url + "/metrics") as answer:
                text = await answer.text()
                assert 'qmeter_router_requests_total{class_name="chat",outcome="ok"} 1.0' in text
                assert 'qmeter_router_replicas{deployment="a",state="ready"} 1.0' in text
            async with s.get(url + "/v1/models") as answer:
                assert [m["id"] for m in (await answer.json())["data"]] == ["chat", "served-a"]
            async with s.get(url + "/nothing") as answer:
                assert answer.status == 404 and (await answer.json())["error"]["code"] == "not_found"

    run(body)
