# SPDX-License-Identifier: Apache-2.0
"""Each rewrite as in -> want, and that nothing gets a line into a head that was not asked for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy_cases import Tried, head, request, tap_of
from tapmirror.framing.head import HEAD, read_head
from tapmirror.policy.request import Request
from tapmirror.policy.rewrite import rewriter, with_suffix

NOW = 1_700_000_000.25


def rewritten(rewrite: dict[str, Any], asked: Request, to: str = "new:8080", **more: Any) -> bytes | None:
    (shadow,) = tap_of(shadow={"to": to, "rewrite": rewrite, **more}).shadows
    function = rewriter(shadow, "checkout")
    assert function is not None
    return function(asked, 42, NOW)


@pytest.mark.parametrize(
    ("rewrite", "line", "fields", "want_line", "want_fields"),
    [
        ({"method": "HEAD"}, "GET / HTTP/1.1", (), "HEAD / HTTP/1.1", ()),
        ({"path": {"prefix": "/v1", "with": "/v2"}}, "GET /v1/a?v1 HTTP/1.1", (), "GET /v2/a?v1 HTTP/1.1", ()),
        ({"path": {"prefix": "/v1", "with": "/v2"}}, "GET /x/v1 HTTP/1.1", (), "GET /x/v1 HTTP/1.1", ()),
        ({"path": {"prefix": "/v1/", "with": "/"}}, "GET http://h/v1/a HTTP/1.1", (), "GET http://h/a HTTP/1.1", ()),
        (
            {"path": {"regex": "/u/([0-9]+)", "with": r"/users/\1"}},
            "GET /u/7/x HTTP/1.1",
            (),
            "GET /users/7/x HTTP/1.1",
            (),
        ),
        ({"set_query": {"a": "1 &"}}, "GET /?a=0&b=2&a=9 HTTP/1.1", (), "GET /?b=2&a=1%20%26 HTTP/1.1", ()),
        ({"set_query": {"a": "1"}}, "GET / HTTP/1.0", (), "GET /?a=1 HTTP/1.0", ()),
        ({"remove_query": ["a"]}, "GET /?a=0&%61=1 HTTP/1.1", (), "GET / HTTP/1.1", ()),
        ({"remove_query": ["a"]}, "GET /?b&a HTTP/1.1", (), "GET /?b HTTP/1.1", ()),
        ({"set_query": {"a": "1"}}, "OPTIONS * HTTP/1.1", (), "OPTIONS * HTTP/1.1", ()),
        ({"path": {"regex": "^", "with": "/v2"}}, "OPTIONS * HTTP/1.1", (), "OPTIONS * HTTP/1.1", ()),
        ({"method": "OPTIONS"}, "OPTIONS * HTTP/1.1", (), "OPTIONS * HTTP/1.1", ()),
        ({"set_query": {"a": "1"}}, "CONNECT a:443 HTTP/1.1", (), "CONNECT a:443 HTTP/1.1", ()),
        ({"path": {"regex": "^", "with": "/v2"}}, "CONNECT a:443 HTTP/1.1", (), "CONNECT a:443 HTTP/1.1", ()),
        ({"remove_headers": ["x-a"]}, "GET / HTTP/1.1", ("X-A: 1", "X-AB: 2", "x-a:3"), "GET / HTTP/1.1", ("X-AB: 2",)),
        (
            {"set_headers": {"X-A": "n"}},
            "GET / HTTP/1.1",
            ("x-a: 1", "B: x-a: 2"),
            "GET / HTTP/1.1",
            ("B: x-a: 2", "X-A: n"),
        ),
        ({"add_headers": {"X-A": "n"}}, "GET / HTTP/1.1", ("x-a: 1",), "GET / HTTP/1.1", ("x-a: 1", "X-A: n")),
        ({"marker": "X-Mirror"}, "GET / HTTP/1.1", (), "GET / HTTP/1.1", ("X-Mirror: checkout",)),
        ({"x_forwarded_for": True}, "GET / HTTP/1.1", (), "GET / HTTP/1.1", ("X-Forwarded-For: 10.0.0.1",)),
        (
            {"x_forwarded_for": True},
            "GET / HTTP/1.1",
            ("x-forwarded-for: 1.1.1.1", "X-Forwarded-For: 2.2.2.2"),
            "GET / HTTP/1.1",
            ("X-Forwarded-For: 1.1.1.1, 2.2.2.2, 10.0.0.1",),
        ),
        (
            {"set_headers": {"X-T": "{client}:{client_port} {connection} {{{host}}} {tap} {shadow} {time}"}},
            "GET / HTTP/1.1",
            (),
            "GET / HTTP/1.1",
            ("X-T: 10.0.0.1:40000 42 {shop.test} checkout new:8080 2023-11-14T22:13:20.250Z",),
        ),
    ],
)
def test_rewrites(
    rewrite: dict[str, Any], line: str, fields: tuple[str, ...], want_line: str, want_fields: tuple[str, ...]
) -> None:
    assert rewritten(rewrite, request(line, *fields)) == head(want_line, *want_fields)


@pytest.mark.parametrize(
    ("rule", "host", "want"),
    [
        ("keep", "a:1", "a:1"),
        ("target", "a:1", "new:8080"),
        ("fixed.test", "a:1", "fixed.test"),
        ("shadow-suffix", "reviews:9080", "reviews-shadow:9080"),
        ("shadow-suffix", "reviews", "reviews-shadow"),
        ("shadow-suffix", "[::1]:80", "[::1]-shadow:80"),
        ("shadow-suffix", "[::1]", "[::1]-shadow"),
        ("shadow-suffix", "", ""),
    ],
)
def test_hosts(rule: str, host: str, want: str) -> None:
    asked = request("GET / HTTP/1.1", "X: y", host=host)
    got = rewritten({"host": rule, "add_headers": {"A": "b"}}, asked)
    assert got == head("GET / HTTP/1.1", "X: y", "A: b", host=want)


def test_a_target_of_version_6_is_in_brackets() -> None:
    assert rewritten({"host": "target"}, request(), to="[2001:db8::7]:80") == head(host="[2001:db8::7]:80")
    assert with_suffix(b"a:b:1") == b"a:b-shadow:1"


@pytest.mark.parametrize(
    ("path", "asked"),
    [({"prefix": "/a", "with": ""}, "GET /a HTTP/1.1"), ({"regex": "^/", "with": ""}, "GET /abc HTTP/1.1")],
)
def test_a_path_that_would_not_be_valid_is_refused(path: dict[str, str], asked: str) -> None:
    assert rewritten({"path": path}, request(asked)) is None
    tried = Tried(shadow={"to": "new:80", "rewrite": {"path": path}})
    assert tried.ask(head(asked)) == [None]
    assert tried.fates() == {"rewrite": 1}


FIELD_TEXT = st.text(
    st.characters(codec="latin-1", exclude_characters="\r\n\0", exclude_categories=["Cc"]), max_size=30
)


@settings(deadline=None)
@given(value=FIELD_TEXT, forwarded=FIELD_TEXT, target=st.text("abc/?&=%#'\"{}\\", max_size=20))
def test_what_a_request_carries_makes_no_new_line(value: str, forwarded: str, target: str) -> None:
    """Whatever is copied from a request, the head stays one, with the fields that were asked for."""
    asked = request(f"GET /{target} HTTP/1.1", f"X-Forwarded-For: {forwarded}", f"X-V: {value}")
    assert HEAD.fullmatch(asked.head)
    rules = {"set_headers": {"X-H": "{host}{client}{time}"}, "x_forwarded_for": True, "set_query": {"q": "1"}}
    got = rewritten(rules, asked)
    assert got is not None
    found = HEAD.fullmatch(got)
    assert found is not None and read_head(found) is not None
    assert got.count(b"\r\n") == asked.head.count(b"\r\n") + 1
    assert got.count(b"\r\n") == got.count(b"\n") == got.count(b"\r")


def test_an_asterisk_is_of_no_other_method() -> None:
    assert rewritten({"method": "GET"}, request("OPTIONS * HTTP/1.1")) is None


def test_a_constant_rewrite_changes_nothing_else() -> None:
    fields = [f"Field-{n}: {'v' * n}" for n in range(20)]
    got = rewritten({"set_headers": {"X-One": "1", "X-Two": "2"}}, request("GET /a HTTP/1.1", *fields))
    assert got == head("GET /a HTTP/1.1", *fields, "X-One: 1", "X-Two: 2")
