"""The store: one folder a study, an append-only journal of records, Parquet tables a cell, SQL over all of it."""

from qmeter.store.folder import StudyStore, write_atomic
from qmeter.store.query import Rows

__all__ = ["Rows", "StudyStore", "write_atomic"]
