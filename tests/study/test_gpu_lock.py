"""GIVEN a GPU that a run measures on, WHEN a second run wants it, THEN it is refused by name, and freed by any end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qmeter.errors import StoreError
from qmeter.study.gpu_lock import gpu_uuids, hold_gpus

sys.path.insert(0, str(Path(__file__).parents[1] / "telemetry"))
from nvml_fake import FakeNvml


def test_a_second_run_on_the_gpu_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    with hold_gpus(["GPU-1", "GPU-2"], "/runs/mine", tmp_path):
        with (
            pytest.raises(StoreError, match=r"GPU-2: process .*, /runs/mine") as caught,
            hold_gpus(["GPU-3", "GPU-2"], "/runs/other", tmp_path),
        ):
            pass
        assert "CUDA_VISIBLE_DEVICES" in (caught.value.hint or "")
        with hold_gpus(["GPU-3"], "/runs/other", tmp_path):
            pass  # the refused run let go of what it had
    with hold_gpus(["GPU-1", "GPU-2"], "/runs/next", tmp_path):
        pass


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from qmeter.study.gpu_lock import hold_gpus\n"
        "with hold_gpus(['GPU-1'], 'x', Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)\n"
    )
    held = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert held.stdout is not None and held.stdout.readline() == b"held\n"
    with pytest.raises(StoreError, match=f"process {held.pid}"), hold_gpus(["GPU-1"], "y", tmp_path):
        pass
    held.kill()
    held.wait()
    held.stdout.close()
    for _ in range(100):  # the kernel closes its files a moment after
        try:
            with hold_gpus(["GPU-1"], "y", tmp_path):
                return
        except StoreError:
            time.sleep(0.02)
    pytest.fail("still locked")


def test_a_link_in_the_lock_s_place_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "thesis.tex"
    target.write_text("x")
    (tmp_path / "qmeter-gpu-GPU-1.lock").symlink_to(target)
    with pytest.raises(StoreError, match="cannot lock GPU GPU-1"), hold_gpus(["GPU-1"], "y", tmp_path):
        pass
    assert target.read_text() == "x"


def test_a_lock_file_that_is_there_is_opened_without_creating_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GIVEN a shared /tmp, where the kernel refuses O_CREAT on another user's file."""
    with hold_gpus(["GPU-1"], "x", tmp_path):
        pass
    assert (tmp_path / "qmeter-gpu-GPU-1.lock").stat().st_mode & 0o777 == 0o666
    opened = os.open

    def protected(path: object, flags: int, *mode: int) -> int:
        if flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied")
        return opened(path, flags, *mode)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "open", protected)
    with hold_gpus(["GPU-1"], "y", tmp_path):
        pass


def test_gpus_are_named_by_uuid_among_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(count=3)
    assert gpu_uuids([1, 0, 1], nvml) == ["GPU-0", "GPU-1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert gpu_uuids([0], nvml) == ["GPU-2"]
    assert gpu_uuids([0], FakeNvml(broken=("nvmlInit",))) == []
    assert nvml.alive == 0
