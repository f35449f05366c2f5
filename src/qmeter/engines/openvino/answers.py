"""Answers in the OpenAI API's shapes: whole ones, and one server-sent event a token.

Alternatives (``top_logprobs``): the pipeline gives the log-probability of the chosen token alone, so an entry holds
that one; at temperature 0 it is the best token. Only a request of one greedy token lists as many as it asks for (see
``Generation.best``). A prompt token's entry is null: its alternatives are not known.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from qmeter.engines.openvino.detokenize import Stream, Vocabulary
from qmeter.engines.openvino.link import Output
from qmeter.engines.openvino.protocol import Generation

DONE = b"data: [DONE]\n\n"


class Choice:
    """One choice as it grows: the prompt (with log-probabilities under echo), then the generated tokens."""

    def __init__(self, generation: Generation, vocabulary: Vocabulary, prompt_ids: list[int]):
        self.prompt_ids = prompt_ids
        self.prompt_logprobs: list[float] = []
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.pieces: list[str] = []
        self.best: list[tuple[int, float]] | None = None
        self.finish: str | None = None
        self._vocabulary, self._stream = vocabulary, Stream(vocabulary, generation.stop)
        self._echo_left = len(prompt_ids) if generation.echo else 0

    @property
    def ended(self) -> bool:
        """Whether no more tokens will come."""
        return self.finish is not None

    def take(self, output: Output) -> int:
        """Take one step's output; returns how many generated tokens it added. ``finish`` is set at the end."""
        tokens, logprobs, self.best = output.tokens, output.logprobs, output.best
        if self._echo_left:
            self.prompt_logprobs += logprobs[: self._echo_left]
            skip = min(self._echo_left, len(tokens))
            tokens, logprobs = tokens[skip:], logprobs[skip:]
            self._echo_left -= skip
        for i, token in enumerate(tokens):
            self.tokens.append(token)
            self.logprobs.append(logprobs[i])
            piece = self._stream.push(token)
            if self._stream.stopped:
                self.pieces.append(piece)
                self.finish = "stop"
                return i + 1
            if output.finish and i == len(tokens) - 1:
                piece += self._stream.finish()
            self.pieces.append(piece)
        self.finish = output.finish
        return len(tokens)

    def name(self, token: int, as_id: bool) -> str:
        """The token as the API spells it."""
        return f"token_id:{token}" if as_id else self._vocabulary.name(token)

    def prompt_text(self) -> str:
        """The prompt's text."""
        return self._vocabulary.text(self.prompt_ids)

    def piece_bytes(self, token: int) -> list[int]:
        """The token's bytes."""
        return list(self._vocabulary.piece(token))


def usage(choices: Sequence[Choice]) -> dict[str, int]:
    """Token counts of an answer; each of ``n`` copies counts its prompt, as the engine processed it."""
    prompt = sum(len(c.prompt_ids) for c in choices)
    output = sum(len(c.tokens) for c in choices)
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


def envelope(generation: Generation, number: int, model: str) -> dict[str, Any]:
    """What every answer and event begins with."""
    kind = ("chat.completion" if generation.chat else "text_completion") + (
        ".chunk" if generation.chat and generation.stream else ""
    )
    name = f"{'chatcmpl' if generation.chat else 'cmpl'}-{number}"
    return {"id": name, "object": kind, "created": int(time.time()), "model": model}


def whole(generation: Generation, choices: Sequence[Choice], number: int, model: str) -> dict[str, Any]:
    """The answer to a request that does not stream."""
    return {
        **envelope(generation, number, model),
        "choices": [_whole_choice(generation, c, i) for i, c in enumerate(choices)],
        "usage": usage(choices),
    }


