"""GIVEN hostile programs WHEN each runs in the cage THEN it is named and the host has nothing of it left."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import psutil
import pytest

from qmeter.errors import QualityError
from qmeter.quality import sandbox, sandbox_filter
from qmeter.quality.sandbox import Limits, Verdict, run

pytestmark = pytest.mark.skipif(sandbox.unavailable() is not None, reason=f"no sandbox here: {sandbox.unavailable()}")

QUICK = Limits(cpu_s=1, wall_s=2.0)
PATIENT = Limits(cpu_s=1, wall_s=20.0)
"""For what ends by itself, also on a busy machine."""
BY_THE_CLOCK = ("endless sleep", "patient fork bomb", "threads without end")

ATTACKS = {
    "fork bomb": ("import os\nwhile True: os.fork()", Verdict.PROCESSES),
    "patient fork bomb": (
        "import os, time\nwhile True:\n  try: os.fork()\n  except OSError: time.sleep(.01)",
        Verdict.PROCESSES,
    ),
    "threads without end": (
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,)).start()",
        Verdict.PROCESSES,
    ),
    "endless loop": ("while True: pass", Verdict.CPU_TIME),
    "endless sleep": ("import time\ntime.sleep(1000)", Verdict.WALL_TIME),
    "10 GB of output": (
        "import sys\nfor _ in range(10 * 2**20): sys.stdout.write('x' * 1024)",
        Verdict.OUTPUT,
    ),
    "10 GB of memory": ("x = bytearray(10 * 2**30)", Verdict.MEMORY),
    "memory by many": (
        "import os, time\nfor _ in range(3): os.fork()\nx = bytearray(200 * 2**20)\ntime.sleep(9)",
        Verdict.MEMORY,
    ),
    "write to the system": ("open('/usr/lib/evil', 'w')", Verdict.FILES),
    "10 GB file": ("f = open('/work/big', 'wb')\nwhile True: f.write(bytes(2**20))", Verdict.FILES),
    "a million files": ("for i in range(10**6): open(f'/work/{i}', 'w')", Verdict.FILES),
    "network to this host": ("import socket\nsocket.create_connection(('127.0.0.1', 22), 1)", Verdict.NETWORK),
    "network to a name": ("import socket\nsocket.getaddrinfo('example.org', 80)", Verdict.NETWORK),
    "memory in files without a name": (
        "import os\nkept = [os.memfd_create(str(i)) for i in range(40)]\nfor f in kept: os.write(f, bytes(15 * 2**20))",
        Verdict.RIGHTS,
    ),
    "memory by mapping": (
        "import mmap\nm = mmap.mmap(-1, 10 * 2**30)",
        Verdict.MEMORY,
    ),
    "shared memory": ("open('/dev/shm/x', 'wb').write(bytes(2**20))", Verdict.FAILED),
    "a link out of the folder": (
        "import os\nos.symlink('/usr/bin/evil', '/work/l')\nopen('/work/l', 'w')",
        Verdict.FILES,
    ),
    "leave early with success": ("import os\nos._exit(0)", Verdict.FAILED),
    "wrong answer": ("assert 1 + 1 == 3, 'wrong'", Verdict.FAILED),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_is_named_and_the_host_is_unharmed(attack: str) -> None:
    program, expected = ATTACKS[attack]
    before, free = {p.pid for p in psutil.process_iter()}, psutil.disk_usage("/tmp").free
    began = time.monotonic()
    limits = QUICK if attack in BY_THE_CLOCK else PATIENT
    outcome = run(program, limits)
    assert outcome.verdict is expected, outcome
    assert outcome.why and len(outcome.output) <= QUICK.output_bytes
    assert time.monotonic() - began < limits.wall_s + 3
    left = [p for p in psutil.process_iter(["pid", "cmdline"]) if p.pid not in before]
    assert not [p for p in left if "/work/program.py" in (p.info["cmdline"] or [])]
    assert not list(Path("/tmp").glob("qmeter-sandbox-*"))
    assert free - psutil.disk_usage("/tmp").free < 2**30


def test_a_good_program_passes_and_its_output_is_kept() -> None:
    outcome = run("open('/work/a', 'w').write('hi')\nassert open('/work/a').read() == 'hi'\nprint('done')", PATIENT)
    assert outcome.verdict is Verdict.PASSED and outcome.output.strip() == "done"


def test_the_program_sees_no_host_files_processes_environment_or_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMETER_SECRET", "sk-123")
    outcome = run(
        "import os\nassert os.getpid() == 2 and os.getuid() != 0\nassert 'QMETER_SECRET' not in os.environ\n"
        "assert not os.path.exists('/proc/1') and not os.path.exists('/etc/passwd')\n"
        "assert os.listdir('/work') == ['program.py']\n"
        "try: os.kill(1, 9)\nexcept OSError: pass\n"
        "try: os.setuid(0)\nexcept OSError: print('kept out')",
        PATIENT,
    )
    assert outcome.verdict is Verdict.PASSED, outcome
    assert outcome.output.strip() == "kept out"


CALLS = """
import ctypes
lib = ctypes.CDLL(None, use_errno=True)

