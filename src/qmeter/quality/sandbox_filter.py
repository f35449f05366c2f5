"""A system-call filter for the cage: calls that reach memory no limit counts, or that widen the cage, are refused.

Standard library only; :mod:`qmeter.quality.sandbox_child` imports it by path. What each group is refused for:

- memory that neither the address-space limit nor resident memory counts: memfd files, System V segments and queues;
- namespaces and mounts of the program's own, with which it would be root inside and could mount memory;
- other processes' memory, and kernel interfaces that a test of a function never needs and that had many holes.

Refused calls fail with EPERM (``clone3`` with ENOSYS, so that the C library falls back to ``clone``, whose flags a
filter can read). A call of another machine type's numbering ends the process.
"""

from __future__ import annotations

import ctypes
import struct

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
_LD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_EPERM, _ENOSYS = 1, 38
_NR, _ARCH, _ARG0 = 0, 4, 16
_NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435

REFUSED = {
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "swapon": (167, 224), "quotactl": (179, 60),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "personality": (135, 92),
    "init_module": (175, 105), "finit_module": (313, 273), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "acct": (163, 89),
}  # fmt: skip
"""Call → its number on x86_64 and on aarch64."""


def program(machine: str) -> bytes:
    """The filter as classic BPF instructions of eight bytes each.

    Raises:
        KeyError: no numbers are known for this machine type.
    """
    column = tuple(ARCHITECTURES).index(machine) if machine in ARCHITECTURES else -1
    if column < 0:
        raise KeyError(machine)
    numbers = [row[column] for row in REFUSED.values()]
    # after the header: one test a refused call, clone3, clone with its flags, then the four ways to end
    left = len(numbers) + 6
    code = [(_LD, 0, 0, _ARCH), (_JEQ, 1, 0, ARCHITECTURES[machine]), (_RET, 0, 0, _KILL), (_LD, 0, 0, _NR)]
    code.append((_JGE, 0, 1, 0x40000000))  # x86_64's second numbering (x32)
    code.append((_RET, 0, 0, _KILL))
    for i, number in enumerate(numbers):
        code.append((_JEQ, left - i - 2, 0, number))
    code += [
        (_JEQ, 5, 0, _CLONE3),
        (_JEQ, 0, 2, _CLONE[machine]),
        (_LD, 0, 0, _ARG0),
        (_JSET, 1, 0, _NEW_NAMESPACES),
        (_RET, 0, 0, _ALLOW),
        (_RET, 0, 0, _ERRNO | _EPERM),
        (_RET, 0, 0, _ERRNO | _ENOSYS),
    ]
    return b"".join(struct.pack("=HBBI", *row) for row in code)


def install(machine: str) -> int:
    """Put the filter on this process and all it starts (no new privileges must be set); the result of ``prctl``."""
    code = program(machine)
    buffer = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    keeper = ctypes.create_string_buffer(head, len(head))
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(keeper), 0, 0))
