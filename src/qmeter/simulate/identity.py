"""Which simulator this is: what was fitted or simulated before is used again only by the very same."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from qmeter import __version__
from qmeter.simulate.jit import digest


@cache
def simulator_hash() -> str:
    """qMeter's version, and a hash of the simulator's code and of the catalog that its fits start from."""
    own = Path(__file__).parents[1]
    return f"{__version__}-{digest(p for part in ('simulate', 'catalog') for p in sorted((own / part).glob('*.py')))}"
