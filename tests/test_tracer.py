# SPDX-License-Identifier: Apache-2.0
"""Which copies are marked, how, and which requests of production are known by it."""

from __future__ import annotations

import pytest

from tapmirror.events import END, START, TRACED, Command, Finish, Open, Part, Send
from tapmirror.framing import HeadMemory, RequestFramer
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
        (found,) = Tracer(TOKEN).marked([send(data, START)], 0.0)
        assert isinstance(found, Send)
        head, end, rest = bytes(data).partition(b"\r\n\r\n")
        assert bytes(found.data) == head + b"\r\n" + field() + rest
        assert (found.flow, found.size, found.flags, end) == (7, len(data), START, b"\r\n\r\n")


def test_what_begins_is_marked_and_nothing_else() -> None:
    commands: list[Command] = [
        Open(7, True),
        send(b"rest", 0),
        send(target=1),
        send(number=3),
        send(b"", END),
        Finish(7),
    ]
    found = Tracer(TOKEN).marked(commands, 0.0)
    assert [i for i, (before, after) in enumerate(zip(commands, found, strict=True)) if before is not after] == [2, 3]
    assert data_of(found)[1:3] == [GET[:-2] + field(1), GET[:-2] + field(0)]
    assert (found[3].number, found[3].size) == (3, len(GET))  # type: ignore[union-attr]


def marked(tracer: Tracer, count: int, now: float, target: int = 0) -> list[int]:
    """Which of so many requests, from 1, are marked."""
    return [i + 1 for i in range(count) if data_of(tracer.marked([send(target=target)], now)) != [GET]]


def test_at_first_more_of_them_are_marked_and_then_one_a_second_and_in_sixteen() -> None:
    tracer = Tracer(TOKEN)
    assert marked(tracer, 100, 0.0) == [1, 2, 4, 8, 16]
    assert tracer.due == PAUSE
    assert marked(tracer, 100, PAUSE / 2) == []
    assert marked(tracer, 100, PAUSE) == [SPACING]
    assert tracer.due == 2 * PAUSE


def test_each_shadow_is_looked_at_by_itself() -> None:
    """One that gets a hundredth as well as one that gets everything."""
    tracer = Tracer(TOKEN)
    assert marked(tracer, 16, 0.0) == [1, 2, 4, 8, 16]
    assert tracer.due == PAUSE
    assert marked(tracer, 16, PAUSE, target=1) == [1, 2, 4, 8, 16]
    assert tracer.due == PAUSE
    assert marked(tracer, 16, PAUSE) == [16]
    assert tracer.due == 2 * PAUSE


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
    framer = RequestFramer(8192, None, False, HeadMemory(8192))
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
