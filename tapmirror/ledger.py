# SPDX-License-Identifier: Apache-2.0
"""The ledger: what became of everything that was seen, and the identity that proves it.

For each unit (segments, bytes, requests) at any time:

    seen = mirrored + sampled_out + sum(filtered) + sum(dropped) + in_flight

`seen` is counted where a thing first appears (segments and bytes: by the kernel,
at the interface; requests: by framing) and the right side where its fate is
decided, so the two sides are counted independently and a difference is a bug,
not a rounding.  `in_flight` is measured too: the stages report what they hold.

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
"""Events that begin so are attempts to connect to a shadow that failed, by errno: `connect_ECONNREFUSED`."""
CONNECT_SILENT: Final = f"{CONNECT_FAILED}silent"
"""Event: a connection that an address took and broke off without a byte, as it does with all."""

UNANSWERED_ALIKE: Final = "unanswered_alike"
"""Event: a request that the shadow left unanswered, and production too."""

SENT_AGAIN_BYTES: Final = "sent_again_bytes"
"""Event: a byte of requests that went twice (`sent_again`), which no account has twice."""


class Account:
    """The account of one unit.  Plain attributes: the data path adds to them."""

    __slots__ = ("dropped", "filtered", "mirrored", "sampled_out", "seen")

    def __init__(self) -> None:
        self.seen = 0
        self.mirrored = 0
        self.sampled_out = 0
        self.filtered: Counter[FilterReason] = Counter()
        self.dropped: Counter[DropReason] = Counter()

    def settled(self) -> int:
        """How much of what was seen has met its fate."""
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
    """The account of everything sent `copies` times."""
    total = account
    for _ in range(copies - 1):
        total = added(total, account)
    return total


class View(msgspec.Struct, frozen=True):
    """What became of everything seen on its way to one shadow (or to several: the sum)."""

    bytes: Account
    requests: Account
    events: Counter[str]
    answers: Counter[str]
    latency: Histogram
    held_bytes: int
    """Bytes in flight to this shadow."""
    held_requests: int

    def snapshot(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "bytes": self.bytes.snapshot(self.held_bytes),
            "requests": self.requests.snapshot(self.held_requests),
            "events": dict(sorted(self.events.items())),
            "answers": dict(sorted(self.answers.items())),
            "latency": self.latency.snapshot(),
        }


def total(views: Sequence[View]) -> View:
    """The sum of the accounts of all shadows: every copy counts.  Their times are not mixed: the first's."""
    whole = views[0]
    for view in views[1:]:
        whole = View(
            added(whole.bytes, view.bytes),
            added(whole.requests, view.requests),
            whole.events + view.events,
            whole.answers + view.answers,
            whole.latency,
            whole.held_bytes + view.held_bytes,
            whole.held_requests + view.held_requests,
        )
    return whole


def summed(snapshots: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One snapshot of several, which have the same shape: numbers are added; of all else the first's stays."""
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
    """Of each worker of a tap's snapshot: records that it read, and the microseconds that all these had waited for it.

    A snapshot that does not tell workers apart is as of one.
    """
    workers = snapshot.get("workers") or ()
    each = workers if workers and all("delay_records" in worker for worker in workers) else [snapshot["events"]]
    return [(worker.get("delay_records", 0), worker.get("delay_us", 0)) for worker in each]


def worst_wait(before: Sequence[tuple[int, int]], after: Sequence[tuple[int, int]]) -> float:
    """Seconds that what was read between two `waits` had waited in the mean, of the worker where it is most.

    The mean over all would hide one that gets no CPU behind those that do: it reads less than they do.
    """
    worst = 0.0
    for (records, waited), (more, longer) in zip_longest(before, after, fillvalue=(0, 0)):
        if more > records:
            worst = max(worst, (longer - waited) / 1e6 / (more - records))
    return worst


class Ledger:
    """All counters of one tap in one process.

    segments, bytes   TCP segments with payload from client to production, and their payload.
                      A segment is `mirrored` when reassembly handed a byte of it on.  A byte is
                      `mirrored` when the kernel took it for sending to the shadow.
    requests          HTTP requests whose head was recognised.  `mirrored`: its last byte was sent.
    events            everything else worth counting (flows, connections, SYNs): no identity.
    answers           the shadow's HTTP responses by status class ("2xx"), and what went wrong.
    latency           how long some of them took (`replay.latency`).
    """

    __slots__ = ("answers", "bytes", "events", "latency", "requests", "segments")

    def __init__(self) -> None:
        self.segments = Account()
        self.bytes = Account()
        self.requests = Account()
        self.events: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.latency = Histogram()

    def drop(self, reason: DropReason, size: int, segments: int = 0) -> None:
        """Give up `size` bytes (and `segments` that were not yet handed on)."""
        self.bytes.dropped[reason] += size
        if segments:
            self.segments.dropped[reason] += segments

    def filter(self, reason: FilterReason, size: int, segments: int = 0) -> None:
        """Leave out `size` bytes (and `segments` that were not yet handed on)."""
        self.bytes.filtered[reason] += size
        if segments:
            self.segments.filtered[reason] += segments

    def saved(self) -> dict[str, Any]:
        """All counters as plain data, for `restore`."""
        units = {unit: getattr(self, unit).saved() for unit in ("segments", "bytes", "requests")}
        return {
            **units,
            "events": dict(self.events),
            "answers": dict(self.answers),
            "latency": self.latency.snapshot(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Add what was saved."""
        for unit in ("segments", "bytes", "requests"):
            getattr(self, unit).restore(saved[unit])
        self.events.update(saved["events"])
        self.answers.update(saved["answers"])
        self.latency.restore(saved["latency"])

    def snapshot(self, *, segments: int = 0, bytes: int = 0, requests: int = 0) -> dict[str, Any]:  # noqa: A002
        """The ledger as plain data; the arguments are what is in flight of each unit."""
        return {
            "segments": self.segments.snapshot(segments),
            "bytes": self.bytes.snapshot(bytes),
            "requests": self.requests.snapshot(requests),
            "events": dict(sorted(self.events.items())),
            "answers": dict(sorted(self.answers.items())),
        }
