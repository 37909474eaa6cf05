# SPDX-License-Identifier: Apache-2.0
"""One connection to a shadow whose responses are compared: its requests and responses, each with its time.

Theory of operation
-------------------
*Received.*  The kernel stamps each packet as it comes in from the interface (SO_TIMESTAMPING with RX_SOFTWARE,
Documentation/networking/timestamping.rst).  A read has the stamp of the last packet of which it has bytes.  If one read
has several responses, all of them get that stamp, though the earlier ones came before it.  So everything that has come
is read before a timed request is sent, and before one behind it: clients that send as fast as production answers have
many requests on a connection in one iteration of the loop.

*Sent.*  The last part of each request asks for a stamp of the moment at which the kernel hands its last byte to the
interface's driver (TX_SOFTWARE, by `sendmsg` of this part).  The stamp comes back through the socket's error queue,
usually before `sendmsg` returns, with the position of that byte in the stream (OPT_ID).  Until it comes, and if it
never does (TLS, a driver without stamps), the clock before `send` is used instead, which is counted.

Stamps are of the wall clock.  They are converted to CLOCK_MONOTONIC by the difference of both clocks in this iteration
of the loop.

*Not all requests are timed.*  Of many requests a second only some are (`Asked.timed`).  While none of these waits for
its response on a busy connection, the connection wakes the loop only for many bytes of responses, and they are read
together.
"""

from __future__ import annotations

import _socket
import contextlib
import socket
import struct
import sys
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Final, TypeAlias

from tapmirror import wall
from tapmirror.events import END, Buffer
from tapmirror.exchange import Unpaired
from tapmirror.replay.responses import LAZY_BYTES, LOOK_BYTES, acknowledge_at_once, wake_for
from tapmirror.replay.tls import TlsSocket

if TYPE_CHECKING:
    from tapmirror.compare.pairing import Conversation
    from tapmirror.replay.lane import Lane
    from tapmirror.replay.responses import Responses

_Socket: TypeAlias = "_socket.socket | TlsSocket"

SO_TIMESTAMPING: Final = 37
"""Number of the socket option, and of the control message SCM_TIMESTAMPING (asm-generic/socket.h)."""
TX_SOFTWARE: Final = 1 << 1
_OPTIONS: Final = 1 << 3 | 1 << 4 | 1 << 7 | 1 << 11
"""RX_SOFTWARE, SOFTWARE, OPT_ID, OPT_TSONLY of linux/net_tstamp.h."""
_FROM_HERE: Final = 1 << 16
"""OPT_ID_TCP (Linux 6.2): bytes are counted from the next one that is sent, not from the last one acknowledged."""
MSG_ERRQUEUE: Final = 0x2000
IP_RECVERR: Final = 11
IPV6_RECVERR: Final = 25
TCP_INFO_RTT: Final = 68
"""Offset of tcpi_rtt in `struct tcp_info`, in microseconds: smoothed, and until the shadow acknowledges, maybe with its
response."""
TCP_INFO_MIN_RTT: Final = 148
"""Offset of tcpi_min_rtt in `struct tcp_info`, in microseconds, the handshake's included; all ones: not known."""
UNKNOWN_NS: Final = 0xFFFF_FFFF * 1000
RTT_TIME: Final = 1.0
"""Seconds for which a round trip time is used."""
STAMPS: Final = 256
"""Most requests on a connection that wait for the stamp of their last byte; further ones get none."""
OWED: Final = 100
"""Most responses that may wait to be read on a busy connection if none of them is timed: fewer than `Compare.pending`.
The smallest responses have 27 bytes, so `LAZY_BYTES` can be 600 of them."""
WASTE_BYTES: Final = 1 << 20

_ASK: Final = [(socket.SOL_SOCKET, SO_TIMESTAMPING, struct.pack("=I", TX_SOFTWARE))]
_ROOM: Final = socket.CMSG_SPACE(48)
_ERROR_ROOM: Final = _ROOM + socket.CMSG_SPACE(64)
_STAMP: Final = struct.Struct("@qq")
_KEY: Final = struct.Struct("=12xI")
"""`ee_data` of `struct sock_extended_err`."""


class Clock:
    """The difference of the wall clock to CLOCK_MONOTONIC, in nanoseconds; `tick` once in each iteration of the
    loop.
    """

    __slots__ = ("ahead",)

    def __init__(self) -> None:
        self.tick()

    def tick(self) -> None:
        """Measure the difference again, because the wall clock may be set."""
        self.ahead = wall.ahead()


