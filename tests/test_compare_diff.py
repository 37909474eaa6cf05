# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import fnmatch
import gzip
import json
import re
import time
import zlib
from hashlib import blake2b
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapmirror.compare import diff
from tapmirror.compare.diff import _SORTED as SORTED
from tapmirror.compare.diff import Rules, compare, fields, html_lines
from tapmirror.exchange import Answer, Failure
from tapmirror.spec import Compare, Level


def rules(level: Level = Level.BODY, **spec: Any) -> Rules:
    patterns = spec.get("ignore_patterns", ())
    return Rules(Compare(level=level, **spec), [re.compile(text) for text in patterns])


def answer(body: bytes = b"", status: int = 200, type_: str = "application/json", **more: str) -> Answer:
    lines = [f"HTTP/1.1 {status} OK", f"Content-Type: {type_}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in more.items()]
    return Answer(status, ("\r\n".join(lines) + "\r\n\r\n").encode(), body, len(body))


def found(one: Answer, other: Answer, **spec: Any) -> list[str]:
    return [each.field for each in compare(one, other, rules(**spec)).found]


def doc(one: Any, other: Any, **spec: Any) -> list[str]:
    return found(answer(json.dumps(one).encode()), answer(json.dumps(other).encode()), **spec)


def test_equal_answers() -> None:
    assert not found(answer(b"{}"), answer(b"{}"))


def test_where_the_status_differs_nothing_else_counts() -> None:
    assert found(answer(b"{}"), answer(b"[]", 500, Server="x")) == ["value status"]
    assert found(answer(b"{}"), Answer(0, failure=Failure.CLOSED)) == ["missing status"]


def test_levels() -> None:
    one, other = answer(b"1", Vary="a"), answer(b"2", Vary="b")
    assert found(one, other, level=Level.STATUS) == []
    assert found(one, other, level=Level.HEADERS) == ["value header.vary"]
    assert found(one, other) == ["value header.vary", "value body"]


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


@pytest.mark.parametrize(
    ("one", "other", "want"),
    [
        ({"a": 1}, {"a": 2}, ["value body.a"]),
        ({"a": 1}, {"a": "1"}, ["type body.a"]),
        ({"a": 1}, {"a": True}, ["type body.a"]),
        ({"a": False}, {"a": 0}, ["type body.a"]),
        ({"a": None}, {}, ["missing body.a"]),
        ({}, {"a": None}, ["extra body.a"]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, []),
        ({"a": 1.0}, {"a": 1}, []),
        ({"a": 0.1 + 0.2}, {"a": 0.3}, []),
        ([1, 2, 3], [3, 1, 2], ["order body"]),
        ([{"id": 1}, {"id": 2}], [{"id": 2, "new": 0}, {"id": 1}], ["order body", "extra body[].new"]),
        ([1, 2, 3, 4], [4, 3, 2, 9], ["order body", "value body[]"]),
        ([1, 2, 3, 4], [9, 8, 2, 7], ["value body[]"] * 4),
        ([{"id": 1, "n": 1}, {"id": 2, "n": 2}], [{"id": 1, "n": 2}, {"id": 2, "n": 1}], ["value body[].n"] * 2),
        ([{"id": 1}, {"id": 2}], [{"id": 2}, {"id": 1}], ["order body"]),
        ([1, 2], [1, 2, 3], ["length body"]),
        ([{"p": 1}, {"p": 2}], [{"p": 1}, {"p": 3}], ["value body[].p"]),
        ([{"p": 1}, {"p": 2}], [{"p": 5}, {"p": 6}], ["value body[].p", "value body[].p"]),
        ({"m": {"507f1f77bcf86cd799439011": 1}}, {"m": {"507f1f77bcf86cd799439011": 2}}, ["value body.m.{}"]),
        ({"a": [[1]]}, {"a": [[2]]}, ["value body.a[][]"]),
        ({"a": {}}, {"a": []}, ["type body.a"]),
        ([], {}, ["type body"]),
        (1 << 63, (1 << 63) + 1, ["value body"]),
        (1234567890, 1234567891, ["value body"]),
        (1234567890.1, 1234567890.2, []),
        (1234567890, 1234567890.1, []),
        (10**400, 1.5, ["value body"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_json(one: Any, other: Any, want: list[str]) -> None:
    assert doc(one, other) == want


def test_tolerances() -> None:
    one = {"n": 100.0, "t": "2026-01-01T00:00:00Z"}
    other = {"n": 100.5, "t": "2026-01-01T01:00:01.5+01:00"}
    assert doc(one, other) == ["value body.n", "value body.t"]
    assert doc(one, other, float_tolerance=0.01, time_tolerance=2.0) == []
    assert doc(1000, 1001, float_tolerance=0.01) == []
    assert doc({"t": "2026-13-01T00:00:00Z"}, {"t": "2026-01-01T00:00:00Z"}, time_tolerance=1e9) == ["value body.t"]


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("meta", True),
        ("meta.time", True),
        ("meta.tim", False),
        ("met", False),
        ("*.time", True),
        ("**.time", True),
        ("time", False),
        ("body.meta.time", True),
    ],
)
def test_ignored_paths(path: str, ignored: bool) -> None:
    assert doc({"meta": {"time": 1}}, {"meta": {"time": 2}}, ignore_paths=(path,)) == (
        [] if ignored else ["value body.meta.time"]
    )


@pytest.mark.parametrize("path", ["items[].id", "**.id", "items", "items[]", "items[].*", "[].x", "header.vary"])
def test_ignored_paths_through_arrays(path: str) -> None:
    ignored = doc({"items": [{"id": 1}, {"id": 3}]}, {"items": [{"id": 2}, {"id": 4}]}, ignore_paths=(path,))
    assert (ignored == []) == (path not in ("[].x", "header.vary"))
    assert doc([{"id": 1}], [{"id": 2}], ignore_paths=("[].id",)) == []
    assert doc({"id": 1}, {"id": 2}, ignore_paths=("**.id",)) == []


def covers(pattern: list[str], path: list[str]) -> bool:
    """Step by step, as the reference says."""
    if not pattern:
        return True
    if pattern[0] == "**":
        names = [at for at, step in enumerate(path) if step != "[]"]
        return any(covers(pattern[1:], path[at:]) for at in names)
    if not path or (path[0] == "[]") != (pattern[0] == "[]"):
        return False
    return fnmatch.fnmatchcase(path[0], pattern[0].replace("[]", "[[]]")) and covers(pattern[1:], path[1:])


NAMES = st.sampled_from(["a", "ab", "abc", "acb", "ba"])


@settings(max_examples=2000, deadline=None)
@given(
    st.lists(st.one_of(NAMES, st.sampled_from(["**", "*", "a*", "*b", "a*c", "*a*b", "a[]", "*[]"])), min_size=1),
    st.lists(st.one_of(NAMES, NAMES.map(lambda name: name + "[]")), min_size=1),
)
def test_ignored_paths_are_taken_step_by_step(pattern: list[str], path: list[str]) -> None:
    ignored = Rules(Compare(level=Level.BODY, ignore_paths=(".".join(pattern)[:200],))).ignored
    assert ignored is not None
    steps = [".".join(each).replace("[]", ".[]").split(".") for each in (pattern, path)]
    assert bool(ignored.match("body." + ".".join(path))) == covers(*steps)


@pytest.mark.parametrize(
    "pattern", ["**.a." * 39 + "b", "**.*a*a*a." * 19 + "b", "*a" * 98 + "*b", "**.a" * 50, "**." * 66 + "b"]
)
def test_no_path_takes_long_to_be_matched(pattern: str) -> None:
    """Tried in every way that there is, each of these would take longer than the world is old."""
    ignored = Rules(Compare(level=Level.BODY, ignore_paths=(pattern[:200],))).ignored
    assert ignored is not None
    for path in (".a" * 98, "." + "a" * 195, ".aaa" * 49, "[].a" * 49, "[]" * 98):
        assert not ignored.match(f"body{path}"[:200]) or "b" not in pattern


def test_ignored_patterns() -> None:
    one, other = {"text": "took 12 ms", "b": "x"}, {"text": "took 7 ms", "b": "y"}
    assert doc(one, other, ignore_patterns=(r"\d+ ms",)) == ["value body.b"]


def test_what_is_no_json() -> None:
    """On one side: nothing of it is held against the other's members."""
    assert found(answer(b"{"), answer(b"{}")) == ["value body"]
    assert found(answer(b'{"a": 1'), answer(b'{"a": 2}')) == ["value body"]
    assert found(answer(b"[", type_="text/html"), answer(b"[]", type_="text/html")) == ["value body.lines"]


def test_what_is_said_to_be_json_and_is_none_on_either_side_is_text() -> None:
    one, other = (b'{"at":%d,\n"mean":NaN,\n"state":"%b"}' % each for each in ((17, b"good"), (18, b"bad")))
    assert [each.partition("[")[0] for each in found(answer(one), answer(other))] == ["value body.lines"] * 2
    assert found(answer(b"\xff\x00"), answer(b"\xfe\x00")) == ["value body.lines"]


@pytest.mark.parametrize(
    ("type_", "before", "coding", "path"),
    [
        ("text/html", "", "utf-8", "body"),  # as PHP says of what it is not told of
        ("text/plain; charset=utf-8", " \n", "utf-8", "body"),
        ("application/octet-stream", "", "utf-8", "body"),
        ("application/json", "\ufeff", "utf-8", "body"),
        ("application/json; charset=iso-8859-1", "", "latin-1", "body"),
        ("application/json; charset=utf-16", "", "utf-16", "body"),
        ("application/json", '{"k":1}\n', "utf-8", "body[]"),
        ("application/x-ndjson", '{"k":1}\n', "utf-8", "body[]"),
        ("application/jsonl", '{"k":1}\r\n', "utf-8", "body[]"),
    ],
)
def test_json_by_other_names(type_: str, before: str, coding: str, path: str) -> None:
    """A time that always differs hides nothing else, and no tags are taken out."""
    one, other = (before + f'{{"at":{at},"name":"é<b>{name}</b>"}}' for at, name in ((17, "a"), (18, "b")))
    both = [answer(text.encode(coding), type_=type_) for text in (one, other)]
    assert found(*both) == [f"value {path}.at", f"value {path}.name"]


@pytest.mark.parametrize("lines", [b" \n", b"1\n2", b'{"a":1}\n{"a":2}\n'])
def test_lines_are_no_array(lines: bytes) -> None:
    array = b"[%b]" % b",".join(lines.split())
    assert found(answer(array), answer(lines)) == ["type body"]
    assert found(answer(lines), answer(array)) == ["type body"]
    assert found(answer(lines), answer(lines.replace(b"\n", b"\r\n"))) == []


def test_xml_of_one_line_is_compared_by_its_tags() -> None:
    one, other = (b"<a><at>%d</at><total>%d</total><b/></a>" % each for each in ((17, 5), (18, 6)))
    same = b"<a><at>19</at><total>5</total><b/></a>"
    for type_ in ("text/xml", "application/soap+xml; charset=utf-8", "application/xml"):
        noise = found(answer(one, type_=type_), answer(same, type_=type_))
        assert len(noise) == 1
        assert len({*found(answer(one, type_=type_), answer(other, type_=type_))} - {*noise}) == 1


def test_a_field_that_is_there_twice() -> None:
    """Browsers refuse an answer that allows an origin twice."""
    lines = [b"HTTP/1.1 200 OK", b"Access-Control-Allow-Origin: *", b"Date: now", b"", b""]
    one = Answer(200, b"\r\n".join(lines))
    other = Answer(200, b"\r\n".join([*lines[:2], *lines[1:]]))
    assert found(one, other) == found(other, one) == ["value header.access-control-allow-origin"]


def test_what_differs_beyond_the_nodes_is_told() -> None:
    assert doc([*range(30)], [*range(29), 1], nodes=20) == ["value body[]"]
    assert doc([*range(30)], [*range(30)], nodes=20) == []
    assert doc({"a": [*range(30)], "b": 1}, {"a": [*range(29), 1], "b": 2}, nodes=20) == [
        "value body.a[]",
        "value body.b",
    ]


def test_the_order_of_more_elements_than_nodes_is_not_looked_for() -> None:
    one = [*range(30)]
    assert doc(one, one[::-1], nodes=30) == ["order body"]
    assert {*doc(one, one[::-1], nodes=29)} == {"value body[]"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({f"a{n}x": n for n in range(500)}, {f"b{n}x": n for n in range(500)}),
        ({}, {f"b{n}x": n for n in range(500)}),
        ({f"a{n}x": n for n in range(500)}, {f"a{n}x": -n for n in range(500)}),
        ([{"a": n} for n in range(500)], [{"a": -1 - n} for n in range(500)]),
    ],
)
def test_who_has_found_enough_looks_no_further(one: Any, other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 75,000 names that differ in 1 MB each was looked at: 200 ms."""
    looked = []

    def shortened(name: str) -> str:
        looked.append(name)
        return name

    monkeypatch.setattr(diff, "shortened", shortened)
    assert len(doc(one, other, differences=10)) == 10
    assert len(looked) <= 12


def test_what_differs_beyond_the_lines_is_told() -> None:
    lines = [f"line {n}" for n in range(3000)]
    one, same, other, longer = (
        answer("\n".join(each).encode(), type_="text/plain")
        for each in (lines, lines, [*lines[:-1], "x"], [*lines, "x"])
    )
    assert (found(one, same), found(one, other), found(one, longer)) == ([], ["value body.lines"], ["value body.lines"])


def nested(levels: int, core: list[int], reverse: bool) -> list[Any]:
    """At each level the same elements in another order, and one that differs within."""
    found: list[Any] = core
    for level in range(levels):
        rest = [f"a{level}", f"b{level}"]
        found = [found, *(rest[::-1] if reverse else rest)]
    return found


def test_arrays_in_another_order_in_arrays_in_another_order_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each level compares those below once more: 16 levels of 1 MB took 8 s."""
    encoded = []

    class Encoder:
        def encode(self, value: Any) -> bytes:
            found: bytes = SORTED.encode(value)
            encoded.append(len(found))
            return found

    monkeypatch.setattr(diff, "_SORTED", Encoder())
    core = [*range(1000)]
    fields = doc(nested(2, core, False), nested(2, [*core, 1], True))
    assert fields == ["order body", "order body[]", "length body[][]"]
    encoded.clear()
    doc(nested(16, core, False), nested(16, [*core, 1], True), body_bytes=10_000, decoded_bytes=10_000)
    assert 0 < sum(encoded) <= (diff.ENCODED + 2) * 10_000


def test_depth_nodes_and_differences_are_bounded() -> None:
    one: Any = 1
    other: Any = 2
    for _ in range(200):
        one, other = [one], [other]
    assert doc(one, other) == ["value body" + "[]" * 48]
    many = {f"k{n}x": n for n in range(1000)}
    assert len(doc(many, {k: -v for k, v in many.items()}, differences=10)) == 10
    assert len(doc([[n] for n in range(1000)], [[n + 1] for n in range(1000)], nodes=20)) <= 20
    deep = b"[" * 100_000
    assert [each.partition("[")[0] for each in found(answer(deep), answer(deep + b"]"))] == ["value body.lines"]


def test_hostile_documents_take_no_long_time() -> None:
    one = answer(json.dumps([{"a" * 50 + str(n): [n] * 10 for n in range(300)}] * 10).encode())
    other = answer(json.dumps([{"a" * 50 + str(n): [n + 1] * 10 for n in range(300)}] * 10).encode())
    html = answer(b"<" * 60_000, type_="text/html"), answer(b"<script" * 9000, type_="text/html")
    begin = time.process_time()
    compare(one, other, rules())
    compare(*html, rules())
    assert time.process_time() - begin < 0.5


def test_compressed_bodies_are_decoded_first() -> None:
    one = answer(gzip.compress(b'{"a": 1}'), Content_Encoding="gzip")
    other = answer(zlib.compress(b'{"a": 2}'), Content_Encoding="deflate")
    assert found(one, other, ignore_headers=("content-encoding",)) == ["value body.a"]


@pytest.mark.parametrize(
    ("one", "other", "skipped"),
    [
        (answer(b"x", Content_Encoding="gzip"), answer(b"y", Content_Encoding="br"), ""),
        (
            answer(gzip.compress(bytes(99_999)), Content_Encoding="gzip"),
            answer(b"y", Content_Encoding="gzip"),
            "too long decoded",
        ),
        (Answer(200, b"", b"ab", 3, whole=False), Answer(200, b"", b"ab", 3), "not seen whole"),
        (Answer(200, b"", b"ab", 20), Answer(200, b"", b"ab", 20), "too long"),
    ],
)
def test_what_cannot_be_compared_is_said(one: Answer, other: Answer, skipped: str) -> None:
    compared = compare(one, other, rules(decoded_bytes=1000, ignore_headers=("content-encoding", "content-type")))
    assert not compared.found
    assert skipped in compared.skipped


def test_long_bodies_are_compared_by_hash_and_length() -> None:
    one = Answer(200, b"", b"ab", 20, b"one")
    assert found(one, Answer(200, b"", b"abc", 20, b"one")) == []
    assert found(one, Answer(200, b"", b"ab", 20, b"two")) == ["value body"]
    assert found(one, Answer(200, b"", b"ab", 21)) == ["value body"]


def test_bodies_of_different_kinds() -> None:
    assert found(answer(b"{}"), answer(b"<p>", type_="text/html"), ignore_headers=("content-type",)) == ["type body"]
    assert found(answer(b"{}"), answer(b"")) == ["missing body"]


def test_html_is_compared_by_its_text() -> None:
    one = b"<html><!-- 1 --><style>p {}</style><p class=a>Price:&nbsp;<b>5</b></p>\n<script>x = 1</script><p>on</p>"
    other = b"<html>\n<p>Price: 5</p><script>x = 2</script>\n\n<p id=x>on</p><!-- no end"
    assert list(html_lines(one.decode())) == ["Price: 5", "on"]
    assert found(answer(one, type_="text/html"), answer(other, type_="text/html")) == []
    other = other.replace(b"on<", b"off<")
    assert found(answer(one, type_="text/html"), answer(other, type_="text/html")) == ["value body.lines"]


def test_lines_that_differ_in_numbers_are_a_field_of_their_own() -> None:
    one = "Hello\nrendered at 12:01:33 in 5 ms\nprice is low"
    other = "Hello\nrendered at 12:02:44 in 7 ms\nprice is high"
    assert found(answer(one.encode(), type_="text/plain"), answer(other.encode(), type_="text/plain")) == [
        f"value body.lines[{blake2b(b'rendered at #:#:# in # ms', digest_size=4).hexdigest()}]",
        "value body.lines",
    ]


def test_more_and_fewer_lines() -> None:
    one, other = answer(b"a\nb\nc", type_="text/plain"), answer(b"a\nc\nd\ne", type_="text/plain")
    assert found(one, other) == ["missing body.lines", "extra body.lines"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=40)
@given(JSON, JSON)
def test_difference_is_symmetric_and_never_found_in_equal_documents(one: Any, other: Any) -> None:
    assert not doc(one, one)
    mirrored = {"missing": "extra", "extra": "missing"}
    back = []
    for each in doc(other, one):
        change, _, path = each.partition(" ")
        back.append(f"{mirrored.get(change, change)} {path}")
    assert sorted(doc(one, other)) == sorted(back)


@given(st.binary(max_size=200), st.binary(max_size=200), st.sampled_from(["text/html", "text/plain", "text/json", ""]))
def test_whatever_comes_is_compared(one: bytes, other: bytes, type_: str) -> None:
    compare(answer(one, type_=type_), answer(other, type_=type_), rules(ignore_patterns=("x+",)))
    compare(Answer(200, one, other, len(other)), Answer(200, other, one, len(one)), rules())
