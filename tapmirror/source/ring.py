# SPDX-License-Identifier: Apache-2.0
"""Segments from the eBPF ring buffer, read through memory.

The layout is the kernel's (kernel/bpf/ringbuf.c): a consumer page that we write, a producer page, and the data, both of
which we only read.  The kernel offers the data twice in a row, so that every record is contiguous.  We map it once,
because both would count as our memory, and copy the one record that wraps.  A record is a header of 8 bytes (length,
with a busy bit and a discard bit) and its body, padded to 8 bytes.

The rest of the consumer page is ours as well, and lasts as long as the ring.  There a reader notes how far it came, in
case it dies and another takes over.  First it claims what it is about to yield (`_CLAIM`), then it notes what it has
yielded, in one of two triples, so that one is always whole.  Records that were claimed and not noted may have been
acted on: the successor counts them, and does not yield them again.

There is no callback for each event and no ctypes: `memoryview` slices go straight to the consumer.  This needs no
privilege, only the descriptors.

Memory order: the producer publishes its position with a release store, and a record's length after its body; `order`
has what a reader has to do for that.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from tapmirror.events import FROM_SERVER, FlowKey, Segment
from tapmirror.packet import BUCKETS, flow_hash, shard_of
from tapmirror.source import ENDLESS, Counters, nothing, order
from tapmirror.spec import MAX_WORKERS

RECORD: Final = struct.Struct("<QIIIIII40s")
"""`struct tap_record` of bpf/tap.h."""
COUNTER_NAMES: Final = Counters.__struct_fields__
COUNTERS_PER_CPU: Final = 16
"""TAP_COUNTERS of bpf/tap.h."""
WANT_ALL: Final = 1
WANT_RESPONSES: Final = 2
"""TAP_WANT_ALL, TAP_WANT_ANSWERS of bpf/tap.h."""
WINDOW: Final = struct.Struct("<II")
"""`struct tap_window`; packed, it is one store of 8 bytes."""
WINDOWS_AT: Final = BUCKETS
"""Offset of the windows in `struct tap_wants`."""
ONCE_AT: Final = WINDOWS_AT + WINDOW.size * MAX_WORKERS
"""Offset of the bytes in which the next packet of a bucket is asked for."""

READS: Final = 100
"""Attempts to read the counters between two packets; under the heaviest load one of a few succeeds."""
PATIENT_READS: Final = 30
"""Further attempts, a millisecond apart: a processor of a virtual machine can be held back in the middle of a
packet."""

_CLAIM: Final = 8
"""Words of the consumer page: the position up to which records were claimed, which triple is valid, and the triples
(position, segments, bytes)."""
_VALID: Final = 9
_NOTES: Final = 10
_CLAIM_BYTES: Final = 1 << 16
"""How many bytes are claimed at once.  At most these, and one record, are lost with a reader that dies while it
reads."""
_BUSY: Final = 1 << 31
_DISCARD: Final = 1 << 30
_LENGTH: Final = _DISCARD - 1
_GIVE_BACK: Final = 64
"""Number of records after which their room is given back to the kernel."""


def monotonic_ahead(path: str = "/proc/self/timens_offsets") -> float:
    """By how many seconds our CLOCK_MONOTONIC is ahead of the kernel's stamps: in a time namespace it has another epoch
    (time_namespaces(7)).
    """
    with suppress(OSError, ValueError), open(path, encoding="ascii") as file:  # a kernel without them
        for line in file:
            name, seconds, nanoseconds = line.split()
            if name == "monotonic":
                return int(seconds) + int(nanoseconds) / 1e9
    return 0.0


class RingSource:
    """The reader of one ring.  Takes over the three descriptors.

    `cpus`: how many processors have counters of their own.  There may be another number of processors now, since a
    worker may start long after the program. `shard`: the number of this worker among the tap's `workers`; it tells
    which counters and buckets are ours.
    """

    def __init__(
        self,
        ring: int,
        counters: int,
        wants: int,
        *,
        ring_bytes: int,
        seed: int,
        cpus: int,
        shard: int = 0,
        workers: int = 1,
    ) -> None:
        page = mmap.PAGESIZE
        self._fd = ring
        self._seed = seed
        self._ahead = monotonic_ahead()
        self._size = ring_bytes
        self._maps = [
            mmap.mmap(ring, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
            mmap.mmap(ring, page + ring_bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=page),
            mmap.mmap(counters, _pages((shard + 1) * counter_bytes(cpus)), mmap.MAP_SHARED, mmap.PROT_READ),
            mmap.mmap(wants, _pages(ONCE_AT + BUCKETS), mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
        ]
        self._consumer = memoryview(self._maps[0]).cast("Q")
        shared = memoryview(self._maps[1])
        self._producer = shared[:page].cast("Q")
        self._data = shared[page:]
        self._lengths = self._data.cast("I")
        self._words = self._data.cast("Q")
        start = shard * counter_bytes(cpus)
        self._counters = memoryview(self._maps[2])[start : start + counter_bytes(cpus)].cast("Q")
        self._wants = self._maps[3]
        self._shard = shard
        self.cut = False
        """Whether the last `read` left something because of its limit in bytes."""
        first = _NOTES + 3 * self._consumer[_VALID]
        self._position, self._segments, self._bytes = self._consumer[first : first + 3]
        self._take_over(shard, workers)
        for fd in (counters, wants):
            os.close(fd)

    def _take_over(self, shard: int, workers: int) -> None:
        """Pass over what a reader before us had claimed, and open the buckets and the window, which it left as it
        needed them.
        """
        position = self._position
        if not position and not self._consumer[_CLAIM]:
            return
        while position < min(self._consumer[_CLAIM], self._producer[0]):
            offset = position & (self._size - 1)
            header = self._lengths[offset >> 2]
            if header & _BUSY:
                break
            if not header & _DISCARD:
                start = offset + 8 if offset + 8 < self._size else 0
                _, _, _, length, _, _, flags, _ = RECORD.unpack(self._bytes_at(start, RECORD.size))
                if length and not flags & FROM_SERVER:
                    self._segments += 1
                    self._bytes += length
            position += ((header & _LENGTH) + 15) & ~7
        self._note(position)
        self.want_responses(0, BUCKETS)
        for bucket in range(BUCKETS):
            if shard_of(bucket, workers) == shard:
                self._wants[bucket] = 0
                self._wants[ONCE_AT + bucket] = 1

    def _bytes_at(self, offset: int, size: int) -> bytes:
        """`size` bytes of the ring from `offset` on, which may wrap around."""
        return bytes(self._data[offset : offset + size]) + bytes(self._data[: max(0, offset + size - self._size)])

    def _note(self, position: int) -> None:
        """Note for a successor that everything before `position` is done with, and give its room back to the kernel."""
        if order.FENCE is not None:
            order.FENCE()
        words = self._consumer
        other = 1 - words[_VALID]
        first = _NOTES + 3 * other
        words[first] = position
        words[first + 1] = self._segments
        words[first + 2] = self._bytes
        words[_VALID] = other
        words[0] = position
        self._position = position

    @property
    def received(self) -> tuple[int, int]:
        """(segments with payload from client to production, their bytes) that were read, including by readers before
        this one.
        """
        return self._segments, self._bytes

    def fileno(self) -> int:
        """The ring's descriptor: epoll reports it readable while it holds records."""
        return self._fd

    def read(self, limit: int, size: int = ENDLESS, finish: Callable[[], object] = nothing) -> Iterator[Segment]:
        """Yield at most `limit` records that are there, and none that begins after the next `size` bytes."""
        position = self._position
        produced = self._producer[0]
        self.cut = produced - position > size
        if position == produced:
            return
        if self.cut:
            produced = position + size
        fence = order.FENCE
        if fence is not None:
            fence()
        lengths, data, whole, unpack = self._lengths, self._data, self._size, RECORD.unpack_from
        offset = position & (whole - 1)
        left = limit
        next_note = left - _GIVE_BACK
        claimed = self._consumer[_CLAIM]
        before_payload = RECORD.size
        segments, total = self._segments, self._bytes
        try:
            while position < produced and left:
                header = lengths[offset >> 2]
                discarded = header > _LENGTH
                if discarded:
                    if header & _BUSY:
                        break
                    header &= _LENGTH
                if fence is not None:
                    fence()
                if position >= claimed:
                    self._consumer[_CLAIM] = claimed = min(position + _CLAIM_BYTES, produced)
                record, start = data, offset + 8
                padded = (header + 15) & ~7
                position += padded
                offset += padded
                if offset >= whole:
                    offset -= whole
                    if offset:
                        record, start = memoryview(b"".join((data[start:], data[:offset]))), 0
                left -= 1
                if not discarded:
                    time_ns, seq, ack, length, caplen, _, flags, key = unpack(record, start)
                    if length and not flags & FROM_SERVER:
                        segments += 1
                        total += length
                    start += before_payload
                    yield key, flags, seq, ack, length, record[start : start + caplen], time_ns
                if left == next_note:
                    next_note -= _GIVE_BACK
                    finish()
                    self._segments, self._bytes = segments, total
                    self._note(position)
            finish()
        finally:
            self._segments, self._bytes = segments, total
            self._note(position)

    def empty(self) -> bool:
        """Whether no record is there."""
        return bool(self._position == self._producer[0])

    def age(self, now: float) -> float:
        """Seconds from the capture of the record that will be read next to `now`; 0: none is there."""
        position = self._position
        if position == self._producer[0]:
            return 0.0
        if order.FENCE is not None:
            order.FENCE()
        mask = self._size - 1
        if self._lengths[(position & mask) >> 2] & (_BUSY | _DISCARD):
            return 0.0  # nothing is written there yet, or ever
        if order.FENCE is not None:
            order.FENCE()
        return now - self._words[((position + 8) & mask) >> 3] / 1e9 - self._ahead

    def want_ack(self, key: FlowKey, wanted: bool) -> None:
        """Ask the kernel program for the acknowledgements of the flow's bucket, or no more, by the bucket's byte."""
        bucket = flow_hash(key, self._seed) & 0xFFFF
        self._wants[bucket] = self._wants[bucket] & WANT_RESPONSES | (WANT_ALL if wanted else 0)

    def want_responses(self, first: int, count: int) -> None:
        """Set this worker's window of buckets whose responses are captured."""
        WINDOW.pack_into(self._wants, WINDOWS_AT + WINDOW.size * self._shard, first, count)

    def keep_responses(self, key: FlowKey, wanted: bool) -> None:
        """Set or clear the bit for responses in the byte of the flow's bucket."""
        bucket = flow_hash(key, self._seed) & 0xFFFF
        self._wants[bucket] = self._wants[bucket] & ~WANT_RESPONSES | (WANT_RESPONSES if wanted else 0)

    def counters(self) -> Counters:
        """The sum over all CPUs, at one moment.

        The kernel goes on counting while we read.  So this reads again until everything seen is also counted as
        emitted, left out or lost.
        """
        step = 2 * COUNTERS_PER_CPU
        for attempt in range(READS + PATIENT_READS):
            if attempt >= READS:
                time.sleep(0.001)
            table = memoryview(bytes(self._counters)).cast("Q")
            found = Counters(
                *((sum(table[2 * i :: step]), sum(table[2 * i + 1 :: step])) for i in range(len(COUNTER_NAMES)))
            )
            fates = (found.emitted, found.sampled_out, found.loop, found.ring_full, found.fragment, found.client)
            if found.seen == tuple(map(sum, zip(*fates, strict=True))):
                break
        return found

    def fill(self) -> float:
        """How full the ring is, from 0 to 1."""
        return int(self._producer[0] - self._position) / self._size

    def set_threshold(self, threshold: int) -> None:
        """Nothing to do: the kernel program gets the threshold from the supervisor."""

    def woken(self) -> None:
        """Nothing to do: the ring is read in every iteration of the loop anyway."""

    def stop(self) -> None:
        """Nothing to do: capture ends when the supervisor lets go of the packet socket."""

    def discard(self) -> None:
        """Nothing to do: the kernel program has counted it."""

    def close(self) -> None:
        """Unmap and close the ring."""
        for view in (self._consumer, self._producer, self._lengths, self._words, self._data, self._counters):
            view.release()
        os.close(self._fd)


def counter_bytes(cpus: int) -> int:
    """Size of a worker's part of the counters map, in bytes: one set for each CPU."""
    return cpus * COUNTERS_PER_CPU * 16


def _pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
