"""Summaries, Pareto sets and recommendations from plain records."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qmeter.analysis.compare import Axis, Relation, dominates, log_gain, paired_relation, pareto, relation
from qmeter.analysis.metrics import METRICS, Better, metric
from qmeter.analysis.points import SLOVerdict, stand, verdict
from qmeter.analysis.recommend import Criterion, QualityVerdict
from qmeter.analysis.repeats import over_repeats
from qmeter.analysis.summary import StudySummary, summarise
from qmeter.record import (
    CellStatus,
    EffectiveConfig,
    Provenance,
    Quantity,
    Reason,
    Record,
    RecordKind,
)
from qmeter.spec.workload import SLO
from qmeter.store import open_results

PROVENANCE = Provenance(
    qmeter_version="0", git_commit=None, started_unix_s=0, host={}, versions={}, engine_command=None, engine_env={},
    model={}, hashes={}, seed=0,
)  # fmt: skip


def q(value: float, spread: float = 0.01, unit: str = "1", n: int = 100) -> Quantity:
    return Quantity.of(value, unit, low=value * (1 - spread), high=value * (1 + spread), n=n)


def record(
    method: str,
    rate: float = 4,
    *,
    repeat: int = 0,
    attained: float = 1.0,
    goodput: float | None = None,
    energy: float | None = 1.0,
    ppl: float | None = 1.0,
    weights: int | None = 100,
    status: CellStatus = CellStatus.OK,
    warnings: tuple[Reason, ...] = (),
    slo: dict[str, float] | None = None,
    tp: int = 1,
    **changes: Any,
) -> Record:
    """One record with the numbers that a summary reads."""
    promise = {"ttft": 0.3, "tpot": None, "e2e": None, "percentile": 0.9} if slo is None else slo
    workload = {
        "name": f"w@{rate:g}", "arrivals": {"kind": "poisson", "rate": rate}, "prompts": {"kind": "synthetic"},
        "prompt_tokens": {"kind": "fixed", "tokens": 64}, "output_tokens": {"kind": "fixed", "tokens": 16},
        "slo": promise or None,
    }  # fmt: skip
    parts = {
        "model": {"name": "m"}, "engine": {"name": "e", "options": changes.pop("options", {})}, "method": method,
        "device": "d", "parallelism": {"tp": tp},
    }  # fmt: skip
    unknown = Quantity.unknown("J/token", "no counter")
    metrics = {
        "slo_attainment": Quantity.of(attained, "1", low=max(0, attained - 0.03), high=min(1, attained + 0.03), n=100),
        "goodput_hz": q(attained * rate if goodput is None else goodput, unit="1/s"),
        "throughput_tok_s": q(rate * 16, unit="token/s"),
        "e2e_mean_s": q(0.5, unit="s"),
    }
    return Record(
        kind=changes.get("kind", RecordKind.MEASURED),
        study="s",
        cell_id=f"{method}-{tp}-{rate}-{repeat}-{changes.get('kind', '')}",
        deployment_id=f"{method}-{tp}",
        status=status,
        reasons=(Reason(kind="OutOfMemory", stage="launch", message="too big"),) if status is CellStatus.FAILED else (),
        warnings=warnings,
        cell={"deployment": parts, "workload": workload, "repeat": repeat, "quality": {"reference": "ref"}},
        effective=EffectiveConfig(weight_bytes=weights),
        metrics=metrics if status is CellStatus.OK else {},
        energy={"j_per_output_token": unknown if energy is None else q(energy, unit="J/token")},
        quality={} if ppl is None else {"ppl_ratio": q(ppl, 0.002 if method != "ref" else 0.0)},
        provenance=PROVENANCE,
    )


def decide(*records: Record, **options: Any) -> StudySummary:
    made = summarise(records, **options)
    assert len(made.recommendations) == 1
    return made


def test_settings_of_one_engine_are_deployments_of_their_own_never_repeats() -> None:
    made = [record("a", options={"max_sequences": 64, "prefix_cache": True}),
            record("a", options={"max_sequences": 256, "prefix_cache": True}, repeat=1),
            record("b", options={"prefix_cache": True})]  # fmt: skip
    found = summarise(made)
    assert [d.key.label for d in found.deployments] == [
        "a max_sequences=64",
        "a max_sequences=256",
        "b max_sequences=default",
    ]
    assert all(len(p.cells) == 1 for d in found.deployments for p in d.points)
    alike = summarise([record("a", options={"max_sequences": 64}, repeat=k) for k in (0, 1)])
    assert [d.key.label for d in alike.deployments] == ["a"] and len(alike.deployments[0].points[0].cells) == 2


def test_cells_of_one_deployment_that_the_engine_served_unlike_are_told() -> None:
    """GIVEN three repeats, one of them by another kernel and one by another version that names none WHEN summarised
    THEN the page's notes say so, and nothing where all are alike."""
    own = [EffectiveConfig(kernel="Cutlass", engine_version="0.25"), EffectiveConfig(kernel="DeepGemm"),
           EffectiveConfig(kernel="Cutlass", engine_version="0.26")]  # fmt: skip
    made = [record("a", repeat=k).model_copy(update={"effective": e}) for k, e in enumerate(own)]
    [found] = summarise(made).deployments
    assert found.notes == (
        "the cells of a were not served alike: engine version 0.25 in 1 cell, 0.26 in 1 cell",
        "the cells of a were not served alike: kernel Cutlass in 2 cells, DeepGemm in 1 cell",
    )
    [alike] = summarise(made[:1]).deployments
    assert alike.notes == ()


