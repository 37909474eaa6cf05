# SPDX-License-Identifier: Apache-2.0
"""Segments from a plain AF_PACKET socket: the fallback where the kernel gives no eBPF.

Every packet of the interface is copied to user space and judged there (packet(7)); correct and plain,
many times dearer than the ring.  Promises the same as the ring source.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from typing import Final

from tapmirror.admission import Admission
from tapmirror.events import FROM_SERVER, FlowKey, Segment
from tapmirror.packet import decode
from tapmirror.source import Counters

ETH_P_ALL: Final = 0x0003
SOL_PACKET: Final = 263
PACKET_STATISTICS: Final = 6
PACKET_AUXDATA: Final = 8
PACKET_IGNORE_OUTGOING: Final = 23
SO_RCVBUFFORCE: Final = 33
SO_ATTACH_FILTER: Final = 26
PACKET_OTHERHOST: Final = 3
PACKET_OUTGOING: Final = 4
TP_STATUS_VLAN_VALID: Final = 0x10
ARPHRD_WITH_ETHERNET: Final = (1, 772)
FRAME_BYTES: Final = 1 << 19
"""Largest packet: BIG TCP's (GSO_MAX_SIZE of Linux is 8 * 65,535)."""

_AUXDATA: Final = struct.Struct("=IIIHHHH")
_REFUSE_ALL: Final = struct.pack("=HBBI", 0x06, 0, 0, 0)


def open_live(iface: str, buffer_bytes: int, *, loopback: bool) -> socket.socket:
    """A packet socket on the interface, with a receive buffer of about `buffer_bytes`.  Needs privilege.

    Raises OSError.
    """
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer_bytes)
        sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        if loopback:
            sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        sock.bind((iface, ETH_P_ALL))
    except BaseException:
        sock.close()
        raise
    return sock


class LiveSource:
    """The reader of one packet socket."""

    def __init__(self, sock: socket.socket, admission: Admission) -> None:
        self._sock = sock
        self._admission = admission
        self._buffer = bytearray(FRAME_BYTES)
        self._view = memoryview(self._buffer)
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
        for _ in range(limit):
            try:
                size, auxiliary, _, address = self._sock.recvmsg_into([self._buffer], 64, socket.MSG_TRUNC)
            except BlockingIOError:
                return
            except OSError:  # the interface went down
                return
            yield from self._segments_of(size, auxiliary, address)

    def _segments_of(
        self, size: int, auxiliary: list[tuple[int, int, bytes]], address: tuple[object, ...]
    ) -> list[Segment]:
        _, protocol, kind, hardware, *_ = address
        if kind == PACKET_OTHERHOST:
            return []
        ethertype = None if hardware in ARPHRD_WITH_ETHERNET else protocol
        frame = self._view[: min(size, FRAME_BYTES)]
        header = decode(frame, size, ethertype=ethertype, vlan=_vlan(auxiliary))  # type: ignore[arg-type]
        if header is None:
            return []
        found = self._admission.admit(header, kind == PACKET_OUTGOING, time.monotonic_ns())
        for segment in found:
            if segment[4] and not segment[1] & FROM_SERVER:
                self._segments += 1
                self._bytes += segment[4]
        return found

    def want_ack(self, key: FlowKey, wanted: bool) -> None:
        """Begin or stop to yield production's acknowledgements of the flow's bucket."""
        self._admission.want_ack(key, wanted)

    def counters(self) -> Counters:
        """What was counted.

        Packets that the socket's buffer had no room for are counted by the kernel without their size and
        before they are judged: each is entered as one record, of 0 bytes, both seen and lost (`ring_full`).
        """
        _, lost = struct.unpack("=II", self._sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        self._lost += lost
        totals = dict(self._admission.totals)
        seen = totals.get("seen", (0, 0))
        totals["seen"] = seen[0] + self._lost, seen[1]
        totals["ring_full"] = self._lost, 0
        return Counters(*(totals.get(name, (0, 0)) for name in Counters.__struct_fields__))

    def stop(self) -> None:
        """Let no more packets in; needs no privilege."""
        program = (len(_REFUSE_ALL) // 8, _REFUSE_ALL)
        attach_filter(self._sock, *program)

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


def attach_filter(sock: socket.socket, length: int, program: bytes) -> None:
    """Attach a classic BPF program of `length` instructions (socket(7))."""
    import ctypes

    code = ctypes.create_string_buffer(program)
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", length, ctypes.addressof(code)))


def _vlan(auxiliary: list[tuple[int, int, bytes]]) -> int:
    """The tag that the kernel took out of the frame."""
    for level, kind, data in auxiliary:
        if level == SOL_PACKET and kind == PACKET_AUXDATA and len(data) >= _AUXDATA.size:
            status, _, _, _, _, tci, _ = _AUXDATA.unpack_from(data)
            if status & TP_STATUS_VLAN_VALID:
                return int(tci) & 0xFFF
    return 0
