import subprocess
import sys
import threading

import numpy as np
import pytest

from qmeter import solver

CALLEE = """
import ctypes, json, os
from scipy import optimize
from qmeter import solver

def noisy(*args, **more):
    os.write(1, b"written by the callee\\n")
    libc.printf(b"printed by the callee\\n")
    return "answer"

libc = ctypes.CDLL(None)
optimize.milp = noisy
print("before", end=" ")
found = solver.milp([1.0])
print(json.dumps({"found": found}))
"""


def test_what_the_solver_writes_to_descriptor_1_does_not_arrive_on_stdout():
    """GIVEN a solver that writes, and prints through the C library WHEN it is called THEN stdout is the caller's."""
    done = subprocess.run([sys.executable, "-c", CALLEE], capture_output=True, text=True, check=True)
    assert done.stdout == 'before {"found": "answer"}\n'
    assert "written by the callee" in done.stderr and "printed by the callee" in done.stderr


def test_threads_that_solve_at_once_leave_stdout_as_it_was(capfd):
    """GIVEN threads inside at once WHEN the first leaves THEN the others stay off stdout; after the last it is back."""
    import os

    first_left, second_in = threading.Event(), threading.Event()

    def first():
        with solver.stdout_to_stderr():
            second_in.wait(5)
        first_left.set()

    def second():
        with solver.stdout_to_stderr():
            second_in.set()
            first_left.wait(5)
            os.write(1, b"second\n")

    threads = [threading.Thread(target=f) for f in (first, second)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    os.write(1, b"after\n")
    out, err = capfd.readouterr()
    assert out == "after\n" and err == "second\n"


def test_stdout_comes_back_where_the_solver_fails(capfd):
    """GIVEN a program that scipy refuses WHEN it is solved THEN the error is raised and stdout works again."""
    with pytest.raises(ValueError):
        solver.milp(np.ones((2, 2)))
    print("after")
    assert capfd.readouterr().out == "after\n"
