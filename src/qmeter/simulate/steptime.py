"""How long one scheduler step takes and what energy it costs, as a function of its batch.

    device = table(batch) + kv_s * KV + pair_s * pairs + chunk_s * chunks      (KV: times kv_mixed beside a prefill)
    host   = host_s + host_seq_s * sequences            (host_mixed_... for a step with prefill)

``table`` is piecewise linear and non-decreasing: over the number of sequences for a decode step (its kinks are the
kernel switches and CUDA-graph sizes that the data shows), over all tokens for a step with prefill. KV is the number of
cache tokens that the decodes read, pairs the query-key pairs of the prefill chunks. The host prepares and launches a
step, the device computes it. A step that is decided when the one before it has ended lasts max(device, host + tail_s).
A step decided while another runs (asynchronous scheduling) is launched at once, and the results of the other are seen
only when that is done: see :class:`Pipeline`. Energy has the form of the device's time, without the host, plus
``busy_w`` a second. All coefficients are non-negative, so time and energy never fall when work is added.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qmeter.simulate.clocks import SETTLE_S

F64 = NDArray[np.float64]

NOISE_LENGTH = 65536
NOISE_BLOCK = 256
LAUNCH_BLOCK = 16
"""Steps with prefill resampled together: a second or so of a busy engine."""


def _one() -> F64:
    return np.ones(1)


@dataclass(frozen=True)
class StepModel:
    """Step time and energy of one replica.

    Attributes:
        decode_s: seconds of a decode step by number of sequences, index 0..max_sequences.
        mixed_s: seconds of a step with prefill by its tokens, index 0..token_budget.
        kv_s: seconds a KV token read by a decode; kv_mixed: times that in a step with prefill, whose attention reads
            sequences of all lengths in one kernel.
        pair_s: seconds a query-key pair of a prefill chunk.
        chunk_s: seconds a prefill chunk.
        host_s, host_seq_s: the host's time to launch a decode step, and a sequence of it.
        host_mixed_s, host_mixed_seq_s: the same for a step with prefill (no CUDA graph: launched kernel by kernel).
        tail_s: what the device still has to do when the host has launched all of a step; at most ``host_s``.
        decode_j, mixed_j, padding_j, kv_j, pair_j: energy of decodes by their number, of prefill by its tokens, of the
            tiles that all tokens of a mixed step leave part empty, of KV tokens and pairs; ``busy_w``: power while a
            step runs; ``launch_w``: while its device waits for the launch (``None``: the same).
        mixed_clock_s: the part of ``mixed_s`` that a lower clock makes longer, by 1 / clock (of pairs it is all).
        cap_w, settle_s: what power settles at under its limit (inf: no limit known), and the time constant of the
            average that is held there: see :mod:`qmeter.simulate.clocks`.
        idle_w: power with nothing to run.
        input_s, output_s: from the send to the scheduler, and from a step's end to the client.
        output_seq_s: the front end's time for each token it sends on: a queue, served one after the other, so that it
            falls behind where it is slower than the engine, and a request waits until the outputs before it are out.
        input_each_s: the front end's time for each request, in the same queue.
        spacing_s: the front end lets requests through one at a time, this far apart.
        noise_decode, noise_mixed: measured / modelled step times, to be drawn from (mean 1).
    """

    decode_s: F64
    mixed_s: F64
    kv_s: float = 0.0
    kv_mixed: float = 1.0
    pair_s: float = 0.0
    chunk_s: float = 0.0
    host_s: float = 0.0
    host_seq_s: float = 0.0
    host_mixed_s: float = 0.0
    host_mixed_seq_s: float = 0.0
    tail_s: float = 0.0
    decode_j: F64 = field(default_factory=lambda: np.zeros(1))
    mixed_j: F64 = field(default_factory=lambda: np.zeros(1))
    padding_j: F64 = field(default_factory=lambda: np.zeros(1))
    kv_j: float = 0.0
    pair_j: float = 0.0
    mixed_clock_s: F64 = field(default_factory=lambda: np.zeros(1))
    cap_w: float = float("inf")
    settle_s: float = SETTLE_S
    busy_w: float = 0.0
    launch_w: float | None = None
    idle_w: float = 0.0
    input_s: float = 0.0
    output_s: float = 0.0
    output_seq_s: float = 0.0
    input_each_s: float = 0.0
    spacing_s: float = 0.0
    noise_decode: F64 = field(default_factory=_one)
    noise_mixed: F64 = field(default_factory=_one)

    def decode(self, sequences: int, kv_tokens: float) -> float:
        """Seconds of a decode step of ``sequences`` sequences that read ``kv_tokens`` tokens, alone or in a run."""
        return max(self.decode_device(sequences, kv_tokens), self.decode_host(sequences))

    def decode_device(self, sequences: int, kv_tokens: float) -> float:
        """The device's seconds of a decode step."""
        return at(self.decode_s, sequences) + self.kv_s * kv_tokens

    def decode_host(self, sequences: int) -> float:
        """The host's seconds of a decode step."""
        return self.host_s + self.host_seq_s * sequences

    def mixed(self, sequences: int, kv_tokens: float, prefill: int, pairs: float, chunks: int) -> float:
        """Seconds of a step with ``prefill`` prompt tokens in ``chunks`` chunks beside ``sequences`` decodes."""
        device = self.mixed_device(sequences, kv_tokens, prefill, pairs, chunks)
        return max(device, self.mixed_host(sequences + chunks))

    def mixed_device(self, sequences: int, kv_tokens: float, prefill: int, pairs: float, chunks: int) -> float:
        """The device's seconds of a step with prefill."""
        tokens = at(self.mixed_s, sequences + prefill) + self.kv_s * self.kv_mixed * kv_tokens
        return tokens + self.pair_s * pairs + self.chunk_s * chunks

    def mixed_host(self, sequences: int) -> float:
        """The host's seconds of a step with prefill over ``sequences`` sequences."""
        return self.host_mixed_s + self.host_mixed_seq_s * sequences

    def decode_energy(self, sequences: int, kv_tokens: float, seconds: float) -> float:
        """Joules of a decode step that took ``seconds``."""
        return self.busy_w * seconds + at(self.decode_j, sequences) + self.kv_j * kv_tokens

    def mixed_energy(
        self, sequences: int, kv_tokens: float, prefill: int, pairs: float, seconds: float, clock: float = 1.0
    ) -> float:
        """Joules of a step with prefill that took ``seconds`` at ``clock`` (share of the full one)."""
        work = at(self.mixed_j, prefill) + at(self.padding_j, sequences + prefill) + self.pair_j * pairs
        work += at(self.decode_j, sequences) + self.kv_j * kv_tokens
        return self.busy_w * seconds + work * clock * clock

    @property
    def waiting_w(self) -> float:
        """Power of a device that waits for a launch."""
        return self.busy_w if self.launch_w is None else self.launch_w

    def mixed_clocked(self, sequences: int, prefill: int, pairs: float) -> float:
        """Of a mixed step's device seconds, those that a lower clock makes longer."""
        return at(self.mixed_clock_s, sequences + prefill) + self.pair_s * pairs


