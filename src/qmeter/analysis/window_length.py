"""How long a window must be for its energy to be believed: for the cross-check, and for repeats that agree.

**Cross-check.** The driver refreshes instant power about ten times a second, whatever the sampling rate, so its
integral over a window of length W is a sum of 10·W spot readings of a load that flickers, and differs from the energy
counter by chance: with a standard deviation of ``scatter`` / √W, relative to the energy. The window that keeps Z of
them within the tolerance is (Z · scatter / tolerance)².

**Repeats.** A repeat draws its arrivals anew. Over W seconds at λ requests a second their count varies by CV / √(λW),
and with it J/token, by its elasticity: idle power and half-empty batches are shared among more or fewer tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from qmeter.analysis.energy import CROSS_CHECK, counter, grouped, integrated_j
from qmeter.record import Telemetry, Window

SCATTER = {"open": 0.044, "closed": 0.015, "partial": 0.062}
"""Scatter of integrated against counted energy for an open loop, a closed one, and a closed one that fills a part of
the batch, where prefills come between decode steps and power swings. Units: √s. Root mean square over the cells of the
shipped profile ``h200-8b-grid``, the largest of its open loads; ``partial``: over the loops of 32 in ``h100-models``
and ``h100-x2-8b-parallelism``. A test derives them again."""
PARTIAL_FROM, PARTIAL_TO = 4, 0.5
"""A closed loop is partial from over so many requests in flight to under this share of the most sequences. Loops of 4,
and of 75% of the batch and more, scatter as closed ones do in the same profiles (at most 0.027)."""
Z = 3.0
"""Standard deviations kept within the tolerance: one cell in 370 misses it by chance."""
ELASTICITY = 0.85
"""Relative fall of J/token for a relative rise of the request rate: as in ``h200-8b-grid`` between 10 and 22
requests a second."""
REPEAT_TOLERANCE = 0.03
"""Repeats are to agree in J/token within this share."""
REPEAT_Z = 2.0


def cross_check_window_s(loop: str, tolerance: float = CROSS_CHECK) -> float:
    """The shortest window whose integrated power agrees with the counter. ``loop``: of :data:`SCATTER`. Units: s."""
    return (Z * SCATTER[loop] / tolerance) ** 2


def scatter(cells: Iterable[tuple[Telemetry, Window]], gpu: str = "gpu0") -> float | None:
    """Root mean square of (integrated / counted − 1) · √window over cells with both; ``None`` where none has.

    Units: √s.
    """
    found = []
    for telemetry, window in cells:
        series = grouped(telemetry)
        energy, power = series.get(f"{gpu}.energy_j"), series.get(f"{gpu}.power_w")
        if energy is None or power is None:
            continue
        counted, integral = counter(*energy, window), integrated_j(*power, window)
        if isinstance(counted, str) or isinstance(integral, str):
            continue
        spent = float(counted.at(window.end_s)) - float(counted.at(window.start_s))
        found.append((integral / spent - 1) ** 2 * window.length_s)
    return math.sqrt(sum(found) / len(found)) if found else None


def repeat_spread(rate_hz: float, window_s: float, cv: float = 1.0) -> float:
    """How far J/token of two repeats may differ by their arrivals alone (relative; exceeded by one pair in twenty).

    Args:
        cv: coefficient of variation of the gaps (1 for Poisson arrivals, 0 for constant ones).
    """
    return REPEAT_Z * math.sqrt(2.0) * ELASTICITY * cv / math.sqrt(rate_hz * window_s)


def repeat_window_s(rate_hz: float, cv: float = 1.0) -> float:
    """The shortest window whose repeats agree in J/token within :data:`REPEAT_TOLERANCE`. Units: s."""
    return repeat_spread(rate_hz, 1.0, cv) ** 2 / REPEAT_TOLERANCE**2
