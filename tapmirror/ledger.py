# SPDX-License-Identifier: Apache-2.0
"""The ledger: what became of everything that was seen, and the identity that proves it.

For each unit (segments, bytes, requests) at any time:

    seen = mirrored + sampled_out + sum(filtered) + sum(dropped) + in_flight

`seen` is counted where something first appears: segments and bytes by the kernel at the interface, requests by framing.
The right side is counted where its fate is decided.  So both sides are independent, and a difference is a fault, not a
rounding.  `in_flight` is measured too: the stages report what they hold.

Pure: counters only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, Final

import msgspec

from tapmirror.events import DropReason, FilterReason
from tapmirror.histogram import Histogram

CONNECT_FAILED: Final = "connect_"
"""Beginning of the names of events that count failed attempts to connect to a shadow, by errno:
`connect_ECONNREFUSED`."""
CONNECT_SILENT: Final = f"{CONNECT_FAILED}silent"
"""Event: an address accepted a connection and closed it without sending a byte, as it did with all before."""

UNANSWERED_ALIKE: Final = "unanswered_alike"
"""Event: neither the shadow nor production answered a request."""

SENT_AGAIN_BYTES: Final = "sent_again_bytes"
"""Event: a byte of a request that was sent twice (`sent_again`).  Each account has it once."""


class Account:
    """The account of one unit.  Its counters are plain attributes, because the data path adds to them."""

    __slots__ = ("dropped", "filtered", "mirrored", "sampled_out", "seen")

    def __init__(self) -> None:
        self.seen = 0
        self.mirrored = 0
        self.sampled_out = 0
        self.filtered: Counter[FilterReason] = Counter()
        self.dropped: Counter[DropReason] = Counter()

    def settled(self) -> int:
        """How much of what was seen is mirrored, sampled out, filtered or dropped, and not in flight any more."""
        return self.mirrored + self.sampled_out + self.filtered.total() + self.dropped.total()

    def saved(self) -> dict[str, Any]:
        """The account as plain data, for `restore`."""
        return {
            "seen": self.seen,
            "mirrored": self.mirrored,
            "sampled_out": self.sampled_out,
            "filtered": {reason.value: count for reason, count in self.filtered.items()},
            "dropped": {reason.value: count for reason, count in self.dropped.items()},
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Add what was saved."""
        self.seen += saved["seen"]
        self.mirrored += saved["mirrored"]
        self.sampled_out += saved["sampled_out"]
        self.filtered.update({FilterReason(reason): count for reason, count in saved["filtered"].items()})
        self.dropped.update({DropReason(reason): count for reason, count in saved["dropped"].items()})

    def snapshot(self, in_flight: int) -> dict[str, Any]:
        """The account as plain data.  `unaccounted` is 0 unless something is wrong."""
        return {
            "seen": self.seen,
            "mirrored": self.mirrored,
            "sampled_out": self.sampled_out,
            "filtered": {r.value: n for r, n in self.filtered.items() if n},
            "dropped": {r.value: n for r, n in self.dropped.items() if n},
            "in_flight": in_flight,
            "unaccounted": self.seen - self.settled() - in_flight,
        }


def added(one: Account, other: Account) -> Account:
    """The sum of two accounts."""
    total = Account()
    total.seen = one.seen + other.seen
    total.mirrored = one.mirrored + other.mirrored
    total.sampled_out = one.sampled_out + other.sampled_out
    total.filtered = one.filtered + other.filtered
    total.dropped = one.dropped + other.dropped
    return total


def times(account: Account, copies: int) -> Account:
    """The account if everything was sent `copies` times, which is at least once."""
    total = account
    for _ in range(copies - 1):
        total = added(total, account)
    return total


class View(msgspec.Struct, frozen=True):
    """What became of everything seen on its way to one shadow, or the sum for several."""

    bytes: Account
    requests: Account
    events: Counter[str]
    responses: Counter[str]
    latency: Histogram
    held_bytes: int
    """Bytes in flight to this shadow."""
    held_requests: int

    def snapshot(self) -> dict[str, Any]:
        """The view as plain data."""
        return {
            "bytes": self.bytes.snapshot(self.held_bytes),
            "requests": self.requests.snapshot(self.held_requests),
            "events": dict(sorted(self.events.items())),
            "answers": dict(sorted(self.responses.items())),
            "latency": self.latency.snapshot(),
        }


