# SPDX-License-Identifier: Apache-2.0
"""Requests that a shadow leaves unread behind a response with notice go again, once; all else is as it was."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterable

import pytest

from replay_bench import CLOSE, GET, KEEP, OK, RESET, WHOLE, Bench
from tapmirror.events import END, NO_BODY, START, TUNNEL, Abort, DropReason, Finish, Open
from tapmirror.framing import ResponseFramer
from tapmirror.framing.memory import HeadMemory as FramingPool
from tapmirror.ledger import SENT_AGAIN_BYTES, Ledger
from tapmirror.replay.lane import Lane, QueueMemory
from tapmirror.replay.resend import RESEND_BYTES, Resendable, ResendQuota

HEAD = b"POST / HTTP/1.1\r\nContent-Length: 6\r\n\r\n"


def unread(bench: Bench, count: int, *, response: bytes = CLOSE, reset: bool = False) -> socket.socket:
    """The shadow answers the first of so many requests, with notice, and ends; what it is connected by next."""
    sock = bench.open()
    for number in range(count):
        bench.send(1, GET % number)
    bench.read(sock, len(GET % 0) * count)
    return end(bench, sock, response, reset=reset)


def end(bench: Bench, sock: socket.socket, response: bytes = CLOSE, *, reset: bool = False) -> socket.socket:
    """The shadow answers and ends."""
    sock.sendall(response)
    if reset:
        bench.iterate()  # the kernel keeps what came before an RST, but would not send all of it
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()
    return bench.accept()


def served(bench: Bench, sock: socket.socket, numbers: Iterable[int]) -> None:
    """Just these requests come, and are answered each."""
    for number in numbers:
        assert bench.read(sock, len(GET % number)) == GET % number
        sock.sendall(OK)


def settled(bench: Bench, again: int) -> None:
    """All was answered, so many of them the second time, and nothing counts twice."""
    bench.until(lambda: bench.ledger.responses["2xx"] >= bench.requests)
    assert bench.ledger.responses["unanswered"] == 0
    assert bench.ledger.events["sent_again"] == again
    assert bench.ledger.events[SENT_AGAIN_BYTES] > again * 20
    assert bench.dropped() == {}
    assert bench.ledger.requests.mirrored == bench.requests == bench.ledger.responses["2xx"]
    assert bench.ledger.bytes.mirrored == bench.bytes


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("count", [2, 6])
def test_what_is_behind_a_response_with_notice_goes_again_in_its_order(bench: Bench, count: int, reset: bool) -> None:
    sock = unread(bench, count, reset=reset)
    served(bench, sock, range(1, count))  # the next end is foreseen after as many
    settled(bench, count - 1)


def test_what_was_queued_meanwhile_goes_behind_it(bench: Bench) -> None:
    sock = bench.open()
    for number in range(3):
        bench.send(1, GET % number)
    bench.read(sock, len(GET % 0) * 3)
    sock.sendall(CLOSE)
    bench.iterate()
    bench.send(1, GET % 3)
    bench.send(1, GET % 4)
    sock.close()
    sock = bench.accept()
    served(bench, sock, range(1, 5))
    settled(bench, 2)


@pytest.mark.parametrize(
    "response", [b"", KEEP, b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n", b"what?"], ids=repr
)
def test_without_notice_nothing_goes_again(bench: Bench, response: bytes) -> None:
    """The shadow may have done what it did not answer."""
    sock = bench.open()
    bench.send(1, GET % 1)
    if not response.startswith(b"HTTP/1.1 4"):
        bench.send(1, GET % 2)
        bench.send(1, GET % 3)
        bench.read(sock, len(GET % 1) * 3)
    else:
        bench.read(sock, len(GET % 1))
        sock.sendall(KEEP)
        bench.iterate()
    sock.sendall(response)
    bench.iterate()
    if response.startswith(b"HTTP/1.1 4"):
        bench.send(1, GET % 2)
    sock.close()
    bench.iterate()
    assert bench.ledger.events["sent_again"] == 0


def test_the_response_that_breaks_off_was_read(bench: Bench) -> None:
    """It is unanswered; what is behind it goes again."""
    sock = unread(bench, 4, response=KEEP + b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 9\r\n\r\npart")
    served(bench, sock, (2, 3))
    bench.iterate()
    assert bench.ledger.responses["unanswered"] == 1
    assert bench.ledger.events["sent_again"] == 2


def test_a_response_up_to_the_end_gives_notice(bench: Bench) -> None:
    sock = unread(bench, 4, response=KEEP + b"HTTP/1.1 200 OK\r\n\r\nall")
    served(bench, sock, (2, 3))
    settled(bench, 2)


def test_a_request_goes_again_once(bench: Bench) -> None:
    """A shadow that gives notice after ever more of them gets no request more than twice."""
    sock = unread(bench, 6)  # foreseen: after two more
    for number in (1, 2):
        assert bench.read(sock, len(GET % number)) == GET % number
        sock.sendall(KEEP)
    assert bench.read(sock, 3 * len(GET % 0)) == b"".join(GET % number for number in (3, 4, 5))
    sock.sendall(CLOSE)
    sock.close()
    bench.iterate()
    assert not select.select([bench.listener], [], [], 0.1)[0]
    assert bench.ledger.events["sent_again"] == 5
    assert bench.ledger.responses["unanswered"] == 2


def test_the_flags_of_a_request_go_with_it(bench: Bench) -> None:
    """The response to a HEAD request has no body."""
    head = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"
    sock = bench.open()
    bench.send(1, GET % 1)
    bench.send(1, head, WHOLE | NO_BODY)
    bench.send(1, GET % 2)
    bench.read(sock, len(GET % 1) * 2 + len(head))
    sock = end(bench, sock)
    assert bench.read(sock, len(head)) == head
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
    assert bench.read(sock, len(GET % 2)) == GET % 2
    sock.sendall(OK)
    settled(bench, 2)


@pytest.mark.parametrize(
    "parts",
    [
        [HEAD + b"abcdef"],
        [HEAD, b"abc", b"def"],
        [b"GETX / HTTP/1.1\r\nHost: a\r\n\r\n"],
        [b"GET / HTTP/1.1\r\nX-HTTP-Method-Override: DELETE\r\n\r\n"],
    ],
    ids=repr,
)
def test_a_request_that_may_have_been_done_does_not_go_again(bench: Bench, parts: list[bytes]) -> None:
    """Node.js begins with what it reads ahead, and throws the response away."""
    sock = bench.open()
    bench.send(1, GET % 1)
    for number, data in enumerate(parts):
        bench.send(1, data, (START if not number else 0) | (END if number == len(parts) - 1 else 0))
    bench.send(1, GET % 2)
    bench.read(sock, len(GET % 1) * 2 + len(b"".join(parts)))
    sock = end(bench, sock)
    assert bench.read(sock, len(GET % 2)) == GET % 2
    assert bench.ledger.responses["unanswered"] == 1
    assert bench.ledger.events["sent_again"] == 1


def test_a_request_that_has_no_end_yet_is_dropped(bench: Bench) -> None:
    sock = bench.open()
    bench.send(1, GET % 1)
    bench.send(1, GET % 2)
    bench.send(1, HEAD, START)
    bench.reactor.push()
    bench.read(sock, len(GET % 1) * 2 + len(HEAD))
    sock = end(bench, sock)
    bench.send(1, b"abcdef", END)
    bench.send(1, GET % 3)
    served(bench, sock, (2, 3))
    bench.iterate()
    assert bench.dropped() == {DropReason.SHADOW_CLOSED: 1}
    assert bench.ledger.events["sent_again"] == 1


def test_a_request_that_was_cut_off_does_not_go_again(bench: Bench) -> None:
    """Its connection waits for the responses to those before it, and the shadow gives notice meanwhile."""
    sock = bench.open()
    for number in (1, 2):
        bench.send(1, GET % number)
    bench.send(1, HEAD, START)
    bench.reactor.push()
    bench.read(sock, len(GET % 1) * 2 + len(HEAD))
    bench.give(Abort(1, DropReason.GAP, reset=False))
    bench.send(1, GET % 3)
    sock = end(bench, sock)
    served(bench, sock, (2, 3))
    bench.until(lambda: bench.reactor._memory.resend_quota.count == 0)
    assert bench.dropped() == {DropReason.GAP: 1}
    assert bench.ledger.events["sent_again"] == 1
    assert bench.ledger.responses["unanswered"] == 0


def test_a_request_larger_than_the_copies_is_unanswered(bench: Bench) -> None:
    large = b"GET / HTTP/1.1\r\nX: %b\r\n\r\n" % (b"x" * RESEND_BYTES)
    sock = bench.open()
    bench.send(1, GET % 1)
    bench.send(1, large)
    bench.send(1, GET % 2)
    bench.read(sock, len(GET % 1) * 2 + len(large))
    sock = end(bench, sock)
    assert bench.read(sock, len(GET % 2)) == GET % 2
    assert bench.ledger.responses["unanswered"] == 1


def test_a_flow_that_ended_is_answered_first(bench: Bench) -> None:
    sock = bench.open()
    for number in range(3):
        bench.send(1, GET % number)
    bench.give(Finish(1))
    bench.read(sock, len(GET % 0) * 3)
    sock = end(bench, sock)
    assert not bench.reactor.idle()
    served(bench, sock, (1, 2))
    settled(bench, 2)
    assert bench.reactor.idle()


def test_where_the_shadow_has_gone_they_are_unanswered(bench: Bench) -> None:
    """They are in the ledger: nothing is dropped."""
    sock = bench.open()
    for number in range(3):
        bench.send(1, GET % number)
    bench.read(sock, len(GET % 0) * 3)
    bench.listener.close()
    sock.sendall(CLOSE)
    sock.close()
    bench.until(lambda: bench.ledger.responses["unanswered"] == 2)
    assert bench.dropped() == {}


def long(count: int) -> list[bytes]:
    """Long ones, of which each is another one."""
    return [b"GET /%04d HTTP/1.1\r\nX: %b\r\n\r\n" % (number, b"x" * 4_000) for number in range(count)]


def test_of_what_went_in_part_the_second_time_all_goes_a_third_time() -> None:
    """The second connection is reset before all that goes again has gone there."""
    sent = long(2_400)  # more than the kernel takes
    with Bench(queue_bytes=1 << 30, queues_bytes=1 << 30) as bench:
        sock = bench.open()
        for each in [GET % 1, *sent]:
            bench.send(1, each)
        bench.read(sock, len(GET % 1) + len(b"".join(sent)))
        bench.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
        second = end(bench, sock)
        bench.read(second, 2 * len(sent[0]))
        second.sendall(KEEP * 2)  # notice was not given again after as many
        queue = bench.reactor._lanes[1].queue
        bench.until(lambda: len(queue) < 2_390 and queue[0].offset > 0)
        number = len(sent) - len(queue)
        second.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        second.close()
        third = bench.accept()
        assert bench.read(third, len(sent[number])) == sent[number]
        assert bench.ledger.responses["unanswered"] == number - 2
        assert bench.dropped() == {}


def test_what_went_in_part_the_first_time_is_dropped(bench: Bench) -> None:
    """It is behind those that go again."""
    sock = bench.open()
    lane = bench.reactor._lanes[1]
    assert lane.sock is not None
    lane.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 30_000)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 30_000)
    for data in (GET % 1, GET % 2, HEAD + bytes(1 << 21), GET % 3):
        bench.send(1, data)
    assert lane.queue[0].offset
    sock = end(bench, sock, reset=True)
    served(bench, sock, (2, 3))
    bench.iterate()
    assert bench.dropped() == {DropReason.SHADOW_CLOSED: 1}
    assert bench.ledger.events["sent_again"] == 1


def test_of_what_went_in_part_the_copy_is_not_used() -> None:
    """Though it is small enough to have one."""
    lane = Lane(1, True, QueueMemory(1 << 20, 1 << 20), Ledger())
    lane.framer = ResponseFramer(4_096, FramingPool(1 << 20))
    for number in range(3):
        if number:
            lane.resendable.add(GET % number, WHOLE)
        lane.framer.expect(WHOLE)
    lane.sent_in_part(GET % 2, len(GET % 2), WHOLE, 5)
    lane.framer.feed(CLOSE)
    assert lane.repeatable() == [(GET % 1, WHOLE)]
    lane.drop_all(DropReason.SHADOW_CLOSED)


def waiting(*requests: tuple[bytes, int]) -> Lane:
    """A lane of which these were sent, the first alone."""
    lane = Lane(1, True, QueueMemory(1 << 20, 1 << 20), Ledger())
    lane.framer = ResponseFramer(4_096, FramingPool(1 << 20))
    for number, (data, flags) in enumerate(requests):
        if number:
            lane.resendable.add(data, flags)
        lane.framer.expect(flags)
        lane.sent_whole(len(data), flags)
    return lane


def test_a_tunnel_does_not_go_again() -> None:
    upgrade = b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: a\r\n\r\n"
    lane = waiting((GET % 0, WHOLE), (GET % 1, WHOLE), (upgrade, WHOLE | TUNNEL))
    assert lane.framer is not None
    lane.framer.feed(CLOSE)
    assert lane.repeatable() == [(GET % 1, WHOLE)]


def test_a_request_that_cannot_be_sent_any_more_goes_behind_those_that_go_again(bench: Bench) -> None:
    """Sending finds out first that the shadow has gone, before its last response was read."""
    sock = bench.open()
    for number in range(3):
        bench.send(1, GET % number)
    bench.read(sock, len(GET % 0) * 3)
    sock.sendall(CLOSE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()
    bench.send(1, GET % 3)
    sock = bench.accept()
    served(bench, sock, (1, 2, 3))
    settled(bench, 2)


def test_what_is_no_response_behind_the_notice_makes_all_doubtful(bench: Bench) -> None:
    sock = bench.open()
    for number in range(3):
        bench.send(1, GET % number)
    bench.read(sock, len(GET % 0) * 3)
    sock.sendall(CLOSE + b"what is this?")
    sock.close()
    bench.until(lambda: bench.ledger.responses["unanswered"] == 2)
    assert bench.ledger.events["sent_again"] == 0


@pytest.mark.parametrize("more", [KEEP, KEEP + KEEP[:30], KEEP[:30]], ids=["response", "response and more", "part"])
def test_who_goes_on_behind_the_notice_may_have_done_all(bench: Bench, more: bytes) -> None:
    sock = bench.open()
    for number in range(5):
        bench.send(1, GET % number)
    bench.read(sock, len(GET % 0) * 5)
    sock.sendall(CLOSE + more)
    sock.close()
    bench.until(lambda: bench.ledger.responses["unanswered"] == 4 - more.startswith(KEEP))
    assert bench.ledger.events["sent_again"] == 0


def test_where_responses_cannot_be_read_no_copies_are_kept(bench: Bench) -> None:
    sock = bench.open()
    for number in range(3):
        bench.send(1, GET % number)
    bench.read(sock, len(GET % 0) * 3)
    assert bench.reactor._memory.resend_quota.count
    sock.sendall(b"what is this?")
    bench.until(lambda: bench.ledger.responses["garbage"] == 1)
    bench.send(1, GET % 3)
    assert bench.reactor._memory.resend_quota.count == 0


def test_what_is_to_go_again_is_waited_for_at_the_end(bench: Bench) -> None:
    unread(bench, 6)
    bench.iterate()
    assert bench.reactor._memory.repeats
    assert not bench.reactor._memory.bytes
    assert not bench.reactor.idle()


def test_copies_are_bounded() -> None:
    of_all = ResendQuota(3 * 4 * RESEND_BYTES)
    ours, others = Resendable(of_all), Resendable(of_all)
    ours.add(GET % 0, WHOLE)
    ours.add(GET % 1 + bytes(RESEND_BYTES), WHOLE)
    ours.add(HEAD, WHOLE)
    others.add(GET % 2, WHOLE)
    others.add(GET % 3, WHOLE)
    assert (ours.requests, others.requests) == ([GET % 0, b"", b""], [GET % 2, GET % 3])
    others.add(GET % 4, WHOLE)
    assert others.requests == [GET % 2, GET % 3, b""]
    ours.prune(1)
    assert ours.requests == [b""]
    others.prune(0)
    ours.prune(0)
    assert of_all.count == 0


def test_a_request_that_waits_alone_costs_no_copy(bench: Bench) -> None:
    bench.give(Open(1, True))
    bench.send(1, GET % 1)
    sock = bench.accept()
    bench.read(sock, len(GET % 1))
    assert bench.reactor._memory.resend_quota.count == 0
    bench.send(1, GET % 2)
    assert bench.reactor._memory.resend_quota.count == 1
    sock.sendall(OK * 2)
    bench.iterate()
    assert bench.reactor._memory.resend_quota.count == 0
