# SPDX-License-Identifier: Apache-2.0
"""The wall clock against CLOCK_MONOTONIC: the kernel stamps packets by the one, all our times are of the other."""

from __future__ import annotations

import time
from typing import Final

NEAR_NS: Final = 2_000
"""Nanoseconds between the first and the last of three reads of clocks in a row: 0.2 µs as a rule, where nobody comes
between."""
TRIES: Final = 4


def ahead() -> int:
    """By how many nanoseconds the wall clock is ahead, to a microsecond.

    Whoever is put off the processor between two reads of clocks, as on a busy host, would be wrong by so long: the wall
    clock's is taken in the middle between two of the other, and again where these lie far apart; the nearest count.
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