class Observer:
    """Observes one lane on all its connections.  `buffer` and `waste` are shared: nothing in them outlives a call."""

    __slots__ = (
        "_asked",
        "_awaited",
        "_buffer",
        "_clock",
        "_conversation",
        "_events",
        "_least_ns",
        "_number",
        "_out",
        "_rtt_at",
        "_rtt_ns",
        "_stamps",
        "_target",
        "_timed_last",
        "_waste",
        "settled",
        "timed",
    )

    def __init__(
        self,
        conversation: Conversation,
        target: int,
        clock: Clock,
        events: Counter[str],
        buffer: memoryview,
        waste: memoryview,
    ) -> None:
        self._conversation = conversation
        self._target = target
        self._clock = clock
        self._events = events
        self._buffer = buffer
        self._waste = waste
        self._number = 0
        """Number of the request that is being sent."""
        self.timed = False
        """Whether that request is timed."""
        self._asked = 0
        """How many requests were begun on this connection."""
        self._timed_last = 0
        """Which of them was the last timed one."""
        self.settled = False
        """Whether the connection is a busy one."""
        self._out = 0
        """Bytes that were sent on this connection."""
        self._awaited: deque[tuple[int, int]] = deque()
        """(position in the stream, number) of requests whose stamps have not come yet."""
        self._stamps = False
        self._rtt_ns = 0
        self._least_ns = 0
        self._rtt_at = 0.0

    def connected(self) -> None:
        """A connection is open, and nothing was sent on it yet."""
        self.settled = False
        self._rtt_at = 0.0

    # --- when it observes

    def start_or_stop(self, lane: Lane, number: int) -> None:
        """A request is about to be sent; 0: its response is not compared."""
        if lane.observing is not None:
            if not number and not self._conversation.owes(self._target):
                self._stop(lane)
        elif number and not self._start(lane):
            self._conversation.left_out(self._target, number, Unpaired.ORDER)

    def _start(self, lane: Lane) -> bool:
        """Observe from the next response on; False: it cannot be told from the one that is coming now."""
        framer, sock = lane.framer, lane.sock
        assert framer is not None
        owed = framer.owed()
        if owed is None:
            return False
        self._conversation.follow(self._target, owed, lane.sent - len(owed))
        lane.observing = self
        self._out = self._timed_last = 0
        self._asked = len(owed)
        self._awaited.clear()
        self._stamps = isinstance(sock, _socket.socket) and _ask_for_stamps(sock, fresh=not lane.sent)
        lane.timed_lazy = False
        if sock is not None and not self.settled:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a request that waits for one is late
        if lane.lazy and lane.finishing:
            wake_for(lane, 1)
        return True

    def _stop(self, lane: Lane) -> None:
        sock = lane.sock
        lane.observing = None
        self.timed = False
        self._conversation.unfollow(self._target)
        if isinstance(sock, _socket.socket):
            self.late_stamps(sock)
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, 0)
        if self.settled and not lane.lazy and not lane.finishing:
            wake_for(lane, LAZY_BYTES)

    # --- what is asked

    def asked(self, number: int, flags: int) -> None:
        """A request begins to be sent."""
        self._number = number
        self._asked += 1
        self.timed = self._conversation.asked(self._target, number, flags)
        if self.timed:
            self._timed_last = self._asked

    def withdraw(self, number: int) -> None:
        """Nothing was sent of the request that was begun last."""
        self._conversation.withdraw(self._target, number)

    def left_out(self, number: int) -> None:
        """A request is not sent."""
        self._conversation.left_out(self._target, number, Unpaired.NOT_SENT)

    def send(self, lane: Lane, data: Buffer, flags: int, now: float) -> int:
        """Send as much as possible of a part; returns how many bytes.  Raises what `send` does."""
        sock = lane.sock
        assert sock is not None
        if not flags & END or not self.timed:
            count = sock.send(data)
            self._out += count
            if flags & END and count == len(data):
                self._measure(sock, now)
                self._conversation.sent(self._target, self._number, int(now * 1e9), self._rtt_ns, self._least_ns)
                self._be_lazy(lane)
            return count
        if lane.lazy:
            wake_for(lane, 1)
        return self._send_timed(sock, data, now)

    def _be_lazy(self, lane: Lane) -> None:
        """Let responses that are not timed wait to be read, if the connection is busy and there are not too many."""
        assert lane.framer is not None
        many = len(lane.framer.awaited) > OWED
        if lane.lazy:
            if many:
                wake_for(lane, 1)
        elif self.settled and not many and not lane.finishing and not self._hurry(lane):
            wake_for(lane, LAZY_BYTES)

    def crowded(self, lane: Lane, number: int) -> bool:
        """Whether responses should be read before this request is sent.

        That is so if responses may be waiting, and this request or one before it is timed: its response needs a stamp
        of its own.
        """
        assert lane.framer is not None
        return bool(lane.framer.awaited) and (self._hurry(lane) or self._conversation.times(number))

    def _hurry(self, lane: Lane) -> bool:
        """Whether a timed request waits for its response."""
        assert lane.framer is not None
        return self._timed_last > self._asked - len(lane.framer.awaited)

    def _send_timed(self, sock: _Socket, data: Buffer, now: float) -> int:
        """Send the last part of a timed request."""
        began = time.monotonic_ns()
        stamped = self._stamps and len(self._awaited) < STAMPS
        if not stamped:
            count = sock.send(data)
            self._events["sends_without_stamp"] += 1
        else:
            count = sock.sendmsg((data,), _ASK)  # type: ignore[union-attr]
        self._out += count
        if count < len(data):
            return count
        self._measure(sock, now)
        if stamped:
            self._awaited.append((self._out - 1, self._number))
            if self.late_stamps(sock):
                return count
        self._conversation.sent(self._target, self._number, began, self._rtt_ns, self._least_ns)
        return count

    def _measure(self, sock: _Socket, now: float) -> None:
        """Read the round-trip time, if the last value is old."""
        if now - self._rtt_at >= RTT_TIME:
            if not self._rtt_at:
                acknowledge_at_once(sock)  # as clients of production do on a new connection: a server may wait for it
            self._rtt_at = now
            self._rtt_ns, self._least_ns = _round_trips(sock)

    def late_stamps(self, sock: _Socket) -> bool:
        """Take the stamps of sent requests; returns whether all have come."""
        awaited = self._awaited
        while awaited:
            try:
                _, found, _, _ = sock.recvmsg(0, _ERROR_ROOM, MSG_ERRQUEUE)  # type: ignore[union-attr]
            except OSError:
                return False
            stamp = key = -1
            for level, kind, data in found:
                if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPING:
                    seconds, rest = _STAMP.unpack_from(data)
                    stamp = seconds * 1_000_000_000 + rest - self._clock.ahead
                elif kind in (IP_RECVERR, IPV6_RECVERR):
                    (key,) = _KEY.unpack_from(data)
            while awaited and (awaited[0][0] - key) & 0xFFFFFFFF >= 1 << 31:
                awaited.popleft()  # its stamp was lost
            if awaited and stamp >= 0 and awaited[0][0] & 0xFFFFFFFF == key:
                self._conversation.sent(self._target, awaited.popleft()[1], stamp, self._rtt_ns, self._least_ns)
        return True

    # --- what it answers

    def read(self, lane: Lane, sock: _Socket, responses: Responses) -> tuple[int, int]:
        """Read; returns (bytes asked for, bytes read).  Raises what `recv_into` does."""
        framer, conversation, target = lane.framer, self._conversation, self._target
        assert framer is not None
        skippable = framer.skippable()
        if skippable:
            skippable = min(skippable, conversation.shadow_skippable(target))
        asked = min(skippable, WASTE_BYTES) if skippable else LOOK_BYTES
        if isinstance(sock, TlsSocket):
            count = sock.recv_into(self._waste if skippable else self._buffer, asked)
            time_ns = time.monotonic_ns()
        elif not self._hurry(lane):
            into = self._waste if skippable else self._buffer
            count = sock.recv_into(into, asked, socket.MSG_TRUNC if skippable else 0)
            time_ns = time.monotonic_ns()
        elif skippable:
            count, found, _, _ = sock.recvmsg_into((self._waste[:asked],), _ROOM, socket.MSG_TRUNC)
            time_ns = self._received(found)
        else:
            count, found, _, _ = sock.recvmsg_into((self._buffer,), _ROOM)
            time_ns = self._received(found)
        if not count:
            return asked, 0
        if skippable:
            framer.skip(count)
            conversation.shadow_gap(target, count, time_ns)
        else:
            data = self._buffer[:count]
            if not framer.failed:
                responses.take(lane, data)
            conversation.shadow_data(target, data, time_ns)
        return asked, count

    def ended(self, now: float, *, reset: bool) -> None:
        """The shadow closed or reset the connection."""
        self._conversation.shadow_ended(self._target, int(now * 1e9), reset)

    def timed_out(self, now: float) -> None:
        """The tap closes the connection, because the shadow does not answer in time."""
        self._conversation.timed_out(self._target, int(now * 1e9))

    def given_up(self) -> None:
        """The tap closes the connection and reads nothing more of it."""
        self._conversation.given_up(self._target, Unpaired.NOT_SENT)

    def shut(self) -> None:
        """The tap ends; requests without a response count as still in progress."""
        self._conversation.given_up(self._target, Unpaired.SHUTDOWN)

    def _received(self, found: list[tuple[int, int, bytes]]) -> int:
        """The stamp of the last byte that was read."""
        for _, kind, data in found:
            if kind == SO_TIMESTAMPING:
                seconds, rest = _STAMP.unpack_from(data)
                return int(seconds * 1_000_000_000 + rest) - self._clock.ahead
        return time.monotonic_ns()


def _ask_for_stamps(sock: _socket.socket, *, fresh: bool) -> bool:
    """Ask the kernel for stamps; returns whether sent bytes get them.  Received ones always do.

    `fresh`: nothing was sent yet.  If the shadow has just reset the connection, the kernel counts no bytes (EINVAL, as
    before Linux 6.2 for `_FROM_HERE`); the next `send` reports that.
    """
    for options, stamped in ((_OPTIONS | _FROM_HERE, True), (_OPTIONS, fresh)):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, options)
            return stamped
    return False


def _round_trips(sock: _Socket) -> tuple[int, int]:
    """Round-trip times in nanoseconds (smoothed, least); 0: not known."""
    info = bytes(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_MIN_RTT + 4))
    smoothed, least = (
        int.from_bytes(info[at : at + 4], sys.byteorder) * 1000 for at in (TCP_INFO_RTT, TCP_INFO_MIN_RTT)
    )
    return smoothed, least if least < UNKNOWN_NS else 0
