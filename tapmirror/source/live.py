# SPDX-License-Identifier: Apache-2.0
"""Segments from an AF_PACKET socket with a ring in shared memory: where the kernel gives no eBPF, and for tunnels.

The kernel copies each packet that passes the filter into a block of the ring (TPACKET_V3, packet(7) and
Documentation/networking/packet_mmap.rst); `judge` makes segments of them.  Promises the same as the eBPF ring, and
costs more: of each of production's packets the headers are copied too, and if answers are compared so much of it as
that takes.  Captured is less than `size` then, and lengths are those on the wire.

A block comes to us when it is full, or of an age that is chosen (`HAND_OVER_MS`).  What we counted is noted in the
ring (`packet_ring`), so that it lasts as long as that, like the counters of the kernel program.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from tapmirror import wall
from tapmirror.admission import Admission
from tapmirror.events import FlowKey, Segment
from tapmirror.packet import Decoder
from tapmirror.source import Counters
from tapmirror.source.filter import REFUSE_ALL, TAKE_ALL, tcp_filter
from tapmirror.source.judge import FRAME, Judge
from tapmirror.source.packet_ring import SOL_PACKET, PacketRing, set_up_ring

ETH_P_ALL: Final = 0x0003
PACKET_ADD_MEMBERSHIP: Final = 1
PACKET_STATISTICS: Final = 6
PACKET_FANOUT: Final = 18
PACKET_IGNORE_OUTGOING: Final = 23
PACKET_MR_PROMISC: Final = 1
PACKET_FANOUT_HASH: Final = 0
PACKET_FANOUT_FLAG_UNIQUEID: Final = 0x2000
SO_ATTACH_FILTER: Final = 26

BLOCK_BYTES: Final = 128 << 10
"""Of the ring.  A packet has to fit into one; many blocks make it patient, since each holds little where traffic
is thin: 128 of them, a ring of 16 MiB, last for two seconds at least, or half of one (`PROMPT_MS`)."""
HAND_OVER_MS: Final = 16
"""Milliseconds after which a block comes to us that is not full: what a packet may wait."""
PROMPT_MS: Final = 4
"""The same where answers are compared, and their times: what waits together reaches the shadow at once, and has to
queue there.  A tick of the kernel's clock at 250 Hz."""
HANDED_OVER: Final = 0.03
"""Seconds after which one has come, unless the host has no time for its timers."""
LAST_BLOCK: Final = 1.0
"""Seconds that one is waited for at the end."""

HEADROOM: Final = 4_096
"""Bytes of a block that are not the packet's: headers of block, packet and link."""

_NAMES: Final = Counters.__struct_fields__


def open_live(
    iface: str | None,
    ring_bytes: int,
    *,
    loopback: bool,
    ports: Collection[int] | None,
    answer_bytes: int = 0,
    block_bytes: int = BLOCK_BYTES,
    hand_over_ms: int = HAND_OVER_MS,
    promiscuous: bool = False,
) -> socket.socket:
    """A packet socket on the interface (None: not on any yet), with a ring.  Needs privilege; raises OSError.

    `ports`: what the kernel lets through (None: everything, for tunnels), and `answer_bytes` of what comes from there.
    `hand_over_ms`: the most that a packet waits in it.
    `promiscuous`: also packets for other stations.
    """
    taken = TAKE_ALL if ports is None else tcp_filter(ports, answer_bytes=answer_bytes)
    sock = _with_ring(0, taken, ring_bytes, block_bytes, hand_over_ms, loopback)
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
    workers: int,
    ring_bytes: int,
    *,
    loopback: bool,
    block_bytes: int = BLOCK_BYTES,
    hand_over_ms: int = HAND_OVER_MS,
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
            sock = _with_ring(socket.htons(ETH_P_ALL), REFUSE_ALL, ring_bytes, block_bytes, hand_over_ms, loopback)
            sockets.append(sock)
            sock.setsockopt(SOL_PACKET, PACKET_FANOUT, group | PACKET_FANOUT_HASH << 16)
            group = sock.getsockopt(SOL_PACKET, PACKET_FANOUT) & 0xFFFF
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def let_in(
    sockets: Iterable[socket.socket], ports: Collection[int], links: Collection[int], answer_bytes: int = 0
) -> None:
    """Let packets of these ports and of the interfaces with these numbers in, and no others; as `open_live`."""
    for sock in sockets:
        attach_filter(sock, tcp_filter(ports, links, answer_bytes) if links else REFUSE_ALL)


