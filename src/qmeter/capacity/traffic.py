"""Traffic as classes of requests, and seeded samples of it whose rate can be turned without drawing anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qmeter.errors import AnalysisError
from qmeter.spec.workload import SLO, Lengths
from qmeter.workload.lengths import draw_tokens

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

LEAST_OF_A_CLASS = 400
MOST_REQUESTS = 60_000


class LengthLaw(Protocol):
    """Draws pairs of prompt and output lengths."""

    def draw(self, n: int, rng: np.random.Generator) -> tuple[I64, I64]:
        """``(prompt, output)``, each of shape (n,). Units: tokens."""
        ...


@dataclass(frozen=True)
class Drawn:
    """Prompt and output lengths that do not depend on each other, each by a law of the study's kinds."""

    prompt: Lengths
    output: Lengths

    def draw(self, n: int, rng: np.random.Generator) -> tuple[I64, I64]:
        """``(prompt, output)``, each of shape (n,). Units: tokens."""
        prompt, output = draw_tokens(self.prompt, n, rng), draw_tokens(self.output, n, rng)
        return prompt.astype(np.int64), output.astype(np.int64)


@dataclass(frozen=True)
class Empirical:
    """Pairs seen in a trace, drawn with replacement: prompt and output of one request stay together.

    Attributes:
        prompt, output: tokens of each request seen.
    """

    prompt: tuple[int, ...]
    output: tuple[int, ...]

    def draw(self, n: int, rng: np.random.Generator) -> tuple[I64, I64]:
        """``(prompt, output)``, each of shape (n,). Units: tokens."""
        pick = rng.integers(0, len(self.prompt), n)
        return np.asarray(self.prompt, dtype=np.int64)[pick], np.asarray(self.output, dtype=np.int64)[pick]


@dataclass(frozen=True)
class ClassLoad:
    """What one class of traffic sends, and what it was promised.

    Attributes:
        name: for people and reasons.
        lengths: prompt and output tokens.
        slo: limits on TTFT, TPOT and end-to-end time that a share ``slo.percentile`` of its requests must meet.
        burstiness: shape of gamma gaps: 1 is Poisson, below 1 burstier (CV = burstiness ** -0.5).
    """

    name: str
    lengths: LengthLaw
    slo: SLO
    burstiness: float = 1.0


@dataclass(frozen=True)
class Mix:
    """Classes that share a replica, with their shares of the requests (made to sum to 1).

    Raises:
        AnalysisError: no class, or a share that is not positive.
    """

    classes: tuple[ClassLoad, ...]
    shares: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not self.classes or len(self.classes) != len(self.shares) or min(self.shares) <= 0:
            raise AnalysisError("a mix needs at least one class, and a positive share for each",
                                hint="leave classes out that send nothing")  # fmt: skip
        total = sum(self.shares)
        object.__setattr__(self, "shares", tuple(s / total for s in self.shares))


@dataclass(frozen=True)
class Sample:
    """Requests of a mix in the order they are sent, at a total rate of 1/s: divide ``sent_unit`` by a rate to use it.

    Attributes:
        sent_unit: send times at rate 1/s, ascending, shape (n,).
        prompt, output: tokens, shape (n,).
        group: index of each request's class in the mix, shape (n,).
    """

    mix: Mix
    sent_unit: F64
    prompt: I64
    output: I64
    group: I64

    def __len__(self) -> int:
        return len(self.group)


def sample(mix: Mix, requests: int, seed: int) -> Sample:
    """Draw about ``requests`` requests, more where a class would have fewer than 400 (60,000 at most).

    Streams of the classes are independent; the same seed gives the same requests at every rate (common random
    numbers), so that comparing rates, offers and draws compares nothing else.
    """
    n = int(min(max(requests, LEAST_OF_A_CLASS / min(mix.shares)), MOST_REQUESTS))
    parts = [_stream(c, share, n, np.random.default_rng((seed, i))) for i, (c, share) in enumerate(_both(mix))]
    sent = np.concatenate([p[0] for p in parts])
    order = np.argsort(sent, kind="stable")
    group = np.repeat(np.arange(len(parts)), [len(p[0]) for p in parts])
    prompt, output = (np.concatenate([p[k] for p in parts]) for k in (1, 2))
    return Sample(mix, sent[order], prompt[order], output[order], group[order])


def _both(mix: Mix) -> list[tuple[ClassLoad, float]]:
    return list(zip(mix.classes, mix.shares, strict=True))


def _stream(load: ClassLoad, share: float, horizon: int, rng: np.random.Generator) -> tuple[F64, I64, I64]:
    """Send times of one class over ``horizon`` units of time, with lengths."""
    b = load.burstiness
    expected = share * horizon
    sent = np.zeros(0)
    while not len(sent) or sent[-1] < horizon:
        room = int(expected + 6 * np.sqrt(expected / min(b, 1.0)) + 16)
        more = rng.gamma(b, 1 / (b * share), room)
        sent = np.concatenate([sent, (sent[-1] if len(sent) else 0.0) + np.cumsum(more)])
    sent = sent[sent < horizon]
    prompt, output = load.lengths.draw(len(sent), rng)
    return sent, prompt, output
