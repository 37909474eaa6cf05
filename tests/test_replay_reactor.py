# SPDX-License-Identifier: Apache-2.0
"""The reactor against real sockets: what reaches the shadow, what becomes of the rest, whatever the shadow does."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections import Counter
from typing import Any, Final

import pytest

from replay_bench import GET, OK, POST, WHOLE, Bench, ended
from tapmirror.events import CONNECT, END, NO_BODY, START, TUNNEL, Abort, DropReason, Finish, Open, Send, Turn
from tapmirror.replay.latency import LAZY
from tapmirror.replay.observer import Clock
from tapmirror.replay.observers import Observers
from tapmirror.replay.reactor import LAZY_AFTER
from tapmirror.replay.sweep import OUTSTANDING
from tapmirror.spec import Pacing
from test_replay_observer import Talk

DATA_SEGMENTS: Final = struct.Struct("=156xI")
"""Of struct tcp_info: tcpi_data_segs_out."""


def packets_out(sock: Any) -> int:
    """How many with payload it has sent."""
    (count,) = DATA_SEGMENTS.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, DATA_SEGMENTS.size))
    return int(count)


# --- the usual


def test_requests_go_in_their_order_and_responses_are_counted(bench: Bench) -> None:
    sock = bench.open()
    for number in range(1, 51):
        bench.send(1, GET % number)
    wanted = b"".join(GET % number for number in range(1, 51))
    assert bench.read(sock, len(wanted)) == wanted
    sock.sendall(OK * 50)
    bench.iterate(1.1)  # few bytes on a busy connection are read by the sweep
    assert bench.ledger.responses == {"2xx": 51}
    bench.give(Finish(1))
    bench.iterate()
    assert ended(sock) == "eof"
    assert bench.ledger.requests.mirrored == 51
    assert bench.reactor.idle()


@pytest.mark.parametrize("way", ["whole", "in parts", "queued"])
def test_a_connection_is_busy_after_some_requests_however_they_went(bench: Bench, way: str) -> None:
    """Its responses wake us no more, each of them, and what is sent goes at once."""
    parts = [(POST, START), (b"xy", END)] if way == "in parts" else [(GET % 1, WHOLE)]
    bench.give(Open(1, True))
    found = []
    for number in range(1, LAZY_AFTER + 1):
        for data, flags in parts:
            bench.send(1, data, flags)
        if way == "queued" and number < LAZY_AFTER:
            continue  # it is not connected yet
        sock = bench.socks[0] if bench.socks else bench.accept()
        bench.read(sock, sum(len(data) for data, _ in parts) * (number if way == "queued" else 1))
        (lane,) = bench.reactor._by_fd.values()
        found.append((lane.lazy, bool(lane.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))))  # type: ignore[union-attr]
    assert found == [(False, False)] * (len(found) - 1) + [(True, True)]


@pytest.mark.parametrize("queued", [False, True])
def test_a_connection_whose_responses_are_compared_is_busy_after_as_many(queued: bool) -> None:
    talk: Any = Talk()
    with Bench(observers=Observers({1: talk}.get, 0, Clock(), Counter())) as bench:
        bench.give(Open(1, True))
        for number in range(1, LAZY_AFTER + 1):
            bench.give(Send(1, memoryview(GET % 1), len(GET % 1), WHOLE, number=number))
            if not queued and number == 1:
                bench.accept()
        if queued:
            bench.accept()
        (lane,) = bench.reactor._by_fd.values()
        assert lane.observer is not None and lane.observer.settled


def test_each_flow_has_its_own_connection(bench: Bench) -> None:
    socks = [bench.open(flow) for flow in (1, 2, 3)]
    for flow, sock in enumerate(socks, 1):
        bench.send(flow, GET % flow)
        assert bench.read(sock, len(GET % flow)) == GET % flow
    assert bench.ledger.events["shadow_connects"] == 3


def test_a_body_larger_than_any_buffer_arrives_whole() -> None:
    size = 20 << 20
    with Bench(queue_bytes=size, queues_bytes=size) as bench:
        sock = bench.open()
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size
        body = bytes(range(256)) * (size // 256)
        bench.send(1, head, START)
        for at in range(0, size, 60_000):
            bench.send(1, body[at : at + 60_000], END if at + 60_000 >= size else 0)
        assert bench.reactor.held()[0] > 0
        assert bench.read(sock, len(head) + size) == head + body
        assert bench.ledger.requests.mirrored == 2


def test_parts_of_a_request_fill_packets_together(bench: Bench) -> None:
    """The bytes of a body that no packet is full with wait for the next ones, and nothing for longer than a batch."""
    sock = bench.open()
    (lane,) = bench.reactor._by_fd.values()
    before = packets_out(lane.sock)
    for data, flags in ((POST, START), (b"x", 0), (b"y", END)):
        bench.send(1, data, flags)
    assert packets_out(lane.sock) == before + 1
    assert bench.read(sock, len(POST) + 2) == POST + b"xy"
    bench.send(1, POST, START)
    assert packets_out(lane.sock) == before + 1
    bench.reactor.push()
    assert packets_out(lane.sock) == before + 2
    bench.send(1, b"x", 0)
    bench.reactor.run_once(0.0, lambda: bench.now)
    assert packets_out(lane.sock) == before + 3
    bench.send(1, b"y", END)
    assert packets_out(lane.sock) == before + 4
    assert bench.read(sock, len(POST) + 2) == POST + b"xy"


@pytest.mark.parametrize("http", [False, True])
def test_what_has_no_end_goes_at_once(bench: Bench, http: bool) -> None:
    """Raw bytes, and those of a tunnel."""
    sock = bench.open(http=http)
    (lane,) = bench.reactor._by_fd.values()
    if http:
        bench.send(1, UPGRADE, WHOLE | TUNNEL)
        bench.read(sock, len(UPGRADE))
        sock.sendall(b"HTTP/1.1 101 Switching\r\n\r\n")
        bench.iterate()
        bench.send(1, b"a", 0)
        bench.read(sock, 1)
        sock.sendall(b"z")  # and with it an acknowledgement, which Nagle's algorithm waits for
        bench.iterate()
    before = packets_out(lane.sock)
    bench.send(1, b"b", 0)
    assert packets_out(lane.sock) == before + 1
    assert bench.read(sock, 1) == b"b"


def test_requests_before_the_connection_stands_wait(bench: Bench) -> None:
    bench.give(Open(1, True))
    for number in range(5):
        bench.send(1, GET % number)
    assert bench.reactor.held() == (5 * len(GET % 0), 5)
    sock = bench.accept()
    assert bench.read(sock, 5 * len(GET % 0)) == b"".join(GET % number for number in range(5))


# --- a shadow that leaves


def test_a_response_that_says_close_is_believed(bench: Bench) -> None:
    sock = bench.open()
    bench.send(1, GET % 1)
    bench.read(sock, len(GET % 1))
    sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    bench.iterate()
    bench.send(1, GET % 2)
    again = bench.accept()
    assert bench.read(again, len(GET % 2)) == GET % 2
    assert bench.dropped() == {}


def test_a_response_before_the_end_of_the_request(bench: Bench) -> None:
    sock = bench.open()
    bench.send(1, b"POST / HTTP/1.1\r\nContent-Length: 6\r\n\r\nabc", START)
    sock.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
    bench.iterate()
    bench.send(1, b"def", END)
    bench.send(1, GET % 2)
    wanted = b"POST / HTTP/1.1\r\nContent-Length: 6\r\n\r\nabcdef" + GET % 2
    assert bench.read(sock, len(wanted)) == wanted
    assert bench.ledger.responses["4xx"] == 1


# --- a shadow that takes nothing


def test_a_shadow_that_does_not_read_is_bounded() -> None:
    """Whole requests are dropped, one that went in part resets the connection."""
    with Bench(queue_bytes=100_000, queues_bytes=150_000) as bench:
        first, second = bench.open(1), bench.open(2)
        body = bytes(10_000)
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000\r\n\r\n"
        for _ in range(2_000):
            for flow in (1, 2):
                bench.send(flow, head + body)
            queued, _ = bench.reactor.held()
            assert queued <= 150_000
        assert set(bench.dropped()) == {DropReason.SHADOW_SLOW}
        for sock in (first, second):  # what it gets, when it reads at last, is whole
            sock.setblocking(False)
            data = b""
            with contextlib.suppress(BlockingIOError):
                while True:
                    bench.iterate()
                    data += sock.recv(1 << 20)
            assert data == (head + body) * (len(data) // len(head + body))


@pytest.mark.parametrize("http", [True, False])
def test_what_a_socket_does_not_take_is_bounded_too(http: bool) -> None:
    """Of each connection's first part for which it has no room."""
    part = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n" + bytes(60_000)
    with Bench(queue_bytes=100_000, queues_bytes=150_000) as bench:
        socks = [bench.open(flow, http=http) for flow in range(20)]
        for flow in range(20):
            for _ in range(200):
                bench.send(flow, part, WHOLE if http else 0)
                assert bench.reactor._memory.held <= 150_000
                if bench.reactor._lanes[flow].queue or bench.reactor._lanes[flow].skipping:
                    break
        assert bench.reactor._memory.held > 0
        assert set(bench.ledger.bytes.dropped) == {DropReason.SHADOW_SLOW}
        ends = 0
        for sock in socks:  # nothing in part is taken for a whole
            sock.setblocking(False)
            size = 0
            try:
                while data := sock.recv(1 << 20):
                    size += len(data)
                    bench.iterate()
            except BlockingIOError:
                assert not http or size % len(part) == 0
            except ConnectionResetError:
                ends += 1
        assert ends


