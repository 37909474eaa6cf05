# SPDX-License-Identifier: Apache-2.0
"""One direction of a TCP connection, put back in order as production's kernel does it.

Theory of operation
-------------------
`Receiver` models the receive queue of a Linux TCP socket as far as it can be seen
from the wire (RFC 9293, 3.10.7.4; Linux `tcp_data_queue`, `tcp_data_queue_ofo`,
`tcp_ofo_queue`), because what the application read there is what the shadow is to get:

* A segment that begins at or before the next expected byte is taken at once; what
  of it was taken before is cut off its front: **the first copy of a byte wins**.
* A segment that begins later waits in a queue sorted by its start, in which no segment
  lies wholly inside another: one that is wholly covered by its predecessor is discarded;
  one that begins where an older one begins, or before it, and covers it, replaces it.
  Where two overlap in part, the one that begins first gives the common bytes.
* FIN ends the stream at its place; bytes after it are outside.

A hole in the stream is waited for as long as production waits for it.  It is taken for
a `Gap` (bytes that production has and the tap does not) when production acknowledged
something beyond it (`acknowledged`), or when the caller gives up on it (`give_up`).
Thus loss on the wire, which the client repairs by sending again, and loss in the capture,
which nobody repairs, cannot be mistaken for one another.

Sequence numbers are 32 bits and wrap; positions in the stream are plain integers that
count from its first byte and do not.

NOTE: cannot see whether the kernel merged neighbouring out-of-order segments
(`tcp_ooo_try_coalesce`), on which the outcome of some differing overlaps depends; here
they are never merged.  Nor is the urgent pointer honoured: urgent bytes stay in line.

Pure: bytes in, pieces out.
"""

from __future__ import annotations

from bisect import bisect_right
from operator import itemgetter
from typing import Final, NamedTuple, TypeAlias

from tapmirror.events import Buffer, Chunk, DropReason, End, FilterReason, Gap
from tapmirror.ledger import Ledger
from tapmirror.spec import Limits

MASK: Final = 0xFFFFFFFF
HALF: Final = 0x80000000
FAR: Final = 1 << 30
"""No segment further than this from the next byte belongs to the stream: the largest
window that TCP can offer (RFC 7323, 2.3)."""

Piece: TypeAlias = tuple[Chunk, int | None]
"""A chunk of the stream, and the acknowledgement number of the segment that it begins
(None where the chunk does not begin a segment)."""


def distance(to: int, base: int) -> int:
    """`to - base` in sequence space, from -2**31 to 2**31 - 1 (RFC 9293, 3.4)."""
    return ((to - base + HALF) & MASK) - HALF


class Held(NamedTuple):
    """A segment that waits for the bytes before it."""

    start: int
    end: int
    data: bytes
    ack: int


_start = itemgetter(0)


class Pool:
    """What all receivers together hold, against the bounds of `Limits`."""

    __slots__ = ("bytes", "limits", "segments")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.bytes = 0
        self.segments = 0

    def refuses(self, queue: list[Held], held: int, size: int) -> DropReason | None:
        """Whether `size` more bytes beside a flow's `queue` of `held` bytes pass a bound, and which."""
        limits = self.limits
        if held + size > limits.flow_bytes or len(queue) >= limits.flow_segments:
            return DropReason.FLOW_LIMIT
        if self.bytes + size > limits.reassembly_bytes or self.segments >= limits.reassembly_segments:
            return DropReason.MEMORY_LIMIT
        return None


