"""A serving engine that needs no model: the same protocol, deterministic text, timed tokens, and faults on request.

As a program (``python -m qmeter.testing.fake_engine --port N``) it serves ``/v1/completions`` (streaming and not,
``echo``, ``logprobs``, ``return_token_ids``), ``/v1/models``, ``/health``, ``/metrics`` and ``/qmeter/config``. As
:class:`FakeEngine` it is an adapter like any other, so that the runner and the command line can be tested anywhere.
Its "model" gives each next token a probability that is a fixed function of the last two tokens; ``--noise`` perturbs
it, as quantization would.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np

from qmeter.catalog import method as catalog_method
from qmeter.engines.base import Artifact, Launch, MetricsMap, MetricSource
from qmeter.errors import MethodUnsupported, OutOfMemory
from qmeter.record import EffectiveConfig, Steps
from qmeter.spec.study import Deployment

VOCAB = 512
BEST = 8
FAULTS = ("none", "crash", "out-of-memory", "wrong-method", "never-ready", "refuse")


class FakeEngine:
    """Adapter of the fake server. Options: ``tpot_ms``, ``ttft_ms``, ``noise``, ``fault``, ``crash_after``."""

    def launch_command(self, deployment: Deployment, artifact: Artifact, port: int, workdir: Path) -> Launch:
        """The fake's own command; ``fault: refuse`` raises MethodUnsupported here."""
        options = deployment.engine.options
        faulty = options.get("fault_method") in (None, deployment.method)
        fault = str(options.get("fault", "none")) if faulty else "none"
        if fault == "refuse":
            raise MethodUnsupported("the fake engine refuses this method", hint="choose another method")
        flags = [f"--{k.replace('_', '-')}={options[k]}" for k in ("tpot_ms", "ttft_ms", "crash_after") if k in options]
        noise = float(options.get("noise", 0.0)) * (16.0 - catalog_method(deployment.method).weight_bits)
        argv = (sys.executable, "-m", "qmeter.testing.fake_engine", f"--port={port}", f"--method={deployment.method}",
                f"--noise={noise}", f"--weight-bytes={artifact.weight_bytes}", f"--fault={fault}", *flags)  # fmt: skip
        return Launch(argv, f"http://127.0.0.1:{port}", "fake", workdir / "server.log")

    def effective(self, launch: Launch) -> EffectiveConfig | None:
        """What the server answers on ``/qmeter/config``."""
        if launch.log_path.exists() and "out of memory" in launch.log_path.read_text():
            raise OutOfMemory("the fake engine is out of memory", stage="ready", hint="a smaller model, or fewer bits")
        try:
            with urllib.request.urlopen(f"{launch.base_url}/qmeter/config", timeout=2) as answer:
                return EffectiveConfig.model_validate_json(answer.read())
        except (OSError, urllib.error.URLError):
            return None

    def metrics_map(self) -> MetricsMap:
        """Running and waiting requests and generated tokens; an empty iteration log."""
        sources = (
            MetricSource("engine.running", "fake_running", "1"),
            MetricSource("engine.generated_tokens", "fake_tokens_total", "1", cumulative=True),
        )
        return MetricsMap("/metrics", sources, steps=lambda launch, origin_s: Steps.empty())


