# SPDX-License-Identifier: Apache-2.0
"""Flows and connections end, against real sockets: whoever ends them, the shadow takes no part for a whole."""

from __future__ import annotations

import select
import socket
import time
from collections import Counter
from typing import Any, Final

import pytest

from lab import PATIENCE
from loopback import refusing
from replay_bench import GET, GIVEN_UP, OK, RESET, WHOLE, Bench, ended
from tapmirror.events import END, START, Abort, DropReason, Excuse, Finish, Open, Send, Turn
from tapmirror.exchange import Unpaired
from tapmirror.ledger import CONNECT_SILENT, UNANSWERED_ALIKE
from tapmirror.replay import ends, ports
from tapmirror.replay.backoff import FIRST
from tapmirror.replay.dial import FRUITLESS, LOOKS
from tapmirror.replay.observer import Clock
from tapmirror.replay.observers import Observers
from tapmirror.replay.reactor import LAZY_AFTER
from tapmirror.spec import Pacing
from test_replay_observer import Talk


def test_a_flow_that_ended_while_it_was_connected_is_closed_with_its_last_response(bench: Bench) -> None:
    """However many requests waited: no sweep is needed."""
    bench.give(Open(1, True))
    for _ in range(LAZY_AFTER):
        bench.send(1, GET % 1)
    bench.give(Finish(1))
    sock = bench.accept()
    bench.read(sock, len(GET % 1) * LAZY_AFTER)
    sock.sendall(OK * LAZY_AFTER)
    bench.iterate()
    assert bench.reactor.idle()


def test_an_ended_flow_waits_for_its_responses_but_not_for_ever() -> None:
    with Bench(linger_time=2.0) as bench:
        sock = bench.open()
        bench.send(1, GET % 1)
        bench.give(Finish(1))
        bench.read(sock, len(GET % 1))
        bench.iterate(1.9)
        assert not bench.reactor.idle()
        bench.iterate(0.2)
        assert bench.reactor.idle()
        assert bench.ledger.events["lingered_out"] == 1
        assert bench.ledger.responses["unanswered"] == 1


def test_what_the_shadow_has_at_the_end_of_the_tap_is_under_way_and_not_unsent() -> None:
    talk: Any = Talk()
    with Bench(observers=Observers({1: talk}.get, 0, Clock(), Counter())) as bench:
        bench.give(Open(1, True))
        bench.give(Send(1, memoryview(GET % 1), len(GET % 1), WHOLE, number=1))
        sock = bench.accept()
        bench.read(sock, len(GET % 1))
        bench.reactor.close(DropReason.SHUTDOWN)
    assert talk.reasons[0] is Unpaired.SHUTDOWN  # the first that a conversation is told counts


@pytest.mark.parametrize("order", ["open send finish open send finish", "open send open send finish finish"])
def test_a_flow_that_is_opened_again_while_a_response_is_due_keeps_its_connection(bench: Bench, order: str) -> None:
    """As second copies of requests come, of a flow that has ended."""
    number = 0
    for word in order.split():
        if word == "send":
            number += 1
            bench.send(1, GET % number)
        else:
            bench.give(Open(1, True) if word == "open" else Finish(1))
    sock = bench.accept()
    assert bench.read(sock, len(GET % 1) * 2) == GET % 1 + GET % 2
    sock.sendall(OK)
    bench.iterate()
    assert not bench.reactor.idle(), "the second response is due"
    sock.sendall(OK)
    bench.until(bench.reactor.idle)
    assert bench.ledger.responses == {"2xx": 2}
    assert sock.recv(1) == b""


def test_a_raw_stream_with_its_fin(bench: Bench) -> None:
    sock = bench.open(http=False)
    bench.send(1, b"one ", 0)
    bench.send(1, b"two", 0)
    bench.give(Finish(1))
    bench.iterate()
    assert bench.read(sock, 7) == b"one two"
    assert ended(sock) == "eof"
    sock.sendall(b"the answer may still come" * 1000)
    bench.iterate()
    sock.close()
    bench.until(bench.reactor.idle)
    assert bench.ledger.bytes.mirrored == 7