class EventWriter:
    """Server-sent events of one stream, one a token; the constant parts are encoded once."""

    def __init__(self, generation: Generation, number: int, model: str):
        self._generation = generation
        head = json.dumps(envelope(generation, number, model), separators=(",", ":"))[:-1]
        self._head = b"data: " + head.encode() + b',"choices":['
        self._tail = b"]" + (b',"usage":null' if generation.include_usage else b"") + b"}\n\n"
        self._plain = not generation.chat and generation.logprobs is None and not generation.token_ids

    def token(self, choice: Choice, at: int, last: bool) -> bytes:
        """The event of generated token ``at``; the last one carries the finish reason."""
        finish = f'"{choice.finish}"' if last else "null"
        if self._plain:
            text = json.dumps(choice.pieces[at])
            body = f'{{"index":0,"text":{text},"logprobs":null,"finish_reason":{finish}}}'
            return self._head + body.encode() + self._tail
        return self._head + json.dumps(self._rich(choice, at, last), separators=(",", ":")).encode() + self._tail

    def usage(self, choice: Choice) -> bytes:
        """The last event before the end, where usage was asked for."""
        counts = json.dumps(usage([choice]), separators=(",", ":")).encode()
        return self._head + b'],"usage":' + counts + b"}\n\n"

    def _rich(self, choice: Choice, at: int, last: bool) -> dict[str, Any]:
        g = self._generation
        part: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": choice.finish if last else None}
        if g.chat:
            part["delta"] = {"content": choice.pieces[at]} if at else {"role": "assistant", "content": choice.pieces[0]}
            if g.logprobs is not None:
                part["logprobs"] = {"content": [_chat_logprob(g, choice, at)]}
        else:
            part["text"] = choice.pieces[at]
            if g.logprobs is not None:
                part["logprobs"] = _logprobs(g, choice, [choice.tokens[at]], [choice.logprobs[at]], [choice.pieces[at]])
        if g.token_ids:
            part["token_ids"] = [choice.tokens[at]]
            if at == 0:
                part["prompt_token_ids"] = choice.prompt_ids
        return part


def error_event(message: str) -> bytes:
    """The event that tells a running stream that it failed."""
    error = {"error": {"message": message, "type": "server_error", "param": None, "code": "engine_failed"}}
    return b"data: " + json.dumps(error).encode() + b"\n\n"


def _whole_choice(g: Generation, choice: Choice, index: int) -> dict[str, Any]:
    text = "".join(choice.pieces)
    answer: dict[str, Any] = {"index": index, "finish_reason": choice.finish, "logprobs": None}
    if g.chat:
        answer["message"] = {"role": "assistant", "content": text}
        if g.logprobs is not None:
            answer["logprobs"] = {"content": [_chat_logprob(g, choice, i) for i in range(len(choice.tokens))]}
        return answer
    answer["text"] = (choice.prompt_text() if g.echo else "") + text
    if g.logprobs is not None:
        answer["logprobs"] = _whole_logprobs(g, choice)
    if g.token_ids:
        answer["token_ids"] = choice.tokens
        answer["prompt_token_ids"] = choice.prompt_ids
    return answer


def _whole_logprobs(g: Generation, choice: Choice) -> dict[str, Any]:
    tokens, values, pieces = choice.tokens, list[float | None](choice.logprobs), choice.pieces
    if not g.echo:
        return _logprobs(g, choice, tokens, values, pieces)
    prompt = _logprobs(
        g,
        choice,
        choice.prompt_ids,
        [None, *choice.prompt_logprobs[1:]],
        [choice.name(t, False) for t in choice.prompt_ids],
    )
    prompt["top_logprobs"] = [None] * len(choice.prompt_ids) if g.logprobs else None
    rest = _logprobs(g, choice, tokens, values, pieces, len(choice.prompt_text()))
    return {key: None if value is None else value + rest[key] for key, value in prompt.items()}


def _logprobs(
    g: Generation, choice: Choice, tokens: Sequence[int], values: Sequence[float | None], pieces: Sequence[str],
    offset: int = 0,
) -> dict[str, Any]:  # fmt: skip
    names = [choice.name(t, g.tokens_as_ids) for t in tokens]
    offsets = []
    for piece in pieces:
        offsets.append(offset)
        offset += len(piece)
    tops = [{n: v} for n, v in zip(names, values, strict=True)] if g.logprobs else None
    if tops and choice.best:
        tops = [{choice.name(t, g.tokens_as_ids): v for t, v in choice.best}]
    return {"tokens": names, "token_logprobs": list(values), "top_logprobs": tops, "text_offset": offsets}


def _chat_logprob(g: Generation, choice: Choice, at: int) -> dict[str, Any]:
    token = choice.tokens[at]
    entry = {
        "token": choice.name(token, g.tokens_as_ids),
        "logprob": choice.logprobs[at],
        "bytes": choice.piece_bytes(token),
    }
    return {**entry, "top_logprobs": [entry] if g.logprobs else []}
