# SPDX-License-Identifier: Apache-2.0
"""Segments from an AF_PACKET socket with a ring in shared memory: where the kernel gives no eBPF, and for tunnels.

The kernel copies each packet that passes the filter into a block of the ring (TPACKET_V3, packet(7) and
Documentation/networking/packet_mmap.rst); the packets are judged here.  Promises the same as the eBPF ring, and
costs more: production's answers are copied too.

A block comes to us when it is full or `RETIRE_MS` old.  Memory order: as in `ring`.
"""

from __future__ import annotations

import contextlib
import mmap
import socket
import struct
import time
from collections.abc import Collection, Iterator
from typing import Final, Protocol

from tapmirror.admission import Admission
from tapmirror.events import FROM_SERVER, FlowKey, Segment
from tapmirror.packet import Decoder, Header, decode
from tapmirror.packet.link import ETHERNET, RAW
from tapmirror.source import Counters
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
ARPHRD_WITH_ETHERNET: Final = (1, 772)

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
    iface: str,
    ring_bytes: int,
    *,
    loopback: bool,
    ports: Collection[int] | None,
    block_bytes: int = BLOCK_BYTES,
    promiscuous: bool = False,
    workers: int = 1,
) -> list[socket.socket]:
    """Packet sockets on the interface, one for each worker, each with a ring.  Needs privilege; raises OSError.

    `ports`: what the kernel lets through (None: everything, for tunnels).  `promiscuous`: also packets for other
    stations.

    Of several sockets each gets its share of the flows, both directions of one together: the kernel's flow hash
    of PACKET_FANOUT_HASH takes the lower end point first (`__skb_get_hash_symmetric`).  It does not look into UDP, so
    not into VXLAN or GENEVE.  A socket that is closed changes the share of all others.
    """
    sockets: list[socket.socket] = []
    group = PACKET_FANOUT_FLAG_UNIQUEID << 16
    blocks = ring_bytes // block_bytes
    request = _REQUEST.pack(block_bytes, blocks, block_bytes, blocks, RETIRE_MS, 0, 0)
    try:
        for _ in range(workers):
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
            sockets.append(sock)
            sock.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V3)
            attach_filter(sock, REFUSE_ALL)
            sock.setsockopt(SOL_PACKET, PACKET_RX_RING, request)
            if loopback:
                sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            if promiscuous:
                be_promiscuous(sock, iface)
            sock.bind((iface, ETH_P_ALL))
            if workers > 1:
                sock.setsockopt(SOL_PACKET, PACKET_FANOUT, group | PACKET_FANOUT_HASH << 16)
                group = sock.getsockopt(SOL_PACKET, PACKET_FANOUT) & 0xFFFF
        # Only now, when the share of none changes any more: a flow stays where it began.
        for sock in sockets:
            attach_filter(sock, TAKE_ALL if ports is None else tcp_filter(ports))
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def be_promiscuous(sock: socket.socket, iface: str) -> None:
    """Let the interface take packets for other stations too, as long as the packet socket is open."""
    index = socket.if_nametoindex(iface)
    sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, struct.pack("=iHH8x", index, PACKET_MR_PROMISC, 0))


def block_bytes(largest: int) -> int:
    """Size of a block that takes packets of `largest` bytes: a power of two."""
    return max(BLOCK_BYTES, 1 << (largest + HEADROOM).bit_length())


class LiveSource:
    """The reader of one packet socket with a ring.

    `decoder` reads what `decode` does not; `promiscuous`: packets for other stations count.
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
    ) -> None:
        self._sock = sock
        self._admission = admission
        self._decoder = decoder
        self._read: Reader = read_plain if decoder is None else self._read_deep
        self._promiscuous = promiscuous
        self._block_bytes = block_bytes
        self._count = ring_bytes // block_bytes
        self._map = mmap.mmap(sock.fileno(), self._count * block_bytes, mmap.MAP_SHARED)
        self._ring = memoryview(self._map)
        self._block = 0
        self._left = 0
        """Packets of the present block that are still to be read; the next is at `_at`."""
        self._at = 0
        self._real = 0
        """What the kernel's time stamps are ahead of CLOCK_MONOTONIC, in ns."""
        self._segments = 0
        self._bytes = 0
        self._lost = 0

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
            _, protocol, _, hardware, kind = _ADDRESS.unpack_from(ring, at + _ADDRESS_AT)
            if kind != PACKET_OTHERHOST or self._promiscuous:
                time_ns = seconds * 1_000_000_000 + nanoseconds - self._real
                vlan = tag & 0xFFF if status & TP_STATUS_VLAN_VALID else 0
                ethertype = None if hardware in ARPHRD_WITH_ETHERNET else int.from_bytes(protocol, "big")
                data = ring[at + place : at + place + captured]
                header = self._read(data, size, ethertype, vlan, time_ns / 1e9)
                if header is not None:
                    for segment in self._admission.admit(header, kind == PACKET_OUTGOING, time_ns):
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

    def want_ack(self, key: FlowKey, wanted: bool) -> None:
        """Begin or stop to yield production's acknowledgements of the flow's bucket."""
        self._admission.want_ack(key, wanted)

    def want_answers(self, buckets: bytes) -> None:
        """Yield production's payload too, of the flows in these buckets."""
        self._admission.want_answers(buckets)

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
        totals["ring_full"] = self._lost, 0
        totals["fragment"] = fragment[0] + pieces, fragment[1]
        return Counters(*(totals.get(name, (0, 0)) for name in Counters.__struct_fields__))

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
        self._at = start + _FIRST.unpack_from(self._ring, start)[0]
        self._real = time.time_ns() - time.monotonic_ns()
        if not self._left:
            self._give_back()
            return self._next_block()
        return True

    def _give_back(self) -> None:
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
