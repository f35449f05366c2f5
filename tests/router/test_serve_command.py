"""GIVEN the embedded engine, WHEN the real command serves a schedule that switches methods while a replica is killed,
THEN every request is whole, or says that its replica was lost, and no process stays."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import yaml

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "schedule"


@pytest.mark.parametrize("path", sorted(p for p in EXAMPLES.glob("*.yaml") if "qmeter_schedule: 1" in p.read_text()))
def test_the_examples_are_valid(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qmeter.cli.main", "serve-schedule", str(path), "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_wrong_schedule_is_exit_2_and_names_its_field(tmp_path: Path) -> None:
    data = yaml.safe_load((EXAMPLES / "two_methods.yaml").read_text())
    data["slots"][1]["shares"]["chat"]["f16"] = -0.5
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(data))
    done = subprocess.run(
        [sys.executable, "-m", "qmeter.cli.main", "serve-schedule", str(path)], capture_output=True, text=True
    )
    assert done.returncode == 2 and "slots[1].shares.chat.f16" in done.stderr and "negative" in done.stderr


def test_power_caps_need_permission(tmp_path: Path) -> None:
    data = yaml.safe_load((EXAMPLES / "two_methods.yaml").read_text())
    data["slots"][0]["power_caps"] = {"f16": 300.0}
    path = tmp_path / "caps.yaml"
    path.write_text(yaml.safe_dump(data))
    done = subprocess.run(
        [sys.executable, "-m", "qmeter.cli.main", "serve-schedule", str(path)], capture_output=True, text=True
    )
    assert done.returncode == 3 and "--allow-power-cap" in done.stderr


@pytest.mark.engine
@pytest.mark.timeout(180)
@pytest.mark.skipif(find_spec("openvino_genai") is None, reason="needs the openvino extra")
def test_switching_and_a_kill_on_the_embedded_engine(tmp_path: Path) -> None:
    data = yaml.safe_load((EXAMPLES / "two_methods.yaml").read_text())
    for i, slot in enumerate(data["slots"]):
        slot["at"] = f"{8 * i}s"
    data |= {"length": "24s"}
    path = tmp_path / "schedule.yaml"
    path.write_text(yaml.safe_dump(data))
    program = [sys.executable, str(ROOT / "benchmarks" / "schedule" / "switching.py"), "--schedule", str(path),
               "--minutes", "0.6", "--rate", "1.5", "--tokens", "8", "--kill-every", "14",
               "--out", str(tmp_path / "logs")]  # fmt: skip
    done = subprocess.run(program, capture_output=True, text=True, timeout=170)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"minutes"')]
    assert done.returncode == 0, done.stdout + done.stderr
    assert lines[-1]["slot_changes"] >= 1 and set(lines[-1]["ends"]) <= {"ok", "error event"}
    assert len(lines[-1]["kills"]) >= 1 and set(lines[-1]["by"]) == {"f16", "w8a16"}
    children = psutil.Process().children(recursive=True)
    assert not [p for p in children if "qmeter.engines.openvino" in " ".join(p.cmdline())]
