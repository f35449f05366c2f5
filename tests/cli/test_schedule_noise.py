"""What a solver writes to the process's standard output must not get into JSON."""

import os
import subprocess
import sys

PROGRAM = """
import ctypes
from qmeter.cli.schedule import _solver_noise_to_stderr
with _solver_noise_to_stderr():
    ctypes.CDLL(None).printf(b"HiGHS repairs a solution\\n")
print("{}")
"""


def test_what_a_library_prints_goes_to_stderr_though_c_buffers_it_in_a_pipe() -> None:
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=buffered)
    assert done.stdout == "{}\n"
    assert "HiGHS repairs a solution" in done.stderr