def test_more_goodput_wins_over_everything_after_it() -> None:
    r = decide(
        record("ref", 4), record("ref", 8, attained=0.2), record("a", 4), record("a", 8, energy=3.0, weights=900)
    ).recommendations[0]
    assert r.choice and r.choice.deployment.key.label == "a"
    assert r.runner_up and r.runner_up.deployment.key.label == "ref" and r.lost_on is Criterion.GOODPUT
    assert r.at_limit


def test_energy_decides_between_equal_goodputs_then_memory() -> None:
    r = decide(record("ref", energy=2.0), record("a", energy=1.0), record("b", energy=1.5)).recommendations[0]
    assert r.choice and r.choice.deployment.key.label == "a" and r.lost_on is Criterion.ENERGY
    r = decide(record("ref"), record("a", weights=50)).recommendations[0]
    assert r.choice and r.choice.deployment.key.label == "a" and r.lost_on is Criterion.MEMORY


def test_a_tie_is_called_a_tie() -> None:
    r = decide(record("ref"), record("a")).recommendations[0]
    assert r.choice and [c.deployment.key.label for c in r.tied] in (["a"], ["ref"])
    assert r.runner_up is None


def test_unknown_energy_is_skipped_with_a_caveat_never_silently() -> None:
    r = decide(record("ref", energy=None), record("a", energy=None, weights=50)).recommendations[0]
    assert r.choice and r.choice.deployment.key.label == "a"
    assert any("energy was not compared" in c and "no counter" in c for c in r.caveats)


def test_worse_quality_is_ruled_out_and_wide_quality_is_a_caveat() -> None:
    r = decide(record("ref"), record("a", ppl=1.2, energy=0.1)).recommendations[0]
    assert r.choice and r.choice.deployment.key.label == "ref"
    assert {c.deployment.key.label: c.out for c in r.candidates}["a"] is Criterion.QUALITY
    loose = decide(record("ref"), record("a", ppl=1.2, energy=0.1), tolerance=0.3).recommendations[0]
    assert loose.choice and loose.choice.deployment.key.label == "a"
    wide = record("a", energy=0.1)
    wide = wide.model_copy(update={"quality": {"ppl_ratio": Quantity.of(1.04, "1", low=0.9, high=1.2)}})
    r = decide(record("ref"), wide).recommendations[0]
    assert r.choice and r.choice.quality is QualityVerdict.UNPROVEN
    assert any("not shown to be worse" in c for c in r.caveats)