def test_a_request_to_upgrade_after_a_busy_connection_has_ended_goes_over_a_new_one() -> None:
    with Bench() as bench:
        sock = bench.open()
        for _ in range(40):
            bench.send(1, GET % 1)
            bench.read(sock, len(GET % 1))
            sock.sendall(OK)
            bench.iterate()
        assert bench.reactor._lanes[1].lazy
        sock.close()
        bench.until(lambda: bench.reactor._lanes[1].sock is None)
        upgrade = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
        bench.send(1, upgrade, WHOLE | TUNNEL)
        assert bench.read(bench.accept(), len(upgrade)) == upgrade


def test_what_was_answered_before_counts_where_the_rest_of_a_part_finds_no_room() -> None:
    part = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8000000\r\n\r\n" + bytes(8_000_000)
    with Bench(queue_bytes=100_000, queues_bytes=150_000) as bench:
        sock = bench.open()
        for _ in range(5):
            bench.send(1, GET % 1)
        bench.read(sock, 5 * len(GET % 1))
        sock.sendall(5 * OK)  # nobody has read it yet
        bench.send(1, part, WHOLE)
        assert bench.ledger.responses == {"2xx": 6}
        assert bench.ledger.requests.dropped == {DropReason.SHADOW_SLOW: 1}
        bench.send(1, GET % 2)
        assert bench.read(bench.accept(), len(GET % 2)) == GET % 2


