# SPDX-License-Identifier: Apache-2.0
"""Segments in, commands for replay out: the stages in their order, and the ledger's view of them."""

from __future__ import annotations

from typing import Any

import pytest

from tapmirror.events import (
    ACCEPTED,
    ACK,
    END,
    FIN,
    FROM_SERVER,
    RST,
    START,
    UNACCEPTED,
    Abort,
    Command,
    DropReason,
    Excuse,
    FilterReason,
    Finish,
    Open,
    Send,
    Turn,
)
from tapmirror.ledger import Ledger
from tapmirror.packet import flow_hash
from tapmirror.pipeline import AT_ONCE, Pipeline
from tapmirror.spec import Limits, Pacing, Protocol, Redact, Shadow, TapSpec
from tapmirror.tracer import Loop, Tracer

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
KEY = bytes(40)


class Tap:
    """A pipeline, and what it told replay, with the data copied as replay would have to."""

    def __init__(self, tracer: Tracer | None = None, **spec: Any) -> None:
        self.ledger = Ledger()
        shadow = Shadow(host="10.0.0.9", port=80)
        told = TapSpec(iface="eth0", ports=(80,), shadows=(shadow,), **spec)
        self.pipeline = Pipeline(told, self.ledger, tracer=tracer)
        self.said: list[Command] = []
        self.fed = 0

    def put(self, flags: int, at: int, data: bytes = b"", ack: int = 0, key: bytes = KEY) -> None:
        if not flags & FROM_SERVER:
            self.fed += len(data)
        length = len(data)
        payload = memoryview(b"" if flags & FROM_SERVER else data)
        for command in self.pipeline.feed((key, flags, 1000 + at, ack, length, payload, 0), 1.0):
            self.keep(command)

    def server(self, at: int, flags: int, ack: int, length: int = 0) -> None:
        """A segment of production without its payload."""
        for command in self.pipeline.feed((KEY, FROM_SERVER | flags, at, 1000 + ack, length, b"", 0), 1.0):
            self.keep(command)

    def keep(self, command: Command) -> None:
        if isinstance(command, Send):
            command = Send(command.flow, bytes(command.data), command.size, command.flags)
        self.said.append(command)

    @property
    def sent(self) -> bytes:
        return b"".join(bytes(c.data) for c in self.said if isinstance(c, Send))

    def settled(self) -> int:
        """Bytes passed on, dropped, left out or held."""
        passed = sum(c.size for c in self.said if isinstance(c, Send))
        return passed + self.ledger.bytes.settled() + self.pipeline.held()[1]


def test_a_request_on_a_new_connection() -> None:
    tap = Tap()
    tap.put(ACCEPTED, 0)
    tap.put(ACK, 0, GET, ack=1)
    tap.put(FIN | ACK, len(GET), ack=2)
    assert tap.said == [Open(1, True, KEY), Send(1, GET, len(GET), START | END), Finish(1, answered=True)]
    assert tap.ledger.requests.seen == 1


GOOD = b"HTTP/1.1 204 No\r\n\r\n"


@pytest.mark.parametrize("end", [FIN | ACK, RST | ACK])
def test_what_production_leaves_unanswered_is_no_error_of_the_shadow(end: int) -> None:
    """As nginx does with 444."""
    tap = Tap()
    tap.put(ACCEPTED, 0, ack=1)
    tap.put(ACK, 0, GET, ack=1)
    tap.server(1, end, ack=len(GET))
    reset = [Abort(1, DropReason.INCOMPLETE, True)] if end & RST else []
    assert tap.said[2:] == [Excuse(1), *reset]
    if not reset:
        tap.server(1, end, ack=len(GET))  # again, as its acknowledgement was lost
        tap.server(2, RST, ack=len(GET))
        assert tap.said[2:] == [Excuse(1), Abort(1, DropReason.INCOMPLETE, True)]


@pytest.mark.parametrize("end", [FIN | ACK, RST | ACK])
def test_nothing_is_excused_where_production_answered_or_may_have(end: int) -> None:
    """Answered before its end, idle, asked nothing, or lost bytes of the client's before that."""
    with_it = [(len(GOOD), len(GET), 1)] if end & FIN else []
    for length, at, ack in [(0, len(GET), 20), (0, 0, 1), (0, 2 * len(GET), 1), *with_it]:
        tap = Tap()
        tap.put(ACCEPTED, 0, ack=1)
        if at:
            tap.put(ACK, at - len(GET), GET, ack=1)
        tap.server(ack, end, ack=at, length=length)
        tap.put(RST, at)
        assert Excuse(1) not in tap.said
    raw = Tap(protocol=Protocol.RAW)
    raw.put(ACCEPTED, 0, ack=1)
    raw.put(ACK, 0, GET, ack=1)
    raw.server(1, end, ack=len(GET))
    assert Excuse(1) not in raw.said


