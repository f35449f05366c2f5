"""What ``qmeter tune`` does with a proposal: its study, run by the study runner or the simulator, and what came out."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

from qmeter.engines import standby
from qmeter.errors import SpecError, TelemetryError
from qmeter.simulate import Calibration
from qmeter.spec.study import Cell, Study, deployments
from qmeter.spec.write import study_yaml
from qmeter.store import StudyStore
from qmeter.study.check import check_study
from qmeter.study.context import reason_of
from qmeter.study.events import Listener
from qmeter.study.played import play_study
from qmeter.study.runner import run_study
from qmeter.telemetry.power_cap import power_cap
from qmeter.tune.fidelity import Known, calibration_for
from qmeter.tune.journal import Outcome, Proposal
from qmeter.tune.outcome import outcome_of
from qmeter.tune.space import POWER
from qmeter.tune.spec import Tuning

TRUTH_DRAW = 11
"""The bootstrap draw of the calibration that plays the deployment where the measure is a simulation."""
SCORED = ("reference.npz", "scores.npz", "scores_again.npz")


class Measurer:
    """Carries proposals out, each in a study folder of its own; an interrupted one is gone on with.

    Args:
        known: calibrations, where the measure is a simulation.
        allow_power_cap: let a point's cap be set on the GPUs while it is measured.
    """

    def __init__(self, tuning: Tuning, folder: Path, known: Known | None, listener: Listener, allow_power_cap: bool):
        self._tuning, self._folder, self._known = tuning, folder, known
        self._listener, self._allow = listener, allow_power_cap
        self._terms = tuple(dict.fromkeys((*tuning.objectives, *tuning.limits)))

    def measure(self, proposal: Proposal) -> Outcome:
        """Run the proposal's study and read its records. What cannot run is an outcome with a failure."""
        study = self._tuning.study(proposal.point, proposal.repeat)
        folder = self._folder / proposal.folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        began_s = time.monotonic()
        try:
            if self._known is None:
                check_study(study)
            store = StudyStore.create(folder, study, study_yaml(study))
            self._lend_scores(store, study)
            self._run(study, store, proposal)
            self._keep_scores(store, study)
        except (SpecError, TelemetryError) as error:
            return Outcome({}, reason_of(error), time.monotonic() - began_s)
        return outcome_of(store.records(), self._terms, proposal.repeat, time.monotonic() - began_s)

    def __enter__(self) -> Measurer:
        return self

    def __exit__(self, *_: object) -> None:
        """End what the last evaluation left for the next."""
        standby.discard_all()

    def _run(self, study: Study, store: StudyStore, proposal: Proposal) -> None:
        known = self._known
        if known is not None:

            def calibration_of(cell: Cell) -> Calibration:
                return calibration_for(self._tuning, proposal.point, known)

            play_study(study, store, calibration_of, draw=TRUTH_DRAW, listener=self._listener)
            return
        cap = proposal.point.get(POWER)
        with power_cap(float(cap), allow=self._allow) if cap is not None else contextlib.nullcontext():
            run_study(study, store, listener=self._listener, keep_standby=True)

    def _lend_scores(self, store: StudyStore, study: Study) -> None:
        """Give the study's deployments the reference and the scores that an earlier evaluation of their method made."""
        for deployment in deployments(study):
            kept = self._folder / "quality" / deployment.method
            for name in SCORED:
                if (kept / name).exists():
                    shutil.copy(kept / name, store.deployment_folder(deployment.id) / name)

    def _keep_scores(self, store: StudyStore, study: Study) -> None:
        for deployment in deployments(study):
            kept = self._folder / "quality" / deployment.method
            for name in SCORED:
                made = store.folder / "deployments" / deployment.id / name
                if made.exists() and not (kept / name).exists():
                    kept.mkdir(parents=True, exist_ok=True)
                    shutil.copy(made, kept / name)
