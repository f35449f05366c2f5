"""Requests of the OpenAI API, read and checked field by field; what cannot be honoured is refused, not ignored."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


class BadRequest(Exception):
    """A request to refuse: HTTP status, message, field at fault, machine-readable code."""

    def __init__(self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None):
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code

    def body(self) -> dict[str, Any]:
        """The error in the OpenAI API's shape."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Generation:
    """One checked request.

    Attributes:
        chat: whether it came to ``/v1/chat/completions``.
        prompts: each a text, a list of token ids, or (chat) a list of messages.
        max_tokens: most tokens to generate; ``None``: as many as fit.
        logprobs: log-probabilities wanted; ``None``: none.
        sampling: ``temperature``, ``top_p``, ``top_k``, ``seed`` and penalties, as the engine process takes them.
        stop: strings that end the output.
    """

    chat: bool
    prompts: tuple[Any, ...]
    n: int
    max_tokens: int | None
    stream: bool
    include_usage: bool
    echo: bool
    logprobs: int | None
    ignore_eos: bool
    stop: tuple[str, ...]
    sampling: Mapping[str, float | int]
    token_ids: bool
    tokens_as_ids: bool

    def message(self, prompt: Any, copy: int) -> dict[str, Any]:
        """What the engine process is sent for one choice."""
        kind = "chat" if self.chat else "text" if isinstance(prompt, str) else "ids"
        seed = (int(self.sampling["seed"]) + copy) % (1 << 63)
        return {kind: prompt, "max": self.max_tokens, "ignore_eos": self.ignore_eos, "echo": self.echo,
                "logprobs": self.logprobs is not None, "best": self.best, **self.sampling, "seed": seed}  # fmt: skip

    @property
    def best(self) -> int:
        """How many best next tokens to list with their log-probabilities; 0: only the chosen one's.

        The pipeline lists alternatives in one way only: beams of one token are the best tokens. So they are known for
        a request of one greedy token that stands alone, which is how a distribution is asked for position by position.
        """
        neutral = {"temperature": 0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
        alone = self.max_tokens == 1 and self.n == 1 and not (self.chat or self.stream or self.echo or self.stop)
        greedy = self.ignore_eos and all(self.sampling[name] == value for name, value in neutral.items())
        return self.logprobs if alone and greedy and (self.logprobs or 0) > 1 else 0  # type: ignore[return-value]


_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,), "suffix": ("",), "logit_bias": ({},), "tools": ([],), "tool_choice": ("none",), "functions": ([],),
    "response_format": ({"type": "text"},), "min_p": (0,), "min_tokens": (0,), "length_penalty": (1,),
    "use_beam_search": (False,), "guided_json": (), "guided_regex": (), "prompt_logprobs": (), "top_k": (0, -1),
    "audio": (), "modalities": (["text"],),
}  # fmt: skip
"""Fields that would change the output and that this server cannot honour → values that ask for nothing."""


def parse(raw: bytes, chat: bool, served_model: str) -> Generation:
    """Read a request body.

    Raises:
        BadRequest: not JSON, a field of the wrong type or range, an unknown model, an option that is not supported.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(body, dict):
        raise BadRequest(f"the body must be a JSON object, not {_kind(body)}", code="invalid_json")
    fields = _Fields(body)
    model = fields.take("model", str, served_model)
    if model != served_model:
        raise BadRequest(
            f"the model {model!r} does not exist; this server serves {served_model!r}",
            param="model", status=404, code="model_not_found",
        )  # fmt: skip
    _refuse_unsupported(body)
    logprobs = _logprobs(fields, chat)
    streams = fields.take("stream_options", dict, {}) or {}
    generation = Generation(
        chat=chat,
        prompts=_messages(body) if chat else _prompts(body),
        n=fields.number("n", int, 1, 1, 128),
        max_tokens=_max_tokens(fields, chat),
        stream=fields.take("stream", bool, False),
        include_usage=bool(streams.get("include_usage", False)),
        echo=False if chat else fields.take("echo", bool, False),
        logprobs=logprobs,
        ignore_eos=fields.take("ignore_eos", bool, False),
        stop=_stop(body.get("stop")),
        sampling=_sampling(fields),
        token_ids=fields.take("return_token_ids", bool, False),
        tokens_as_ids=fields.take("return_tokens_as_token_ids", bool, False),
    )
    _check_combination(generation)
    return generation


class _Fields:
    """Typed reading of a body's fields; null counts as absent."""

    def __init__(self, body: Mapping[str, Any]):
        self._body = body

    def take(self, name: str, kind: type, default: Any) -> Any:
        value = self._body.get(name)
        if value is None:
            return default
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise BadRequest(f"{name} must be {_NAMES[kind]}, not {_kind(value)}", param=name)
        return value

    def number(self, name: str, kind: Callable[[Any], Any], default: Any, low: float, high: float) -> Any:
        value = self._body.get(name)
        if value is None:
            return default
        whole = kind is int
        if isinstance(value, bool) or not isinstance(value, (int, float)) or (whole and value != int(value)):
            raise BadRequest(f"{name} must be {'a whole number' if whole else 'a number'}, not {value!r}", param=name)
        if not low <= value <= high:
            raise BadRequest(f"{name} must be from {low:g} to {high:g}, not {value!r}", param=name)
        return kind(value)


