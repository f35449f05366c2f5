"""Server-sent events passed through, whole ones only: an error can follow cleanly wherever a stream breaks."""

from __future__ import annotations

import json

DONE = b"data: [DONE]"
_FINISHED = (DONE, b'"finish_reason":"', b'"finish_reason": "', b'"type":"message_stop"')
MOST_HELD_BYTES = 4 << 20
"""An event longer than this is passed on in parts."""


class Relay:
    """Cuts a stream at the ends of events, and knows whether the answer was finished.

    Attributes:
        finished: the stream said how it ended (``[DONE]`` or a finish reason).
    """

    def __init__(self) -> None:
        self.finished = False
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What may go to the client now: everything up to the last whole event."""
        data = self._held + data if self._held else data
        if data.endswith(b"\n\n"):
            cut = len(data)
        else:
            cut = max(data.rfind(b"\n\n") + 2, data.rfind(b"\r\n\r\n") + 4)
            cut = cut if cut >= 4 or data[:2] == b"\n\n" else 0
        if not cut and len(data) > MOST_HELD_BYTES:
            cut = len(data)
        out, self._held = data[:cut], data[cut:]
        if not self.finished and any(mark in out for mark in _FINISHED):
            self.finished = True
        return out

    def rest(self) -> bytes:
        """What is left at the end of a stream that ended properly."""
        held, self._held = self._held, b""
        return held


def is_error(event: bytes) -> bool:
    """Whether a stream's first event is an error rather than a token."""
    if not event.startswith(b"data:") or b'"error"' not in event[:400]:
        return False
    try:
        data = json.loads(event[5:].split(b"\n\n", 1)[0])
    except ValueError:
        return False
    return isinstance(data, dict) and bool(data.get("error")) and not data.get("choices")


def error_body(message: str, kind: str, code: str) -> bytes:
    """OpenAI's error object."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


def error_event(message: str, code: str) -> bytes:
    """An error inside a stream."""
    return b"data: " + error_body(message, "upstream_error", code) + b"\n\n"
