# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from typing import Any

import pytest

from differences import doc, found, response
from tapmirror.compare import documents
from tapmirror.compare.documents import _SORTED as SORTED
from tapmirror.compare.rules import ENCODED


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
    both = [response(text.encode(coding), type_=type_) for text in (one, other)]
    assert found(*both) == [f"value {path}.at", f"value {path}.name"]


@pytest.mark.parametrize(
    ("one", "other", "mine", "its"),
    [
        (b'{"a":[1,2],"b":1}', b'{"b":2,"a":[1,2]}', {"b": 1}, {"b": 2}),
        (b'{"d":{"a":[1],"b":1},"c":""}', b'{"d":{"a":[1]},"c":""}', {"d": {"b": 1}}, {"d": {}}),
        (b'{"a":1}', b'{"a":1,"b":{"c":null}}', {}, {"b": {"c": None}}),
        ('{"a":"é","b":1}'.encode(), '{"a":"é","b":[]}'.encode(), {"b": 1}, {"b": []}),
    ],
)
def test_of_objects_only_what_differs_is_read(one: bytes, other: bytes, mine: Any, its: Any) -> None:
    assert documents.unlike(one, other) == ((mine, False), (its, False))


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":[1,2],"b":2',
        b'{"a":[1,2],"b":tru}',
        b'{"a":[1,2],"b":1e999}',
        b'{"a":[1,2],"b":"\xe9"}',
        b'[{"b":1}]',
        b' {"b":1}',
        json.dumps(dict.fromkeys(map(str, range(100)), 2)).encode(),
        b'{"b":' * 100_000 + b"2" + b"}" * 100_000,  # deeper than any version of Python reads
        b'{"b":{%b}}' % b",".join(b'"%d":2' % n for n in range(100)),
    ],
    ids=lambda body: str(body[:20]),
)
def test_what_is_no_such_object_is_read_whole(body: bytes) -> None:
    other = b'{"a":[1,2],"b":{"c":1}}'
    assert documents.unlike(other, body) is None
    assert documents.unlike(body, other) is None


@pytest.mark.parametrize("lines", [b" \n", b"1\n2", b'{"a":1}\n{"a":2}\n'])
def test_lines_are_no_array(lines: bytes) -> None:
    array = b"[%b]" % b",".join(lines.split())
    assert found(response(array), response(lines)) == ["type body"]
    assert found(response(lines), response(array)) == ["type body"]
    assert found(response(lines), response(lines.replace(b"\n", b"\r\n"))) == []


def test_what_differs_beyond_the_nodes_is_told() -> None:
    assert doc([*range(30)], [*range(29), 1], nodes=20) == ["value body[]"]
    assert doc([*range(30)], [*range(30)], nodes=20) == []
    assert doc({"a": [*range(30)], "b": 1}, {"a": [*range(29), 1], "b": 2}, nodes=20) == [
        "value body.a[]",
        "value body.b",
    ]


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

    monkeypatch.setattr(documents, "shortened", shortened)
    assert len(doc(one, other, differences=10)) == 10
    assert len(looked) <= 12


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

    monkeypatch.setattr(documents, "_SORTED", Encoder())
    core = [*range(1000)]
    fields = doc(nested(2, core, False), nested(2, [*core, 1], True))
    assert fields == ["order body", "order body[]", "length body[][]"]
    encoded.clear()
    doc(nested(16, core, False), nested(16, [*core, 1], True), body_bytes=10_000, decoded_bytes=10_000)
    assert 0 < sum(encoded) <= (ENCODED + 2) * 10_000


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
    assert [each.partition("[")[0] for each in found(response(deep), response(deep + b"]"))] == ["value body.lines"]


def test_the_data_of_events_is_looked_into() -> None:
    """A time in them hides nothing else, and what keeps a connection alive is no difference."""
    type_ = "text/event-stream; charset=utf-8"
    one = b'id: 7\nevent: tick\ndata: {"price":3,"at":17}\n\n: ping\n\ndata: [DONE]\n\n'
    other = b'\xef\xbb\xbfid: 7\r\nevent: tick\r\ndata: {"price":4,\r\ndata: "at":18}\r\n\r\ndata:[DONE]\r\n'
    assert found(response(one, type_=type_), response(other, type_=type_)) == [
        "value body[].data.price",
        "value body[].data.at",
    ]
    assert found(response(one, type_=type_), response(one + one, type_=type_)) == ["length body"]
    plain = [response(b"data: a %d\n\n" % number, type_=type_) for number in (1, 2)]
    assert [each.partition("[")[0] for each in found(*plain)] == ["value body.lines"]
    many = response(b"data: {}\n\n" + b"data\n" * 10_000, type_=type_)
    assert found(many, response(many.body + b"data: x\n", type_=type_)) == ["value body[].data"]
    many = response(b"data: {}\n\n" + b"\n" * documents.LINES, type_=type_)
    assert found(many, response(many.body + b"\n", type_=type_)) == ["value body.lines"]
