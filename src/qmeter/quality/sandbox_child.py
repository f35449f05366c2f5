"""Runs inside: builds the cage, then one program in it. Standard library only; :mod:`qmeter.quality.sandbox` starts it.

The request comes as one JSON line on standard input; what happens goes as JSON lines to the descriptor named in it.
Order: new mount, network, PID, IPC and UTS namespaces (and a user namespace where not root); a root file system of
its own with the interpreter and the system libraries read-only and one small writable folder in memory; no network
interface; no /proc; then an unprivileged user, limits, no new privileges, a filter over system calls
(:mod:`qmeter.quality.sandbox_filter`), and the program as process 2.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from typing import Any

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
AT_FDCWD, AT_RECURSIVE, MNT_DETACH = -100, 0x8000, 2
SYS_MOUNT_SETATTR = 442
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
SANDBOX_UID = 1_000_000_000
"""Root becomes this plus its process id: a user that owns nothing and that no other program of the host runs as."""

_libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """A step that makes the cage failed: nothing was run."""


def _do(step: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise Refused(f"{step}: {os.strerror(number)} (errno {number})")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [None if v is None else v.encode() for v in (source, target, kind, data)]
    _do(f"mount {target}", _libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]))


def _set_attributes(target: str, attributes: int, recursive: bool) -> None:
    settings = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    call = _libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, target.encode(), flags, ctypes.byref(settings), 32)
    _do(f"mount_setattr {target}", call)


def _namespaces() -> None:
    flags = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        _do("unshare namespaces", _libc.unshare(flags))
        return
    _do("unshare user and other namespaces", _libc.unshare(flags | CLONE_NEWUSER))
    for name, text in (("setgroups", "deny"), ("uid_map", f"65534 {uid} 1"), ("gid_map", f"65534 {gid} 1")):
        try:
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        except OSError as error:
            raise Refused(f"write {name}: {error.strerror} (errno {error.errno})") from None


def _root_file_system(root: str, limits: Mapping[str, Any], program: str, interpreter_root: str) -> None:
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    try:
        _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
        for path in ("/usr", "/lib", "/lib64", "/lib32", "/bin", interpreter_root):
            _expose(path, root)
        os.makedirs(f"{root}/dev", exist_ok=True)
        for device in ("null", "zero", "urandom", "random"):
            open(f"{root}/dev/{device}", "w").close()
            _mount(f"/dev/{device}", f"{root}/dev/{device}", None, MS_BIND)
        os.mkdir(f"{root}/work")
        size = f"size={limits['file_bytes']},nr_inodes={limits['files']},mode=777"
        _mount("tmpfs", f"{root}/work", "tmpfs", MS_NOSUID | MS_NODEV, size)
        with open(f"{root}/work/program.py", "w", encoding="utf-8") as file:
            file.write(program)
        os.chmod(f"{root}/work/program.py", 0o444)
        _set_attributes(root, MOUNT_ATTR_RDONLY, recursive=False)
        os.chdir(root)
        _do("pivot_root", _libc.syscall(SYS_PIVOT_ROOT[os.uname().machine], b".", b"."))
        _do("umount old root", _libc.umount2(b".", MNT_DETACH))
    except KeyError:
        raise Refused(f"machine type {os.uname().machine} is not known here") from None
    os.chdir("/work")


def _expose(path: str, root: str) -> None:
    """Bind ``path`` read-only at the same place under ``root``; a link stays a link; inside an exposed one: nothing."""
    inside = root + path
    if not os.path.lexists(path) or os.path.lexists(inside):
        return
    os.makedirs(os.path.dirname(inside), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), inside)
        return
    os.mkdir(inside)
    _mount(path, inside, None, MS_BIND | MS_REC)
    _set_attributes(inside, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, recursive=True)


def _give_up_rights(user: int | None) -> None:
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    _do("no new privileges", _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _do("die with the keeper", _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    _do("not traceable", _libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))


def _limit(limits: Mapping[str, Any]) -> None:
    seconds = int(limits["cpu_s"])
    for what, soft, hard in (
        (resource.RLIMIT_CPU, seconds, seconds + 1),
        (resource.RLIMIT_AS, limits["memory_bytes"], limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"], limits["file_bytes"]),
        (resource.RLIMIT_NPROC, limits["processes"], limits["processes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"], limits["open_files"]),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
    ):
        resource.setrlimit(what, (soft, hard))


def _load_filter() -> Any:
    """The module beside this file, read while the host's files can still be seen."""
    import importlib.util

    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sandbox_filter.py")
    spec = importlib.util.spec_from_file_location("sandbox_filter", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _filter_calls(module: Any) -> None:
    try:
        _do("system-call filter", module.install(os.uname().machine))
    except KeyError:
        raise Refused(f"no system-call numbers for {os.uname().machine}") from None


def _run(argv: list[str]) -> int:
    """Process 1: starts the program as process 2, collects orphans, returns the program's wait status."""
    child = os.fork()
    if child == 0:
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        try:
            os.execve(argv[0], argv, {"PATH": "/usr/bin", "HOME": "/work", "TMPDIR": "/work", "LC_ALL": "C.UTF-8"})
        except OSError as error:
            os.write(2, f"sandbox: cannot start {argv[0]}: {error}\n".encode())
        os._exit(126)
    while True:
        pid, status = os.wait()
        if pid == child:
            return status


def _tell(descriptor: int, **message: Any) -> None:
    os.write(descriptor, (json.dumps(message) + "\n").encode())


def main() -> None:
    """Build the cage, run the program in it, tell what happened."""
    request = json.loads(sys.stdin.readline())
    descriptor: int = request["status_fd"]
    os.set_inheritable(descriptor, False)
    user = SANDBOX_UID + os.getpid() if os.geteuid() == 0 else None
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    os.nice(5)
    try:
        calls = _load_filter()
        _namespaces()
        first = os.fork()  # process 1 of the new PID namespace: when it ends, the kernel ends all others there
        if first == 0:
            try:
                _root_file_system(request["root"], request["limits"], request["program"], request["interpreter_root"])
                _give_up_rights(user)
                _limit(request["limits"])
                _filter_calls(calls)
            except Refused as error:
                _tell(descriptor, refused=str(error))
                os._exit(125)
            except OSError as error:
                _tell(descriptor, refused=f"{error.filename or 'set-up'}: {error.strerror} (errno {error.errno})")
                os._exit(125)
            _tell(descriptor, started=True)
            _tell(descriptor, status=_run(request["argv"]))
            os._exit(0)
        _tell(descriptor, first=first)
        os.waitpid(first, 0)
    except Refused as error:
        _tell(descriptor, refused=str(error))


if __name__ == "__main__":
    main()
