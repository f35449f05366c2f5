"""Several results read as one, to compare them: studies or profiles of other devices, engines or days."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from qmeter.record import CellTables, Reason, Record
from qmeter.spec.study import Study
from qmeter.store.profile import Results


class Merged:
    """The records of several results, each measurement once.

    The same study run elsewhere has the same cell ids, so each gets its source's number. One measurement that several
    sources hold (a source named twice; a profile and the study's folder that it was made from) is taken from the first
    of them: it is no repeat of itself. The same cell measured again, or on another host, has another start, and stays.

    Args:
        names: what to call the sources in warnings; by default their numbers.

    Attributes:
        folder: of nothing on the disk: what lies beside one of them (a roofline) is not true of the others.
    """

    folder = Path("several results")

    def __init__(self, sources: Sequence[Results], names: Sequence[str] = ()):
        self._sources = list(sources)
        self._names = list(names) or [f"result {k + 1}" for k in range(len(self._sources))]

    @property
    def study(self) -> Study:
        """The first one's, under the names of all."""
        names = dict.fromkeys(source.study.name for source in self._sources)
        return self._sources[0].study.model_copy(update={"name": " + ".join(names)})

    def records(self) -> list[Record]:
        """Every measurement of every source once, in their order."""
        return self.read()[0]

    def read(self) -> tuple[list[Record], tuple[Reason, ...]]:
        """The records, and a warning for each pair of sources that hold the same measurements."""
        first: dict[tuple[str, float], int] = {}
        kept: list[list[Record]] = []
        again: Counter[tuple[int, int]] = Counter()
        homes: list[dict[str, int]] = []  # of each source: cell id → the source that its measurement is taken from
        for k, source in enumerate(self._sources):
            kept.append([])
            homes.append({})
            for record in source.records():
                home = first.setdefault((record.cell_id, record.provenance.started_unix_s), k)
                homes[k][record.cell_id] = home
                if home == k:
                    kept[k].append(record)
                else:
                    again[home, k] += 1
        records = [_numbered(record, k, homes[k]) for k, own in enumerate(kept) for record in own]
        return records, tuple(self._counted_once(*pair, n) for pair, n in again.items())

    def tables(self, record: Record) -> CellTables:
        """The record's tables, from its source."""
        name, _, number = record.cell_id.rpartition("@")
        return self._sources[int(number)].tables(record.model_copy(update={"cell_id": name}))

    def _counted_once(self, home: int, other: int, n: int) -> Reason:
        s = "" if n == 1 else "s"
        return Reason(
            kind="same_measurement",
            stage="analyse",
            message=f"{n} record{s} of {self._names[other]}: the same measurement{s} as in {self._names[home]}, "
            "counted once",
            hint="name each result once, a profile or the study's folder that it was made from",
        )


def _numbered(record: Record, source: int, homes: dict[str, int]) -> Record:
    neighbours = tuple(
        n.model_copy(update={"cell_id": f"{n.cell_id}@{homes.get(n.cell_id, source)}"}) if n.cell_id else n
        for n in record.neighbours
    )
    return record.model_copy(update={"cell_id": f"{record.cell_id}@{source}", "neighbours": neighbours})
