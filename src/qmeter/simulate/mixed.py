"""How long the device takes for a step with prefill: a shape with two numbers, and how far each size may be off it.

    seconds(n) = base + (weights^p + (token n)^p)^(1/p) x exp(bend(n))     n: tokens rounded up to whole matrix tiles

Reading the weights or multiplying by them, whichever takes longer, and what every step does beside. Small steps hide
behind their launch, and a load of few requests has no large ones: what the records do not show follows the shape, where
a free curve would follow its last two points. The bends hold what the shape leaves out (waves of tiles that do not fill
the device), each drawn to zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qmeter import catalog
from qmeter.errors import AnalysisError, UnknownName
from qmeter.simulate.fit import tiled
from qmeter.simulate.physics import Efficiencies, Placement, terms

F64 = NDArray[np.float64]

POWER = 4.0
"""How sharply the shape turns from reading to multiplying (large: a knee)."""
TILES = (1, 256)
"""Tiles that are tried: none, and the rows of the large tiles that every format used on H100 and H200."""
UNTILED = 1.1
"""How much better the records must speak for no tiles: steps that hide behind their launch tell little of either."""
OP_SHARE, OP_SIGMA = 0.75, 0.15
"""Share of the catalog's matrix rate that large steps reach at full clock (0.62 to 0.88 in 22 deployments), and its
spread (log scale)."""
KV_SHARE = 0.9
"""Share of the catalog's bandwidth at which decodes read their cache (0.75 to 1.1 where lengths differ enough)."""
BASE_S, BASE_SIGMA = 1e-3, 1.0
"""What a step with prefill does beside, and its spread (log scale)."""
PAIR_SIGMA = 0.3
"""Spread of a pair's time."""
WIDE_SIGMA = 0.6
"""Spread of a token's and a pair's time where the catalog knows no rate."""
BEND_SIGMA, WAVES, LARGE_SIGMA = 0.3, 4, 0.1
"""Spread of the bends (log scale) up to four tiles, whose waves may leave much of the device idle, and beyond."""


@dataclass(frozen=True)
class MixedShape:
    """The shape at its knots: whole tiles up to the token budget. ``numbers``: a token's time and the base. Units: s.

    Attributes:
        weights_s: seconds to read the weights once, as decode steps show it.
        token_s, token_sigma: seconds of a token's products to start from, and how far they may be off (log scale).
        pair_s, pair_sigma: the same of a query-key pair.
    """

    tile: int
    knots: F64
    weights_s: float
    token_s: float
    token_sigma: float
    pair_s: float
    pair_sigma: float

    def seconds(self, numbers: F64, bends: F64) -> F64:
        """Seconds at the knots, non-decreasing."""
        joined = (self.weights_s**POWER + (numbers[0] * self.knots) ** POWER) ** (1 / POWER)
        return np.asarray(numbers[1] + np.maximum.accumulate(joined * np.exp(bends)), dtype=np.float64)

    def clocked(self, numbers: F64) -> F64:
        """Of the seconds at the knots, the share that the clock divides: products do, reading and the base do not."""
        products = (numbers[0] * self.knots) ** POWER
        share = products / (self.weights_s**POWER + products)
        whole = self.seconds(numbers, np.zeros(len(self.knots)))
        return np.asarray(share * (1 - numbers[1] / whole), dtype=np.float64)

    def ramps(self, numbers: F64, bends: F64) -> F64:
        """Hinge coefficients of the curve."""
        values = self.seconds(numbers, bends)
        return np.concatenate([values[:1], np.diff(values)])


def bend_sigmas(knots: F64) -> F64:
    """Spread of the bend at each knot (log scale)."""
    return np.where(knots <= WAVES * max(TILES), BEND_SIGMA, LARGE_SIGMA)


def knots_of(tile: int, budget: int) -> F64:
    """Sizes at which the curve may bend: powers of two to a tile, then whole tiles ever farther apart."""
    unit = tile if tile > 1 else 256
    small = [unit >> k for k in range(4, 0, -1)]
    large = [unit * k for k in (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128)]
    top = float(tiled(np.array([budget]), tile)[0])
    return np.array([float(k) for k in (*small, *large) if 1 <= k < top] + [top])


@dataclass(frozen=True)
class Expected:
    """Seconds of a token's matrix products, of a query-key pair and of a KV token read, by the catalog's rates."""

    token_s: float
    pair_s: float
    kv_s: float


def expected(shape: str, method: str, device: str, engine: str, devices: int) -> Expected | None:
    """What the catalog's rates at full clock make of a deployment; ``None``: it knows none."""
    try:
        model, how = catalog.model(shape), catalog.method(method)
        kv_bytes = how.kv_bytes_per_token(model, engine)
        place = Placement(model, catalog.device(device), 1.0, kv_bytes, how.activation_type, devices)
        found = terms(place, Efficiencies(op=OP_SHARE, kv=KV_SHARE))
        return Expected(found["token"], found["pair"], found["kv"])
    except (AnalysisError, UnknownName):
        return None
