# SPDX-License-Identifier: Apache-2.0
"""A head's parts, as policy asks for them."""

from __future__ import annotations

import base64
import json

import pytest

from policy_cases import request
from tapmirror.policy.request import port_start


@pytest.mark.parametrize(
    ("target", "origin", "path", "query"),
    [
        ("/", b"", b"/", None),
        ("/a/b?x=1&y=2", b"", b"/a/b", b"x=1&y=2"),
        ("/a?", b"", b"/a", b""),
        ("/a?b?c", b"", b"/a", b"b?c"),
        ("http://h:1/p?q", b"http://h:1", b"/p", b"q"),
        ("HTTPS://h?q", b"HTTPS://h", b"", b"q"),
        ("*", b"", b"*", None),
        ("h:443", b"", b"h:443", None),
    ],
)
def test_targets(target: str, origin: bytes, path: bytes, query: bytes | None) -> None:
    found = request(f"GET {target} HTTP/1.1")
    assert (found.origin, found.path, found.query) == (origin, path, query)
    assert found.target == path + (b"" if query is None else b"?" + query)
    assert (found.method, found.version) == (b"GET", b"HTTP/1.1")


def test_fields_of_one_name_are_joined() -> None:
    found = request("GET / HTTP/1.1", "A: 1", "a:2 ", "Cookie: x=1", "cookie: y=2", "Empty:")
    assert found.fields == {
        b"host": b"shop.test",
        b"a": b"1, 2",
        b"cookie": b"x=1; y=2",
        b"empty": b"",
    }
    assert found.cookies == {b"x": b"1", b"y": b"2"}


@pytest.mark.parametrize(
    ("host", "name", "colon"),
    [
        ("Shop.Test", b"shop.test", -1),
        ("shop:80", b"shop", 4),
        ("[::1]:80", b"[::1]", 5),
        ("[::1]", b"[::1]", -1),
        ("", b"", -1),
        ("a:", b"a", 1),
    ],
)
def test_host_and_port(host: str, name: bytes, colon: int) -> None:
    assert request(host=host).host == name
    assert port_start(host.encode()) == colon


def test_parameters_are_decoded_and_the_first_counts() -> None:
    found = request("GET /?a=1&a=2&b%20c=%41+d&&=x&e HTTP/1.1")
    assert found.parameters == {b"a": b"1", b"b c": b"A d", b"e": b""}


@pytest.mark.parametrize(
    ("fields", "length"),
    [((), 0), (("Content-Length: 7",), 7), (("content-length:  12",), 12), (("Transfer-Encoding: chunked",), None)],
)
def test_length(fields: tuple[str, ...], length: int | None) -> None:
    assert request("POST / HTTP/1.1", *fields).length == length


def token(payload: bytes) -> str:
    parts = (b'{"alg":"none"}', payload, b"signature")
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


@pytest.mark.parametrize(
    ("field", "claims"),
    [
        ("Bearer " + token(json.dumps({"sub": "u1", "n": 5}).encode()), {"sub": "u1", "n": 5}),
        ("bearer " + token(b'{"sub":"u2"}'), {"sub": "u2"}),
        ("Basic dTpw", {}),
        ("Bearer a.b", {}),
        ("Bearer a.!.c", {}),
        ("Bearer " + token(b"[1]"), {}),
        ("Bearer " + token(b"\xff"), {}),
        ("Bearer " + token(b"[" * 5000), {}),
        ("Bearer " + token(b'{"sub":"' + b"x" * 9000 + b'"}'), {}),
    ],
)
def test_claims_of_a_token(field: str, claims: dict[str, object]) -> None:
    assert request("GET / HTTP/1.1", f"Authorization: {field}").claims == claims
    assert request().claims == {}
