# SPDX-License-Identifier: Apache-2.0
"""The order of reads from memory that the kernel writes at the same time.

The kernel publishes with a release store, and a reader must see what was written before it: first it reads the position
or the status, then what that announces.  Before it gives room back, the order is the other way around.  x86 keeps this
order by itself.  arm64 does not, and Python has no barrier, but a lock acts as one, in two steps.  Its release is
ordered behind all reads before it (store-release), and its acquisition before all reads after it (load-acquire).  In
the memory model of ARMv8, an acquire behind a release stays behind it ([L]; po; [A], Arm Architecture Reference Manual
B2.3).

NOTE: tried only on an emulated arm64, whose memory is as strongly ordered as that of the x86 beneath it.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable
from typing import Final


def fence_for(machine: str) -> Callable[[], object] | None:
    """Call it to keep the reads before the call in front of those behind it; None: nothing has to be done."""
    if machine in ("x86_64", "i686"):
        return None
    lock = threading.Lock()
    lock.acquire()

    def fence() -> None:
        lock.release()
        lock.acquire()

    return fence


FENCE: Final = fence_for(platform.machine())
