"""GIVEN rates that were held and missed, WHEN calibrate tells of them, THEN it says whose limit was found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qmeter.cli.main import EXIT_ERROR, EXIT_OK, _run
from qmeter.load.limits import load_limits
from qmeter.testing import calibration
from qmeter.testing.busy_host import Stolen
from qmeter.testing.calibration import Point

QUIET, TAKEN = Stolen(0.005, 4e-3), Stolen(0.3, 8e-3)


@pytest.fixture(autouse=True)
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def tell(monkeypatch: pytest.MonkeyPatch, points: list[Point]) -> None:
    def climb(seconds: float) -> list[Point]:
        return points

    monkeypatch.setattr(calibration, "climb", climb)


def point(rate_hz: float, *, lost: int = 0, server_late_s: float = 1e-4, host: Stolen | None = None) -> Point:
    return Point(rate_hz, rate_hz, 1e-4, 1e-5, 1e-4, 1e-4, 1e-4, 0.3, 1e-4, server_late_s, rate_hz * 64, lost, (), host)


def test_a_limit_found_on_a_quiet_host_names_the_ground_truth_where_that_was_the_limit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a neighbour at 50/s, gone at the second try, and a server late at 800/s
    first = point(50.0, lost=3, host=TAKEN)
    tell(monkeypatch, [first, point(50.0), point(700.0), point(800.0, lost=1, server_late_s=5e-3, host=QUIET)])
    assert _run(["calibrate"]) == EXIT_OK
    out = capsys.readouterr().out
    assert "not held: 3 requests lost; the host was disturbed: a loop that only reads the clock missed 30.0%" in out
    assert "holds 700 requests/s" in out and "the ground truth itself was at its limit" in out
    assert "while higher rates were tried" not in out
    kept = load_limits()
    assert kept is not None and kept.requests_hz == 700.0


def test_a_limit_found_on_a_disturbed_host_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(monkeypatch, [point(100.0), point(200.0, lost=1, host=TAKEN)])
    assert _run(["calibrate", "--dry-run"]) == EXIT_OK
    assert "this host was disturbed while higher rates were tried" in capsys.readouterr().out
    assert load_limits() is None, "a dry run keeps nothing"
    assert _run(["calibrate", "--json"]) == EXIT_OK
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[1]["held"] is False and lines[1]["host"]["share"] == 0.3
    assert lines[-1]["limits"]["requests_hz"] == 100.0


def test_where_nothing_is_held_the_reason_stands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(monkeypatch, [point(50.0, lost=1, host=QUIET)])
    assert _run(["calibrate"]) == EXIT_ERROR
    assert "did not hold even 50 requests/s" in capsys.readouterr().err
    assert load_limits() is None
