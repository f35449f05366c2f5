"""Warnings, templates, and checks that need the catalog. Faults of whole files: tests/spec/test_faulty_studies.py."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path

import pytest

from qmeter.cli.init import Template, write_template
from qmeter.cli.main import EXIT_BAD_INPUT, EXIT_OK, _run
from qmeter.errors import SpecError
from qmeter.load import Limits
from qmeter.quality.tasks import TASKS
from qmeter.spec import load_study_text
from qmeter.spec.study import expand
from qmeter.study.check import check_study, open_study, open_study_text
from qmeter.study.findings import HostFacts

HOST = HostFacts(cores=frozenset({0, 1}), gpus=None, environment={})
GOOD = """\
qmeter: 1
name: t
models: [{name: small, source: "synth:smollm2-135m", shape: smollm2-135m}]
engines: [{name: openvino, options: {max_sequences: 4}}]
methods: [f16, w8a8]
workloads:
  - name: chat
    arrivals: {kind: poisson, rate: 4/s}
    warmup: 2s
    window: 30s
repeats: 3
"""


def _kinds(text: str) -> set[str]:
    return {reason.kind for reason in open_study_text(text, "t.yaml", HOST)[1]}


def test_a_good_study_passes_without_a_warning() -> None:
    study, warnings = open_study_text(GOOD, "t.yaml", HOST)
    assert warnings == []
    assert check_study(study, HOST) == []
    assert len(expand(study)) == 6


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("window: 30s", "window: 9s", "short_window"),
        ("warmup: 2s", "warmup: 0s", "no_warmup"),
        ("repeats: 3", "repeats: 1", "one_repeat"),
        ("4/s", "1/min", "few_requests"),
        ("repeats: 3", "repeats: 3\nslo: {ttft: 1s, percentile: 0.999}", "few_requests"),
        ("kind: poisson, rate: 4/s", "kind: closed, concurrency: 5", "concurrency_above_engine"),
        ("max_sequences: 4", "max_seqences: 4", "unusual_option"),
        ("    warmup", "    prompts: {kind: tasks, tasks: [x]}\n    warmup", "tasks_past_eos"),
    ],
)
def test_what_misleads_a_reader_is_warned_of(old: str, new: str, kind: str) -> None:
    assert old in GOOD
    assert kind in _kinds(GOOD.replace(old, new))


LONG = """
qmeter: 1
name: s
models: [{name: m, source: "synth:llama-3.1-8b", shape: llama-3.1-8b}]
engines: [{name: vllm}]
methods: [awq-w4a16, bf16]
device: h100-sxm
workloads:
  - {name: w, arrivals: {kind: closed, concurrency: 128}, prompt_tokens: {kind: fixed, tokens: 250},
     output_tokens: {kind: lognormal, median: 1200, sigma: 0.6, low: 100, high: 4000}, warmup: 8s, window: 20s,
     drain: 2s}
