# SPDX-License-Identifier: Apache-2.0
"""What a tap may cost this host and its shadows, and when a shadow counts as unwell: the set points of the governor.
If one of them is exceeded, fewer connections are captured (whole ones are left out, in the kernel) until it is kept
again.
"""

from __future__ import annotations

import math
from typing import Final

from tapmirror.spec.errors import Checked, Found
from tapmirror.spec.numbers import Seconds

WORKER: Final = 42 << 20
"""Bytes that an idle worker holds.  With a budget below this, the share would always be at its minimum."""


def too_little(memory: int | None, workers: int = 1) -> str:
    """What is wrong with a budget of memory for this many workers; empty: nothing."""
    if memory is None or memory >= workers * WORKER:
        return ""
    whose = "a worker holds" if workers == 1 else f"{workers} workers hold"
    return f"{memory} bytes are less than the {workers * WORKER >> 20} MiB that {whose} without any traffic"


class Budget(Checked, frozen=True, kw_only=True):
    """The most that a tap may use.  If it uses more, its share is lowered; the share is never above `percent`."""

    cpu: float = 1.0
    """Processor cores, of all workers together.  One worker can use at most one core, about 70,000 small requests
    a second.  More workers get more only if it is stated here."""
    memory: int | None = None
    """Bytes of resident memory, of all workers together.  Absent: 512 MiB; with more than two workers 256 MiB for
    each.  The default limits of one worker with one shadow, all reached at once, add up to about 220 MiB."""
    bandwidth: float | None = None
    """Bytes a second to all shadows together.  Absent: no limit; only you know what the link can carry."""
    delay: Seconds = 0.1
    """Seconds that segments wait for a worker, on average over a second, for some seconds in a row.  A worker that
    gets the CPU it needs is a millisecond behind.  One that gets less would be later and later, until the ring
    is full.  A tenth of a second is the period of a control group's quota (`CPUQuota=`)."""
    ring: float = 0.5
    """Fill level of the capture ring, 0 to 1.  At 1, requests are lost within connections; one half leaves time to
    act."""
    host_cpu: float = 70.0
    """Percent of the last ten seconds in which something on this host waited for a processor (PSI, `some`; `full`
    is always 0 for the CPU of a whole host).  Above it, the workers use less, down to a tenth of a core and no
    further: what waits may be a batch job (one job more than there are processors makes it 100), and workers
    have low priority anyway.  A host whose processors are idle for a third of the time is below 70.  100 turns
    it off."""
    host_memory: float = 10.0
    """Percent of the last ten seconds in which something on this host waited for memory (PSI, `some`).  A healthy
    host is at 0; if a tenth of the time is lost to reclaim, everybody notices."""
    errors: float = 0.5
    """Share of a shadow's responses that are errors (5xx, not HTTP, or none at all) above which it is left alone.
    One error in ten requests is what a mirror should show; half of them means that the shadow is down.  1 turns
    it off."""
    latency: Seconds = 5.0
    """Median response time of a shadow in seconds, above which it gets less: as long as pacing waits (`wait_time`)."""
    retry: Seconds = 30.0
    """Longest time in seconds that a shadow is left alone before a few connections try it again; the first time is
    at most 5."""

    def memory_of(self, workers: int) -> int:
        """The budget of memory in bytes for this many workers."""
        return max(512 << 20, workers * (256 << 20)) if self.memory is None else self.memory

    def _check(self) -> Found:
        for name, most in (
            ("cpu", math.inf),
            ("memory", math.inf),
            ("bandwidth", math.inf),
            ("latency", math.inf),
            ("delay", math.inf),
            ("ring", 1.0),
            ("errors", 1.0),
            ("host_cpu", 100.0),
            ("host_memory", 100.0),
        ):
            value = getattr(self, name)
            if value is not None and not (0 < value <= most and value < math.inf):
                yield name, f"{value} is not a number above 0" + (f" and up to {most:g}" if most < math.inf else "")
        if not 1 <= self.retry <= 3600:
            yield "retry", f"{self.retry} is not between 1 and 3600"
