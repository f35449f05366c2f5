"""``qmeter plan`` from the command line: the examples, exit codes, the page and the spec that can be deployed."""

import json
import re
from pathlib import Path

import pytest
import yaml

from qmeter.cli.main import _run
from qmeter.simulate.calibration import save
from qmeter.spec.load import load_study
from qmeter.testing.deployments import made_calibration

EXAMPLES = Path(__file__).parents[2] / "examples" / "plan"
SMALL = """qmeter: 1
name: x
classes: [{name: a, rate: 200/s, prompt_tokens: {kind: fixed, tokens: 100}, output_tokens: {kind: fixed, tokens: 40},
  slo: {ttft: 300ms, tpot: 14ms}}]
fleet: [{source: SOURCE, price_usd_h: 2, count: 1}]
"""


@pytest.fixture(scope="module", autouse=True)
def fitted(tmp_path_factory):
    """Fits of the shipped profile are made once for this module, in a cache of its own."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """The day's example with two of its methods, which keeps the test short."""
    folder = tmp_path_factory.mktemp("planned")
    text = (EXAMPLES / "plan.yaml").read_text()
    short = folder / "plan.yaml"
    short.write_text(re.sub(r"methods: \[.*\]", "methods: [fp8, fp8-kv8]", text))
    code = _run(["plan", str(short), "--no-what-if", "-o", str(folder / "out")])
    return code, folder / "out"


def test_the_day_is_planned_and_the_page_stands_alone(planned):
    code, out = planned
    assert code == 0
    page = (out / "plan.html").read_text()
    assert not re.findall(r"(?:src|href)=[\"']https?://", page)
    assert set(re.findall(r"https?://[^\s\"'<>)]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert page.count("<svg") == 1 and "Promises" in page and "simulated, not measured" in page
    assert (out / "pools.svg").stat().st_size > 1000


def test_what_it_writes_can_be_run(planned):
    _, out = planned
    spec = yaml.safe_load((out / "deployment.yaml").read_text())
    assert len(spec["classes"]["chat"]) == 24
    for name in spec["classes"]:
        shares = [sum(p["routing"].get(name, [0] * 24)[t] for p in spec["pools"]) for t in range(24)]
        assert shares == pytest.approx([1.0] * 24, abs=1e-4)
    studies = [load_study(out / p["study"]) for p in spec["pools"]]
    assert {s.methods[0] for s in studies} <= {"fp8", "fp8-kv8"}
    assert all(s.engines[0].options["max_sequences"] == 256 for s in studies)
    assert all(s.workloads[0].arrivals.kind == "trace" for s in studies), "the pool's own mixture"
    assert all(" serve " in p["command"] and "--max-num-seqs 256" in p["command"] for p in spec["pools"])
    assert _run(["run", str(out / spec["pools"][0]["study"]), "--dry-run", "--gpus", "1", "--device", "h200"]) == 0


def test_alternatives_have_their_picture(tmp_path):
    source = save([made_calibration(), made_calibration("<b>fp8</b>", speed=1.5)], tmp_path / "c.json")
    path = tmp_path / "plan.yaml"
    path.write_text(SMALL.replace("SOURCE", str(source)).replace("count: 1", "count: 9"))
    assert _run(["plan", str(path), "-o", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "plan.html").read_text()
    assert page.count("<svg") == 2 and "Alternatives" in page
    assert "<b>fp8" not in page and "&lt;b&gt;fp8" in page, "names are escaped"
    assert "calibration file" in (tmp_path / "out" / "deployment.yaml").read_text()


def test_floors_example_as_json(capsys):
    assert _run(["plan", str(EXAMPLES / "floors.yaml"), "--json", "--no-what-if"]) == 0
    out = json.loads(capsys.readouterr().out)
    used = {p["method"]: p["serves"] for p in out["pools"]}
    assert all("assistant" not in serves for method, serves in used.items() if method == "gptq-w4a16")
    assert any("task.facts.accuracy 0.7 [0.66, 0.73], asked 0.7" in r["why"] for r in out["left_out"])


def test_exit_codes(tmp_path, capsys):
    source = save([made_calibration()], tmp_path / "c.json")
    text = SMALL.replace("SOURCE", str(source))
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    assert _run(["plan", str(path)]) == 1
    shown = capsys.readouterr().out
    assert "no plan keeps these together: fleet[0].count (1 devices)" in shown and "nearest:" in shown
    path.write_text(text.replace("200/s", "-200/s"))
    assert _run(["plan", str(path)]) == 2
    assert "classes[0].rate" in capsys.readouterr().err
