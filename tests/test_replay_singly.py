# SPDX-License-Identifier: Apache-2.0
"""A shadow that loses what is sent ahead of its responses: when requests go one by one, and for how long."""

from __future__ import annotations

import select
import socket
import time
from typing import Final

import pytest

from lab import PATIENCE
from replay_bench import CLOSE, GET, KEEP, OK, RESET, Bench
from tapmirror.events import START, Abort, DropReason, Excuse, Open
from tapmirror.ledger import UNANSWERED_ALIKE
from tapmirror.replay.lane import AHEAD
from tapmirror.replay.reactor import LAZY_AFTER
from tapmirror.replay.resend import RESEND_BYTES
from tapmirror.replay.singly import LASTS, TOGETHER
from tapmirror.spec import Limits, Pacing

WAIT = Limits().wait_time


LARGE: Final = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % RESEND_BYTES + bytes(RESEND_BYTES)
"""A request that does not go again when the shadow ends the connection with notice before it."""


def lose(
    bench: Bench, flow: int, end: bytes = b"", *, last: bytes = GET % 2, reset: bool = False, excused: bool = False
) -> None:
    """A connection whose shadow leaves the last of three requests unanswered; `end`: the response to the second;
    `excused`: production leaves it, too.
    """
    sock = bench.open(flow)
    bench.send(flow, GET % 1)
    bench.send(flow, last)
    bench.read(sock, len(GET % 1) + len(last))
    sock.sendall(end or OK)
    bench.iterate()
    if excused:
        bench.give(Excuse(flow))
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()
    bench.iterate()


def waits(bench: Bench, flow: int) -> bool:
    """Whether a request waits on a new connection for the response to the one before, and goes behind it."""
    sock = bench.open(flow)
    bench.send(flow, GET % 1)
    bench.send(flow, GET % 2)
    assert bench.read(sock, len(GET % 1)) == GET % 1
    bench.iterate()
    held = not select.select([sock], [], [], 0.3)[0]  # the kernel keeps a small packet back, too (Nagle)
    sock.sendall(OK)
    bench.iterate()
    assert bench.read(sock, len(GET % 2)) == GET % 2
    sock.sendall(OK)
    bench.iterate()
    return held


def only_the_first_went(bench: Bench, flow: int, count: int) -> socket.socket:
    """A new connection on which so many requests go one by one, and none was answered yet."""
    sock = bench.open(flow)
    for number in range(count):
        bench.send(flow, GET % number)
    assert bench.read(sock, len(GET % 0)) == GET % 0
    return sock


def exchange(bench: Bench, flow: int, sock: socket.socket, count: int) -> None:
    """Requests that are answered one after the other."""
    for number in range(count):
        bench.send(flow, GET % number)
        bench.read(sock, len(GET % number))
        sock.sendall(KEEP)
        bench.iterate()


@pytest.mark.parametrize("reset", [False, True])
def test_after_two_losses_requests_go_one_by_one_for_a_while(bench: Bench, reset: bool) -> None:
    lose(bench, 1, reset=reset)
    assert not waits(bench, 2)
    lose(bench, 3, reset=reset)
    assert waits(bench, 4)
    assert bench.ledger.events["singly"] == 1
    bench.iterate(LASTS / 2)
    assert waits(bench, 5)
    bench.iterate(LASTS / 2 + 1)
    assert not waits(bench, 6)
    assert bench.dropped() == {}
    assert bench.ledger.responses["unanswered"] == 2


def test_one_loss_at_a_time_is_an_accident(bench: Bench) -> None:
    lose(bench, 1)
    bench.iterate(TOGETHER + 1)
    lose(bench, 2)
    assert not waits(bench, 3)


