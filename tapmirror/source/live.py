# SPDX-License-Identifier: Apache-2.0
"""Segments from an AF_PACKET socket with a ring in shared memory: where the kernel gives no eBPF, and for tunnels.

The kernel copies each packet that passes the filter into a block of the ring (TPACKET_V3, packet(7) and
Documentation/networking/packet_mmap.rst); the packets are judged here.  Promises the same as the eBPF ring, and
costs more: production's answers are copied too.

A block comes to us when it is full or `RETIRE_MS` old.  Memory order: as in `ring`, with `order`.
"""

from __future__ import annotations

import contextlib
import mmap
import socket
import struct
import time
from collections.abc import Collection, Iterable, Iterator
from typing import Final, Protocol

from tapmirror import wall
from tapmirror.admission import Admission
from tapmirror.events import FROM_SERVER, FlowKey, Segment
from tapmirror.packet import Decoder, Header, decode
from tapmirror.packet.link import ETHERNET, RAW
from tapmirror.source import Counters, order
from tapmirror.source.filter import REFUSE_ALL, TAKE_ALL, tcp_filter

ETH_P_ALL: Final = 0x0003
SOL_PACKET: Final = 263
PACKET_ADD_MEMBERSHIP: Final = 1
PACKET_RX_RING: Final = 5
PACKET_STATISTICS: Final = 6
PACKET_VERSION: Final = 10
PACKET_FANOUT: Final = 18
PACKET_IGNORE_OUTGOING: Final = 23
PACKET_MR_PROMISC: Final = 1
PACKET_FANOUT_HASH: Final = 0
PACKET_FANOUT_FLAG_UNIQUEID: Final = 0x2000
TPACKET_V3: Final = 2
SO_ATTACH_FILTER: Final = 26
PACKET_OTHERHOST: Final = 3
PACKET_OUTGOING: Final = 4
TP_STATUS_USER: Final = 1
TP_STATUS_VLAN_VALID: Final = 0x10
ARPHRD_LOOPBACK: Final = 772
ARPHRD_WITH_ETHERNET: Final = (1, ARPHRD_LOOPBACK)

BLOCK_BYTES: Final = 128 << 10
"""Of the ring.  A packet has to fit into one; many blocks make it patient, since each holds little where traffic
is thin: 128 of them, a ring of 16 MiB, last for half a second at least."""
RETIRE_MS: Final = 4
"""Milliseconds after which a block comes to us that is not full: what a packet may wait.  Also a tick of the kernel's
clock, at 250 Hz."""
RETIRED: Final = 0.02
"""Seconds after which one surely has."""

HEADROOM: Final = 4_096
"""Bytes of a block that are not the packet's: headers of block, packet and link."""

_REQUEST: Final = struct.Struct("=7I")
_BLOCK: Final = struct.Struct("=4xI2I")  # after version: offset of private data, status, packets
_STATUS: Final = 8
_PACKETS: Final = 12
_NUMBER: Final = 24
_FIRST: Final = struct.Struct("=16xI")
_FRAME: Final = struct.Struct("=6I2H2IH")
"""`struct tpacket3_hdr`: next, seconds, nanoseconds, captured, length, status, offset of frame and network header,
hash, VLAN tag, its type."""
_ADDRESS: Final = struct.Struct("=H2siHB")
"""`struct sockaddr_ll` up to the packet's type; behind the header."""
_ADDRESS_AT: Final = 48


class Reader(Protocol):
    """Frames to headers."""

    def __call__(self, frame: memoryview, size: int, ethertype: int | None, vlan: int, now: float) -> Header | None:
        """`ethertype` for links without an Ethernet header, `vlan` for a tag that the kernel took out."""


def read_plain(frame: memoryview, size: int, ethertype: int | None, vlan: int, now: float) -> Header | None:
    """As the kernel program reads."""
    return decode(frame, size, ethertype=ethertype, vlan=vlan)


