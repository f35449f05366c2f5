"""A calibration on another host: the device's times as they are, the host's as a few records made there show them.

What a step takes on the device goes with the GPU. What its launch takes where no CUDA graph covers it (a step with
prefill), and what the front end takes for a token, goes with the host's CPU and with what else runs there: on two
leases of the same GPU, launches took 19 and 14 ms. Methods differ little in it, so that one deployment measured on a
host tells the pace for all. One factor stands for launches and front end, as in the spread between runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmeter.errors import AnalysisError
from qmeter.record import Record
from qmeter.simulate.calibrate import FEW, Tables, before_mixed, deployment_of
from qmeter.simulate.calibration import Calibration
from qmeter.simulate.observe import Observed, observed_steps
from qmeter.simulate.validate import usable

F64 = NDArray[np.float64]

AXES = ("shape", "method", "engine", "device", "parallelism")
"""What a record's deployment and a calibration's must share to be compared."""
LONGER = 1.3
"""A launch is seen in a step that lasts so much longer than its decodes take the device: else it may be hidden."""


@dataclass(frozen=True)
class HostPace:
    """How long a host takes beside the one calibrated on.

    Attributes:
        factor: its times over the calibrated ones; above 1: slower.
        sigma: spread between its cells (log scale); 0 where there is one.
        cells: ids of the records that it comes from. where: what they were read from.
    """

    factor: float
    sigma: float
    cells: tuple[str, ...]
    where: str

    @property
    def words(self) -> str:
        """In a sentence."""
        own = f"{len(self.cells)} cell{'s' if len(self.cells) > 1 else ''}"
        return f"on the host of {self.where}: launches and front end take {self.factor:.2f} times as long ({own})"


def host_pace(calibrations: Sequence[Calibration], records: Sequence[Record], tables: Tables, where: str) -> HostPace:
    """The pace of the host on which ``records`` were made, beside the one that the calibrations are of.

    Args:
        records: at least one valid measured cell of a deployment that is among the calibrations (model shape, method,
            engine, device and parallelism alike), with an iteration log that shows launches of steps with prefill.

    Raises:
        AnalysisError: there is no such cell.
    """
    known = {_key(c.deployment): c for c in calibrations}
    logs, cells, why = [], [], _lacking([c.deployment for c in calibrations], records)
    for record in usable(records):
        mine = known.get(_key(deployment_of(record)))
        if mine is None:
            continue
        try:
            ratio = _ratio(mine, observed_steps(tables(record)))
        except AnalysisError as error:
            why = error.message
            continue
        if ratio is None:
            why = "no cell of it shows enough launches of steps with prefill, or the device's work hides them"
            continue
        logs.append(np.log(ratio))
        cells.append(record.cell_id)
    if not logs:
        raise _fault(where, why)
    sigma = float(np.std(logs, ddof=1)) if len(logs) > 1 else 0.0
    return HostPace(float(np.exp(np.mean(logs))), sigma, tuple(cells), where)


def on_host(calibration: Calibration, pace: HostPace) -> Calibration:
    """The calibration with its launches and front end at the host's pace, marked so.

    Raises:
        AnalysisError: its host's times are not apart from the device's (synchronous scheduling).
    """
    if not any(calibration.host):
        raise AnalysisError(f"{calibration.label}: host and device are not apart in this calibration, so another "
                            "host's pace cannot be put in", hint="calibrate from records made there")  # fmt: skip
    f = pace.factor
    scale = np.array([1.0, 1.0, f, f, 1.0])
    return calibration.model_copy(update={
        "host": tuple(float(v) for v in scale * np.array(calibration.host)),
        "host_draws": tuple(tuple(float(v) for v in scale * np.array(h)) for h in calibration.host_draws),
        "output_seq_s": calibration.output_seq_s * f,
        "input_each_s": calibration.input_each_s * f,
        "host_sigma": max(calibration.host_sigma, pace.sigma),
        "host_of": pace.words,
    })  # fmt: skip


def require_shared(measured: Sequence[Record], there: Sequence[Record], where: str) -> None:
    """Raise before anything is fitted where no record of the host can tell its pace.

    Args:
        measured: a record of each deployment that is to be calibrated.

    Raises:
        AnalysisError: none of ``there`` is a valid measured cell of one of them.
    """
    if why := _lacking([deployment_of(r) for r in measured], there):
        raise _fault(where, why)


def _lacking(deployments: Sequence[dict[str, Any]], records: Sequence[Record]) -> str:
    """Why no record can be compared with any of the deployments; empty: one can."""
    valid = [deployment_of(r) for r in usable(records)]
    if not valid:
        return "it has no valid measured cell"
    known = {_key(d) for d in deployments}
    if any(_key(d) in known for d in valid):
        return ""
    d = valid[0]
    return f"the calibrations hold no {d['shape']} in {d['method']} on {d['engine']} and {d['device']}, placed alike"


def _fault(where: str, why: str) -> AnalysisError:
    return AnalysisError(f"{where} does not show its host's pace: {why}",
                         hint="measure one of the calibrated deployments there, under a load that prefills beside "
                         "decodes (a poisson load for 15 s does)")  # fmt: skip


def _key(deployment: dict[str, Any]) -> str:
    return str([deployment[name] for name in AXES])


def _ratio(calibration: Calibration, steps: Observed) -> float | None:
    """Launches of steps with prefill, measured over modelled: each shows in the step before it. ``None``: too few, or
    most are hidden behind the device's work."""
    seen = before_mixed(steps)
    if seen.sum() < FEW or not any(calibration.host):
        return None
    model = calibration.step_model(noise=False)
    device = model.decode_s[np.minimum(steps.decodes, len(model.decode_s) - 1)] + model.kv_s * steps.kv
    if np.median(steps.seconds[seen] / device[seen]) < LONGER:
        return None
    after = np.flatnonzero(seen) + 1
    modelled = calibration.host[2] + calibration.host[3] * (steps.decodes + steps.chunks)[after]
    return float(steps.seconds[seen].sum() / modelled.sum())
