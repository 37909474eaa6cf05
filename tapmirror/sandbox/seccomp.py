# SPDX-License-Identifier: Apache-2.0
"""Rules for system calls to a classic BPF program, and the program into the kernel (seccomp(2)).

The kernel lets calls pass without running the program whose result depends on no argument (since 5.11); what is
compared for every call are the few others.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import Final

from tapmirror.sandbox.numbers import AUDIT_ARCH, KNOWN, NUMBERS
from tapmirror.sandbox.rules import Arg, Rules, Ways

SECCOMP: Final = {"x86_64": 317, "aarch64": 277}
SECCOMP_SET_MODE_FILTER: Final = 1
SECCOMP_FILTER_FLAG_TSYNC: Final = 1
KILL_PROCESS: Final = 0x80000000
ALLOW: Final = 0x7FFF0000
ERRNO: Final = 0x00050000
X32: Final = 0x40000000
"""In the number of a call by the x32 ABI, which has numbers of its own (x86-64 only)."""
UNSUPPORTED: Final = (errno.ENOSYS, errno.EINVAL)

_NUMBER_AT: Final = 0  # of `struct seccomp_data`
_ARCH_AT: Final = 4
_ARGUMENTS_AT: Final = 16
_LD: Final = 0x20
_AND: Final = 0x54
_JEQ: Final = 0x15
_JGT: Final = 0x25
_JSET: Final = 0x45
_RET: Final = 0x06


class UnsupportedError(Exception):
    """The kernel, or this version for the machine, has no system call filters."""


def restrict(rules: Rules) -> None:
    """Refuse all calls but those of the rules, in all threads, for good.  Raises `UnsupportedError`, OSError."""
    machine = platform.machine()
    if machine not in NUMBERS:
        raise UnsupportedError
    code = ctypes.create_string_buffer(program(rules, machine))
    head = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    made = libc.syscall(SECCOMP[machine], SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, head)
    if made != 0:
        number = ctypes.get_errno()
        if number in UNSUPPORTED:
            raise UnsupportedError
        raise OSError(number, os.strerror(number))


def program(rules: Rules, machine: str) -> bytes:
    """The BPF program (`struct sock_filter`s).  Raises KeyError for an architecture without numbers."""
    numbers = NUMBERS[machine]
    code = [
        (_LD, 0, 0, _ARCH_AT),
        (_JEQ, 1, 0, AUDIT_ARCH[machine]),
        (_RET, 0, 0, KILL_PROCESS),
        (_LD, 0, 0, _NUMBER_AT),
    ]
    if machine == "x86_64":
        code += [(_JSET, 0, 1, X32), (_RET, 0, 0, KILL_PROCESS)]
    for name, ways in rules.items():
        if name in numbers:
            judged = _judge(ways)
            code += [(_JEQ, 0, len(judged), numbers[name]), *judged]
    code += [
        (_JGT, 0, 1, KNOWN),
        (_RET, 0, 0, ERRNO | errno.ENOSYS),
        (_RET, 0, 0, ERRNO | errno.EPERM),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _judge(ways: Ways) -> list[tuple[int, int, int, int]]:
    """What decides on one call."""
    code = []
    for way in ways:
        tests = [test for arg in way for test in _tests(arg)]
        checks: list[tuple[int, int, int, int]] = []
        for value, mask, equal, at in reversed(tests):  # each knows how far it is to the next way: behind the return
            to_next = len(checks) + 1
            jump = (0, to_next) if equal else (to_next, 0)
            masked = [] if mask == 0xFFFFFFFF else [(_AND, 0, 0, mask)]
            checks = [(_LD, 0, 0, at), *masked, (_JEQ, *jump, value), *checks]
        code += [*checks, (_RET, 0, 0, ALLOW)]
    if not any(way == () for way in ways):
        code.append((_RET, 0, 0, ERRNO | errno.EPERM))
    return code


def _tests(arg: Arg) -> list[tuple[int, int, bool, int]]:
    """(value, mask, equal, offset) of a condition."""
    low = _ARGUMENTS_AT + 8 * arg.index
    tests = [(arg.value, arg.mask, arg.equal, low)]
    if arg.high:
        tests.append((0, 0xFFFFFFFF, True, low + 4))
    return tests
