"""``qmeter calibrate``: what it prints, what it keeps, and what it says when nothing was held."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from qmeter.cli.calibrate import calibrate
from qmeter.cli.main import EXIT_ERROR, EXIT_OK, _run
from qmeter.errors import LoadError
from qmeter.load import load_limits
from qmeter.testing import calibration
from qmeter.testing.busy_host import Stolen
from qmeter.workload.schedule import Schedule

QUIET, TAKEN = Stolen(0.005, 4e-3), Stolen(0.3, 8e-3)


def point(rate_hz: float, **changes: object) -> calibration.Point:
    values: dict[str, object] = {
        "rate_hz": rate_hz, "sent_hz": rate_hz, "send_error_p99_s": 1e-4, "ttft_mean_s": 1e-5, "ttft_p99_s": 1.5e-4,
        "ttft_intended_p99_s": 1e-4, "itl_p99_s": 1e-4, "cpu_share": 0.3, "lateness_p99_s": 1e-4,
        "server_late_p99_s": 1e-4, "events_hz": rate_hz * 64, "lost": 0, "failures": (),
    }  # fmt: skip
    return calibration.Point(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> typer.Typer:
    def up_to_300(schedule: Schedule) -> calibration.Point:
        rate = schedule.law[1]["rate_hz"]
        return point(rate, failures=("the client sent late",) if rate > 300 else ())

    monkeypatch.setattr(calibration, "measure", up_to_300)
    monkeypatch.setattr(calibration, "stolen", lambda cores: QUIET)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    made = typer.Typer()
    made.command()(calibrate)
    return made


def test_it_prints_a_table_and_keeps_the_limits(app: typer.Typer) -> None:
    done = CliRunner().invoke(app, [])
    assert done.exit_code == 0
    assert "one client process holds 300 requests/s, 19200 token events/s" in done.output
    assert done.output.count("not held: the client sent late") == 2
    assert "0.150" in done.output
    found = load_limits()
    assert found is not None and found.requests_hz == 300.0


def test_json_gives_a_line_a_point_and_the_limits(app: typer.Typer) -> None:
    done = CliRunner().invoke(app, ["--json", "--dry-run"])
    lines = [json.loads(line) for line in done.output.splitlines()]
    assert [p["held"] for p in lines[:-1]] == [True, True, True, False, True, False]
    assert lines[-1]["limits"]["requests_hz"] == 300.0
    assert load_limits() is None


def test_a_host_that_holds_nothing_is_an_error_with_a_next_step(
    app: typer.Typer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "measure", lambda _: point(50.0, lost=3))
    done = CliRunner().invoke(app, [])
    assert isinstance(done.exception, LoadError)
    assert "qmeter doctor" in str(done.exception)
    assert load_limits() is None


def tell(monkeypatch: pytest.MonkeyPatch, home: Path, points: list[calibration.Point]) -> None:
    monkeypatch.setattr(calibration, "climb", lambda seconds: points)
    monkeypatch.setenv("XDG_STATE_HOME", str(home))


def test_a_limit_found_on_a_quiet_host_names_the_ground_truth_where_that_was_the_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN a neighbour at 50/s, gone at the second try, and a server late at 800/s
    first = point(50.0, lost=3, host=TAKEN)
    tell(
        monkeypatch,
        tmp_path,
        [first, point(50.0), point(700.0), point(800.0, lost=1, server_late_p99_s=5e-3, host=QUIET)],
    )
    assert _run(["calibrate"]) == EXIT_OK
    out = capsys.readouterr().out
    assert "not held: 3 requests lost; the host was disturbed: a loop that only reads the clock missed 30.0%" in out
    assert "holds 700 requests/s" in out and "the ground truth itself was at its limit" in out
    assert "while higher rates were tried" not in out
    kept = load_limits()
    assert kept is not None and kept.requests_hz == 700.0


def test_a_limit_found_on_a_disturbed_host_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(monkeypatch, tmp_path, [point(100.0), point(200.0, lost=1, host=TAKEN)])
    assert _run(["calibrate", "--dry-run"]) == EXIT_OK
    assert "this host was disturbed while higher rates were tried" in capsys.readouterr().out
    assert load_limits() is None, "a dry run keeps nothing"
    assert _run(["calibrate", "--json"]) == EXIT_OK
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[1]["held"] is False and lines[1]["host"]["share"] == 0.3
    assert lines[-1]["limits"]["requests_hz"] == 100.0


def test_where_nothing_is_held_the_reason_stands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(monkeypatch, tmp_path, [point(50.0, lost=1, host=QUIET)])
    assert _run(["calibrate"]) == EXIT_ERROR
    assert "did not hold even 50 requests/s" in capsys.readouterr().err
    assert load_limits() is None
