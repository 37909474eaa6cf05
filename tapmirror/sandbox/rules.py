# SPDX-License-Identifier: Apache-2.0
"""The system calls of a worker, each with the reason for which it is needed, and what of their arguments is allowed.

What is not named is refused: new processes, exec, files, mounts, namespaces, modules, bpf, perf, ptrace, signals to
others, other users, limits, keys, raw and Unix sockets, listening, memory that is executable.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

FIONBIO: Final = 0x5421
MSG_FASTOPEN: Final = 0x20000000
"""A flag of send: it connects too, past Landlock's rule for ports."""
SOCK_TYPE: Final = 0xF
AT_EMPTY_PATH: Final = 0x1000
SO_ATTACH_FILTER: Final = 26
WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
WHOLE: Final = 0xFFFFFFFF


@dataclass(frozen=True)
class Arg:
    """A condition: the low 32 bits of an argument, masked, have a value (or have not: `equal` is False).

    `high`: the upper half of the argument must be 0 as well; for pointers.
    """

    index: int
    value: int
    mask: int = WHOLE
    equal: bool = True
    high: bool = False


Ways: TypeAlias = tuple[tuple[Arg, ...], ...]
"""Allowed if all conditions of one of them hold."""
Rules: TypeAlias = Mapping[str, Ways]

ALWAYS: Final[Ways] = ((),)


def either(index: int, *values: int, mask: int = WHOLE) -> Ways:
    """An argument has one of these values."""
    return tuple((Arg(index, value, mask),) for value in values)


WORKER: Final[Rules] = {
    # To the shadow; to the supervisor; a line of an error.  The order is that in which the kernel compares.
    "sendto": ((Arg(4, 0, high=True), Arg(3, 0, MSG_FASTOPEN)),),
    "sendmsg": ((Arg(2, 0, MSG_FASTOPEN),),),
    "write": ALWAYS,
    "writev": ALWAYS,
    # From the shadow, which is discarded; from the supervisor; memory in use (/proc/self/statm, opened before).
    "recvfrom": ALWAYS,
    "recvmsg": ALWAYS,
    "read": ALWAYS,
    "readv": ALWAYS,
    "pread64": ALWAYS,
    # The loop.
    "epoll_wait": ALWAYS,
    "epoll_pwait": ALWAYS,
    "epoll_pwait2": ALWAYS,
    "epoll_ctl": ALWAYS,
    "poll": ALWAYS,
    "ppoll": ALWAYS,
    "clock_nanosleep": ALWAYS,
    "nanosleep": ALWAYS,
    "select": ALWAYS,
    "pselect6": ALWAYS,
    "restart_syscall": ALWAYS,
    # Connections to a shadow: TCP only, and where to is Landlock's.
    "socket": tuple(
        (Arg(0, family), Arg(1, socket.SOCK_STREAM, SOCK_TYPE)) for family in (socket.AF_INET, socket.AF_INET6)
    ),
    "connect": ALWAYS,
    "setsockopt": ALWAYS,
    "getsockopt": ALWAYS,
    "getsockname": ALWAYS,
    "getpeername": ALWAYS,
    "shutdown": ALWAYS,
    "close": ALWAYS,
    "ioctl": either(1, FIONBIO),
    "fcntl": either(1, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_SETFL),
    # Python asks about a descriptor that it makes a file object of.
    "fstat": ALWAYS,
    "newfstatat": either(3, AT_EMPTY_PATH),
    "lseek": ALWAYS,
    # Memory, which stays data.
    "mmap": either(2, 0, mask=mmap.PROT_EXEC),
    "mprotect": either(2, 0, mask=mmap.PROT_EXEC),
    "munmap": ALWAYS,
    "mremap": ALWAYS,
    "madvise": ALWAYS,
    "brk": ALWAYS,
    "futex": ALWAYS,
    "sched_yield": ALWAYS,
    # Clocks, where the virtual machine's is not readable from user space; keys of TLS; who and how much we are.
    "clock_gettime": ALWAYS,
    "clock_getres": ALWAYS,
    "gettimeofday": ALWAYS,
    "time": ALWAYS,
    "getrandom": ALWAYS,
    "getpid": ALWAYS,
    "gettid": ALWAYS,
    "getppid": ALWAYS,
    "getuid": ALWAYS,
    "geteuid": ALWAYS,
    "getgid": ALWAYS,
    "getegid": ALWAYS,
    "getrusage": ALWAYS,
    "times": ALWAYS,
    # Signals to us, and the end.
    "rt_sigaction": ALWAYS,
    "rt_sigprocmask": ALWAYS,
    "rt_sigreturn": ALWAYS,
    "sigaltstack": ALWAYS,
    "exit": ALWAYS,
    "exit_group": ALWAYS,
}

WITH_IMPORTS: Final[Rules] = {
    # Modules are looked for, read, and mapped where they are libraries; nothing is written.
    "openat": either(2, 0, mask=WRITING),
    "newfstatat": ALWAYS,
    "statx": ALWAYS,
    "readlink": ALWAYS,
    "readlinkat": ALWAYS,
    "getdents64": ALWAYS,
    "getcwd": ALWAYS,
    "uname": ALWAYS,
    "mmap": ALWAYS,
    "mprotect": ALWAYS,
}

WRITES: Final = ("write", "writev", "sendto", "sendmsg", "connect", "ioctl")


def only_read(rules: Rules, descriptors: Collection[int]) -> dict[str, Ways]:
    """The rules where nothing can be written to these descriptors.

    Of their options only the filter can be changed, by which the worker ends its capture.
    """
    others = tuple(Arg(0, fd, equal=False) for fd in descriptors)
    changed = dict(rules)
    for name in WRITES:
        changed[name] = tuple((*others, *way) for way in rules[name])
    if descriptors:
        filters = tuple((Arg(0, fd), Arg(1, socket.SOL_SOCKET), Arg(2, SO_ATTACH_FILTER)) for fd in descriptors)
        changed["setsockopt"] = (others, *filters)
    return changed
