# SPDX-License-Identifier: Apache-2.0
"""How fast a worker catches up that was kept off the CPU.

Theory of operation
-------------------
Where CPU is short (a quota, neighbours that come first) a worker stands still for tens of milliseconds and then finds
all that was captured meanwhile.  Sent in one go it keeps a processor, and the shadow and whoever shares its host with
production, busy for milliseconds, and the requests that production gets just then wait.  So it catches up at a few
times its mean rate, with the usual pause after each small batch.  Under a quota that spreads what there is, too:
the quota is not used up at the beginning of each period.

It is for a worker only that is late *and* had little of the CPU: one that is late because there is more to do than
a processor can needs all of it.  Of a quiet worker that gets much at once the mean says nothing: from its first full
batch on its CPU is taken anew.  Where the ring fills, or the rate is high, nothing is held back.

Pure: times in, a number of records out.
"""

from __future__ import annotations

import math
from typing import Final

LATE: Final = 0.01
"""Seconds that a record has waited in the capture when the worker counts as late: several pauses and batches."""
SPAN: Final = 0.1
"""Seconds over which its rate and its CPU are taken: a period of the kernel's quotas (CFS bandwidth control)."""
IDLE: Final = 0.5
"""Part of the CPU: a worker that had less and is late was kept off it."""
FASTER: Final = 3.0
"""Times the mean rate at which it catches up, at least: once more for each `SPAN` that it is late, so that it is not
late for long."""
FEWEST: Final = 8
"""Records of a batch: an iteration costs as much as three whatever it reads."""
MOST: Final = 64
"""A rate that would need more gets all: to be gentle there takes more iterations than the batches are worth."""
FULL: Final = 0.125
"""Part of the ring above which nothing is held back."""


class Restraint:
    """The size of the next batch, of `most` at most, for a worker that pauses `pause` seconds after one."""

    __slots__ = ("_cpu", "_limit", "_most", "_pause", "_read", "_since")

    def __init__(self, most: int, pause: float) -> None:
        self._most = most
        self._pause = pause
        self._limit = most
        self._since = 0.0
        self._read = 0
        self._cpu = 0.0

    def limit(self, now: float, age: float, read: int, cpu: float, fill: float) -> int:
        """Records for a worker that is late by `age` seconds, or (up to `LATE`) in time and has just read `most`.

        It has read `read` in all, with `cpu` seconds of the CPU; the ring is full by `fill`, of 1.
        """
        elapsed = now - self._since
        if elapsed >= SPAN:
            wanted = math.ceil((FASTER + age / SPAN) * (read - self._read) / elapsed * self._pause)
            kept_off = age > LATE and cpu - self._cpu < IDLE * elapsed
            self._limit = max(wanted, FEWEST) if kept_off and wanted <= MOST else self._most
            self._since, self._read, self._cpu = now, read, cpu
        return self._limit if age > LATE and fill <= FULL else self._most
