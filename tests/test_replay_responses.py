# SPDX-License-Identifier: Apache-2.0
"""Responses of a real socket are read, counted and thrown away."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tapmirror.framing import HeadMemory as Heads
from tapmirror.framing import ResponseFramer
from tapmirror.ledger import Ledger
from tapmirror.replay.lane import Lane, QueueMemory
from tapmirror.replay.responses import DISCARD_BYTES, LAZY_BYTES, LOOK_BYTES, Responses, wake_for


class Pair:
    """A lane connected to a shadow, both here."""

    def __init__(self, *, http: bool, paced: bool = False) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.shadow = socket.create_connection(listener.getsockname())
            self.sock, _ = listener.accept()
        self.ledger = Ledger()
        self.responses = Responses(self.ledger, paced=paced)
        self.lane = Lane(1, http, QueueMemory(1000, 1000), self.ledger)
        self.lane.attach(self.sock, ResponseFramer(LOOK_BYTES, Heads(LOOK_BYTES)) if http else None)

    def lowat(self) -> int:
        """How many bytes wake us."""
        return self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)

    def close(self) -> None:
        self.shadow.close()
        self.sock.close()


@pytest.fixture
def http() -> Iterator[Pair]:
    pair = Pair(http=True)
    yield pair
    pair.close()


@pytest.fixture
def raw() -> Iterator[Pair]:
    pair = Pair(http=False, paced=True)
    yield pair
    pair.close()


def test_bytes_of_raw_are_not_copied(raw: Pair) -> None:
    raw.shadow.sendall(b"answer")
    assert raw.responses.read_raw(raw.sock) == (DISCARD_BYTES, 6)
    assert b"answer" not in raw.responses._waste
    raw.shadow.close()
    assert raw.responses.read_raw(raw.sock)[1] == 0


def test_statuses_are_counted_and_bodies_skipped(http: Pair) -> None:
    assert http.lane.framer is not None
    http.lane.framer.expect(0)
    http.shadow.sendall(b"HTTP/1.1 404 No\r\nContent-Length: 1000\r\n\r\n")
    assert http.responses.read_http(http.lane, http.sock)[0] == LOOK_BYTES
    http.shadow.sendall(bytes(1000))
    assert http.responses.read_http(http.lane, http.sock) == (1000, 1000)  # not a byte beyond the body
    assert http.ledger.responses == {"4xx": 1}
    assert http.lane.framer.outstanding == 0


def test_a_response_that_ends_the_connection_stops_the_fast_path(http: Pair) -> None:
    assert http.lane.framer is not None
    http.lane.framer.expect(0)
    http.lane.ready = True
    http.shadow.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    http.responses.read_http(http.lane, http.sock)
    assert not http.lane.ready


def test_garbage_is_counted(http: Pair) -> None:
    assert http.lane.framer is not None
    http.lane.framer.expect(0)
    http.shadow.sendall(b"\0\xff nothing of HTTP\r\n\r\n")
    http.responses.read_http(http.lane, http.sock)
    assert http.ledger.responses["garbage"] == 1


def test_a_busy_connection_wakes_us_rarely(http: Pair) -> None:
    http.responses.settle_in(http.lane)
    assert (http.lane.lazy, http.lowat()) == (True, LAZY_BYTES)
    assert http.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    wake_for(http.lane, 1)
    assert (http.lane.lazy, http.lowat()) == (False, 1)


def test_but_not_where_each_response_is_waited_for(raw: Pair) -> None:
    raw.responses.settle_in(raw.lane)
    assert (raw.lane.lazy, raw.lowat()) == (False, 1)
