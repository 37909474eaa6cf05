# SPDX-License-Identifier: Apache-2.0
"""What a hook is shown, what it may return, and that nothing it does breaks anything."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from policy_cases import Tried, head, request, sends
from tapmirror.events import START
from tapmirror.policy import HookRequest
from tapmirror.policy.hook import from_hook, to_hook
from tapmirror.policy.request import Request

POST = "POST /a?b HTTP/1.1"


def test_what_it_is_shown() -> None:
    asked = request("PUT http://h/a?b HTTP/1.1", "Content-Length: 5", "X-A:  \xe9 ", "Connection: keep-alive", "X-A: 2")
    assert to_hook(asked, 7, b"hello") == HookRequest(
        method="PUT",
        target="http://h/a?b",
        headers=(("Host", "shop.test"), ("X-A", "\xe9"), ("X-A", "2")),
        body=b"hello",
        client="10.0.0.1",
        connection=7,
    )


def test_unchanged_it_is_the_same_but_for_the_order_of_framing_fields() -> None:
    asked = request(POST, "Content-Length: 5", "X-A: 1")
    assert from_hook(to_hook(asked, 1, None), asked, None) == (head(POST, "X-A: 1", "Content-Length: 5"), None)


def test_a_request_without_fields_has_none() -> None:
    asked = Request(b"GET / HTTP/1.0\r\n\r\n", bytes(36))
    assert to_hook(asked, 1, None).headers == ()
    assert from_hook(to_hook(asked, 1, None), asked, None) == (asked.head, None)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "GET\r\nX: y"},
        {"method": ""},
        {"method": "CONNECT"},
        {"target": "/a b"},
        {"target": "/\u20ac"},
        {"headers": ()},  # no Host
        {"headers": (("Host", "a"), ("Host", "b"))},
        {"headers": (("Host", "a"), ("X", "1\r\nY: 2"))},
        {"headers": (("Host", "a"), ("X\r\nY", "1"))},
        {"headers": (("Host", "a"), ("X", "\0"))},
        {"headers": (("Host", "a"), ("X: y", "1"))},
        {"headers": (("Host",),)},
        {"headers": 5},
        {"target": None},
    ],
)
def test_what_is_no_request_is_refused(change: dict[str, Any]) -> None:
    asked = request(POST)
    assert from_hook(to_hook(asked, 1, None).replace(**change), asked, None) is None


@pytest.mark.parametrize("made", ["text", 5, ["a"], (), object()])
def test_a_body_that_is_none_is_an_error(made: Any) -> None:
    data = head("POST / HTTP/1.1", "Content-Length: 3") + b"abc"
    assert run(lambda r: r.replace(body=made), data, body=True) == (None, {"hook_error": 1})


@pytest.mark.parametrize("made", [bytearray(b"abcd"), memoryview(b"abcd"), memoryview(b"abcd").cast("I")])
def test_what_is_like_bytes_is_a_body_of_so_many(made: Any) -> None:
    data = head("POST / HTTP/1.1", "Content-Length: 1") + b"x"
    found, _ = run(lambda r: r.replace(body=made), data, body=True)
    assert found == head("POST / HTTP/1.1", "Content-Length: 4") + b"abcd"


@pytest.mark.parametrize("result", [1, "x", object(), (1, 2)])
def test_what_is_no_result_is_an_error(result: object) -> None:
    tried = Tried(lambda _: result, hook="a:b")
    assert tried.ask(head()) == [None]
    assert tried.fates() == {"hook_error": 1}
    assert tried.ledgers[0].events["hook_errors"] == 1


def run(function: Callable[[HookRequest], object], data: bytes, **hook: Any) -> tuple[bytes | None, dict[str, int]]:
    tried = Tried(function, hook={"call": "a:b", **hook})
    (got,) = tried.ask(data)
    return got, tried.fates()


def test_changing_dropping_and_failing() -> None:
    def fails(_: HookRequest) -> object:
        raise RuntimeError

    def ends(_: HookRequest) -> object:
        sys.exit("no such key")

    assert run(lambda r: r.replace(target="/new"), head()) == (head("GET /new HTTP/1.1"), {})
    assert run(lambda r: r.replace(headers=(("Host", "other"),)), head()) == (head(host="other"), {})
    assert run(lambda _: None, head()) == (None, {"hook": 1})
    assert run(fails, head()) == (None, {"hook_error": 1})
    assert run(ends, head()) == (None, {"hook_error": 1})


def test_framing_fields_cannot_be_set() -> None:
    got, _ = run(lambda r: r.replace(headers=(*r.headers, ("Content-Length", "5"), ("Connection", "close"))), head())
    assert got == head()


def test_a_body_is_put_together_and_can_be_changed() -> None:
    chunked = head("POST / HTTP/1.1", "Transfer-Encoding: chunked") + b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"
    bodies = []

    def upper(asked: HookRequest) -> object:
        bodies.append(asked.body)
        return asked.replace(body=(asked.body or b"").upper())

    assert run(upper, chunked, body=True) == (head("POST / HTTP/1.1", "Content-Length: 6") + b"ABCDEF", {})
    plain = head("POST / HTTP/1.1", "Content-Length: 3") + b"abc"
    assert run(upper, plain, body=True)[0] == head("POST / HTTP/1.1", "Content-Length: 3") + b"ABC"
    assert run(upper, head(), body=True)[0] == head()
    assert bodies == [b"abcdef", b"abc", b""]
    assert run(lambda r: r.replace(body=b"x"), plain) == (None, {"hook_error": 1})  # it did not ask for bodies
    assert run(lambda r: r.replace(body=None), plain, body=True) == (None, {"hook_error": 1})


def test_bodies_longer_than_it_wants() -> None:
    tried = Tried(lambda r: r, hook={"call": "a:b", "body": True, "body_bytes": 4})
    tried.ask(head("POST / HTTP/1.1", "Content-Length: 5") + b"12345")
    flow = tried.open()
    tried.ask(head("POST / HTTP/1.1", "Transfer-Encoding: chunked"), flow, flags=START)
    tried.body(flow, b"5\r\n12345\r\n0\r\n\r\n", end=True)
    assert tried.fates() == {"hold_limit": 2}
    assert sends(tried.out) == []


def test_it_sees_what_redaction_left() -> None:
    seen: list[HookRequest] = []

    def look(asked: HookRequest) -> object:
        seen.append(asked)
        return asked

    tried = Tried(look, hook="a:b", redact={"headers": {"cookie": "remove"}, "query": {"t": "remove"}})
    tried.ask(head("GET /?t=s&u=1 HTTP/1.1", "Cookie: s"))
    assert seen[0].target == "/?u=1" and dict(seen[0].headers) == {"Host": "shop.test"}
