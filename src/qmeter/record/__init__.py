"""The record and its parts: one type for measured and simulated results."""

from qmeter.record.effective import Check, EffectiveConfig, Verification
from qmeter.record.quantity import Quantity
from qmeter.record.record import (
    SCHEMA_VERSION,
    CellStatus,
    ClientProof,
    Clock,
    Neighbour,
    Provenance,
    Reason,
    Record,
    RecordKind,
    SeriesInfo,
    Window,
)
from qmeter.record.tables import TABLES, CellTables, Requests, RequestStatus, Steps, Telemetry, Tokens

__all__ = [
    "SCHEMA_VERSION",
    "TABLES",
    "CellStatus",
    "CellTables",
    "Check",
    "ClientProof",
    "Clock",
    "EffectiveConfig",
    "Neighbour",
    "Provenance",
    "Quantity",
    "Reason",
    "Record",
    "RecordKind",
    "RequestStatus",
    "Requests",
    "SeriesInfo",
    "Steps",
    "Telemetry",
    "Tokens",
    "Verification",
    "Window",
]
