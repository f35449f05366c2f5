"""Fidelity of each deployment to the study's reference method, scored once a server start and kept in the folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qmeter.errors import QMeterError
from qmeter.load import Target
from qmeter.quality.fidelity import Reference, Scores, builtin_prompts, compare, make_reference, score
from qmeter.record import Quantity
from qmeter.spec.study import Cell, Study, deployments
from qmeter.study.cell import Bench

LEAST_TIMEOUT_S = 120.0
"""The least that one scoring request may take before it is given up. Units: s."""
IN_FLIGHT, IN_FLIGHT_AGAIN = 8, 1
"""Requests in flight while scoring, and while the reference is scored again: no batches, so that what its row shows
holds the differences that batching makes, which are part of what every other row may owe to the engine."""


def measure_fidelity(bench: Bench, study: Study, cell: Cell) -> None:
    """Score the running deployment against the reference and put the quantities into the context's ``quality``.

    The reference deployment (same model, engine and parallelism, the study's reference method) writes the
    continuations, and is scored on them like the others: its own prefill scores are what the others are compared
    with. Where that is not possible the quantities are unknown, with the reason; the cells are measured all the same.
    """
    context = bench.context
    if not cell.quality.fidelity:
        return
    target = _target(bench, cell)
    reference_folder, is_reference = _reference_folder(bench, study)
    try:
        if is_reference and not (reference_folder / "reference.npz").exists():
            prompts = builtin_prompts(cell.quality.prompts, seed=study.seed)
            made = make_reference(target, prompts, cell.quality.tokens, top_k=cell.quality.top_k, seed=study.seed)
            made.save(reference_folder / "reference.npz")
        if not (reference_folder / "reference.npz").exists():
            method = study.quality.reference or study.methods[0]
            context.quality["ppl_ratio"] = Quantity.unknown(
                "1", f"the reference method {method} was not scored in this study folder"
            )
            return
        reference = Reference.load(reference_folder / "reference.npz")
        own_folder = context.store.deployment_folder(context.deployment.id)
        scores = _scores(own_folder / "scores.npz", reference, bench, cell)
        if is_reference:  # scored a second time: what its row shows is the engine's own noise, not a number with itself
            scores = _scores(own_folder / "scores_again.npz", reference, bench, cell, IN_FLIGHT_AGAIN)
        if not (reference_folder / "scores.npz").exists():
            context.quality["ppl_ratio"] = Quantity.unknown("1", "the reference itself could not be scored")
            return
        baseline = Scores.load(reference_folder / "scores.npz")
        context.quality.update(compare(baseline, scores, reference=reference, seed=study.seed))
    except QMeterError as error:
        context.quality["ppl_ratio"] = Quantity.unknown("1", error.message)


def _target(bench: Bench, cell: Cell) -> Target:
    """The server, with time for a whole continuation: a cell's window may be far shorter."""
    target = bench.target(cell.workload)
    return replace(target, timeout_s=max(target.timeout_s, LEAST_TIMEOUT_S))


def _scores(path: Path, reference: Reference, bench: Bench, cell: Cell, in_flight: int = IN_FLIGHT) -> Scores:
    """The deployment's scores, from an earlier start of it where they are of this very reference."""
    if path.exists():
        known = Scores.load(path)
        if known.reference_id == reference.id:
            return known
    scores = score(_target(bench, cell), reference, concurrency=in_flight)
    scores.save(path)
    return scores


def _reference_folder(bench: Bench, study: Study) -> tuple[Path, bool]:
    """The folder of this deployment's reference, and whether it is the reference itself."""
    here = bench.context.deployment
    method = study.quality.reference or study.methods[0]
    for other in deployments(study):
        same = (other.model, other.engine, other.parallelism) == (here.model, here.engine, here.parallelism)
        if same and other.method == method:
            return bench.context.store.deployment_folder(other.id), other.id == here.id
    return bench.context.store.deployment_folder(here.id), True
