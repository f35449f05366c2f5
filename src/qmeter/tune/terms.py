"""Whether what is asked for can be known at all: checked before anything is measured."""

from __future__ import annotations

from qmeter.errors import SpecError
from qmeter.tune.fidelity import Known
from qmeter.tune.problem import Term
from qmeter.tune.spec import Tuning, is_quality


def require_knowable(tuning: Tuning, known: Known | None) -> None:
    """Refuse terms that the measure can never give.

    Raises:
        SpecError: a simulation has no quality, or no energy; a live study measures no quality.
    """
    faults = []
    for where, term in _placed(tuning):
        if known is None:
            continue
        if is_quality(term.name):
            faults.append((where, f"{term.name}: {known.source} is played by the simulator, which knows no quality; "
                           "leave it out, or measure with the live engine (measure: {kind: engine})"))  # fmt: skip
        elif term.name.startswith(("j_per", "energy", "power", "edp")) and not _energy(known):
            faults.append((where, f"{term.name}: {known.source} holds no energy counter; leave it out"))
    if faults:
        raise SpecError(f"{len(faults)} of what is asked for cannot be known; nothing was started", faults=faults,
                        hint="correct the lines named and run the command again")  # fmt: skip


def _energy(known: Known) -> bool:
    return any(c.energy is not None for c in known.found)


def _placed(tuning: Tuning) -> list[tuple[str, Term]]:
    own = [(f"objectives[{i}]", t) for i, t in enumerate(tuning.objectives)]
    rest = [t for t in tuning.limits if t not in tuning.objectives]
    return own + [("constraints", t) for t in rest]
