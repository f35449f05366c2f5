"""A small client of ``/v1/completions`` for scoring: token ids in, token ids and log-probabilities out.

Shapes understood (the first that is present wins):

==========================  ==================================================================================
prompt log-probabilities    vLLM's ``choices[].prompt_logprobs``: a list over prompt tokens of ``None`` or
                            ``{"<id>": {"logprob": …, "rank": …}}``; then the ``echo`` form that OpenAI defined,
                            ``choices[].logprobs.{tokens, token_logprobs, top_logprobs}`` over prompt (+ 1 token)
token ids                   ``choices[].token_ids`` and ``choices[].prompt_token_ids`` (``return_token_ids``); then
                            tokens spelled ``token_id:<id>`` (``return_tokens_as_token_ids``)
==========================  ==================================================================================

vLLM (read in 0.25): ``echo`` with ``max_tokens`` 0 scores the prompt and returns no generated token; its
``top_logprobs`` holds the ``logprobs`` best tokens and the prompt's own token, of which it may be one or not; values
below -9999 are cut there; entries are raw log-probabilities (before temperature); the first prompt token has none.
Extensions that a server refuses with 400 or 422 are left out on the next try, and what was left out is remembered.
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from qmeter.errors import QualityError
from qmeter.load.target import Target

T = TypeVar("T")
R = TypeVar("R")

FLOOR = -9999.0
"""The smallest log-probability that JSON carries (vLLM writes -inf as this)."""

_DIALECTS: tuple[dict[str, Any], ...] = (
    {"return_token_ids": True, "return_tokens_as_token_ids": True, "top_k": 0, "repetition_penalty": 1.0},
    {"return_token_ids": True, "return_tokens_as_token_ids": True},
    {},
)
"""Extra request fields, tried in this order. The first also switches off sampling defaults that a model's
``generation_config.json`` may carry (vLLM applies them unless the request says otherwise)."""


@dataclass(frozen=True)
class Answer:
    """One completion.

    Attributes:
        text: generated text.
        prompt_ids, ids: token ids of prompt and continuation, ``None`` where the server gives none.
        logprobs: of each generated token (nat); ``None`` where the server gives none.
        top: for each generated token the best alternatives, id → log-probability; ``None`` where not given.
    """

    text: str
    prompt_ids: tuple[int, ...] | None
    ids: tuple[int, ...] | None
    logprobs: tuple[float, ...] | None
    top: tuple[dict[int, float], ...] | None


@dataclass(frozen=True)
class PromptScores:
    """Log-probabilities of a prompt's own tokens, aligned to them; the first token has none (NaN and ``{}``)."""

    logprobs: tuple[float, ...]
    top: tuple[dict[int, float], ...] | None