def total(views: Sequence[View]) -> View:
    """The sum of the accounts of all shadows, in which every copy counts.  Their response times are not mixed: those of
    the first shadow stay.
    """
    whole = views[0]
    for view in views[1:]:
        whole = View(
            added(whole.bytes, view.bytes),
            added(whole.requests, view.requests),
            whole.events + view.events,
            whole.responses + view.responses,
            whole.latency,
            whole.held_bytes + view.held_bytes,
            whole.held_requests + view.held_requests,
        )
    return whole


def summed(snapshots: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Add up snapshots of the same shape: numbers are added, and of everything else the first snapshot's stays."""
    found = dict(snapshots[0])
    for snapshot in snapshots[1:]:
        for name, value in snapshot.items():
            mine = found.get(name)
            if mine is None:
                found[name] = value
            elif isinstance(value, dict):
                found[name] = summed([mine, value])
            elif isinstance(value, int | float) and not isinstance(value, bool):
                found[name] = mine + value
    return found


def waits(snapshot: Mapping[str, Any]) -> list[tuple[int, int]]:
    """For each worker in a tap's snapshot: (records that it read, microseconds that they had waited for it in sum).

    A snapshot without workers counts as that of one worker.
    """
    workers = snapshot.get("workers") or ()
    each = workers if workers and all("delay_records" in worker for worker in workers) else [snapshot["events"]]
    return [(worker.get("delay_records", 0), worker.get("delay_us", 0)) for worker in each]


def worst_wait(before: Sequence[tuple[int, int]], after: Sequence[tuple[int, int]]) -> float:
    """How long, in seconds, records that were read between two `waits` had waited on average, at the slowest worker.

    An average over all workers would hide one that gets no CPU, because it reads less than the others.
    """
    worst = 0.0
    for (records, waited), (more, longer) in zip_longest(before, after, fillvalue=(0, 0)):
        if more > records:
            worst = max(worst, (longer - waited) / 1e6 / (more - records))
    return worst


class Ledger:
    """All counters of one tap in one process.

    segments, bytes   TCP segments with payload from client to production, and their payload.
                      A segment is `mirrored` when reassembly handed on a byte of it.  A byte is
                      `mirrored` when the kernel accepted it for sending to the shadow.
    requests          HTTP requests whose head was recognised.  One is `mirrored` when its last byte was sent.
    events            everything else worth counting (flows, connections, SYNs), without an identity.
    responses         the shadow's HTTP responses by status class ("2xx"), and what went wrong.
    latency           how long some of them took (`replay.latency`).
    """

    __slots__ = ("bytes", "events", "latency", "requests", "responses", "segments")

    def __init__(self) -> None:
        self.segments = Account()
        self.bytes = Account()
        self.requests = Account()
        self.events: Counter[str] = Counter()
        self.responses: Counter[str] = Counter()
        self.latency = Histogram()

    def drop(self, reason: DropReason, size: int, segments: int = 0) -> None:
        """Count `size` bytes as lost, and `segments` if reassembly has handed on nothing of them."""
        self.bytes.dropped[reason] += size
        if segments:
            self.segments.dropped[reason] += segments

    def filter(self, reason: FilterReason, size: int, segments: int = 0) -> None:
        """Count `size` bytes as left out, and `segments` if reassembly has handed on nothing of them."""
        self.bytes.filtered[reason] += size
        if segments:
            self.segments.filtered[reason] += segments

    def saved(self) -> dict[str, Any]:
        """All counters as plain data, for `restore`."""
        units = {unit: getattr(self, unit).saved() for unit in ("segments", "bytes", "requests")}
        return {
            **units,
            "events": dict(self.events),
            "answers": dict(self.responses),
            "latency": self.latency.snapshot(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Add what was saved."""
        for unit in ("segments", "bytes", "requests"):
            getattr(self, unit).restore(saved[unit])
        self.events.update(saved["events"])
        self.responses.update(saved["answers"])
        self.latency.restore(saved["latency"])

    def snapshot(self, *, segments: int = 0, bytes: int = 0, requests: int = 0) -> dict[str, Any]:  # noqa: A002
        """The ledger as plain data.  The arguments tell how much of each unit is in flight."""
        return {
            "segments": self.segments.snapshot(segments),
            "bytes": self.bytes.snapshot(bytes),
            "requests": self.requests.snapshot(requests),
            "events": dict(sorted(self.events.items())),
            "answers": dict(sorted(self.responses.items())),
        }
