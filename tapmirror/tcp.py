# SPDX-License-Identifier: Apache-2.0
"""One direction of a TCP connection, put back in order as production's kernel does it.

Theory of operation
-------------------
`Receiver` models the receive queue of a Linux TCP socket as far as it can be seen from the wire (RFC 9293, 3.10.7.4;
Linux `tcp_data_queue`, `tcp_data_queue_ofo`, `tcp_ofo_queue`, `tcp_check_urg`), because the shadow is to get what
production's application read from that queue.  The kernel is its oracle: tests/test_oracle.py.

* A segment that begins at or before the next expected byte is taken at once.  Bytes that were taken before are cut off
  its front: **the first copy of a byte wins**.
* A segment that begins later waits in a queue that is sorted by start.  A segment that lies wholly inside its
  predecessor is discarded.  A segment that begins where an older one begins, and covers it, replaces it, and also
  replaces the following ones that it covers.  A segment that begins where its predecessor ends is joined to it, and
  both are one from then on (`tcp_ooo_try_coalesce`).  If two overlap in part, the common bytes come from the one that
  begins first.
* A FIN occupies the sequence number behind the data of its segment.  It waits and is discarded together with that data.
  When it is taken, the stream ends; whatever comes after it is outside.
* An urgent pointer marks one byte, which is taken out of the stream (as without SO_OOBINLINE, which servers rarely
  set).  A later pointer moves the mark if the marked byte was not reached yet.  The application is assumed to read
  without delay.

A hole in the stream is waited for as long as production waits for it.  It becomes a `Gap` (bytes that production has
and the tap does not) when production acknowledges something beyond it (`acknowledged`).  In a capture file it also
becomes a gap when the caller gives up on it (`give_up`).  So three things are told apart: loss on the wire, which the
client repairs by sending again; loss in the capture, which nobody repairs; and data that somebody else sent under the
client's address, which production discards.

Sequence numbers have 32 bits and wrap.  Positions in the stream are plain integers that count from its first byte, and
do not wrap.

The tap cannot know everything that production knows.  *The window*: production discards what lies beyond its window;
here everything up to `FAR` is kept, because an honest client sends the same bytes again.  *Production's own sequence
numbers*: production discards a segment that acknowledges what it has not sent.  Here it is taken, because knowing would
cost a record for each packet of production, except while these are asked for (`disbelieve`).  *Memory*: the kernel
cannot join neighbouring segments if they lie in memory in certain ways; then differing overlaps at the seam resolve
differently.  And with three segments that overlap with differing data, the shape of the kernel's tree decides which
of two the third is joined to.

Pure: bytes in, pieces out.
"""

from __future__ import annotations

from bisect import bisect_right
from operator import attrgetter
from typing import Final, TypeAlias

from tapmirror.events import Buffer, Chunk, DropReason, End, FilterReason, Gap
from tapmirror.ledger import Ledger
from tapmirror.spec import Limits

MASK: Final = 0xFFFFFFFF
HALF: Final = 0x80000000
FAR: Final = 1 << 30
"""The largest window that TCP can offer, in bytes (RFC 7323, 2.3).  A segment that is further from the next expected
byte does not belong to the stream."""
BUFFERED: Final = 1 << 24
"""More bytes than are ever sent and not acknowledged yet: tcp_wmem and tcp_rmem are usually at most 4 and 6 MiB."""

ANY: Final = 1 << 32
"""Stands for the acknowledgement number of a sender's last data: whatever its next data acknowledges is new."""
UNKNOWN: Final = -1
"""Stands for the acknowledgement number of a sender's last data if bytes are missing: nobody knows what they
acknowledged."""

Piece: TypeAlias = tuple[Chunk, int | None]
"""A chunk of the stream, and the acknowledgement number of its segment (None: the chunk is not the beginning of a
segment)."""


def distance(to: int, base: int) -> int:
    """`to - base` in sequence space, from -2**31 to 2**31 - 1 (RFC 9293, 3.4)."""
    return ((to - base + HALF) & MASK) - HALF


def acknowledges(ack: int, sent: int) -> bool:
    """Whether a segment that acknowledges `ack` can belong to a connection whose other side has sent up to `sent`.

    `tcp_ack` discards segments that do not (RFC 5961, 5.2): whoever cannot see the connection has to guess the number.
    """
    return -BUFFERED <= distance(ack, sent) <= BUFFERED