class Completions:
    """Requests to one target; safe to call from several threads.

    Args:
        target: where to send; its headers go with every request and appear in no message.
        retries: extra tries after a connection failure or a 429/503, one second apart.
        plain: ask with the OpenAI API's own fields alone, as the load client does.
    """

    def __init__(self, target: Target, *, retries: int = 3, plain: bool = False):
        self._target, self._retries, self._dialect = target, retries, len(_DIALECTS) - 1 if plain else 0

    def generate(
        self, prompt: str | Sequence[int], tokens: int, *, temperature: float = 0.0, seed: int = 0, top: int = 0,
        ignore_eos: bool = False,
    ) -> Answer:  # fmt: skip
        """A continuation of at most ``tokens`` tokens: greedy at ``temperature`` 0, else sampled from everything.

        Raises:
            QualityError: the server refused, failed or answered what cannot be read.
        """
        body = {"prompt": _plain(prompt), "max_tokens": tokens, "temperature": temperature, "top_p": 1.0,
                "logprobs": max(top, 1), "ignore_eos": ignore_eos}  # fmt: skip
        if temperature > 0:
            body["seed"] = seed
        return _answer(self.post(body))

    def score(self, ids: Sequence[int], *, top: int = 0) -> PromptScores:
        """Log-probabilities of a prompt's own tokens, in one prefill and without generating.

        Raises:
            QualityError: the server gives no prompt log-probabilities, or not one a token.
        """
        body = {"prompt": list(ids), "max_tokens": 0, "temperature": 0.0, "echo": True, "logprobs": max(top, 1)}
        try:
            reply = self.post(body)
        except QualityError as error:
            if not str(error.message).startswith("HTTP 4"):
                raise
            reply = self.post({**body, "max_tokens": 1})
        return _prompt_scores(reply, ids)

    def post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON answer to one request, in the richest dialect that this server takes.

        Raises:
            QualityError: as :meth:`generate`.
        """
        while True:
            dialect = self._dialect
            payload = {"model": self._target.model, **body, **_DIALECTS[dialect]}
            if dialect == len(_DIALECTS) - 1:
                payload.pop("ignore_eos", None)
            status, text = self._send(json.dumps(payload))
            if status in (400, 422) and dialect + 1 < len(_DIALECTS) and _names_extension(text, payload):
                self._dialect = max(self._dialect, dialect + 1)
                continue
            if status != 200:
                raise QualityError(
                    f"HTTP {status} from {self._target.path}: {text[:300]}",
                    stage="quality",
                    hint="see the engine's log; the endpoint must take token-id prompts, echo and logprobs",
                )
            reply = _json_object(text)
            return reply

    def _send(self, payload: str) -> tuple[int, str]:
        failure = ""
        for attempt in range(self._retries + 1):
            if attempt:
                time.sleep(1.0)
            try:
                status, text = self._once(payload)
            except (OSError, http.client.HTTPException) as error:
                failure = f"{type(error).__name__}: {error}"
                continue
            if status not in (429, 503):
                return status, text
            failure = f"HTTP {status}"
        raise QualityError(
            f"no answer from {self._target.base_url} after {self._retries + 1} tries ({failure})",
            stage="quality", hint="check that the server still runs (its log is in the cell's folder)",
        )  # fmt: skip

    def _once(self, payload: str) -> tuple[int, str]:
        url = urlsplit(self._target.base_url)
        connection = _connect(self._target, url.scheme, url.hostname or "127.0.0.1", url.port)
        try:
            headers = {**self._target.headers, "Content-Type": "application/json"}
            connection.request("POST", url.path.rstrip("/") + self._target.path, payload.encode(), headers)
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8", "replace")
        finally:
            connection.close()


def each(work: Callable[[T], R], items: Sequence[T], concurrency: int) -> list[R]:
    """``work`` of every item, at most ``concurrency`` at once, results in order; the first failure is raised."""
    with ThreadPoolExecutor(max_workers=max(1, min(concurrency, len(items) or 1))) as pool:
        return list(pool.map(work, items))


def _connect(target: Target, scheme: str, host: str, port: int | None) -> http.client.HTTPConnection:
    via = urlsplit(target.proxy) if target.proxy else None
    where = (via.hostname or "", via.port) if via else (host, port)
    if scheme == "https":
        context = ssl.create_default_context(cafile=target.ca_file)
        secure = http.client.HTTPSConnection(*where, timeout=target.timeout_s, context=context)
        if via:
            secure.set_tunnel(host, port or 443)
        return secure
    plain = http.client.HTTPConnection(*where, timeout=target.timeout_s)
    if via:
        plain.set_tunnel(host, port or 80)
    return plain


def _names_extension(text: str, payload: Mapping[str, Any]) -> bool:
    """Whether a refusal can be about a field beyond the OpenAI API (an error that names none is taken as one)."""
    extra = ("return_token_ids", "return_tokens_as_token_ids", "top_k", "repetition_penalty", "ignore_eos")
    known = ("prompt", "max_tokens", "echo", "logprobs", "temperature", "context", "model")
    lowered = text.lower()
    return any(name in lowered for name in extra if name in payload) or not any(name in lowered for name in known)


def _plain(prompt: str | Sequence[int]) -> str | list[int]:
    return prompt if isinstance(prompt, str) else list(prompt)


def _json_object(text: str) -> dict[str, Any]:
    try:
        reply = json.loads(text)
    except ValueError:
        reply = None
    if not isinstance(reply, dict) or not reply.get("choices"):
        raise QualityError(f"the answer is no completion: {text[:200]!r}", stage="quality")
    return reply


def _answer(reply: Mapping[str, Any]) -> Answer:
    choice = reply["choices"][0]
    detail = choice.get("logprobs") or {}
    ids = choice.get("token_ids") or _spelled(detail.get("tokens"))
    logprobs = detail.get("token_logprobs")
    prompt_ids = choice.get("prompt_token_ids") or reply.get("prompt_token_ids")
    return Answer(
        text=choice.get("text") or "",
        prompt_ids=None if prompt_ids is None else tuple(int(i) for i in prompt_ids),
        ids=None if ids is None else tuple(int(i) for i in ids),
        logprobs=None if not logprobs or any(v is None for v in logprobs) else tuple(float(v) for v in logprobs),
        top=_tops(detail.get("top_logprobs")),
    )


def _prompt_scores(reply: Mapping[str, Any], ids: Sequence[int]) -> PromptScores:
    choice, n = reply["choices"][0], len(ids)
    listed = choice.get("prompt_logprobs") or reply.get("prompt_logprobs")
    if listed:
        tops = tuple({int(k): float(v["logprob"]) for k, v in (entry or {}).items()} for entry in listed)
        values: list[float | None] = [t.get(i) for t, i in zip(tops, ids, strict=False)]
        top: tuple[dict[int, float], ...] | None = tops
    else:
        detail = choice.get("logprobs") or {}
        values = list(detail.get("token_logprobs") or [])
        spelled = _spelled(detail.get("tokens"))
        if spelled is not None and spelled[:n] != tuple(ids):
            raise QualityError("the server echoed other token ids than were sent", stage="quality")
        top = _tops(detail.get("top_logprobs"))
    if len(values) < n or any(v is None for v in values[1:n]):
        raise QualityError(
            f"asked for {n} prompt log-probabilities, got {sum(v is not None for v in values)}",
            stage="quality", hint="the endpoint must return prompt log-probabilities (echo with logprobs)",
        )  # fmt: skip
    known = [float("nan")] + [max(float(v), FLOOR) for v in values[1:n] if v is not None]
    return PromptScores(tuple(known), None if top is None else top[:n])


def _spelled(tokens: Sequence[str] | None) -> tuple[int, ...] | None:
    """Ids out of ``token_id:<id>`` spellings; ``None`` where the tokens are text."""
    if not tokens or not all(isinstance(t, str) and t.startswith("token_id:") for t in tokens):
        return None
    return tuple(int(t.removeprefix("token_id:")) for t in tokens)


def _tops(entries: Sequence[Mapping[str, float] | None] | None) -> tuple[dict[int, float], ...] | None:
    """Alternatives by id; ``None`` where there are none or they are spelled as text (ids would be guesses)."""
    if not entries or not any(entries):
        return None
    tops = []
    for entry in entries:
        if entry and not all(k.startswith("token_id:") for k in entry):
            return None
        tops.append({int(k.removeprefix("token_id:")): max(float(v), FLOOR) for k, v in (entry or {}).items()})
    return tuple(tops) if any(len(t) > 1 for t in tops) else None