def test_unknown_quality_is_not_recommended_while_known_ones_are_there() -> None:
    r = decide(record("ref"), record("a", ppl=None, energy=0.01)).recommendations[0]
    assert r.choice and r.choice.deployment.key.label == "ref"
    assert any("quality is unknown: a" in c for c in r.caveats)
    alone = decide(record("a", ppl=None), record("b", ppl=None, energy=0.5)).recommendations[0]
    assert alone.choice is not None
    made = decide(record("b", ppl=None, energy=0.5), reference="other").recommendations[0]
    assert any("quality is unknown for every candidate" in c for c in made.caveats)


def test_nothing_that_misses_the_slo_is_recommended() -> None:
    r = decide(record("ref", attained=0.5), record("a", attained=0.7)).recommendations[0]
    assert r.choice is None and all(c.out is Criterion.SLO for c in r.candidates)


def test_overload_misses_the_slo_whatever_the_window_showed() -> None:
    slo = SLO.model_construct(ttft=0.3, percentile=0.9)
    q99 = Quantity.of(0.99, "1", low=0.95, high=1.0)
    assert verdict(q99, slo, overloaded=False) is SLOVerdict.MET
    assert verdict(q99, slo, overloaded=True) is SLOVerdict.MISSED
    assert verdict(Quantity.of(0.92, "1", low=0.85, high=0.97), slo, overloaded=False) is SLOVerdict.LIKELY
    assert verdict(Quantity.of(0.88, "1", low=0.8, high=0.95), slo, overloaded=False) is SLOVerdict.UNLIKELY
    assert verdict(None, slo, overloaded=False) is SLOVerdict.UNKNOWN
    assert verdict(q99, None, overloaded=False) is SLOVerdict.UNKNOWN


def test_what_has_no_cell_at_the_higher_load_may_do_better_and_that_is_said() -> None:
    # GIVEN two methods that keep the SLO at 8/s, one whose cell there is invalid, and one that misses it there
    found = decide(
        record("bf16", 4), record("bf16", 8), record("fp8", 4), record("fp8", 8, status=CellStatus.INVALID),
        record("w4a16", 4), record("w4a16", 8, attained=0.2),
    ).recommendations[0]  # fmt: skip
    assert [k.method for k in found.cut_short] == ["fp8"]
    assert any("may do better: fp8" in c for c in found.caveats)
    assert decide(record("bf16", 4), record("bf16", 8)).recommendations[0].cut_short == ()
    # a simulation at a higher load, a worse quality and a load without a verdict cut nothing short that was not
    for extra in (
        [record("bf16", 16, kind=RecordKind.SIMULATED), record("fp8", 8)],
        [record("bf16", 8), record("fp8", 4, ppl=1.5)],
    ):
        assert decide(record("bf16", 4), record("bf16", 8), *extra).recommendations[0].cut_short == ()
    unsaid = decide(record("bf16", 4), record("bf16", 8), record("fp8", 4), record("fp8", 8, slo={}))
    assert [k.method for k in unsaid.recommendations[0].cut_short] == ["fp8"]


def test_failed_and_invalid_cells_are_listed_and_give_no_numbers() -> None:
    made = decide(
        record("ref"),
        record("a", status=CellStatus.FAILED),
        record("b"),
        record("b", repeat=1, status=CellStatus.INVALID),
    )
    assert [(p.key.label, p.status) for p in made.problems] == [("a", CellStatus.FAILED), ("b", CellStatus.INVALID)]
    assert (made.cells, made.valid_cells) == (4, 2)
    assert {d.key.label: len(d.points) for d in made.deployments} == {"ref": 1, "a": 0, "b": 1}


def test_measured_and_simulated_never_share_a_row() -> None:
    made = summarise([record("ref"), record("ref", kind=RecordKind.SIMULATED)])
    assert [d.key.label for d in made.deployments] == ["ref", "ref (simulated)"]


def test_no_records_make_an_empty_summary() -> None:
    made = summarise([])
    assert (made.deployments, made.recommendations, made.cells) == ((), (), 0)


