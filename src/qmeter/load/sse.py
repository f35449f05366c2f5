"""Server-sent events, incrementally: any split, ``\\n``, ``\\r\\n`` or ``\\r`` line ends, multi-line data."""

from __future__ import annotations

MAX_EVENT_BYTES = 16 << 20
"""An event longer than this is garbage."""


class EventTooLong(Exception):
    """An event grew past :data:`MAX_EVENT_BYTES` without ending."""


class EventReader:
    """Takes bytes, gives ``(event name, data)`` of each event as its blank line arrives.

    Comments and keep-alives give nothing; an event without data gives nothing (as the standard says).
    """

    __slots__ = ("_first", "_skip_lf", "_tail")

    def __init__(self) -> None:
        self._tail = b""
        self._first = True
        self._skip_lf = False

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """The events that end in ``data``.

        Raises:
            EventTooLong: no event ends in a very long stretch of bytes.
        """
        if self._skip_lf and data:
            self._skip_lf = False
            if data[:1] == b"\n":
                data = data[1:]
        if b"\r" in data:
            self._skip_lf = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        text = self._tail + data if self._tail else data
        if self._first and text:
            if text.startswith(b"\xef\xbb\xbf"):
                text = text[3:]
            elif b"\xef\xbb\xbf".startswith(text):  # a byte order mark, half arrived
                self._tail = text
                return []
            self._first = False
        blocks = text.split(b"\n\n")
        self._tail = blocks.pop()
        if len(self._tail) > MAX_EVENT_BYTES:
            raise EventTooLong(f"an event of over {MAX_EVENT_BYTES} bytes")
        if not blocks:
            return []
        return [event for block in blocks if block and (event := _event(block)) is not None]

    def rest(self) -> list[tuple[bytes, bytes]]:
        """What stands after the last blank line, read as one event (servers that end without one)."""
        tail, self._tail = self._tail, b""
        event = _event(tail) if tail else None
        return [] if event is None else [event]


def _event(block: bytes) -> tuple[bytes, bytes] | None:
    if block.startswith(b"data: ") and b"\n" not in block:
        return b"", block[6:]
    name = b""
    data: list[bytes] = []
    for line in block.split(b"\n"):
        field, colon, value = line.partition(b":")
        if colon and value.startswith(b" "):
            value = value[1:]
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
        elif field not in (b"", b"id", b"retry") and not data and not name:
            return b"\xff", line  # not a field of the standard: the reader above calls it garbage
    return (name, b"\n".join(data)) if data else None
