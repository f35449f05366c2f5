"""How long one scheduler step takes and what energy it costs, as a function of its batch.

    t = max(host_s + host_seq_s * sequences,  table(batch) + kv_s * KV + pair_s * pairs + chunk_s * chunks)

``table`` is piecewise linear and non-decreasing: over the number of sequences for a decode step (its kinks are the
kernel switches and CUDA-graph sizes that the data shows), over all tokens for a step with prefill. KV is the number of
cache tokens that the decodes read, pairs the query-key pairs of the prefill chunks. Energy has the same form, without
the floor, plus ``busy_w * t``. All coefficients are non-negative, so time and energy never fall when work is added.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

NOISE_LENGTH = 65536


def _one() -> F64:
    return np.ones(1)


@dataclass(frozen=True)
class StepModel:
    """Step time and energy of one replica.

    Attributes:
        decode_s: seconds of a decode step by number of sequences, index 0..max_sequences.
        mixed_s: seconds of a step with prefill by its tokens, index 0..token_budget.
        kv_s: seconds a KV token read by a decode.
        pair_s: seconds a query-key pair of a prefill chunk.
        chunk_s: seconds a prefill chunk.
        host_s, host_seq_s: the host's own time a step, and a sequence: the step's floor.
        decode_j, mixed_j, kv_j, pair_j: energy in the same form; ``busy_w``: power while a step runs.
        idle_w: power with nothing to run.
        input_s, output_s: from the send to the scheduler, and from a step's end to the client.
        spacing_s: the front end lets requests through one at a time, this far apart.
        noise_decode, noise_mixed: measured / modelled step times, to be drawn from (mean 1).
    """

    decode_s: F64
    mixed_s: F64
    kv_s: float = 0.0
    pair_s: float = 0.0
    chunk_s: float = 0.0
    host_s: float = 0.0
    host_seq_s: float = 0.0
    decode_j: F64 = field(default_factory=lambda: np.zeros(1))
    mixed_j: F64 = field(default_factory=lambda: np.zeros(1))
    kv_j: float = 0.0
    pair_j: float = 0.0
    busy_w: float = 0.0
    idle_w: float = 0.0
    input_s: float = 0.0
    output_s: float = 0.0
    spacing_s: float = 0.0
    noise_decode: F64 = field(default_factory=_one)
    noise_mixed: F64 = field(default_factory=_one)

    def decode(self, sequences: int, kv_tokens: float) -> float:
        """Seconds of a decode step of ``sequences`` sequences that read ``kv_tokens`` tokens."""
        floor = self.host_s + self.host_seq_s * sequences
        return max(floor, at(self.decode_s, sequences) + self.kv_s * kv_tokens)

    def mixed(self, sequences: int, kv_tokens: float, prefill: int, pairs: float, chunks: int) -> float:
        """Seconds of a step with ``prefill`` prompt tokens in ``chunks`` chunks beside ``sequences`` decodes."""
        floor = self.host_s + self.host_seq_s * (sequences + chunks)
        work = at(self.mixed_s, sequences + prefill) + self.kv_s * kv_tokens
        return max(floor, work + self.pair_s * pairs + self.chunk_s * chunks)

    def decode_energy(self, sequences: int, kv_tokens: float, seconds: float) -> float:
        """Joules of a decode step that took ``seconds``."""
        return self.busy_w * seconds + at(self.decode_j, sequences) + self.kv_j * kv_tokens

    def mixed_energy(self, sequences: int, kv_tokens: float, prefill: int, pairs: float, seconds: float) -> float:
        """Joules of a step with prefill that took ``seconds``."""
        tokens = at(self.mixed_j, sequences + prefill)
        return self.busy_w * seconds + tokens + self.kv_j * kv_tokens + self.pair_j * pairs


def at(table: F64, index: int) -> float:
    """The table's value, its last one beyond the end."""
    return float(table[min(index, len(table) - 1)])


def decode_run(model: StepModel, sequences: int, kv_tokens: float, steps: int) -> float:
    """Seconds of ``steps`` decode steps of an unchanged batch, in closed form.

    Each step reads ``sequences`` more KV tokens than the one before, so a run is an arithmetic series; where the host's
    floor holds at first, it ends at one step, found by division.
    """
    floor = model.host_s + model.host_seq_s * sequences
    first = at(model.decode_s, sequences) + model.kv_s * kv_tokens
    slope = model.kv_s * sequences
    under = floor_steps(floor, first, slope, steps)
    over = steps - under
    head = first + slope * under
    return floor * under + head * over + slope * over * (over - 1) / 2


def floor_steps(floor: float, first: float, slope: float, steps: int) -> int:
    """Of ``steps`` steps that take first, first + slope, …: how many are below ``floor``."""
    if first >= floor:
        return 0
    if floor - first > slope * steps:
        return steps
    return min(steps, math.ceil((floor - first) / slope))


def piecewise(knots: F64, values: F64, length: int) -> F64:
    """A table of ``length`` + 1 values through (knots, values), flat before the first knot, its last slope beyond."""
    x = np.arange(length + 1, dtype=np.float64)
    table = np.interp(x, knots, values)
    if len(knots) > 1 and knots[-1] < length:
        slope = (values[-1] - values[-2]) / (knots[-1] - knots[-2])
        beyond = x > knots[-1]
        table[beyond] = values[-1] + slope * (x[beyond] - knots[-1])
    return np.asarray(table, dtype=np.float64)


def resampled(pool: F64, seed: int, length: int = NOISE_LENGTH) -> F64:
    """``length`` draws with replacement from measured / modelled ratios; a pool of one is returned as it is."""
    if len(pool) <= 1:
        return pool
    return np.asarray(np.random.default_rng(seed).choice(pool, size=length), dtype=np.float64)
