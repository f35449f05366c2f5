"""Shared fixtures, and what no test module may leave behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from qmeter import sources
from qmeter.engines import table

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it puts in the background without Ctrl-C, and children inherit that: tests of it need it back.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def tables_are_put_back() -> Iterator[None]:
    """The engines' table and the fetching of models are this process's: a fake left there reaches every later test."""

    def held() -> dict[str, object]:
        return {"prepare": sources.prepare, "engines": dict(table.ENGINES._rows), "traits": dict(table.TRAITS)}

    before = held()
    yield
    left = [name for name, value in held().items() if value != before[name]]
    assert not left, f"this module's tests left their own {', '.join(left)} behind: patch them with monkeypatch"