def open_live(
    iface: str | None,
    ring_bytes: int,
    *,
    loopback: bool,
    ports: Collection[int] | None,
    block_bytes: int = BLOCK_BYTES,
    promiscuous: bool = False,
) -> socket.socket:
    """A packet socket on the interface (None: not on any yet), with a ring.  Needs privilege; raises OSError.

    `ports`: what the kernel lets through (None: everything, for tunnels).  `promiscuous`: also packets for other
    stations.
    """
    sock = _with_ring(0, TAKE_ALL if ports is None else tcp_filter(ports), ring_bytes, block_bytes, loopback)
    try:
        if iface is not None:
            if promiscuous:
                be_promiscuous(sock, iface)
            sock.bind((iface, ETH_P_ALL))
    except BaseException:
        sock.close()
        raise
    return sock


def open_shared(
    workers: int, ring_bytes: int, *, loopback: bool, block_bytes: int = BLOCK_BYTES
) -> list[socket.socket]:
    """A packet socket with a ring for each of several workers, on all interfaces; no packet comes before `let_in`.

    Each gets its share of the flows, both directions of one together: the kernel's hash of PACKET_FANOUT_HASH takes
    the lower end point first (`__skb_get_hash_symmetric`).  It does not look into UDP, so not into VXLAN or GENEVE.
    Sockets of such a group cannot be bound to another interface later, hence all.  Needs privilege; raises OSError.
    """
    sockets: list[socket.socket] = []
    group = PACKET_FANOUT_FLAG_UNIQUEID << 16
    try:
        for _ in range(workers):
            sock = _with_ring(socket.htons(ETH_P_ALL), REFUSE_ALL, ring_bytes, block_bytes, loopback)
            sockets.append(sock)
            sock.setsockopt(SOL_PACKET, PACKET_FANOUT, group | PACKET_FANOUT_HASH << 16)
            group = sock.getsockopt(SOL_PACKET, PACKET_FANOUT) & 0xFFFF
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def let_in(sockets: Iterable[socket.socket], ports: Collection[int], links: Collection[int]) -> None:
    """Let packets of these ports and of the interfaces with these numbers in, and no others."""
    for sock in sockets:
        attach_filter(sock, tcp_filter(ports, links) if links else REFUSE_ALL)


