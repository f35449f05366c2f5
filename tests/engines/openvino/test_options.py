"""GIVEN server options, WHEN they cross a command line, THEN they come back the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmeter.engines.openvino.options import ServerOptions, parse, to_argv


def test_options_round_trip(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.touch()
    options = ServerOptions(model, 8000, "name", (("A", "1"), ("B", "u8")), 7, 8, 9, 10, True, 11)
    assert parse(to_argv(options)) == options
    assert options.property_map == {"A": 1, "B": "u8"}


@pytest.mark.parametrize("extra", [["--property", "A"], ["--kv-blocks", "0"], ["--port", "x"], ["--model", "/no/such"]])
def test_faults_end_with_status_2(tmp_path: Path, extra: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "m.gguf"
    model.touch()
    with pytest.raises(SystemExit) as ended:
        parse(["--model", str(model), "--port", "8000", *extra])
    assert ended.value.code == 2
    assert extra[0] in capsys.readouterr().err