_NAMES = {str: "a string", bool: "true or false", dict: "an object", list: "a list"}


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "an object")


def _refuse_unsupported(body: Mapping[str, Any]) -> None:
    for name, neutral in _NEUTRAL.items():
        value = body.get(name)
        if name == "top_k" and isinstance(value, int) and not isinstance(value, bool) and value > 0:
            continue
        if value is not None and value not in neutral:
            raise BadRequest(f"{name} is not supported by the embedded server", param=name, code="unsupported")


def _prompts(body: Mapping[str, Any]) -> tuple[Any, ...]:
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return (prompt,)
    if not isinstance(prompt, list) or not prompt:
        raise BadRequest(
            "prompt must be a string, a list of token ids, or a list of these", param="prompt", code="missing"
        )
    if _is_ids(prompt):
        return (prompt,)
    if all(isinstance(p, str) or (isinstance(p, list) and p and _is_ids(p)) for p in prompt):
        return tuple(prompt)
    raise BadRequest("prompt mixes what is neither text nor a list of token ids", param="prompt")


def _is_ids(values: list[Any]) -> bool:
    return all(type(v) is int for v in values)


def _messages(body: Mapping[str, Any]) -> tuple[Any, ...]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages must be a list with at least one message", param="messages")
    plain = []
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest(f"{where} must be an object with a role", param=where)
        content = message.get("content")
        if isinstance(content, list):
            if not all(
                isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content
            ):
                raise BadRequest(f"{where}.content has parts that are not text", param=where, code="unsupported")
            content = "".join(p["text"] for p in content)
        if not isinstance(content, str):
            raise BadRequest(f"{where}.content must be text", param=where)
        plain.append({"role": message["role"], "content": content})
    return (plain,)


def _max_tokens(fields: _Fields, chat: bool) -> int | None:
    if chat:
        newer = fields.number("max_completion_tokens", int, None, 1, 1 << 30)
        older = fields.number("max_tokens", int, None, 1, 1 << 30)
        return older if newer is None else newer  # type: ignore[no-any-return]
    return fields.number("max_tokens", int, 16, 0, 1 << 30)  # type: ignore[no-any-return]


def _logprobs(fields: _Fields, chat: bool) -> int | None:
    if not chat:
        return fields.number("logprobs", int, None, 0, 20)  # type: ignore[no-any-return]
    if not fields.take("logprobs", bool, False):
        return None
    return fields.number("top_logprobs", int, 0, 0, 20)  # type: ignore[no-any-return]


def _stop(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or len(items) > 16 or not all(isinstance(s, str) and s for s in items):
        raise BadRequest("stop must be a string or a list of at most 16 strings, none empty", param="stop")
    return tuple(items)


def _sampling(fields: _Fields) -> dict[str, float | int]:
    return {
        "temperature": fields.number("temperature", float, 1.0, 0, 100),
        "top_p": fields.number("top_p", float, 1.0, 1e-6, 1),
        "top_k": max(fields.number("top_k", int, 0, -1, 1 << 20), 0),
        "seed": fields.number("seed", int, 0, 0, (1 << 63) - 1),
        "repetition_penalty": fields.number("repetition_penalty", float, 1.0, 1e-6, 100),
        "presence_penalty": fields.number("presence_penalty", float, 0.0, -2, 2),
        "frequency_penalty": fields.number("frequency_penalty", float, 0.0, -2, 2),
    }


def _check_combination(g: Generation) -> None:
    if g.max_tokens == 0 and not g.echo:
        raise BadRequest("max_tokens must be 1 or more, except with echo", param="max_tokens")
    if g.echo and g.stream:
        raise BadRequest("echo is not supported together with stream", param="echo", code="unsupported")
    if g.stream and len(g.prompts) * g.n > 1:
        raise BadRequest("stream takes one prompt and n = 1 here", param="stream", code="unsupported")