def test_a_raw_reset(bench: Bench) -> None:
    sock = bench.open(http=False)
    bench.send(1, b"one", 0)
    bench.give(Abort(1, GIVEN_UP, True))
    assert ended(sock) == "reset"
    bench.send(1, b"late", 0)
    assert bench.ledger.bytes.dropped[DropReason.SHADOW_CLOSED] == 4


def test_a_raw_reset_comes_behind_what_production_could_read(bench: Bench) -> None:
    """A connection that is over before the shadow's stands, and one whose bytes the kernel cannot send at once."""
    bench.give(Open(1, False))
    bench.send(1, b"one", 0)
    bench.give(Abort(1, GIVEN_UP, True))
    sock = bench.accept()
    assert bench.read(sock, 3) == b"one"
    assert ended(sock) == "reset"
    sock = bench.open(2, http=False)
    body = bytes(range(256)) * 12_000
    bench.send(2, body, 0)
    bench.give(Abort(2, GIVEN_UP, True))
    assert bench.read(sock, len(body)) == body
    bench.iterate()
    assert ended(sock) == "reset"
    assert bench.reactor.idle()
    assert bench.bytes == bench.ledger.bytes.mirrored


@pytest.mark.parametrize("end", [Finish(1), Abort(1, GIVEN_UP, True)], ids=["FIN", "RST"])
def test_a_raw_stream_that_the_shadow_did_not_take_in_time_never_looks_whole(end: Any) -> None:
    with Bench(linger_time=10.0) as bench:
        sock = bench.open(http=False)
        while not bench.reactor.held()[0]:
            bench.send(1, bytes(500_000), 0)
        bench.give(end)
        bench.iterate(9.0)
        assert not bench.reactor.idle()
        bench.iterate(2.0)
        assert bench.reactor.idle()
        assert bench.ledger.bytes.dropped[DropReason.SHADOW_SLOW]
        assert ended(sock) == "reset"


def test_a_raw_stream_that_lost_bytes_is_reset_and_given_up(bench: Bench) -> None:
    sock = bench.open(http=False)
    bench.send(1, b"one", 0)
    bench.give(Abort(1, DropReason.GAP, False))
    assert ended(sock) == "reset"
    bench.send(1, b"three", 0)
    assert bench.ledger.bytes.dropped == {DropReason.GAP: 5}
    assert bench.ledger.events["shadow_connects"] == 1


