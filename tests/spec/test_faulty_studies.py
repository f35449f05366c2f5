"""Study files with one fault each (and some with several): refused by path and reason, never with a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmeter.cli.main import EXIT_BAD_INPUT, _run
from qmeter.errors import SpecError
from qmeter.study.check import open_study
from qmeter.study.findings import HostFacts

FAULTS = sorted((Path(__file__).parent / "faults").glob("*.yaml"))
HOST = HostFacts(cores=frozenset({0, 1}), gpus=2, environment={})


def _expected(path: Path) -> dict[str, str]:
    """``# expect: PATH | FRAGMENT`` lines at the top of a file."""
    lines = [line.removeprefix("# expect: ") for line in path.read_text().splitlines() if line.startswith("# expect: ")]
    return dict(line.split(" | ", 1) for line in lines)


def test_there_are_enough_faulty_studies() -> None:
    assert len(FAULTS) >= 30


@pytest.mark.parametrize("path", FAULTS, ids=lambda p: p.stem)
def test_each_fault_is_named_by_path_reason_and_line(path: Path) -> None:
    expected = _expected(path)
    assert expected
    with pytest.raises(SpecError) as caught:
        open_study(path, HOST)
    found = dict(caught.value.faults)
    assert set(found) == set(expected), found
    for where, fragment in expected.items():
        assert fragment in found[where], found
    for where, message in found.items():
        assert "(line " in message or where == "(the file)", message
        assert len(message) < 900
    assert caught.value.hint


@pytest.mark.parametrize("path", [p for p in FAULTS if p.stem not in ("more_gpus_than_host",)], ids=lambda p: p.stem)
def test_the_command_line_refuses_it_with_exit_code_2(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = _run(["run", str(path)])
    printed = capsys.readouterr()
    assert code == EXIT_BAD_INPUT
    assert "Traceback" not in printed.err + printed.out
    assert list(tmp_path.iterdir()) == []
    # Unwrapped text: the console may break lines at its width.
    text = "".join(printed.err.split())
    assert any("".join(where.split()) in text for where in _expected(path))


def test_a_secret_in_a_url_or_key_field_is_not_repeated() -> None:
    for stem, secret in (
        ("url_with_password", "secret@"),
        ("key_instead_of_variable", "sk-abc-123"),
        ("key_in_arguments", "sk-abc-123"),
        ("key_as_unknown_key", "sk-abc-123"),
    ):
        with pytest.raises(SpecError) as caught:
            open_study(Path(__file__).parent / "faults" / f"{stem}.yaml", HOST)
        assert secret not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00bad", b"name: \x80\n", b"a: " + b"[" * 5000, b"x" * 2_000_000])
def test_hostile_bytes_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError):
        open_study(path, HOST)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(SpecError) as caught:
            open_study(path, HOST)
        assert caught.value.hint
