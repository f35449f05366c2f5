"""What to deploy from a search's front: the recommended point for the limits given, and why, in plain words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qmeter.analysis.metrics import metric
from qmeter.record import Quantity
from qmeter.tune.noise import ENOUGH, Noise, Standing
from qmeter.tune.pairs import Ratios, difference, paired_key
from qmeter.tune.problem import Term
from qmeter.tune.space import Point
from qmeter.tune.tuner import Tuner


@dataclass(frozen=True)
class FrontRow:
    """One point of the front as a reader gets it."""

    standing: Standing
    values: Mapping[str, Quantity]
    folder: str
    recommended: bool = False
    equals: tuple[str, ...] = ()
    """Labels of points of the same method that noise does not tell from it."""


@dataclass(frozen=True)
class Advice:
    """The end of a search.

    Attributes:
        rows: the front, best first by the first objective; the recommended one is marked.
        choice: what to deploy, or ``None`` where no point kept every limit.
        headline, why: in words; caveats: what a reader must know.
        unsettled: points that may or may not be on the front: repeats would tell.
    """

    rows: tuple[FrontRow, ...]
    choice: FrontRow | None
    headline: str
    why: tuple[str, ...]
    caveats: tuple[str, ...]
    unsettled: tuple[Standing, ...]


def advise(tuner: Tuner, ratios: Ratios | None = None) -> Advice:
    """The front with intervals, the knee, and the reason.

    Args:
        ratios: points compared on the requests that both served: of settings that noise does not tell from the knee,
            one that these show to be better, and worse in nothing, is recommended in its place.
    """
    noise, found = tuner.noise(), tuner.standings()
    front = [s for s in found if s.on_front]
    unsettled = tuple(s for s in found if 0.05 < s.chance < 0.95)
    caveats = _caveats(tuner, noise, unsettled)
    if not front:
        return Advice((), None, "No point kept every limit", tuple(_nearest(tuner, found)), caveats, unsettled)
    folded = _folded(tuner, front)
    place = _knee([s[0].measured.losses[: len(tuner.tuning.objectives)] for s in folded])
    folded[place] = _settled(tuner, folded[place], ratios)
    knee = folded[place][0]
    rows = [_row(tuner, noise, s, s is knee, tuple(o.measured.point.label for o in equals)) for s, *equals in folded]
    first = tuner.tuning.objectives[0]
    rows.sort(key=lambda r: float(r.standing.measured.losses[tuner.terms.index(first)]))
    choice = next(r for r in rows if r.recommended)
    why = _why(tuner, choice, rows, _told_apart(tuner, folded[place], ratios))
    return Advice(tuple(rows), choice, f"Deploy {choice.standing.measured.point.label}", tuple(why), caveats, unsettled)


def _knee(losses: Sequence[np.ndarray]) -> int:
    """The point nearest the ideal, each objective scaled by its range over the front."""
    table = np.array(losses)
    low, span = table.min(axis=0), np.maximum(np.ptp(table, axis=0), 1e-9)
    return int(np.argmin((((table - low) / span) ** 2).sum(axis=1)))


def _folded(tuner: Tuner, front: Sequence[Standing]) -> list[list[Standing]]:
    """The front, each point with those of its method that noise does not tell from it; the surest stands first."""
    m, space = len(tuner.tuning.objectives), tuner.tuning.space
    kept: list[list[Standing]] = []
    for s in sorted(front, key=lambda s: (-s.measured.repeats, -s.chance)):
        for group in kept:
            apart = np.abs(s.measured.losses - group[0].measured.losses)[:m]
            same = space.method_of(s.measured.point) == space.method_of(group[0].measured.point)
            if same and np.all(apart <= 2 * np.hypot(s.measured.errors, group[0].measured.errors)[:m]):
                group.append(s)
                break
        else:
            kept.append([s])
    return kept


def _settled(tuner: Tuner, group: list[Standing], ratios: Ratios | None) -> list[Standing]:
    """The group led by the one that pairs show to be better than its first and worse in nothing, where there is one."""
    if ratios is None:
        return group
    first = group[0].measured.point

    def gain(s: Standing) -> tuple[int, int]:
        signs = [difference(t, ratios(s.measured.point, first)) for t in tuner.tuning.objectives]
        return min(signs), sum(signs)

    best = max(group[1:], key=gain, default=group[0])
    if best is group[0] or gain(best)[0] < 0 or gain(best)[1] <= 0:
        return group
    return [best, *(s for s in group if s is not best)]


def _told_apart(tuner: Tuner, group: Sequence[Standing], ratios: Ratios | None) -> list[str]:
    """In words, how the group's other settings differ from its first on the same requests, beyond the interval."""
    if ratios is None:
        return []
    out = []
    for other in group[1:]:
        found = ratios(other.measured.point, group[0].measured.point)
        keys = dict.fromkeys(paired_key(t) for t in tuner.tuning.objectives if difference(t, found))
        if keys:
            told = ", ".join(f"{metric(str(k).partition('@')[0]).label} {_percent(found[str(k)])}" for k in keys)
            out.append(f"{_knobs(other.measured.point, group[0].measured.point)}: {told}")
    return out


