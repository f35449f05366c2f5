"""Predicting deployments and fleets from measured records."""

from qmeter.simulate.calibrate import calibrate
from qmeter.simulate.calibration import Calibration, find, load_calibrations, save
from qmeter.simulate.engine import SimulatedCell, run_cell
from qmeter.simulate.fast import simulate
from qmeter.simulate.load import SimLoad, SimResult, load_of
from qmeter.simulate.predict import Prediction, predict
from qmeter.simulate.reference import simulate_steps
from qmeter.simulate.rules import Rules, rules_of
from qmeter.simulate.sources import calibrations_of
from qmeter.simulate.steptime import StepModel

__all__ = [
    "Calibration",
    "Prediction",
    "Rules",
    "SimLoad",
    "SimResult",
    "SimulatedCell",
    "StepModel",
    "calibrate",
    "calibrations_of",
    "find",
    "load_calibrations",
    "load_of",
    "predict",
    "rules_of",
    "run_cell",
    "save",
    "simulate",
    "simulate_steps",
]