def at(table: F64, index: int) -> float:
    """The table's value, its last one beyond the end."""
    return float(table[min(index, len(table) - 1)])


@dataclass
class Pipeline:
    """When steps end: host and device in turn, or with asynchronous scheduling overlapped.

    With d the time of the decision, H and D the host's and the device's seconds of step k, and g the device's end:

        launched(k) = d(k) + H(k)                              the host launches step k right after it was decided
        g(k) = max(max(g(k-1), d(k)) + D(k), launched(k) + tail)
        r(k-1) = max(launched(k), g(k-1))                      the results of k-1 are seen only then
        d(k+1) = r(k-1), or launched(k) where nothing ran before

    Attributes:
        asynchronous: a step is decided while the one before it runs.
        tail_s: see :class:`StepModel`.
        decide_s: when the next step is decided.
        device_s: when the device has done the newest step.
        running: a step was launched whose results were not seen yet.
    """

    asynchronous: bool
    tail_s: float
    decide_s: float = 0.0
    device_s: float = 0.0
    running: bool = False

    def launch(self, host: float, device: float) -> float | None:
        """Launch a step. Returns when the results of the step before it are seen; ``None``: none was running.

        In the synchronous case: when the results of this very step are seen.
        """
        decided = self.decide_s
        launched = decided + host
        seen = max(launched, self.device_s) if self.running else None
        self.device_s = max(max(self.device_s, decided) + device, launched + self.tail_s)
        if not self.asynchronous:
            self.decide_s = self.device_s
            return self.device_s
        self.decide_s = launched if seen is None else seen
        self.running = True
        return seen

    def drain(self) -> float:
        """Wait for the running step; returns when its results are seen, which is when the next can be decided."""
        self.running = False
        self.decide_s = self.device_s
        return self.device_s


def piecewise(knots: F64, values: F64, length: int) -> F64:
    """A table of ``length`` + 1 values through (knots, values), flat before the first knot, its last slope beyond."""
    x = np.arange(length + 1, dtype=np.float64)
    table = np.interp(x, knots, values)
    if len(knots) > 1 and knots[-1] < length:
        slope = (values[-1] - values[-2]) / (knots[-1] - knots[-2])
        beyond = x > knots[-1]
        table[beyond] = values[-1] + slope * (x[beyond] - knots[-1])
    return np.asarray(table, dtype=np.float64)


def resampled(series: F64, seed: int, length: int = NOISE_LENGTH, block: int = NOISE_BLOCK) -> F64:
    """``length`` measured / modelled ratios, drawn in blocks of ``block`` consecutive steps with replacement.

    Slow spells of a host last many steps; single steps drawn at random would average them away, and with them the tail
    of TTFT. A series of one is returned as it is.
    """
    if len(series) <= 1:
        return series
    rng = np.random.default_rng(seed)
    size = min(block, len(series))
    starts = rng.integers(0, len(series), -(-length // size))
    at = (starts[:, None] + np.arange(size)[None, :]) % len(series)
    return np.ascontiguousarray(series[at].ravel()[:length], dtype=np.float64)
