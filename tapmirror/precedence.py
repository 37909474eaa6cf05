# SPDX-License-Identifier: Apache-2.0
"""Production's processes come first on the CPU.

Theory of operation
-------------------
*Its share.*  The nice value, and that of the session: kernels that weigh sessions (CONFIG_SCHED_AUTOGROUP) compare
processes by their own only within one (sched(7), "The autogroup feature").

*Its place in the queue.*  The nice value does not decide it.  Whoever runs is left alone until a slice of time is over
(Linux 6.6 and later, EEVDF: RUN_TO_PARITY, 2.8 ms as a rule), whatever the weights, unless the one that wakes asks for
shorter slices than it (6.12: PREEMPT_SHORT in check_preempt_wakeup_fair).  So we ask for the longest one there is:
what wakes beside us runs at once.  Older kernels take no notice of it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from contextlib import suppress
from typing import Final

NICENESS: Final = 5
"""Where CPU is short, production's processes (0) get three times as much (sched_prio_to_weight in the kernel): a tap
rather drops than makes production wait."""
LONGEST: Final = 100_000_000
"""Nanoseconds: the most that sched_setattr(2) takes of an ordinary process."""
KEEP_POLICY: Final = 0x08
"""SCHED_FLAG_KEEP_POLICY of linux/sched.h: a batch or idle process stays one."""
_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274}
_ATTR: Final = struct.Struct("=IIQiIQQQ")
"""`struct sched_attr`: size, policy, flags, nice, priority, runtime, deadline, period."""


def give_way(niceness: int = NICENESS, pid: int = 0) -> None:
    """Let others come before this process (0: ours), and before its session.

    Whoever is nicer already stays so, and what the kernel does not know or allow is left as it is.  Raises
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