@pytest.mark.parametrize(
    ("head", "rest"),
    [
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc", b"def"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc", b"def"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"0\r\n\r\n"),
    ],
)
def test_an_upload_that_was_answered_before_its_end_is_not_excused(head: bytes, rest: bytes) -> None:
    """413, and closed when the rest was read: that acknowledges the response."""
    for response, excused in ((len(GOOD), False), (0, True)):
        tap = Tap()
        tap.put(ACCEPTED, 0, ack=1)
        tap.put(ACK, 0, head, ack=1)
        tap.put(ACK, len(head), rest, ack=1 + response)
        tap.server(1 + response, FIN | ACK, ack=len(head + rest))
        assert (Excuse(1) in tap.said) is excused


def test_what_came_before_production_accepted_follows_its_acceptance() -> None:
    for protocol, http in ((Protocol.HTTP, True), (Protocol.AUTO, True), (Protocol.RAW, False)):
        tap = Tap(protocol=protocol)
        tap.put(ACK | UNACCEPTED, 0, GET[:5], ack=1)
        tap.put(ACK | UNACCEPTED, 5, GET[5:], ack=1)
        tap.put(FIN | ACK | UNACCEPTED, len(GET), ack=1)
        assert tap.said == [] and tap.settled() == tap.fed
        tap.put(ACCEPTED, 0, ack=1)
        assert tap.said[0] == Open(1, http, KEY) and isinstance(tap.said[-1], Finish)
        assert tap.sent == GET and tap.settled() == tap.fed


