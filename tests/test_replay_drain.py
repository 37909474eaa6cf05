# SPDX-License-Identifier: Apache-2.0
"""Responses are read under a reactor, from real sockets: when, how much, and what their end means."""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
import struct
import termios
import time
from collections import Counter
from typing import Any

import pytest

from lab import PATIENCE, until
from replay_bench import CLOSE, GET, OK, POST, RESET, WHOLE, Bench
from tapmirror.compare.pairing import Conversation
from tapmirror.events import END, START, Open, Send
from tapmirror.exchange import Asked
from tapmirror.framing.response_content import ReaderBounds, ResponseMemory
from tapmirror.replay import drain
from tapmirror.replay.observer import Clock
from tapmirror.replay.observers import Observers
from tapmirror.replay.reactor import LAZY_AFTER
from tapmirror.replay.responses import LOOK_BYTES
from test_compare_pairing import Outcomes
from test_replay_observer import Talk


def _ask(bench: Bench, number: int) -> None:
    bench.give(Send(1, memoryview(GET % number), len(GET % number), WHOLE, number=number))


def _arrived(bench: Bench) -> None:
    """The kernel of a busy machine may take its time, on loopback too."""
    (lane,) = bench.reactor._lanes.values()
    assert lane.sock is not None
    assert select.select([lane.sock], [], [], PATIENCE)[0]