def _with_ring(
    protocol: int, taken: bytes, ring_bytes: int, block_bytes: int, hand_over_ms: int, loopback: bool
) -> socket.socket:
    """A packet socket with a filter and a ring (which discards what came before)."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    try:
        attach_filter(sock, taken)
        set_up_ring(sock, ring_bytes, block_bytes, hand_over_ms)
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

    `decoder`, `promiscuous` and `links` as for `Judge`.  What a worker that read this ring before had counted is
    counted on.
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
        links: Collection[int] | None = None,
    ) -> None:
        self._sock = sock
        self._admission = admission
        self._decoder = decoder
        self._judge = Judge(admission, decoder, promiscuous=promiscuous, links=links)
        self._ring = PacketRing(sock, ring_bytes, block_bytes)
        self._real = 0
        """What the kernel's time stamps are ahead of CLOCK_MONOTONIC, in ns."""
        self._pieces = 0
        """Fragments that were counted as discarded."""
        self._discarded = 0, 0
        """Segments and bytes that were captured and will not be read."""
        self._take_over()

    def _take_over(self) -> None:
        """Go on with what a reader before us noted, and count what it had begun since."""
        noted = self._ring.noted()
        if noted is None:  # a successor has to know that nothing was counted yet
            self._note()
            return
        (number, counted), values = noted
        self._admission.totals.update(zip(_NAMES, zip(values[::2], values[1::2], strict=True), strict=True))
        self._take()
        at_block, begun = self._ring.position
        if at_block != number:  # all before this block was noted
            counted = 0
        if begun > counted:
            self._note()  # one of these may be what it died of: whoever takes over from us does not look at them again
            for at in self._ring.places(counted, begun):
                self._judge.judged(self._ring.view, at, self._real)
            self._note()

    @property
    def received(self) -> tuple[int, int]:
        """Segments with payload from client to production, and their bytes, read so far, by whichever reader."""
        segments, size = self._admission.totals.get("emitted", (0, 0))
        return segments - self._discarded[0], size - self._discarded[1]

    def fileno(self) -> int:
        """The packet socket."""
        return self._sock.fileno()

    def read(self, limit: int) -> Iterator[Segment]:
        """Yield the segments of at most `limit` packets that are there."""
        left = limit
        ring, view, judged = self._ring, self._ring.view, self._judge.judged
        try:
            while left and (ring.left or self._ready()):
                left -= 1
                yield from judged(view, ring.begin(), self._real)
        finally:
            if left < limit:
                self._note()

    def discard(self) -> None:
        """Judge what is there, and yield nothing of it."""
        segments, size = self.received
        while self._ready():
            self._judge.judged(self._ring.view, self._ring.begin(), self._real)
        if self._decoder is not None:
            self._decoder.fragments.give_up()
        captured = self._admission.totals.get("emitted", (0, 0))
        self._discarded = captured[0] - segments, captured[1] - size

    def empty(self) -> bool:
        """No packet is there."""
        return not self._ready()

    def age(self, now: float) -> float:
        """Seconds from the capture of the packet that will be read next to `now`; 0: none is there."""
        if self.empty():
            return 0.0
        seconds, nanoseconds, *_ = FRAME.unpack_from(self._ring.view, self._ring.at)
        return now - float(seconds * 1_000_000_000 + nanoseconds - self._real) / 1e9

    def exclude(self, excluded: Collection[tuple[bytes, int]]) -> None:
        """End points of shadows from now on: nothing that goes there is captured."""
        self._admission.exclude(excluded)
        self._judge.forget()

    def set_links(self, links: Collection[int]) -> None:
        """Numbers of the interfaces whose packets count from now on."""
        self._judge.set_links(links)

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
        pieces = self._decoder.fragments.discarded if self._decoder is not None else 0
        totals = self._admission.totals
        for name, count in (("ring_full", lost), ("fragment", pieces - self._pieces)):
            for each in ("seen", name):
                records, size = totals.get(each, (0, 0))
                totals[each] = records + count, size
        self._pieces = pieces
        if lost:  # the kernel has forgotten them
            self._note()
        return Counters(*(totals.get(name, (0, 0)) for name in _NAMES))

    def fill(self) -> float:
        """How full the ring is, from 0 to 1."""
        return self._ring.fill()

    def set_threshold(self, threshold: int) -> None:
        """From here on take only flows whose hash is below it."""
        self._admission.set_threshold(threshold)
        self._judge.forget()

    def woken(self) -> None:
        """Take note of an error (ENETDOWN: the interface went down): it would wake us for ever."""
        self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def stop(self) -> None:
        """Let no more packets in, and wait for the last block, within `LAST_BLOCK`; needs no privilege."""
        attach_filter(self._sock, REFUSE_ALL)
        end = time.monotonic() + LAST_BLOCK
        time.sleep(HANDED_OVER)  # what passed the filter before is in by then
        while self._ring.filling() and time.monotonic() < end:
            time.sleep(PROMPT_MS / 1_000)

    def close(self) -> None:
        """Unmap the ring and close the socket."""
        self._ring.close()
        self._sock.close()

    def _ready(self) -> bool:
        """A packet is there to be read next."""
        ring = self._ring
        while not ring.left:
            if ring.held:
                self._note()
                ring.give_back()
            if not self._take():
                return False
        return True

    def _take(self) -> bool:
        self._real = wall.ahead()
        return self._ring.take()

    def _note(self) -> None:
        """Tell a successor what was counted, and up to where."""
        totals = self._admission.totals
        self._ring.note(self._ring.position, [n for name in _NAMES for n in totals.get(name, (0, 0))])


def attach_filter(sock: socket.socket, program: bytes) -> None:
    """Attach a classic BPF program (socket(7))."""
    import ctypes

    code = ctypes.create_string_buffer(program)
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
