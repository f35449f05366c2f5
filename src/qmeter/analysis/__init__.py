"""Analysis: one cell's tables to metrics and energy, a study's records to a decision. Pure, numpy only."""

from qmeter.analysis.cell import CellAnalysis, analyse
from qmeter.analysis.energy_split import CellEnergy, EnergySplit, split_energy
from qmeter.analysis.recommend import Recommendation, recommend
from qmeter.analysis.summary import StudySummary, summarise

__all__ = [
    "CellAnalysis",
    "CellEnergy",
    "EnergySplit",
    "Recommendation",
    "StudySummary",
    "analyse",
    "recommend",
    "split_energy",
    "summarise",
]
