# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import json
import time
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from differences import doc, found, response, rules
from tapmirror.compare import documents
from tapmirror.compare.diff import compare
from tapmirror.exchange import Failure, Response
from tapmirror.spec import Level


def test_equal_responses() -> None:
    assert not found(response(b"{}"), response(b"{}"))


def test_where_the_status_differs_nothing_else_counts() -> None:
    assert found(response(b"{}"), response(b"[]", 500, Server="x")) == ["value status"]
    assert found(response(b"{}"), Response(0, failure=Failure.CLOSED)) == ["missing status"]


def test_levels() -> None:
    one, other = response(b"1", Vary="a"), response(b"2", Vary="b")
    assert found(one, other, level=Level.STATUS) == []
    assert found(one, other, level=Level.HEADERS) == ["value header.vary"]
    assert found(one, other) == ["value header.vary", "value body"]


def test_what_is_no_json() -> None:
    """On one side: nothing of it is held against the other's members."""
    assert found(response(b"{"), response(b"{}")) == ["value body"]
    assert found(response(b'{"a": 1'), response(b'{"a": 2}')) == ["value body"]
    assert found(response(b"[", type_="text/html"), response(b"[]", type_="text/html")) == ["value body.lines"]


def test_what_is_said_to_be_json_and_is_none_on_either_side_is_text() -> None:
    one, other = (b'{"at":%d,\n"mean":.5,\n"state":"%b"}' % each for each in ((17, b"good"), (18, b"bad")))
    assert [each.partition("[")[0] for each in found(response(one), response(other))] == ["value body.lines"] * 2
    assert found(response(b"\xff\x00"), response(b"\xfe\x00")) == ["value body.lines"]


@pytest.mark.parametrize(
    ("body", "type_"),
    [
        (b'{"name": "Ren%b"}', "application/json"),
        (b'[{"name": "Ren%b"}]', "text/plain"),
        (b"<p>Ren%b</p>", "text/html"),
        (b"name,age\nRen%b,5\n", "text/csv"),
        (b"<a>Ren%b</a>", "application/xml"),
    ],
)
def test_bytes_that_are_no_text_are_not_all_the_same(body: bytes, type_: str) -> None:
    """Each is shown as U+FFFD."""
    one, other = response(body % b"\xe9", type_=type_), response(body % b"\xe8", type_=type_)
    assert found(one, other) == ["value body.lines"]
    assert found(one, response(body % b"\xe9", type_=f"{type_}; charset=utf-8"), ignore_headers=("content-type",)) == []


def test_hostile_documents_take_no_long_time() -> None:
    one = response(json.dumps([{"a" * 50 + str(n): [n] * 10 for n in range(300)}] * 10).encode())
    other = response(json.dumps([{"a" * 50 + str(n): [n + 1] * 10 for n in range(300)}] * 10).encode())
    html = response(b"<" * 60_000, type_="text/html"), response(b"<script" * 9000, type_="text/html")
    begin = time.process_time()
    compare(one, other, rules())
    compare(*html, rules())
    assert time.process_time() - begin < 0.5


def test_compressed_bodies_are_decoded_first() -> None:
    one = response(gzip.compress(b'{"a": 1}'), Content_Encoding="gzip")
    other = response(zlib.compress(b'{"a": 2}'), Content_Encoding="deflate")
    assert found(one, other, ignore_headers=("content-encoding",)) == ["value body.a"]


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "x-unknown"])
@pytest.mark.parametrize(
    ("body", "differs"), [(b"", []), (b"{}", ["extra body"])], ids=["no bodies, as of HEAD", "none on one side"]
)
def test_what_is_not_there_needs_no_decoding(coding: str, body: bytes, differs: list[str]) -> None:
    one, other = response(b"", Content_Encoding=coding), response(body)
    compared = compare(one, other, rules(), bodiless=not body)
    assert [each.field for each in compared.found] == ["missing header.content-encoding", *differs]
    assert compared.skipped == ""


