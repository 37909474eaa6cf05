# SPDX-License-Identifier: Apache-2.0
"""The difference of the wall clock and CLOCK_MONOTONIC: the kernel stamps packets by the former, we use the latter."""

from __future__ import annotations

import time
from typing import Final

NEAR_NS: Final = 2_000
"""Most nanoseconds between the first and the last of three reads of clocks: usually 0.2 µs, if not interrupted."""
TRIES: Final = 4


def ahead() -> int:
    """By how many nanoseconds the wall clock is ahead, to a microsecond.

    On a busy host, a process may be interrupted between two reads of clocks, and be wrong by that time.  So the wall
    clock is read between two reads of the other clock, again if these are far apart, and the closest reads count.
    """
    least = found = 0
    for _ in range(TRIES):
        before, wall, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        apart = after - before
        if not found or apart < least:
            least, found = apart, wall - before - apart // 2
        if apart < NEAR_NS:
            break
    return found
