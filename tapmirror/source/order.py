# SPDX-License-Identifier: Apache-2.0
"""The order of reads from memory that the kernel writes at the same time.

The kernel publishes with a release store, and a reader has to see what was written before it: first the position or the
status, then what it is about; and the other way around before room is given back.  x86 keeps that order by
itself.  arm64 does not, and Python has no barrier; but a lock is one, in two steps: its release is ordered behind all
reads before it (store-release), its acquisition before all after it (load-acquire), and in the memory model of ARMv8
an acquire behind a release stays behind it ([L]; po; [A], Arm Architecture Reference Manual B2.3).

NOTE: tried on an emulated arm64 only, whose memory is as strongly ordered as that of the x86 beneath it.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable
from typing import Final


def fence_for(machine: str) -> Callable[[], object] | None:
    """What keeps the reads before it before those after it; None where nothing has to be done."""
    if machine in ("x86_64", "i686"):
        return None
    lock = threading.Lock()
    lock.acquire()

    def fence() -> None:
        lock.release()
        lock.acquire()

    return fence


FENCE: Final = fence_for(platform.machine())
