# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time
from typing import Any

import pytest

from differences import found, response, rules
from tapmirror.compare.diff import compare
from tapmirror.compare.heads import fields
from tapmirror.exchange import Response


def test_headers() -> None:
    one = response(Date="now", Vary="a", Gone="x", Set_Cookie="session=1; Path=/; HttpOnly")
    other = response(date="then", VARY="b", New="x", Set_Cookie="session=2; httponly; Path=/")
    assert sorted(found(one, other)) == ["extra header.new", "missing header.gone", "value header.vary"]
    assert sorted(found(one, other, ignore_headers=("New", "gone"))) == ["value header.vary"]
    assert "value header.date" in found(one, other, all_headers=True)


def test_cookies_differ_in_names_and_attributes() -> None:
    one = response(Set_Cookie="session=1; Path=/; Secure")
    assert found(one, response(Set_Cookie="session=2; Path=/")) == ["value header.set-cookie"]
    assert found(one, response(Set_Cookie="sid=1; Path=/; Secure")) == ["value header.set-cookie"]


def test_fields_of_one_name() -> None:
    assert fields(b"HTTP/1.1 200 OK\r\nA: 1\r\nb:2 \r\na:  3\r\n\r\n") == {b"a": b"1\n3", b"b": b"2"}


def test_a_field_that_is_there_twice() -> None:
    """Browsers refuse a response that allows an origin twice."""
    lines = [b"HTTP/1.1 200 OK", b"Access-Control-Allow-Origin: *", b"Date: now", b"", b""]
    one = Response(200, b"\r\n".join(lines))
    other = Response(200, b"\r\n".join([*lines[:2], *lines[1:]]))
    assert found(one, other) == found(other, one) == ["value header.access-control-allow-origin"]


@pytest.mark.parametrize(
    ("name", "value", "other"),
    [
        ("Allow", "OPTIONS,HEAD,GET", "HEAD, GET, OPTIONS"),
        ("Vary", "Accept-Encoding, Origin", "origin,accept-encoding"),
        ("Access-Control-Allow-Methods", "GET, PUT", "PUT, GET"),
        ("Access-Control-Allow-Headers", "X-A, X-B", "x-b, x-a"),
        ("Access-Control-Expose-Headers", "X-A, X-B", "x-b, x-a"),
        ("Content-Type", "multipart/byteranges; boundary=58cc", 'multipart/byteranges; boundary="1206"'),
        ("Content-Type", "text/html; charset=utf-8", 'Text/HTML;Charset="UTF-8"'),
        ("Content-Type", "text/html", "text/html;"),
        ("Content-Type", "a/b; q=1; profile=A", 'a/b; profile="A";q=1'),
        ("Content-Type", 'a/b; q="p;q"; a=1', 'a/b;A=1; q="p\\;q"'),
        ("Cache-Control", "no-cache, no-store,max-age=0", "No-Store, max-age=0, no-cache"),
        ("Cache-Control", "max-age=1, max-age=1", "max-age=1"),
        ("Cache-Control", "max-age=1, public, max-age=2", 'public, max-age="1", max-age=2'),
        ("Cache-Control", 'no-cache="Set-Cookie, X-A", public', 'public,no-cache="x-a,set-cookie"'),
    ],
)
def test_what_means_the_same(name: str, value: str, other: str) -> None:
    assert found(_with(name, value), _with(name, other)) == []


@pytest.mark.parametrize("end", ["", "\\"])
def test_quotes_that_nothing_ends_are_looked_at_once(end: str) -> None:
    """In one's time for each of them a head of 64 KiB would take half a minute."""
    text = '"' + '\\"' * 30_000 + end
    begun = time.process_time()
    assert found(_with("Content-Type", f"a/b; x={text}"), _with("Content-Type", f"a/b; y={text}")) != []
    assert time.process_time() - begun < 1


