"""Fleets: routing, replicas that come, go and fail, and what must hold whatever happens."""

import sys

import numpy as np
import pytest
from sim_loads import load, model

from qmeter.errors import AnalysisError, MissingExtra, UnknownName
from qmeter.simulate.fast import simulate
from qmeter.simulate.fleet import ROUTERS, Change, Fleet, FleetEvent, ReplicaKind, run_fleet
from qmeter.simulate.load import SimLoad
from qmeter.simulate.rules import Rules
from qmeter.simulate.spread import SPREADS, Cores, Here, RayTasks

RULES = Rules(2048, 64, 4000)


FRONT = {"output_seq_s": 2e-4, "input_each_s": 7e-4}


def kind(front=None, **more):
    return ReplicaKind("a", RULES, model(idle_w=100.0, **(front or {})), **more)


def traffic(n=600, rate=60.0, seed=0):
    rng = np.random.default_rng(seed)
    return load(np.cumsum(rng.exponential(1 / rate, n)), rng.integers(1, 400, n), rng.integers(1, 120, n))


@pytest.mark.parametrize("router", ROUTERS)
def test_a_fleet_of_one_is_that_replica(router):
    made = traffic(rate=20)
    alone, fleet = simulate(made, RULES, model()), run_fleet(Fleet((kind(),), (0,), router=router), made)
    np.testing.assert_allclose(fleet.end_s, alone.end_s, atol=1e-9)
    assert fleet.steps.sum() == alone.steps


@pytest.mark.parametrize("router", ROUTERS)
def test_every_replica_does_what_it_would_do_alone_with_its_requests(router):
    made = traffic()
    fleet = run_fleet(Fleet((kind(FRONT),), (0, 0, 0), router=router), made)
    for r in range(3):
        own = fleet.home == r
        alone = simulate(SimLoad(made.arrival_s[own], made.prompt[own], made.output[own]), RULES, model(**FRONT))
        for name in ("first_s", "end_s", "first_out_s", "end_out_s"):
            np.testing.assert_allclose(getattr(fleet, name)[own], getattr(alone, name), atol=1e-9, err_msg=name)
    assert (fleet.end_out_s > fleet.end_s).all()


def test_the_last_step_of_an_asynchronous_replica_is_seen():
    """GIVEN replicas advanced up to an arrival in the middle of a pipeline THEN every request still ends."""
    rules = Rules(2048, 64, 4000, async_scheduling=True)
    for seed in range(20):
        made = traffic(n=150, rate=16.0, seed=seed)
        fleet = run_fleet(Fleet((ReplicaKind("a", rules, model()),), (0,) * 16), made)
        assert np.isfinite(fleet.first_s).all() and np.isfinite(fleet.end_s).all()


def test_least_loaded_beats_round_robin_on_unequal_replicas():
    slow = ReplicaKind("slow", RULES, model(host_s=0.03))
    made = traffic(rate=30)
    mean = {r: np.mean((f := run_fleet(Fleet((kind(), slow), (0, 0, 1), router=r), made)).end_s - f.arrival_s)
            for r in ("round-robin", "least-loaded")}  # fmt: skip
    assert mean["least-loaded"] < mean["round-robin"]


def test_kv_aware_routing_finds_more_prefixes():
    rng = np.random.default_rng(3)
    n, length = 400, 20
    units = np.concatenate([np.arange(length) + length * int(rng.integers(12)) for _ in range(n)])
    made = SimLoad(np.cumsum(rng.exponential(0.03, n)), np.full(n, length * 16 + 5), np.full(n, 20), 16, units,
                   length * np.arange(n + 1))  # fmt: skip
    rules = Rules(2048, 64, 130, prefix_cache=True)
    hits = {r: run_fleet(Fleet((ReplicaKind("a", rules, model()),), (0,) * 6, router=r), made).hit_tokens.sum()
            for r in ("round-robin", "kv-aware")}  # fmt: skip
    assert hits["kv-aware"] > 1.3 * hits["round-robin"] > 0


def test_classes_go_to_the_replicas_that_serve_them():
    made = traffic()
    classes = np.arange(len(made)) % 3
    serves = (frozenset({0}), frozenset({1}), frozenset({0, 1}))
    fleet = run_fleet(Fleet((kind(),), (0, 0, 0), serves=serves), made, classes)
    assert set(fleet.home[classes == 0]) <= {0, 2} and set(fleet.home[classes == 1]) <= {1, 2}
    assert set(fleet.home[classes == 2]) == {-1} and np.isnan(fleet.end_s[classes == 2]).all()


