"""Every sampler behind the seam: no point twice, the same again, good points sooner than chance, failures avoided."""

from __future__ import annotations

import numpy as np
import pytest
import tune_worlds as w

from qmeter.errors import MissingExtra, UnknownName
from qmeter.tune.feasibility import Feasibility
from qmeter.tune.hypervolume import Partition, front_mask
from qmeter.tune.problem import Seen
from qmeter.tune.samplers.base import SAMPLERS, make

NAMES = [n for n in SAMPLERS.names() if n != "gp"]


def share(points) -> list[float]:
    """True hypervolume share after each point."""
    made = w.problem()
    every = [w.truth(p) for p in made.space.points]
    losses = np.array([[t.loss(v[t.key]) for t in w.TERMS] for v in every if v])
    good = losses[losses[:, 0] <= w.TTFT.loss(2.0)]
    front = good[front_mask(good)]
    reference, floor = front.max(axis=0) + 0.05, front.min(axis=0)
    whole, part = Partition(reference, floor), Partition(reference, floor)
    for row in front:
        whole.add(row)
    out = []
    for p in points:
        if (v := w.truth(p)) is not None:
            part.add(np.array([t.loss(v[t.key]) for t in w.TERMS]))
        out.append(part.volume / whole.volume)
    return out


@pytest.mark.parametrize("name", NAMES)
def test_no_point_twice_and_the_same_search_again(name):
    made = w.problem(known=w.low(1.1))
    first, again = (w.search(make(name, made), made, 18) for _ in range(2))
    assert len(set(first)) == 18 and first == again
    assert all(p in made.space.row for p in first)


@pytest.mark.parametrize("name", NAMES)
def test_a_space_that_is_used_up_ends(name):
    small = w.Space({"method": ("bf16", "fp8"), "max_sequences": (8, 16)}, w.space().shape, "vllm")
    made = w.Problem(small, w.TERMS, (w.TTFT,), budget=10)
    sampler, seen = make(name, made), []
    while (p := sampler.ask()) is not None:
        seen.append(p)
        sampler.tell(Seen(p, (0.0, 0.0, 0.0), (-1.0,)))
    assert len(seen) == len(set(seen)) == 4


def needs(sampler, most, **how) -> float:
    """Median over seeds of the measurements up to 95% of the true hypervolume."""
    counts = []
    for seed in range(2):
        made = w.problem(seed=seed, **how)
        curve = share(w.search(make(sampler, made), made, most, seed))
        counts.append(next((i + 1 for i, s in enumerate(curve) if s >= 0.95), 999))
    return float(np.median(counts))


@pytest.fixture(scope="module")
def random_needs():
    return needs("random", 288)


@pytest.mark.parametrize(("name", "known"), [("ehvi", None), ("informed", w.low(1.15)), ("informed", w.low(lie=True))],
                         ids=["blind", "informed", "misled"])  # fmt: skip
def test_the_surrogates_need_a_fraction_of_random(name, known, random_needs):
    """On a space of 288 points; also where the low fidelity says the opposite of the truth, which is then dropped."""
    assert needs(name, 50, known=known) <= random_needs / 2


def test_methods_that_were_refused_are_never_asked_for_again():
    feasible = Feasibility(w.space())
    rows = [i for i, p in enumerate(w.space().points) if p.get("method") == "awq-w4a16"]
    feasible.tell(Seen(w.space().points[rows[0]], None, (), "MethodNotApplied"))
    assert all(feasible.ruled_out(i) for i in rows) and "awq-w4a16" in feasible.lessons[0]
    assert not any(feasible.ruled_out(i) for i in set(range(len(w.space()))) - set(rows))


def test_out_of_memory_rules_out_what_needs_as_much_and_no_more():
    s = w.space()
    feasible = Feasibility(s)
    point = next(p for p in s.points if (p.get("method"), p.get("max_sequences"), p.get("token_budget")) ==
                 ("fp8", 64, 2048))  # fmt: skip
    feasible.tell(Seen(point, None, (), "OutOfMemory"))
    for i, p in enumerate(s.points):
        hungry = p.get("max_sequences") >= 64 and p.get("token_budget") >= 2048 and p.get("method") in (
            "fp8", "fp8-kv8", "bf16")  # fmt: skip
        assert feasible.ruled_out(i) == hungry, p.label


def test_failures_without_a_rule_make_neighbours_unlikely_only():
    s = w.space()
    feasible = Feasibility(s)
    feasible.tell(Seen(s.points[0], None, (), "EngineCrashed"))
    chance = feasible.probability(np.arange(len(s)))
    assert 0 < chance[0] < 0.4 and chance.max() > 0.85 and not feasible.ruled_out(0)


def test_what_is_missing_is_named(monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "optuna":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match="tune"):
        make("tpe", w.problem())
    with pytest.raises(UnknownName, match="informd"):
        make("informd", w.problem())