def test_a_field_in_two_lines_is_its_list() -> None:
    lines = [b"HTTP/1.1 200 OK", b"Vary: Origin", b"Vary: Accept", b"", b""]
    assert found(Response(200, b"\r\n".join(lines)), _with("Vary", "Accept, Origin")) == []


@pytest.mark.parametrize(
    ("name", "value", "other"),
    [
        ("Allow", "GET, PUT", "GET"),
        ("Allow", "GET", "get"),
        ("Vary", "Origin", "Origin, Cookie"),
        ("Accept-Ranges", "bytes, none", "none, bytes"),
        ("Content-Type", "multipart/mixed; boundary=a", "multipart/byteranges; boundary=a"),
        ("Content-Type", "multipart/mixed; boundary=a; start=1", "multipart/mixed; boundary=b; start=2"),
        ("Content-Type", "text/plain; boundary=a", "text/plain; boundary=b"),
        ("Content-Type", "text/plain; charset=utf-8", "text/plain; charset=utf-16"),
        ("Content-Type", "text/plain; charset=utf-8", "text/plain"),
        ("Content-Type", "a/b; profile=A", "a/b; profile=a"),
        ("Cache-Control", "no-cache, max-age=0", "no-cache, max-age=1"),
        ("Cache-Control", "no-cache, no-store", "no-cache"),
        ("Cache-Control", "max-age=1, max-age=2", "max-age=2, max-age=1"),
        ("Cache-Control", "max-age=1, max-age=2", "max-age=1"),
        ("Cache-Control", 'no-cache="a, b"', 'no-cache="a", b'),
        ("Cache-Control", "no-cache", 'no-cache="a"'),
        ("Cache-Control", "public, x=A", "public, x=a"),
        ("Content-Type", 'a/b; x="p;Q=1"', 'a/b; x="p;q=1"'),
        ("Content-Type", "a/b; x=1; x=2", "a/b; x=2; x=1"),
        ("Content-Type", 'a/b; x="p;y=1"', "a/b; x=p; y=1"),
    ],
)
def test_what_does_not(name: str, value: str, other: str) -> None:
    assert found(_with(name, value), _with(name, other)) == [f"value header.{name.lower()}"]


def _with(name: str, value: str) -> Response:
    return Response(200, f"HTTP/1.1 200 OK\r\n{name}: {value}\r\n\r\n".encode())


def _length(length: str, *more: bytes) -> Response:
    return Response(200, b"\r\n".join([b"HTTP/1.1 200 OK", *more, b"Content-Length: " + length.encode(), b"", b""]))


@pytest.mark.parametrize(
    ("one", "other", "spec", "fields"),
    [
        (_length("17"), _length("18"), {}, ["value header.content-length"]),
        (_length("17"), _length("17", b"Date: x"), {}, []),
        (_length("17"), _with("Date", "x"), {}, []),
        (_length("17", b"Content-Encoding: gzip"), _length("18", b"Content-Encoding: gzip"), {}, []),
        (_length("17"), _length("18"), {"ignore_headers": ("Content-Length",)}, []),
        (_length("17"), _length("18"), {"all_headers": True}, ["value header.content-length"]),
    ],
)
def test_the_length_that_responses_to_head_tell(
    one: Response, other: Response, spec: dict[str, Any], fields: list[str]
) -> None:
    assert [each.field for each in compare(one, other, rules(**spec), bodiless=True).found] == fields
    if not spec:
        assert found(one, other) == []  # a body is compared with what it says


def test_tokens_of_a_redirect_do_not_hide_that_it_leads_elsewhere() -> None:
    first, again, elsewhere = (
        _with("Location", f"/{path}?state={state}")
        for path, state in (("accounts/users/login", 17), ("accounts/users/login", 18), ("accounts/users/other", 19))
    )
    (noise,) = found(first, again)
    assert noise.startswith("value header.location[")
    assert found(first, elsewhere) == ["value header.location"]
    assert found(first, again, ignore_paths=("header.location",)) == []