def test_a_request_that_was_cut_off_never_looks_whole(bench: Bench) -> None:
    sock = bench.open()
    bench.send(1, b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc", START)
    bench.iterate()
    bench.give(Abort(1, DropReason.GAP, False))
    assert ended(sock) == "reset"
    bench.send(1, GET % 2)
    again = bench.accept()
    assert bench.read(again, len(GET % 2)) == GET % 2
    assert bench.dropped() == {DropReason.GAP: 1}
    assert not bench.ledger.responses["unanswered"]


CUT: Final = b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc"


def waits(sock: socket.socket, bench: Bench) -> bool:
    """Neither a byte nor an end has come."""
    bench.iterate()
    return not select.select([sock], [], [], 0.05)[0]


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("over", [False, True])
def test_a_connection_is_cut_off_behind_the_responses_to_what_went_before(bench: Bench, over: bool, busy: bool) -> None:
    """A busy one does not wake us for each of them."""
    sock = bench.open()
    others = LAZY_AFTER + 2 if busy else 1
    for number in range(1, others):
        bench.send(1, GET % number)
        bench.read(sock, len(GET % number))
        sock.sendall(OK)
        bench.iterate()
    for part in (GET % 1, GET % 2):
        bench.send(1, part)
    bench.send(1, CUT, START)
    bench.give(Abort(1, DropReason.INCOMPLETE, over))
    assert bench.read(sock, len(GET % 1 + GET % 2 + CUT)) == GET % 1 + GET % 2 + CUT
    sock.sendall(OK)
    assert waits(sock, bench)
    sock.sendall(OK)
    bench.until(lambda: bench.ledger.responses["2xx"] == others + 2)
    assert ended(sock) == "reset"
    assert bench.dropped() == {DropReason.INCOMPLETE: 1}
    assert not bench.ledger.responses["unanswered"]
    assert bench.reactor.idle()


def test_what_follows_a_request_that_was_cut_off_waits_and_goes_over_a_new_connection(bench: Bench) -> None:
    sock = bench.open()
    bench.send(1, GET % 1)
    bench.send(1, CUT, START)
    bench.give(Abort(1, DropReason.GAP, False))
    bench.send(1, GET % 2)
    assert bench.read(sock, len(GET % 1 + CUT)) == GET % 1 + CUT
    assert waits(sock, bench)
    assert bench.ledger.events["shadow_connects"] == 1
    sock.sendall(OK)
    again = bench.accept()
    assert bench.read(again, len(GET % 2)) == GET % 2
    assert ended(sock) == "reset"
    again.sendall(OK)
    bench.until(lambda: bench.ledger.responses["2xx"] == 3)
    bench.send(1, GET % 3)
    assert bench.read(again, len(GET % 3)) == GET % 3


@pytest.mark.parametrize("over", [False, True])
def test_of_a_connection_that_is_cut_off_what_is_not_answered_in_time_is_unanswered(over: bool) -> None:
    with Bench(wait_time=5.0, linger_time=5.0) as bench:
        sock = bench.open()
        bench.send(1, GET % 1)
        bench.send(1, CUT, START)
        bench.give(Abort(1, DropReason.INCOMPLETE, over))
        bench.iterate(4.0)
        assert bench.read(sock, len(GET % 1 + CUT)) == GET % 1 + CUT
        assert waits(sock, bench)
        bench.iterate(2.0)
        assert ended(sock) == "reset"
        assert bench.dropped() == {DropReason.INCOMPLETE: 1}
        assert bench.ledger.responses["unanswered"] == 1


def test_a_shadow_that_ends_a_connection_before_it_is_cut_off_left_the_whole_requests_unanswered(bench: Bench) -> None:
    sock = bench.open()
    bench.send(1, GET % 1)
    bench.send(1, GET % 2)
    bench.send(1, CUT, START)
    bench.give(Abort(1, DropReason.GAP, False))
    bench.read(sock, len(GET % 1 + GET % 2 + CUT))
    sock.sendall(OK)
    sock.close()
    bench.until(lambda: bench.ledger.responses["unanswered"] == 1)
    assert bench.dropped() == {DropReason.GAP: 1}
    bench.send(1, GET % 3)
    assert bench.read(bench.accept(), len(GET % 3)) == GET % 3


@pytest.mark.parametrize("way", ["lost", "too long"])
def test_what_was_answered_before_a_connection_is_torn_counts(way: str) -> None:
    """A busy connection does not wake us for each of its responses."""
    with Bench(queue_bytes=100_000) as bench:
        sock = bench.open()
        for number in range(1, 60):
            bench.send(1, GET % number)
            bench.read(sock, len(GET % number))
            sock.sendall(OK)
            if number < LAZY_AFTER + 2:
                bench.iterate()
        bench.send(1, b"POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\nabc", START)
        if way == "lost":
            bench.give(Abort(1, DropReason.GAP, False))
        while not bench.dropped():
            bench.send(1, bytes(60_000), 0)
        assert ended(sock) == "reset"
        assert (bench.ledger.responses["2xx"], bench.ledger.responses["unanswered"]) == (60, 0)


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_after_the_shadow_closed_the_next_request_goes_over_a_new_connection(bench: Bench, how: str) -> None:
    sock = bench.open()
    if how == "rst":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()
    bench.iterate()
    bench.send(1, GET % 1)
    again = bench.accept()
    assert bench.read(again, len(GET % 1)) == GET % 1
    assert bench.ledger.requests.mirrored == 2


def test_nothing_is_sent_twice(bench: Bench) -> None:
    """Sent and not answered is `unanswered`; sent in part is dropped; queued whole goes on."""
    sock = bench.open()
    bench.send(1, GET % 1)
    assert bench.read(sock, len(GET % 1)) == GET % 1
    big = b"POST /2 HTTP/1.1\r\nContent-Length: 6000000\r\n\r\n"
    bench.send(1, big, START)
    bench.send(1, bytes(3_000_000), 0)
    bench.send(1, bytes(3_000_000), END)
    bench.send(1, GET % 3)
    sock.close()
    again = bench.accept()
    assert bench.read(again, len(GET % 3)) == GET % 3
    assert bench.ledger.responses["unanswered"] == 1
    assert bench.dropped() == {DropReason.SHADOW_CLOSED: 1}


def test_of_two_addresses_one_that_refuses_costs_nothing() -> None:
    with refusing() as closed, Bench() as bench:
        bench.reactor.readdress([(socket.AF_INET, closed), (socket.AF_INET, bench.address)])
        for flow in range(1, 9):
            bench.open(flow)
        assert bench.ledger.requests.mirrored == 8
        assert bench.ledger.events["connect_ECONNREFUSED"] >= 1


def test_a_raw_stream_goes_to_the_address_that_answers() -> None:
    with refusing() as closed, Bench() as bench:
        bench.reactor.readdress([(socket.AF_INET, closed), (socket.AF_INET, bench.address)])
        bench.give(Open(1, False))
        bench.send(1, b"raw", 0)
        sock = bench.accept()
        assert bench.read(sock, 3) == b"raw"


def test_a_shadow_that_refuses() -> None:
    with Bench(listen=False) as bench:
        bench.give(Open(1, True))
        for number in range(50):
            bench.send(1, GET % number)
            bench.iterate(0.1)
        assert bench.dropped() == {DropReason.SHADOW_DOWN: 50}
        assert bench.ledger.events["connect_ECONNREFUSED"] <= 10
        bench.listener.listen()
        bench.iterate(6.0)
        bench.send(1, GET % 1)
        sock = bench.accept()
        assert bench.read(sock, len(GET % 1)) == GET % 1


def test_a_shadow_that_does_not_answer() -> None:
    """The backlog is full: SYNs are dropped."""
    with Bench(backlog=0, shadow={"connect_time": 3.0}) as bench:
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(bench.address)
        for flow in range(20):
            bench.give(Open(flow, True))
            bench.send(flow, GET % flow)
            bench.iterate(0.1)
        bench.iterate(5.0)
        for filler in fillers:
            filler.close()
        assert set(bench.dropped()) == {DropReason.SHADOW_DOWN}
        assert bench.ledger.events["connect_ETIMEDOUT"] >= 10 - 4


def silent(sock: socket.socket, bench: Bench, seconds: float) -> bool:
    """The reactor's time-outs come and go, and the shadow sees neither data nor an end."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        bench.iterate()
        if select.select([sock], [], [], 0.01)[0]:
            return False
    return True


@pytest.mark.parametrize("early", [True, False], ids=["answered before", "answered after"])
@pytest.mark.parametrize("asked", [0, 1, 2])
@pytest.mark.parametrize("how", ["eof", "reset"])
def test_an_end_waits_for_the_response_if_production_had_answered(
    bench: Bench, early: bool, asked: int, how: str
) -> None:
    """Servers may give up what they have under way when they see their client's end."""
    sock = bench.open(http=False)
    for number in range(asked):
        if number:
            sock.sendall(b"pong")
            assert silent(sock, bench, 0.1)
        bench.send(1, b"ping", 0)
        assert bench.read(sock, 4) == b"ping"
    if early:
        time.sleep(0.02)  # the kernel's stamps may be 4 ms apart
        answered = time.monotonic()
        sock.sendall(b"pong")
    bench.give(Finish(1, answered=True) if how == "eof" else Abort(1, GIVEN_UP, True, answered=True))
    if not early:
        assert silent(sock, bench, 0.2)
        answered = time.monotonic()
        sock.sendall(b"pong")
    assert not silent(sock, bench, PATIENCE)
    assert time.monotonic() - answered > 0.04, "more may come"
    assert ended(sock) == how
    assert bench.reactor.next_deadline() != 0.0


def test_a_response_that_came_just_before_the_last_bytes_went_is_not_theirs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the stamps of the kernel, which are some milliseconds apart, it may be: a lock-step dialogue."""
    monkeypatch.setattr(ports, "DOUBT", 60_000)
    sock = bench.open(http=False)
    bench.send(1, b"ping", 0)
    assert bench.read(sock, 4) == b"ping"
    time.sleep(0.02)
    sock.sendall(b"pong")
    bench.send(1, b"ping", 0)
    bench.give(Finish(1, answered=True))
    assert bench.read(sock, 4) == b"ping"
    assert silent(sock, bench, 0.3)
    sock.sendall(b"pong")
    assert not silent(sock, bench, PATIENCE)
    assert ended(sock) == "eof"


def test_a_half_close_to_which_no_response_is_due_is_passed_on_at_once(bench: Bench) -> None:
    sock = bench.open(http=False)
    bench.send(1, b"ping", 0)
    bench.read(sock, 4)
    bench.give(Finish(1))
    assert ended(sock) == "eof"


def test_a_client_that_resets_behind_its_half_close_does_not_shorten_the_wait(bench: Bench) -> None:
    sock = bench.open(http=False)
    bench.send(1, b"ping", 0)
    bench.read(sock, 4)
    bench.give(Finish(1, answered=True))
    bench.give(Abort(1, GIVEN_UP, True))
    assert silent(sock, bench, 0.2)
    sock.sendall(b"pong")
    assert not silent(sock, bench, PATIENCE)
    assert ended(sock) == "reset"


def test_of_many_ends_that_wait_some_are_looked_at_each_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """And all of them in turn: with thousands at a slow shadow that has a bound."""
    asked: list[object] = []
    monkeypatch.setattr(ends, "LOOKS", 2)
    monkeypatch.setattr(ends, "response_finished", lambda sock: asked.append(sock))
    for flow in range(1, 6):
        sock = bench.open(flow, http=False)
        bench.send(flow, b"ping", 0)
        bench.read(sock, 4)
        bench.give(Finish(flow, answered=True))
    for _ in range(5):
        asked.clear()
        bench.reactor.expire(bench.now)
        assert len(asked) == 2
    asked.clear()
    for _ in range(5):
        bench.reactor.expire(bench.now)
    assert len(set(asked)) == 5


def test_a_half_close_does_not_wait_for_ever() -> None:
    with Bench(linger_time=7.0, wait_time=5.0) as bench:
        sock = bench.open(http=False)
        bench.send(1, b"ping", 0)
        bench.read(sock, 4)
        bench.give(Finish(1, answered=True))
        bench.iterate(4.9)
        assert not select.select([sock], [], [], 0.05)[0]
        bench.iterate(0.2)
        assert ended(sock) == "eof"
        bench.iterate(2.0)
        assert bench.ledger.events["lingered_out"] == 1
        assert bench.reactor.next_deadline() is None


@pytest.mark.parametrize(("end", "kind"), [(Finish(1), "eof"), (Abort(1, GIVEN_UP, True), "reset")])
def test_the_end_of_a_raw_stream_follows_what_waited_in_vain_for_a_response(end: Any, kind: str) -> None:
    """At once: a shadow that answers the end only says nothing before it."""
    with Bench(pacing=Pacing.WAIT, wait_time=2.0, linger_time=60.0) as bench:
        sock = bench.open(http=False)
        bench.send(1, b"one", 0)
        bench.give(Turn(1, 10))
        bench.send(1, b"two", 0)
        bench.give(end)
        assert bench.read(sock, 3) == b"one"
        bench.iterate(3.0)
        assert bench.read(sock, 3) == b"two"
        bench.iterate()
        assert ended(sock) == kind


def test_what_went_in_part_at_the_end_is_dropped_and_not_unanswered_too(bench: Bench) -> None:
    bench.open()
    bench.send(1, GET % 1)
    bench.send(1, b"POST / HTTP/1.1\r\nContent-Length: 9000000\r\n\r\n" + bytes(9_000_000))
    bench.reactor.close(DropReason.SHUTDOWN)
    assert bench.dropped() == {DropReason.SHUTDOWN: 1}
    assert bench.ledger.responses["unanswered"] == 1


def test_closing_settles_everything(bench: Bench) -> None:
    bench.open(1)
    bench.give(Open(2, True))
    bench.send(2, GET % 1)
    bench.send(2, b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n", START)
    bench.give(Open(3, False))
    bench.send(3, b"raw", 0)
    bench.reactor.close(DropReason.SHUTDOWN)
    assert bench.dropped() == {DropReason.SHUTDOWN: 2}
    assert bench.reactor.held() == (0, 0)


# --- a shadow that accepts and breaks off: a forwarder with nobody behind it


def broken_off(bench: Bench, flow: int, *, http: bool = True, reset: bool = True, excused: bool = False) -> None:
    """A flow whose connection the shadow takes and ends without a byte; `excused`: after production."""
    bench.give(Open(flow, http))
    bench.send(flow, GET % 0, WHOLE if http else 0)
    sock = bench.accept()
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    else:
        bench.read(sock, len(GET % 0))  # closed with unread bytes it would be reset
    if excused:
        bench.give(Excuse(flow))
    sock.close()
    lane = bench.reactor._lanes[flow]
    bench.until(lambda: lane.sock is None or lane.shadow_done)


def connects(bench: Bench, flow: int) -> bool:
    """Whether a connection is tried for another flow."""
    before = bench.ledger.events["shadow_connects"]
    bench.give(Open(flow, True))
    bench.send(flow, GET % 0)
    return bench.ledger.events["shadow_connects"] > before


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "closed"])
def test_who_breaks_off_all_connections_is_left_alone_as_who_takes_none(bench: Bench, reset: bool) -> None:
    for flow in range(FRUITLESS):
        assert not bench.dropped() and not bench.ledger.events[CONNECT_SILENT]
        broken_off(bench, flow, reset=reset)
    assert bench.ledger.events[CONNECT_SILENT] == 1

    assert not connects(bench, 100)
    assert bench.dropped() == {DropReason.SHADOW_DOWN: 1}
    bench.now += FIRST
    broken_off(bench, 101, reset=reset)
    bench.now += FIRST
    assert not connects(bench, 102), "the pause doubles"
    bench.now += 1.5 * FIRST
    assert connects(bench, 103)
    assert bench.ledger.events["shadow_broke_off"] == FRUITLESS + 1
    assert bench.ledger.events[CONNECT_SILENT] == 2


@pytest.mark.parametrize("first", ["shadow", "production"])
def test_what_production_leaves_unanswered_the_shadow_may(bench: Bench, first: str) -> None:
    """As nginx does with 444: whichever ends first, the address is not down."""
    for flow in range(2 * FRUITLESS):
        broken_off(bench, flow, reset=False, excused=first == "production")
        if first == "shadow":
            bench.give(Excuse(flow))
        bench.give(Finish(flow))
    assert bench.ledger.responses["unanswered"] == bench.ledger.events[UNANSWERED_ALIKE] == 2 * FRUITLESS
    assert not bench.dropped() and not bench.ledger.events[CONNECT_SILENT]


def test_an_address_is_down_though_some_of_what_it_breaks_off_production_does_too(bench: Bench) -> None:
    """One that was left alone for what turns out to be production's way is tried again at once."""
    for flow in range(FRUITLESS):
        broken_off(bench, flow, reset=False)
    assert not connects(bench, 100)
    bench.give(Excuse(3))
    assert bench.ledger.events[UNANSWERED_ALIKE] == 1
    broken_off(bench, 101, reset=False)
    assert not connects(bench, 102)
    bench.now += FIRST
    broken_off(bench, 103, reset=False, excused=True)
    broken_off(bench, 104, reset=False)
    bench.give(Excuse(104))
    broken_off(bench, 105, reset=False)
    assert not connects(bench, 106), "what says nothing is no trial, nor does it say that it is back"
    assert bench.ledger.events[CONNECT_SILENT] == 4


def test_an_excuse_is_for_the_last_request_alone(bench: Bench) -> None:
    """What was asked before was answered by production."""
    broken_off(bench, 1, reset=False)
    bench.send(1, GET % 1)
    sock = bench.accept()
    bench.read(sock, len(GET % 1))
    bench.give(Excuse(1))
    sock.sendall(OK)
    bench.iterate()
    sock.close()
    bench.until(lambda: bench.reactor._lanes[1].sock is None)
    assert bench.ledger.responses == {"2xx": 1, "unanswered": 1}
    assert not bench.ledger.events[UNANSWERED_ALIKE]


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "closed"])
def test_raw_streams_that_the_shadow_ends_are_no_failure(bench: Bench, reset: bool) -> None:
    """Of protocols without responses nothing ever comes, and the server may close first."""
    for flow in range(2 * FRUITLESS):
        broken_off(bench, flow, http=False, reset=reset)

    assert connects(bench, 100)