@pytest.mark.parametrize(
    "begun", [b"HTTP/1.1 200 OK\r\nDate", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"]
)
def test_a_response_that_breaks_off_is_no_loss(bench: Bench, begun: bytes) -> None:
    """So errors show that a version meets in the midst of one."""
    for flow in range(1, 4):
        lose(bench, flow, OK + begun)
    assert bench.ledger.responses["unanswered"] == 3
    assert not bench.ledger.events["singly"]


def test_a_response_up_to_the_end_of_the_connection_is_whole(bench: Bench) -> None:
    """And what came behind it was lost, after another number of requests each time."""
    for flow, before in ((1, 1), (2, 3), (3, 5)):
        sock = bench.open(flow)
        exchange(bench, flow, sock, before)
        bench.send(flow, GET % 1)
        bench.send(flow, LARGE)
        bench.read(sock, len(GET % 1) + len(LARGE))
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\nno")
        bench.iterate()
        sock.close()
        bench.iterate()
    assert bench.ledger.events["singly"] == 1


def test_what_production_leaves_unanswered_too_is_no_loss(bench: Bench) -> None:
    """As nginx's `return 444`, at once behind a response."""
    for flow in range(1, 4):
        lose(bench, flow, excused=True)
    assert bench.ledger.events[UNANSWERED_ALIKE] == 3
    assert not bench.ledger.events["singly"]


def test_an_end_that_is_foreseen_is_no_loss(bench: Bench) -> None:
    """A shadow that gives notice after so many requests is met by waiting there."""
    lose(bench, 1, CLOSE, last=LARGE)
    for flow in (2, 3):
        sock = bench.open(flow)
        bench.send(flow, GET % 1)
        bench.send(flow, GET % 2)
        bench.read(sock, len(GET % 1))
        sock.sendall(CLOSE)
        again = bench.accept()
        assert bench.read(again, len(GET % 2)) == GET % 2
        again.sendall(OK)
        bench.iterate()
    assert bench.ledger.responses["unanswered"] == 1
    assert not bench.ledger.events["singly"]


def test_closes_with_notice_that_come_after_another_number_are_losses(bench: Bench) -> None:
    """As where errors close the connection, lighttpd's to bodies that it does not want."""
    lose(bench, 1, CLOSE, last=LARGE)  # after two
    for flow, before in ((2, 3), (3, 5)):
        sock = bench.open(flow)
        exchange(bench, flow, sock, before)
        bench.send(flow, GET % 1)
        bench.send(flow, LARGE)
        bench.read(sock, len(GET % 1) + len(LARGE))
        sock.sendall(CLOSE)
        bench.iterate()
        sock.close()
        bench.iterate()
    assert bench.ledger.events["singly"] == 1


def test_what_goes_again_is_no_loss(bench: Bench) -> None:
    """As `test_closes_with_notice_that_come_after_another_number_are_losses`, of requests that are not too large."""
    for flow, before in ((1, 1), (2, 3), (3, 5), (4, 2)):
        sock = bench.open(flow)
        exchange(bench, flow, sock, before)
        bench.send(flow, GET % 1)
        bench.send(flow, GET % 2)
        bench.read(sock, len(GET % 1) * 2)
        sock.sendall(CLOSE)
        sock.close()
        again = bench.accept()
        assert bench.read(again, len(GET % 2)) == GET % 2
        again.sendall(OK)
        bench.iterate()
    assert not bench.ledger.responses["unanswered"]
    assert not bench.ledger.events["singly"]


def test_a_request_that_went_alone_was_not_sent_ahead(bench: Bench) -> None:
    """A shadow that breaks off behind single requests would be waited for without end."""
    lose(bench, 1)
    lose(bench, 2)
    for flow in range(3, 6):
        sock = bench.open(flow)
        bench.send(flow, GET % 1)
        bench.read(sock, len(GET % 1))
        sock.close()
        bench.iterate()
    bench.iterate(LASTS + 1)
    lose(bench, 6)
    assert not waits(bench, 7)


@pytest.mark.parametrize("reset", [False, True])
def test_a_request_that_the_end_of_an_idle_connection_met_was_not_sent_ahead(bench: Bench, reset: bool) -> None:
    """All before it was answered, longer ago than a tick of the kernel's clock: servers end idle connections at times
    of their own, and what is on the way then is lost, however requests go.
    """
    for flow in range(1, 4):
        sock = bench.open(flow)
        exchange(bench, flow, sock, 2)
        time.sleep(0.03)
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        bench.send(flow, GET % 3)
        bench.read(sock, len(GET % 3))
        sock.close()
        bench.iterate()
    assert bench.ledger.responses["unanswered"] == 3
    assert not bench.ledger.events["singly"]


def test_a_request_is_sent_ahead_though_a_part_of_another_went_long_after(bench: Bench) -> None:
    """What went last, and after which nothing came, is not the one that was lost."""
    for flow in (1, 2):
        sock = bench.open(flow)
        bench.send(flow, GET % 1)
        bench.send(flow, GET % 2)
        bench.read(sock, len(GET % 1) * 2)
        sock.sendall(OK)
        bench.iterate()
        time.sleep(0.03)  # some ticks of the kernel's clock
        bench.send(flow, b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc", START)
        bench.reactor.push()
        assert select.select([sock], [], [], PATIENCE)[0]
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()
        bench.iterate()
    assert bench.ledger.events["singly"] == 1


def test_a_busy_connection_that_stands_goes_one_by_one_too(bench: Bench) -> None:
    """Its responses wake us then, and not the sweep alone."""
    sock = bench.open(1)
    for number in range(LAZY_AFTER):
        bench.send(1, GET % number)
        bench.read(sock, len(GET % number))
        sock.sendall(OK)
    bench.iterate(1.1)
    (lane,) = bench.reactor._by_fd.values()
    assert lane.lazy
    lose(bench, 2)
    lose(bench, 3)
    for number in range(3):
        bench.send(1, GET % number)
    for number in range(3):
        assert bench.read(sock, len(GET % number)) == GET % number
        assert not select.select([sock], [], [], 0)[0]
        sock.sendall(OK)
    bench.iterate()
    assert lane.framer is not None and not lane.framer.outstanding


def test_who_is_far_behind_does_not_wait(bench: Bench) -> None:
    """Else a shadow at the end of a long way would be sent ever less of what production gets."""
    lose(bench, 1)
    lose(bench, 2)
    sock = bench.open(3)
    for _ in range(AHEAD + 10):
        bench.send(3, GET % 1)
    assert bench.read(sock, len(GET % 1) * 11) == (GET % 1) * 11
    bench.iterate()
    assert not select.select([sock], [], [], 0)[0]


def test_an_accident_before_any_response_tells_nothing(bench: Bench) -> None:
    for flow in range(1, 5):
        sock = bench.open(flow)
        sock.close()
        bench.iterate()
    for flow in range(5, 8):
        bench.give(Open(flow, True))
        bench.send(flow, GET % 1)
        bench.send(flow, GET % 2)
        sock = bench.accept()
        bench.read(sock, len(GET % 1) * 2)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()
        bench.iterate()
    assert not bench.ledger.events["singly"]


def test_a_body_up_to_the_end_is_a_response(bench: Bench) -> None:
    """Whatever number it comes after: nothing is lost by it."""
    for flow, before in ((1, 1), (2, 3), (3, 5), (4, 2)):
        sock = bench.open(flow)
        exchange(bench, flow, sock, before)
        bench.send(flow, GET % 0)
        bench.read(sock, len(GET % 0))
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nsome")
        bench.iterate()
        sock.close()
        bench.iterate()
    assert bench.ledger.responses["unanswered"] == 0
    assert not bench.ledger.events["singly"]


def test_who_fills_the_room_does_not_wait(bench: Bench) -> None:
    """Bodies reach the bound in bytes long before so many parts are queued; they would be dropped there."""
    lose(bench, 1)
    lose(bench, 2)
    sock = bench.open(3)
    post = b"POST / HTTP/1.1\r\nContent-Length: 10000\r\n\r\n" + bytes(10_000)
    taken = 0
    for _ in range(60):
        for _ in range(10):
            bench.send(3, post)
        bench.iterate()
        while select.select([sock], [], [], 0)[0]:
            taken += len(sock.recv(1 << 20))
    assert bench.dropped() == {}
    assert taken > 300 * len(post)


def test_after_a_response_that_cannot_be_read_nobody_waits(bench: Bench) -> None:
    lose(bench, 1)
    lose(bench, 2)
    sock = bench.open(3)
    bench.send(3, GET % 0)
    bench.read(sock, len(GET % 0))
    sock.sendall(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\nContent-Length: 0\r\n\r\n")
    bench.iterate()
    for number in range(3):
        bench.send(3, GET % number)
        bench.iterate()
        assert bench.read(sock, len(GET % number)) == GET % number


def test_nobody_waits_for_longer_than_a_response_is_worth(bench: Bench) -> None:
    """A long poll that production answered and the shadow does not: all goes on, until the responses have come."""
    lose(bench, 1)
    lose(bench, 2)
    sock = only_the_first_went(bench, 3, 4)
    bench.iterate(WAIT - 0.5)
    assert not select.select([sock], [], [], 0.1)[0]
    bench.iterate(1.5)
    assert bench.read(sock, 3 * len(GET % 0)) == b"".join(GET % number for number in range(1, 4))
    sock.sendall(4 * OK)
    bench.iterate()
    for number in range(2):
        bench.send(3, GET % number)
    assert bench.read(sock, len(GET % 0)) == GET % 0
    assert not select.select([sock], [], [], 0.1)[0]


def test_with_pacing_there_is_nothing_to_learn() -> None:
    with Bench(pacing=Pacing.WAIT) as bench:
        for flow in range(1, 4):
            lose(bench, flow)
        assert not bench.ledger.events["singly"]


@pytest.mark.parametrize("over", [False, True])
def test_responses_that_are_seen_as_a_request_is_given_up_let_the_others_go(bench: Bench, over: bool) -> None:
    lose(bench, 1)
    lose(bench, 2)
    sock = only_the_first_went(bench, 3, 2)
    bench.send(3, b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n", START)
    sock.sendall(OK)
    bench.give(Abort(3, DropReason.INCOMPLETE, over))
    assert bench.read(sock, len(GET % 1)) == GET % 1
    assert bench.dropped() == {DropReason.INCOMPLETE: 1}
