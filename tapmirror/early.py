# SPDX-License-Identifier: Apache-2.0
"""The data of SYNs (TCP Fast Open, RFC 7413), until production's acknowledgement tells whether it took them.

Anybody can send such a SYN under any address, so there is room for few of them.  The oldest goes first, and all go that
production leaves without a response for too long.

Pure: no clock; `now` is passed in.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

from tapmirror.events import ACK, UNACCEPTED, DropReason, FilterReason, FlowKey, Segment
from tapmirror.ledger import Ledger
from tapmirror.tcp import MASK

EARLY_FLOWS: Final = 1_024
"""How many SYNs with data are held."""
EARLY_BYTES: Final = 2_048
"""How much data of each: a SYN carries at most one segment."""


class _Early(NamedTuple):
    """`seq`: number of its first byte.  `ack`: what the SYN acknowledged.  `since`: when it came."""

    seq: int
    data: bytes
    ack: int
    since: float


class EarlyData:
    """The data that is held by one worker, by connection; each for at most `accept_time` seconds."""

    __slots__ = ("_accept_time", "_held", "_ledger")

    def __init__(self, accept_time: float, ledger: Ledger) -> None:
        self._accept_time = accept_time
        self._ledger = ledger
        self._held: OrderedDict[FlowKey, _Early] = OrderedDict()
        """The oldest first."""

    def __len__(self) -> int:
        return len(self._held)

    @property
    def size(self) -> int:
        """How many bytes are held."""
        return sum(len(each.data) for each in self._held.values())

    def hold(self, segment: Segment, now: float) -> None:
        """Keep the data of a SYN, in place of what an earlier one on the same connection had."""
        key, flags, seq, ack, length, payload, _ = segment
        if flags & (ACK | UNACCEPTED):
            self._ledger.filter(FilterReason.OUTSIDE, length, 1 if length else 0)
            return
        old = self._held.pop(key, None)
        if old is not None:
            self._ledger.filter(FilterReason.DUPLICATE, len(old.data), 1)
        if length > EARLY_BYTES or len(payload) < length:
            self._ledger.drop(DropReason.CUT, length, 1)
            return
        if not length:
            return
        self._held[key] = _Early((seq + 1) & MASK, bytes(payload), ack, now)
        if len(self._held) > EARLY_FLOWS:
            self._refuse(next(iter(self._held)))

    def taken(self, key: FlowKey, first: int) -> tuple[int, bytes, int] | None:
        """Production accepted this connection and expects byte `first` next: (number of the first byte, data, what the
        SYN acknowledged) if it has the data of the SYN; None if it did not take it, or there was none.
        """
        early = self._held.get(key)
        if early is None:
            return None
        if (early.seq + len(early.data)) & MASK != first:
            self._refuse(key)
            return None
        del self._held[key]
        return early.seq, early.data, early.ack

    def drop(self, key: FlowKey, reason: DropReason) -> None:
        """Give up what is held of this connection, if there is anything."""
        early = self._held.pop(key, None)
        if early is not None:
            self._ledger.drop(reason, len(early.data), 1)

    def expire(self, now: float) -> None:
        """Give up what production left without a response for too long."""
        while self._held:
            key, early = next(iter(self._held.items()))
            if now - early.since < self._accept_time:
                return
            self._refuse(key)

    def close(self) -> None:
        """Give up everything: the tap ends."""
        for key in list(self._held):
            self.drop(key, DropReason.SHUTDOWN)

    def _refuse(self, key: FlowKey) -> None:
        self._ledger.filter(FilterReason.NOT_ACCEPTED, len(self._held.pop(key).data), 1)
