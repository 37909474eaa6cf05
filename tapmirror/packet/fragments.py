# SPDX-License-Identifier: Apache-2.0
"""IP fragments, put together.

IPv6 as Linux does it (`inet_frag_queue_insert` in net/ipv4/inet_fragment.c): a fragment that lies wholly within
another is ignored, one that overlaps others in part discards the datagram (RFC 5722).  IPv4 as RFC 791, 3.2 has it: of
overlapping bytes the more recently arrived copy is taken.  (Linux discards here too, since 4.20, and the sender
has to send again; but a capture is to be read, whatever its receiver was.)  In both a datagram is discarded by a last
fragment at two places, and by a middle one whose size is no multiple of 8.

Bounded: datagrams, bytes, and the time for which one is waited for; the oldest gives way.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, TypeAlias

from tapmirror.packet.header import Network
from tapmirror.packet.key import MAPPED

DATAGRAMS: Final = 1_024
HELD_BYTES: Final = 4 << 20
"""Bytes that are held of fragments at most, as many as in Linux (net.ipv4.ipfrag_high_thresh)."""
PIECES: Final = 64
"""Fragments of one datagram at most: the largest in pieces of 1 KiB."""
WAIT: Final = 30.0
"""Seconds that a datagram's fragments are waited for, as in Linux (net.ipv4.ipfrag_time)."""
LARGEST: Final = 65_535

Name: TypeAlias = tuple[bytes, bytes, int, int, int]


class _Datagram:
    """What of a datagram has come."""

    __slots__ = ("began", "came", "dead", "ends", "first", "held", "pieces")

    def __init__(self, began: float) -> None:
        self.began = began
        self.came = 0
        """Fragments, also those that others cover; 0 when they were given up."""
        self.pieces: list[tuple[int, bytes]] = []
        """(place, bytes), in order and without overlap."""
        self.held = 0
        self.ends: int | None = None
        self.first: Network | None = None
        self.dead = False
        """It contradicts itself: nothing of it is used, and nothing more is kept."""


class Fragments:
    """Datagrams in pieces.  `discarded` counts the fragments that were given up."""

    def __init__(self) -> None:
        self._datagrams: OrderedDict[Name, _Datagram] = OrderedDict()
        self._held = 0
        self.discarded = 0

    def __len__(self) -> int:
        """Fragments of datagrams that are not whole yet."""
        return sum(datagram.came for datagram in self._datagrams.values())

    def add(self, frame: memoryview, found: Network, now: float, vlan: int = 0) -> tuple[memoryview, Network] | None:
        """Take a fragment.  Of the datagram that is whole with it: what it carries, and where that begins (0).

        `vlan` is the place of a flow key for it: a capture may hold a datagram once for each VLAN that it passed.
        """
        piece = found.piece
        assert piece is not None
        self._expire(now)
        name = (found.source, found.destination, piece.ident, piece.proto, vlan)
        datagram = self._datagrams.get(name)
        if datagram is None:
            datagram = self._datagrams[name] = _Datagram(now)
            if len(self._datagrams) > DATAGRAMS:
                self._drop_oldest()
        datagram.came += 1
        data = bytes(frame[piece.offset : found.end])
        if datagram.dead or len(data) < found.end - piece.offset:  # contradicted, or cut by the capture
            self._kill(datagram)
            return None
        if not self._insert(datagram, piece.place, data, piece.more, not found.source.startswith(MAPPED)):
            self._kill(datagram)
            return None
        if not piece.place:
            datagram.first = found
        return self._whole(name, datagram)

    def give_up(self) -> None:
        """No more fragments will come."""
        while self._datagrams:
            self._drop_oldest()

    def _insert(self, datagram: _Datagram, start: int, data: bytes, more: bool, strict: bool) -> bool:
        """Put a piece into its place; False if the datagram is not to be used."""
        end = start + len(data)
        if end > LARGEST or (more and len(data) % 8) or not data:
            return False
        last = max((place + len(piece) for place, piece in datagram.pieces), default=0)
        if not more:
            if (datagram.ends is not None and datagram.ends != end) or end < last:
                return False
            datagram.ends = end
        elif datagram.ends is not None and end > datagram.ends:
            return False
        merged = _overlaid(datagram.pieces, start, data, strict)
        if merged is None or len(merged) > PIECES:
            return False
        held = sum(len(piece) for _, piece in merged)
        self._held += held - datagram.held
        datagram.pieces, datagram.held = merged, held
        while self._held > HELD_BYTES and len(self._datagrams) > 1:
            self._drop_oldest()
        return True

    def _whole(self, name: Name, datagram: _Datagram) -> tuple[memoryview, Network] | None:
        first = datagram.first
        if first is None or datagram.held != datagram.ends or self._datagrams.get(name) is not datagram:
            return None
        self._forget(name)
        data = b"".join(piece for _, piece in datagram.pieces)
        piece = first.piece
        assert piece is not None
        return memoryview(data), first._replace(piece=None, proto=piece.proto, offset=0, end=len(data))

    def _expire(self, now: float) -> None:
        while self._datagrams and now - next(iter(self._datagrams.values())).began > WAIT:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        name, datagram = next(iter(self._datagrams.items()))
        self.discarded += datagram.came
        self._forget(name)

    def _kill(self, datagram: _Datagram) -> None:
        self.discarded += datagram.came
        self._held -= datagram.held
        datagram.held = datagram.came = 0
        datagram.pieces.clear()
        datagram.dead = True

    def _forget(self, name: Name) -> None:
        self._held -= self._datagrams.pop(name).held


def _overlaid(pieces: list[tuple[int, bytes]], start: int, data: bytes, strict: bool) -> list[tuple[int, bytes]] | None:
    """The pieces with one more, which covers what was there; `strict`: None if it covers part of another."""
    end = start + len(data)
    merged = [(start, data)]
    for place, piece in pieces:
        stop = place + len(piece)
        if stop <= start or place >= end:
            merged.append((place, piece))
            continue
        if strict:
            return pieces if place <= start and end <= stop else None
        if place < start:
            merged.append((place, piece[: start - place]))
        if stop > end:
            merged.append((end, piece[end - place :]))
    merged.sort()
    return merged
