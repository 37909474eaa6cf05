# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from hashlib import blake2b

from differences import found, response


def test_xml_of_one_line_is_compared_by_its_tags() -> None:
    one, other = (b"<a><at>%d</at><total>%d</total><b/></a>" % each for each in ((17, 5), (18, 6)))
    same = b"<a><at>19</at><total>5</total><b/></a>"
    for type_ in ("text/xml", "application/soap+xml; charset=utf-8", "application/xml"):
        noise = found(response(one, type_=type_), response(same, type_=type_))
        assert len(noise) == 1
        assert len({*found(response(one, type_=type_), response(other, type_=type_))} - {*noise}) == 1


def test_what_differs_beyond_the_lines_is_told() -> None:
    lines = [f"line {n}" for n in range(3000)]
    one, same, other, longer = (
        response("\n".join(each).encode(), type_="text/plain")
        for each in (lines, lines, [*lines[:-1], "x"], [*lines, "x"])
    )
    assert (found(one, same), found(one, other), found(one, longer)) == ([], ["value body.lines"], ["value body.lines"])


def test_lines_that_differ_in_numbers_are_a_field_of_their_own() -> None:
    one = "Hello\nrendered at 12:01:33 in 5 ms\nprice is low"
    other = "Hello\nrendered at 12:02:44 in 7 ms\nprice is high"
    assert found(response(one.encode(), type_="text/plain"), response(other.encode(), type_="text/plain")) == [
        f"value body.lines[{blake2b(b'rendered at #:#:# in # ms', digest_size=4).hexdigest()}]",
        "value body.lines",
    ]


def test_more_and_fewer_lines() -> None:
    one, other = response(b"a\nb\nc", type_="text/plain"), response(b"a\nc\nd\ne", type_="text/plain")
    assert found(one, other) == ["missing body.lines", "extra body.lines"]
    more, fewer = response(b"a\nb\nc\nd", type_="text/plain"), response(b"a\nc", type_="text/plain")
    assert (found(one, more), found(one, fewer)) == (["extra body.lines"], ["missing body.lines"])
