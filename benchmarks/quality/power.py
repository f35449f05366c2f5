"""Planted differences by simulation of paired items: how often a 5-point drop is found, and a zero is not.

    python benchmarks/quality/power.py [--studies 1000]

Items flip both ways (6% of them) with a reference at 60%; the drop is planted on top. Eight methods a study, so that
Holm's correction is in it. Bars: the drop is found in 95% of studies of 1,000 items; an alarm among eight planted zeros
comes in at most 5% of studies.
"""

from __future__ import annotations

import argparse

import numpy as np

from qmeter.quality import statistics
from qmeter.quality.paired import Verdict, compare_methods
from qmeter.quality.tasks.grading import Graded, Grades

REFERENCE, FLIPS, METHODS = 0.6, 0.06, 8


def grades(passed: np.ndarray) -> Grades:
    """Scores as a run's grades."""
    rows = (Graded("t", str(i), "", i, float(p), bool(p), "", "", False) for i, p in enumerate(passed))
    return Grades(tuple(rows), {}, {})


def study(rng: np.random.Generator, n: int, drops: list[float]) -> list[Verdict]:
    """Verdicts of one study: a reference and a method a planted drop."""
    before = rng.random(n) < REFERENCE
    methods = {}
    for k, drop in enumerate(drops):
        u = rng.random(n)
        lost = before & (u < (FLIPS / 2 + drop) / REFERENCE)
        gained = ~before & (u < FLIPS / 2 / (1 - REFERENCE))
        methods[f"m{k}"] = grades((before & ~lost) | gained)
    return [c.verdict for c in compare_methods(grades(before), methods)]


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    options = parser.parse_args()
    rng = np.random.default_rng(1)
    for n in (200, 400, 1000):
        found = [study(rng, n, [0.05, *[0.0] * (METHODS - 1)]) for _ in range(options.studies)]
        drop = sum(v[0] is Verdict.WORSE for v in found) / len(found)
        wrong = sum(any(v is not Verdict.NO_DIFFERENCE for v in row[1:]) for row in found) / len(found)
        zeros = [study(rng, n, [0.0] * METHODS) for _ in range(options.studies)]
        alarm = sum(any(v is not Verdict.NO_DIFFERENCE for v in row) for row in zeros) / len(zeros)
        print(f"{n} items, {METHODS} methods: a 5-point drop is found in {100 * drop:.1f}% of studies")
        print(
            f"  alarm among the {METHODS - 1} zeros beside it: {100 * wrong:.1f}%; among {METHODS}: {100 * alarm:.1f}%"
        )
    needed = statistics.items_needed(0.05, FLIPS + 0.05)
    print(f"one method alone: {needed} items find 5 points with 80% power at these flips")


if __name__ == "__main__":
    main()