def test_what_a_rewrite_adds_is_bounded_too() -> None:
    with Bench(queue_bytes=100_000, queues_bytes=150_000) as bench:
        for flow in (1, 2):
            bench.give(Open(flow, True))
        for _ in range(200):
            for flow in (1, 2):
                bench.give(Send(flow, GET % 0 + bytes(1_000), len(GET % 0), WHOLE))
            assert sum(len(item.data) for lane in bench.reactor._lanes.values() for item in lane.queue) <= 150_000
        assert set(bench.dropped()) == {DropReason.SHADOW_SLOW}


def test_what_remains_of_a_request_that_grew_is_waited_for_at_the_end(bench: Bench) -> None:
    """So many bytes went as were captured of it."""
    bench.open()
    bench.give(Send(1, GET % 1 + bytes(16 << 20), len(GET % 1), WHOLE))
    assert bench.reactor._lanes[1].queue
    assert not bench.reactor.idle()


def test_a_request_that_outgrows_the_queue_is_given_up() -> None:
    with Bench(queue_bytes=100_000) as bench:
        sock = bench.open()
        bench.send(1, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\n", START)
        for _ in range(899):
            bench.send(1, bytes(10_000), 0)
        bench.send(1, bytes(10_000), END)
        assert bench.dropped() == {DropReason.SHADOW_SLOW: 1}
        assert ended(sock) == "reset"
        assert not bench.ledger.responses["unanswered"]
        bench.send(1, GET % 2)
        again = bench.accept()
        assert bench.read(again, len(GET % 2)) == GET % 2


def test_an_idle_connection_is_closed_after_its_time_and_the_next_request_opens_another() -> None:
    with Bench(shadow={"idle_time": 10}) as bench:
        first = bench.open()
        bench.iterate(9.0)
        bench.send(1, GET % 1)
        bench.read(first, len(GET % 1))
        bench.iterate(2.0)
        bench.iterate(15.0)
        assert bench.ledger.events["idle_closes"] == 0  # a response is due
        first.sendall(OK)
        bench.iterate(9.0)
        assert bench.ledger.events["idle_closes"] == 0
        bench.iterate(1.5)
        assert bench.ledger.events["idle_closes"] == 1
        assert first.recv(1) == b""
        bench.send(1, GET % 2)
        assert bench.read(bench.accept(), len(GET % 2)) == GET % 2
        assert bench.dropped() == {}
    assert bench.ledger.responses["unanswered"] == 1


# --- tunnels


UPGRADE: Final = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"


@pytest.mark.parametrize(
    ("flags", "accepts"),
    [(TUNNEL, b"HTTP/1.1 101 Switching\r\n\r\n"), (TUNNEL | CONNECT, b"HTTP/1.1 200 Fine\r\n\r\n")],
    ids=["Upgrade", "CONNECT"],
)
def test_a_tunnel_waits_for_the_shadow_to_accept(bench: Bench, flags: int, accepts: bytes) -> None:
    sock = bench.open()
    bench.send(1, UPGRADE, WHOLE | flags)
    bench.send(1, b"frame one", 0)
    assert bench.read(sock, len(UPGRADE)) == UPGRADE
    bench.iterate()
    assert not select.select([sock], [], [], 0.05)[0]
    sock.sendall(accepts)
    assert bench.read(sock, 9) == b"frame one"
    bench.send(1, b"frame two", 0)
    assert bench.read(sock, 9) == b"frame two"
    sock.sendall(b"anything" * 10_000)
    bench.give(Finish(1))
    bench.iterate()
    assert ended(sock) == "eof"


def test_a_tunnel_that_the_shadow_refuses(bench: Bench) -> None:
    sock = bench.open()
    bench.send(1, UPGRADE, WHOLE | TUNNEL)
    bench.send(1, b"frame", 0)
    bench.read(sock, len(UPGRADE))
    sock.sendall(OK)
    bench.iterate()
    bench.send(1, b"frame", 0)
    assert bench.ledger.bytes.dropped == {DropReason.TUNNEL_REFUSED: 10}
    bench.send(1, GET % 2)
    assert bench.read(sock, len(GET % 2)) == GET % 2


@pytest.mark.parametrize("early", [True, False])
def test_what_both_refused_goes_on_as_http(bench: Bench, early: bool) -> None:
    sock = bench.open()
    bench.send(1, UPGRADE, WHOLE | TUNNEL)
    if early:
        bench.send(1, GET % 2)
    assert bench.read(sock, len(UPGRADE)) == UPGRADE
    bench.iterate()
    assert not select.select([sock], [], [], 0.05)[0]
    sock.sendall(OK)
    if not early:
        bench.iterate()
        bench.send(1, GET % 2)
    assert bench.read(sock, len(GET % 2)) == GET % 2
    sock.sendall(OK)
    bench.until(lambda: bench.ledger.responses["2xx"] == 3)
    assert bench.ledger.events["shadow_connects"] == 1


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("again", [False, True])
def test_what_only_the_shadow_accepted_goes_on_as_http_on_a_new_connection(
    bench: Bench, early: bool, again: bool
) -> None:
    """Clients that offer HTTP/2 (h2c) to a server that does not speak it, and a new version that does."""
    following, flags = (UPGRADE, WHOLE | TUNNEL) if again else (GET % 2, WHOLE)
    sock = bench.open()
    bench.send(1, UPGRADE, WHOLE | TUNNEL)
    bench.read(sock, len(UPGRADE))
    if early:
        bench.send(1, following, flags)
        bench.iterate()
    sock.sendall(b"HTTP/1.1 101 Switching\r\n\r\n" + b"frames")
    if not early:
        bench.iterate()
        bench.send(1, following, flags)
    other = bench.accept()
    assert bench.read(other, len(following)) == following
    assert ended(sock)
    other.sendall(OK)
    bench.iterate()
    bench.send(1, GET % 3)
    assert bench.read(other, len(GET % 3)) == GET % 3
    other.sendall(OK)
    bench.until(lambda: bench.ledger.responses == {"2xx": 3, "1xx": 1})
    assert bench.dropped() == {}


@pytest.mark.parametrize("before", [LAZY_AFTER - 2, LAZY_AFTER + 5, LAZY_AFTER + LAZY + 5])
@pytest.mark.parametrize("owed", [False, True])
def test_a_tunnel_on_a_busy_connection_does_not_wait_for_the_sweep(bench: Bench, before: int, owed: bool) -> None:
    """Whether the request before it is timed, and answered, or not."""
    sock = bench.open()
    for number in range(1, before + 1):
        bench.send(1, GET % number)
        bench.read(sock, len(GET % number))
        if not owed or number < before:
            sock.sendall(OK)
            bench.iterate()
    bench.send(1, UPGRADE, WHOLE | TUNNEL)
    bench.read(sock, len(UPGRADE))
    if owed:
        sock.sendall(OK)
        bench.iterate()
    sock.sendall(b"HTTP/1.1 101 Switching\r\n\r\n")
    bench.send(1, b"frame", 0)
    for _ in range(5):
        bench.reactor.run_once(0.05, lambda: bench.now)
    assert select.select([sock], [], [], 0)[0]
    assert bench.read(sock, 5) == b"frame"


def test_requests_within_an_accepted_tunnel_are_only_bytes(bench: Bench) -> None:
    sock = bench.open()
    bench.send(1, UPGRADE, WHOLE | TUNNEL | CONNECT)
    bench.read(sock, len(UPGRADE))
    sock.sendall(b"HTTP/1.1 200 Fine\r\n\r\n")
    bench.iterate()
    for number in range(3):
        bench.send(1, GET % number)
        assert bench.read(sock, len(GET % number)) == GET % number
    sock.sendall(b"not http at all")
    bench.iterate()
    bench.send(1, b"x", 0)
    assert bench.read(sock, 1) == b"x"


def test_a_response_to_head_has_no_body(bench: Bench) -> None:
    sock = bench.open()
    bench.send(1, b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", WHOLE | NO_BODY)
    bench.send(1, GET % 1)
    bench.iterate()
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
    bench.until(lambda: bench.ledger.responses["4xx"] == 1)


# --- pacing


def test_waiting_for_the_response_of_http() -> None:
    with Bench(pacing=Pacing.WAIT) as bench:
        sock = bench.open()
        bench.send(1, GET % 1)
        bench.read(sock, len(GET % 1))
        bench.give(Turn(1, 100))
        bench.send(1, GET % 2)
        bench.iterate()
        assert not select.select([sock], [], [], 0.05)[0]
        sock.sendall(OK)
        assert bench.read(sock, len(GET % 2)) == GET % 2


def test_amid_a_request_nothing_waits() -> None:
    """`Expect: 100-continue`: production said 100, and a shadow of HTTP/1.0 will not."""
    with Bench(pacing=Pacing.WAIT) as bench:
        sock = bench.open()
        bench.give(Turn(1, len(OK)))
        bench.send(1, POST, START)
        bench.give(Turn(1, 25))
        bench.send(1, b"ab", END)
        assert bench.read(sock, len(POST) + 2) == POST + b"ab"
        bench.give(Turn(1, len(OK)))
        bench.send(1, GET % 1)
        bench.iterate()
        assert not select.select([sock], [], [], 0.05)[0]
        sock.sendall(OK)
        assert bench.read(sock, len(GET % 1)) == GET % 1


def test_waiting_for_what_comes_through_a_tunnel() -> None:
    with Bench(pacing=Pacing.WAIT) as bench:
        sock = bench.open()
        bench.give(Turn(1, len(OK)))
        bench.send(1, UPGRADE, WHOLE | TUNNEL)
        bench.read(sock, len(UPGRADE))
        switching = b"HTTP/1.1 101 Switching\r\n\r\n"
        bench.give(Turn(1, len(switching)))
        bench.send(1, b"frame one", 0)
        sock.sendall(switching)
        assert bench.read(sock, 9) == b"frame one"
        bench.give(Turn(1, 5))
        bench.send(1, b"frame two", 0)
        sock.sendall(b"four")
        bench.iterate()
        assert not select.select([sock], [], [], 0.05)[0]
        sock.sendall(b"5")
        assert bench.read(sock, 9) == b"frame two"


@pytest.mark.parametrize("response", [b"x" * 10, b"less"])
def test_waiting_for_the_response_of_raw(response: bytes) -> None:
    """As much as production answered, or less and then silence."""
    with Bench(pacing=Pacing.WAIT) as bench:
        sock = bench.open(http=False)
        bench.send(1, b"one", 0)
        bench.read(sock, 3)
        bench.give(Turn(1, 10))
        bench.send(1, b"two", 0)
        bench.iterate()
        assert not select.select([sock], [], [], 0.05)[0]
        sock.sendall(response)
        bench.iterate()
        bench.iterate(0.2)
        assert bench.read(sock, 3) == b"two"


@pytest.mark.parametrize("looks", ["at the time", "at a command"])
def test_what_has_come_and_was_not_read_yet_is_no_silence(looks: str) -> None:
    """This process had no CPU meanwhile, and looks at the clock before it looks at the socket."""
    with Bench(pacing=Pacing.WAIT) as bench:
        sock = bench.open(http=False)
        bench.send(1, b"one", 0)
        bench.read(sock, 3)
        if looks == "at the time":
            bench.give(Turn(1, 10))
            bench.send(1, b"two", 0)
        sock.sendall(b"an")
        bench.iterate()
        sock.sendall(b"answer")
        bench.now += 0.2
        if looks == "at the time":
            bench.reactor.expire(bench.now)
        else:
            bench.give(Turn(1, 10))
            bench.send(1, b"two", 0)
        assert not select.select([sock], [], [], 0.05)[0]
        bench.iterate(0.2)
        assert bench.read(sock, 3) == b"two"


def test_waiting_has_an_end() -> None:
    with Bench(pacing=Pacing.WAIT, wait_time=2.0) as bench:
        sock = bench.open(http=False)
        bench.send(1, b"one", 0)
        bench.read(sock, 3)
        bench.give(Turn(1, 10))
        bench.send(1, b"two", 0)
        bench.iterate(1.9)
        assert not select.select([sock], [], [], 0.05)[0]
        bench.iterate(0.2)
        assert bench.read(sock, 3) == b"two"
        assert bench.ledger.events["wait_timeouts"] == 1


@pytest.mark.parametrize(("pause", "behind"), [(0.001, True), (0.1, False)])
def test_a_connection_is_behind_only_if_its_shadow_answers_promptly(pause: float, behind: bool) -> None:
    with Bench(pacing=Pacing.WAIT) as bench:
        sock = bench.open(http=False)
        bench.send(1, b"one", 0)
        bench.read(sock, 3)
        for data in (b"two", b"six", b"ten"):
            bench.give(Turn(1, 1))
            bench.send(1, data, 0)
        for wanted in (b"two", b"six"):
            for _ in range(3):  # nothing else wakes us meanwhile
                bench.now += pause / 4
                bench.reactor.run_once(0.0, lambda: bench.now)
            bench.now += pause / 4
            sock.sendall(b"1")
            assert bench.read(sock, 3) == wanted
            assert bench.reactor.behind == behind


# --- what has no end, and no beginning


def test_what_belongs_to_no_flow_is_counted(bench: Bench) -> None:
    bench.send(9, GET % 1)
    for command in (Finish(9), Abort(9, DropReason.INCOMPLETE, True), Turn(9, 1)):
        bench.give(command)
    assert bench.dropped() == {DropReason.SHADOW_CLOSED: 1}


def test_a_shadow_that_never_answers_costs_no_memory_without_end(bench: Bench) -> None:
    """Beyond so many outstanding responses the connection is given up, and the next request opens another."""
    sock = bench.open()
    for _ in range(OUTSTANDING + 10):
        bench.send(1, GET % 1)
        if select.select([sock], [], [], 0)[0]:
            sock.recv(1 << 20)
    bench.iterate(2.0)
    assert bench.ledger.events["unanswered_closes"] == 1
    assert bench.ledger.responses["unanswered"] == OUTSTANDING + 10
    bench.send(1, GET % 2)
    assert bench.read(bench.accept(), len(GET % 2)) == GET % 2
