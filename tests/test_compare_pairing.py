# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from typing import Final

import pytest

from tapmirror.compare.operations import OPENING
from tapmirror.compare.pairing import DELIVERY_BYTES, PENDING_BYTES, SAMPLE_BODY, Conversation
from tapmirror.events import NO_BODY, TUNNEL
from tapmirror.exchange import Asked, Calls, Exchange, Failure, Unpaired
from tapmirror.framing.response_content import NOTHING, ReaderBounds, ResponseMemory

BOUNDS: Final = ReaderBounds(head_bytes=4096, hash_bytes=1 << 20, awaited=64)
ROOM: Final = 1 << 20
PRODUCTION: Final = -1
"""In place of a shadow's number: a request is unpaired with all of them."""


class Outcomes:
    def __init__(self) -> None:
        self.pairs: list[Exchange] = []
        self.lost: list[tuple[int, Unpaired]] = []

    def paired(self, exchange: Exchange) -> None:
        self.pairs.append(exchange)
        self.lost += exchange.left_out.items()

    def unpaired(self, reason: Unpaired) -> None:
        self.lost.append((PRODUCTION, reason))


class Talk:
    """A connection with one shadow, as a test writes it down."""

    def __init__(self, midstream: bool = False, bounds: ReaderBounds = BOUNDS, shadows: int = 1) -> None:
        self.out = Outcomes()
        self.memory = ResponseMemory(ROOM)
        self.conversation = Conversation(bounds, self.memory, self.out, midstream, shadows)
        self.number = 0
        self.time = 1000

    def ask(self, flags: int = 0, *, shadow: bool = True, end: bool = True) -> int:
        self.number += 1
        number = self.number
        asked = Asked(number, b"GET", b"/%d" % number, b"")
        self.conversation.request(asked, flags, 100, float(number))
        if shadow:
            self.conversation.asked(0, number, flags)
            self.conversation.sent(0, number, self.tick(), 5)
        self.conversation.decided(number)
        if end:
            self.conversation.request_ended(number, self.tick())
        return number

    def tick(self) -> int:
        self.time += 10
        return self.time

    def production_data(self, data: bytes) -> None:
        self.conversation.production_data(data, self.tick())

    def shadow(self, data: bytes) -> None:
        self.conversation.shadow_data(0, data, self.tick())

    def statuses(self) -> list[tuple[int, int, list[int]]]:
        return [
            (
                pair.asked.number,
                pair.production.status,
                [delivery.response.status for delivery in pair.deliveries.values()],
            )
            for pair in self.out.pairs
        ]


def ok(body: str = "x", status: int = 200) -> bytes:
    return f"HTTP/1.1 {status} OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def test_a_request_with_both_responses() -> None:
    talk = Talk()
    talk.ask()
    talk.production_data(ok())
    assert not talk.out.pairs
    talk.shadow(ok(status=500))
    assert talk.statuses() == [(1, 200, [500])]
    (pair,) = talk.out.pairs
    assert (pair.deliveries[0].sent_ns, pair.asked.ended_ns, pair.production.last_ns) == (1010, 1020, 1030)
    assert pair.deliveries[0].response.last_ns == 1040
    assert len(talk.conversation) == 0
    assert talk.memory.free == ROOM


def test_what_a_shadow_said_unasked_is_given_back_where_it_is_not_followed_any_more() -> None:
    talk = Talk()
    talk.ask()
    talk.shadow(ok(body="x" * 20)[:-10])
    talk.conversation.withdraw(0, 1)
    assert not talk.conversation.owes(0)
    talk.conversation.unfollow(0)
    talk.conversation.close(Unpaired.SHUTDOWN)
    assert talk.memory.free == ROOM


def test_pipelined_requests_are_paired_in_order() -> None:
    talk = Talk()
    for _ in range(3):
        talk.ask()
    talk.shadow(ok(status=201) + ok(status=202) + ok(status=203))
    talk.production_data(ok(status=201) + ok(status=202) + ok(status=203))
    assert talk.statuses() == [(n, 200 + n, [200 + n]) for n in (1, 2, 3)]