def _knobs(point: Point, beside: Point) -> str:
    """The knobs by which a point differs from another."""
    mine, other = point.label.split(), set(beside.label.split())
    return " ".join(part for part in mine if part not in other) or point.label


def _percent(ratio: Quantity) -> str:
    assert ratio.value is not None and ratio.low is not None and ratio.high is not None  # else it is no difference
    return f"{ratio.value - 1:+.1%} [{ratio.low - 1:+.1%}, {ratio.high - 1:+.1%}]"


def _row(tuner: Tuner, noise: Noise, standing: Standing, recommended: bool, equals: tuple[str, ...]) -> FrontRow:
    point = standing.measured.point
    runs = next(e for e in tuner.evaluated() if e.point == point)
    last = runs.good[-1].values
    values = {t.key: noise.interval(standing.measured, t, last[t.key]) for t in tuner.terms}
    return FrontRow(standing, values, runs.runs[0][0].folder, recommended, equals)


def _why(tuner: Tuner, choice: FrontRow, rows: Sequence[FrontRow], apart: Sequence[str]) -> list[str]:
    out = []
    kept = [f"{_named(t)} {_shown(choice.values[t.key])} (limit {_limit(t)})" for t in tuner.tuning.limits]
    if kept:
        out.append(f"It keeps every limit: {'; '.join(kept)}.")
    trade = []
    for term in tuner.tuning.objectives:
        j = tuner.terms.index(term)
        best = min(rows, key=lambda r, j=j: float(r.standing.measured.losses[j]))  # type: ignore[misc]
        mine, other = choice.values[term.key], best.values[term.key]
        if best is choice:
            trade.append(f"best {_named(term)} of the front ({_shown(mine)})")
        elif mine.value and other.value:
            off = abs(mine.value / other.value - 1)
            trade.append(f"{_named(term)} {_shown(mine)}, {off:.0%} off the best ({_shown(other)})")
    out.append(f"Of {len(rows)} points on the front it is the knee, nearest to the best of everything at once: "
               f"{'; '.join(trade)}.")  # fmt: skip
    if choice.equals:
        more = (f"On the same requests, they differ from it by: {'; '.join(apart)}." if apart else
                "What the knobs that differ do at this load is less than these measurements tell.")  # fmt: skip
        out.append(f"{len(choice.equals)} other settings of the same method measured the same within noise. {more}")
    chance = choice.standing.chance
    out.append(f"It is on the front with {chance:.0%} certainty after {choice.standing.measured.repeats} "
               f"measurement{'s' if choice.standing.measured.repeats > 1 else ''}.")  # fmt: skip
    return out


