"""The engine process: steps the pipeline, speaks JSON lines with the server process over a socket.

Stepping holds Python's global lock (GenAI does not release it), so it has a process to itself: the server can then
send a step's tokens, take requests and answer ``/metrics`` while the next step runs.

From the server: ``{"op": "add", "id", "ids" | "text" | "chat", …}``, ``{"op": "cancel", "id"}``.
To the server: ``{"ready": …}``, ``{"accepted": id, "ids"}``, ``{"refused": id, "message", "param"}``, ``{"step": row,
"out": [[id, tokens, log-probabilities, finish, best next tokens where asked], …]}``, ``{"fatal": message, "memory":
bool}``.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from qmeter.engines.openvino.describe import describe
from qmeter.engines.openvino.options import KV_BLOCK_TOKENS, ServerOptions
from qmeter.engines.openvino.pipeline import Loaded, load
from qmeter.engines.openvino.shadow import Shadow

log = logging.getLogger("qmeter.openvino")

FINISH = {"STOP": "stop", "LENGTH": "length"}


class Refused(Exception):
    """A request that cannot run; ``param`` names the field at fault."""

    def __init__(self, message: str, param: str = "prompt"):
        super().__init__(message)
        self.param = param


class Wire:
    """JSON lines over a socket, read without blocking while there is work."""

    def __init__(self, sock: socket.socket):
        self._sock, self._rest = sock, b""

    def send(self, message: Mapping[str, Any]) -> None:
        """Write one message."""
        self._sock.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def receive(self, wait: bool) -> list[dict[str, Any]] | None:
        """Messages that have come; ``None`` when the other side is gone. Waits for one if ``wait``."""
        while wait or select.select([self._sock], [], [], 0)[0]:
            data = self._sock.recv(1 << 20)
            if not data:
                return None
            self._rest += data
            wait = b"\n" not in self._rest
        *lines, self._rest = self._rest.split(b"\n")
        return [json.loads(line) for line in lines]


class Core:
    """The pipeline, the requests in it and those that wait for a place."""

    def __init__(self, loaded: Loaded, options: ServerOptions, wire: Wire):
        self._pipeline, self._tokenizer = loaded.pipeline, loaded.tokenizer
        self._options, self._wire = options, wire
        self.max_tokens = longest_sequence(options, loaded)
        self._vocabulary = len(loaded.tokenizer.get_vocab())
        self._queue: deque[tuple[int, Any, Any]] = deque()
        self._handles: dict[int, Any] = {}
        self._scoring: set[int] = set()
        self._listing: set[int] = set()
        self._shadow = Shadow(options.token_budget, options.prefix_cache)

    def run(self) -> None:
        """Serve until the server process is gone."""
        while (messages := self._wire.receive(wait=not self._handles and not self._queue)) is not None:
            for message in messages:
                self._take(message)
            self._admit()
            if self._handles:
                self._step()

    def _take(self, message: Mapping[str, Any]) -> None:
        request = message["id"]
        if message["op"] == "cancel":
            self._cancel(request)
            return
        try:
            ids = self._ids(message)
            config = self._config(message, len(ids))
        except Refused as refusal:
            self._wire.send({"refused": request, "message": str(refusal), "param": refusal.param})
            return
        self._queue.append((request, ids, config))
        if config.max_new_tokens == 0:
            self._scoring.add(request)
        if message["best"]:
            self._listing.add(request)
        self._wire.send({"accepted": request, "ids": ids})

    def _cancel(self, request: int) -> None:
        self._queue = deque(entry for entry in self._queue if entry[0] != request)
        handle = self._handles.pop(request, None)
        self._forget(request)
        if handle is not None:
            handle.cancel()

    def _forget(self, request: int) -> None:
        self._shadow.remove(request)
        self._scoring.discard(request)
        self._listing.discard(request)

    def _ids(self, message: Mapping[str, Any]) -> list[int]:
        if message.get("ids") is not None:
            ids: list[int] = message["ids"]
        elif message.get("chat") is not None:
            try:
                text = self._tokenizer.apply_chat_template(message["chat"], True)
            except RuntimeError as error:
                raise Refused(f"the chat template failed: {str(error)[:300]}", "messages") from error
            ids = self._encode(text, False)
        else:
            ids = self._encode(message["text"], True)
        if not ids:
            raise Refused("the prompt has no tokens")
        if bad := next((i for i in ids if not 0 <= i < self._vocabulary), None):
            raise Refused(f"token id {bad} is outside the vocabulary of {self._vocabulary}")
        return ids

    def _encode(self, text: str, special: bool) -> list[int]:
        data = self._tokenizer.encode(text, add_special_tokens=special).input_ids.data
        return [int(i) for i in data[0]] if data.size else []

    def _config(self, message: Mapping[str, Any], prompt_tokens: int) -> Any:
        import openvino_genai

        room = self.max_tokens - prompt_tokens
        asked = message.get("max")
        if room < (0 if asked == 0 else 1) or (asked is not None and asked > room):
            raise Refused(
                f"this server's longest sequence is {self.max_tokens} tokens, but the prompt has {prompt_tokens} and "
                f"{'at least 1' if asked is None else asked} more are asked for"
            )
        config = openvino_genai.GenerationConfig()
        config.apply_chat_template = False
        config.max_new_tokens = room if asked is None else asked
        config.ignore_eos = message["ignore_eos"]
        config.logprobs = 1 if message["logprobs"] else 0
        config.echo = message["echo"]
        if message["best"]:  # beams of one token: the best tokens
            config.num_beams = config.num_return_sequences = message["best"]
        if message["temperature"] > 0:
            config.do_sample = True
            config.temperature = message["temperature"]
            config.top_p = message["top_p"]
            if message["top_k"] > 0:
                config.top_k = message["top_k"]
            config.rng_seed = message["seed"]
        for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
            setattr(config, name, message[name])
        return config

    def _admit(self) -> None:
        import openvino

        while self._queue and len(self._handles) < self._options.max_sequences:
            request, ids, config = self._queue.popleft()
            try:
                tensor = openvino.Tensor(np.array([ids], dtype=np.int64))
                self._handles[request] = self._pipeline.add_request(request, tensor, config)
            except RuntimeError as error:
                self._wire.send({"failed": request, "message": _first_line(error)})
                continue
            self._shadow.add(request, len(ids))

    def _step(self) -> None:
        start = time.monotonic()
        self._pipeline.step()
        duration = time.monotonic() - start
        out: list[list[Any]] = []
        decoded, ended = 0, []
        emitted = set()
        for request, handle in self._handles.items():
            if not handle.can_read():
                if handle.get_status().name != "RUNNING":
                    out.append([request, [], [], "ignored"])
                    ended.append(request)
                continue
            tokens, logprobs, finish = _read(handle)
            best: list[tuple[int, float]] = []
            if request in self._listing:
                best = sorted(zip(tokens, logprobs, strict=True), key=lambda pair: -pair[1])
                tokens, logprobs = [best[0][0]], [best[0][1]]
            if self._shadow.is_generating(request):
                decoded += len(tokens)
            if finish or request not in self._scoring:
                emitted.add(request)
            if finish:
                ended.append(request)
            out.append([request, tokens, logprobs, finish, *([best] if best else [])])
        metrics = self._pipeline.get_metrics()
        scheduled = metrics.scheduled_requests
        prefill = self._shadow.observe(scheduled, emitted)
        for request in ended:
            del self._handles[request]
            self._forget(request)
        waiting = metrics.requests - scheduled + len(self._queue)
        row = [start, duration, scheduled, max(waiting, 0), prefill, decoded, metrics.cache_usage / 100.0]
        self._wire.send({"step": row, "out": out})


def _read(handle: Any) -> tuple[list[int], list[float], str | None]:
    tokens: list[int] = []
    logprobs: list[float] = []
    finish = None
    while handle.can_read():
        for output in handle.read().values():
            tokens += output.generated_ids
            logprobs += output.generated_log_probs
            finish = FINISH.get(output.finish_reason.name, finish)
    return tokens, logprobs, finish


def longest_sequence(options: ServerOptions, loaded: Loaded) -> int:
    """Most tokens (prompt and output) that a sequence may have: the option, the model's and the KV cache's bound."""
    bounds = [options.kv_blocks * KV_BLOCK_TOKENS, options.max_model_tokens, loaded.model_context_tokens or 0]
    return min(b for b in bounds if b > 0)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (said or lines or [type(error).__name__])[0][:500]


def _hush() -> None:
    """Send native reports (a line for each primitive of a new shape) nowhere once the evidence is in."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def serve_core(options: ServerOptions, sock: socket.socket) -> int:
    """Load, report, and step until the server process is gone; returns the exit status."""
    wire = Wire(sock)
    try:
        loaded = load(options)
        _hush()
        core = Core(loaded, options, wire)
        wire.send({"ready": describe(options, loaded, core.max_tokens)})
    except Exception as error:
        log.exception("cannot load %s", options.model)
        text = str(error)
        memory = isinstance(error, MemoryError) or "larger than available memory" in text or "bad_alloc" in text
        wire.send({"fatal": _first_line(error), "memory": memory})
        return 1
    try:
        core.run()
    except (BrokenPipeError, ConnectionResetError):
        return 0
    except Exception as error:
        log.exception("the pipeline failed")
        wire.send({"fatal": _first_line(error), "memory": isinstance(error, MemoryError)})
        return 1
    return 0
