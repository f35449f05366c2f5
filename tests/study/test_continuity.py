"""GIVEN a study folder to go on with, WHEN something is not what it was, THEN it is refused or said."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import qmeter
from qmeter.engines.base import Artifact
from qmeter.errors import IncompatibleRecords
from qmeter.record import CellStatus, Provenance, Record, RecordKind
from qmeter.spec.study import expand
from qmeter.study import provenance
from qmeter.study.continuity import changes, require_known_cells, require_same_model

sys.path.insert(0, str(Path(__file__).parent))
import fake_study as fakes

CELLS = expand(fakes.fake_study())


def record(cell_id: str, sha256: str = "a" * 64, **versions: str) -> Record:
    cell = CELLS[0]
    return Record(
        kind=RecordKind.MEASURED, study="s", cell_id=cell_id, deployment_id=cell.deployment.id, status=CellStatus.OK,
        cell=cell.model_dump(mode="json"),
        provenance=Provenance(
            qmeter_version=qmeter.__version__, git_commit=None, started_unix_s=0.0, host=provenance.host(),
            versions={**provenance.versions(), **versions}, engine_command=None, engine_env={}, model={},
            hashes={"model_sha256": sha256}, seed=1,
        ),
    )  # fmt: skip


def test_records_of_cells_that_the_study_does_not_have_are_refused() -> None:
    require_known_cells(CELLS, [record(CELLS[0].id)])
    with pytest.raises(IncompatibleRecords, match="1 of 2 records") as caught:
        require_known_cells(CELLS, [record(CELLS[0].id), record("another")])
    assert "--out" in (caught.value.hint or "")


def test_another_model_under_the_same_name_is_refused() -> None:
    deployment = CELLS[0].deployment
    require_same_model(deployment, Artifact(Path("m"), "gguf", "a" * 64), [record(CELLS[0].id)])
    with pytest.raises(IncompatibleRecords, match="bbbbbbbbbbbb"):
        require_same_model(deployment, Artifact(Path("m"), "gguf", "b" * 64), [record(CELLS[0].id)])


def test_another_version_of_an_engine_is_a_warning() -> None:
    assert changes([record("a")]) == []
    (reason,) = changes([record("a", numpy="0.1")])
    assert "numpy 0.1 →" in reason.message and reason.hint