def test_without_an_slo_throughput_decides() -> None:
    r = decide(record("ref", 4, slo={}), record("a", 8, slo={})).recommendations[0]
    assert r.slo is None and r.choice and r.choice.deployment.key.label == "a" and r.lost_on is Criterion.THROUGHPUT


def test_repeats_give_a_t_interval_and_unknown_repeats_stay_unknown() -> None:
    made = over_repeats("x", [q(1.0), q(2.0), q(3.0)])
    assert made.value == 2.0 and made.high == pytest.approx(2 + 4.3026527 / 3**0.5) and made.low == 0.0
    lost = over_repeats("x", [q(1.0), Quantity.unknown("1", "too few")])
    assert lost.value is None and lost.why == "unknown in 1 of 2 repeats: too few"
    one = over_repeats("x", [q(1.0)])
    assert one.low == pytest.approx(0.99) and "within the run" in str(one.why)
    with pytest.raises(ValueError, match="no repeats"):
        over_repeats("x", [])


def test_pooled_shares_keep_their_doubt_at_one() -> None:
    every = [Quantity.of(1.0, "1", low=0.9, high=1.0, n=30) for _ in range(2)]
    made = over_repeats("slo_attainment", every)
    assert made.value == 1.0 and made.n == 60 and (made.low or 1) < 0.95


def test_relations_know_their_noise() -> None:
    assert relation(q(1.0, 0.2), q(1.1, 0.2), Better.LOWER) is Relation.TIED
    assert relation(q(1.0, 0.01), q(1.1, 0.01), Better.LOWER) is Relation.BETTER
    assert relation(q(1.0, 0.01), q(1.1, 0.01), Better.HIGHER) is Relation.WORSE
    assert relation(q(1.0, 0.0), q(1.001, 0.0), Better.LOWER) is Relation.TIED
    assert relation(q(1.0), Quantity.unknown("1", "?"), Better.LOWER) is Relation.UNKNOWN


def test_paired_repeats_see_what_overlapping_intervals_hide() -> None:
    a, b = {0: 1.0, 1: 1.5, 2: 2.0}, {0: 1.05, 1: 1.57, 2: 2.11}
    assert paired_relation(a, b, Better.LOWER) is Relation.BETTER
    assert paired_relation(a, dict.fromkeys(a, 1.5), Better.LOWER) is Relation.TIED
    assert paired_relation({0: 1.0}, {0: 2.0}, Better.LOWER) is Relation.UNKNOWN


def test_pareto_keeps_what_is_only_beaten_within_noise() -> None:
    rows = [(10.0, 1.0), (10.0, 2.0), (5.0, 0.5), (9.99, 1.0)]
    axes = (Axis("speed", Better.HIGHER), Axis("energy", Better.LOWER))

    def stand(i: int, j: int) -> list[Relation]:
        return [relation(q(rows[i][k]), q(rows[j][k]), axes[k].better) for k in (0, 1)]

    assert pareto(len(rows), stand) == [None, 0, None, None]
    assert not dominates([Relation.BETTER, Relation.UNKNOWN])


def test_a_dominated_deployment_names_what_beats_it() -> None:
    made = decide(record("ref"), record("a", energy=0.5), record("b", energy=None))
    by = {p.key.label: p.dominated_by and p.dominated_by.label for p in made.pareto[0].points}
    assert by == {"ref": "a", "a": None, "b": None}


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_what_beats_it_is_on_the_front_itself(order: tuple[int, ...]) -> None:
    # GIVEN three methods, each better than the one before, WHEN they come in any order
    chain = [record("ref"), record("a", energy=0.8), record("b", energy=0.5)]
    made = decide(*(chain[k] for k in order))
    # THEN both others are told the one that nothing beats
    by = {p.key.label: p.dominated_by and p.dominated_by.label for p in made.pareto[0].points}
    assert by == {"ref": "b", "a": "b", "b": None}


