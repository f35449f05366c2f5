"""One made-up study folder and its report, shared by the report's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmeter.report import write_report
from qmeter.testing.records import made_study, write_made_study

pytest.importorskip("altair", reason="the report extra is not installed")


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_made_study(tmp_path_factory.mktemp("made") / "study", made_study(rates=(4, 24), window="6s")).folder


@pytest.fixture(scope="session")
def page(study_folder: Path) -> Path:
    return write_report(study_folder)