class Held:
    """One segment that waits for the bytes before it, or several that follow each other.

    `data_end` is the place behind the data, and `end` the place behind the data and its FINs, if there are any.
    """

    __slots__ = ("ack", "data_end", "end", "entries", "fin", "pieces", "start")

    def __init__(self, start: int, end: int, fin: bool, data: bytes, ack: int) -> None:
        self.ack = ack
        """Acknowledgement number of the first segment."""
        self.start = start
        self.end = end
        self.data_end = start + len(data)
        self.fin = fin
        self.pieces = [(start, data, ack)] if data else []
        self.entries = 1
        """How many segments it was made of, including those without data (FINs): each costs memory."""

    def size(self) -> int:
        """Bytes of data."""
        return sum(len(data) for _, data, _ in self.pieces)


_start = attrgetter("start")


class ReassemblyMemory:
    """What all receivers hold together, and the bounds for it from `Limits`."""

    __slots__ = ("bytes", "entries", "limits", "segments")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.bytes = 0
        self.segments = 0
        """Segments with data that are held."""
        self.entries = 0
        """Segments that are held, including those without data (FINs)."""

    def refuses(self, count: int, held: int, size: int) -> DropReason | None:
        """Which bound would be exceeded by `size` more bytes of a flow that holds `count` segments with `held` bytes;
        None: none would be.
        """
        limits = self.limits
        if held + size > limits.flow_bytes or count >= limits.flow_segments:
            return DropReason.FLOW_LIMIT
        if self.bytes + size > limits.reassembly_bytes or self.entries >= limits.reassembly_segments:
            return DropReason.MEMORY_LIMIT
        return None

    def half_taken(self, size: int) -> bool:
        """Whether `size` more bytes would exceed half of the bounds for all flows together."""
        limits = self.limits
        return (self.bytes + size) * 2 > limits.reassembly_bytes or self.entries * 2 >= limits.reassembly_segments


