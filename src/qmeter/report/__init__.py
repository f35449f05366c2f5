"""The report: one self-contained HTML page of a study, with its charts and tables beside it."""

from qmeter.report.write import write_report

__all__ = ["write_report"]