@pytest.mark.parametrize(
    ("one", "other", "skipped"),
    [
        (response(b"x", Content_Encoding="gzip"), response(b"y", Content_Encoding="br"), ""),
        (
            response(gzip.compress(bytes(99_999)), Content_Encoding="gzip"),
            response(b"y", Content_Encoding="gzip"),
            "too long decoded",
        ),
        (Response(200, b"", b"ab", 3, whole=False), Response(200, b"", b"ab", 3), "not seen whole"),
        (Response(200, b"", b"ab", 20), Response(200, b"", b"ab", 20), "too long"),
    ],
)
def test_what_cannot_be_compared_is_said(one: Response, other: Response, skipped: str) -> None:
    compared = compare(one, other, rules(decoded_bytes=1000, ignore_headers=("content-encoding", "content-type")))
    assert not compared.found
    assert skipped in compared.skipped


def test_long_bodies_are_compared_by_hash_and_length() -> None:
    one = Response(200, b"", b"ab", 20, b"one")
    assert found(one, Response(200, b"", b"abc", 20, b"one")) == []
    assert found(one, Response(200, b"", b"ab", 20, b"two")) == ["value body"]
    assert found(one, Response(200, b"", b"ab", 21)) == ["value body"]
    cut, whole = Response(200, b"", b"a", 20, b"one"), Response(200, b"", b"a", 1)
    assert found(cut, whole) == found(whole, cut) == ["value body"]


def test_bodies_that_are_not_what_their_coding_says_are_compared_as_bytes() -> None:
    one, other = (response(gzip.compress(b'{"a":%d}' % n)[:-9], Content_Encoding="gzip") for n in range(2))
    compared = compare(one, other, rules())
    assert [each.field for each in compared.found] == ["value body"]
    assert compared.skipped == "gzip: cut off"


def test_bodies_that_are_the_same_once_they_are_decoded_differ_in_nothing() -> None:
    one = response(gzip.compress(b"[1]"), Content_Encoding="gzip")
    other = response(zlib.compress(b"[1]"), type_="text/html", Content_Encoding="deflate")
    assert found(one, other, ignore_headers=("content-encoding",)) == ["value header.content-type"]


def test_bodies_of_different_kinds() -> None:
    assert found(response(b"{}"), response(b"<p>", type_="text/html"), ignore_headers=("content-type",)) == [
        "type body"
    ]
    assert found(response(b"{}"), response(b"")) == ["missing body"]


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


OBJECT = st.dictionaries(st.sampled_from("abcdefé"), JSON, max_size=6)


@settings(max_examples=100)
@given(OBJECT, OBJECT, OBJECT, st.booleans())
def test_members_that_are_left_unread_have_no_differences(same: Any, one: Any, other: Any, within: bool) -> None:
    one, other = {**same, **one}, {**same, **other}
    if within:
        one, other = {**other, "g": one}, {**one, "g": other}
    want = doc(one, other)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "unlike", lambda one, other: None)
        assert doc(one, other) == want


@given(st.binary(max_size=200), st.binary(max_size=200), st.sampled_from(["text/html", "text/plain", "text/json", ""]))
def test_whatever_comes_is_compared(one: bytes, other: bytes, type_: str) -> None:
    compare(response(one, type_=type_), response(other, type_=type_), rules(ignore_patterns=("x+",)))
    compare(Response(200, one, other, len(other)), Response(200, other, one, len(one)), rules())


def test_parts_are_compared_without_what_is_between_them() -> None:
    def parts(boundary: str, text: str) -> Response:
        body = f"\r\n--{boundary}\r\nContent-Type: text/html\r\n\r\n{text}\r\n--{boundary}--\r\n"
        return response(body.encode(), type_=f"multipart/mixed; boundary={boundary}")

    assert found(parts("58ccd26e", "a"), parts("1206f561", "a")) == []
    assert found(parts("58ccd26e", "a"), parts("batch_12", "a")) == []
    assert found(parts("58ccd26e", "a"), parts("1206f561", "b")) == ["value body"]
