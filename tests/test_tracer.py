# SPDX-License-Identifier: Apache-2.0
"""Which copies are marked, how, and which requests of production are known by it."""

from __future__ import annotations

import pytest

from tapmirror.events import END, START, TRACED, Command, Finish, Open, Part, Send
from tapmirror.framing import Pool, RequestFramer
from tapmirror.tracer import PAUSE, SPACING, Loop, Tracer

TOKEN = b"0123456789abcdef0123456789abcdef"
GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
CLIENT = bytes(10) + b"\xff\xff\x0a\0\0\1"
KEY = CLIENT + bytes(24)


def send(data: bytes | memoryview = GET, flags: int = START | END, target: int = 0, number: int = 0) -> Send:
    return Send(7, data, len(data), flags, target, number)


def data_of(commands: list[Command]) -> list[bytes]:
    return [bytes(each.data) for each in commands if isinstance(each, Send)]


def field(target: int = 0) -> bytes:
    return b"Tapmirror-Loop: %b.%d\r\n\r\n" % (TOKEN, target)


def test_a_marked_request_has_one_field_more_and_stands_for_what_was_captured() -> None:
    body = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\nab\r\n\r\nc"
    for data in (GET, body, memoryview(body)):
        (found,) = Tracer(TOKEN).marked([send(data, START)], 1, 0.0)
        assert isinstance(found, Send)
        head, end, rest = bytes(data).partition(b"\r\n\r\n")
        assert bytes(found.data) == head + b"\r\n" + field() + rest
        assert (found.flow, found.size, found.flags, end) == (7, len(data), START, b"\r\n\r\n")


def test_of_each_shadow_one_is_marked_that_begins_and_is_not_compared() -> None:
    commands: list[Command] = [
        Open(7, True),
        send(b"rest", 0),
        send(number=3),
        send(target=1),
        send(),
        send(),
        send(target=1),
        Finish(7),
    ]
    found = Tracer(TOKEN).marked(list(commands), 1, 0.0)
    marked = [i for i, (before, after) in enumerate(zip(commands, found, strict=True)) if before != after]
    assert marked == [3, 4]
    assert data_of(found)[2:4] == [GET[:-2] + field(1), GET[:-2] + field(0)]


def test_at_first_more_of_them_are_marked_and_then_one_a_second_and_in_sixteen() -> None:
    tracer = Tracer(TOKEN)
    at = [i for i in range(1, 100) if tracer.marked([send()], i, 0.0) != [send()]]
    assert at == [1, 2, 4, 8, 16]
    assert tracer.due == PAUSE
    late = [i for i in range(100, 200) if tracer.marked([send()], i, PAUSE * (1 + i)) != [send()]]
    assert late == list(range(100, 200, SPACING))


def test_nothing_counts_as_marked_where_nothing_was() -> None:
    tracer = Tracer(TOKEN)
    assert tracer.marked([Open(7, True), send(number=1)], 5, 0.0) == [Open(7, True), send(number=1)]
    assert tracer.wants(5, 0.0)


@pytest.mark.parametrize(
    ("name", "value", "loop"),
    [
        (b"Tapmirror-Loop", TOKEN + b".0", Loop(0, CLIENT)),
        (b"tapmirror-loop", TOKEN + b".31", Loop(31, CLIENT)),
        (b"Tapmirror-Loop", b"x, " + TOKEN + b".2, y", Loop(2, CLIENT)),
        (b"Tapmirror-Loop", TOKEN, None),
        (b"Tapmirror-Loop", TOKEN + b".", None),
        (b"Tapmirror-Loop", b"1123456789abcdef0123456789abcdef.0", None),
        (b"Tapmirror-Loop", TOKEN.upper() + b".0", None),
        (b"X-Other", TOKEN + b".0", None),
    ],
)
@pytest.mark.parametrize("pieces", [1, 3])
def test_it_is_known_where_it_comes_back(name: bytes, value: bytes, loop: Loop | None, pieces: int) -> None:
    """By the field, and the number that nobody else knows."""
    tracer = Tracer(TOKEN)
    request = b"GET / HTTP/1.1\r\nHost: a\r\n%b: %b\r\nX: y\r\n\r\n" % (name, value)
    framer = RequestFramer(8192, None, False, Pool(8192))
    step = -(-len(request) // pieces)
    for at in range(0, len(request), step):
        for message in framer.feed(request[at : at + step], at == 0):
            if isinstance(message, Part) and message.flags & TRACED:
                tracer.look(message.data, KEY)
    assert tracer.loop == loop


def test_the_first_that_comes_back_is_told() -> None:
    tracer = Tracer(TOKEN)
    tracer.look(field(1), KEY)
    tracer.look(field(2), bytes(40))
    assert tracer.loop == Loop(1, CLIENT)


def test_of_those_that_are_compared_one_is_marked_that_may_be() -> None:
    compared, spared = send(number=1), send(flags=START | END | TRACED, number=2)
    found = Tracer(TOKEN).marked([compared, spared, send(b"more", TRACED, number=0)], 1, 0.0)
    assert data_of(found) == [GET, GET[:-2] + field(), b"more"]
