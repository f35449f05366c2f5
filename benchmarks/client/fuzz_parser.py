"""Coverage-guided fuzzing of the stream parser: no bytes make it raise, and no split of the bytes changes what is read.

    pip install atheris
    python benchmarks/client/fuzz_parser.py -max_total_time=300      # libFuzzer's options

The first byte chooses how much of the response is well formed (a head, chunks), so that the fuzzer gets deep; the next
ones choose how the request ended and where the bytes are cut. A crash is saved by libFuzzer as ``crash-…``.
"""

from __future__ import annotations

import itertools
import sys

import atheris

with atheris.instrument_imports():
    from qmeter.load.parse import Ending, Parsed, StreamParser
    from qmeter.load.plan import Outcome

HEADS = (
    b"",
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 429 Too Many Requests\r\nTransfer-Encoding: chunked\r\n\r\n",
)
OUTCOMES = tuple(Outcome)


def parse(pieces: list[bytes], outcome: Outcome) -> Parsed:
    """Read the pieces as one request's stream."""
    parser = StreamParser(keep_text=True)
    for i, piece in enumerate(pieces):
        parser.feed(piece, i, 0)
    return parser.finish(outcome, None)


def seen(parsed: Parsed) -> tuple[object, ...]:
    """What must not depend on how the bytes were split. A token's stamp does, and whether events shared a read."""
    return (parsed.status, parsed.http_status, parsed.finish_reason, parsed.prompt_tokens, parsed.output_tokens,
            parsed.text, list(parsed.n))  # fmt: skip


def one(data: bytes) -> None:
    """One input of the fuzzer."""
    provider = atheris.FuzzedDataProvider(data)
    head = HEADS[provider.ConsumeIntInRange(0, len(HEADS) - 1)]
    outcome = OUTCOMES[provider.ConsumeIntInRange(0, len(OUTCOMES) - 1)]
    cuts = [provider.ConsumeIntInRange(0, 65535) for _ in range(provider.ConsumeIntInRange(0, 6))]
    framed = provider.ConsumeBool()
    body = provider.ConsumeBytes(provider.remaining_bytes())
    if framed and b"chunked" in head:
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    stream = head + body
    whole = parse([stream], outcome)
    assert isinstance(whole.status, Ending)
    assert all(n >= 0 for n in whole.n), "a negative count of tokens"
    edges = sorted({0, len(stream), *(c % (len(stream) + 1) for c in cuts)})
    split = parse([stream[a:b] for a, b in itertools.pairwise(edges)], outcome)
    assert seen(whole) == seen(split), f"split at {edges}: {seen(whole)} != {seen(split)}"


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
