"""Throughput of the embedded server over HTTP against the same pipeline stepped in-process, alternating in one run.

    python benchmarks/embedded_server.py MODEL.gguf [--concurrency 8] [--rounds 5]

Prints each round and the median ratio. The client shares the machine with the server, as it does in a study.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from qmeter.engines.openvino.options import ServerOptions, to_argv
from qmeter.engines.openvino.pipeline import load
from qmeter.engines.server import free_port


def prompts(n: int, tokens: int) -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(100, 40_000, tokens).tolist() for _ in range(n)]


def in_process(pipeline: Any, requests: list[list[int]], tokens: int) -> float:
    """Tokens per second of the bare pipeline, all requests added at once."""
    import openvino
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = tokens
    config.ignore_eos = True
    config.apply_chat_template = False
    begin, count = time.perf_counter(), 0
    handles = [
        pipeline.add_request(i, openvino.Tensor(np.array([ids], dtype=np.int64)), config)
        for i, ids in enumerate(requests, 1)
    ]
    while pipeline.has_non_finished_requests():
        pipeline.step()
        for handle in handles:
            while handle.can_read():
                count += sum(len(o.generated_ids) for o in handle.read().values())
    assert count == tokens * len(requests), count
    return count / (time.perf_counter() - begin)


async def _one(port: int, ids: list[int], tokens: int) -> int:
    body = json.dumps(
        {"model": "bench", "prompt": ids, "max_tokens": tokens, "ignore_eos": True, "temperature": 0, "stream": True}
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    events = 0
    while b"data: [DONE]" not in (line := await reader.readline()):
        assert line, "the server closed the stream"
        events += line.startswith(b"data: ")
    writer.close()
    return events


def over_http(port: int, requests: list[list[int]], tokens: int) -> float:
    """Tokens per second of the server, all requests sent at once; one event a token is asserted."""

    async def run() -> list[int]:
        return await asyncio.gather(*(_one(port, ids, tokens) for ids in requests))

    begin = time.perf_counter()
    events = asyncio.run(run())
    assert events == [tokens] * len(requests), events
    return sum(events) / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--property", action="append", default=[])
    args = parser.parse_args()
    properties = tuple(tuple(p.split("=", 1)) for p in args.property)
    options = ServerOptions(args.model, free_port(), "bench", properties, kv_blocks=512)
    requests = prompts(args.concurrency, args.prompt_tokens)
    server = subprocess.Popen(
        [sys.executable, "-m", "qmeter.engines.openvino", *to_argv(options)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        pipeline = load(options).pipeline
        _wait(options.port)
        in_process(pipeline, requests, 16), over_http(options.port, requests, 16)
        ratios = []
        for i in range(args.rounds):
            bare = in_process(pipeline, requests, args.tokens)
            http = over_http(options.port, requests, args.tokens)
            ratios.append(http / bare)
            print(f"round {i + 1}: in-process {bare:.1f} token/s, server {http:.1f} token/s, ratio {ratios[-1]:.3f}")
        print(f"median ratio {statistics.median(ratios):.3f} (concurrency {args.concurrency}, {args.rounds} rounds)")
    finally:
        server.terminate()
        server.wait(15)


def _wait(port: int) -> None:
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)


if __name__ == "__main__":
    main()
