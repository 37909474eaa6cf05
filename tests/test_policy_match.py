# SPDX-License-Identifier: Apache-2.0
"""Each condition, on requests that it holds for and on others."""

from __future__ import annotations

import time
from typing import Any

import pytest

from policy_cases import request, tap_of
from tapmirror.policy.match import matcher

BASE: dict[str, Any] = {"line": "GET /api/v1?user=ann&x=%41 HTTP/1.1", "fields": ("X-A: one", "Cookie: s=1; t=2")}


def holds(match: Any, line: str, fields: tuple[str, ...] = (), **more: Any) -> bool:
    check = matcher(tap_of(rules=[{"match": match}]).rules[0].match)
    return check is None or check(request(line, *fields, **more))


@pytest.mark.parametrize(
    ("match", "wanted"),
    [
        ({}, True),
        ({"methods": ["GET", "HEAD"]}, True),
        ({"methods": ["get"]}, False),
        ({"path": "/api/v1"}, True),
        ({"path": "/api"}, False),
        ({"path": {"prefix": "/api"}}, True),
        ({"path": {"prefix": "/API"}}, False),
        ({"path": {"prefix": "/API", "ignore_case": True}}, True),
        ({"path": {"suffix": "/v1"}}, True),
        ({"path": {"regex": "/api/v[0-9]"}}, True),
        ({"path": {"regex": "/api"}}, False),  # the whole must match
        ({"path": {"regex": "/API/.*", "ignore_case": True}}, True),
        ({"path": {"prefix": "/api", "invert": True}}, False),
        ({"path": {"prefix": "/other", "invert": True}}, True),
        ({"target": {"regex": ".*v1[?]user=.*"}}, True),
        ({"target": {"exact": "/api/v1?user=ann&x=%41"}}, True),
        ({"target": {"exact": "/api/v1"}}, False),
        ({"host": "shop.test"}, True),
        ({"host": {"suffix": ".test"}}, True),
        ({"host": "other"}, False),
        ({"headers": {"x-a": "one"}}, True),
        ({"headers": {"X-A": {"prefix": "o"}}}, True),
        ({"headers": {"x-a": "two"}}, False),
        ({"headers": {"x-b": "one"}}, False),
        ({"headers": {"x-b": {"present": False}}}, True),
        ({"headers": {"x-a": {"present": True}}}, True),
        ({"headers": {"x-b": {"exact": "1", "invert": True}}}, True),
        ({"query": {"user": "ann"}}, True),
        ({"query": {"x": "A"}}, True),
        ({"query": {"user": "bob"}}, False),
        ({"cookies": {"t": "2"}}, True),
        ({"cookies": {"t": {"regex": "[0-9]+"}}}, True),
        ({"cookies": {"u": {"present": True}}}, False),
        ({"clients": ["10.0.0.0/8"]}, True),
        ({"clients": ["10.0.0.1"]}, True),
        ({"clients": ["10.0.0.2/32", "::ffff:0:0/96"]}, True),
        ({"clients": ["192.168.0.0/16", "2001:db8::/32"]}, False),
        ({"body": {"max": 10}}, True),
        ({"body": {"min": 1}}, False),
        ({"methods": ["GET"], "path": {"prefix": "/api"}, "headers": {"x-a": "one"}}, True),
        ({"methods": ["GET"], "path": {"prefix": "/api"}, "headers": {"x-a": "two"}}, False),
        ([{"methods": ["POST"]}, {"path": {"prefix": "/api"}}], True),
        ([{"methods": ["POST"]}, {"path": {"prefix": "/x"}}], False),
        ([{"methods": ["POST"]}, {}], True),
    ],
)
def test_conditions(match: Any, wanted: bool) -> None:
    assert holds(match, BASE["line"], BASE["fields"]) is wanted


@pytest.mark.parametrize(
    ("size", "fields", "wanted"),
    [
        ({"min": 5, "max": 7}, ("Content-Length: 7",), True),
        ({"min": 5, "max": 7}, ("Content-Length: 8",), False),
        ({"min": 0}, ("Transfer-Encoding: chunked",), False),
    ],
)
def test_body_sizes(size: dict[str, int], fields: tuple[str, ...], wanted: bool) -> None:
    assert holds({"body": size}, "POST / HTTP/1.1", fields) is wanted


def test_bytes_that_are_no_utf8_are_compared_as_they_are() -> None:
    assert holds({"path": {"prefix": "/caf"}}, "GET /caf\xe9 HTTP/1.1")
    assert holds({"path": {"regex": "/caf."}}, "GET /caf\xe9 HTTP/1.1")
    assert not holds({"path": {"regex": "/caf"}}, "GET /caf\xe9 HTTP/1.1")


@pytest.mark.parametrize(
    ("regex", "path", "wanted"),
    [
        ("/caf\xe9", "/caf\xe9", True),
        ("/caf\xe9?", "/caf", True),
        ("/[a\u65e5]", "/\u65e5", True),
        ("/\u65e5", "/\u65e5", True),
        ("/a\u65e5", "/", False),
        ("/\u65e5", "/", False),
    ],
)
def test_expressions_beyond_ascii_are_in_utf8_as_literals_are(regex: str, path: str, wanted: bool) -> None:
    """One by one, and with others on the same."""
    sent = f"GET {path.encode().decode('latin-1')} HTTP/1.1"
    assert holds({"path": {"regex": regex}}, sent) is wanted
    assert holds([{"path": {"regex": each}} for each in (regex, "/x.*", "/y.*")], sent) is wanted


def test_expressions_take_linear_time() -> None:
    """Python's own would take years for this one."""
    began = time.process_time()
    assert not holds({"path": {"regex": "(/a*)*b"}}, f"GET /{'a' * 5000} HTTP/1.1")
    assert time.process_time() - began < 5
