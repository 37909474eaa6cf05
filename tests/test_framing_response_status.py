# SPDX-License-Identifier: Apache-2.0
"""Responses counted: however they are cut, whatever the shadow sends, with constant memory."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapmirror.events import CONNECT, END, KEEPING, NO_BODY, START, TUNNEL
from tapmirror.framing import HeadMemory, ResponseFramer
from tapmirror.framing.response_end import ENDLESS, LINE_BYTES

LIMIT = 4096
GET = START | END
HEAD = GET | NO_BODY
UPGRADE = GET | TUNNEL
TUNNELED = GET | TUNNEL | CONNECT


def response(status: int, *fields: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"\r\n".join((b"HTTP/%s %d Any words" % (version, status), *fields)) + b"\r\n\r\n" + body


def sized(status: int, body: bytes = b"hello") -> bytes:
    return response(status, b"Server: x", b"Content-Length: %d" % len(body), b"Connection: keep-alive", body=body)


CHUNKED = response(200, b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\nA ; x=y\r\n0123456789\r\n0\r\nX: y\r\n\r\n")
OK = sized(200)

Way = Callable[[ResponseFramer, bytes], list[int]]


def whole(framer: ResponseFramer, data: bytes) -> list[int]:
    return list(framer.feed(memoryview(data)))


def by_byte(framer: ResponseFramer, data: bytes) -> list[int]:
    return [status for i in range(len(data)) for status in framer.feed(data[i : i + 1])]


def randomly(framer: ResponseFramer, data: bytes) -> list[int]:
    rng, at = random.Random(len(data)), 0
    out: list[int] = []
    while at < len(data):
        size = rng.randint(1, 40)
        out += framer.feed(data[at : at + size])
        at += size
    return out


def skipping(framer: ResponseFramer, data: bytes) -> list[int]:
    """As the reactor does: discard unread what may be."""
    out: list[int] = []
    at = 0
    while at < len(data):
        size = min(framer.skippable(), len(data) - at)
        if size:
            framer.skip(size)
        else:
            size = 3
            out += framer.feed(data[at : at + size])
        at += size
    return out


ways = pytest.mark.parametrize("way", [whole, by_byte, randomly, skipping])


@ways
@pytest.mark.parametrize(
    ("asked", "data", "statuses"),
    [
        ([GET], OK, [200]),
        ([GET, GET, GET], OK + sized(404) + sized(503, b""), [200, 404, 503]),
        ([GET, GET], CHUNKED + OK, [200, 200]),
        ([GET, GET], response(200, b"transfer-encoding:\tgzip, Chunked", body=b"0\r\n\r\n") + OK, [200, 200]),
        ([HEAD, GET], response(200, b"Content-Length: 5") + OK, [200, 200]),
        ([HEAD, GET], response(200, b"Transfer-Encoding: chunked") + OK, [200, 200]),
        ([GET, GET], response(304, b"Content-Length: 5") + OK, [304, 200]),
        ([GET, GET], response(204) + OK, [204, 200]),
        ([GET, GET], response(100) + OK + response(103, b"Link: x") + response(102) + sized(500), [200, 500]),
        ([GET, GET], b"HTTP/1.1 200\nContent-Length : 2\n\nab" + OK, [200, 200]),
        ([GET, GET], response(200, b"CONTENT-LENGTH:5", b"content-length: 5 ", body=b"hello") + OK, [200, 200]),
        (
            [GET, GET],
            response(200, b"Content-Length: 3", b"Transfer-Encoding: chunked", body=b"0\n\n") + OK,
            [200, 200],
        ),
        ([GET], response(999, b"Content-Length: 0"), [999]),
        ([UPGRADE, GET], OK + OK, [200, 200]),
        ([TUNNELED, GET], sized(403) + OK, [403, 200]),
    ],
)
def test_counted(way: Way, asked: list[int], data: bytes, statuses: list[int]) -> None:
    framer = ResponseFramer(LIMIT, HeadMemory(LIMIT))
    for flags in asked:
        framer.expect(flags)
    assert way(framer, data) == statuses
    assert (framer.outstanding, framer.failed, framer.closing) == (0, False, False)
    framer.expect(GET)
    assert way(framer, OK) == [200]
    assert framer.outstanding == 0


@ways
def test_equal_heads_are_responses_to_what_was_asked(way: Way) -> None:
    """What is remembered of the last head must not outlive its conditions."""
    framer = ResponseFramer(LIMIT, HeadMemory(LIMIT))
    for _ in range(3):
        framer.expect(GET)
        assert way(framer, OK) == [200]
    framer.expect(HEAD)
    assert way(framer, OK[: -len(b"hello")]) == [200]
    assert framer.outstanding == 0
    framer.expect(GET)
    framer.expect(GET)
    assert way(framer, OK[:-1]) == [200]
    assert framer.outstanding == 2
    assert way(framer, b"o" + sized(404)) == [404]
    assert framer.outstanding == 0 and not framer.failed
    assert way(framer, OK) == [] and framer.failed


@pytest.mark.parametrize(
    ("data", "outstanding", "skippable"),
    [
        (b"", 1, 0),
        (b"HTTP/1.1 200 OK\r\nContent-", 1, 0),
        (sized(200)[:-1], 1, 1),
        (sized(200)[:-5], 1, 5),
        (response(200, b"Content-Length: 10000000000"), 1, 10_000_000_000),
        (response(200, b"Transfer-Encoding: chunked", body=b"5"), 1, 0),
        (response(200, b"Transfer-Encoding: chunked", body=b"5\r\n"), 1, 5),
        (response(200, b"Transfer-Encoding: chunked", body=b"5\r\nhello"), 1, 0),
        (response(200, b"Transfer-Encoding: chunked", body=b"0\r\nX: y\r\n"), 1, 0),
        (response(200), 1, ENDLESS),
        (sized(200), 0, 0),
    ],
)
def test_under_way(data: bytes, outstanding: int, skippable: int) -> None:
    framer = ResponseFramer(LIMIT, HeadMemory(LIMIT))
    framer.expect(GET)
    framer.feed(data)
    assert (framer.outstanding, framer.skippable()) == (outstanding, skippable)


@ways
@pytest.mark.parametrize(
    ("data", "closing"),
    [
        (OK, False),
        (response(200, b"Connection: close", b"Content-Length: 0"), True),
        (response(200, b"Connection: x", b"connection: Close", b"Content-Length: 0"), True),
        (response(200, b"Content-Length: 0", version=b"1.0"), True),
        (response(200, b"Connection: Keep-Alive", b"Content-Length: 0", version=b"1.0"), False),
        (response(200, body=b"until the end"), True),
        (response(200, b"Transfer-Encoding: gzip", body=b"until the end"), True),
    ],
)
def test_closing(way: Way, data: bytes, closing: bool) -> None:
    framer = ResponseFramer(LIMIT, HeadMemory(LIMIT))
    framer.expect(GET)
    assert way(framer, data) == [200]
    assert framer.closing is closing
    assert framer.eof() == 0


@ways
@pytest.mark.parametrize(
    ("asked", "data", "closing"),
    [
        (GET, sized(200), False),
        (HEAD, response(200, b"connection: x, Keep-Alive", b"Content-Length: 5"), False),
        (GET, response(200, b"Content-Length: 0"), True),
        (HEAD, response(200, b"Content-Length: 5"), True),
        (GET, CHUNKED, True),
        (GET, response(200, b"Connection: close", b"Content-Length: 0"), True),
    ],
)
def test_who_asks_by_http_1_0_keeps_the_connection_only_if_the_response_says_so(
    way: Way, asked: int, data: bytes, closing: bool
) -> None:
    """Whatever version the response has (RFC 9112, 9.3); another request before it, and its head, change nothing."""
    framer = ResponseFramer(LIMIT, HeadMemory(LIMIT))
    framer.expect(GET)
    assert way(framer, response(200, b"Content-Length: 0")) == [200]
    framer.expect(asked | KEEPING)
    assert way(framer, data) == [200]
    assert framer.closing is closing
    assert framer.eof() == 0


def test_eof_in_the_middle() -> None:
    framer = ResponseFramer(LIMIT, HeadMemory(LIMIT))
    for _ in range(3):
        framer.expect(GET)
    framer.feed(OK + OK[:-1])
    assert framer.eof() == 2
    assert framer.closing and not framer.failed


@ways
@pytest.mark.parametrize(
    ("asked", "data", "status", "tunnel"),
    [
        (TUNNELED, response(200, b"Content-Length: 5"), 200, True),
        (TUNNELED, response(299), 299, True),
        (TUNNELED, response(100) + sized(407), 407, False),
        (UPGRADE, response(101, b"Upgrade: x", b"Connection: upgrade"), 101, True),
        (UPGRADE, OK, 200, False),
    ],
)
def test_tunnel(way: Way, asked: int, data: bytes, status: int, tunnel: bool) -> None:
    framer = ResponseFramer(LIMIT, HeadMemory(LIMIT))
    framer.expect(asked)
    before = framer.tunnel
    assert before is None
    assert way(framer, data) == [status]
    assert framer.tunnel is tunnel
    assert framer.outstanding == 0
    if tunnel:
        assert framer.skippable() == ENDLESS
        assert way(framer, b"anything" * 1000) == [] and not framer.failed


@ways
@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"\0" * 100,
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 20\r\n\r\n",
        b"HTTP/1.1 2000\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"\r\n" + OK,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * LIMIT,
        response(101),
        response(200, b"Content-Length: x"),
        response(200, b"Content-Length: -1"),
        response(200, b"Content-Length: 5", b"Content-Length: 6"),
        response(200, b"Content-Length: 99999999999999999999"),
        response(200, b"Transfer-Encoding: chunked", body=b"x\r\n"),
        response(200, b"Transfer-Encoding: chunked", body=b"-1\r\n"),
        response(200, b"Transfer-Encoding: chunked", body=b"1\r\nabc\r\n"),
        response(200, b"Transfer-Encoding: chunked", body=b"1;" + b"a" * LINE_BYTES),
        response(200, b"Transfer-Encoding: chunked", body=b"0\r\n" + b"X: y\r\n" * LIMIT),
        OK + OK,
    ],
)
def test_failed(way: Way, data: bytes) -> None:
    framer = ResponseFramer(LIMIT, HeadMemory(LIMIT))
    framer.expect(GET)
    way(framer, data)
    assert framer.failed
    assert framer.skippable() == ENDLESS
    framer.expect(GET)
    assert way(framer, OK) == []


def test_unasked_is_failed() -> None:
    framer = ResponseFramer(LIMIT, HeadMemory(LIMIT))
    assert not framer.feed(OK)
    assert framer.failed


@ways
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_timeout_of_an_idle_connection_is_no_garbage(way: Way, version: bytes) -> None:
    framer = ResponseFramer(LIMIT, HeadMemory(LIMIT))
    framer.expect(GET)
    assert way(framer, OK) == [200]
    assert way(framer, response(408, b"Content-Length: 0", b"Connection: close", version=version)) == []
    assert (framer.closing, framer.idled, framer.failed) == (True, True, False)
    assert framer.skippable() == ENDLESS
    assert framer.eof() == 0


@ways
def test_a_timeout_where_something_was_asked_is_its_response(way: Way) -> None:
    framer = ResponseFramer(LIMIT, HeadMemory(LIMIT))
    framer.expect(GET)
    assert way(framer, sized(408, b"")) == [408]
    assert not framer.idled


@ways
@pytest.mark.parametrize("data", [sized(409), b"HTTP/1.1 407 x", b"HTTP/1.2 408 x", b"HTTQ"])
def test_whatever_else_is_unasked_is_garbage(way: Way, data: bytes) -> None:
    framer = ResponseFramer(LIMIT, HeadMemory(LIMIT))
    assert way(framer, data) == []
    assert framer.failed
    assert not framer.idled


responses = st.one_of(
    st.sampled_from(
        [
            OK,
            CHUNKED,
            sized(404),
            sized(408),
            response(204),
            response(100),
            response(200),
            response(101),
            b"0\r\n\r\n",
            b"\r\n",
        ]
    ),
    st.binary(max_size=30),
    st.binary(max_size=40).map(lambda body: sized(200, body)),
)


@given(
    st.lists(st.sampled_from([GET, HEAD, UPGRADE, TUNNELED]), max_size=6),
    st.lists(responses, max_size=6).map(b"".join),
)
def test_the_outcome_does_not_depend_on_the_slices(asked: list[int], data: bytes) -> None:
    outcomes = []
    for way in (whole, by_byte, randomly, skipping):
        framer = ResponseFramer(64, HeadMemory(64))
        for flags in asked:
            framer.expect(flags)
        statuses = way(framer, data)
        outcomes.append((statuses, framer.outstanding, framer.failed, framer.closing, framer.tunnel))
        assert framer.outstanding >= 0 and framer.skippable() >= 0
    assert all(outcome == outcomes[0] for outcome in outcomes)


def test_responses_that_find_no_room_are_garbage() -> None:
    """However many connections hold the beginning of a head, together they hold no more than the pool."""
    memory = HeadMemory(1000)
    framers = [ResponseFramer(LIMIT, memory) for _ in range(50)]
    for framer in framers:
        framer.expect(0)
        framer.feed(b"HTTP/1.1 200 OK\r\nX: " + bytes(80))
        assert memory.bytes == sum(len(each._buffer) for each in framers) <= 1000
    assert sum(framer.failed for framer in framers) == 50 - 1000 // 100
    for framer in framers:
        framer.eof()
    assert memory.bytes == 0


def test_a_connection_knows_what_another_was_answered() -> None:
    """And is not misled by it where its own response is another."""
    first = ResponseFramer(LIMIT, HeadMemory(LIMIT))
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    first.expect(0)
    assert first.feed(response) == [200]
    for mine, statuses in (
        (response, [200]),
        (response.replace(b"200", b"404"), [404]),
        (response.replace(b"2\r", b"3\r") + b"!", [200]),
    ):
        second = ResponseFramer(LIMIT, HeadMemory(LIMIT), first)
        second.expect(0)
        assert list(second.feed(mine)) == statuses
        assert (second.outstanding, second.failed) == (0, False)
    second = ResponseFramer(LIMIT, HeadMemory(LIMIT), first)
    second.expect(NO_BODY)
    assert list(second.feed(response[:-2])) == [200]
    assert (second.outstanding, second.skippable()) == (0, 0)


@pytest.mark.parametrize("way", [whole, by_byte, randomly])
def test_of_many_alike_each_is_the_response_to_one_request(way: Way) -> None:
    framer = ResponseFramer(LIMIT, HeadMemory(LIMIT))
    for flags in (GET, GET, GET, HEAD, GET, GET, GET):
        framer.expect(flags)
    data = OK * 3 + response(200, b"Server: x", b"Content-Length: 5", b"Connection: keep-alive") + OK + sized(404)
    assert way(framer, data + OK[:-1]) == [200, 200, 200, 200, 200, 404, 200]
    assert framer.outstanding == 1
    assert way(framer, OK[-1:] + OK) == []
    assert framer.failed


def test_what_is_owed_is_known_between_responses() -> None:
    framer = ResponseFramer(LIMIT, HeadMemory(LIMIT))
    assert framer.owed() == ()
    for flags in (GET, HEAD, GET):
        framer.expect(flags)
    assert framer.owed() == (0, NO_BODY, 0)
    framer.feed(OK[:5])
    assert framer.owed() is None
    framer.feed(OK[5:-1])
    assert framer.owed() is None
    framer.feed(OK[-1:])
    assert framer.owed() == (NO_BODY, 0)
    framer.feed(response(200, b"Content-Length: 7", b"Connection: close"))
    assert framer.owed() is None


CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
BEGUN = [b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab", b"HTTP/1.1 2"]


@pytest.mark.parametrize("begun", BEGUN)
def test_a_response_that_began_to_a_request_of_which_nothing_went_is_nobodys(begun: bytes) -> None:
    memory = HeadMemory(LIMIT)
    framer = ResponseFramer(LIMIT, memory)
    framer.expect(GET)
    framer.feed(begun)
    framer.withdraw()
    assert framer.failed
    assert framer.feed(b"the rest") == []
    assert framer.eof() == 0
    assert memory.resize(0, LIMIT)  # all of it is free


@pytest.mark.parametrize("begun", BEGUN)
def test_a_response_that_began_to_the_request_before_stays_its(begun: bytes) -> None:
    framer = ResponseFramer(LIMIT, HeadMemory(LIMIT))
    framer.expect(GET)
    framer.expect(GET)
    framer.feed(begun)
    framer.withdraw()
    assert (framer.failed, framer.outstanding) == (False, 1)
    assert framer.eof() == int(b"until" not in begun)


@pytest.mark.parametrize(
    ("came", "stopped"),
    [
        (b"", False),
        (OK, False),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n", True),
        (CLOSING, True),
        (OK + CLOSING, True),
        (CLOSING + b"HT", False),
        (CLOSING + b"HTTP/1.1 100 Continue\r\n\r\n", False),
        (CLOSING + OK, False),
        (CLOSING + OK[:-1], False),
        (b"HTTP/1.1 200 OK\r\n\r\nall", True),
        (CLOSING + b"what?", False),
    ],
)
def test_who_gave_notice_and_says_no_more_has_stopped(came: bytes, stopped: bool) -> None:
    framer = ResponseFramer(LIMIT, HeadMemory(LIMIT))
    for _ in range(5):
        framer.expect(GET)
    framer.feed(came)
    assert framer.stopped == stopped
    framer.withdraw()
    assert framer.stopped == stopped