repeats: 3
"""


def _short_drains(text: str, host: HostFacts = HOST) -> list[str]:
    return [f"{w.message} ({w.hint})" for w in open_study_text(text, "t.yaml", host)[1] if w.kind == "short_drain"]


def test_a_drain_that_must_cut_requests_is_warned_of_with_the_deployment_that_shows_it() -> None:
    # GIVEN outputs of about 1,200 tokens, which bf16 cannot give within 2 s: 15 GB a token at 3.35 TB/s
    (said,) = _short_drains(LONG)
    # THEN the share, the deployment and the way out are named
    assert "workload w: 21% of its requests" in said and "m/bf16/vllm takes 4.5 ms a token" in said
    assert "lengthen the drain (18 s at the very least" in said
    # WHEN nothing is certain THEN nothing is said
    certain = [
        ("drain: 2s", "drain: 20s"),
        ("kind: lognormal, median: 1200, sigma: 0.6, low: 100, high: 4000", "kind: fixed, tokens: 1200"),
        ("engines: [{name: vllm}]", 'engines: [{name: vllm, args: ["--speculative-config={}"]}]'),
        ("drain: 2s", "drain: 2s, ignore_eos: false"),
        ("device: h100-sxm", "device: auto"),
    ]
    for old, new in certain:
        assert old in LONG
        assert not _short_drains(LONG.replace(old, new)), new


def test_requests_that_cannot_end_in_window_and_drain_are_warned_of_though_all_are_alike() -> None:
    fixed = LONG.replace("kind: lognormal, median: 1200, sigma: 0.6, low: 100, high: 4000", "kind: fixed, tokens: 6000")
    (said,) = _short_drains(fixed)
    assert "100% of its requests" in said


def test_weights_that_cannot_fit_are_a_warning_since_the_cell_is_recorded_as_failed() -> None:
    text = (
        GOOD.replace("smollm2-135m", "llama-2-70b")
        .replace("openvino", "vllm")
        .replace("[f16, w8a8]", "[bf16, awq-w4a16]")
    )
    warnings = open_study_text(text + "device: a100-80g\n", "t.yaml", HOST)[1]
    assert [w.kind for w in warnings if not w.kind.startswith(("short_energy", "repeats_differ"))] == ["does_not_fit"]
    assert "bf16" in warnings[0].message and "80.0 GiB" in warnings[0].message


def test_an_excluded_pair_is_no_fault_and_a_pair_that_meets_is() -> None:
    text = GOOD.replace("methods: [f16, w8a8]", "methods: [f16, w8a8, fp8]").replace(
        "engines: [", "engines: [{name: vllm}, "
    )
    rules = "".join(f"  - {{engine: {e}, method: {m}}}\n" for e, m in (("vllm", "w8a8"), ("openvino", "fp8")))
    open_study_text(text + "exclude:\n" + rules, "t.yaml", HOST)
    with pytest.raises(SpecError) as caught:
        open_study_text(text, "t.yaml", HOST)
    assert [path for path, _ in caught.value.faults] == ["methods[1]", "methods[2]"]
    assert "exclude the pair: {engine: vllm, method: w8a8}" in caught.value.faults[0][1]


def test_a_loaded_study_is_checked_by_path_in_the_expanded_study() -> None:
    study = load_study_text(GOOD.replace("rate: 4/s", "rate: [1/s, 4/s]"))
    wrong = study.model_copy(update={"methods": ("f16", "nonsense")})
    with pytest.raises(SpecError) as caught:
        check_study(wrong, HOST)
    assert caught.value.faults[0][0] == "methods[1]"


def test_names_are_checked_even_where_the_schema_is_broken() -> None:
    with pytest.raises(SpecError) as caught:
        open_study_text(GOOD.replace("w8a8", "w8a9").replace("4/s", "4"), "t.yaml", HOST)
    assert [path for path, _ in caught.value.faults] == ["methods[1]", "workloads[0].arrivals.rate"]


def _trace(tmp_path: Path, rows: int, tokens: int = 100) -> Path:
    path = tmp_path / "t.csv"
    lines = [f"2023-11-16 18:{m:02d}:{s:02d}.0,{tokens},10" for m, s in (divmod(i, 60) for i in range(rows))]
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(lines) + "\n")
    return path


def test_trace_rows_longer_than_the_model_takes_are_counted_and_can_be_cut(tmp_path: Path) -> None:
    path = _trace(tmp_path, 60, tokens=9000)
    text = GOOD.replace("kind: poisson, rate: 4/s", f"kind: trace, path: {path}, format: azure")
    with pytest.raises(SpecError) as caught:
        open_study_text(text.replace("    warmup", "    prompt_tokens: {kind: trace}\n    warmup"), "t.yaml", HOST)
    assert "32 of the stretch's 32 rows are longer" in caught.value.faults[0][1]
    cut = text.replace("    warmup", "    prompt_tokens: {kind: trace, high: 4096}\n    warmup")
    assert open_study_text(cut, "t.yaml", HOST)[1] == []


def test_a_trace_that_changed_after_loading_is_refused(tmp_path: Path) -> None:
    path = _trace(tmp_path, 60)
    study, _ = open_study_text(
        GOOD.replace("kind: poisson, rate: 4/s", f"kind: trace, path: {path}, format: azure"), "t.yaml", HOST
    )
    assert study.workloads[0].arrivals.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()  # type: ignore[union-attr]
    path.write_text(path.read_text() + "2023-11-16 18:59:00.0,1,1\n")
    with pytest.raises(SpecError, match="has changed"):
        check_study(study, HOST)


@pytest.mark.parametrize("template", list(Template))
def test_init_writes_a_study_that_loads_and_checks(template: Template, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    write_template(path, template)
    study, warnings = open_study(path, HOST)
    assert warnings == []
    assert study.engines[0].name == template.value
    assert str(path) in path.read_text()


@pytest.mark.parametrize("template", list(Template))
def test_a_template_takes_a_workload_for_each_task_from_the_tasks_own_profile(
    template: Template, tmp_path: Path
) -> None:
    path = tmp_path / "tasks.yaml"
    write_template(path, template, tuple(TASKS.names()))
    study, _ = open_study(path, HOST)
    assert [w.name for w in study.workloads] == list(TASKS.names())
    for workload in study.workloads:
        profile = TASKS.create(workload.name).profile
        assert workload.arrivals == profile.arrivals and workload.slo == profile.slo
        assert workload.prompts.tasks == (workload.name,) and not workload.ignore_eos


def test_init_leaves_an_existing_file_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    assert _run(["init", str(path), "--engine", "vllm"]) == EXIT_OK
    before = path.read_bytes()
    assert _run(["init", str(path)]) == EXIT_BAD_INPUT
    assert path.read_bytes() == before
    assert _run(["init", str(tmp_path / "no" / "folder.yaml")]) == EXIT_BAD_INPUT
    assert "Traceback" not in capsys.readouterr().err


def test_the_quickstart_has_nine_methods_at_two_load_points_with_windows_of_8_s_or_more() -> None:
    text = (files("qmeter.study") / "quickstart.yaml").read_text()
    study, _ = open_study_text(text, "quickstart.yaml", HOST)
    assert len(study.methods) == 9 and len(study.workloads) == 2
    assert all(w.window >= 8 for w in study.workloads)
    assert len(expand(study)) == 18


def test_more_than_the_client_held_is_warned_of_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "client_limits" not in _kinds(GOOD)
    limits = Limits(100.0, 2.0, 1e-4, "3", "this", 0.0)
    monkeypatch.setattr("qmeter.study.check_client.load_limits", lambda: limits)
    (reason,) = [r for r in open_study_text(GOOD, "t.yaml", HOST)[1] if r.kind == "client_limits"]
    assert "workload chat" in reason.message and "calibrate" in (reason.hint or "")
    monkeypatch.setattr("qmeter.study.check_client.load_limits", lambda: Limits(1e6, 1e5, 1e-4, "3", "this", 0.0))
    assert "client_limits" not in _kinds(GOOD)


@pytest.mark.parametrize("url", ["http://me:s3cret@127.0.0.1:1", "https://x.org/v1?api_key=s3cret"])
def test_a_key_in_a_url_is_refused_before_it_is_recorded_and_not_repeated(url: str) -> None:
    text = GOOD.replace("{name: openvino, options: {max_sequences: 4}}", f"{{name: endpoint, url: '{url}'}}")
    with pytest.raises(SpecError) as caught:
        open_study_text(text.replace("[f16, w8a8]", "[f16]"), "t.yaml", HOST)
    assert "engines[0].url" in str(caught.value) and "s3cret" not in str(caught.value)


def test_more_devices_than_the_host_has_gpus_is_a_fault() -> None:
    text = GOOD.replace("{name: openvino, options: {max_sequences: 4}}", "{name: vllm}").replace("w8a8", "bf16")
    text = text.replace("[f16, bf16]", "[bf16]") + "parallelism: [{tp: 3}]\n"
    with pytest.raises(SpecError, match="this host has 2 GPUs"):
        open_study_text(text, "t.yaml", HostFacts(gpus=2))