def refused(name, *arguments):
    ctypes.set_errno(0)
    assert getattr(lib, name)(*arguments) == -1, name
    assert ctypes.get_errno() == 1, (name, ctypes.get_errno())
"""


@pytest.mark.parametrize(
    "call",
    ["'shmget', 0, 2**28, 0o1600", "'msgget', 0, 0o1600", "'semget', 0, 1, 0o1600", "'unshare', 0x10000000",
     "'unshare', 0x20000", "'ptrace', 16, 1, 0, 0", "'mount', b'x', b'/work', b'tmpfs', 0, b'size=9g'",
     "'chroot', b'/work'", "'setns', 0, 0"],
)  # fmt: skip
def test_calls_that_reach_uncounted_memory_or_widen_the_cage_are_refused(call: str) -> None:
    outcome = run(f"{CALLS}refused({call})", PATIENT)
    assert outcome.verdict is Verdict.PASSED, outcome


def test_the_filter_refuses_namespaces_through_clone_and_lets_ordinary_processes_start() -> None:
    program = (
        f"{CALLS}import os, subprocess, sys, threading\n"
        "assert lib.syscall(56 if os.uname().machine == 'x86_64' else 220, 0x10000011, 0, 0, 0, 0) == -1\n"
        "assert ctypes.get_errno() == 1\n"
        "assert lib.syscall(435, 0, 0) == -1 and ctypes.get_errno() == 38\n"
        "t = threading.Thread(target=print, args=('thread',)); t.start(); t.join()\n"
        "assert os.waitpid(os.fork() or os._exit(3), 0)[1] == 3 << 8\n"
        "print(subprocess.run([sys.executable, '-I', '-S', '-c', 'print(7)'], capture_output=True).stdout)"
    )
    outcome = run(program, PATIENT)
    assert outcome.verdict is Verdict.PASSED, outcome
    assert outcome.output.split() == ["thread", "b'7\\n'"]


@pytest.mark.parametrize("machine", sandbox_filter.ARCHITECTURES)
def test_every_jump_of_the_filter_lands_inside_it(machine: str) -> None:
    code = [struct.unpack("=HBBI", row) for row in batched(sandbox_filter.program(machine))]
    for at, (kind, yes, no, _) in enumerate(code):
        if kind & 0x07 == 0x05:
            assert at + 1 + max(yes, no) < len(code)
    ends = [row for row in code if row[0] == 0x06]
    assert [row[3] for row in ends[-3:]] == [0x7FFF0000, 0x00050001, 0x00050026]
    assert code[-1] is ends[-1]


def batched(code: bytes) -> list[bytes]:
    return [code[i : i + 8] for i in range(0, len(code), 8)]


def test_orphans_end_with_the_program() -> None:
    mark = "4242.4242"
    daemon = (
        "import os, signal, time\nfor s in (1, 2, 3, 15): signal.signal(s, signal.SIG_IGN)\n"
        f"if os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0: time.sleep({mark})\n  os._exit(0)"
    )
    run(daemon, PATIENT)
    time.sleep(0.1)
    assert not [p for p in psutil.process_iter(["cmdline"]) if "/work/program.py" in (p.info["cmdline"] or [])]


def test_where_the_cage_cannot_be_built_nothing_runs(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    request = {
        "program": f"open({str(proof)!r}, 'w')", "limits": sandbox.asdict(QUICK), "interpreter_root": "/usr",
        "argv": [os.path.realpath(sandbox.sys.executable), "-c", "0"], "root": str(tmp_path / "missing"),
    }  # fmt: skip
    with pytest.raises(QualityError, match="was not run: this host refuses") as caught:
        sandbox._Keeper(QUICK).keep(request, os.path.realpath(sandbox.sys.executable), "word")
    assert caught.value.hint and not proof.exists()


def test_processes_that_fail_together_are_named_though_their_tracebacks_interleave():
    head = "Traceback (most recent call last):\n"
    at = '  File "/work/program.py", line 2, in <module>\n'
    text = f"{head}{head}{at}BlockingIOError: [Errno 11] Resource temporarily unavailable\n{at}"
    assert sandbox._judged(1 << 8, text, "word", 0.1).verdict is Verdict.PROCESSES
    handled = "During handling of the above exception, another exception occurred:"
    caught = f"{head}{at}MemoryError\n\n{handled}\n{head}{at}ValueError: x\n"
    assert sandbox._judged(1 << 8, caught, "word", 0.1).verdict is Verdict.FAILED