def test_of_several_on_the_front_the_one_that_gains_most_is_named() -> None:
    # GIVEN two that trade goodput for energy, and one that both beat
    rows = [(10.0, 1.0), (11.0, 0.6), (30.0, 0.9)]
    axes = (Axis("speed", Better.HIGHER), Axis("energy", Better.LOWER))

    def stand(i: int, j: int) -> list[Relation]:
        return [relation(q(rows[i][k]), q(rows[j][k]), axes[k].better) for k in (0, 1)]

    def gain(i: int, j: int) -> float:
        return sum(log_gain(q(rows[i][k]), q(rows[j][k]), axes[k].better) for k in (0, 1))

    assert pareto(3, stand, gain) == [2, None, None]
    assert log_gain(q(1.0), Quantity.unknown("1", "?"), Better.LOWER) == 0.0


def test_twice_the_goodput_of_twice_the_gpus_dominates_nothing() -> None:
    """GIVEN 4/s on one GPU and 6/s on two at equal J/token THEN by the GPU one dominates; more than twice beats it."""
    (found,) = decide(record("ref"), record("ref", 6, tp=2)).pareto
    assert [(a.name, a.per_gpu) for a in found.axes][:2] == [("goodput_hz", True), ("j_per_output_token", False)]
    by = {p.key.label: p.dominated_by and p.dominated_by.label for p in found.points}
    assert by == {"ref": None, "ref tp2": "ref"}
    rates = {p.key.label: (p.objectives["goodput_hz"].value, p.point.get("goodput_hz").value) for p in found.points}
    assert rates == {"ref": (4.0, 4.0), "ref tp2": (3.0, 6.0)}
    (found,) = decide(record("ref"), record("ref", 12, tp=2)).pareto
    assert {p.key.label: p.dominated_by is not None for p in found.points} == {"ref": True, "ref tp2": False}
    (found,) = decide(*(record("ref", 4, repeat=k) for k in (0, 1)),
                      *(record("ref", 4, repeat=k, tp=2) for k in (0, 1))).pareto  # fmt: skip
    assert {p.key.label: p.dominated_by is not None for p in found.points} == {"ref": False, "ref tp2": True}, "paired"
    (same,) = decide(record("ref", tp=2), record("a", 6, tp=2)).pareto
    assert not any(a.per_gpu for a in same.axes) and same.points[1].objectives["goodput_hz"].value == 6.0


def test_every_metric_has_a_definition_and_derived_names_are_explained() -> None:
    assert all(m.definition and m.label and m.unit for m in METRICS.values())
    assert metric("gpu0.energy_j").label == "Energy, gpu0"
    assert metric("task.facts.accuracy").better is Better.HIGHER


def test_methods_that_served_the_same_requests_are_told_apart_request_by_request() -> None:
    """GIVEN one cell each, whose intervals overlap THEN with the tables the frugal one wins by more than starts differ,
    and without them, or at another workload, it is a tie."""
    results = open_results("h200-70b")
    records = results.records()
    loaded = {r.cell_id: (r, results.tables(r)) for r in records}
    blind, seeing = summarise(records), summarise(records, loaded=loaded)

    def chosen(summary: StudySummary, family: int) -> tuple[str, int]:
        r = summary.recommendations[family]
        assert r.choice is not None
        energy = next(s for s in r.steps if s.criterion is Criterion.ENERGY)
        return r.choice.deployment.key.method, energy.after

    assert chosen(blind, 0) == ("awq-w4a16", 5)  # a tie on energy, so memory decided
    assert chosen(seeing, 0) == ("w4a8-fp8", 1)
    assert not any(d.is_reference for d in seeing.deployments)  # nothing unquantized was measured
    first = seeing.deployments[0].points[0]
    other = replace(first, workload="another")
    never: Any = lambda *_: Quantity.of(0.5, "1", low=0.4, high=0.6)  # noqa: E731
    assert stand(first, first, "j_per_output_token", Better.LOWER, ([first], [first]), never) is Relation.BETTER
    assert stand(first, other, "j_per_output_token", Better.LOWER, ([first], [other]), never) is Relation.TIED
    near: Any = lambda *_: Quantity.of(0.98, "1", low=0.975, high=0.985)  # noqa: E731
    assert stand(first, first, "j_per_output_token", Better.LOWER, ([first], [first]), near) is Relation.TIED
