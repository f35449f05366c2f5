"""Token ids to text, one token at a time, with characters that span tokens kept whole."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Vocabulary:
    """Token id → its bytes; special tokens are bytes too, and are left out of text on request.

    Args:
        pieces: the bytes of each token id; ``None`` for an id without a token.
        special: ids that mark structure (end of sequence, roles), not text.
    """

    def __init__(self, pieces: Sequence[bytes | None], special: frozenset[int] = frozenset()):
        self._pieces, self.special = pieces, special

    def __len__(self) -> int:
        return len(self._pieces)

    def piece(self, token: int) -> bytes:
        """The bytes of one token; a special or unknown one has none."""
        if token in self.special or not 0 <= token < len(self._pieces):
            return b""
        return self._pieces[token] or b""

    def name(self, token: int) -> str:
        """The token as text for people and log-probabilities: special ones by their name, broken bytes replaced."""
        raw = self._pieces[token] if 0 <= token < len(self._pieces) else None
        return raw.decode("utf-8", "replace") if raw is not None else f"<{token}>"

    def text(self, tokens: Sequence[int]) -> str:
        """The text of a whole sequence."""
        return b"".join(map(self.piece, tokens)).decode("utf-8", "replace")


class Stream:
    """The text of one sequence as its tokens arrive; stop strings end it and are left out.

    A token that ends inside a character, or inside what may become a stop string, gives no text yet: later tokens or
    :meth:`finish` give it.
    """

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str] = ()):
        self._piece = vocabulary.piece
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(s for s in stop if s)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that ``token`` makes certain."""
        if self.stopped:
            return ""
        text = self._decoder.decode(self._piece(token))
        return self._release(text) if self._stop else text

    def finish(self) -> str:
        """What is left at the end: held text, and a replacement character for a character that never ended."""
        if self.stopped:
            return ""
        text = self._decoder.decode(b"", final=True)
        if not self._stop:
            return text
        return self._release(text) + self._drain()

    def _drain(self) -> str:
        held, self._held = ("" if self.stopped else self._held), ""
        return held

    def _release(self, text: str) -> str:
        pending = self._held + text
        hits = [at for at in (pending.find(s) for s in self._stop) if at >= 0]
        if hits:
            self.stopped, self._held = True, ""
            return pending[: min(hits)]
        keep = max((n for s in self._stop for n in range(1, len(s)) if pending.endswith(s[:n])), default=0)
        self._held = pending[len(pending) - keep :] if keep else ""
        return pending[: len(pending) - keep]
