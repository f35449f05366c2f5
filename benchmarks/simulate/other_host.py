"""The simulator on a host, on lengths and under knobs that its calibration never saw: the twelve cells of the live
search on the H200, predicted from the shipped profile, as it is and at the pace of the search's host.

    python benchmarks/simulate/other_host.py [--host 1] [--host 1,2,3,4] [--each]

``--host``: numbers of evaluations whose cells tell the host's pace; they are then not predicted.
Half a minute.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from qmeter.record import CellTables, Record
from qmeter.simulate import Calibration, calibrate
from qmeter.simulate.host import host_pace, on_host
from qmeter.simulate.knobs import with_knobs
from qmeter.simulate.quick import quick
from qmeter.simulate.validate import by_deployment
from qmeter.spec.study import expand
from qmeter.store import open_results
from qmeter.store.profile import Profile
from qmeter.workload import Vocabulary, build

PROFILE = "h200-8b-grid"
SEARCH = Path(__file__).parents[1] / "tune" / "measured" / "h200_8b" / "evaluations"
SHOWN = ("tpot_mean_s", "ttft_p50_s", "ttft_p90_s", "throughput_tok_s", "j_per_output_token", "power_mean_w")
VOCABULARY = 128256
"""Tokens of the model's tokenizer, from which prompts were drawn."""


def fits() -> dict[str, Calibration]:
    """Method → calibration, from the shipped profile."""
    results = open_results(PROFILE)
    return {
        str(g[0].cell["deployment"]["method"]): calibrate(g, results.tables, draws=0)
        for g in by_deployment(results.records())
    }


def predicted(made: Calibration, results: Profile) -> tuple[dict[str, float], Record]:
    """One cell's numbers under its own knobs and arrivals."""
    (record,) = results.records()
    cell = next(c for c in expand(results.study) if c.id == record.cell_id)
    own = with_knobs(made, dict(cell.deployment.engine.options))[0]
    schedule = build(cell.workload, cell.seed, Vocabulary(size=VOCABULARY))
    return quick(own, cell.workload, schedule), record


def errors(made: dict[str, Calibration], left: Sequence[int], each: bool) -> dict[str, list[float]]:
    """Relative errors of each metric over the cells that are left."""
    found: dict[str, list[float]] = {name: [] for name in SHOWN}
    for number in left:
        results = Profile(SEARCH / f"{number:04d}")
        method = str(results.records()[0].cell["deployment"]["method"])
        told, record = predicted(made[method], results)
        measured = {**record.metrics, **record.energy}
        for name in SHOWN:
            value = measured[name].value
            if value is None:
                sys.exit(f"evaluation {number}: {name} was not measured: {measured[name].why}")
            found[name].append(told[name] / value - 1.0)
        if each:
            print(f"  {number:2d} {method:18s} " + "  ".join(f"{n} {found[n][-1]:+.1%}" for n in SHOWN))
    return found


def _by_id(tables: dict[str, CellTables]) -> Callable[[Record], CellTables]:
    return lambda record: tables[record.cell_id]


def main() -> None:
    """Print a table for the calibrations as they are, and for each choice of cells that tell the pace."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", action="append", default=[])
    parser.add_argument("--each", action="store_true")
    args = parser.parse_args()
    numbers = sorted(int(p.name) for p in SEARCH.iterdir())
    choices: list[list[int]] = [[], *([int(n) if n.isdigit() else -1 for n in h.split(",")] for h in args.host)]
    if any(set(own) - set(numbers) for own in choices):
        parser.error(f"--host takes numbers of evaluations with commas between them, {numbers[0]} to {numbers[-1]}")
    made = fits()
    for own in choices:
        moved = made
        if own:
            there = {r.cell_id: (r, p) for p in (Profile(SEARCH / f"{n:04d}") for n in own) for r in p.records()}
            tables = {name: p.tables(r) for name, (r, p) in there.items()}
            pace = host_pace(list(made.values()), [r for r, _ in there.values()], _by_id(tables), "the search")
            moved = {m: on_host(c, pace) for m, c in made.items()}
            print(f"\n{pace.words}, spread {pace.sigma:.0%}")
        else:
            print("as calibrated")
        for name, off in errors(moved, [n for n in numbers if n not in own], args.each).items():
            print(f"  {name:20s} {len(off):2d} cells: off by {np.mean(np.abs(off)):6.1%}, bias {np.mean(off):+6.1%}")


if __name__ == "__main__":
    main()
