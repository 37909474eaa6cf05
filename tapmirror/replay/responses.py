# SPDX-License-Identifier: Apache-2.0
"""The shadow's responses: read and discarded.

Raw responses are discarded in the kernel (`MSG_TRUNC`, tcp(7)), HTTP responses are framed for their status and
their bodies discarded.  A busy connection is woken only for `LAZY_BYTES` of them (`SO_RCVLOWAT`).
"""

from __future__ import annotations

import _socket
import socket
from typing import Final

from tapmirror.events import Buffer
from tapmirror.ledger import Ledger
from tapmirror.replay.lane import Lane
from tapmirror.replay.tls import TlsSocket

LAZY_BYTES: Final = 16_384
"""Bytes of responses that wake the loop on a busy connection: some twenty small ones, far less than a receive
buffer."""
LOOK_BYTES: Final = 24_576
"""Bytes of a read that are inspected: rarely more is there, and the worst content takes 15 ms."""
DISCARD_BYTES: Final = 1 << 20
"""Bytes of a read that are discarded."""

_CLASSES: Final = ["other", "1xx", "2xx", "3xx", "4xx", "5xx", "other", "other", "other", "other"]


class Responses:
    """Reads of all connections to one shadow.  `paced`: their time and size matter (pacing `wait`)."""

    __slots__ = ("_buffer", "_counts", "_paced", "_view", "_waste")

    def __init__(self, ledger: Ledger, *, paced: bool) -> None:
        self._counts = ledger.responses
        self._paced = paced
        self._buffer = bytearray(LOOK_BYTES)
        self._view = memoryview(self._buffer)
        self._waste = bytearray(DISCARD_BYTES)

    def read_raw(self, sock: _socket.socket | TlsSocket) -> tuple[int, int]:
        """Read and discard; returns (bytes asked for, bytes read).  Raises what `recv_into` does."""
        return DISCARD_BYTES, sock.recv_into(self._waste, DISCARD_BYTES, socket.MSG_TRUNC)

    def read_http(self, lane: Lane, sock: _socket.socket | TlsSocket) -> tuple[int, int]:
        """Read and frame, and discard bodies; returns (bytes asked for, bytes read).  Raises what `recv_into` does."""
        framer = lane.framer
        assert framer is not None
        skippable = framer.skippable()
        if skippable:
            asked = min(skippable, DISCARD_BYTES)
            count = sock.recv_into(self._waste, asked, socket.MSG_TRUNC)
            framer.skip(count)
            return asked, count
        count = sock.recv_into(self._buffer, LOOK_BYTES)
        if count:
            self.take(lane, self._view[:count])
        return LOOK_BYTES, count

    def take(self, lane: Lane, data: Buffer) -> None:
        """Frame and count what was read of HTTP responses."""
        framer = lane.framer
        assert framer is not None
        statuses = framer.feed(data)
        if len(statuses) > 1 and statuses.count(statuses[0]) == len(statuses):
            self._counts[_CLASSES[statuses[0] // 100]] += len(statuses)
        else:
            for status in statuses:
                self._counts[_CLASSES[status // 100]] += 1
        if framer.closing:
            lane.ready = False
        if framer.failed:
            self._counts["garbage"] += 1

    def settle_in(self, lane: Lane) -> None:
        """Set options that are worth their system calls only on a connection that lasts."""
        lane.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # type: ignore[union-attr]
        if lane.observer is not None:
            lane.observer.settled = not self._paced
        # Those that finish or switch are to wake us.
        if not self._paced and lane.observing is None and not (lane.finishing or lane.switching):
            wake_for(lane, LAZY_BYTES)


def wake_for(lane: Lane, size: int) -> None:
    """Let the socket wake the loop only when `size` bytes can be read."""
    lane.lazy = size > 1
    lane.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)  # type: ignore[union-attr]


def acknowledge_at_once(sock: _socket.socket | TlsSocket) -> None:
    """Acknowledge the next packet at once.  Sending resets this (tcp_event_data_sent), so call it afterwards."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
