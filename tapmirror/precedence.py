# SPDX-License-Identifier: Apache-2.0
"""Production's processes come first on the CPU.

Theory of operation
-------------------
*Share of the CPU.*  It is set by the nice value of the process, and of its session: kernels with autogroup
(CONFIG_SCHED_AUTOGROUP) compare nice values of processes only within a session (sched(7), "The autogroup feature").

*Place in the queue.*  The nice value does not decide it.  A running process is not interrupted until its time slice is
over (Linux 6.6 and later, EEVDF: RUN_TO_PARITY, usually 2.8 ms), whatever the weights, unless the process that wakes up
asks for shorter slices (6.12: PREEMPT_SHORT in check_preempt_wakeup_fair).  So we ask for the longest slices there are,
and others that wake up run at once.  Older kernels ignore this.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from contextlib import suppress
from typing import Final

NICENESS: Final = 5
"""If CPU is short, production's processes (nice 0) get three times as much (sched_prio_to_weight in the kernel): a tap
should drop requests rather than let production wait."""
LONGEST: Final = 100_000_000
"""Nanoseconds of a slice: the most that sched_setattr(2) accepts for an ordinary process."""
KEEP_POLICY: Final = 0x08
"""SCHED_FLAG_KEEP_POLICY of linux/sched.h: a batch or idle process stays one."""
_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274}
_ATTR: Final = struct.Struct("=IIQiIQQQ")
"""`struct sched_attr`: size, policy, flags, nice, priority, runtime, deadline, period."""


def give_way(niceness: int = NICENESS, pid: int = 0) -> None:
    """Let other processes come before this one (0: ours), and before its session.

    A process that is nicer already stays so, and what the kernel does not know or allow stays as it is.  Raises
    ProcessLookupError.
    """
    niceness = max(niceness, os.getpriority(os.PRIO_PROCESS, pid))
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, pid, niceness)
    with suppress(OSError), open(f"/proc/{pid or 'self'}/autogroup", "w", encoding="ascii") as group:
        group.write(str(niceness))
    number = _SCHED_SETATTR.get(platform.machine())
    if number is not None:
        attributes = ctypes.create_string_buffer(_ATTR.pack(_ATTR.size, 0, KEEP_POLICY, niceness, 0, LONGEST, 0, 0))
        ctypes.CDLL(None).syscall(number, pid, attributes, 0)
