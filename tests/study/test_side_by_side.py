"""GIVEN deployments on a host of several GPUs, WHEN they run, THEN each has its own, and its record names the others.

The host is a recording of two GPUs; the engine is the fake one.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qmeter.engines import table
from qmeter.engines.table import Gpus, Traits
from qmeter.errors import SpecError
from qmeter.load import run as run_module
from qmeter.record import CellStatus, Record
from qmeter.spec.study import Cell, Parallelism, Placement, Study, expand
from qmeter.store import StudyStore
from qmeter.study.check import open_study_text
from qmeter.study.company import Aborted, Company
from qmeter.study.events import CellEnded, Event
from qmeter.study.findings import HostFacts
from qmeter.study.placement import plan_groups, visible_env
from qmeter.study.runner import run_study

sys.path.insert(0, str(Path(__file__).parent))
import fake_study as fakes

TWO = HostFacts(gpus=2)
BOTH = (Placement.ALONE, Placement.SIDE_BY_SIDE)


@pytest.fixture(autouse=True)
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fakes.install(monkeypatch)
    row = Traits("", "fake", gpus=Gpus.AS_MANY_AS_ASKED, parallel=frozenset({"tp", "pp", "dp"}))
    monkeypatch.setitem(table.TRAITS, "fake", row)
    yield


def recording(folder: Path, silent: str = "") -> Path:
    """Two GPUs, 300 W and 500 W, as a CSV; ``silent`` names a series that is missing."""
    rows = ["series,t_s,value"]
    for t in np.arange(0.0, 60.0, 0.05):
        for gpu, watts in (("gpu0", 300.0), ("gpu1", 500.0)):
            values = {"energy_j": watts * t, "power_w": watts, "nvlink_tx_bytes": 1e9 * t, "nvlink_rx_bytes": 2e9 * t}
            rows += [f"{gpu}.{name},{t:.3f},{v}" for name, v in values.items() if f"{gpu}.{name}" != silent]
    path = folder / "two_gpus.csv"
    path.write_text("\n".join(rows))
    return path


def study(tmp_path: Path, **changes: object) -> Study:
    made = fakes.fake_study()
    telemetry = made.telemetry.model_copy(update={"replay": str(recording(tmp_path)), "rate_hz": 20.0})
    quality = made.quality.model_copy(update={"fidelity": False})
    return made.model_copy(update={"telemetry": telemetry, "quality": quality, **changes})


def run(folder: Path, what: Study, **options: object) -> tuple[list[Record], list[Event]]:
    store, events = StudyStore.create(folder, what, ""), []
    run_study(what, store, listener=events.append, host=TWO, **options)  # type: ignore[arg-type]
    return store.records(), events


def test_the_same_cells_run_alone_and_as_a_pair_each_with_its_own_gpu(tmp_path: Path) -> None:
    records, events = run(tmp_path / "s", study(tmp_path, placement=BOTH))
    assert sum(isinstance(e, CellEnded) for e in events) == 8 == len(records)
    alone, paired = records[:4], records[4:]
    assert all(r.devices == (0,) and not r.neighbours for r in alone)
    by_id = {r.cell_id: r for r in paired}
    for record in paired:
        (neighbour,) = record.neighbours
        other = by_id[neighbour.cell_id or ""]
        # the neighbour measured the same workload and repeat, on the other GPU, at the same time
        assert other.cell["workload"] == record.cell["workload"] and other.cell["repeat"] == record.cell["repeat"]
        assert neighbour.devices == other.devices != record.devices
        assert other.clock and record.clock
        assert abs(other.clock.origin_unix_s - record.clock.origin_unix_s) < 5.0
        watts = {(0,): 300.0, (1,): 500.0}[record.devices or ()]
        assert record.energy["power_mean_w"].value == pytest.approx(watts, rel=0.05), record.energy["energy_j"]
        assert {s.name.split(".")[0] for s in record.series if s.name.startswith("gpu")} == {
            f"gpu{record.devices[0] if record.devices else ''}"
        }
        command = record.provenance
        if record.devices == (1,):
            assert command.engine_env["CUDA_VISIBLE_DEVICES"] == "1"
    assert {r.devices for r in paired} == {(0,), (1,)}
    reasons = [r.reasons[0].kind for r in records if r.status is not CellStatus.OK]
    assert all("client" in kind for kind in reasons), reasons


def test_a_deployment_of_two_gpus_counts_both(tmp_path: Path) -> None:
    records, _ = run(tmp_path / "s", study(tmp_path, parallelism=(Parallelism(tp=2),), methods=("f16",)))
    for record in records:
        assert record.devices == (0, 1)
        assert record.energy["power_mean_w"].value == pytest.approx(800.0, rel=0.05)
        assert record.energy["gpu1.energy_j"].known
        assert record.energy["idle_sm_clock_hz"].why == "no reading of sm_clock_hz on every GPU"
        assert "above 800 W before the launch: SM clock unknown" in (record.energy["energy_above_idle_j"].why or "")
        assert record.metrics["nvlink_bytes_s"].value == pytest.approx(2e9, rel=0.05)


def test_one_silent_gpu_makes_the_sum_unknown_and_says_which(tmp_path: Path) -> None:
    what = study(tmp_path, parallelism=(Parallelism(tp=2),), methods=("f16",))
    text = Path(what.telemetry.replay or "").read_text().splitlines()
    lines = [line for line in text if not line.startswith("gpu1.energy_j") and not line.startswith("gpu1.power_w")]
    Path(what.telemetry.replay or "").write_text("\n".join(lines))
    records, _ = run(tmp_path / "s", what)
    for record in records:
        assert record.energy["gpu0.energy_j"].known
        assert record.energy["energy_j"].value is None
        assert "gpu1" in (record.energy["energy_j"].why or "")
        assert record.energy["j_per_output_token"].value is None


def test_a_neighbour_that_fails_leaves_no_silent_pair(tmp_path: Path) -> None:
    made = study(tmp_path, placement=(Placement.SIDE_BY_SIDE,))
    engine = made.engines[0].model_copy(update={"options": {"fault": "out-of-memory", "fault_method": "w8a16"}})
    records, _ = run(tmp_path / "s", made.model_copy(update={"engines": (engine,)}))
    good = [r for r in records if r.cell["deployment"]["method"] == "f16"]
    assert len(good) == 2 and len(records) == 4
    for record in good:
        assert record.status is CellStatus.INVALID
        assert any(r.kind == "no_neighbour" for r in record.reasons)


def test_what_needs_more_gpus_waits_for_a_host_that_has_them(tmp_path: Path) -> None:
    what = study(tmp_path, parallelism=(Parallelism(), Parallelism(tp=4)), methods=("f16",))
    store = StudyStore.create(tmp_path / "s", what, "")
    ended = run_study(what, store, host=TWO)
    assert ended.waiting == 2 and len(store.records()) == 2
    groups = plan_groups(expand(what), 2)
    assert groups[1].waits == "it needs 4 GPUs; this host has 2"
    assert plan_groups(expand(what), 4)[1].waits is None


def test_an_interrupt_ends_every_deployment_and_the_study_goes_on_in_pairs(tmp_path: Path) -> None:
    what = study(tmp_path, placement=(Placement.SIDE_BY_SIDE,))

    def interrupting(event: Event) -> None:
        if isinstance(event, CellEnded):
            raise KeyboardInterrupt

    began_s = time.monotonic()
    store = StudyStore.create(tmp_path / "s", what, "")
    with pytest.raises(KeyboardInterrupt):
        run_study(what, store, listener=interrupting, host=TWO)
    assert time.monotonic() - began_s < 40
    assert not [t for t in threading.enumerate() if t.name == "qmeter-deployment"]
    assert 1 <= len(store.records()) <= 2
    # WHEN it goes on THEN what one of a pair lacks is measured as a pair again, and nothing else is
    events: list[Event] = []
    ended = run_study(what, store, listener=events.append, host=TWO)
    assert ended.waiting == 0
    records = store.records()
    assert len(records) == 4
    assert all(n.cell_id for r in records for n in r.neighbours) and all(r.neighbours for r in records)
    assert sum(isinstance(e, CellEnded) for e in events) in (2, 4)


@pytest.mark.parametrize("placement", list(Placement))
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_a_client_process_hears_first_leaves_no_failed_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placement: Placement, how: signal.Signals
) -> None:
    # GIVEN a deployment, alone or beside another, whose client processes a signal ends while they import
    real, warmed = run_module.subprocess.Popen, []

    def struck(command: list[str], *args: object, **options: object) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = real(command, *args, **options)  # type: ignore[call-overload]
        if "qmeter.load.worker" in command:
            warmed.append(process.pid)
            if len(warmed) > 2:  # not the warm-ups
                process.send_signal(how)
        return process

    monkeypatch.setattr(run_module.subprocess, "Popen", struck)
    what = study(tmp_path, placement=(placement,))
    store = StudyStore.create(tmp_path / "s", what, "")
    # WHEN it is Ctrl-C's THEN the study is interrupted and has no record of those cells; else they failed
    if how is signal.SIGINT:
        with pytest.raises(KeyboardInterrupt):
            run_study(what, store, host=TWO)
        assert all(r.status is not CellStatus.FAILED for r in store.records())
        return
    run_study(what, store, host=TWO)
    failed = [r for r in store.records() if r.status is CellStatus.FAILED]
    assert failed and all("signal SIGTERM" in r.reasons[0].message for r in failed)


@pytest.mark.parametrize(("gpus", "sizes"), [(1, []), (2, [2, 2]), (4, [4]), (8, [4])])
def test_deployments_are_packed_onto_the_gpus_there_are(tmp_path: Path, gpus: int, sizes: list[int]) -> None:
    methods = ("f16", "w8a16", "w4a16", "w4a16-kv8")
    made = study(tmp_path, placement=(Placement.SIDE_BY_SIDE,), methods=methods)
    groups = plan_groups(expand(made), gpus)
    assert [len(g.members) for g in groups if g.waits is None] == sizes
    for group in groups:
        devices = [d for m in group.members for d in m.devices or ()]
        assert len(devices) == len(set(devices)) and all(d < gpus for d in devices)
        assert group.waits or group.devices == tuple(range(len(devices)))


def test_mixed_sizes_share_a_host_and_the_odd_one_waits(tmp_path: Path) -> None:
    sizes = (Parallelism(tp=2), Parallelism())
    groups = plan_groups(expand(study(tmp_path, placement=(Placement.SIDE_BY_SIDE,), parallelism=sizes)), 4)
    assert [[m.devices for m in g.members] for g in groups] == [[(0, 1), (2, 3)], [(0,), (1,)]]
    odd = plan_groups(expand(study(tmp_path, placement=(Placement.SIDE_BY_SIDE,), methods=("f16",))), 4)
    assert odd[0].waits and "no other deployment" in odd[0].waits


def test_the_engine_is_shown_its_gpus_by_the_names_this_process_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_env((1,), 2) == {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert visible_env((0, 1), 2) == {} == visible_env(None, 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-ab,7")
    assert visible_env((1, 2), 3)["CUDA_VISIBLE_DEVICES"] == "GPU-ab,7"


VLLM = """
qmeter: 1
name: s
models: [{name: m, source: "synth:llama-3.1-8b", shape: llama-3.1-8b}]
engines: [{name: vllm}]
methods: [bf16, fp8]
placement: PLACEMENT
workloads:
  - {name: w, arrivals: {kind: poisson, rate: 9/s}, prompt_tokens: {kind: fixed, tokens: 9},
     output_tokens: {kind: fixed, tokens: 9}, window: 60s, warmup: 1s}
