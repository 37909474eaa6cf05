# SPDX-License-Identifier: Apache-2.0
"""Segments from the eBPF ring buffer, read through memory.

The layout is the kernel's (kernel/bpf/ringbuf.c): a consumer page that we write, a producer page
and the data that we only read.  The kernel offers the data twice in a row, so that every record is
contiguous; we map it once, since both would count as our memory, and copy the one that wraps.
A record is an 8-byte header (length, with a busy and a discard bit) and its body, padded to 8 bytes.

No callback for each event and no ctypes: `memoryview` slices go straight to the consumer.  Needs no
privilege, only the descriptors.

Memory order: the producer publishes its position with a release store, and a record's length after its
body.  On x86 plain loads see them in that order.  NOTE: on arm64 a plain load may not; a
barrier is needed there before this source is to be relied on.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Iterator
from typing import Final

from tapmirror.events import FROM_SERVER, FlowKey, Segment
from tapmirror.packet import flow_hash
from tapmirror.source import Counters

RECORD: Final = struct.Struct("<QIIIIII40s")
"""`struct tap_record` of bpf/tap.h."""
COUNTER_NAMES: Final = Counters.__struct_fields__
COUNTERS_PER_CPU: Final = 16
"""TAP_COUNTERS of bpf/tap.h."""
WANT_ALL: Final = 2
"""TAP_WANT_ALL of bpf/tap.h."""
WANT_ANSWERS: Final = 4
"""TAP_WANT_ANSWERS of bpf/tap.h."""

READS: Final = 100
"""Attempts to read the counters between two packets: under the heaviest load one in a few succeeds."""
PATIENT_READS: Final = 30
"""Further attempts, a millisecond apart: a processor of a virtual machine can be held back amid a packet."""

_BUSY: Final = 1 << 31
_DISCARD: Final = 1 << 30
_LENGTH: Final = _DISCARD - 1
_GIVE_BACK: Final = 64
"""Records after which their room is given back to the kernel."""


class RingSource:
    """The reader of one ring.  Takes over the three descriptors.

    `shard`: which of the tap's workers this is, and whose counters therefore count.
    """

    def __init__(self, ring: int, counters: int, wants: int, *, ring_bytes: int, seed: int, shard: int = 0) -> None:
        page = mmap.PAGESIZE
        self._fd = ring
        self._seed = seed
        self._size = ring_bytes
        self._maps = [
            mmap.mmap(ring, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
            mmap.mmap(ring, page + ring_bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=page),
            mmap.mmap(counters, _pages((shard + 1) * counter_bytes()), mmap.MAP_SHARED, mmap.PROT_READ),
            mmap.mmap(wants, 65_536, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
        ]
        self._consumer = memoryview(self._maps[0]).cast("Q")
        shared = memoryview(self._maps[1])
        self._producer = shared[:page].cast("Q")
        self._data = shared[page:]
        self._lengths = self._data.cast("I")
        start = shard * counter_bytes()
        self._counters = memoryview(self._maps[2])[start : start + counter_bytes()].cast("Q")
        self._wants = self._maps[3]
        self._position = self._consumer[0]
        self._segments = 0
        self._bytes = 0
        for fd in (counters, wants):
            os.close(fd)

    @property
    def received(self) -> tuple[int, int]:
        """Segments with payload from client to production, and their bytes, read so far."""
        return self._segments, self._bytes

    def fileno(self) -> int:
        """The ring's descriptor: epoll reports it readable while it holds records."""
        return self._fd

    def read(self, limit: int) -> Iterator[Segment]:
        """Yield the records that are there, at most `limit`."""
        position = self._position
        produced = self._producer[0]
        if position == produced:
            return
        lengths, data, size, unpack = self._lengths, self._data, self._size, RECORD.unpack_from
        mask = size - 1
        left = limit
        try:
            while position < produced and left:
                offset = position & mask
                header = lengths[offset >> 2]
                if header & _BUSY:
                    break
                position += ((header & _LENGTH) + 15) & ~7
                left -= 1
                if not header & _DISCARD:
                    record = data
                    if offset + 8 + (header & _LENGTH) > size:
                        record = memoryview(b"".join((data[offset:], data[: position & mask])))
                        offset = 0
                    time_ns, seq, ack, length, caplen, _, flags, key = unpack(record, offset + 8)
                    if length and not flags & FROM_SERVER:
                        self._segments += 1
                        self._bytes += length
                    yield key, flags, seq, ack, length, record[offset + 80 : offset + 80 + caplen], time_ns
                if not left % _GIVE_BACK:
                    self._consumer[0] = position
        finally:
            self._position = position
            self._consumer[0] = position

    def empty(self) -> bool:
        """No record is there."""
        return bool(self._position == self._producer[0])

    def want_ack(self, key: FlowKey, wanted: bool) -> None:
        """Set the byte of the flow's bucket, which the kernel program looks at."""
        bucket = flow_hash(key, self._seed) & 0xFFFF
        self._wants[bucket] = self._wants[bucket] & WANT_ANSWERS | (WANT_ALL if wanted else 0)

    def want_answers(self, buckets: bytes) -> None:
        """Set the bit for answers in all bytes."""
        wants = self._wants
        for bucket, wanted in enumerate(buckets):
            if bool(wants[bucket] & WANT_ANSWERS) is not bool(wanted):
                wants[bucket] ^= WANT_ANSWERS

    def counters(self) -> Counters:
        """The sum over all CPUs, as it was at one moment.

        The kernel counts on while we read: read again until what was seen has met its fate.
        """
        step = 2 * COUNTERS_PER_CPU
        for attempt in range(READS + PATIENT_READS):
            if attempt >= READS:
                time.sleep(0.001)
            table = memoryview(bytes(self._counters)).cast("Q")
            found = Counters(
                *((sum(table[2 * i :: step]), sum(table[2 * i + 1 :: step])) for i in range(len(COUNTER_NAMES)))
            )
            fates = (found.emitted, found.sampled_out, found.loop, found.ring_full, found.fragment)
            if found.seen == tuple(map(sum, zip(*fates, strict=True))):
                break
        return found

    def stop(self) -> None:
        """Nothing to do: capture ends when the supervisor lets go of the packet socket."""

    def close(self) -> None:
        """Unmap and close the ring."""
        for view in (self._consumer, self._producer, self._lengths, self._data, self._counters):
            view.release()
        os.close(self._fd)


def counter_bytes() -> int:
    """Size of a worker's part of the counters map: a set for each CPU."""
    return (os.cpu_count() or 1) * COUNTERS_PER_CPU * 16


def _pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
