"""The scheduling bar on days made from the Azure traces: the share of the clairvoyant optimum's saving over static
peak that the rolling schedule has, and its SLO violations beside theirs.

    python benchmarks/schedule/azure_day.py TRACES [--days 1] [--error 0.15] [--conv 20] [--code 6] [--count 8] [--fine]

TRACES: the folder with azure_2023_conv.csv and azure_2023_code.csv. Exits with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from qmeter.schedule import policies, words
from qmeter.schedule.day import FINE_S, make_day
from qmeter.schedule.evaluate import evaluate
from qmeter.schedule.solve import KWH_J, NAMES, Answer, solve
from qmeter.schedule.spec import load_spec
from qmeter.schedule.write import answer_data

SPEC = Path(__file__).with_name("azure_day.yaml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", type=Path)
    parser.add_argument("--days", type=int, default=1)
    parser.add_argument("--error", type=float, default=0.15)
    parser.add_argument("--conv", type=float, default=20.0)
    parser.add_argument("--code", type=float, default=6.0)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--fine", action="store_true",
                        help="beside a clairvoyant optimum that may change every five minutes, too")  # fmt: skip
    args = parser.parse_args()
    spec = load_spec(SPEC)
    rates = {"conversation": args.conv, "code": args.code}
    classes = tuple(
        c.model_copy(update={"trace": (c.trace or "").replace("TRACES", str(args.traces)), "rate": rates[c.name]})
        for c in spec.classes
    )
    fleet = {n: f.model_copy(update={"count": args.count}) for n, f in spec.fleet.items()}
    spec = spec.model_copy(update={
        "classes": classes, "fleet": fleet, "days": args.days, "seed": args.seed,
        "forecast": spec.forecast.model_copy(update={"error": args.error}),
    })  # fmt: skip
    began = time.perf_counter()

    def say(text: str) -> None:
        print(f"{time.perf_counter() - began:7.1f} s  {text}", file=sys.stderr, flush=True)

    answer = solve(spec, say)
    if args.json:
        args.json.write_text(json.dumps(answer_data(answer)))
    print(words.headline(answer))
    for text in (*words.reasons(answer), *words.caveats(answer)):
        print(" ", text)
    for name in NAMES:
        first = answer.outcomes[name][0].course
        saves, closed = words.percent(answer.saving(name)), words.percent(answer.closed(name))
        print(f"{first.title:32} {words.kwh(answer.energy_j(name)):>22} kWh  saves {saves:>20}  of the oracle's "
              f"{closed:>20}  beyond SLO {words.percent(answer.violations(name))}  starts "
              f"{answer.outcomes[name][0].starts}  gap {first.gap:.2%}  {first.seconds:.0f} s")  # fmt: skip
    share, worse = answer.closed("schedule").value or 0.0, answer.violations("schedule").value or 0.0
    above = {name: worse - (answer.violations(name).value or 0.0) for name in ("static", "clairvoyant")}
    worse = max(above.values())
    print(f"bars: {share:.1%} of the saving (at least 80%), violations {above['static']:+.2%} above static peak's and "
          f"{above['clairvoyant']:+.2%} above the optimum's (at most 1% either)")  # fmt: skip
    if args.fine:
        fine(answer, say)
    sys.exit(share < 0.8 or worse > 0.01)


def fine(answer: Answer, say: Callable[[str], None]) -> None:
    """The first day's optimum in slots as short as the rolling schedule's looks."""
    spec = answer.spec.model_copy(update={"slot": FINE_S})
    day = make_day(spec, spec.seed, answer.choice.longest_tokens)
    say("optimising: clairvoyant optimum in slots of five minutes")
    course = policies.clairvoyant(spec, answer.choice, day)
    found = evaluate(spec, answer.choice, day, course)
    static, mine = (answer.outcomes[name][0].energy_j for name in ("static", "schedule"))
    say("done")
    print(f"in slots of five minutes: {found.energy_j / KWH_J:.2f} kWh, gap {course.gap:.2%}, beyond SLO "
          f"{found.violations:.2%}, starts {found.starts}; the schedule has "
          f"{(static - mine) / (static - found.energy_j):.1%} of its saving")  # fmt: skip


if __name__ == "__main__":
    main()
