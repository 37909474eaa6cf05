# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from tapmirror.policy.samples import USUAL, SampleRedactor
from tapmirror.spec import Redact

HEAD = (
    b"POST /a?token=abc&x=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer abc\r\nContent-Type: application/json\r\n\r\n"
)


def test_requests_lose_what_is_secret() -> None:
    head, body = SampleRedactor([USUAL], b"k").request(HEAD, b'{"user": {"email": "a@b", "name": "n"}}')
    assert b"abc" not in head
    assert head.startswith(b"POST /a?x=1 HTTP/1.1\r\nHost: x\r\n")
    assert body == b'{"user":{"email":"(redacted)","name":"n"}}'


def test_answers_lose_the_same_and_keep_their_status_line() -> None:
    head = b"HTTP/1.1 404 Not Found\r\nSet-Cookie: sid=1\r\nContent-Type: application/json\r\n"
    head, body = SampleRedactor([USUAL], b"k").answer(head + b"Content-Encoding: gzip\r\n\r\n", b'[{"password": "p"}]')
    assert head == b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\n\r\n"
    assert body == b'[{"password":"(redacted)"}]'


def test_texts_are_shown_as_they_are_unless_a_rule_forbids_it() -> None:
    head = b"HTTP/1.1 200 OK\nContent-Type: text/html\n\n"
    assert SampleRedactor([USUAL], b"k").answer(head, b"<p>")[1] == b"<p>"
    assert SampleRedactor([USUAL, Redact(privacy="strict")], b"k").answer(head, b"<p>")[1] is None
    assert SampleRedactor([Redact(patterns={"[0-9]+": "#"})], b"k").answer(head, b"card 4111")[1] == b"card #"


def test_what_says_it_is_json_and_is_not_is_not_shown() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
    assert SampleRedactor([USUAL], b"k").answer(head, b'{"password": ')[1] is None
    assert SampleRedactor([Redact(json={"a": "remove"}, body_bytes=3)], b"k").answer(head, b'{"a": 1}')[1] is None
