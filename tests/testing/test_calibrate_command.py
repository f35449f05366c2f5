"""``qmeter calibrate``: what it prints, what it keeps, and what it says when nothing was held."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from qmeter.cli.calibrate import calibrate
from qmeter.errors import LoadError
from qmeter.load import load_limits
from qmeter.testing import calibration
from qmeter.workload.schedule import Schedule


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
