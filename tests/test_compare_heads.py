# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from differences import answer, found
from tapmirror.compare.heads import fields
from tapmirror.exchange import Answer


def test_headers() -> None:
    one = answer(Date="now", Vary="a", Gone="x", Set_Cookie="session=1; Path=/; HttpOnly")
    other = answer(date="then", VARY="b", New="x", Set_Cookie="session=2; httponly; Path=/")
    assert sorted(found(one, other)) == ["extra header.new", "missing header.gone", "value header.vary"]
    assert sorted(found(one, other, ignore_headers=("New", "gone"))) == ["value header.vary"]
    assert "value header.date" in found(one, other, all_headers=True)


def test_cookies_differ_in_names_and_attributes() -> None:
    one = answer(Set_Cookie="session=1; Path=/; Secure")
    assert found(one, answer(Set_Cookie="session=2; Path=/")) == ["value header.set-cookie"]
    assert found(one, answer(Set_Cookie="sid=1; Path=/; Secure")) == ["value header.set-cookie"]


def test_fields_of_one_name() -> None:
    assert fields(b"HTTP/1.1 200 OK\r\nA: 1\r\nb:2 \r\na:  3\r\n\r\n") == {b"a": b"1\n3", b"b": b"2"}


def test_a_field_that_is_there_twice() -> None:
    """Browsers refuse an answer that allows an origin twice."""
    lines = [b"HTTP/1.1 200 OK", b"Access-Control-Allow-Origin: *", b"Date: now", b"", b""]
    one = Answer(200, b"\r\n".join(lines))
    other = Answer(200, b"\r\n".join([*lines[:2], *lines[1:]]))
    assert found(one, other) == found(other, one) == ["value header.access-control-allow-origin"]
