# SPDX-License-Identifier: Apache-2.0
"""The ring of an AF_PACKET socket (TPACKET_V3): its blocks in their order, and what a reader notes in them.

The kernel copies packets into a block and hands the block over (packet(7), Documentation/networking/packet_mmap.rst).
Each block has room that the kernel does not use (`tp_sizeof_priv`), and that lasts as long as the ring.  There a reader
notes how far it came, in case it dies and another takes over, as `ring` does in the consumer page.  Each block has the
number of its packets that were begun.  The first block also has the last position up to which everything is counted,
and the counts, in two copies, one of which is always whole.  Packets that were begun behind that position may have been
acted on: the successor counts them, and does not yield them again.

Memory order: as in `ring`, by `order`.
"""

from __future__ import annotations

import contextlib
import mmap
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Final

from tapmirror.source import Counters, order

SOL_PACKET: Final = 263
PACKET_RX_RING: Final = 5
PACKET_VERSION: Final = 10
TPACKET_V3: Final = 2
TP_STATUS_USER: Final = 1

PRIVATE: Final = 640
"""Bytes of each block for the reader's notes."""
VALUES: Final = 2 * len(Counters.__struct_fields__)
"""How many numbers are noted."""

_REQUEST: Final = struct.Struct("=7I")
_BLOCK: Final = struct.Struct("=4xI2I")  # after version: offset of private data, status, packets
_STATUS: Final = 8
_PACKETS: Final = 12
_NUMBER: Final = 24
_FIRST: Final = struct.Struct("=16xI")
_WORD: Final = struct.Struct("=I")
_SNAPLEN: Final = 3
"""Where `tp_snaplen` is in a packet's header (struct tpacket3_hdr), in words."""
_BEGUN: Final = 48
"""Offset of a block's private data, of which this is the first word."""
_VALID: Final = _BEGUN + 4
_NOTES: Final = _BEGUN + 8
_NOTE: Final = struct.Struct(f"={2 + VALUES}Q")
"""Number of a block, how many of its packets, the values; there are two such copies.  `_VALID` says which one
counts: the first (1), the other (2), or none yet (0)."""


def set_up_ring(sock: socket.socket, ring_bytes: int, block_bytes: int, retire_ms: int) -> None:
    """Give a packet socket a ring, and discard what it had received before.  Raises OSError."""
    sock.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V3)
    blocks = ring_bytes // block_bytes
    request = _REQUEST.pack(block_bytes, blocks, block_bytes, blocks, retire_ms, PRIVATE, 0)
    sock.setsockopt(SOL_PACKET, PACKET_RX_RING, request)


class PacketRing:
    """The reader of one ring's blocks.

    `take` a block, `begin` its packets one by one while there are some `left`, `note`, and `give_back` the block.
    """

    def __init__(self, sock: socket.socket, ring_bytes: int, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._count = ring_bytes // block_bytes
        self._map = mmap.mmap(sock.fileno(), self._count * block_bytes, mmap.MAP_SHARED)
        self.view = memoryview(self._map)
        self._words = self.view.cast("I")
        self._block = self._oldest()
        self.held = False
        """Whether the kernel has handed over the present block."""
        self.left = 0
        """How many of its packets were not begun; the next one is at `at`."""
        self.at = 0
        self._begun = 0
        self._begun_at = 0
        """Where that is noted in the present block, in words."""

    @property
    def position(self) -> tuple[int, int]:
        """(number of the present block, how many of its packets were begun)."""
        return self._number(self._block), self._begun

    def take(self) -> bool:
        """Go on to the next block if the kernel has handed it over.  It may have no packets left."""
        start = self._block * self._block_bytes
        _, status, packets = _BLOCK.unpack_from(self.view, start)
        if not status & TP_STATUS_USER:
            return False
        if order.FENCE is not None:
            order.FENCE()
        self._begun_at = start + _BEGUN >> 2
        begun = self._words[self._begun_at]
        self.held = True
        self._begun = min(begun, packets)
        self.left = packets - self._begun
        *_, self.at = self.places(0, self._begun + 1)
        return True

    def places(self, first: int, end: int) -> Iterator[int]:
        """Where packets of the present block are, by their number in the block."""
        start = self._block * self._block_bytes
        at = start + int(_FIRST.unpack_from(self.view, start)[0])
        for number in range(end):
            if number >= first:
                yield at
            at += int(_WORD.unpack_from(self.view, at)[0])

    def begin(self) -> int:
        """Where the next packet is.  It is valid until the block is given back."""
        at = self.at
        self.left -= 1
        self._begun += 1
        self._words[self._begun_at] = self._begun
        self.at = at + self._words[at >> 2]
        return at

    def captured(self, at: int) -> int:
        """How many bytes of the packet there were captured."""
        return self._words[(at >> 2) + _SNAPLEN]

    def give_back(self) -> None:
        """Give the present block back to the kernel.  Whatever counts in it must have been noted."""
        if order.FENCE is not None:
            order.FENCE()
        start = self._block * self._block_bytes
        _WORD.pack_into(self.view, start + _PACKETS, 0)
        _WORD.pack_into(self.view, start + _BEGUN, 0)
        _WORD.pack_into(self.view, start + _STATUS, 0)
        self._block = (self._block + 1) % self._count
        self.held = False
        self._begun = 0

    def note(self, position: tuple[int, int], values: Sequence[int]) -> None:
        """Note that these values include everything up to this position."""
        other = self.view[_VALID] & 1
        _NOTE.pack_into(self.view, _NOTES + other * _NOTE.size, *position, *values)
        if order.FENCE is not None:
            order.FENCE()
        self.view[_VALID] = 1 + other

    def noted(self) -> tuple[tuple[int, int], Sequence[int]] | None:
        """What was noted last; None: nothing was noted."""
        valid = self.view[_VALID]
        if not valid:
            return None
        number, begun, *values = _NOTE.unpack_from(self.view, _NOTES + (valid - 1) * _NOTE.size)
        return (number, begun), values

    def fill(self) -> float:
        """How full the ring is, from 0 to 1."""
        blocks = range(0, self._count * self._block_bytes, self._block_bytes)
        return float(sum(_BLOCK.unpack_from(self.view, at)[1] & TP_STATUS_USER for at in blocks)) / self._count

    def filling(self) -> bool:
        """Whether there are packets in the block that the kernel still fills, which cannot be read yet."""
        blocks = (_BLOCK.unpack_from(self.view, i * self._block_bytes) for i in range(self._count))
        return any(packets and not status & TP_STATUS_USER for _, status, packets in blocks)

    def close(self) -> None:
        """Unmap the ring."""
        self._words.release()
        self.view.release()
        with contextlib.suppress(BufferError):  # somebody still has a payload; it goes with that
            self._map.close()

    def _oldest(self) -> int:
        """The block to begin with.  In a new ring it is the first one.  In a ring that another has read, it is the
        oldest one that was left, or else the newest one, which the kernel is filling.
        """
        blocks = [
            (_BLOCK.unpack_from(self.view, i * self._block_bytes)[1], self._number(i), i) for i in range(self._count)
        ]
        ready = [(number, i) for status, number, i in blocks if status & TP_STATUS_USER]
        return min(ready)[1] if ready else max((number, -i) for _, number, i in blocks)[1] * -1

    def _number(self, block: int) -> int:
        """When the kernel began to fill this block: of all blocks, in their order."""
        return int(struct.unpack_from("=Q", self.view, block * self._block_bytes + _NUMBER)[0])
