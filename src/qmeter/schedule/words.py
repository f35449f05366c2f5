"""What was found in plain words: the headline, the reasons, and what to beware of."""

from __future__ import annotations

from qmeter.record import Quantity
from qmeter.schedule.solve import KWH_J, Answer


def percent(q: Quantity) -> str:
    """A share as a percentage, with its interval where it has one."""
    if q.value is None:
        return f"unknown ({q.why})"
    text = f"{q.value:.1%}" if abs(q.value) >= 0.01 or q.value == 0 else f"{q.value:.2%}"
    return text if q.low is None or q.high is None else f"{text} [{q.low:.1%}, {q.high:.1%}]"


def kwh(q: Quantity) -> str:
    """Energy in kWh, with its interval where it has one."""
    if q.value is None:
        return f"unknown ({q.why})"
    text = f"{q.value / KWH_J:.2f}"
    return text if q.low is None or q.high is None else f"{text} [{q.low / KWH_J:.2f}, {q.high / KWH_J:.2f}]"


def headline(answer: Answer) -> str:
    """One sentence: what the schedule saves, and how much of what could be saved."""
    saving, closed = answer.saving("schedule"), answer.closed("schedule")
    if saving.value is None or saving.value <= 0:
        return "The schedule saves nothing over static peak: serve with the static fleet"
    if closed.value is None:
        return f"The schedule saves {saving.value:.1%} of the energy of static peak"
    return (f"The schedule saves {saving.value:.1%} of the energy of static peak, {closed.value:.0%} of what perfect "
            "foresight would save")  # fmt: skip


def reasons(answer: Answer) -> list[str]:
    """Why, in sentences."""
    static, mine = answer.outcomes["static"][0], answer.outcomes["schedule"][0]
    replicas, was = mine.course.n.sum(axis=1), int(static.course.n.sum())
    names = [k.name for k in answer.choice.kinds]
    out = [f"It runs between {replicas.min()} and {replicas.max()} replicas where static peak runs {was} all day, and "
           f"starts {mine.starts} replicas a day ({mine.load_j / KWH_J:.2f} kWh of loading)."]  # fmt: skip
    served = sorted(((s, n) for s, n in zip(mine.served, names, strict=True) if s > 0.0005), reverse=True)
    out.append("It serves " + ", ".join(f"{s:.0%} of requests with {n}" for s, n in served) + ".")
    for (cls, metric), value in mine.quality.items():
        floor = next(c.quality[metric] for c in answer.spec.classes if c.name == cls)
        out.append(f"{cls}: mean {metric} {value:.4g} (worse ends of the intervals), promised {floor:.4g}.")
    mine_v, best_v = answer.violations("schedule"), answer.violations("clairvoyant")
    peak_v, scaled_v = answer.violations("static"), answer.violations("reactive")
    out.append(f"{percent(mine_v)} of requests break their SLO; with perfect foresight {percent(best_v)}, with static "
               f"peak {percent(peak_v)}, with autoscaling {percent(scaled_v)}.")  # fmt: skip
    return out


def caveats(answer: Answer) -> list[str]:
    """What a reader must know before acting on it."""
    spec = answer.spec
    out = list(answer.choice.notes)
    out.append("simulated from measured records: energy and latencies carry the calibration's error; device boards "
               "only, not hosts")  # fmt: skip
    for outcomes in answer.outcomes.values():
        for c, one in enumerate(spec.classes):
            share = max(o.by_class[c] for o in outcomes)
            if share > 1 - one.slo.percentile + 1e-9:
                out.append(f"{outcomes[0].course.title} breaks the promise to {one.name}: {share:.2%} of requests "
                           f"beyond the SLO, {1 - one.slo.percentile:.2%} allowed")  # fmt: skip
        if lost := sum(o.lost for o in outcomes):
            out.append(f"{outcomes[0].course.title} left {lost} requests unserved")
    if any(c.shape == type(c).model_fields["shape"].default for c in spec.classes):
        out.append("the day's shape is qMeter's default office day, an assumption: give classes[].shape")
    moved = {k.name: text for k in answer.choice.kinds if (text := k.offer.calibration.moved)}
    out += [f"{name}: {text}" for name, text in moved.items()]
    return out
