"""``qmeter tune`` from file to front: on the fake engine through the real runner, and on the shipped profile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from qmeter.cli.main import _run
from qmeter.spec import load_study_text
from qmeter.store import StudyStore
from qmeter.tune.pairs import recorded_ratios
from qmeter.tune.spec import load_tune
from qmeter.tune.tuner import Tuner

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "study"))
import fake_study  # noqa: E402

FAKE = """
qmeter: 1
tune: fake
study:
  models: [{name: tiny, source: ./none.gguf, shape: smollm2-135m}]
  engines: [{name: fake, ready_timeout: 30s, options: {fault_method: w4a16, fault: FAULT}}]
  workloads:
    - {name: light, arrivals: {kind: poisson, rate: 20/s}, prompt_tokens: {kind: fixed, tokens: 16},
       output_tokens: {kind: fixed, tokens: 8}, warmup: 200ms, window: 500ms, drain: 5s}
  telemetry: {samplers: [host]}
  quality: {reference: f16, prompts: 2, tokens: 4, top_k: 3}
space:
  method: [f16, w8a16, w4a16]
  options.tpot_ms: [2, 5]
  options.ttft_ms: [5, 20]
objectives: [{metric: ttft_p50_s, limit: 1s}, tpot_mean_s, weight_bytes]
search: {sampler: ehvi, evaluations: 5, repeats: 2, seed: 1}
"""


@pytest.fixture(autouse=True)
def engine(monkeypatch, tmp_path):
    fake_study.install(monkeypatch)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    Path("none.gguf").write_bytes(b"")


def run(capsys, *argv):
    code = _run(["tune", *(str(a) for a in argv)])
    got = capsys.readouterr()
    return code, got.out, got.err


def write(text, fault="none"):
    path = Path("t.yaml")
    path.write_text(text.replace("FAULT", fault))
    return path


def test_a_live_search_measures_learns_failures_and_ends_with_a_spec(capsys):
    code, out, err = run(capsys, write(FAKE, "wrong-method"), "--json", "--out", "s")
    assert code == 0, err
    events = [json.loads(line) for line in out.splitlines()]
    told = [e for e in events if e["event"] == "told"]
    asked = {e["number"]: e for e in events if e["event"] == "asked"}
    assert len(told) == 5
    refused = [t for t in told if t["failure"]]
    assert all(t["failure"]["kind"] == "MethodNotApplied" for t in refused) and len(refused) <= 1
    assert all(asked[t["number"]]["point"]["method"] == "w4a16" for t in refused)
    end = events[-1]
    assert end["event"] == "search_ended" and any(r["recommended"] for r in end["front"])
    for row in end["front"]:
        assert StudyStore(Path("s") / row["folder"]).records()[0].cell["deployment"]["method"] == row["point"]["method"]
        assert all(q["low"] <= q["value"] <= q["high"] for k, q in row["values"].items() if "low" in q)
    page = Path("s/tune.html").read_text()
    assert 'http-equiv="refresh"' not in page and "http://" not in page.replace("http://www.w3.org", "")
    assert end["headline"] in page


def test_points_of_a_search_are_compared_on_the_requests_that_both_served(capsys):
    text = FAKE.replace("window: 500ms", "window: 1500ms").replace("[f16, w8a16, w4a16]", "[f16]")
    code, _, err = run(
        capsys, write(text.replace("[5, 20]", "[5]").replace("evaluations: 5", "evaluations: 2")), "--out", "s"
    )
    assert code == 0, err
    made = Tuner(load_tune(Path("s/tune.yaml")), Path("s"))
    one, other = (e.point for e in made.evaluated())
    found = recorded_ratios(made, Path("s"))(one, other)["tpot_mean_s@light"]
    want = one.get("options.tpot_ms") / other.get("options.tpot_ms")
    assert found.value == pytest.approx(want, rel=0.25) and found.n >= 20
    assert recorded_ratios(made, Path("elsewhere"))(one, other) == {}


def test_the_deployable_spec_is_a_study(capsys):
    code, *_ = run(capsys, write(FAKE), "--out", "s", "--no-report")
    assert code == 0
    text = Path("s/deploy.yaml").read_text()
    assert text.startswith("# Deploy ") and "keeps every limit" in text
    study = load_study_text(text)
    assert study.engines[0].name == "fake" and len(study.methods) == 1 and "tpot_ms" in study.engines[0].options


def test_killed_in_a_measurement_it_goes_on_and_measures_nothing_twice(capsys):
    write(FAKE.replace("window: 500ms", "window: 2s"))
    program = [sys.executable, "-c", "import sys; sys.path.insert(0, sys.argv.pop(1)); import fake_study; "
               "fake_study.install(); from qmeter.cli.main import main; main()", str(ROOT / "tests" / "study"),
               "tune", "t.yaml", "--out", "s", "--no-report", "--json"]  # fmt: skip
    child = subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env={**os.environ})
    assert child.stdout is not None
    for line in child.stdout:
        if json.loads(line)["event"] == "asked" and json.loads(line)["number"] == 2:
            break
    time.sleep(1.5)
    child.send_signal(signal.SIGKILL)
    child.wait()
    code, out, err = run(capsys, "s", "--no-report", "--json")
    assert code == 0, err
    asked = [json.loads(line)["number"] for line in out.splitlines() if json.loads(line)["event"] == "asked"]
    assert asked == [2, 3, 4, 5]
    for folder in sorted(Path("s/evaluations").iterdir()):
        ids = [json.loads(line)["cell_id"] for line in (folder / "records.jsonl").read_text().splitlines()]
        assert len(ids) == len(set(ids)) == 1


def test_quality_is_scored_against_one_reference(capsys):
    text = FAKE.replace("weight_bytes]", "ppl_ratio]").replace("evaluations: 5", "evaluations: 2")
    code, out, err = run(capsys, write(text), "--json", "--out", "s", "--no-report")
    told = [json.loads(line) for line in out.splitlines() if json.loads(line)["event"] == "told"]
    assert code == 0, err
    assert all(t["values"]["ppl_ratio@light"] is not None for t in told), told
    assert sorted(p.name for p in Path("s/quality").iterdir())[0] == "f16"


@pytest.mark.parametrize(
    ("old", "new", "place", "says"),
    [
        ("options.tpot_ms", "tpot_ms", "space.tpot_ms", "unknown knob"),
        ("tpot_mean_s", "j_per_fun", "objectives[1]", "unknown metric"),
        ("[f16, w8a16, w4a16]", "[]", "space.method", "list is empty"),
    ],
)
def test_bad_input_ends_with_2_and_names_the_field(capsys, old, new, place, says):
    code, _, err = run(capsys, write(FAKE.replace(old, new)))
    assert code == 2 and place in err and says in err and not Path("runs").exists()


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """A calibration file of the example's two methods."""
    from qmeter.simulate import save
    from qmeter.tune.fidelity import Kind, calibrations

    known = calibrations("h200-8b-grid", {Kind("llama-3.1-8b", m) for m in ("bf16", "fp8-kv8")})
    return save(list(known.found), tmp_path_factory.mktemp("calibrated") / "c.json")


