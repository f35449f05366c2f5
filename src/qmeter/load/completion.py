"""What an OpenAI-style event says: text, finish reason, usage, an error; and how many tokens it carried.

The rule for the tokens of one event, first that applies:

1. ``usage.completion_tokens`` in the first event with tokens and on (continuous usage): what it grew by; where it comes
   with the last event alone (llama.cpp), it is the final usage;
2. ``token_ids`` of the choices: how many there are;
3. log-probabilities (``logprobs.tokens``, ``logprobs.content``): how many there are;
4. otherwise one for an event with text, and *perhaps one* for an event with empty text (a token that detokenizes to
   nothing yet), unless it only opens the message (a role).

At the end :func:`settle` squares events of rule 4 with the final usage where the server sent it: perhaps-tokens count
first; what is still missing is spread over the text events by the length of their text, since several tokens shared an
event. Without a usage, perhaps-tokens do not count.
"""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass
from typing import Any

EXACT, TEXT, PERHAPS = 0, 1, 2
"""How an event's tokens were counted: stated by the server, one for its text, perhaps one without text."""


class BadEvent(Exception):
    """An event's data is not a completion, a chat chunk, ``[DONE]`` or an error."""


_decode = json.JSONDecoder().raw_decode


@dataclass(slots=True)
class Event:
    """One event, read. ``n`` tokens counted by rule ``how``; ``n`` 0 and ``how`` EXACT for events without tokens."""

    text: str = ""
    n: int = 0
    how: int = EXACT
    finish_reason: str | None = None
    prompt_tokens: int = -1
    completion_tokens: int = -1
    error: str | None = None


def read_event(data: bytes) -> Event:
    """Read one event's data.

    Raises:
        BadEvent: it is not JSON, or JSON of another kind.
    """
    chunk = _json(data)
    if not isinstance(chunk, dict):
        raise BadEvent(f"not an object: {data[:60]!r}")
    if chunk.get("error"):
        return Event(error=_error_text(chunk["error"]))
    choices = chunk.get("choices")
    if not isinstance(choices, list):
        if chunk.get("object") == "error":
            return Event(error=_error_text(chunk))
        raise BadEvent(f"no choices: {data[:60]!r}")
    event = Event()
    usage = chunk.get("usage")
    if isinstance(usage, dict):
        event.prompt_tokens = _count(usage.get("prompt_tokens"))
        event.completion_tokens = _count(usage.get("completion_tokens"))
    for choice in choices:
        if not isinstance(choice, dict):
            raise BadEvent(f"a choice is no object: {data[:60]!r}")
        _add_choice(event, choice)
    return event


def _json(data: bytes) -> Any:
    try:
        text = data.decode()
        value, end = _decode(text)  # without the wrappers that json.loads goes through
        if end == len(text):
            return value
    except (ValueError, RecursionError):
        pass  # leading blanks, another encoding, or truly not JSON
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadEvent(f"not JSON: {data[:60]!r} ({str(error)[:60]})") from None


def _add_choice(event: Event, choice: dict[str, Any]) -> None:
    opens = False
    delta = choice.get("delta")
    if delta is None:
        delta = choice.get("message")
    if isinstance(delta, dict):
        parts = [delta.get(k) for k in ("content", "reasoning_content", "reasoning", "refusal")]
        text = "".join(p for p in parts if isinstance(p, str))
        if delta.get("tool_calls") or delta.get("function_call"):
            text = text or json.dumps(delta.get("tool_calls") or delta.get("function_call"))
        opens = "role" in delta
    else:
        given = choice.get("text")
        if given is not None and not isinstance(given, str):
            raise BadEvent("a choice's text is no string")
        text = given or ""
    event.text += text
    reason = choice.get("finish_reason")
    if isinstance(reason, str):
        event.finish_reason = reason
    stated = _stated_tokens(choice, delta)
    if stated is not None:
        event.n += stated
    elif text:
        event.n, event.how = event.n + 1, TEXT
    elif not opens and event.how is EXACT and not event.n:
        event.how = PERHAPS


def _stated_tokens(choice: dict[str, Any], delta: Any) -> int | None:
    ids = choice.get("token_ids")
    if ids is None and delta is not None and isinstance(delta, dict):
        ids = delta.get("token_ids")
    if ids is not None and isinstance(ids, list):
        return len(ids)
    logprobs = choice.get("logprobs")
    if logprobs is not None and isinstance(logprobs, dict):
        for key in ("content", "tokens"):
            if isinstance(logprobs.get(key), list) and logprobs[key]:
                return len(logprobs[key])
    return None


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else -1


def _error_text(error: Any) -> str:
    if isinstance(error, dict):
        return str(error.get("message") or error.get("type") or error)[:200]
    return str(error)[:200]


def settle(n: array[int], how: bytearray, lengths: array[int], finished: bytearray, total: int) -> array[int]:
    """Tokens of each event once the stream is over, by the rule in the module's docstring.

    Args:
        n, how, lengths, finished: per event: tokens counted, rule, characters of text, whether it carried
            a finish reason.
        total: ``completion_tokens`` of the final usage, or -1.
    """
    counts = n[:]
    for i, h in enumerate(how):
        if h == PERHAPS:
            counts[i] = 0
    missing = total - sum(counts)
    if total < 0 or missing <= 0:
        return counts
    for want_finish in (0, 1):
        for i, h in enumerate(how):
            if h == PERHAPS and missing and finished[i] == want_finish:
                counts[i], missing = 1, missing - 1
    texts = [i for i, h in enumerate(how) if h == TEXT]
    if not missing or not texts:
        return counts
    weight = sum(lengths[i] for i in texts)
    shares = [missing * lengths[i] / weight for i in texts]
    floors = [int(s) for s in shares]
    by_remainder = sorted(range(len(texts)), key=lambda j: floors[j] - shares[j])
    for j in by_remainder[: missing - sum(floors)]:
        floors[j] += 1
    for j, i in enumerate(texts):
        counts[i] += floors[j]
    return counts