def test_what_waited_for_the_acceptance_stays_behind_what_is_too_much_to_be_done_at_once() -> None:
    """A connection joined in mid-stream, of which the handshake is told later."""
    tap = Tap(protocol=Protocol.HTTP)
    many, last = GET * (2 * AT_ONCE // len(GET)), b"GET /last HTTP/1.1\r\nHost: a\r\n\r\n"
    for at in range(0, len(many), len(GET) * 500):
        tap.put(ACK, at, many[at : at + len(GET) * 500], ack=1)
    tap.put(ACK | UNACCEPTED, len(many), last, ack=1)
    tap.put(ACCEPTED, 0, ack=1)
    assert tap.pipeline.rest and tap.settled() == tap.fed
    while tap.pipeline.rest:
        for command in tap.pipeline.work(1.0):
            tap.keep(command)
    assert tap.sent == many + last


def test_connection_without_data_is_opened_only_when_raw() -> None:
    tap = Tap()
    tap.put(ACCEPTED, 0)
    assert tap.said == []
    raw = Tap(protocol=Protocol.RAW)
    raw.put(ACCEPTED, 0)
    assert raw.said == [Open(1, False, KEY)]
    raw.put(ACK, 0, b"x", ack=1)
    raw.put(ACK, 1, b"y", ack=1)
    assert raw.said == [Open(1, False, KEY), Send(1, b"x", 1, 0), Send(1, b"y", 1, 0)]


@pytest.mark.parametrize("end", [FIN | ACK, RST, 0])
def test_a_raw_connection_without_data_ends_as_production_s_does(end: int) -> None:
    tap = Tap(protocol=Protocol.RAW)
    tap.put(ACCEPTED, 0, ack=1)
    if end:
        tap.put(end, 0, ack=1)
        tap.put(FROM_SERVER | FIN | ACK, 0, ack=1001)
    else:
        for command in tap.pipeline.close(2.0):
            tap.keep(command)
    last = Abort(1, DropReason.INCOMPLETE, True) if end == RST else Finish(1)
    assert tap.said == [Open(1, False, KEY), last]


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("flags", [RST | ACK, RST])
def test_whether_production_had_answered_before_the_client_reset(answered: bool, flags: int) -> None:
    """An RST without an acknowledgement does not tell."""
    tap = Tap(protocol=Protocol.RAW)
    tap.put(ACCEPTED, 0, ack=1)
    tap.put(ACK, 0, b"ping", ack=1)
    tap.put(flags, 4, ack=5 if answered else 1)
    assert tap.said[-1] == Abort(1, DropReason.INCOMPLETE, True, answered=answered and bool(flags & ACK))


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("with_data", [True, False])
def test_whether_production_had_answered_before_the_end(answered: bool, with_data: bool) -> None:
    """What ends with the data was sent before there was a response to it."""
    tap = Tap(protocol=Protocol.RAW)
    tap.put(ACCEPTED, 0, ack=1)
    tap.put(ACK, 0, b"ping", ack=1)
    ack = 5 if answered else 1
    if with_data:
        tap.put(FIN | ACK, 4, b"more", ack=ack)
    else:
        tap.put(FIN | ACK, 4, ack=ack)
    assert tap.said[-1] == Finish(1, answered=answered and not with_data)


@pytest.mark.parametrize(
    ("first", "http"),
    [(GET, True), (b"*1\r\n$4\r\nPING\r\n", False), (b"\x16\x03\x01\x02\x00\x01", False), (b"EHLO x\r\n", False)],
)
@pytest.mark.parametrize("slice_size", [1, 3, 1000])
def test_protocol_is_decided_by_the_first_bytes(first: bytes, http: bool, slice_size: int) -> None:
    tap = Tap()
    tap.put(ACCEPTED, 0)
    for at in range(0, len(first), slice_size):
        tap.put(ACK, at, first[at : at + slice_size], ack=1)
        assert tap.settled() == tap.fed
    assert tap.said[0] == Open(1, http, KEY)
    assert tap.sent == first


@pytest.mark.parametrize("protocol", list(Protocol))
@pytest.mark.parametrize(("first", "counted"), [(b"\x16\x03\x01\x02\x00\x01", 1), (b"\x16\x02\x01", 0), (GET, 0)])
def test_connections_that_begin_with_tls_are_counted(protocol: Protocol, first: bytes, counted: int) -> None:
    tap = Tap(protocol=protocol)
    tap.put(ACCEPTED, 0)
    tap.put(ACK, 0, first, ack=1)
    tap.put(ACK, len(first), b"\x16\x03\x03", ack=2)
    assert tap.ledger.events["flows_tls"] == counted


def test_hole_in_a_request_breaks_it_and_the_next_turn_goes_on() -> None:
    tap = Tap()
    post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"
    tap.put(ACCEPTED, 0)
    tap.put(ACK, 0, post + b"01234", ack=1)
    end = len(post) + 10
    tap.put(ACK, end, GET, ack=2)
    tap.put(FROM_SERVER | ACK, 0, b"", ack=1000 + end + len(GET))
    assert tap.sent == post + b"01234" + GET
    assert Abort(1, DropReason.GAP, False) in tap.said
    assert tap.said[-1] == Send(1, GET, len(GET), START | END)
    assert tap.settled() == tap.fed


def test_a_body_whose_head_was_lost_is_no_request() -> None:
    """However much it looks like one, and though the head was the first to acknowledge the last response."""
    tap = Tap()
    tap.put(ACCEPTED, 0)
    tap.put(ACK, 0, GET, ack=1)
    at = len(GET) + 60
    tap.put(ACK, at, GET, ack=90)
    tap.put(FROM_SERVER | ACK, 0, b"", ack=1000 + at + len(GET))
    assert tap.sent == GET
    tap.put(ACK, at + len(GET), GET, ack=180)
    assert tap.sent == GET * 2
    assert tap.ledger.bytes.dropped[DropReason.GAP] == len(GET)
    assert tap.settled() == tap.fed


@pytest.mark.parametrize("begun", [b"GET /a/long/path", GET[:-2]], ids=["prefix", "head"])
def test_what_many_flows_hold_is_bounded(begun: bytes) -> None:
    """First bytes that do not tell the protocol, and heads; whole requests need no room."""
    tap = Tap(limits=Limits(heads_bytes=128))
    keys = [KEY[:32] + port.to_bytes(2, "big") + KEY[34:] for port in range(1000, 1100)]
    for key in keys:
        tap.put(ACCEPTED, 0, key=key)
        tap.put(ACK, 0, begun, ack=1, key=key)
        assert tap.pipeline.held()[1] <= 128
        assert tap.settled() == tap.fed
    assert tap.ledger.bytes.dropped == {DropReason.MEMORY_LIMIT: len(begun) * (100 - 128 // len(begun))}
    tap.put(ACCEPTED, 0)
    tap.put(ACK, 0, GET, ack=1)
    assert tap.sent == GET
    for key in keys:
        tap.put(RST, len(begun), key=key)
    assert tap.pipeline.held() == (0, 0)
    assert tap.pipeline._heads.bytes == 0


def test_midstream_http_begins_at_a_request_and_counts_what_it_skips() -> None:
    tap = Tap(protocol=Protocol.HTTP)
    tap.put(ACK, 0, b"rest of a body", ack=1)
    tap.server(1, ACK, 14)
    tap.put(ACK, 14, GET, ack=7)
    assert tap.sent == GET
    assert tap.ledger.bytes.dropped[DropReason.MIDSTREAM] == 14


def test_midstream_raw_is_skipped_whole() -> None:
    tap = Tap(protocol=Protocol.RAW)
    tap.put(ACK, 0, b"abc", ack=1)
    tap.server(1, ACK, 3)
    tap.put(ACK, 3, b"def", ack=1)
    tap.put(FIN | ACK, 6, ack=1)
    assert tap.said == []
    assert tap.ledger.bytes.dropped[DropReason.MIDSTREAM] == 6


@pytest.mark.parametrize("protocol", [Protocol.RAW, Protocol.AUTO])
def test_a_raw_stream_passes_as_it_is_until_a_hole(protocol: Protocol) -> None:
    tap = Tap(protocol=protocol)
    tap.put(ACCEPTED, 0)
    for at, data in ((0, b"\x00\x01\x02"), (3, b"GET / HTTP/1.1\r\n\r\n"), (21, b"z")):
        tap.put(ACK, at, data, ack=at)
        assert tap.said[-1] == Send(1, data, len(data), 0)
    tap.put(ACK, 30, b"behind", ack=22)
    tap.server(23, ACK, 36)
    tap.put(ACK, 36, b"later", ack=23)
    assert tap.sent == b"\x00\x01\x02GET / HTTP/1.1\r\n\r\nz"
    assert tap.said[-1] == Abort(1, DropReason.GAP, False)
    assert tap.ledger.bytes.dropped[DropReason.GAP] == len(b"behindlater")
    assert tap.settled() == tap.fed


def test_reset_aborts() -> None:
    tap = Tap()
    tap.put(ACCEPTED, 0)
    tap.put(ACK, 0, GET + b"POST / HT", ack=1)
    tap.put(RST, len(GET) + 9)
    assert tap.said[-1] == Abort(1, DropReason.INCOMPLETE, True)
    assert tap.ledger.bytes.dropped[DropReason.INCOMPLETE] == 9
    assert tap.settled() == tap.fed


def test_wait_marks_the_turns() -> None:
    tap = Tap(protocol=Protocol.RAW, pacing=Pacing.WAIT)
    tap.put(ACCEPTED, 0)
    tap.put(ACK, 0, b"a", ack=500)
    tap.put(FROM_SERVER | ACK, 4000, b"answer", ack=1001)
    tap.put(ACK, 1, b"b", ack=506)
    tap.put(FROM_SERVER | ACK, 4006, b"more", ack=1002)
    tap.put(ACK, 2, b"c", ack=510)
    assert tap.said == [
        Open(1, False, KEY),
        *(Send(1, b"a", 1, 0), Turn(1, 6), Send(1, b"b", 1, 0)),
        *(Turn(1, 4), Send(1, b"c", 1, 0)),  # what that response came to, and not both
    ]


def test_closing_settles_what_is_held() -> None:
    tap = Tap()
    tap.put(ACCEPTED, 0)
    tap.put(ACK, 0, b"GE", ack=1)
    tap.put(ACCEPTED, 0, key=b"\1" * 40)
    tap.put(ACK, 0, GET[:-2], ack=1, key=b"\1" * 40)
    for command in tap.pipeline.close(1.0):
        tap.keep(command)
    assert tap.pipeline.held() == (0, 0)
    assert tap.settled() == tap.fed
    assert tap.said[-1] == Finish(2)


def test_a_raw_connection_is_opened_at_once_also_where_another_made_room() -> None:
    tap = Tap(protocol=Protocol.AUTO, limits=Limits(flows=1))
    tap.put(ACCEPTED, 0)
    tap.put(ACK, 0, b"GE", ack=1)
    assert tap.pipeline.held() == (0, 2)
    raw = Tap(protocol=Protocol.RAW, limits=Limits(flows=1))
    other = bytes(39) + b"\1"
    for one in (tap, raw):
        commands = one.pipeline.feed((other, ACCEPTED, 1, 1, 0, b"", 0), 60.0)
        for command in commands:
            one.keep(command)
    assert tap.ledger.bytes.dropped == {DropReason.INCOMPLETE: 2} and tap.pipeline.held() == (0, 0)
    assert raw.said == [Open(1, False, other)]


@pytest.mark.parametrize(
    ("before", "given_up"),
    [
        (GET, 0),
        (GET[:10], 10),  # a head that is not whole is held
        (b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nfour", 0),  # its begin has gone
    ],
)
def test_a_flow_that_falls_out_of_the_share(before: bytes, given_up: int) -> None:
    """It is given up with what is under way, what still comes is dropped, and later it is joined in mid-stream."""
    tap = Tap(protocol=Protocol.HTTP)
    tap.put(ACCEPTED, 0)
    tap.put(ACK, 0, before, ack=1)
    tap.put(ACK, len(before) + 3, b"behind a hole", ack=1)
    tap.said.clear()
    assert list(tap.pipeline.drop_above(0, 2.0)) == [Abort(1, DropReason.SHARE, True)]
    assert len(tap.pipeline.flows) == 0 and tap.pipeline.held() == (0, 0)
    assert tap.ledger.bytes.dropped[DropReason.SHARE] == given_up + len(b"behind a hole")
    tap.put(ACK, len(before), b"xyz", ack=1)
    assert tap.said == [] and tap.ledger.bytes.dropped[DropReason.SHARE] == given_up + 13 + 3
    assert tap.pipeline.drop_above(1 << 32, 3.0) == []
    start = len(before) + 16
    tap.put(ACK, start, GET, ack=2)
    tap.server(2, ACK, start + len(GET))
    assert [type(command) for command in tap.said] == [Open, Send]
    assert tap.said[1] == Send(2, GET, len(GET), START | END)


def test_flows_within_the_share_are_not_touched() -> None:
    tap = Tap(protocol=Protocol.HTTP)
    keys = [bytes(32) + number.to_bytes(2, "big") + b"\0\x50" + bytes(4) for number in range(1_000, 1_200)]
    for key in keys:
        tap.put(ACCEPTED, 0, key=key)
        tap.put(ACK, 0, GET, ack=1, key=key)
    inside = {key for key in keys if flow_hash(key, 0) < 1 << 31}
    assert len(tap.pipeline.drop_above(1 << 31, 2.0)) == len(keys) - len(inside) > 50
    assert {flow.key for flow in tap.pipeline.flows} == inside
    tap.said.clear()
    for key in keys:
        tap.put(ACK, len(GET), GET, ack=2, key=key)
    assert len(tap.said) == len(inside)


@pytest.mark.parametrize("redacted", [False, True])
def test_trailers_stay_here_where_fields_are_redacted(redacted: bool) -> None:
    tap = Tap(protocol=Protocol.HTTP, redact=Redact(headers={"X-Key": "remove"}) if redacted else None)
    begun = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    tap.put(ACCEPTED, 0)
    tap.put(ACK, 0, begun + b"X-Key: secret\r\n\r\n", ack=1)
    assert tap.sent == begun + (b"\r\n" if redacted else b"X-Key: secret\r\n\r\n")
    assert tap.settled() == tap.fed


@pytest.mark.parametrize("protocol", [Protocol.AUTO, Protocol.HTTP])
def test_what_comes_back_from_the_shadow_is_known(protocol: Protocol) -> None:
    """And mirrored all the same: the worker ends it."""
    tracer = Tracer(b"0" * 32)
    tap = Tap(tracer, protocol=protocol)
    tap.put(ACCEPTED, 0)
    tap.put(ACK, 0, GET)
    copy = tap.sent
    assert copy == GET[:-2] + b"Tapmirror-Loop: " + b"0" * 32 + b".0\r\n\r\n"
    before = tracer.loop
    back = b"\1" * 16 + KEY[16:]
    tap.put(ACCEPTED, 0, key=back)
    tap.put(ACK, 0, copy, key=back)
    assert (before, tracer.loop) == (None, Loop(0, b"\1" * 16))
    assert [command.flags for command in tap.said if isinstance(command, Send)] == [START | END] * 2


def test_bytes_that_are_no_requests_are_never_marked() -> None:
    tap = Tap(Tracer(b"0" * 32), protocol=Protocol.RAW)
    tap.put(ACCEPTED, 0)
    tap.put(ACK, 0, GET)
    assert tap.sent == GET


def test_a_field_of_that_name_is_nothing_to_a_tap_that_does_not_look() -> None:
    tap = Tap()
    tap.put(ACCEPTED, 0)
    request = GET[:-2] + b"Tapmirror-Loop: x\r\n\r\n"
    tap.put(ACK, 0, request)
    assert [(command.data, command.flags) for command in tap.said if isinstance(command, Send)] == [
        (request, START | END)
    ]


def behind_a_hole(tap: Tap, data: bytes) -> None:
    """A connection of which the first byte is missing while all this comes, and then comes."""
    tap.put(ACCEPTED, 0)
    for at in range(1, len(data), 8_000):
        tap.put(ACK, at, data[at : at + 8_000])
    assert not tap.sent
    tap.put(ACK, 0, data[:1])


CHUNKS = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 500 + b"0\r\n\r\n"


@pytest.mark.parametrize("whole", [GET, CHUNKS])
def test_much_that_comes_at_once_is_done_in_several_turns(whole: bytes) -> None:
    tap = Tap()
    data = whole * (1_000_000 // len(whole))
    behind_a_hole(tap, data)
    turns, before = 0, 0
    while tap.pipeline.rest:
        assert tap.settled() == tap.fed
        assert len(tap.sent) - before <= AT_ONCE + 8_000
        turns, before = turns + 1, len(tap.sent)
        for command in tap.pipeline.work(1.0):
            tap.keep(command)
    assert turns == len(data) // AT_ONCE
    assert tap.sent == data
    assert tap.ledger.requests.seen == len(data) // len(whole)


@pytest.mark.parametrize("reason", [DropReason.SHUTDOWN, DropReason.SHARE])
def test_what_is_left_to_do_is_given_up_at_the_end(reason: DropReason) -> None:
    """It may take many seconds, and the supervisor waits."""
    tap = Tap()
    data = GET * 10_000
    behind_a_hole(tap, data)
    done = len(tap.sent)
    assert 0 < done < len(data)
    for command in tap.pipeline.drop_above(0, 2.0) if reason is DropReason.SHARE else tap.pipeline.close(2.0):
        tap.keep(command)
    assert not tap.pipeline.rest
    assert len(tap.sent) == done
    assert tap.ledger.bytes.dropped[reason] >= len(data) - done - len(GET)
    assert tap.settled() == tap.fed
    assert type(tap.said[-1]) is (Abort if reason is DropReason.SHARE else Finish)


def test_what_is_left_to_do_for_a_connection_within_a_new_share_stays() -> None:
    tap = Tap()
    data = GET * 10_000
    behind_a_hole(tap, data)
    other = next(key for key in (bytes([n]) * 40 for n in range(1, 256)) if flow_hash(key, 0) > flow_hash(KEY, 0))
    tap.pipeline.flows.accept((other, ACCEPTED, 1, 1, 0, b"", 0), 1.0)
    assert not tap.pipeline.drop_above(flow_hash(other, 0), 2.0)
    assert len(tap.pipeline.flows) == 1
    while tap.pipeline.rest:
        for command in tap.pipeline.work(2.0):
            tap.keep(command)
    assert tap.sent == data


def test_what_is_under_way_of_a_connection_that_has_ended_is_held_until_its_end_is_done() -> None:
    tap = Tap()
    data = GET * 10_000 + GET[:9]
    tap.put(ACCEPTED, 0)
    tap.put(ACK, 0, GET)
    for at in range(len(GET) + 1, len(data), 8_000):
        tap.put(ACK, at, data[at : at + 8_000])
    tap.put(ACK | FIN, len(data))
    tap.put(ACK, len(GET), data[len(GET) : len(GET) + 1])
    assert not len(tap.pipeline.flows)
    while tap.pipeline.rest:
        assert tap.settled() == tap.fed
        for command in tap.pipeline.work(1.0):
            tap.keep(command)
    assert tap.settled() == tap.fed
    assert tap.said[-1] == Finish(1)
    assert tap.ledger.bytes.dropped == {DropReason.INCOMPLETE: 9}


def asked_once() -> Tap:
    """A connection on which the client has sent one request."""
    tap = Tap()
    tap.put(ACCEPTED, 0, ack=1)
    tap.put(ACK, 0, GET, ack=1)
    return tap


@pytest.mark.parametrize("rest", [ACK, FIN | ACK])
def test_a_request_that_begins_after_production_s_fin_is_left_out(rest: int) -> None:
    """As on a pooled connection that production closed while it was idle: the client asks again on another."""
    tap, size = asked_once(), len(GET)
    tap.server(20, FIN | ACK, size)
    tap.put(ACK, 0, GET, ack=1)  # again, as its acknowledgement was lost
    tap.put(rest, size, GET, ack=21)
    if not rest & FIN:
        tap.put(ACK, 2 * size, GET, ack=21)
        tap.put(FIN | ACK, 3 * size, ack=21)
    assert tap.sent == GET
    assert isinstance(tap.said[-1], Finish)
    outside = size if rest & FIN else 2 * size
    assert tap.ledger.bytes.filtered == {FilterReason.DUPLICATE: size, FilterReason.OUTSIDE: outside}
    assert tap.ledger.requests.seen == 1
    assert len(tap.pipeline.flows) == 0
    assert tap.fed == tap.settled()


@pytest.mark.parametrize("protocol", [Protocol.HTTP, Protocol.AUTO])
def test_a_first_request_after_production_s_fin_is_left_out(protocol: Protocol) -> None:
    """As on a connection that a browser opened in advance."""
    tap = Tap(protocol=protocol)
    tap.put(ACCEPTED, 0, ack=1)
    tap.server(1, FIN | ACK, 0)
    for number in range(3):
        tap.put(ACK, number * len(GET), GET, ack=2)
        tap.server(2, ACK, (number + 1) * len(GET))
    tap.put(FIN | ACK, 3 * len(GET), ack=2)
    assert tap.sent == b""
    assert tap.ledger.bytes.filtered == {FilterReason.OUTSIDE: 3 * len(GET)}
    assert tap.ledger.requests.seen == 0
    assert tap.fed == tap.settled()


@pytest.mark.parametrize("protocol", [Protocol.HTTP, Protocol.AUTO])
def test_a_request_of_which_a_part_came_before_production_s_fin_goes_on(protocol: Protocol) -> None:
    tap = Tap(protocol=protocol)
    tap.put(ACCEPTED, 0, ack=1)
    tap.put(ACK, 0, GET[:1], ack=1)
    tap.server(1, FIN | ACK, 1)
    tap.put(ACK, 1, GET[1:2], ack=2)
    tap.server(1, FIN | ACK, 2)  # again, as its acknowledgement was lost
    tap.put(ACK, 2, GET[2:] + GET, ack=2)
    tap.put(ACK, 2 * len(GET), GET, ack=2)
    assert tap.sent == GET
    assert tap.ledger.bytes.filtered == {FilterReason.OUTSIDE: 2 * len(GET)}
    assert tap.fed == tap.settled()


@pytest.mark.parametrize("protocol", [Protocol.HTTP, Protocol.AUTO])
def test_a_first_request_in_pieces_after_production_s_fin_is_left_out(protocol: Protocol) -> None:
    tap = Tap(protocol=protocol)
    tap.put(ACCEPTED, 0, ack=1)
    tap.server(1, FIN | ACK, 0)
    tap.put(ACK, 0, GET[:1], ack=2)
    tap.server(1, FIN | ACK, 1)  # again, as its acknowledgement was lost
    tap.put(ACK, 1, GET[1:9], ack=2)
    tap.put(ACK, 9, GET[9:], ack=2)
    assert tap.sent == b""
    assert tap.ledger.requests.seen == 0
    assert tap.ledger.bytes.filtered == {FilterReason.OUTSIDE: len(GET)}
    assert tap.fed == tap.settled()


@pytest.mark.parametrize("before", [b"", b"GE"])
def test_nor_where_the_first_bytes_were_not_captured(before: bytes) -> None:
    """Production lingers, and acknowledges what it discards."""
    tap, begun = Tap(), len(before)
    tap.put(ACCEPTED, 0, ack=1)
    tap.server(1, FIN | ACK, 0)
    if before:
        tap.put(ACK, 0, before, ack=2)
    tap.put(ACK, begun + 9, GET, ack=2)
    tap.server(2, ACK, begun + 9 + len(GET))
    tap.put(ACK, begun + 9 + len(GET), GET, ack=3)
    assert tap.sent == b""
    assert tap.ledger.bytes.filtered == {FilterReason.OUTSIDE: tap.fed}


def test_nor_where_all_before_the_fin_had_been_sent_before_the_tap_began() -> None:
    tap = Tap()
    tap.put(ACK, 0, b"body", ack=1)
    tap.put(ACK, 9, b"body", ack=1)
    tap.server(1, FIN | ACK, 13, length=20)
    tap.put(ACK, 13, GET, ack=22)
    assert tap.sent == b""
    assert tap.ledger.bytes.filtered == {FilterReason.OUTSIDE: len(GET)}
    assert tap.fed == tap.settled()


@pytest.mark.parametrize("filled", [True, False])
def test_a_hole_behind_production_s_fin(filled: bool) -> None:
    """Neither what fills it nor what waited behind it was read, also if production acknowledged it."""
    tap, size = asked_once(), len(GET)
    tap.put(ACK, 2 * size, GET, ack=1)
    tap.server(1, FIN | ACK, size)
    if filled:
        tap.put(ACK, size, GET, ack=2)
    tap.server(2, ACK, 3 * size)
    tap.put(ACK, 3 * size, GET, ack=2)
    assert tap.sent == GET
    assert tap.ledger.bytes.filtered == {FilterReason.OUTSIDE: (3 if filled else 2) * size}
    assert not tap.ledger.bytes.dropped
    assert tap.fed == tap.settled()


def test_an_upload_goes_on_behind_production_s_fin_and_no_request_behind_it() -> None:
    """Production may answer before its end."""
    tap = Tap()
    upload = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"
    tap.put(ACCEPTED, 0, ack=1)
    tap.put(ACK, 0, upload, ack=1)
    tap.server(20, FIN | ACK, len(upload))
    tap.put(ACK, len(upload), b"12345", ack=21)
    tap.put(ACK, len(upload) + 5, b"6789", ack=21)
    tap.put(ACK, len(upload) + 9, GET, ack=21)
    assert tap.sent == upload + b"123456789"
    assert tap.fed == tap.settled()


@pytest.mark.parametrize("chunked", [False, True])
def test_nor_in_the_segment_that_ends_an_upload(chunked: bool) -> None:
    tap = Tap()
    head = b"PUT / HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n" % (
        b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 9"
    )
    body = b"4\r\nbody\r\n0\r\n\r\n" if chunked else b"123456789"
    tap.put(ACCEPTED, 0, ack=1)
    tap.put(ACK, 0, head + body[:3], ack=1)
    tap.server(20, FIN | ACK, len(head) + 3)
    tap.put(ACK, len(head) + 3, body[3:] + GET, ack=21)
    assert tap.sent == head + body
    assert tap.ledger.bytes.filtered == {FilterReason.OUTSIDE: len(GET)}
    assert not tap.ledger.bytes.dropped
    assert tap.fed == tap.settled()


def test_nor_behind_an_upload_of_which_a_part_was_not_captured() -> None:
    tap = Tap()
    upload = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"
    end = len(upload) + 9
    tap.put(ACCEPTED, 0, ack=1)
    tap.put(ACK, 0, upload, ack=1)
    tap.server(20, FIN | ACK, len(upload))
    tap.put(ACK, end - 4, b"6789", ack=21)
    tap.server(21, ACK, end)
    tap.put(ACK, end, GET, ack=21)
    assert tap.sent == upload
    assert tap.ledger.requests.seen == 1
    assert tap.ledger.bytes.filtered == {FilterReason.OUTSIDE: len(GET)}


def test_nor_behind_an_upload_whose_rest_found_no_room() -> None:
    limits = Limits(reassembly_bytes=1 << 17)
    tap = Tap(limits=limits)
    upload = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"
    end = len(upload) + 9
    tap.put(ACCEPTED, 0, ack=1)
    tap.put(ACK, 0, upload, ack=1)
    tap.server(20, FIN | ACK, len(upload))
    tap.put(ACK, end - 4, b"6789", ack=21)
    for seconds in (1, 2):
        tap.pipeline.expire(1.0 + limits.hole_time + seconds)
    tap.put(ACK, len(upload), b"123456789", ack=21)
    tap.put(ACK, end, GET, ack=21)
    assert tap.ledger.bytes.dropped == {DropReason.MEMORY_LIMIT: 4}
    assert tap.sent == upload + b"123456789"
    assert tap.ledger.bytes.filtered == {FilterReason.OUTSIDE: len(GET)}


def test_nor_where_production_refused_to_leave_http() -> None:
    """As the first request on each connection of some clients asks for HTTP/2 in clear text."""
    tap = Tap()
    first = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    tap.put(ACCEPTED, 0, ack=1)
    tap.put(ACK, 0, first, ack=1)
    tap.server(1, FIN | ACK, len(first), length=20)
    tap.put(ACK, len(first), GET[:20], ack=22)
    tap.put(ACK, len(first) + 20, GET[20:], ack=22)
    assert tap.sent == first
    assert tap.ledger.bytes.filtered == {FilterReason.OUTSIDE: len(GET)}


@pytest.mark.parametrize(
    "head",
    [
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
    ],
)
def test_a_tunnel_goes_on_behind_production_s_fin(head: bytes) -> None:
    """Production may have nothing to say, and read what the client sends: a container's input."""
    tap = Tap()
    size = len(head)
    tap.put(ACCEPTED, 0, ack=1)
    tap.put(ACK, 0, head, ack=1)
    tap.server(1, FIN | ACK, size, length=20)
    tap.put(ACK, size, b"input", ack=22)
    tap.put(ACK, size + 5, b"more", ack=22)
    assert tap.sent == head + b"inputmore"


@pytest.mark.parametrize("rest", [0, 8])
def test_nor_behind_a_gap(rest: int) -> None:
    """In one piece, and in two."""
    tap, size = asked_once(), len(GET)
    tap.put(ACK, 2 * size, GET, ack=2)
    tap.server(20, FIN | ACK, 3 * size)
    tap.put(ACK, 3 * size, GET[: size - rest], ack=21)
    tap.put(FIN | ACK, 4 * size - rest, GET[size - rest :], ack=21)
    assert tap.sent == GET
    assert tap.ledger.bytes.filtered == {FilterReason.OUTSIDE: size}
    assert tap.fed == tap.settled()


def test_nor_behind_an_empty_line() -> None:
    """As of old clients, behind the body of a POST."""
    tap = Tap()
    size = len(GET) + 2
    tap.put(ACCEPTED, 0, ack=1)
    tap.put(ACK, 0, GET + b"\r\n", ack=1)
    tap.server(20, FIN | ACK, size)
    tap.put(FIN | ACK, size, GET, ack=21)
    assert tap.sent == GET
    assert tap.ledger.bytes.filtered == {FilterReason.OUTSIDE: size}
    assert tap.fed == tap.settled()


def test_a_request_that_was_held_until_its_response_and_the_end_came_in_one_packet() -> None:
    tap = Tap()
    post = GET.replace(b"GET", b"POST")
    tap.put(ACK, 0, post, ack=1)
    tap.server(1, FIN | ACK, len(post), length=20)
    tap.put(ACK, len(post), GET, ack=22)
    tap.put(FIN | ACK, len(post + GET), ack=22)
    assert tap.sent == post
    assert tap.ledger.bytes.filtered == {FilterReason.OUTSIDE: len(GET)}
    assert len(tap.pipeline.flows) == 0


def test_a_connection_of_one_packet_ends_with_production_s_fin() -> None:
    tap = Tap()
    tap.put(ACCEPTED, 0, ack=1)
    tap.put(FIN | ACK, 0, GET, ack=1)
    tap.server(20, FIN | ACK, len(GET) + 1)
    assert len(tap.pipeline.flows) == 0


@pytest.mark.parametrize("protocol", [Protocol.RAW, Protocol.AUTO])
def test_bytes_go_on_behind_production_s_fin(protocol: Protocol) -> None:
    """Production may still read them."""
    tap = Tap(protocol=protocol)
    tap.put(ACCEPTED, 0, ack=1)
    tap.put(ACK, 0, b"a\n", ack=1)
    tap.server(20, FIN | ACK, 2)
    tap.put(ACK, 2, b"b", ack=21)
    assert tap.sent == b"a\nb"


TUNNEL_HEAD = b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize(
    ("protocol", "said", "last"),
    [
        (Protocol.RAW, b"", b"QUIT\r\n"),
        (Protocol.AUTO, b"", b"\0QUIT\r\n"),
        (Protocol.HTTP, TUNNEL_HEAD, b"\0QUIT\r\n"),
        (Protocol.HTTP, b"", GET),
    ],
)
@pytest.mark.parametrize("answered", [True, False])
def test_whether_the_client_had_its_response_is_told_also_where_production_closes_first(
    protocol: Protocol, said: bytes, last: bytes, answered: bool
) -> None:
    tap = Tap(protocol=protocol)
    end = len(said + last)
    tap.put(ACCEPTED, 0, ack=1)
    if said:
        tap.put(ACK, 0, said, ack=1)
    tap.put(ACK, len(said), last, ack=20)
    tap.server(20, FIN | ACK, end, length=9)
    tap.put(FIN | ACK, end, ack=30 if answered else 20)
    assert tap.sent == said + last
    assert tap.said[-1] == Finish(1, answered=answered)
