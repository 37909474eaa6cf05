# SPDX-License-Identifier: Apache-2.0
"""Segments from an AF_PACKET socket with a ring in shared memory: if the kernel offers no eBPF, and for tunnels.

The kernel copies each packet that passes the filter into a block of the ring (TPACKET_V3, packet(7) and
Documentation/networking/packet_mmap.rst), and `judge` turns packets into segments.  The promises are the same as with
the eBPF ring, but it costs more: the headers of each packet of production are copied too, and as much of its payload as
a comparison needs.  A packet may be captured only in part; the lengths are those on the wire.

The kernel hands a block over when it is full, or after a given time (`HAND_OVER_MS`).  This reader's counts are noted
in the ring (`packet_ring`), so that they last as long as the ring, like the counters of the kernel program.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final

from tapmirror import wall
from tapmirror.admission import Admission
from tapmirror.events import FROM_SERVER, FlowKey, Segment
from tapmirror.packet import Decoder
from tapmirror.source import ENDLESS, Counters, nothing
from tapmirror.source.filter import REFUSE_ALL
from tapmirror.source.judge import FRAME, Judge
from tapmirror.source.packet_ring import SOL_PACKET, PacketRing
from tapmirror.source.sockets import BLOCK_BYTES, HANDED_OVER, PROMPT_MS, attach_filter

PACKET_STATISTICS: Final = 6
LAST_BLOCK: Final = 1.0
"""Seconds to wait for the last block at the end."""
_NAMES: Final = Counters.__struct_fields__


class LiveSource:
    """The reader of one packet socket with a ring.

    `decoder` and `promiscuous`: as for `Judge`.  The counts go on from those of a worker that read this ring before.
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
        self._judge = Judge(admission, decoder, promiscuous=promiscuous)
        self._ring = PacketRing(sock, ring_bytes, block_bytes)
        self._real = 0
        """How far the kernel's time stamps are ahead of CLOCK_MONOTONIC, in ns."""
        self._pieces = 0
        """How many fragments were counted as discarded."""
        self.cut = False
        """Whether the last `read` left something because of its limit in bytes."""
        self._unread: Sequence[Segment] = ()
        """Segments of the last packet that were not yielded, because the caller stopped there."""
        self._discarded = 0, 0
        """(segments, bytes) that were captured and will not be read."""
        self._take_over()

    def _take_over(self) -> None:
        """Continue with the counts that a reader before us noted, and count what it had begun since then."""
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
        """(segments with payload from client to production, their bytes) that were read, including by readers before
        this one.
        """
        segments, size = self._admission.totals.get("emitted", (0, 0))
        unread = [length for _, flags, _, _, length, _, _ in self._unread if length and not flags & FROM_SERVER]
        return segments - self._discarded[0] - len(unread), size - self._discarded[1] - sum(unread)

    def fileno(self) -> int:
        """The packet socket."""
        return self._sock.fileno()

    def read(self, limit: int, size: int = ENDLESS, finish: Callable[[], object] = nothing) -> Iterator[Segment]:
        """Yield the segments of at most `limit` packets that are there, and of none that begins after `size` bytes of
        them.
        """
        left = limit
        ring, view, judged = self._ring, self._ring.view, self._judge.judged
        self.cut = False
        unread = iter(self._unread)
        self._unread = ()
        try:
            yield from unread
            while left and (ring.left or self._ready(finish)):
                if size <= 0:
                    self.cut = True
                    break
                left -= 1
                at = ring.begin()
                size -= ring.captured(at)  # where the next one is tells nothing of a block's last
                unread = iter(judged(view, at, self._real))
                yield from unread
            finish()
        finally:
            self._unread = list(unread)
            if left < limit:
                self._note()

    def discard(self) -> None:
        """Judge the packets that are there, and yield none of their segments."""
        segments, size = self.received
        self._unread = ()
        while self._ready():
            self._judge.judged(self._ring.view, self._ring.begin(), self._real)
        if self._decoder is not None:
            self._decoder.fragments.give_up()
        captured = self._admission.totals.get("emitted", (0, 0))
        self._discarded = captured[0] - segments, captured[1] - size

    def empty(self) -> bool:
        """Whether no packet is there."""
        return not self._unread and not self._ready()

    def age(self, now: float) -> float:
        """Seconds from the capture of the packet that will be read next to `now`; 0: none is there."""
        if self._unread:
            return now - float(self._unread[0][6]) / 1e9
        if self.empty():
            return 0.0
        seconds, nanoseconds, *_ = FRAME.unpack_from(self._ring.view, self._ring.at)
        return now - float(seconds * 1_000_000_000 + nanoseconds - self._real) / 1e9

    def exclude(self, excluded: Collection[tuple[bytes, int]]) -> None:
        """Set the end points of the shadows: nothing that goes there is captured from now on."""
        self._admission.exclude(excluded)
        self._judge.forget()

    def want_ack(self, key: FlowKey, wanted: bool) -> None:
        """Begin or stop to yield production's acknowledgements of the flow's bucket."""
        self._admission.want_ack(key, wanted)

    def want_responses(self, first: int, count: int) -> None:
        """Yield production's payload in `count` buckets from `first` on; after the last bucket comes the first."""
        self._admission.want_responses(first, count)

    def keep_responses(self, key: FlowKey, wanted: bool) -> None:
        """Begin or stop to yield production's payload in this flow's bucket, wherever that window is."""
        self._admission.keep_responses(key, wanted)

    def counters(self) -> Counters:
        """What was counted.

        The kernel counts packets for which the ring had no room without their size, and before they are judged.  Each
        of them is entered as one record of 0 bytes, both as seen and as lost (`ring_full`).  If fragments are put
        together, so is each IP fragment that did not become part of a whole datagram (`fragment`).
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
        """Take only flows whose hash is below `threshold` from now on."""
        self._admission.set_threshold(threshold)
        self._judge.forget()

    def woken(self) -> None:
        """Take note of an error (ENETDOWN: the interface went down), which would otherwise wake the worker for ever."""
        self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def stop(self) -> None:
        """Let no more packets in, and wait for the last block, at most `LAST_BLOCK` seconds.  Needs no privilege."""
        attach_filter(self._sock, REFUSE_ALL)
        end = time.monotonic() + LAST_BLOCK
        time.sleep(HANDED_OVER)  # what passed the filter before is in by then
        while self._ring.filling() and time.monotonic() < end:
            time.sleep(PROMPT_MS / 1_000)

    def close(self) -> None:
        """Unmap the ring and close the socket."""
        self._ring.close()
        self._sock.close()

    def _ready(self, finish: Callable[[], object] = nothing) -> bool:
        """Whether a packet is there to be read next; `finish` as of `read`."""
        ring = self._ring
        while not ring.left:
            if ring.held:
                finish()
                self._note()
                ring.give_back()
            if not self._take():
                return False
        return True

    def _take(self) -> bool:
        self._real = wall.ahead()
        return self._ring.take()

    def _note(self) -> None:
        """Note for a successor what was counted, and up to which packet."""
        totals = self._admission.totals
        self._ring.note(self._ring.position, [n for name in _NAMES for n in totals.get(name, (0, 0))])
