"""The store: one folder a study, an append-only journal of records, Parquet tables a cell, SQL over all of it."""

from qmeter.store.folder import StudyStore, write_atomic
from qmeter.store.profile import Profile, ProfileInfo, Results, list_profiles, open_results, write_profile
from qmeter.store.query import Rows

__all__ = [
    "Profile",
    "ProfileInfo",
    "Results",
    "Rows",
    "StudyStore",
    "list_profiles",
    "open_results",
    "write_atomic",
    "write_profile",
]
