"""The stream parser: any split of the bytes reads the same; no bytes at all make it raise."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmeter.load.completion import PERHAPS, TEXT, BadEvent, read_event, settle
from qmeter.load.http import BadResponse, ResponseReader
from qmeter.load.parse import Ending, Parsed, StreamParser, parse_spool
from qmeter.load.plan import Outcome
from qmeter.load.spool import LOOK, READ_BYTES, Spool
from qmeter.load.sse import EventReader
from qmeter.load.stamps import ClockAnchors
from qmeter.record import RequestStatus

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TEXTS = st.lists(st.text(max_size=20), min_size=1, max_size=12)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


def chunked(pieces: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces if p) + b"0\r\n\r\n"


def token(text: str, reason: str | None = None, **more: object) -> bytes:
    return json.dumps({"choices": [{"index": 0, "text": text, "finish_reason": reason}], **more}).encode()


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def parse(pieces: list[bytes], outcome: Outcome = Outcome.COMPLETE) -> Parsed:
    parser = StreamParser(keep_text=True)
    for i, piece in enumerate(pieces):
        parser.feed(piece, i, 0)
    return parser.finish(outcome, None)


def stream(events: list[bytes], end: bytes = b"\n", comments: bool = False) -> bytes:
    body = [b"data: " + e + end + end for e in [*events, b"[DONE]"]]
    if comments:
        body = [p for b in body for p in (b": ping" + end + end, b"id: 7" + end + b)]
    return HEAD + chunked(body)


@given(TEXTS, st.lists(st.integers(0, 10_000), max_size=30), ENDS, st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_split_reads_the_same(texts: list[str], cuts: list[int], end: bytes, comments: bool) -> None:
    events = [token(t) for t in texts] + [token("", "stop")]
    usage = json.dumps({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": len(texts)}}).encode()
    data = stream([*events, usage], end, comments)
    parsed = parse(split(data, cuts))
    assert parsed.status is Ending.OK
    assert parsed.text == "".join(texts)
    assert sum(parsed.n) == len(texts)
    assert (parsed.prompt_tokens, parsed.output_tokens, parsed.finish_reason) == (5, len(texts), "stop")


@given(st.lists(st.binary(max_size=200), max_size=10), st.sampled_from(list(Outcome)))
@settings(max_examples=500, deadline=None)
def test_no_bytes_make_it_raise(pieces: list[bytes], outcome: Outcome) -> None:
    assert isinstance(parse(pieces, outcome).status, Ending)


@given(st.lists(st.binary(max_size=100), max_size=8), st.lists(st.integers(0, 2000), max_size=8))
@settings(max_examples=500, deadline=None)
def test_no_body_makes_it_raise(pieces: list[bytes], cuts: list[int]) -> None:
    parsed = parse(split(HEAD + chunked(pieces), cuts))
    assert parsed.status in (
        Ending.GARBAGE,
        Ending.EARLY_CLOSE,
        Ending.OK,
        Ending.ERROR_EVENT,
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["choices", "text", "delta", "content", "usage", "completion_tokens", "logprobs", "tokens",
                         "token_ids", "finish_reason", "error", "message", "role", "prompt_tokens"]),
        inner, max_size=5,
    ),
    max_leaves=20,
)  # fmt: skip


@given(json_values)
@settings(max_examples=500, deadline=None)
def test_no_json_makes_it_raise(value: object) -> None:
    parse([stream([json.dumps(value).encode(), token("x", "stop")])])


@given(st.binary(min_size=1, max_size=300), st.lists(st.integers(0, 500), max_size=10))
@settings(max_examples=300, deadline=None)
def test_http_reader_gives_the_same_body_for_any_split(body: bytes, cuts: list[int]) -> None:
    half = len(body) // 2
    bare = b"HTTP/1.1 200 OK\r\n"
    for data in (
        HEAD + chunked([body[:half], body[half:]]),
        bare + b"Content-Length: %d\r\n\r\n%s" % (len(body), body),
        b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + chunked([body]),
        HEAD + b"%X;name=value\r\n%s\r\n0\r\nTrailer: x\r\n\r\n" % (len(body), body),
    ):
        reader = ResponseReader()
        assert b"".join(reader.feed(p) for p in split(data, cuts)) == body
        assert reader.done and reader.reusable and not reader.extra


def test_bytes_after_the_end_make_the_connection_unusable() -> None:
    reader = ResponseReader()
    reader.feed(HEAD + chunked([b"x"]) + b"HTTP/1.1 200")
    assert reader.done and not reader.reusable and reader.extra == b"HTTP/1.1 200"


@pytest.mark.parametrize(
    "data",
    [b"HTTP/2 200\r\n\r\n", b"HTTP/1.1 2000 OK\r\n\r\n", HEAD + b"-5\r\nhello\r\n", HEAD + b"0x5\r\nhello\r\n",
     HEAD + b"5\r\nhelloXX", HEAD + b"\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nContent-Length: 1e3\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000, b"HTTP/1.1 101 Up\r\n\r\n"],
)  # fmt: skip
def test_what_is_not_http_is_refused(data: bytes) -> None:
    with pytest.raises(BadResponse):
        ResponseReader().feed(data)


def test_events_split_inside_crlf_come_at_once_and_once() -> None:
    reader = EventReader()
    assert reader.feed(b"data: a\r\n\r") == [(b"", b"a")]
    assert reader.feed(b"\ndata: b\r\r") == [(b"", b"b")]
    assert reader.feed(b"event: error\ndata: c\ndata:d\n\n") == [(b"error", b"c\nd")]
    assert reader.feed(b":comment\n\nid: 3\nretry: 5\n\n") == []
    assert EventReader().feed(b"\xef\xbb\xbfdata: x\n\n") == [(b"", b"x")]


def test_an_event_takes_the_stamp_of_the_read_that_completes_it() -> None:
    one, two = (b"data: " + token(t) + b"\n\n" for t in "ab")
    data = HEAD + b"%x\r\n" % (len(one) + len(two)) + one + two
    parser = StreamParser(keep_text=False)
    parser.feed(data[: len(data) - len(two) - 5], 100, 0)
    parser.feed(data[len(data) - len(two) - 5 : -1], 200, 0)
    parser.feed(data[-1:], 300, 1)
    parsed = parser.finish(Outcome.EOF, None)
    assert list(parsed.t_ns) == [200, 300]
    assert list(parsed.user_clock) == [0, 1]


def test_events_read_together_are_marked_but_the_last() -> None:
    data = stream([token("a"), token("b"), token("c", "stop")])
    cut = data.index(b"[DONE]") - len(b"e\r\ndata: ")
    parser = StreamParser(keep_text=False)
    parser.feed(data[:cut], 5, 0, 3)
    parser.feed(data[cut:], 9, 0, 7)
    parsed = parser.finish(Outcome.COMPLETE, None)
    assert list(parsed.coalesced) == [1, 1, 0]
    assert list(parsed.doubt_ns) == [3, 3, 0], "the last has the read's own stamp"


def spooled(reads: list[tuple[int, int, int, bytes]]) -> list[Parsed]:
    """Reads and looks as the loop spools them; the two clocks are one here."""
    spool, anchors = Spool(), ClockAnchors()
    anchors.extend([(0, 0), (1 << 40, 0)])
    for request, kernel_ns, user_ns, data in reads:
        spool.note_look(user_ns) if request == LOOK else spool.append(request, kernel_ns, user_ns, data)
    last = max(r[0] for r in reads) + 1
    parsed, _ = parse_spool(spool, anchors, [int(Outcome.EOF)] * last, {}, keep_text=False, sent_ns=[1_000] * last)
    spool.close()
    return parsed


def test_what_is_read_together_came_after_the_loop_last_looked_or_the_stream_was_last_emptied() -> None:
    def some(n: int, head: bool = False) -> bytes:
        events = b"".join(b"data: " + token("x") + b"\n\n" for _ in range(n))
        return (HEAD if head else b"") + b"%x\r\n" % len(events) + events + b"\r\n"

    reads = [
        (LOOK, 0, 5_000, b""), (0, 9_000, 9_100, some(2, head=True)),
        (LOOK, 0, 10_000, b""), (0, 90_000, 90_100, some(3)), (1, 91_000, 91_100, some(2, head=True)),
        (LOOK, 0, 20_000, b""), (0, 95_000, 96_000, some(2)), (0, 0, 99_000, some(1)),
    ]  # fmt: skip
    first, second = spooled(reads)
    assert list(first.doubt_ns)[:2] == [4_000, 0], "since the look; the last has the read's own stamp"
    assert list(first.doubt_ns)[2:5] == [80_000, 80_000, 0]
    assert list(first.doubt_ns)[5:7] == [95_000 - 90_100, 0], "since its last read, which emptied it"
    assert list(first.doubt_ns)[7:] == [99_000 - 96_000], "a stamp of the loop's own is in doubt for every event"
    assert list(second.doubt_ns) == [81_000, 0]
    assert list(spooled([(0, 9_000, 9_100, some(2, head=True))])[0].doubt_ns) == [8_000, 0], "not before it was sent"


def test_a_read_that_took_all_it_could_may_have_left_some() -> None:
    event = b"data: " + token("x" * 900) + b"\n\n"
    data = HEAD + b"".join(b"%x\r\n" % len(event) + event + b"\r\n" for _ in range(20))
    cut = READ_BYTES
    (parsed,) = spooled([(LOOK, 0, 5_000, b""), (0, 50_000, 50_100, data[:cut]), (0, 60_000, 60_200, data[cut:])])
    assert len(parsed.doubt_ns) == 20 and parsed.doubt_ns[-1] == 0
    assert set(parsed.doubt_ns[:-1]) == {45_000, 55_000}, "of both reads, since nothing emptied the socket between"


# -- token counts --------------------------------------------------------------------------------------------------


def usage(n: int) -> dict[str, object]:
    return {"usage": {"prompt_tokens": 1, "completion_tokens": n}}


def test_continuous_usage_counts_what_it_grew_by() -> None:
    parsed = parse([stream([token("ab", **usage(2)), token("c", **usage(3)), token("", "stop", **usage(7))])])
    assert list(parsed.n) == [2, 1, 4]


def test_a_usage_in_the_last_event_alone_is_the_final_one() -> None:
    """As llama-server ends a stream: an event without text that carries the finish reason and the whole usage."""
    parsed = parse([stream([token("a"), token("b"), token("", "length", **usage(2))])])
    assert (list(parsed.n), parsed.output_tokens) == ([1, 1, 0], 2)
    merged = parse([stream([token("aa"), token("bb"), token("c", "length", **usage(7))])])
    assert sum(merged.n) == 7 and max(merged.n) <= 3


def test_token_ids_and_logprobs_count_exactly() -> None:
    ids = json.dumps({"choices": [{"text": "abc", "token_ids": [1, 2, 3]}]}).encode()
    tops = json.dumps({"choices": [{"text": "de", "logprobs": {"tokens": ["d", "e"]}}]}).encode()
    chat = json.dumps(
        {"choices": [{"delta": {"content": "f"}, "logprobs": {"content": [{}]}, "finish_reason": "stop"}]}
    ).encode()
    assert list(parse([stream([ids, tops, chat])]).n) == [3, 2, 1]


def test_several_tokens_in_one_text_event_are_squared_with_the_usage() -> None:
    events = [token("aaaa"), token("bb"), token("cc", "stop"), json.dumps({"choices": [], **usage(11)}).encode()]
    assert list(parse([stream(events)]).n) == [5, 3, 3]


def test_empty_text_counts_only_where_the_usage_says_so() -> None:
    events = [token("a"), token(""), token("b"), token("", "stop")]
    assert list(parse([stream(events)]).n) == [1, 0, 1, 0]
    for total, counts in ((2, [1, 0, 1, 0]), (3, [1, 1, 1, 0]), (4, [1, 1, 1, 1]), (1, [1, 0, 1, 0])):
        end = json.dumps({"choices": [], **usage(total)}).encode()
        assert list(parse([stream([*events, end])]).n) == counts


def test_a_chat_role_is_no_token() -> None:
    opening = json.dumps({"choices": [{"delta": {"role": "assistant", "content": ""}}]}).encode()
    said = json.dumps({"choices": [{"delta": {"content": "hi"}, "finish_reason": "stop"}]}).encode()
    end = json.dumps({"choices": [], **usage(1)}).encode()
    parsed = parse([stream([opening, said, end])])
    assert (list(parsed.n), parsed.text) == ([1], "hi")


@given(st.lists(st.tuples(st.sampled_from([TEXT, PERHAPS]), st.integers(1, 50), st.booleans()), max_size=20),
       st.integers(-1, 100))  # fmt: skip
def test_settled_counts_add_up(events: list[tuple[int, int, bool]], total: int) -> None:
    how = bytearray(h for h, _, _ in events)
    n = array("i", [int(h == TEXT) for h in how])
    counts = settle(n, how, array("i", [c for _, c, _ in events]), bytearray(f for _, _, f in events), total)
    least = sum(n)
    if total <= least:
        assert list(counts) == list(n)
    elif least:
        assert sum(counts) == total
    else:
        assert sum(counts) == min(total, len(events))
    assert all(c >= k for c, k in zip(counts, n, strict=True))


def test_events_of_another_kind_are_refused() -> None:
    for data in (
        b"{}",
        b"[]",
        b"7",
        b"{",
        b'{"choices": 3}',
        b'{"choices": [7]}',
        b'{"choices": [{"text": 5}]}',
        b"\xff",
    ):
        with pytest.raises(BadEvent):
            read_event(data)
    assert read_event(b'{"error": {"message": "no"}}').error == "no"
    assert read_event(b'{"object": "error", "message": "vLLM style"}').error == "vLLM style"


def test_endings_are_the_records_statuses() -> None:
    assert {e.name: e.value for e in Ending} == {s.name: s.value for s in RequestStatus}


def test_a_client_process_starts_without_the_heavy_imports() -> None:
    code = "import sys, qmeter.load.worker; print([m for m in ('pydantic', 'duckdb', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