def test_a_started_replica_serves_once_its_model_is_loaded():
    made = traffic(rate=60)
    up = (True, False)
    start = (FleetEvent(2.0, 1, Change.START),)
    fleet = run_fleet(Fleet((kind(load_s=3.0, load_w=200.0),), (0, 0), up=up, events=start), made)
    second = fleet.arrival_s[fleet.home == 1]
    assert second.min() >= 5.0 and len(second) > 10
    assert fleet.load_energy_j[1] == pytest.approx(600.0)
    assert fleet.up_s[0] > fleet.up_s[1]


def test_a_stopped_replica_finishes_what_it_has_and_takes_no_more():
    made = traffic()
    fleet = run_fleet(Fleet((kind(),), (0, 0), events=(FleetEvent(3.0, 0, Change.STOP),)), made)
    assert fleet.arrival_s[fleet.home == 0].max() < 3.0
    assert np.isfinite(fleet.end_s).all()


def test_a_failed_replica_loses_its_requests_and_they_are_served_elsewhere():
    made = traffic(rate=100)
    fleet = run_fleet(Fleet((kind(),), (0, 0), events=(FleetEvent(3.0, 0, Change.FAIL),)), made)
    again = fleet.restarts > 0
    assert again.any() and np.isfinite(fleet.end_s).all()
    assert (fleet.first_s[again] > 3.0).all() and (fleet.home[again] == 1).all()
    assert (fleet.end_s[fleet.home == 0] < 3.1).all()


def test_a_failed_replica_loses_its_front_ends_queue_too():
    """GIVEN a front end seconds behind WHEN its replica fails and starts again THEN it begins with nothing in it."""
    made = traffic(n=400, rate=100)
    events = (FleetEvent(2.0, 0, Change.FAIL), FleetEvent(2.5, 0, Change.START))
    runs = [run_fleet(Fleet((kind({"output_seq_s": 0.02}),), (0,), events=e), made) for e in (events, ())]
    next_one = int(np.argmax(made.arrival_s > 2.5))
    fresh, behind = (r.first_out_s[next_one] - made.arrival_s[next_one] for r in runs)
    assert fresh < 0.2 and behind > 5.0


def test_with_nobody_left_requests_are_not_served():
    made = traffic(n=100, rate=10)
    fleet = run_fleet(Fleet((kind(),), (0,), events=(FleetEvent(3.0, 0, Change.FAIL),)), made)
    assert np.isnan(fleet.end_s[fleet.arrival_s > 3.0]).all()
    assert fleet.up_s[0] == pytest.approx(3.0)


def test_energy_adds_up():
    made = traffic(rate=10)
    fleet = run_fleet(Fleet((kind(),), (0, 0)), made)
    assert fleet.idle_energy_j.sum() == pytest.approx(100.0 * (fleet.up_s - fleet.busy_s).sum())
    assert fleet.energy_j == pytest.approx(fleet.step_energy_j.sum() + fleet.idle_energy_j.sum())


def test_mistakes_are_named():
    with pytest.raises(UnknownName, match="router"):
        run_fleet(Fleet((kind(),), (0,), router="least-load"), traffic(10))
    with pytest.raises(AnalysisError, match="at least one replica"):
        run_fleet(Fleet((kind(),), ()), traffic(10))
    with pytest.raises(AnalysisError, match="classes"):
        run_fleet(Fleet((kind(),), (0,)), traffic(10), np.full(10, 99))


def square(x):
    return x * x


def test_runs_spread_over_cores_in_order():
    assert list(Cores(2).map(square, range(9))) == list(Here().map(square, range(9))) == [x * x for x in range(9)]
    assert SPREADS.names()[:3] == ["here", "cores", "ray"]


def test_ray_is_an_extra():
    try:
        import ray  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtra, match="ray"):
            list(RayTasks().map(square, [1]))


def test_ray_gets_one_task_an_item_and_answers_in_order(monkeypatch):
    """GIVEN a stand-in for ray THEN the same seam gives what the other ways give."""
    import types

    calls = []

    def remote(function):
        def task(item):
            calls.append(item)
            return lambda: function(item)

        return types.SimpleNamespace(remote=task)

    fake = types.SimpleNamespace(is_initialized=lambda: False, init=lambda **_: calls.append("init"), remote=remote,
                                 get=lambda reference: reference())  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", fake)
    assert list(RayTasks().map(square, range(5))) == [0, 1, 4, 9, 16]
    assert calls == ["init", 0, 1, 2, 3, 4]