def log_softmax_row(previous: int, before: int, noise: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Log-probabilities of every next token, shape (VOCAB,), a fixed function of the last two tokens."""
    logits = np.random.default_rng([previous, before]).normal(0.0, 2.5, VOCAB)
    if noise:
        logits = logits + np.random.default_rng([previous, before, 7]).normal(0.0, noise, VOCAB)
    shifted = logits - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


class _Server:
    def __init__(self, args: argparse.Namespace):
        self.args, self.running, self.tokens, self.requests = args, 0, 0, 0

    def config(self) -> dict[str, Any]:
        row = catalog_method("f16" if self.args.fault == "wrong-method" else self.args.method)
        return EffectiveConfig(
            engine_version="fake-1", weight_bytes=self.args.weight_bytes, weight_type=row.weight_type,
            activation_type=row.activation_type, kv_type=row.kv_type, kv_blocks=1000, kv_block_tokens=16,
            token_budget=2048, max_sequences=64, max_model_tokens=8192, sources={"weight_type": "fake"},
        ).model_dump()  # fmt: skip

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        method, path, _ = head.split(b"\r\n", 1)[0].decode().split()
        length = next(
            (int(h.split(b":")[1]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-length")), 0
        )
        body = json.loads(await reader.readexactly(length)) if length else {}
        if method == "POST" and path == "/v1/completions":
            await self._completion(body, writer)
        else:
            pages: dict[str, Any] = {
                "/health": {}, "/v1/models": {"data": [{"id": "fake"}]}, "/qmeter/config": self.config(),
                "/metrics": f"fake_running {self.running}\nfake_tokens_total {self.tokens}\n",
            }  # fmt: skip
            page = pages.get(path)
            self._write(writer, 404 if page is None else 200, page if isinstance(page, str) else json.dumps(page or {}))
        await writer.drain()
        return True

    async def _completion(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.requests += 1
        if self.args.fault == "crash" and self.requests > self.args.crash_after:
            os._exit(9)
        prompt = body["prompt"]
        ids = (
            [1 + ord(c) % (VOCAB - 1) for c in prompt] if isinstance(prompt, str) else [int(t) % VOCAB for t in prompt]
        )
        self.running += 1
        try:
            if body.get("stream"):
                await self._stream(body, ids, writer)
            else:
                self._write(writer, 200, json.dumps(self._whole(body, ids)))
        finally:
            self.running -= 1

    async def _stream(self, body: dict[str, Any], ids: list[int], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        count = int(body.get("max_tokens", 16))
        async for token in self._timed(ids, count, float(body.get("temperature", 0)), body.get("seed")):
            self._event(writer, {"choices": [{"index": 0, "text": f" t{token}", "finish_reason": None}]})
            await writer.drain()
        self._event(writer, {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
        usage = {"prompt_tokens": len(ids), "completion_tokens": count, "total_tokens": len(ids) + count}
        self._event(writer, {"choices": [], "usage": usage})
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    async def _timed(self, ids: list[int], count: int, temperature: float, seed: int | None) -> AsyncIterator[int]:
        due = time.monotonic() + self.args.ttft_ms / 1e3
        for token in self._continue(ids, count, temperature, seed):
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due += self.args.tpot_ms / 1e3
            self.tokens += 1
            yield token

    def _continue(self, ids: list[int], count: int, temperature: float, seed: int | None) -> list[int]:
        context, rng = [0, 0, *ids], np.random.default_rng(seed)
        for _ in range(count):
            row = log_softmax_row(context[-1], context[-2], self.args.noise)
            context.append(int(rng.choice(VOCAB, p=np.exp(row))) if temperature else int(row.argmax()))
        return context[2 + len(ids) :]

    def _whole(self, body: dict[str, Any], ids: list[int]) -> dict[str, Any]:
        made = self._continue(ids, int(body.get("max_tokens", 16)), float(body.get("temperature", 0)), body.get("seed"))
        self.tokens += len(made)
        choice: dict[str, Any] = {"index": 0, "text": "".join(f" t{t}" for t in made), "finish_reason": "length"}
        if body.get("return_token_ids"):
            choice.update(token_ids=made, prompt_token_ids=ids)
        if (top := body.get("logprobs")) is not None:
            shown = [*ids, *made] if body.get("echo") else made
            choice["logprobs"] = self._logprobs([0, 0, *ids, *made], len(shown), int(top), bool(body.get("echo")))
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(made), "total_tokens": len(ids) + len(made)}
        return {"object": "text_completion", "model": "fake", "choices": [choice], "usage": usage}

    def _logprobs(self, context: list[int], shown: int, top: int, echo: bool) -> dict[str, Any]:
        own: list[float | None] = []
        best: list[dict[str, float] | None] = []
        for i in range(len(context) - shown, len(context)):
            row = log_softmax_row(context[i - 1], context[i - 2], self.args.noise)
            own.append(float(row[context[i]]))
            best.append({f"token_id:{t}": float(row[t]) for t in np.argsort(-row)[:top]})
        if echo and own:
            own[0], best[0] = None, None
        tokens = [f"token_id:{t}" for t in context[len(context) - shown :]]
        return {"tokens": tokens, "token_logprobs": own, "top_logprobs": best}

    @staticmethod
    def _event(writer: asyncio.StreamWriter, data: dict[str, Any]) -> None:
        text = f"data: {json.dumps(data)}\n\n".encode()
        writer.write(f"{len(text):x}\r\n".encode() + text + b"\r\n")

    @staticmethod
    def _write(writer: asyncio.StreamWriter, status: int, text: str) -> None:
        body = text.encode()
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)


async def _serve(args: argparse.Namespace) -> None:
    server = await asyncio.start_server(_Server(args).handle, "127.0.0.1", args.port, limit=2**24)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Serve until ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--method", default="f16")
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--weight-bytes", type=int, default=0)
    parser.add_argument("--ttft-ms", type=float, default=10.0)
    parser.add_argument("--tpot-ms", type=float, default=2.0)
    parser.add_argument("--crash-after", type=int, default=40)
    parser.add_argument("--fault", choices=FAULTS, default="none")
    args = parser.parse_args()
    if args.fault == "out-of-memory":
        raise SystemExit("out of memory")
    if args.fault == "never-ready":
        time.sleep(600)
    asyncio.run(_serve(args))


if __name__ == "__main__":
    main()
