"""A small made world to search: smooth truth over knobs and methods, noise, and points that fail."""

from __future__ import annotations

import math

import numpy as np

from qmeter import catalog
from qmeter.analysis.metrics import Better
from qmeter.record import Quantity
from qmeter.tune.problem import Problem, Term
from qmeter.tune.space import Point, Space

AXES = {
    "method": ("bf16", "fp8", "awq-w4a16", "fp8-kv8"),
    "max_sequences": (8, 16, 32, 64, 128, 256),
    "token_budget": (256, 512, 1024, 2048, 4096, 8192),
    "chunked_prefill": (True, False),
}
TTFT = Term("ttft_p90_s", "chat", Better.LOWER, 2.0)
TPOT = Term("tpot_mean_s", "chat", Better.LOWER)
JOULES = Term("j_per_output_token", "chat", Better.LOWER)
TERMS = (TTFT, TPOT, JOULES)
SPEED = {"bf16": 1.0, "fp8": 0.7, "awq-w4a16": 0.62, "fp8-kv8": 0.66}


def space(axes=None) -> Space:
    return Space(axes or AXES, catalog.model("llama-3.1-8b"), "vllm")


def truth(point: Point) -> dict[str, float] | None:
    """Losses' values, ``None`` where the point fails."""
    method, seqs, budget = (point.get(a) for a in ("method", "max_sequences", "token_budget"))
    if not point.get("chunked_prefill") and budget < 2048:
        return None
    speed = SPEED[method] * (1.25 if method == "awq-w4a16" and budget > 1024 else 1.0)
    return {
        TTFT.key: 0.05 * speed * (1 + 60 / seqs) * (1 + 600 / budget),
        TPOT.key: 0.006 * speed * (1 + seqs / 200) * (1 + budget / 12000),
        JOULES.key: 0.15 * speed**0.7 * (1 + 25 / seqs),
    }


def measured(point: Point, rng=None, sigma=0.01) -> dict[str, Quantity] | None:
    values = truth(point)
    if values is None:
        return None
    shake = (lambda: math.exp(rng.normal(0, sigma))) if rng is not None else (lambda: 1.0)
    units = {t.key: t.unit for t in TERMS}
    return {k: Quantity.of(x := v * shake(), units[k], low=x * 0.98, high=x * 1.02) for k, v in values.items()}


def low(bias=1.0, lie=False) -> dict[Point, dict[str, float]]:
    """A low fidelity: the truth times a bias that differs by method; ``lie``: turned upside down."""
    out = {}
    for point in space().points:
        values = truth(point)
        if values is not None:
            factor = bias ** list(SPEED).index(str(point.get("method")))
            out[point] = {k: (1e-3 / v if lie else v * factor) for k, v in values.items()}
    return out


def problem(seed=1, budget=60, known=None) -> Problem:
    return Problem(space(), TERMS, (TTFT,), known or {}, seed=seed, budget=budget)


def search(sampler, made: Problem, evaluations: int, seed=0):
    """Points in the order that they were measured."""
    rng, points = np.random.default_rng(seed), []
    while len(points) < evaluations and (point := sampler.ask()) is not None:
        points.append(point)
        values = measured(point, rng)
        sampler.tell(made.seen(point, values or {}, None if values else "AnalysisError"))
    return points
