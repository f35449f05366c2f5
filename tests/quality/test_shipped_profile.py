"""GIVEN the shipped profile WHEN it is read THEN every method has fidelity and tasks, and quality falls as it must."""

from __future__ import annotations

import pytest

from qmeter.analysis.summary import StudySummary, summarise
from qmeter.record import CellStatus
from qmeter.report.tasks import graded, task_tables
from qmeter.store import Profile, open_results

METHODS = ("f16", "w8a16", "w4a16", "w8a8", "w4a8", "kv8", "kv4", "w8a8-kv8", "w4a8kv4")
TASKS = ("facts", "arithmetic", "instructions", "retrieval", "summarization")
FIDELITY = ("ppl_ratio", "kl_sampled", "kl_topk", "top1_agreement", "greedy_agreement", "changed_share")


@pytest.fixture(scope="module")
def profile() -> Profile:
    found = open_results("embedded-quality")
    assert isinstance(found, Profile)
    return found


@pytest.fixture(scope="module")
def summary(profile: Profile) -> StudySummary:
    return summarise(profile.records(), reference="f16")


def test_every_method_of_the_embedded_engine_has_fidelity_and_four_tasks(summary: StudySummary) -> None:
    assert sorted(d.key.method for d in summary.deployments) == sorted(METHODS)
    for d in summary.deployments:
        assert all(d.quality[name].known for name in FIDELITY), d.key
        scored = {n for p in d.points for n, q in p.quality.items() if n.endswith(".accuracy") and q.known}
        assert len(scored & {f"task.{t}.accuracy" for t in TASKS}) >= 4, d.key
        assert d.verification is not None and d.verification.verified, d.key


def test_the_reference_agrees_with_itself_and_fewer_bits_lose_more(summary: StudySummary) -> None:
    quality = {d.key.method: d.quality for d in summary.deployments}
    assert quality["f16"]["kl_sampled"].value < 1e-3 and quality["f16"]["top1_agreement"].value > 0.995
    for eight, four in (("w8a16", "w4a16"), ("w8a8", "w4a8"), ("kv8", "kv4"), ("w8a8-kv8", "w4a8kv4")):
        assert quality[eight]["kl_sampled"].high < quality[four]["kl_sampled"].low, (eight, four)
        assert quality[eight]["top1_agreement"].value > quality[four]["top1_agreement"].value, (eight, four)


def test_its_answers_can_be_graded_and_paired_again(profile: Profile, summary: StudySummary) -> None:
    records = profile.records()
    assert all(r.status is not CellStatus.FAILED for r in records)
    tables = task_tables(summary, graded(summary, profile, records))
    assert len(tables["task_scores"].rows) == len(METHODS) and len(tables["task_pairs"].rows) == len(METHODS) - 1
    worse = {row[1] for row in tables["task_pairs"].rows if str(row[-1]).startswith("worse")}
    assert {"w4a16", "w4a8"} <= worse and not worse & {"w8a16", "kv8"}, "four bits lose answers, eight do not"