def test_a_response_tells_when_the_one_before_it_on_its_connection_was_complete() -> None:
    talk = Talk()
    for _ in range(3):
        talk.ask()
    for response in (ok(), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", ok()):
        talk.production_data(response)
        talk.shadow(response)
    assert [pair.production.since_ns for pair in talk.out.pairs] == [0, 1070, 1090]
    assert [pair.deliveries[0].response.since_ns for pair in talk.out.pairs] == [0, 1080, 1100]
    talk.conversation.shadow_ended(0, talk.tick(), reset=False)
    talk.ask()
    talk.production_data(ok())
    talk.shadow(ok())
    assert talk.out.pairs[-1].deliveries[0].response.since_ns == 0  # another connection


def test_a_response_before_the_request_ends() -> None:
    talk = Talk()
    talk.ask(end=False)
    talk.production_data(ok(status=413))
    talk.shadow(ok(status=413))
    assert not talk.out.pairs
    talk.conversation.request_ended(1, talk.tick())
    assert talk.statuses() == [(1, 413, [413])]


def test_a_request_that_no_shadow_gets_is_told_of() -> None:
    talk = Talk()
    talk.ask(shadow=False)
    talk.conversation.left_out(0, 1, Unpaired.NOT_SENT)
    talk.production_data(ok())
    assert talk.statuses() == [(1, 200, [])]
    assert talk.out.lost == [(0, Unpaired.NOT_SENT)]


def test_a_request_is_told_of_once_for_each_shadow() -> None:
    """What a shadow did not get and production did not answer is one request, and so is what is left out twice."""
    talk = Talk()
    talk.ask(shadow=False)
    talk.conversation.left_out(0, 1, Unpaired.NOT_SENT)
    talk.conversation.production_ended(talk.tick(), reset=True)
    assert talk.out.lost == [(PRODUCTION, Unpaired.UNANSWERED)]
    talk = Talk()
    talk.ask()
    talk.conversation.left_out(0, 1, Unpaired.NOT_SENT)
    talk.conversation.left_out(0, 1, Unpaired.RECONNECT)
    talk.production_data(ok())
    assert talk.out.lost == [(0, Unpaired.NOT_SENT)]


def test_what_was_never_sent_is_not_for_the_shadow_to_answer() -> None:
    talk = Talk()
    conversation = talk.conversation
    conversation.request(Asked(1, b"GET", b"/", b""), 0, 100, 1.0)
    conversation.chosen(0, 1)
    conversation.chosen(1, 1)
    conversation.asked(1, 1, 0)
    conversation.decided(1)
    conversation.request_ended(1, talk.tick())
    talk.production_data(ok())
    conversation.expire(50.0, talk.tick())
    (pair,) = talk.out.pairs
    assert [(shadow, delivery.response.failure) for shadow, delivery in pair.deliveries.items()] == [
        (1, Failure.TIMEOUT)
    ]
    assert talk.out.lost == [(0, Unpaired.NOT_SENT)]


def test_what_is_given_up_after_the_shadow_refused_it_leaves_nothing() -> None:
    """A shadow may answer before it has read a long request, of which the rest is dropped then."""
    talk = Talk()
    talk.ask(end=False)
    talk.shadow(ok(body="too long", status=413))
    talk.conversation.left_out(0, 1, Unpaired.NOT_SENT)
    talk.production_data(ok())
    assert not talk.out.pairs, "it has not ended"
    talk.conversation.request_ended(1, talk.tick())
    assert (talk.statuses(), talk.out.lost) == ([(1, 200, [])], [(0, Unpaired.NOT_SENT)])
    assert talk.memory.free == ROOM


def test_a_request_without_room_keeps_its_place() -> None:
    talk = Talk()
    talk.memory.free = most = PENDING_BYTES + DELIVERY_BYTES + 100
    head = b"GET / HTTP/1.1\r\nX: " + bytes(100)
    talk.conversation.request(Asked(1, b"GET", b"/", head), 0, 100, 1.0)
    talk.number = 1
    assert (len(talk.conversation), talk.memory.free) == (0, most)
    talk.production_data(ok(status=500))
    talk.ask()
    talk.production_data(ok())
    talk.shadow(ok())
    assert talk.statuses() == [(2, 200, [200])]
    assert (talk.out.lost, talk.memory.free) == ([(PRODUCTION, Unpaired.LIMIT)], most)


@pytest.mark.parametrize(
    ("calls", "sizes", "kept"),
    [
        (None, [SAMPLE_BODY], SAMPLE_BODY),
        (None, [SAMPLE_BODY, 1], 0),
        (Calls.JSON, [SAMPLE_BODY, 1], SAMPLE_BODY + 1),
        (Calls.JSON, [10, OPENING, 10], OPENING),
        (Calls.JSON, [1 << 16], OPENING),
        (Calls.JSON, [10, 3000, 10], 3020),
    ],
)
def test_of_a_long_body_is_kept_what_may_name_an_operation(calls: Calls | None, sizes: list[int], kept: int) -> None:
    talk = Talk()
    body = random.Random(1).randbytes(sum(sizes))
    talk.number = 1
    asked = Asked(1, b"POST", b"/", b"", calls=calls)
    talk.conversation.request(asked, 0, 100, 1.0)
    at = 0
    for size in sizes:
        talk.conversation.request_body(1, memoryview(body)[at : at + size])
        at += size
    assert (asked.body, asked.longer) == (body[:kept], sum(sizes) > SAMPLE_BODY)
    assert talk.memory.free == ROOM - PENDING_BYTES - DELIVERY_BYTES - kept
    talk.conversation.close(Unpaired.SHUTDOWN)
    assert talk.memory.free == ROOM


def test_a_body_without_room_is_not_taken_up_again() -> None:
    talk = Talk()
    talk.memory.free = PENDING_BYTES + DELIVERY_BYTES + 100
    asked = Asked(1, b"POST", b"/", b"", calls=Calls.JSON)
    talk.conversation.request(asked, 0, 100, 1.0)
    for piece in (b"a" * 90, b"b" * 20, b"c"):
        talk.conversation.request_body(1, piece)
    assert (asked.body, asked.longer, talk.memory.free) == (b"", True, 100)


TINY = b"GET / HTTP/1.1"


def tiny(number: int) -> Asked:
    return Asked(number, TINY[:3], TINY[4:5], bytes(bytearray(TINY)), ended_ns=number << 40)


@pytest.mark.parametrize("shadows", [1, 2, 4])
def test_of_the_room_is_taken_what_small_requests_take_of_the_memory(shadows: int) -> None:
    talk = Talk(bounds=ReaderBounds(1000, 1000, 10_000), shadows=shadows)
    talk.memory.free = memory = 1 << 30
    tracemalloc.start()
    try:
        for number in range(1, 2001):
            talk.conversation.request(tiny(number), 0, 100, 1.0 + number)
            for shadow in range(shadows):
                talk.conversation.asked(shadow, number, 0)
                talk.conversation.sent(shadow, number, number << 40, number << 20, number << 20)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken < 1.05 * (memory - talk.memory.free) < 1.4 * taken


def test_requests_that_were_given_up_hold_little_while_a_shadow_owes_their_responses() -> None:
    talk = Talk(bounds=ReaderBounds(1000, 1000, 10_000))
    talk.memory.free = 1 << 30
    tracemalloc.start()
    try:
        for number in range(1, 2001):
            talk.conversation.request(tiny(number), 0, 100, 1.0)
            talk.conversation.asked(0, number, 0)
        talk.conversation.expire(2.0, 1)
        assert tracemalloc.get_traced_memory()[0] < 2000 * 400
    finally:
        tracemalloc.stop()


def test_of_a_long_head_nothing_is_kept_when_it_is_over() -> None:
    talk = Talk()
    talk.ask()
    long = f"HTTP/1.1 200 OK\r\nX: {'x' * 3000}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()
    talk.shadow(long)
    side = talk.conversation._sides[0]
    assert len(side.head) < 100
    assert not side.reader._head
    talk.production_data(ok())
    talk.ask()
    talk.conversation.shadow_ended(0, talk.tick(), reset=False)
    talk.production_data(ok())
    assert talk.out.lost == [(0, Unpaired.RECONNECT)]
    assert talk.memory.free == ROOM


def test_a_request_given_up_half_way_to_the_shadow() -> None:
    talk = Talk()
    talk.ask()
    talk.conversation.left_out(0, 1, Unpaired.NOT_SENT)
    talk.production_data(ok())
    talk.shadow(ok())
    assert talk.statuses() == [(1, 200, [])]
    assert talk.memory.free == ROOM


def test_a_shadow_that_hangs_has_failed() -> None:
    talk = Talk()
    talk.ask()
    talk.ask()
    talk.production_data(ok() + ok())
    talk.shadow(ok())
    talk.conversation.timed_out(0, talk.tick())
    assert talk.statuses() == [(1, 200, [200]), (2, 200, [0])]
    assert talk.out.pairs[1].deliveries[0].response.failure is Failure.TIMEOUT
    talk.conversation.given_up(0, Unpaired.NOT_SENT)
    assert talk.out.lost == []
    assert talk.memory.free == ROOM


@pytest.mark.parametrize("timed", [True, False])
def test_replay_is_told_which_requests_are_timed(timed: bool) -> None:
    talk = Talk()
    talk.conversation.request(Asked(1, b"GET", b"/", b"", timed=timed), 0, 0, 1.0)
    assert talk.conversation.asked(0, 1, 0) is timed
    assert talk.conversation.asked(0, 2, 0) is False, "nothing is known of it"
    assert (talk.conversation.times(1), talk.conversation.times(2)) == (timed, False)


def test_after_a_hole_a_client_that_waits_is_paired_again_once_it_is_certain() -> None:
    talk = Talk()
    talk.ask()
    talk.conversation.production_gap(50, talk.tick())
    talk.shadow(ok())
    assert talk.out.lost == [(PRODUCTION, Unpaired.GAP)]
    talk.ask()
    talk.production_data(ok())
    talk.shadow(ok())
    assert not talk.out.pairs
    talk.ask()
    assert talk.statuses() == [(2, 200, [200])]


def test_what_looked_certain_after_a_hole_and_was_not_is_given_up() -> None:
    talk = Talk()
    talk.ask()
    talk.conversation.production_gap(50, talk.tick())
    talk.ask()
    talk.production_data(ok("the first's"))
    talk.shadow(ok() + ok())
    talk.production_data(ok("the second's"))
    talk.ask()
    talk.production_data(ok())
    talk.shadow(ok())
    talk.conversation.close(Unpaired.UNANSWERED)
    assert [pair.asked.number for pair in talk.out.pairs] == [3]
    assert talk.out.lost == [(PRODUCTION, Unpaired.GAP), (PRODUCTION, Unpaired.ORDER)]


def test_if_the_first_request_after_a_hole_is_given_up_nothing_is_certain_yet() -> None:
    talk = Talk()
    talk.conversation.requests_lost()
    talk.ask(end=False)
    talk.conversation.request_broken(1)
    talk.ask()
    talk.production_data(ok("the lost one's") + ok("the first's"))
    talk.shadow(ok() * 2)
    talk.ask()
    assert not talk.out.pairs


def test_the_rest_of_a_response_is_not_taken_for_the_next_one() -> None:
    talk = Talk()
    talk.ask()
    talk.conversation.production_gap(50, talk.tick())
    talk.ask()
    talk.production_data(b"rest of a body")
    talk.ask()
    talk.production_data(ok())
    talk.shadow(ok() * 3)
    talk.ask()
    assert [pair.asked.number for pair in talk.out.pairs] == [3]


def test_after_a_hole_a_client_that_pipelines_is_never_paired_again() -> None:
    talk = Talk()
    talk.ask()
    talk.ask()
    talk.production_data(ok())
    talk.shadow(ok())
    talk.conversation.production_gap(50, talk.tick())
    for _ in range(3):
        talk.ask()
        talk.production_data(ok())
        talk.shadow(ok())
    assert [pair.asked.number for pair in talk.out.pairs] == [1]
    assert Counter(talk.out.lost) == {(PRODUCTION, Unpaired.GAP): 4}


def test_a_request_lost_while_another_waits_is_pipelining() -> None:
    talk = Talk()
    talk.ask()
    talk.conversation.requests_lost()
    talk.ask()
    talk.production_data(ok("the first's"))
    talk.shadow(ok() * 2)
    talk.ask()
    assert not talk.out.pairs


def test_joined_mid_stream() -> None:
    talk = Talk(midstream=True)
    talk.production_data(b"rest of an answer")
    talk.ask()
    talk.production_data(ok())
    talk.shadow(ok())
    talk.ask()
    assert talk.statuses() == [(1, 200, [200])]


def test_a_hole_among_the_requests() -> None:
    talk = Talk()
    talk.ask(end=False)
    talk.conversation.requests_lost()
    talk.production_data(ok())
    assert talk.out.lost == [(PRODUCTION, Unpaired.ORDER)]
    talk.shadow(ok())
    talk.ask()
    talk.production_data(ok(status=404))
    talk.shadow(ok(status=404))
    talk.ask()
    assert talk.statuses() == [(2, 404, [404])]


def test_a_shadow_that_fails() -> None:
    talk = Talk()
    for _ in range(4):
        talk.ask()
    talk.production_data(ok() * 4)
    talk.shadow(ok() + b"garbage")
    talk.ask()
    talk.production_data(ok())
    talk.conversation.shadow_ended(0, talk.tick(), True)
    talk.ask()
    talk.production_data(ok())
    talk.shadow(ok()[:-1])
    talk.conversation.shadow_ended(0, talk.tick(), True)
    talk.ask()
    talk.production_data(ok())
    talk.conversation.expire(100.0, talk.tick())
    failures = [pair.deliveries[0].response.failure for pair in talk.out.pairs]
    assert failures == [None, *[Failure.INVALID] * 4, Failure.CLOSED, Failure.TIMEOUT]
    assert talk.memory.free == ROOM


def test_a_shadow_that_closes_a_kept_connection_as_the_request_comes_did_not_fail() -> None:
    talk = Talk()
    talk.ask()
    talk.production_data(ok())
    talk.shadow(ok())
    talk.ask()
    talk.production_data(ok())
    talk.conversation.shadow_ended(0, talk.time - 20, False)
    assert talk.out.lost == [(0, Unpaired.RECONNECT)]
    talk.ask()
    talk.production_data(ok())
    talk.conversation.shadow_ended(0, talk.tick() + 1000, False)
    assert talk.out.pairs[-1].deliveries[0].response.failure is Failure.CLOSED


def drifting(talk: Talk, *, pipelined: bool = False, reason: Unpaired = Unpaired.GAP) -> None:
    """Of production's response to a request only the beginning is seen; the shadow has answered."""
    talk.ask()
    if pipelined:
        talk.conversation.pipelined()
    talk.production_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    talk.conversation.production_gap(1000, talk.tick(), reason)
    talk.shadow(ok())


def test_a_response_whose_end_is_not_seen_is_over_when_the_client_goes_on() -> None:
    talk = Talk()
    drifting(talk)
    assert not talk.out.pairs
    drifting(talk)
    assert talk.statuses() == [(1, 200, [200])]
    assert talk.conversation.suspend()
    assert talk.statuses() == [(1, 200, [200]), (2, 200, [200])]
    assert (talk.out.lost, talk.memory.free) == ([], ROOM)


def test_a_connection_does_not_rest_while_a_request_waits_for_its_response() -> None:
    """The next one keeps its place, for the client did not wait: its response is not taken for the other's."""
    talk = Talk()
    talk.ask()
    assert not talk.conversation.suspend()
    talk.conversation.request(None, 0, NOTHING, 2.0)
    talk.production_data(ok(status=201) + ok(status=202))
    talk.shadow(ok(status=203))
    assert talk.statuses() == [(1, 201, [203])]
    assert talk.conversation.suspend()
    assert (talk.out.lost, talk.memory.free) == ([], ROOM)


def test_what_it_did_not_wait_for_is_no_response_of_another_protocol() -> None:
    """It asks before the end, and nothing before showed that it does."""
    talk = Talk()
    drifting(talk)
    talk.ask()
    talk.production_data(b"hello\r\n0\r\n\r\n")
    talk.ask()
    assert talk.statuses() == [(1, 200, [200])]
    assert talk.out.lost == [(PRODUCTION, Unpaired.ORDER)] * 2
    talk = Talk()
    drifting(talk)
    talk.ask()
    talk.production_data(ok())
    talk.shadow(ok())
    talk.ask()
    talk.production_data(b"SSH-2.0-x\r\n")
    assert talk.out.lost == [(PRODUCTION, Unpaired.UNPARSED)]


@pytest.mark.parametrize("reason", [Unpaired.GAP, Unpaired.CUT])
def test_unless_the_client_does_not_wait_for_responses(reason: Unpaired) -> None:
    talk = Talk()
    drifting(talk, pipelined=True, reason=reason)
    talk.ask()
    assert talk.out.lost == [(PRODUCTION, reason)] * 2
    assert not talk.out.pairs


def test_or_when_time_has_passed_and_the_shadow_has_answered() -> None:
    talk = Talk()
    drifting(talk)
    talk.conversation.expire(1.0, talk.tick())
    assert not talk.out.pairs
    talk.conversation.expire(2.0, talk.tick())
    assert talk.statuses() == [(1, 200, [200])]
    drifting(talk)
    talk.conversation.close(Unpaired.SHUTDOWN)
    assert len(talk.out.pairs) == 2 and not talk.out.lost
    talk = Talk()
    talk.ask()
    talk.production_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    talk.conversation.production_gap(1000, talk.tick())
    talk.conversation.expire(2.0, talk.tick())
    assert talk.out.lost == [(PRODUCTION, Unpaired.UNANSWERED)], "it may be a stream that goes on"


def test_a_stream_that_does_not_end_is_no_fault_of_the_shadow() -> None:
    talk = Talk()
    drifting(talk)
    talk.conversation.production_ended(talk.tick(), reset=True)
    assert talk.out.lost == [(PRODUCTION, Unpaired.UNANSWERED)]


@pytest.mark.parametrize(("before", "failed"), [(3, False), (0, True)])
def test_what_it_answered_before_it_was_followed_tells_a_kept_connection(before: int, failed: bool) -> None:
    talk = Talk()
    talk.conversation.follow(0, [], before)
    talk.ask()
    talk.production_data(ok())
    talk.conversation.shadow_ended(0, talk.time - 20, reset=True)
    assert talk.out.lost == ([] if failed else [(0, Unpaired.RECONNECT)])
    assert [delivery.response.failure for pair in talk.out.pairs for delivery in pair.deliveries.values()] == (
        [Failure.CLOSED] if failed else []
    )


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"])
def test_of_those_that_wait_for_a_slow_shadow_one_fails_when_it_closes(begun: bytes) -> None:
    """A reset with a hundred requests behind it (waitress after a stream) were a hundred errors."""
    talk = Talk()
    for _ in range(4):
        talk.ask()
        talk.production_data(ok())
    talk.shadow(ok() + begun)
    talk.conversation.shadow_ended(0, talk.tick() + 10_000_000, reset=True)
    failures = [delivery.response.failure for pair in talk.out.pairs for delivery in pair.deliveries.values()]
    assert failures == [None, Failure.CLOSED]
    assert talk.out.lost == [(0, Unpaired.RECONNECT)] * 2


@pytest.mark.parametrize(
    "last",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\n\r\nall that comes",
    ],
)
def test_what_was_sent_behind_the_last_response_of_a_connection_did_not_fail(last: bytes) -> None:
    """As where a shadow that lags behind closes after so many requests, as nginx does."""
    talk = Talk()
    for _ in range(3):
        talk.ask()
        talk.production_data(ok())
    talk.shadow(last)
    talk.tick()
    talk.conversation.shadow_ended(0, talk.tick(), reset=False)
    assert talk.out.lost == [(0, Unpaired.RECONNECT)] * 2
    assert talk.statuses() == [(1, 200, [200]), (2, 200, []), (3, 200, [])]