def answered_and_closed(bench: Bench, flow: int) -> None:
    """A flow that production ends after its response."""
    bench.open(flow)
    bench.give(Finish(flow))
    assert flow not in bench.reactor._lanes


def test_what_was_answered_and_closed_by_us_starts_the_count_anew(bench: Bench) -> None:
    """Half are broken off, half answered; of those that are open none was answered."""
    for flow in range(0, 4 * FRUITLESS, 2):
        broken_off(bench, flow)
        answered_and_closed(bench, flow + 1)

    assert not bench.dropped()


def test_a_probe_that_is_answered_and_ends_before_the_next_look_is_enough(bench: Bench) -> None:
    for flow in range(FRUITLESS):
        broken_off(bench, flow)
    bench.now += FIRST
    answered_and_closed(bench, 100)

    assert connects(bench, 101) and connects(bench, 102)


def test_the_newest_connections_are_asked(bench: Bench) -> None:
    """Behind as many long polls as are asked."""
    for flow in range(200, 200 + LOOKS):
        bench.give(Open(flow, True))
        bench.send(flow, GET % 0)
        bench.accept()
    bench.open(100)
    for flow in range(FRUITLESS):
        broken_off(bench, flow)

    assert connects(bench, 101)


def test_who_answers_again_is_tried_by_all(bench: Bench) -> None:
    for flow in range(FRUITLESS):
        broken_off(bench, flow)
    bench.now += FIRST
    bench.open(100)  # answered
    assert not connects(bench, 101), "the next look is after the pause"
    bench.now += FIRST

    assert connects(bench, 102) and connects(bench, 103)


def test_one_response_among_the_broken_is_enough(bench: Bench) -> None:
    for flow in range(FRUITLESS - 1):
        broken_off(bench, flow)
    bench.open(100).close()
    broken_off(bench, 101, reset=False)  # its response came before: it counts, but as the first
    bench.iterate()

    assert connects(bench, 102)


def test_who_answers_on_a_connection_that_lasts_is_not_down(bench: Bench) -> None:
    bench.open(100)
    for flow in range(2 * FRUITLESS):
        broken_off(bench, flow)

    assert connects(bench, 101)