def example(source=None, **changes):
    data = yaml.safe_load((ROOT / "examples" / "tune" / "chat_8b.yaml").read_text())
    data["space"] |= {"method": ["bf16", "fp8-kv8"], "max_sequences": [32, 64, 256], "token_budget": [512, 4096]}
    data["search"] |= {"evaluations": 8}
    if source is not None:
        data["low_fidelity"], data["measure"] = {"source": str(source)}, {"kind": "simulator", "source": str(source)}
    data["study"]["workloads"][0] |= {"window": "8s", "warmup": "2s"}
    for key, value in changes.items():
        data[key] = value
    Path("e.yaml").write_text(yaml.safe_dump(data))
    return Path("e.yaml")


def test_the_example_on_the_shipped_profile(capsys):
    code, out, err = run(capsys, example(), "--json", "--out", "s")
    assert code == 0, err
    end = json.loads(out.splitlines()[-1])
    assert end["front"] and any("simulated" in c for c in end["caveats"])
    records = [r for row in end["front"] for r in StudyStore(Path("s") / row["folder"]).records()]
    assert {r.kind.value for r in records} == {"simulated"} and all(r.provenance.calibration for r in records)
    assert "Every value here is simulated" in Path("s/tune.html").read_text()
    again, out, _ = run(capsys, "s", "--json", "--no-report")
    assert again == 0 and json.loads(out.splitlines()[-1])["front"] == end["front"], (
        "a finished search measures nothing"
    )


def test_what_the_profile_lacks_is_refused_before_anything_starts(capsys, calibrated):
    code, _, err = run(capsys, example(calibrated, objectives=["ttft_p90_s", "ppl_ratio"]))
    assert code == 2 and "objectives[1]" in err and "knows no quality" in err and "measure: {kind: engine}" in err


def test_a_limit_that_no_point_can_keep_ends_with_1_and_names_the_nearest(capsys, calibrated):
    impossible = example(calibrated, objectives=[{"metric": "ttft_p90_s", "limit": "1ms"}, "tpot_mean_s"])
    code, out, _ = run(capsys, impossible, "--json", "--out", "s", "--no-report")
    end = json.loads(out.splitlines()[-1])
    assert (
        code == 1
        and end["deploy"] is None
        and "breaks TTFT p90" in end["why"][0]
        and not Path("s/deploy.yaml").exists()
    )


def test_a_load_beyond_every_configuration_is_named_as_the_reason(capsys, calibrated):
    # GIVEN ten times what one device serves
    file = example(calibrated, search={"sampler": "random", "evaluations": 2, "seed": 1})
    data = yaml.safe_load(file.read_text())
    data["study"]["workloads"][0] |= {"arrivals": {"kind": "poisson", "rate": "400/s"}}
    data["objectives"] = ["ttft_p90_s", "tpot_p90_s"]
    file.write_text(yaml.safe_dump(data))
    # WHEN it is searched THEN the overload is the reason
    code, out, err = run(capsys, file, "--json", "--out", "s", "--no-report")
    end = json.loads(out.splitlines()[-1])
    assert code == 1 and "2 × overloaded" in end["why"][0], (err, end["why"])
    assert "chat is more than any configuration" in end["why"][1] and "Lower the load" in end["why"][2]
