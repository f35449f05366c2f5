"""Where calibrations come from: a file, or the records of a study's folder or a profile, fitted on the spot."""

from __future__ import annotations

from pathlib import Path

from qmeter.errors import AnalysisError
from qmeter.simulate.calibrate import deployment_of, replicas_of
from qmeter.simulate.calibration import Calibration, find, load_calibrations
from qmeter.simulate.heldout import calibrate_checked, with_peers
from qmeter.simulate.validate import by_deployment, cached
from qmeter.store import open_results


def calibrations_of(source: str, **wanted: str | None) -> list[Calibration]:
    """Calibrations in ``source`` that match the given deployment fields (model, shape, method, engine, device).

    Args:
        source: a file that ``qmeter calibrate-model`` wrote, a study's folder, or a profile's name. Of records, only
            the deployments asked for are fitted; one of several data-parallel replicas only where there is no other.

    Raises:
        AnalysisError: the file is none, no deployment matches, or its records cannot be fitted.
        StoreError: there is no such folder or profile.
    """
    if Path(source).is_file():
        return find(load_calibrations(Path(source)), **wanted)
    results = open_results(source)
    groups = by_deployment(results.records())
    asked = {k: v for k, v in wanted.items() if v is not None}
    picked = [g for g in groups if all(deployment_of(g[0])[k] == v for k, v in asked.items())]
    if not picked:
        known = sorted({f"{n['model']}/{n['method']}/{n['engine']}" for n in (deployment_of(g[0]) for g in groups)})
        raise AnalysisError(
            f"{source} has no valid measured deployment with {', '.join(f'{k} {v}' for k, v in asked.items()) or 'it'}",
            hint=f"there are: {', '.join(known) or 'none'}",
        )
    alone = [g for g in picked if replicas_of(g[0]) == 1]
    tables = cached(results.tables)
    return with_peers([calibrate_checked(group, tables) for group in alone or picked])