def _nearest(tuner: Tuner, found: Sequence[Standing]) -> list[str]:
    """Which limits stand in the way, and the point that comes nearest."""
    if not found:
        return _unknown(tuner)
    bounds = tuner.bounds()
    over = [(s, max(float(s.measured.losses[j]) - most for j, most in bounds)) for s in found]
    best = min(over, key=lambda pair: pair[1])[0]
    words = [f"{_named(tuner.terms[j])} at {_value(tuner.terms[j], float(best.measured.losses[j]))}, limit "
             f"{_limit(tuner.terms[j])}" for j, most in bounds if best.measured.losses[j] > most]  # fmt: skip
    return [f"The nearest, {best.measured.point.label}, breaks {' and '.join(words)}.",
            "Relax that limit, lower the load, or widen the space."]  # fmt: skip


def _unknown(tuner: Tuner) -> list[str]:
    """Why no point has numbers for every term, and what to do about it."""
    kinds: Counter[str] = Counter()
    lost: dict[Term, None] = {}
    for outcome in (o for e in tuner.evaluated() for _, o in e.runs):
        if outcome.failure is not None:
            kinds[outcome.failure.kind] += 1
            continue
        unknown = [t for t in tuner.terms if t.key not in outcome.values or not outcome.values[t.key].known]
        beyond = [t for t in unknown if t.workload in outcome.overloaded]
        kinds["overloaded" if beyond else "an objective stayed unknown"] += 1
        lost |= dict.fromkeys(beyond)
    said = ", ".join(f"{n} × {k}" for k, n in kinds.items()) or "nothing was measured"
    words = [f"No point gave numbers for every objective and limit: {said}."]
    if lost:
        loads = ", ".join(dict.fromkeys(t.workload for t in lost))
        names = ", ".join(_named(t) for t in lost)
        every = "any configuration that was measured" if set(kinds) == {"overloaded"} else "some configurations"
        words += [f"The load of {loads} is more than {every} can serve: its requests came faster than they were "
                  f"answered, which leaves {names} unknown.",
                  "Lower the load, or widen the space by what serves more."]  # fmt: skip
    if not set(kinds) <= {"overloaded"} or not kinds:
        words.append("Look into the evaluations' folders, or leave the objective that stays unknown out.")
    return words


def _caveats(tuner: Tuner, noise: Noise, unsettled: Sequence[Standing]) -> tuple[str, ...]:
    out = []
    if noise.points and noise.freedom < ENOUGH:
        out.append("few points were measured twice: intervals come from within single runs, and miss what differs "
                   "from run to run")  # fmt: skip
    if unsettled:
        out.append(f"{len(unsettled)} points may or may not be on the front: more repeats would tell")
    lost = sum(o.failure is not None for e in tuner.evaluated() for _, o in e.runs)
    if lost:
        out.append(f"{lost} evaluations failed; what was learned: {'; '.join(tuner.lessons) or 'where not to look'}")
    if tuner.tuning.spec.measure.kind == "simulator":
        out.append("every value is simulated: measure the chosen point before you deploy it")
    return tuple(out)


def _named(term: Term) -> str:
    return f"{term.label} ({term.workload})"


def _value(term: Term, loss: float) -> str:
    return _shown(Quantity.of(term.value(loss), term.unit))


def _limit(term: Term) -> str:
    return _shown(Quantity.of(term.limit or 0.0, term.unit))


def _shown(q: Quantity) -> str:
    """Three digits and a unit a person reads."""
    if q.value is None:
        return "unknown"
    if q.unit == "s":
        return f"{q.value * 1e3:.3g} ms" if q.value < 1 else f"{q.value:.3g} s"
    if q.unit == "B":
        return f"{q.value / 1e9:.3g} GB"
    unit = {"1": "", "J/token": " J/token", "token/s": " token/s", "1/s": "/s"}.get(q.unit, f" {q.unit}")
    return f"{q.value:.3g}{unit}"


shown = _shown
