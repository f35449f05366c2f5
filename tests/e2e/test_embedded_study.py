"""GIVEN the embedded engine and the quickstart's model, WHEN the real command line runs a real study, THEN every cell
is measured on a verified method, the report opens, and a rerun measures nothing again."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from qmeter.record import Record
from qmeter.store import StudyStore

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_spec("openvino_genai") is None, reason="needs the openvino extra"),
]

STUDY = """
qmeter: 1
name: e2e
models:
  - name: smollm2-135m
    source: "SOURCE"
    shape: smollm2-135m
engines: [{name: openvino, options: {kv_cache_gib: 0.5}}]
methods: [f16, w4a16, w8a8-kv8]
workloads:
  - {name: chat, arrivals: {kind: poisson, rate: 2/s}, prompt_tokens: {kind: fixed, tokens: 64},
     output_tokens: {kind: fixed, tokens: 24}, warmup: 1s, window: 8s, drain: 20s}
slo: {ttft: 2s, tpot: 200ms}
quality: {prompts: 4, tokens: 16}
"""


def qmeter(*words: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "qmeter.cli.main", *words]
    return subprocess.run(program, capture_output=True, text=True, timeout=500)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    from importlib.resources import files

    import yaml

    quickstart = yaml.safe_load((files("qmeter.study") / "quickstart.yaml").read_text())
    folder = tmp_path_factory.mktemp("e2e")
    study = folder / "study.yaml"
    study.write_text(STUDY.replace("SOURCE", quickstart["models"][0]["source"]))
    done = qmeter("run", str(study), "--out", str(folder / "out"))
    return folder / "out", done


@pytest.fixture(scope="module")
def records(run: tuple[Path, subprocess.CompletedProcess[str]]) -> list[Record]:
    folder, done = run
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return StudyStore(folder).records()


def test_every_cell_was_measured_on_a_verified_method(records: list[Record]) -> None:
    assert [r.cell["deployment"]["method"] for r in records] == ["f16", "w4a16", "w8a8-kv8"]
    for record in records:
        assert record.status.value == "ok" or all(r.stage == "load" for r in record.reasons), record.reasons
        assert record.verification is not None and record.verification.verified, record.verification
        assert record.effective is not None and record.effective.kv_blocks and record.effective.weight_bytes
        assert record.metrics["throughput_tok_s"].value and record.metrics["ttft_p50_s"].value
        assert record.metrics["failed_share"].value == 0
        assert record.energy["energy_j"].value or record.energy["energy_j"].why


def test_bits_show_in_memory_and_in_quality(records: list[Record]) -> None:
    f16, w4, _ = records
    assert f16.effective and w4.effective and f16.effective.weight_bytes and w4.effective.weight_bytes
    assert w4.effective.weight_bytes < 0.6 * f16.effective.weight_bytes
    assert f16.quality["ppl_ratio"].value == pytest.approx(1.0, abs=0.01)
    assert (w4.quality["ppl_ratio"].value or 0) > 1.0


def test_requests_tokens_state_and_iterations_are_kept(
    run: tuple[Path, subprocess.CompletedProcess[str]], records: list[Record]
) -> None:
    store = StudyStore(run[0])
    for record in records:
        tables = store.tables(record)
        ok = tables.requests.status == "ok"
        assert ok.all() and (tables.requests.output_tokens[ok] == 24).all()
        assert tables.tokens.n.sum() == 24 * ok.sum()
        for series in ("engine.running", "engine.kv_use", "host.cpu_share", "engine_process.rss_bytes"):
            t_s, _ = tables.telemetry.of(series)
            assert len(t_s) > 40, series
        assert tables.steps.decode_tokens.sum() > 0.8 * 23 * ok.sum()


def test_the_report_says_what_to_serve(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = run
    page = folder / "report" / "report.html"
    assert page.exists(), done.stdout + done.stderr
    text = page.read_text()
    assert "w8a8-kv8" in text and "unknown" in text
    assert "Q4_1" in text, "the report says that the reference was itself quantized once"


def test_a_rerun_measures_nothing_again(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = run
    before = (folder / "records.jsonl").read_bytes()
    done = qmeter("resume", str(folder), "--json", "--no-report")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert {"study_started", "study_ended"} <= {e["event"] for e in events}
    assert not [e for e in events if e["event"] in ("cell", "stage")]
    assert (folder / "records.jsonl").read_bytes() == before


def test_no_engine_is_left(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    import psutil

    began_s = (run[0] / "study.yaml").stat().st_mtime  # engines that somebody else runs here are not ours
    left = [
        p
        for p in psutil.process_iter(["cmdline", "create_time"])
        if "qmeter.engines.openvino" in " ".join(p.info["cmdline"] or []) and p.info["create_time"] > began_s - 1
    ]
    assert not left