"""


def test_a_study_that_cannot_be_side_by_side_is_refused(tmp_path: Path) -> None:
    text = VLLM.replace("PLACEMENT", "[side_by_side]")
    with pytest.raises(SpecError) as caught:
        open_study_text(text, "s.yaml", TWO)
    assert "quality reference" in str(caught.value.faults)
    with pytest.raises(SpecError) as caught:
        open_study_text(text.replace("vllm", "llamacpp").replace("bf16, fp8", "f16"), "s.yaml", TWO)
    assert "GPUs of its own; engines that can: vllm" in str(caught.value.faults)
    both = VLLM.replace("PLACEMENT", "[alone, side_by_side]")
    with pytest.raises(SpecError) as caught:
        open_study_text(both + "parallelism: [{dp: 2}]\n", "s.yaml", HostFacts(gpus=4))
    assert "fixed ports" in str(caught.value.faults)
    _, warnings = open_study_text(both.replace("bf16, fp8", "bf16"), "s.yaml", TWO)
    assert "waits_for_gpus" in [w.kind for w in warnings]


def test_turns_go_by_key_and_never_while_somebody_works(tmp_path: Path) -> None:
    first, _, second, _ = expand(study(tmp_path))
    company, seen = Company(), []
    for cell, device in ((first, 0), (second, 1)):
        company.join(cell.deployment, (device,))

    def member(cell: Cell, keys: tuple[int, ...]) -> None:
        for key in keys:
            by = company.turn(cell.deployment.id, (2, key), cell)
            seen.append((cell.deployment.method, key, [n.cell_id is not None for n in by]))
        company.leave(cell.deployment.id)

    threads = [threading.Thread(target=member, args=a) for a in ((first, (0, 1, 3)), (second, (1, 2)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert [s[1] for s in seen] == [0, 1, 1, 2, 3]
    assert sorted(seen)[:3] == [("f16", 0, [False]), ("f16", 1, [True]), ("f16", 3, [])]
    company = Company()
    company.join(first.deployment, (0,))
    company.join(second.deployment, (1,))
    threading.Timer(0.2, company.abort).start()
    with pytest.raises(Aborted):
        company.turn(first.deployment.id, (0,))
