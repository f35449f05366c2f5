"""GIVEN what a command has to print, WHEN the output is closed, odd or hostile to markup, THEN nothing is falsified."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from qmeter.cli import main as cli
from qmeter.cli.display import show_events
from qmeter.engines import table
from qmeter.errors import StoreError
from qmeter.record import CellStatus, Quantity, Reason
from qmeter.study.events import StageStarted

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))
from test_store import STUDY, record, tables

from qmeter.store import StudyStore


class Closed(io.StringIO):
    """An output that nobody reads any more."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("as_json", [True, False])
def test_a_closed_output_interrupts_the_study_and_is_no_fault_of_a_cell(as_json: bool) -> None:
    console = Console(file=Closed())
    with pytest.raises(KeyboardInterrupt), show_events(as_json, console) as listener:
        listener(StageStarted("load", "m/f16"))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    store = StudyStore.create(tmp_path / "s", STUDY, "")
    store.write_tables("a", tables())
    store.append(record("a", metrics={"ttft_p50_s": Quantity.unknown("s", "no request")}))
    reason = Reason(kind="EngineCrashed", stage="load", message="the log ends [/INST] engines[0]", hint="read [/it]")
    store.append(record("b", CellStatus.FAILED, reasons=(reason,)))
    return str(store.folder)


def test_text_that_looks_like_markup_is_shown_as_it_is(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert cli._run(["show", folder]) == 0
    assert "[/INST] engines[0]" in capsys.readouterr().out
    assert cli._run(["query", folder, "SELECT reason AS \"[/x]\", '[/bold]' AS b FROM records"]) == 0
    assert "[/bold]" in capsys.readouterr().out


def test_advice_keeps_its_brackets(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(table, "_found", lambda need: None)
    assert cli._run(["engines"]) == 0
    assert "pip install 'qmeter[openvino]'" in capsys.readouterr().out
    assert cli._run(["doctor"]) == 0
    assert "pip install 'qmeter[openvino]'" in capsys.readouterr().out


def test_json_rows_are_json_even_where_a_value_is_no_number(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._run(["query", folder, "SELECT first_token_s FROM requests", "--json"]) == 0

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    rows = [json.loads(line, parse_constant=refuse) for line in capsys.readouterr().out.splitlines()]
    assert [r["first_token_s"] for r in rows] == [0.5, None, 2.5]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StoreError("no space left", hint="free some"), "no space left"),
        (PermissionError(13, "Permission denied", "/x/y"), "/x/y: Permission denied"),
        (ValueError("odd"), "fault of qMeter"),
    ],
)
def test_other_errors_end_with_3_not_with_the_code_of_failed_cells(
    error: Exception, said: str, folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr("qmeter.cli.read.open_results", fail)
    assert cli._run(["show", folder]) == cli.EXIT_ERROR
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_long_reason_does_not_push_the_numbers_off_and_parallelism_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli._run(["show", "h100-x2-8b-parallelism"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[:4] for line in out.splitlines() if line.strip().startswith("c2fbc7")] == [
        ["c2fbc7", "ok", "bf16", "tp2"]
    ]
    assert "4.49" in out and "awq-w4a16 +" in out
    assert out.count("both loaded 15.0 GiB") == 1  # cells that ended alike share a line