def _with_ring(protocol: int, taken: bytes, ring_bytes: int, block_bytes: int, loopback: bool) -> socket.socket:
    """A packet socket with a filter and a ring (which discards what came before)."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    try:
        sock.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V3)
        attach_filter(sock, taken)
        blocks = ring_bytes // block_bytes
        request = _REQUEST.pack(block_bytes, blocks, block_bytes, blocks, RETIRE_MS, 0, 0)
        sock.setsockopt(SOL_PACKET, PACKET_RX_RING, request)
        if loopback:
            sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def be_promiscuous(sock: socket.socket, iface: str) -> None:
    """Let the interface take packets for other stations too, as long as the packet socket is open."""
    index = socket.if_nametoindex(iface)
    sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, struct.pack("=iHH8x", index, PACKET_MR_PROMISC, 0))


def block_bytes(largest: int) -> int:
    """Size of a block that takes packets of `largest` bytes: a power of two."""
    return max(BLOCK_BYTES, 1 << (largest + HEADROOM).bit_length())


class LiveSource:
    """The reader of one packet socket with a ring.

    `decoder` reads what `decode` does not; `promiscuous`: packets for other stations count (TAP_PROMISC and
    TAP_EITHER_WAY of bpf/tap.h).  `past`: what
    `counters` gave a worker that read this ring before.  `links`: numbers of the interfaces whose packets count (None:
    the socket sees no others).
    """

    def __init__(
        self,
        sock: socket.socket,
        admission: Admission,
        ring_bytes: int,
        *,
        block_bytes: int = BLOCK_BYTES,
        decoder: Decoder | None = None,
        promiscuous: bool = False,
        past: dict[str, tuple[int, int]] | None = None,
        links: Collection[int] | None = None,
    ) -> None:
        self._sock = sock
        self._admission = admission
        self._decoder = decoder
        self._read: Reader = read_plain if decoder is None else self._read_deep
        self._promiscuous = promiscuous
        self.links = links
        self._block_bytes = block_bytes
        self._count = ring_bytes // block_bytes
        self._map = mmap.mmap(sock.fileno(), self._count * block_bytes, mmap.MAP_SHARED)
        self._ring = memoryview(self._map)
        self._block = self._oldest()
        self._left = 0
        """Packets of the present block that are still to be read; the next is at `_at`."""
        self._at = 0
        self._real = 0
        """What the kernel's time stamps are ahead of CLOCK_MONOTONIC, in ns."""
        self._segments, self._bytes = (past or {}).get("emitted", (0, 0))
        self._lost = 0
        admission.totals.update(past or {})

    @property
    def received(self) -> tuple[int, int]:
        """Segments with payload from client to production, and their bytes, read so far."""
        return self._segments, self._bytes

    def fileno(self) -> int:
        """The packet socket."""
        return self._sock.fileno()

    def read(self, limit: int) -> Iterator[Segment]:
        """Yield the segments of at most `limit` packets that are there."""
        ring, frame = self._ring, _FRAME.unpack_from
        for _ in range(limit):
            if not self._left and not self._next_block():
                return
            at = self._at
            step, seconds, nanoseconds, captured, size, status, place, _, _, tag, _ = frame(ring, at)
            _, protocol, link, hardware, kind = _ADDRESS.unpack_from(ring, at + _ADDRESS_AT)
            if (kind != PACKET_OTHERHOST or self._promiscuous) and (self.links is None or link in self.links):
                time_ns = seconds * 1_000_000_000 + nanoseconds - self._real
                vlan = tag & 0xFFF if status & TP_STATUS_VLAN_VALID else 0
                ethertype = None if hardware in ARPHRD_WITH_ETHERNET else int.from_bytes(protocol, "big")
                data = ring[at + place : at + place + captured]
                header = self._read(data, size, ethertype, vlan, time_ns / 1e9)
                if header is not None:
                    loopback = hardware == ARPHRD_LOOPBACK
                    for segment in self._admission.admit(header, kind == PACKET_OUTGOING, time_ns, loopback):
                        if segment[4] and not segment[1] & FROM_SERVER:
                            self._segments += 1
                            self._bytes += segment[4]
                        yield segment
            self._at = at + step
            self._left -= 1
            if not self._left:
                self._give_back()

    def empty(self) -> bool:
        """No packet is there."""
        return not self._left and not self._next_block()

    def age(self, now: float) -> float:
        """Seconds from the capture of the packet that will be read next to `now`; 0: none is there."""
        if self.empty():
            return 0.0
        _, seconds, nanoseconds, *_ = _FRAME.unpack_from(self._ring, self._at)
        return now - float(seconds * 1_000_000_000 + nanoseconds - self._real) / 1e9

    def exclude(self, excluded: Collection[tuple[bytes, int]]) -> None:
        """End points of shadows from now on: nothing that goes there is captured."""
        self._admission.exclude(excluded)

    def want_ack(self, key: FlowKey, wanted: bool) -> None:
        """Begin or stop to yield production's acknowledgements of the flow's bucket."""
        self._admission.want_ack(key, wanted)

    def want_answers(self, first: int, count: int) -> None:
        """Yield production's payload too, of the flows in so many buckets from `first` on and around."""
        self._admission.want_answers(first, count)

    def keep_answers(self, key: FlowKey, wanted: bool) -> None:
        """The same of this flow's bucket, wherever these are."""
        self._admission.keep_answers(key, wanted)

    def counters(self) -> Counters:
        """What was counted.

        Packets that the ring had no room for are counted by the kernel without their size and before they are
        judged: each is entered as one record, of 0 bytes, both seen and lost (`ring_full`).  So is each IP fragment
        that did not make a whole datagram (`fragment`), where they are put together.
        """
        _, lost, _ = struct.unpack("=III", self._sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 12))
        self._lost += lost
        totals = dict(self._admission.totals)
        pieces = self._decoder.fragments.discarded if self._decoder is not None else 0
        seen, fragment = totals.get("seen", (0, 0)), totals.get("fragment", (0, 0))
        totals["seen"] = seen[0] + self._lost + pieces, seen[1]
        totals["ring_full"] = totals.get("ring_full", (0, 0))[0] + self._lost, 0
        totals["fragment"] = fragment[0] + pieces, fragment[1]
        return Counters(*(totals.get(name, (0, 0)) for name in Counters.__struct_fields__))

    def fill(self) -> float:
        """How full the ring is, from 0 to 1."""
        blocks = range(0, self._count * self._block_bytes, self._block_bytes)
        return float(sum(_BLOCK.unpack_from(self._ring, at)[1] & TP_STATUS_USER for at in blocks)) / self._count

    def set_threshold(self, threshold: int) -> None:
        """From here on take only flows whose hash is below it."""
        self._admission.set_threshold(threshold)

    def woken(self) -> None:
        """Take note of an error (ENETDOWN: the interface went down): it would wake us for ever."""
        self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def stop(self) -> None:
        """Let no more packets in, and wait for the last block; needs no privilege."""
        attach_filter(self._sock, REFUSE_ALL)
        time.sleep(RETIRED)

    def close(self) -> None:
        """Unmap the ring and close the socket."""
        self._ring.release()
        with contextlib.suppress(BufferError):  # somebody still has a payload; it goes with that
            self._map.close()
        self._sock.close()

    def _next_block(self) -> bool:
        """Go on to the present block, if it has come to us."""
        start = self._block * self._block_bytes
        _, status, self._left = _BLOCK.unpack_from(self._ring, start)
        if not status & TP_STATUS_USER:
            self._left = 0
            return False
        if order.FENCE is not None:
            order.FENCE()
        self._at = start + _FIRST.unpack_from(self._ring, start)[0]
        self._real = wall.ahead()
        if not self._left:
            self._give_back()
            return self._next_block()
        # A worker that takes over from us must not read this block again: it finds it empty.
        struct.pack_into("=I", self._ring, start + _PACKETS, 0)
        return True

    def _oldest(self) -> int:
        """The block to begin with: the first of a new ring; of one that another read, the oldest that it left, or else
        the newest, which the kernel is filling.
        """
        blocks = [
            (_BLOCK.unpack_from(self._ring, i * self._block_bytes)[1], self._number(i), i) for i in range(self._count)
        ]
        ready = [(number, i) for status, number, i in blocks if status & TP_STATUS_USER]
        return min(ready)[1] if ready else max((number, -i) for _, number, i in blocks)[1] * -1

    def _number(self, block: int) -> int:
        """When the kernel began to fill it: of all blocks in their order."""
        return int(struct.unpack_from("=Q", self._ring, block * self._block_bytes + _NUMBER)[0])

    def _give_back(self) -> None:
        if order.FENCE is not None:
            order.FENCE()
        struct.pack_into("=I", self._ring, self._block * self._block_bytes + _STATUS, 0)
        self._block = (self._block + 1) % self._count

    def _read_deep(self, frame: memoryview, size: int, ethertype: int | None, vlan: int, now: float) -> Header | None:
        assert self._decoder is not None
        return self._decoder.decode(frame, size, ETHERNET if ethertype is None else RAW, now, vlan)


def attach_filter(sock: socket.socket, program: bytes) -> None:
    """Attach a classic BPF program (socket(7))."""
    import ctypes

    code = ctypes.create_string_buffer(program)
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
