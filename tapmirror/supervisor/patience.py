# SPDX-License-Identifier: Apache-2.0
"""How long a worker may take to answer, not counting the time for which it waits for a CPU.  Nothing else.

A worker that gets no CPU is not hung: replaced, it would lose what it holds, and its successor would get none either.
The kernel tells how long a task waited in a run queue (`run_delay`, Documentation/scheduler/sched-stats.rst), but only
when the wait is over; until then its counters stand still while its state is R.  What a cgroup's quota keeps from
running (cpu.max, CPUQuota=) waits there as well.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Final, NamedTuple

LONGEST: Final = 60.0
"""Seconds of waiting for a CPU that do not count, in one wait for a reply."""


class _Look(NamedTuple):
    at: float
    state: bytes
    counters: tuple[int, int, int]
    """Nanoseconds on a CPU, nanoseconds of waiting for one, and how often it got one."""


class Scheduled:
    """A process without threads, as the scheduler sees it; yours until `close`.

    Its files stay open: under `ProtectProc=invisible` nobody may open those of a process that has become another
    user's.
    """

    def __init__(self, pid: int) -> None:
        self._files: list[int] = []
        with suppress(OSError):  # no CONFIG_SCHED_INFO, or it is gone
            for name in ("stat", "schedstat"):
                self._files.append(os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC))

    def look(self) -> _Look | None:
        """How it is now; None: the kernel does not tell."""
        try:
            stat, schedstat = (os.pread(file, 1024, 0) for file in self._files)
            state = stat[stat.rindex(b")") + 2 :][:1]
            on_cpu, waited, times = map(int, schedstat.split())
        except (OSError, ValueError):
            return None
        if not on_cpu:  # it has begun: the kernel keeps no such statistics (sched_info_on)
            return None
        return _Look(time.monotonic(), state, (on_cpu, waited, times))

    def close(self) -> None:
        """Look no more."""
        while self._files:
            os.close(self._files.pop())


class Patience:
    """A clock that stands still while a process waits for a CPU, for up to `LONGEST` seconds, until `lose`."""

    def __init__(self, scheduled: Scheduled) -> None:
        self.starved = 0.0
        """Seconds for which it stood still."""
        self._lost = False
        self._scheduled = scheduled
        self._last = scheduled.look()

    def now(self) -> float:
        """The time, as far as it is known without a look."""
        return time.monotonic() - self.starved

    def look(self) -> float:
        """The time, after a look at the process."""
        last, self._last = self._last, self._scheduled.look()
        if last is not None and self._last is not None and not self._lost:
            self.starved = min(LONGEST, self.starved + _waited(last, self._last))
        return self.now()

    def lose(self) -> None:
        """Run like any other clock from now on."""
        self._lost = True
        self.starved = 0.0


def _waited(before: _Look, after: _Look) -> float:
    """Seconds between two looks in which it waited for a CPU."""
    passed = after.at - before.at
    if after.state == b"R" and after.counters == before.counters:
        return passed
    return min(passed, (after.counters[1] - before.counters[1]) / 1e9)
