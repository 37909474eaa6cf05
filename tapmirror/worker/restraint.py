# SPDX-License-Identifier: Apache-2.0
"""How fast a worker catches up after a time without CPU.

Theory of operation
-------------------
If CPU is short (a quota, neighbours with precedence), a worker stands still for tens of milliseconds, and then finds
everything that was captured meanwhile.  Sending it in one go would keep a processor and the shadow busy for
milliseconds, and requests that production gets just then would wait.  So the worker catches up at a few times its mean
rate, with the usual pause after each small batch.  This also spreads a quota, which is then not used up at the
beginning of each period.

It applies only to a worker that is late *and* had little CPU.  One that is late because there is more work than one
processor can do needs all of the CPU.  For a quiet worker that suddenly gets much, the mean says nothing, so its CPU is
measured from its first full batch on.  If the ring fills, or the rate is high, nothing is held back.

Pure: times in, a number of records out.
"""

from __future__ import annotations

import math
from typing import Final

LATE: Final = 0.01
"""A worker counts as late if records have waited in the capture for this many seconds: several pauses and batches."""
SPAN: Final = 0.1
"""Seconds over which its rate and its CPU are measured: a period of the kernel's quotas (CFS bandwidth control)."""
IDLE: Final = 0.5
"""Share of one CPU: a late worker that used less was kept from running."""
FASTER: Final = 3.0
"""It catches up at this many times the mean rate, and once more for each `SPAN` that it is late, so that it is not late
for long."""
FEWEST: Final = 8
"""Least records of a batch: an iteration costs as much as three records, whatever it reads."""
MOST: Final = 64
"""If the rate needs larger batches than this, nothing is held back: small batches would cost too many iterations."""
FULL: Final = 0.125
"""Fill level of the ring above which nothing is held back."""


class Restraint:
    """Decides the size of a batch, at most `most` records, for a worker that pauses `pause` seconds after each."""

    __slots__ = ("_cpu", "_limit", "_most", "_pause", "_read", "_since")

    def __init__(self, most: int, pause: float) -> None:
        self._most = most
        self._pause = pause
        self._limit = most
        self._since = 0.0
        self._read = 0
        self._cpu = 0.0

    def limit(self, now: float, age: float, read: int, cpu: float, fill: float) -> int:
        """The size of the next batch, in records, of a worker that is late by `age` seconds, or has just read `most`.

        `read` is how many records it read in all, `cpu` how many seconds of CPU it used in all, and `fill` how full the
        ring is (0 to 1).
        """
        elapsed = now - self._since
        if elapsed >= SPAN:
            wanted = math.ceil((FASTER + age / SPAN) * (read - self._read) / elapsed * self._pause)
            kept_off = age > LATE and cpu - self._cpu < IDLE * elapsed
            self._limit = max(wanted, FEWEST) if kept_off and wanted <= MOST else self._most
            self._since, self._read, self._cpu = now, read, cpu
        return self._limit if age > LATE and fill <= FULL else self._most