def test_what_was_answered_before_a_connection_broke_counts_where_a_request_finds_it_broken(bench: Bench) -> None:
    """As where its end is found by an event.  Among it is the notice by which the next end is foreseen."""
    sock = bench.open()
    for number in range(LAZY_AFTER):
        bench.send(1, GET % number)
        bench.read(sock, len(GET % number))
    sock.sendall(OK * (LAZY_AFTER - 1) + CLOSE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()
    _arrived(bench)
    bench.send(1, GET % 1)
    again = bench.accept()
    assert bench.read(again, len(GET % 1)) == GET % 1
    assert bench.ledger.responses == {"2xx": 1 + LAZY_AFTER}
    for number in range(LAZY_AFTER):
        bench.send(1, GET % number)
    bench.send(1, GET % 2)  # after so many it waits
    assert bench.read(again, len(GET % 1) * LAZY_AFTER)
    bench.iterate()
    assert not select.select([again], [], [], 0)[0]
    again.sendall(OK * (1 + LAZY_AFTER))
    bench.iterate()


@pytest.mark.parametrize("timed", [True, False])
def test_what_was_answered_is_read_before_a_timed_request_goes(timed: bool) -> None:
    """Clients that ask as fast as production answers have many requests in one turn: each response has its own
    stamp.
    """
    talk: Any = Talk()
    talk.timed = timed
    with Bench(observers=Observers({1: talk}.get, 0, Clock(), Counter())) as bench:
        bench.give(Open(1, True))
        _ask(bench, 1)
        sock = bench.accept()
        for number in (2, 3, 4):
            bench.read(sock, len(GET % number))
            sock.sendall(OK)
            _arrived(bench)
            _ask(bench, number)
        assert [data for data, _ in talk.responses] == [OK] * 3 * timed
        if timed:
            assert talk.responses[0][1] < talk.stamps[2] < talk.responses[1][1] < talk.stamps[3] < talk.responses[2][1]


@pytest.mark.parametrize("end", ["said", "reset"])
def test_what_that_finds_to_be_closed_is_not_sent_on(end: str) -> None:
    talk: Any = Talk()
    with Bench(observers=Observers({1: talk}.get, 0, Clock(), Counter())) as bench:
        bench.give(Open(1, True))
        _ask(bench, 1)
        sock = bench.accept()
        bench.read(sock, len(GET % 1))
        if end == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        else:
            sock.sendall(OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"))
        sock.close()
        _arrived(bench)
        _ask(bench, 2)
        assert bench.read(bench.accept(), len(GET % 2)) == GET % 2


def test_responses_are_timed_on_new_connections_and_on_busy_ones(bench: Bench) -> None:
    """Connecting is not in a time; one request of a connection at a time; a busy one is woken for what is timed."""
    bench.give(Open(1, True))
    bench.send(1, GET % 0)
    bench.now += 10.0  # it connects
    sock = bench.accept()
    for number in range(12):
        if number:
            bench.send(1, GET % number)
        bench.read(sock, len(GET % number))
        bench.now += 0.25
        sock.sendall(OK)
        bench.timed(number + (number < LAZY_AFTER - 1))  # the one with which it becomes lazy is not
    assert bench.ledger.latency.snapshot() == {"count": 11, "sum_s": 2.75, "buckets": {"0.3": 11}}


def test_a_response_is_timed_also_where_the_shadow_closes_after_it(bench: Bench) -> None:
    sock = bench.open()
    bench.send(1, POST, START)
    bench.now += 5.0  # the client takes its time
    bench.send(1, b"xy", END)
    bench.read(sock, 40)
    bench.now += 0.5
    sock.sendall(OK)
    sock.close()
    bench.timed(2)
    assert bench.ledger.latency.snapshot()["buckets"]["0.5"] == 1


@pytest.mark.parametrize(
    "response",
    [
        b"\0\xff garbage " * 10_000,
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 1_000_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 50_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n" + bytes(1_000_000),
        OK * 3,
        b"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000,
    ],
    ids=["garbage", "endless head", "chunks", "length", "long body", "too many", "status", "interim"],
)
def test_responses_are_discarded_whatever_they_are(bench: Bench, response: bytes) -> None:
    sock = bench.open()
    bench.send(1, GET % 1)
    bench.read(sock, len(GET % 1))
    sock.setblocking(False)
    left = memoryview(response)
    end = time.monotonic() + 60
    with contextlib.suppress(ConnectionError):
        while left and time.monotonic() < end:
            with contextlib.suppress(BlockingIOError):
                left = left[sock.send(left) :]
            bench.iterate(0.6)
    assert not left or _is_over(sock)
    bench.send(1, GET % 2)
    bench.iterate()
    assert bench.ledger.requests.mirrored + bench.reactor.held()[1] == 3


def _is_over(sock: socket.socket) -> bool:
    """The other side closed."""
    try:
        sock.send(b"x")
    except OSError:
        return True
    return False


def _unread(bench: Bench) -> list[int]:
    """Bytes that wait in each connection's socket."""
    found: list[int] = []
    for lane in bench.reactor._lanes.values():
        found += struct.unpack("i", fcntl.ioctl(lane.fd, termios.FIONREAD, bytes(4)))
    return found


def test_responses_take_a_bounded_part_of_a_turn_and_connections_take_turns(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of one byte take 40 ms for each 64 KiB: the capture would wait for a hostile shadow."""
    monkeypatch.setattr(drain, "TURN_TIME", 1e-9)  # a read takes longer than that
    flood = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 5_000
    socks = [bench.open(flow) for flow in range(1, 7)]
    for flow, sock in enumerate(socks, 1):
        bench.send(flow, GET % 1)
        bench.read(sock, len(GET % 1))
    for sock in socks:
        sock.sendall(flood)
    until(lambda: sum(_unread(bench)) == 6 * len(flood), "all at the reactor's sockets")

    left, turns = _unread(bench), 0
    while sum(left):
        bench.reactor.run_once(0.0, lambda: bench.now)
        before, left = left, _unread(bench)
        turns += 1
        assert sum(before) - sum(left) <= LOOK_BYTES
        assert turns < 100
        if turns == 12:
            assert max(left) < len(flood), "each had its turn"
    for _ in socks:
        bench.reactor.run_once(0.0, lambda: bench.now)
    assert not bench.reactor.unread


TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize("end", ["read before", "found by sending", "found by sending the first"])
def test_the_word_about_an_idle_connection_is_compared_with_nothing(end: str) -> None:
    """Of the request that finds it nothing went: it is asked again, and what answers it then is its response."""
    outcomes = Outcomes()
    talk = Conversation(
        ReaderBounds(head_bytes=4096, hash_bytes=1 << 20, awaited=100), ResponseMemory(1 << 20), outcomes, False
    )

    def ask(number: int) -> None:
        asked = Asked(number, b"GET", b"/", b"GET / HTTP/1.1\r\n\r\n")
        talk.request(asked, 0, 100, bench.now)
        talk.chosen(0, number)
        talk.decided(number)
        talk.request_ended(number, 1)
        talk.production_data(OK, 2)
        _ask(bench, number)

    with Bench(observers=Observers({1: talk}.get, 0, Clock(), Counter())) as bench:
        bench.give(Open(1, True))
        if end == "found by sending the first":
            bench.send(1, GET % 0)  # which is not compared
            sock = bench.accept()
            bench.read(sock, len(GET % 0))
            sock.sendall(OK)
            bench.iterate()
        else:
            ask(1)
            sock = bench.accept()
            bench.read(sock, len(GET % 1))
            sock.sendall(OK)
            bench.until(lambda: len(outcomes.pairs) == 1)
        sock.sendall(TIMEOUT)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        if end == "read before":
            bench.iterate()
        sock.close()
        (lane,) = bench.reactor._lanes.values()
        assert select.select([lane.fd], [], [], PATIENCE)[0] if lane.fd >= 0 else end == "read before"
        ask(2)
        again = bench.accept()
        assert bench.read(again, len(GET % 2)) == GET % 2
        again.sendall(OK)
        bench.until(lambda: 2 in [pair.asked.number for pair in outcomes.pairs])
        assert bench.ledger.responses == {"2xx": 2}
    assert {delivery.response.status for pair in outcomes.pairs for delivery in pair.deliveries.values()} == {200}
    assert [pair.left_out for pair in outcomes.pairs] == [{}] * len(outcomes.pairs)
    assert outcomes.lost == []
