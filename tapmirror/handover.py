# SPDX-License-Identifier: Apache-2.0
"""What a worker leaves to its successor: its ledgers, so that they continue.

Theory of operation
-------------------
With every snapshot the supervisor gets the worker's ledgers (`saved`).  It hands the last ones to a successor, which
continues from them (`take_over`).  What the capture counts in the kernel is not in them, and continues by itself.

How much the dead worker had read is known exactly, because the capture keeps it (`Source.received`).  What became of it
is known only up to the last ledgers.  The difference, which is what the worker held and what it passed on since, is
entered as `worker_lost`.  So what was read between two snapshots may be counted as lost although it was mirrored, but
never the other way around.  Requests that began after the last ledgers are in no account.

Pure: values only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from tapmirror.events import DropReason, FilterReason
from tapmirror.ledger import Account, Ledger

BY_CAPTURE: Final = (FilterReason.LOOP, DropReason.RING_FULL, DropReason.FRAGMENT)
"""The fates that the capture itself enters into the segments and bytes of the worker's own ledger."""


def saved(own: Ledger, shadows: Sequence[Ledger]) -> dict[str, Any]:
    """The worker's own ledger and those of its shadows as plain data; no shadows: its own is that of the only one."""
    return {"own": own.saved(), "shadows": [ledger.saved() for ledger in shadows]}


def take_over(
    past: dict[str, Any] | None,
    own: Ledger,
    shadows: Sequence[tuple[Ledger, int]],
    received: tuple[int, int],
) -> None:
    """Enter a predecessor's ledgers into our new ledgers; `past` is None if it left none.

    `shadows` are (ledger, number of copies).  `received`: segments and bytes that were read before us.
    """
    if past is not None:
        own.restore(past["own"])
        if shadows:
            for (ledger, _), saved in zip(shadows, past["shadows"], strict=True):
                ledger.restore(saved)
        else:  # one shadow, which had a ledger of its own as long as there was something to decide (a ramp)
            for saved in past["shadows"]:
                own.restore(saved)
    lost = DropReason.WORKER_LOST
    own.segments.dropped[lost] += received[0] - _met(own.segments)
    size, requests = received[1] - _met(own.bytes), own.requests.seen - own.requests.settled()
    if not shadows:
        own.bytes.dropped[lost] += size
        own.requests.dropped[lost] += requests
    for ledger, copies in shadows:
        ledger.bytes.dropped[lost] += size * copies - ledger.bytes.settled()
        ledger.requests.dropped[lost] += requests * copies + ledger.requests.seen - ledger.requests.settled()


def _met(account: Account) -> int:
    """How much of what was read from the capture has met its fate."""
    filtered = sum(count for reason, count in account.filtered.items() if reason not in BY_CAPTURE)
    return account.mirrored + filtered + sum(n for reason, n in account.dropped.items() if reason not in BY_CAPTURE)
