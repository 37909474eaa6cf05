# SPDX-License-Identifier: Apache-2.0
"""Sockets begin and are closed under a reactor, and what is learnt of those that were."""

from __future__ import annotations

import contextlib
import resource
import select
import socket
from collections.abc import Sequence

import pytest

from lab import PATIENCE
from replay_bench import CLOSE, GET, KEEP, OK, POST, RESET, WHOLE, Bench
from tapmirror.events import END, LOOP_DSCP, START, DropReason, Finish, Open
from tapmirror.replay.reactor import LAZY_AFTER


def test_what_is_sent_bears_the_mark_of_a_tap(bench: Bench) -> None:
    bench.open()
    lane = next(iter(bench.reactor._by_fd.values()))
    assert lane.sock is not None
    assert lane.sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == LOOP_DSCP << 2


def served(bench: Bench, flow: int, responses: Sequence[bytes]) -> socket.socket:
    """A connection whose requests are answered, one after the other."""
    bench.give(Open(flow, True))
    sock = None
    for response in responses:
        bench.send(flow, GET % 0)
        sock = sock or bench.accept()
        bench.read(sock, len(GET % 0))
        sock.sendall(response)
        bench.iterate()
    assert sock is not None
    return sock


@pytest.mark.parametrize("allowed", [1, 3, LAZY_AFTER + 2])
@pytest.mark.parametrize("way", ["whole", "in parts"])
def test_what_follows_waits_where_the_shadow_closed_before(bench: Bench, allowed: int, way: str) -> None:
    """It would be sent to a connection that is about to be closed, and lost."""
    responses = [KEEP] * (allowed - 1) + [CLOSE]
    served(bench, 1, responses).close()
    bench.iterate()
    sock = served(bench, 2, responses[:-1]) if allowed > 1 else None
    parts = [(POST, START), (b"xy", END)] if way == "in parts" else [(GET % 1, WHOLE)]
    data = b"".join(piece for piece, _ in parts)
    if allowed == 1:
        bench.give(Open(2, True))
    for piece, flags in parts:
        bench.send(2, piece, flags)
    sock = sock or bench.accept()
    assert bench.read(sock, len(data)) == data
    bench.send(2, GET % 2)
    bench.iterate()
    assert not select.select([sock], [], [], 0.05)[0]
    sock.sendall(CLOSE)
    other = bench.accept()
    assert bench.read(other, len(GET % 2)) == GET % 2
    assert bench.ledger.responses["unanswered"] == 0


def test_what_follows_waits_no_more_where_the_shadow_goes_on(bench: Bench) -> None:
    served(bench, 1, [KEEP, CLOSE]).close()
    bench.iterate()
    sock = served(bench, 2, [KEEP])
    bench.send(2, GET % 1)
    bench.send(2, GET % 2)
    assert bench.read(sock, len(GET % 1)) == GET % 1
    assert not select.select([sock], [], [], 0.05)[0]
    sock.sendall(KEEP)  # it was the second one, and it is not closed
    assert bench.read(sock, len(GET % 2)) == GET % 2
    sock.sendall(KEEP)
    bench.iterate()
    bench.give(Finish(2))
    bench.iterate(1.1)
    sock = served(bench, 3, [KEEP])
    bench.send(3, GET % 1)
    bench.send(3, GET % 2)
    assert bench.read(sock, len(GET % 1 + GET % 2)) == GET % 1 + GET % 2


def test_a_connection_that_was_idle_for_too_long_is_left_and_teaches_nothing(bench: Bench) -> None:
    """A 408 that nobody asked for (RFC 9110, 15.5.9) is no response, and no limit of requests on a connection."""
    sock = served(bench, 1, [KEEP])
    sock.sendall(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    bench.iterate()
    bench.send(1, GET % 1)  # the end of the connection has not come yet
    bench.send(1, GET % 2)
    other = bench.accept()
    assert bench.read(other, len(GET % 1 + GET % 2)) == GET % 1 + GET % 2
    assert bench.ledger.responses == {"2xx": 1}


def test_a_request_that_did_not_go_does_not_take_the_word_about_an_idle_connection_for_its_response(
    bench: Bench,
) -> None:
    """The end is found by sending, and what came before it is read then."""
    sock = served(bench, 1, [KEEP])
    sock.sendall(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()
    assert select.select([bench.reactor._lanes[1].fd], [], [], PATIENCE)[0]
    for number in range(3):  # none of them waits, as behind the second one that had a response
        bench.send(1, GET % number)
    other = bench.accept()
    assert bench.read(other, len(GET % 1) * 3) == GET % 0 + GET % 1 + GET % 2
    other.sendall(OK * 3)
    bench.iterate()
    assert bench.ledger.responses == {"2xx": 4}


def test_a_response_before_the_end_of_a_request_counts_once_where_the_shadow_closes_behind_it(bench: Bench) -> None:
    """As of a server of HTTP/1.0 that refuses an upload: it allows for one request, not for two."""
    bench.give(Open(1, True))
    bench.send(1, b"POST / HTTP/1.1\r\nContent-Length: 6\r\n\r\nabc", START)
    sock = bench.accept()
    sock.sendall(b"HTTP/1.0 413 Too Large\r\nContent-Length: 0\r\n\r\n")
    bench.until(lambda: bench.ledger.responses["4xx"] == 1)
    sock.close()
    bench.iterate()
    bench.give(Open(2, True))
    bench.send(2, GET % 1)
    bench.send(2, GET % 2)
    sock = bench.accept()
    assert bench.read(sock, len(GET % 1)) == GET % 1
    bench.iterate()
    assert not select.select([sock], [], [], 0.05)[0]


def test_the_limit_of_connections() -> None:
    with Bench(connections=2) as bench:
        bench.open(1), bench.open(2)
        bench.give(Open(3, True))
        bench.send(3, GET % 3)
        assert bench.dropped() == {DropReason.NO_RESOURCES: 1}


def test_no_descriptor_left(bench: Bench) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    bench.give(Open(1, True))
    used = max(int(name) for name in map(str, range(3, 1024)) if _is_open(int(name)))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, before[1]))
    fillers = []
    try:
        with contextlib.suppress(OSError):
            while True:
                fillers.append(socket.socket())
        bench.send(1, GET % 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for filler in fillers:
            filler.close()
    assert bench.dropped() == {DropReason.NO_RESOURCES: 1}


def _is_open(number: int) -> bool:
    try:
        with contextlib.suppress(ValueError):
            select.select([number], [], [], 0)
    except OSError:
        return False
    return True