def test_a_shadow_that_keeps_the_connection_and_closes_it_has_failed() -> None:
    talk = Talk()
    for _ in range(2):
        talk.ask()
        talk.production_data(ok())
    talk.shadow(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx")
    talk.conversation.shadow_ended(0, talk.tick(), reset=False)
    assert [pair.deliveries[0].response.failure for pair in talk.out.pairs] == [None, Failure.CLOSED]


def test_a_kept_connection_whose_response_ended_in_bytes_not_looked_at_is_no_failure_either() -> None:
    talk = Talk()
    talk.ask()
    talk.production_data(ok())
    talk.shadow(b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n" + b"x" * 1_500_000)
    skippable = talk.conversation.shadow_skippable(0)
    assert skippable == 500_000
    talk.conversation.shadow_gap(0, skippable, talk.tick())
    talk.ask()
    talk.production_data(ok())
    talk.conversation.shadow_ended(0, talk.time - 20, False)
    assert talk.out.lost == [(0, Unpaired.RECONNECT)]


def test_upgrades() -> None:
    talk = Talk()
    talk.ask(TUNNEL)
    talk.production_data(b"HTTP/1.1 101 Up\r\n\r\nframes")
    talk.shadow(ok(status=400))
    assert talk.statuses() == [(1, 101, [400])]
    talk.ask()
    assert talk.out.lost == [(PRODUCTION, Unpaired.TUNNEL)]


def test_production_that_does_not_answer() -> None:
    talk = Talk()
    talk.ask()
    talk.ask()
    talk.production_data(ok())
    talk.shadow(ok() + ok())
    talk.conversation.production_ended(talk.tick(), True)
    assert talk.statuses() == [(1, 200, [200])]
    assert talk.out.lost == [(PRODUCTION, Unpaired.UNANSWERED)]
    talk.ask()
    assert len(talk.out.lost) == 2


def test_a_broken_request_keeps_its_place() -> None:
    talk = Talk()
    talk.ask(end=False)
    talk.conversation.request_broken(1)
    talk.production_data(ok(status=400))
    talk.shadow(ok(status=400))
    talk.ask()
    talk.production_data(ok())
    talk.shadow(ok())
    assert talk.statuses() == [(2, 200, [200])]


def test_requests_without_a_response_are_bounded() -> None:
    talk = Talk()
    for _ in range(200):
        talk.ask()
    assert len(talk.conversation) <= BOUNDS.awaited
    talk.conversation.close(Unpaired.SHUTDOWN)
    assert Counter(dict(Counter(reason for _, reason in talk.out.lost)))[Unpaired.LIMIT] == 200


# --- whatever happens, never a wrong pair

KINDS: Final = ("length", "chunked", "head", "no content", "continue", "not modified")


def written(kind: str, name: str) -> bytes:
    """A response that names its request in its head, whatever its kind."""
    start = f"X-Answers: {name}\r\n"
    match kind:
        case "length":
            return f"HTTP/1.1 200 OK\r\n{start}Content-Length: {len(name) + 40}\r\n\r\n{name}{'.' * 40}".encode()
        case "chunked":
            body = f"{len(name):x}\r\n{name}\r\n14\r\n{'.' * 20}\r\n0\r\n\r\n"
            return f"HTTP/1.1 200 OK\r\n{start}Transfer-Encoding: chunked\r\n\r\n{body}".encode()
        case "head":
            return f"HTTP/1.1 200 OK\r\n{start}Content-Length: 1000\r\n\r\n".encode()
        case "no content":
            return f"HTTP/1.1 204 No\r\n{start}\r\n".encode()
        case "not modified":
            return f"HTTP/1.1 304 No\r\n{start}Content-Length: 10\r\n\r\n".encode()
        case _:
            return b"HTTP/1.1 100 Continue\r\n\r\n" + written("length", name)


class World:
    """A client, production and a shadow, and a tap that loses some of it."""

    def __init__(self, seed: int) -> None:
        self.rand = random.Random(seed)
        self.talk = Talk(midstream=self.rand.random() < 0.1)
        self.pipelines = self.rand.random() < 0.5
        self.loss = self.rand.choice((0.0, 0.02, 0.2))
        self.flags: dict[int, int] = {}
        self.kinds: dict[int, str] = {}
        self.production = b""  # responses not yet sent
        self.shadow = b""
        self.waiting = 0  # requests that the client has no response to
        self.ends: list[int] = []  # how many bytes of production's remain when each of these is answered
        self.open = 0
        self.turns = False  # connections take turns: sometimes this one is not compared
        self.ours = self.follows = self.kept = True
        self.missed = self.came = 0
        self.rested = 0
        self.acked = -1
        self.known = False

    def turn(self) -> None:
        self.ours = not self.ours
        self.kept = not self.ours and self.follows and self.talk.conversation.awaits

    def rests(self, flags: int) -> bool:
        conversation = self.talk.conversation
        if self.came == self.acked:
            conversation.pipelined()
            self.known = True
        self.acked = self.came
        if self.ours:
            if self.follows and self.missed:
                conversation.production_gap(self.missed, self.talk.tick())
            elif not self.follows:
                conversation.resume()
            self.follows, self.missed = True, 0
            return False
        if self.follows:
            if conversation.suspend():
                self.follows, self.missed = False, 0
            else:
                conversation.request(None, flags, NOTHING, self.talk.tick() / 1e9)
        self.rested += 1
        return True

    def ask(self) -> None:
        rand = self.rand
        if self.turns and not self.known and self.ends and self.came != self.acked:
            return  # nobody begins to pipeline amid a response
        self.end()
        if self.turns and rand.random() < 0.15:
            self.turn()
        if self.turns:
            kind = rand.choice(("length", "head"))
            if self.rests(NO_BODY if kind == "head" else 0):
                self.production += written(kind, "rested")
                self.ends.append(len(self.production))
                return
            self.asks(kind)
            return
        self.asks(rand.choice(KINDS))

    def asks(self, kind: str) -> None:
        rand, talk = self.rand, self.talk
        flags = NO_BODY if kind == "head" else 0
        if rand.random() < self.loss / 4:
            talk.conversation.requests_lost()
            self.production += written("length", "unseen")
            self.ends.append(len(self.production))
            return
        shadow = rand.random() < 0.9
        number = talk.ask(flags, shadow=shadow, end=False)
        self.open = number
        if not shadow:
            talk.conversation.left_out(0, number, Unpaired.NOT_SENT)
        else:
            self.shadow += written(kind, str(number))
        self.production += written(kind, str(number))
        self.ends.append(len(self.production))

    def end(self) -> None:
        if self.open:
            if self.rand.random() < self.loss / 4:
                self.talk.conversation.request_broken(self.open)
            else:
                self.talk.conversation.request_ended(self.open, self.talk.tick())
            self.open = 0

    def produce(self) -> None:
        size = self.rand.choice((1, 20, 60, 200, 1000))
        piece, self.production = self.production[:size], self.production[size:]
        self.ends = [end - len(piece) for end in self.ends if end > len(piece)]
        self.came += len(piece)
        self.kept = self.kept and self.talk.conversation.awaits
        if piece and not (self.ours or self.kept):
            self.missed += len(piece)
        elif piece and self.follows:
            if self.rand.random() < self.loss:
                self.talk.conversation.production_gap(len(piece), self.talk.tick())
            else:
                self.talk.production_data(piece)

    def delivery(self) -> None:
        size = self.rand.choice((1, 20, 60, 200, 1000))
        piece, self.shadow = self.shadow[:size], self.shadow[size:]
        self.talk.shadow(piece)
        if self.rand.random() < self.loss / 10:
            self.talk.conversation.shadow_ended(0, self.talk.tick(), True)
            self.shadow = b""

    def run(self) -> None:
        if self.pipelines:
            self.ask()
            self.ask()
        for _ in range(self.rand.randint(1, 60)):
            if not self.ends or (self.pipelines and len(self.ends) < 6 and self.rand.random() < 0.4):
                self.ask()
            self.rand.choice((self.produce, self.produce, self.delivery, self.delivery, self.end))()
        while self.production or self.shadow:
            self.produce()
            self.delivery()
        self.end()
        self.talk.conversation.close(Unpaired.SHUTDOWN)


def named(head: bytes) -> str:
    return head.partition(b"X-Answers: ")[2].partition(b"\r")[0].decode()


@pytest.mark.parametrize("first", range(0, 4000, 1000))
def test_never_a_wrong_pair(first: int) -> None:
    for seed in range(first, first + 1000):
        world = World(seed)
        world.run()
        check(world)


@pytest.mark.parametrize("first", range(0, 4000, 1000))
def test_never_a_wrong_pair_where_connections_take_turns(first: int) -> None:
    pairs = rested = 0
    for seed in range(first, first + 1000):
        world = World(seed)
        world.turns = True
        world.loss = 0.0
        world.run()
        check(world)
        pairs += len(world.talk.out.pairs)
        rested += world.rested
    assert pairs > 3000 and rested > 3000


def check(world: World) -> None:
    out, number = world.talk.out, world.talk.number
    for pair in out.pairs:
        assert named(pair.production.head) == str(pair.asked.number)
        for delivery in pair.deliveries.values():
            if delivery.response.failure is None:
                assert named(delivery.response.head) == str(pair.asked.number)
    whole = [reason for shadow, reason in out.lost if shadow == PRODUCTION]
    assert len(out.pairs) + len(whole) == number
    assert world.talk.memory.free == ROOM
    if not world.loss and not world.turns and not world.talk.conversation._pipelined:
        assert len(out.pairs) >= number - 1


def test_most_requests_are_paired_in_spite_of_losses() -> None:
    pairs = total = 0
    for seed in range(300):
        world = World(seed)
        world.run()
        if not world.pipelines and 0 < world.loss < 0.1:
            pairs += len(world.talk.out.pairs)
            total += world.talk.number
    assert total > 300
    assert pairs > 0.8 * total


@pytest.mark.parametrize("seed", range(20))
def test_without_loss_every_request_is_paired(seed: int) -> None:
    world = World(seed)
    world.loss, world.talk = 0.0, Talk()
    world.run()
    assert len(world.talk.out.pairs) == world.talk.number
