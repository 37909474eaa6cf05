# SPDX-License-Identifier: Apache-2.0
"""What clients sent on connections that production may still turn away.

A complete handshake is not a connection yet.  If production's accept queue is full, its kernel discards the packet that
completes the handshake, and the data behind it, until the client sends both again and there is room (Linux
`tcp_v4_syn_recv_sock`, `tcp_check_req`).  So such segments wait here, unchanged, until the capture reports that
production accepted the connection.  Then they are fed as if they had just come.

Most wait for milliseconds only, but anybody can begin connections that are never accepted.  So they have their own
room, and if it is full, the connections go that have been silent for longest.

Pure: no clock; `now` is passed in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, TypeAlias

from tapmirror.events import FIN, RST, UNACCEPTED, DropReason, FilterReason, FlowKey, Segment
from tapmirror.ledger import Ledger
from tapmirror.spec import Limits
from tapmirror.tcp import MASK, distance

EARLY: Final = 1 << 20
"""How many bytes of production a client can have acknowledged in such a segment; the same as in bpf/tap.c."""
MOST_BYTES: Final = 96 << 10
"""Most bytes of one connection.  A SYN-ACK offers at most 64 KiB, because its window is never scaled (RFC 7323, 2.2);
the rest is for data that is sent again in other pieces.  Less than the pipeline frames at once (`pipeline.AT_ONCE`)."""
MOST_SEGMENTS: Final = 256
"""Most segments of one connection: twice as many as fill that window on Ethernet, and those that are sent again."""
ENTRY: Final = 400
"""Bytes that a segment counts in addition to its payload: the memory that it needs however short it is."""
AT_ONCE: Final = 512
"""Most connections that one call of `expire` gives up, which takes about a millisecond."""

_Head: TypeAlias = tuple[int, int, int, int, int]
"""What makes two segments the same: flags, sequence number, acknowledgement and length.  The last number is the place
of an RST among the others: what a repeated RST ends depends on what came before it.  It is 0 for other segments."""


class _Held:
    """The segments of one connection."""

    __slots__ = ("again", "bytes", "last", "next", "segments")

    def __init__(self, seq: int) -> None:
        self.segments: dict[_Head, tuple[bytes, int]] = {}
        """The payload and the time of each segment, in the order in which they came."""
        self.bytes = 0
        self.last = 0.0
        """When the last segment came."""
        self.next = seq
        """Sequence number behind all of them."""
        self.again = 0
        """Time of the last segment that was sent again.  Production had discarded the earlier ones, so production's
        response time counts from this one."""


class Unaccepted:
    """The segments of all such connections of one worker.

    There are at most half as many connections as there may be flows.  Their bytes are bounded like those of heads
    (`Limits.heads_bytes`), since most of them are heads.
    """

    __slots__ = ("_held", "_ledger", "_limits", "_room", "bytes", "segments")

    def __init__(self, limits: Limits, ledger: Ledger) -> None:
        self._limits = limits
        self._ledger = ledger
        self._room = limits.heads_bytes
        """Bytes that are still free."""
        self._held: OrderedDict[FlowKey, _Held] = OrderedDict()
        """By connection; the one that has been silent for longest comes first."""
        self.segments = 0
        """Segments with payload that are held."""
        self.bytes = 0
        """Bytes of payload that are held."""

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, segment: Segment, now: float) -> None:
        """Keep a segment, or drop it if there is no room."""
        key, flags, seq, ack, length, payload, time_ns = segment
        held = self._held.get(key)
        if held is None:
            if flags & RST:  # of a health check, for example: there is nothing that it could end
                self._ledger.filter(FilterReason.OUTSIDE, length, 1 if length else 0)
                return
            while len(self._held) * 2 >= self._limits.flows:
                self._drop(next(iter(self._held)), DropReason.TABLE_FULL)
            held = self._held[key] = _Held(seq)
            head = flags & ~UNACCEPTED, seq, ack, length, 0
        else:
            head = flags & ~UNACCEPTED, seq, ack, length, len(held.segments) if flags & RST else 0
            self._held.move_to_end(key)
            if distance(seq, held.next) < 0:
                held.again = time_ns
            if head in held.segments:  # reassembly takes the first copy, whatever this one says
                held.last = now
                self._ledger.filter(FilterReason.DUPLICATE, length, 1 if length else 0)
                return
        held.last = now
        if held.segments or self._room < length + ENTRY:
            refused = self._refuses(key, held, length)
            if refused is not None:
                if length:
                    self._ledger.drop(refused, length, 1)
                return
        held.segments[head] = bytes(payload), time_ns
        if seq == held.next or distance(seq, held.next) >= 0:
            held.next = (seq + length + (flags & FIN)) & MASK
        held.bytes += length
        self._room -= length + ENTRY
        self.bytes += length
        if length:
            self.segments += 1

    def _refuses(self, key: FlowKey, held: _Held, size: int) -> DropReason | None:
        """Make room for `size` more bytes, if necessary by giving up others; why there is none, or None."""
        if held.bytes + size > MOST_BYTES or len(held.segments) >= MOST_SEGMENTS:
            return DropReason.FLOW_LIMIT
        while self._room < size + ENTRY:
            oldest = next(iter(self._held))
            if oldest == key:
                return DropReason.MEMORY_LIMIT
            self._drop(oldest, DropReason.MEMORY_LIMIT)
        return None

    def taken(self, key: FlowKey, server: int) -> list[Segment]:
        """Production accepted the connection on which its own first byte is `server`: what was held of it.

        Segments of an earlier connection with the same key were turned away.
        """
        held = self._held.pop(key, None)
        if held is None:
            return []
        segments: list[Segment] = []
        for head, (payload, time_ns) in held.segments.items():
            flags, seq, ack, length, _ = head
            if ack == server or 0 < distance(ack, server) < EARLY:
                self._release(length)
                segments.append((key, flags, seq, ack, length, payload, max(time_ns, held.again)))
            else:
                self._discard(length, FilterReason.NOT_ACCEPTED)
        return segments

    def turned_away(self, key: FlowKey, seq: int) -> None:
        """Production reset a connection of this key; `seq`, the number of the RST, tells which one."""
        held = self._held.get(key)
        if held is not None and any(ack == seq for _, _, ack, _, _ in held.segments):
            self._drop(key, FilterReason.NOT_ACCEPTED)

    def expire(self, now: float) -> None:
        """Give up connections that were silent for too long: a client sends again what production did not take."""
        for _ in range(min(AT_ONCE, len(self._held))):
            key, held = next(iter(self._held.items()))
            if now - held.last < self._limits.accept_time:
                break
            self._drop(key, FilterReason.NOT_ACCEPTED)

    def drop(self, reason: DropReason, of: Callable[[FlowKey], bool] = lambda _: True) -> None:
        """Give up the connections whose key `of` chooses."""
        for key in [key for key in self._held if of(key)]:
            self._drop(key, reason)

    def _drop(self, key: FlowKey, reason: DropReason | FilterReason) -> None:
        for _, _, _, length, _ in self._held.pop(key).segments:
            self._discard(length, reason)

    def _discard(self, length: int, reason: DropReason | FilterReason) -> None:
        self._release(length)
        if not length:
            return
        if isinstance(reason, DropReason):
            self._ledger.drop(reason, length, 1)
        else:
            self._ledger.filter(reason, length, 1)

    def _release(self, length: int) -> None:
        """Free the memory of a segment of `length` bytes."""
        self._room += length + ENTRY
        self.bytes -= length
        if length:
            self.segments -= 1
