"""Independent random streams from one seed: changing one law of a workload leaves what the others draw as it was.

Bit stability: the streams are PCG64 seeded through ``SeedSequence``, both fixed by NumPy's compatibility policy
(NEP 19) across versions and platforms. The distributions drawn from them (``integers``, ``standard_exponential``,
``standard_gamma``, ``standard_normal``) are stable in practice but not promised; golden digests in the tests would
show a change, every record names the NumPy version, and results that pass through the C maths library are rounded
(send times to whole nanoseconds, lengths to whole tokens) so that its last bit does not matter.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a stream is for. The numbers are part of the schedule's definition: never reuse or reorder them."""

    ARRIVALS = 0
    PROMPT_LENGTHS = 1
    OUTPUT_LENGTHS = 2
    PROMPT_IDS = 3
    SHARED_PREFIX = 4
    TASK_ORDER = 5
    HASH_BLOCKS = 6


def stream(seed: int, which: Stream, *keys: int) -> np.random.Generator:
    """The generator of one stream of ``seed``; ``keys`` (each ≥ 0) name a sub-stream, as a trace's block does."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(int(which), *keys))))
