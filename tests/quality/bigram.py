"""A served language model small enough to know its true distributions: a bigram table behind ``/v1/completions``."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from qmeter.load.target import Target

V = 24


class Bigram:
    """Next-token log-probabilities that depend on the last token alone; ``noise`` makes a worse variant of seed 0."""

    def __init__(self, noise: float = 0.0, seed: int = 1):
        logits = np.random.default_rng(0).normal(0, 2.0, (V, V))
        logits += noise * np.random.default_rng(seed).normal(0, 1.0, (V, V))
        self.logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    def kl_to(self, other: Bigram, states: np.ndarray) -> float:
        """True mean KL(self || other) over the given states. Units: nat."""
        p = np.exp(self.logp)
        return float((p * (self.logp - other.logp)).sum(axis=1)[states].mean())


def encode(text: str) -> list[int]:
    return [ord(c) % V for c in text] or [0]


class _Handler(BaseHTTPRequestHandler):
    wbufsize = 1 << 16  # one segment an answer
    model: Bigram
    shape: str
    seen: list[dict[str, Any]]

    def log_message(self, *args: Any) -> None: ...

    def do_GET(self) -> None:
        data = json.dumps({"data": [{"id": "bigram"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body)
        status, reply = self.answer(body)
        data = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        strict = {"strict-extras": ("top_k", "repetition_penalty"), "openai": ("return_token_ids", "top_k")}
        for name in strict.get(self.shape, ()):
            if name in body:
                return 400, {"error": {"message": f"unrecognized field: {name}"}}
        if self.shape == "no-zero" and body["max_tokens"] == 0:
            return 400, {"error": {"message": "max_tokens must be at least 1"}}
        prompt = body["prompt"] if isinstance(body["prompt"], list) else encode(body["prompt"])
        ids = self.generate(prompt, body)
        echoed = prompt + ids if body.get("echo") else ids
        start = prompt[-1] if not body.get("echo") else None
        return 200, {"choices": [self.choice(prompt, ids, echoed, start, body)]}

    def generate(self, prompt: list[int], body: dict[str, Any]) -> list[int]:
        rng, last, made = np.random.default_rng(body.get("seed", 0)), prompt[-1], []
        for _ in range(body["max_tokens"]):
            row = self.model.logp[last]
            last = int(np.argmax(row)) if not body["temperature"] else int(rng.choice(V, p=np.exp(row)))
            made.append(last)
        return made

    def choice(
        self, prompt: list[int], ids: list[int], echoed: list[int], start: int | None, body: dict[str, Any]
    ) -> dict[str, Any]:
        before = [start, *echoed[:-1]]
        rows = [None if b is None else self.model.logp[b] for b in before]
        k = body["logprobs"]
        tops = [None if r is None else {*np.argsort(-r)[:k].tolist(), t} for r, t in zip(rows, echoed, strict=True)]
        choice: dict[str, Any] = {"text": " ".join(map(str, ids)), "logprobs": {
            "tokens": [f"token_id:{t}" for t in echoed],
            "token_logprobs": [None if r is None else float(r[t]) for r, t in zip(rows, echoed, strict=True)],
            "top_logprobs": [None if r is None else {f"token_id:{t}": float(r[t]) for t in top}
                             for r, top in zip(rows, tops, strict=True)],
        }}  # fmt: skip
        if self.shape == "chosen-only" or (self.shape == "embedded" and (body.get("echo") or len(ids) > 1)):
            choice["logprobs"]["top_logprobs"] = None
        if self.shape == "vllm" and body.get("echo"):
            choice["prompt_logprobs"] = [
                None if r is None else {str(t): {"logprob": float(r[t]), "rank": 1} for t in top}
                for r, top in zip(rows[: len(prompt)], tops[: len(prompt)], strict=True)
            ]
        if body.get("return_token_ids"):
            choice |= {"token_ids": ids, "prompt_token_ids": prompt}
        return choice


@contextmanager
def served(model: Bigram, shape: str = "vllm") -> Iterator[tuple[Target, list[dict[str, Any]]]]:
    """Serve ``model`` on loopback; yields the target and the list that every request body is added to."""
    seen: list[dict[str, Any]] = []
    handler = type("Handler", (_Handler,), {"model": model, "shape": shape, "seen": seen})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield Target(f"http://127.0.0.1:{server.server_port}", "bigram", timeout_s=20.0), seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