class Receiver:
    """The bytes of one direction, in order.

    `next` is the sequence number of the next expected byte, and `position` its place in the stream.  While `simple` is
    true, the flow table may take a segment that is in order by adding its length to both (its fast path).
    """

    __slots__ = (
        "_count",
        "_edge",
        "_held",
        "_ledger",
        "_memory",
        "_queue",
        "_urgent",
        "ended",
        "next",
        "position",
        "simple",
    )

    def __init__(self, seq: int, memory: ReassemblyMemory, ledger: Ledger) -> None:
        self.next = seq & MASK
        self.position = 0
        self.simple = True
        """Whether nothing is held, no byte is marked and no FIN was taken: a segment in order needs no other step."""
        self.ended = False
        """Whether the end of the stream was handed out."""
        self._queue: list[Held] = []
        self._count = 0
        self._held = 0
        self._edge = 0
        """The highest end of the held segments, as long as there are any."""
        self._urgent = -1
        """Place of the byte that an urgent pointer marks; -1: no byte is marked."""
        self._memory = memory
        self._ledger = ledger

    @property
    def waiting(self) -> bool:
        """Whether there is a hole, with bytes or the FIN behind it."""
        return bool(self._queue)

    @property
    def unbroken(self) -> int:
        """How many bytes are held without a hole, counted from the next expected one."""
        end = self.position
        for held in self._queue:
            if held.start > end:
                break
            end = max(end, held.end)
        return end - self.position

    def is_edge(self, seq: int) -> bool:
        """Whether `seq` is the next expected byte, or the one after the last that was seen.

        This is the rule for RST.  Linux accepts an RST only if it matches one of these exactly (RFC 5961, 3.2;
        `tcp_validate_incoming`), or, after a FIN, the FIN itself (`tcp_reset_check`).
        """
        place = self.position + distance(seq, self.next)
        if place == self.position or (self.ended and place == self.position - 1):
            return True
        return bool(self._queue) and place == self._edge

    def crowded(self, size: int) -> bool:
        """Whether there is no room to hold `size` more bytes."""
        return self._memory.refuses(self._count, self._held, size) is not None

    def mark(self, seq: int, length: int, pointer: int) -> None:
        """Note the urgent pointer of a segment of `length` bytes; call it before `feed` (RFC 6093; `tcp_check_urg`).

        A byte that was marked before, and was not reached yet, becomes ordinary again.  The pointer of an old segment
        has no effect.
        """
        start = self.position + distance(seq, self.next)
        place = start + max(pointer - 1, 0)
        if self.ended or start + length < self.position:
            return
        if max(self.position, self._urgent + 1) <= place < self.position + FAR:
            self._urgent = place
            self.simple = False

    def feed(self, seq: int, payload: Buffer, length: int, fin: bool, ack: int) -> list[Piece]:
        """Take a segment of `length` bytes, of which `payload` was captured; returns what is in order now.

        Pieces made from `payload` share its memory.  Discarded bytes are entered in the ledger.
        """
        start = self.position + distance(seq, self.next)
        if self.ended or not -FAR < start - self.position < FAR:
            if length:
                self._ledger.filter(FilterReason.OUTSIDE, length, 1)
            return []
        if len(payload) < length:
            self._ledger.drop(DropReason.CUT, length - len(payload), 0 if len(payload) else 1)
            pieces = self._take(start, payload, False, ack)
            return pieces + self._take(start + length, b"", True, ack) if fin else pieces
        return self._take(start, payload, fin, ack)

    def finish(self) -> None:
        """Take a FIN without data, in order, while `simple` is true; `feed` would do the same."""
        self.ended = True
        self.simple = False
        self._advance(self.position + 1)

    def acknowledged(self, ack: int) -> list[Piece]:
        """Production has received everything before `ack`: holes before it become gaps."""
        limit = self.position + distance(ack, self.next)
        pieces: list[Piece] = []
        while self.position < limit and not self.ended:
            self._skip_to(min(limit, self._queue[0].start) if self._queue else limit, pieces)
        return pieces

    def give_up(self) -> list[Piece]:
        """Declare the first hole a gap without proof; returns the gap and what follows it."""
        pieces: list[Piece] = []
        if self._queue:
            self._skip_to(self._queue[0].start, pieces)
        return pieces

    def disbelieve(self, sent: int) -> None:
        """Discard what waits with an acknowledgement that production, which has sent up to `sent`, does not accept."""
        kept: list[Held] = []
        for held in self._queue:
            if acknowledges(held.ack, sent):
                kept.append(held)
            else:
                self._unhold(held, FilterReason.OUTSIDE)
        self._queue = kept
        self._edge = max((held.end for held in kept), default=0)
        self._settle()

    def discard(self, reason: DropReason | FilterReason) -> None:
        """Discard everything that is held, for this reason."""
        for held in self._queue:
            self._unhold(held, reason)
        self._queue.clear()
        self._settle()

    def hold(self, seq: int, payload: Buffer, length: int, fin: bool, ack: int) -> None:
        """Keep a segment back although it may be in order, until `release`.

        This is for connections that production may not have accepted.  Anybody can send such segments under any
        address, so they get at most half of the room.
        """
        start = self.position + distance(seq, self.next)
        if len(payload) < length:
            self._ledger.drop(DropReason.CUT, length - len(payload), 0 if len(payload) else 1)
        if not self.position <= start < self.position + FAR:
            if len(payload):
                self._ledger.drop(DropReason.MIDSTREAM, len(payload), 1)
            return
        if self._memory.half_taken(len(payload)):
            if len(payload):
                self._ledger.drop(DropReason.MEMORY_LIMIT, len(payload), 1)
            return
        whole = len(payload) == length
        self._queue_up(start, payload, fin and whole, ack, join=False)
        if fin and not whole:
            self._queue_up(start + length, b"", True, ack, join=False)

    def release(self) -> list[Piece]:
        """Hand out what is held, as far as it is in order."""
        pieces: list[Piece] = []
        self._drain(pieces)
        return pieces

    def _take(self, start: int, payload: Buffer, fin: bool, ack: int) -> list[Piece]:
        if start > self.position:
            self._queue_up(start, payload, fin, ack)
            return []
        pieces: list[Piece] = []
        if start + len(payload) + fin > self.position:
            self._deliver(start, payload, ack, pieces)
            if fin:
                self._end(pieces)
            self._drain(pieces)
        elif len(payload):
            self._ledger.filter(FilterReason.DUPLICATE, len(payload), 1)
        return pieces

    def _deliver(self, start: int, data: Buffer, ack: int | None, pieces: list[Piece]) -> None:
        """Hand on the part of a segment from `position` on.  The segment does not begin behind `position`."""
        end = start + len(data)
        if end <= self.position:
            if len(data):
                self._ledger.filter(FilterReason.DUPLICATE, len(data), 1)
            return
        self._ledger.segments.mirrored += 1
        old = self.position - start
        if old:
            self._ledger.filter(FilterReason.DUPLICATE, old)
            data, start, ack = data[old:], start + old, None
        if start <= self._urgent < end:
            at = self._urgent - start
            self._ledger.filter(FilterReason.URGENT, 1)
            self._urgent = -1
            if at:
                pieces.append((data[:at], ack))
                ack = None
            data = data[at + 1 :]
        if len(data):
            pieces.append((data, ack))
        self._advance(end)
        self._settle()

    def _end(self, pieces: list[Piece]) -> None:
        """Take the FIN."""
        self.ended = True
        self._advance(self.position + 1)
        self.discard(FilterReason.OUTSIDE)  # tcp_fin() purges the segments behind it, too
        pieces.append((End(reset=False), None))

    def _advance(self, position: int) -> None:
        self.next = (self.next + position - self.position) & MASK
        self.position = position

    def _settle(self) -> None:
        self.simple = not self._queue and not self.ended and self._urgent < self.position

    def _drain(self, pieces: list[Piece]) -> None:
        """Hand on what is queued up to the next hole."""
        queue = self._queue
        count, fin = 0, False
        while count < len(queue) and queue[count].start <= self.position and not fin:
            held = queue[count]
            count += 1
            self._unhold(held, None)
            for start, data, ack in held.pieces:
                self._deliver(start, data, ack, pieces)
            fin = held.fin and held.end > self.position
        del queue[:count]
        if fin:
            self._end(pieces)
        self._settle()

    def _skip_to(self, position: int, pieces: list[Piece]) -> None:
        """Make the bytes up to `position` a gap, and hand on what follows it."""
        length = position - self.position
        if length:
            pieces.append((Gap(length), None))
            self._ledger.events["gaps"] += 1
            self._ledger.events["gap_bytes"] += length
            self._advance(position)
        self._drain(pieces)

    def _queue_up(self, start: int, payload: Buffer, fin: bool, ack: int, *, join: bool = True) -> None:
        """Insert a segment into the queue as `tcp_data_queue_ofo` does; see the theory of operation.

        `join`: the segment is out of order for production, too, which then joins neighbours.  Of held segments, which
        production may have taken already, that is not known.
        """
        size = len(payload)
        end = start + size + fin
        if start == end:
            return
        queue = self._queue
        last = bisect_right(queue, start, key=_start)
        before = queue[last - 1] if last else None
        if before is not None and end <= before.end:
            if size:
                self._ledger.filter(FilterReason.DUPLICATE, size, 1)
            return
        refused = self._memory.refuses(self._count, self._held, size)
        if refused is not None:
            if size:
                self._ledger.drop(refused, size, 1)
            return
        held = Held(start, end, fin, bytes(payload), ack)
        self._edge = max(self._edge, end) if queue else end
        self._count += 1
        self._held += size
        self._memory.bytes += size
        self._memory.entries += 1
        self._memory.segments += len(held.pieces)
        self.simple = False
        if join and before is not None and before.end == start:
            # Data behind FINs is joined to the data in front of them; then the FIN is behind both.
            before.pieces += [(before.data_end, data, ack) for _, data, ack in held.pieces]
            before.data_end += size
            before.entries += 1
            before.end = end
            before.fin = fin or before.fin
            return
        if before is not None and before.start == start:
            last -= 1
        covered = last
        while covered < len(queue) and queue[covered].end <= end:
            self._unhold(queue[covered], FilterReason.DUPLICATE)
            covered += 1
        queue[last:covered] = [held]

    def _unhold(self, held: Held, reason: DropReason | FilterReason | None) -> None:
        """Take a segment out of the account of what is held; `reason`: why it is discarded, None: it is handed out."""
        count, size = len(held.pieces), held.size()
        self._count -= held.entries
        self._memory.entries -= held.entries
        self._held -= size
        self._memory.bytes -= size
        self._memory.segments -= count
        if isinstance(reason, DropReason):
            self._ledger.drop(reason, size, count)
        elif reason is not None:
            self._ledger.filter(reason, size, count)
