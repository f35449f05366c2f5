"""Several results read as one, to compare them: studies or profiles of other devices, engines or days."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qmeter.record import CellTables, Record
from qmeter.spec.study import Study
from qmeter.store.profile import Results


class Merged:
    """The records of several results.

    The same study run elsewhere has the same cell ids, so each gets its source's number.

    Attributes:
        folder: of nothing on the disk: what lies beside one of them (a roofline) is not true of the others.
    """

    folder = Path("several results")

    def __init__(self, sources: Sequence[Results]):
        self._sources = list(sources)

    @property
    def study(self) -> Study:
        """The first one's, under the names of all."""
        names = dict.fromkeys(source.study.name for source in self._sources)
        return self._sources[0].study.model_copy(update={"name": " + ".join(names)})

    def records(self) -> list[Record]:
        """Every record of every source, in their order."""
        return [_numbered(record, k) for k, source in enumerate(self._sources) for record in source.records()]

    def tables(self, record: Record) -> CellTables:
        """The record's tables, from its source."""
        name, _, number = record.cell_id.rpartition("@")
        return self._sources[int(number)].tables(record.model_copy(update={"cell_id": name}))


def _numbered(record: Record, source: int) -> Record:
    neighbours = tuple(
        n.model_copy(update={"cell_id": f"{n.cell_id}@{source}"}) if n.cell_id else n for n in record.neighbours
    )
    return record.model_copy(update={"cell_id": f"{record.cell_id}@{source}", "neighbours": neighbours})
