# SPDX-License-Identifier: Apache-2.0
"""IP fragments, put together.

IPv6 fragments are put together as Linux does it (`inet_frag_queue_insert` in net/ipv4/inet_fragment.c): one that lies
wholly within another is ignored, and one that overlaps others in part discards the datagram (RFC 5722).  For IPv4, RFC
791, 3.2 holds: of overlapping bytes, the copy that arrived last is taken.  (Since 4.20, Linux discards the datagram
here too, and the sender has to send it again.  But a capture is to be read whatever its receiver was.)  In both cases a
datagram is discarded if its last fragment is at two places, or if the size of another fragment is no multiple of 8.

There are bounds for datagrams, for bytes, and for how long the rest of a datagram is waited for.  The oldest gives way.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, TypeAlias

from tapmirror.packet.header import Network
from tapmirror.packet.key import MAPPED

DATAGRAMS: Final = 1_024
HELD_BYTES: Final = 4 << 20
"""Most bytes of fragments that are held, as many as in Linux (net.ipv4.ipfrag_high_thresh)."""
PIECES: Final = 64
"""Most fragments of one datagram: the largest datagram in pieces of 1 KiB."""
WAIT: Final = 30.0
"""How many seconds the rest of a datagram is waited for, as in Linux (net.ipv4.ipfrag_time)."""
LARGEST: Final = 65_535

Name: TypeAlias = tuple[bytes, bytes, int, int, int]


class _Datagram:
    """The fragments of a datagram that have come."""

    __slots__ = ("began", "came", "dead", "ends", "first", "held", "pieces")

    def __init__(self, began: float) -> None:
        self.began = began
        self.came = 0
        """How many fragments came, including those that others cover; 0 after they were given up."""
        self.pieces: list[tuple[int, bytes]] = []
        """(place, bytes) of each piece, in order and without overlap."""
        self.held = 0
        self.ends: int | None = None
        self.first: Network | None = None
        self.dead = False
        """Whether the fragments contradict each other: then nothing of the datagram is used, and nothing more of it
        is kept."""


class Fragments:
    """Datagrams that are not whole yet.  `discarded` counts the fragments that were given up."""

    def __init__(self) -> None:
        self._datagrams: OrderedDict[Name, _Datagram] = OrderedDict()
        self._held = 0
        self.discarded = 0

    def __len__(self) -> int:
        """How many fragments have come of datagrams that are not whole yet."""
        return sum(datagram.came for datagram in self._datagrams.values())

    def add(self, frame: memoryview, found: Network, now: float, vlan: int = 0) -> tuple[memoryview, Network] | None:
        """Take a fragment.  If the datagram is whole with it: (what the datagram carries, its header, whose `offset` is
        0).

        `vlan` is what stands for the VLAN ids in a flow key: a capture may have a datagram once for each VLAN that it
        passed.
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
        """No more fragments will come: discard what is held."""
        while self._datagrams:
            self._drop_oldest()

    def _insert(self, datagram: _Datagram, start: int, data: bytes, more: bool, strict: bool) -> bool:
        """Put a piece into its place; returns False if the datagram must not be used."""
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
    """Add a piece, which replaces what was in its place.  With `strict`, None if it covers a part of another piece."""
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
