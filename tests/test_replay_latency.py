# SPDX-License-Identifier: Apache-2.0
"""Times of the shadow's responses: which requests are timed, by a clock that the test turns.

`test_replay_drain` has the same over real sockets.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tapmirror.framing import ResponseFramer
from tapmirror.framing.memory import HeadMemory as Heads
from tapmirror.histogram import Histogram
from tapmirror.ledger import Ledger
from tapmirror.replay.lane import Lane, QueueMemory
from tapmirror.replay.latency import LAZY, NEW, Timing
from tapmirror.replay.responses import LAZY_BYTES, wake_for

RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Rig:
    """One connection and what is timed on it."""

    def __init__(self, sock: socket.socket) -> None:
        self.times = Histogram()
        self.timing = Timing(self.times)
        self.sock = sock
        self.lane = Lane(1, True, QueueMemory(1, 1), Ledger())
        self.connect()

    def connect(self) -> None:
        self.lane.attach(self.sock, ResponseFramer(1000, Heads(1 << 20)))

    def send(self, now: float) -> None:
        assert self.lane.framer is not None
        self.lane.framer.expect(0)
        self.lane.sent += 1
        if not self.lane.timed:
            self.timing.begin(self.lane, now)

    def read(self, data: bytes, now: float) -> None:
        assert self.lane.framer is not None
        self.lane.framer.feed(data)
        if self.lane.timed:
            self.timing.end(self.lane, now)

    def wakes_for(self) -> int:
        return self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)


@pytest.fixture
def rig() -> Iterator[Rig]:
    with socket.socket() as sock:
        yield Rig(sock)


def test_a_response_in_two_pieces_has_come_with_the_second(rig: Rig) -> None:
    rig.send(10.0)
    rig.read(RESPONSE[:30], 10.25)
    assert rig.times.snapshot()["count"] == 0
    rig.read(RESPONSE[30:], 10.5)
    assert rig.times.snapshot() == {"count": 1, "sum_s": 0.5, "buckets": {"0.5": 1}}
    rig.send(11.0)
    rig.read(RESPONSE, 11.004)
    assert rig.times.snapshot()["count"] == 2


def test_of_pipelined_requests_one_is_timed_and_by_its_own_response(rig: Rig) -> None:
    rig.send(1.0)
    rig.read(RESPONSE, 1.5)
    rig.send(2.0)
    rig.send(2.5)
    rig.send(2.75)
    rig.read(RESPONSE * 2, 3.0)
    assert rig.times.snapshot() == {"count": 2, "sum_s": 1.5, "buckets": {"0.5": 1, "1": 1}}
    rig.send(4.0)  # behind one that is not answered
    rig.read(RESPONSE, 4.25)
    assert rig.times.snapshot()["count"] == 2
    rig.read(RESPONSE, 4.5)
    assert rig.times.snapshot() == {"count": 3, "sum_s": 2.0, "buckets": {"0.5": 2, "1": 1}}


def test_what_is_lost_or_no_response_is_no_time(rig: Rig) -> None:
    rig.send(1.0)
    rig.connect()  # the shadow had closed
    rig.send(9.0)
    rig.read(RESPONSE, 9.5)
    assert rig.times.snapshot()["sum_s"] == 0.5
    rig.send(10.0)
    rig.read(b"nonsense\r\n", 11.0)
    assert rig.times.snapshot()["count"] == 1


def test_a_busy_connection_is_woken_for_what_is_timed_and_seldom(rig: Rig) -> None:
    wake_for(rig.lane, LAZY_BYTES)
    for i in range(LAZY * 2):
        now = 1.0 + i / 1000
        rig.send(now)
        timed = i < LAZY
        assert bool(rig.lane.timed) == timed and rig.wakes_for() == (1 if timed else LAZY_BYTES)
        rig.read(RESPONSE, now)
        assert rig.wakes_for() == LAZY_BYTES and rig.lane.lazy
    assert rig.times.snapshot()["count"] == LAZY
    rig.send(2.5)
    assert rig.lane.timed


def test_an_ended_flow_is_not_made_lazy_again(rig: Rig) -> None:
    wake_for(rig.lane, LAZY_BYTES)
    rig.send(1.0)
    rig.lane.finishing = True
    rig.read(RESPONSE, 1.0)
    assert rig.wakes_for() == 1 and rig.times.snapshot()["count"] == 1


def quick(rig: Rig) -> bool:
    return bool(rig.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK))


def test_where_a_first_request_is_timed_its_response_is_acknowledged_at_once(rig: Rig) -> None:
    """A server that writes head and body apart waits for it (Nagle)."""
    for number in range(NEW + 1):
        rig.connect()
        rig.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        rig.send(10.5)
        assert quick(rig) == (number < NEW)
        rig.read(RESPONSE, 10.5)
    assert rig.times.snapshot()["count"] == NEW
    rig.send(10.6)
    rig.read(RESPONSE, 10.6)
    assert rig.times.snapshot()["count"] == NEW + 1, "the second on a connection is one like any"
    rig.connect()
    rig.send(11.5)
    assert quick(rig)
    rig.read(RESPONSE, 11.5)
    assert rig.times.snapshot()["count"] == NEW + 2
