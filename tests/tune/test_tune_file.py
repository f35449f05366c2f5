"""Every mistake in a tune file is named by its path, with a way out, before anything starts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qmeter.errors import SpecError
from qmeter.tune.space import KV
from qmeter.tune.spec import load_tune_text

GOOD = """
qmeter: 1
tune: t
study:
  models: [{name: m, source: "synth:llama-3.1-8b", shape: llama-3.1-8b}]
  engines: [{name: vllm}]
  workloads:
    - {name: chat, arrivals: {kind: poisson, rate: 8/s}}
    - {name: busy, arrivals: {kind: poisson, rate: 16/s}}
space: {method: [bf16, fp8], max_sequences: [16, 64]}
objectives: [{metric: ttft_p90_s, workload: chat}, {metric: throughput_tok_s, workload: busy}]
"""


def load(text):
    return load_tune_text(text, "t.yaml", Path())


def test_a_good_file():
    made = load(GOOD)
    assert len(made.space) == 4 and [t.key for t in made.objectives] == ["ttft_p90_s@chat", "throughput_tok_s@busy"]
    study = made.study(made.space.points[0], 2)
    assert study.repeats == 3 and study.exclude == ({"repeat": "0"}, {"repeat": "1"})


@pytest.mark.parametrize(
    ("old", "new", "path", "says"),
    [
        ("max_sequences: [16, 64]", "max_seqs: [16]", "space.max_seqs", "did you mean 'max_sequences'"),
        ("max_sequences: [16, 64]", "max_sequences: []", "space.max_sequences", "list is empty"),
        ("max_sequences: [16, 64]", "max_sequences: [0]", "space.max_sequences[0]", "at least 1"),
        ("max_sequences: [16, 64]", "max_sequences: [16, 16]", "space.max_sequences", "stands twice"),
        ("space: {method: [bf16, fp8], max_sequences: [16, 64]}", "space: {}", "space", "at least"),
        ("[bf16, fp8]", "[bf16, fp9]", "space.method[1]", "did you mean 'fp8'"),
        ("[16, 64]}", "[16, 64], tp: [3]}", "space", "no combination is possible: tp 3 does not divide"),
        ("[16, 64]}", "[16, 64], kv_type: [fp16]}", "space.kv_type[0]", "unknown KV type"),
        ("[16, 64]}", "[16, 64], power_cap_w: [-5]}", "space.power_cap_w[0]", "watts above 0"),
        ("[16, 64]}", "[16, 64], prefix_cache: [1]}", "space.prefix_cache[0]", "true or false"),
        ("ttft_p90_s", "ttft_p91_s", "objectives[0]", "did you mean"),
        (", workload: chat}, ", "}, ", "objectives[0].workload", "say which of chat, busy"),
        ("workload: busy", "workload: bussy", "objectives[1].workload", "did you mean 'busy'"),
        ("throughput_tok_s", "offered_rate_hz", "objectives[1]", "no better side"),
        ("workload: chat}", "workload: chat, limit: 5}", "objectives[0].limit", "needs a unit"),
        ("objectives:",
         "constraints: [{metric: slo_attainment, workload: chat, at_least: 0.9, at_most: 0.5}]\nobjectives:",
         "constraints[0]", "nothing can keep both"),
        ("objectives:", "constraints: [{metric: ttft_p90_s, workload: chat, at_least: 2s},"
         " {metric: ttft_p90_s, workload: chat, at_most: 1s}]\nobjectives:", "constraints", "contradict"),
        ("objectives:", "constraints: [{metric: ttft_p90_s, workload: chat}]\nobjectives:", "constraints[0]",
         "at_most"),
        ("objectives:", "search: {sampler: bayes}\nobjectives:", "search.sampler", "unknown sampler"),
        ("objectives:", "search: {evaluations: 0}\nobjectives:", "search.evaluations", "at least 1"),
        ("objectives:", "measure: {kind: simulator}\nobjectives:", "measure.source", "needs calibrations"),
        ("qmeter: 1", "qmeter: 1\nobjectivs: []", "objectivs", "did you mean 'objectives'"),
        ("rate: 8/s", "rate: 8", "study.workloads[0].arrivals.rate", "needs a unit"),
        ("[{name: vllm}]", "[{name: vllm}, {name: openvino}]", "study.engines", "a tuning has one"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(old, new, path, says):
    assert old in GOOD
    with pytest.raises(SpecError) as caught:
        load(GOOD.replace(old, new, 1))
    places = dict(caught.value.faults)
    assert path in places, places
    assert says in places[path]


def test_faults_come_in_the_files_order_each_with_its_line():
    text = GOOD.replace("objectives: [", "search: {sampler: bayes}\nobjectives: [").replace("fp8", "fp9")
    moved = "objectives" + text.split("objectives", 1)[1]
    text = text.replace(moved, "").replace("study:", f"{moved.replace('ttft_p90_s', 'ttft_p91_s').strip()}\nstudy:")
    with pytest.raises(SpecError) as caught:
        load(text)
    assert [place for place, _ in caught.value.faults] == ["objectives[0]", "space.method[1]", "search.sampler"]
    lines = [int(re.search(r"line (\d+)", message)[1]) for _, message in caught.value.faults]
    assert lines == sorted(lines)
    with pytest.raises(SpecError) as caught:
        load(GOOD.replace("[{name: vllm}]", "[{name: vllm}, {name: openvino}]"))
    assert caught.value.faults == (("study.engines", "a tuning has one: make the others an axis of space (line 6)"),)


def test_kv_types_become_methods_of_the_catalog():
    text = GOOD.replace("[16, 64]}", "[16], kv_type: [own, fp8, int8]}")
    made = load(text)
    found = {(p.get("method"), p.get(KV)): made.space.method_of(p) for p in made.space.points}
    assert found[("bf16", "fp8")] == "kv-fp8" and found[("fp8", "fp8")] == "fp8-kv8" and found[("fp8", "own")] == "fp8"
    assert ("fp8", "int8") not in found and "int8 KV cache" in " ".join(made.space.excluded)


def test_quality_brings_the_reference_into_each_study_without_measuring_it():
    text = GOOD.replace("objectives: [", "objectives: [{metric: ppl_ratio, workload: chat}, ")
    made = load(text.replace("study:", "study:\n  quality: {reference: bf16}"))
    point = next(p for p in made.space.points if p.get("method") == "fp8")
    study = made.study(point, 0)
    assert study.methods == ("fp8", "bf16") and {"method": "bf16"} in study.exclude and study.quality.fidelity