class Receiver:
    """The bytes of one direction, in order.

    `next` is the sequence number of the next expected byte and `position` its place in the
    stream.  The owner of the fast path may add the length of an in-order segment to both
    itself, provided that `simple` is true.
    """

    __slots__ = ("_fin", "_held", "_ledger", "_pool", "_queue", "ended", "next", "position", "simple")

    def __init__(self, seq: int, pool: Pool, ledger: Ledger) -> None:
        self.next = seq & MASK
        self.position = 0
        self.simple = True
        """Nothing is held and no FIN was seen: an in-order segment needs no further thought."""
        self.ended = False
        """The end was handed out."""
        self._queue: list[Held] = []
        self._held = 0
        self._fin: int | None = None
        self._pool = pool
        self._ledger = ledger

    @property
    def waiting(self) -> bool:
        """There is a hole, and bytes (or the FIN) behind it."""
        return not self.simple and (bool(self._queue) or (self._fin is not None and self.position < self._fin))

    def is_edge(self, seq: int) -> bool:
        """Whether `seq` is the next expected byte, or the one after the last that was seen.

        The rule for RST: Linux resets only on an exact match with the next byte (RFC 5961, 3.2);
        behind a hole the tap cannot know which of the two production expects.
        """
        place = self.position + distance(seq, self.next)
        return place == self.position or (bool(self._queue) and place == self._queue[-1].end)

    def crowded(self, size: int) -> bool:
        """There is no room to hold `size` more bytes."""
        return self._pool.refuses(self._queue, self._held, size) is not None

    def feed(self, seq: int, payload: Buffer, length: int, fin: bool, ack: int) -> list[Piece]:
        """Take a segment of `length` bytes of which `payload` was captured; return what is now in order.

        Pieces made from `payload` share its memory.  What is discarded is put into the ledger.
        """
        start = self.position + distance(seq, self.next)
        if not -FAR < start - self.position < FAR:
            if length:
                self._ledger.filter(FilterReason.OUTSIDE, length, 1)
            return []
        if fin and self._fin is None and start + length >= self.position:
            self._fin = start + length
            self.simple = False
        if not length:
            return self._finished([])
        if len(payload) < length:
            self._ledger.drop(DropReason.CUT, length - len(payload), 0 if len(payload) else 1)
            if not len(payload):
                return self._finished([])
        return self._take(start, payload, ack)

    def acknowledged(self, ack: int) -> list[Piece]:
        """Production has received everything before `ack`: holes before it are gaps."""
        limit = self.position + distance(ack, self.next)
        if self._fin is not None:
            limit = min(limit, self._fin)
        pieces: list[Piece] = []
        while self.position < limit:
            self._skip_to(min(limit, self._queue[0].start) if self._queue else limit, pieces)
        return self._finished(pieces) if pieces else pieces

    def give_up(self) -> list[Piece]:
        """Take the first hole for a gap without proof; return what follows it."""
        pieces: list[Piece] = []
        if self._queue:
            self._skip_to(self._queue[0].start, pieces)
        elif self._fin is not None and self.position < self._fin:
            self._skip_to(self._fin, pieces)
        return self._finished(pieces)

    def discard(self, reason: DropReason | FilterReason) -> None:
        """Forget what is held, for this reason."""
        for held in self._queue:
            size = held.end - held.start
            if isinstance(reason, DropReason):
                self._ledger.drop(reason, size, 1)
            else:
                self._ledger.filter(reason, size, 1)
        self._pool.bytes -= self._held
        self._pool.segments -= len(self._queue)
        self._queue.clear()
        self._held = 0
        self.simple = self._fin is None

    def hold(self, seq: int, payload: Buffer, length: int, fin: bool, ack: int) -> None:
        """Keep a segment back even though it may be in order; `release` hands out what is.

        For connections of which it is not yet known whether production accepted them.
        """
        start = self.position + distance(seq, self.next)
        if fin and self._fin is None and start + length >= self.position:
            self._fin = start + length
        self.simple = False
        if not length:
            return
        if len(payload) < length:
            self._ledger.drop(DropReason.CUT, length - len(payload), 0 if len(payload) else 1)
        if not self.position <= start < self.position + FAR:
            self._ledger.drop(DropReason.MIDSTREAM, len(payload), 1 if len(payload) else 0)
        else:
            self._queue_up(start, payload, ack)

    def release(self) -> list[Piece]:
        """Hand out what is held and in order."""
        pieces: list[Piece] = []
        self._drain(pieces)
        return self._finished(pieces)

    def _take(self, start: int, payload: Buffer, ack: int) -> list[Piece]:
        end = start + len(payload)
        if self._fin is not None and end > self._fin:
            outside = end - max(start, self._fin)
            if outside == len(payload):
                self._ledger.filter(FilterReason.OUTSIDE, outside, 1)
                return []
            self._ledger.filter(FilterReason.OUTSIDE, outside)
            payload, end = payload[: len(payload) - outside], self._fin
        if start > self.position:
            self._queue_up(start, payload, ack)
            return []
        pieces: list[Piece] = []
        self._deliver(start, end, payload, ack, pieces)
        self._drain(pieces)
        return self._finished(pieces)

    def _deliver(self, start: int, end: int, data: Buffer, ack: int, pieces: list[Piece]) -> None:
        """Hand on what of a segment lies at or after `position`, which is not before its start."""
        if end <= self.position:
            self._ledger.filter(FilterReason.DUPLICATE, end - start, 1)
            return
        old = self.position - start
        if old:
            self._ledger.filter(FilterReason.DUPLICATE, old)
            pieces.append((data[old:], None))
        else:
            pieces.append((data, ack))
        self._ledger.segments.mirrored += 1
        self._advance(end)

    def _advance(self, position: int) -> None:
        self.next = (self.next + position - self.position) & MASK
        self.position = position

    def _drain(self, pieces: list[Piece]) -> None:
        """Hand on the queue up to the next hole."""
        queue = self._queue
        count = 0
        while count < len(queue) and queue[count].start <= self.position:
            held = queue[count]
            self._unhold(held)
            self._deliver(*held, pieces)
            count += 1
        del queue[:count]
        self.simple = not queue and self._fin is None

    def _skip_to(self, position: int, pieces: list[Piece]) -> None:
        """Make the bytes up to `position` a gap and hand on what follows them."""
        length = position - self.position
        pieces.append((Gap(length), None))
        self._ledger.events["gaps"] += 1
        self._ledger.events["gap_bytes"] += length
        self._advance(position)
        self._drain(pieces)

    def _finished(self, pieces: list[Piece]) -> list[Piece]:
        if self._fin is not None and self.position >= self._fin and not self.ended:
            self.ended = True
            self.discard(FilterReason.OUTSIDE)  # as tcp_fin() purges what is out of order behind the FIN
            pieces.append((End(reset=False), None))
        return pieces

    def _queue_up(self, start: int, payload: Buffer, ack: int) -> None:
        """Insert as `tcp_data_queue_ofo` does; see the theory of operation."""
        end = start + len(payload)
        if start == end:
            return
        queue = self._queue
        at = bisect_right(queue, start, key=_start)
        if at and end <= queue[at - 1].end:
            self._ledger.filter(FilterReason.DUPLICATE, end - start, 1)
            return
        refused = self._pool.refuses(queue, self._held, end - start)
        if refused is not None:
            self._ledger.drop(refused, end - start, 1)
            return
        if at and queue[at - 1].start == start:
            at -= 1
        covered = at
        while covered < len(queue) and queue[covered].end <= end:
            covered += 1
        for old in queue[at:covered]:
            self._unhold(old)
            self._ledger.filter(FilterReason.DUPLICATE, old.end - old.start, 1)
        del queue[at:covered]
        queue.insert(at, Held(start, end, bytes(payload), ack))
        self._held += end - start
        self._pool.bytes += end - start
        self._pool.segments += 1
        self.simple = False

    def _unhold(self, held: Held) -> None:
        size = held.end - held.start
        self._held -= size
        self._pool.bytes -= size
        self._pool.segments -= 1
