"""GIVEN a byte-level vocabulary, WHEN tokens come one at a time, THEN text is whole characters and none is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmeter.engines.openvino.detokenize import Stream, Vocabulary

BYTES = Vocabulary([bytes([i]) for i in range(256)] + [b"<|end|>", None], frozenset({256}))


def pushed(text: bytes, stop: tuple[str, ...] = ()) -> tuple[list[str], Stream]:
    stream = Stream(BYTES, stop)
    pieces = [stream.push(b) for b in text]
    return [*pieces, stream.finish()], stream


@given(st.text())
def test_any_text_comes_back_whole_one_byte_a_token(text: str) -> None:
    pieces, _ = pushed(text.encode())
    assert "".join(pieces) == text
    assert len(pieces) == len(text.encode()) + 1


def test_a_character_appears_with_its_last_byte() -> None:
    pieces, _ = pushed("é".encode())
    assert pieces == ["", "é", ""]


@given(st.binary(max_size=30))
def test_invalid_bytes_become_replacement_characters_as_the_whole_decode_would(raw: bytes) -> None:
    pieces, _ = pushed(raw)
    assert "".join(pieces) == raw.decode("utf-8", "replace")


def test_a_cut_off_character_is_shown_at_the_end() -> None:
    pieces, _ = pushed("🙂".encode()[:3])
    assert pieces == ["", "", "", "\ufffd"]


@pytest.mark.parametrize("token", [256, 257, 258, -1, 10**9])
def test_special_and_unknown_tokens_have_no_text(token: int) -> None:
    assert Stream(BYTES).push(token) == ""


def test_names_keep_special_tokens_and_survive_unknown_ones() -> None:
    assert (BYTES.name(256), BYTES.name(65), BYTES.name(257), BYTES.name(0xC3)) == ("<|end|>", "A", "<257>", "\ufffd")


@pytest.mark.parametrize(
    ("text", "stop", "shown", "stopped"),
    [
        (b"abcSTOPdef", ("STOP",), "abc", True),
        (b"abcSTO", ("STOP",), "abcSTO", False),
        (b"aSTSTOPb", ("STOP",), "aST", True),
        (b"abc", ("c", "b"), "a", True),
        (b"\n\nx", ("\n\n",), "", True),
    ],
)
def test_a_stop_string_ends_the_text_and_is_left_out(
    text: bytes, stop: tuple[str, ...], shown: str, stopped: bool
) -> None:
    pieces, stream = pushed(text, stop)
    assert "".join(pieces) == shown
    assert stream.stopped is stopped


@given(st.text(alphabet="ab\n", max_size=20), st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3))
def test_stop_strings_cut_at_the_first_hit_as_seen_token_by_token(text: str, stop: list[str]) -> None:
    pieces, _ = pushed(text.encode(), tuple(stop))
    ends = [text.find(s) + len(s) for s in stop if s in text]
    expected = text
    if ends:
        seen = text[: min(ends)]
        expected = seen[: min(seen.find(s) for s in stop if s in seen)]
    assert "".join(pieces) == expected
