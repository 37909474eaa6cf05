# SPDX-License-Identifier: Apache-2.0
"""What a request head says about framing; the short way and the long way agree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapmirror.events import CONNECT, KEEPING, NO_BODY, TRACED, TUNNEL
from tapmirror.framing.head import CHUNKED, HEAD, PLAIN, REQUEST_LINE, STOP, Head, read_head


def read(head: bytes) -> Head | None:
    """None: no head, or an ambiguous one."""
    found = HEAD.match(head)
    return read_head(found) if found else None


def host_of(head: bytes) -> bytes | None:
    found = read(head)
    return None if found is None or found.host is None else head[slice(*found.host)]


@pytest.mark.parametrize(
    ("head", "flags", "length", "closing"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 0, 0, False),
        (b"GET / HTTP/1.0\r\n\r\n", 0, 0, True),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", KEEPING, 0, False),
        (b"HEAD / HTTP/1.0\r\nConnection: x, keep-alive\r\n\r\n", KEEPING | NO_BODY, 0, False),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", 0, 0, True),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: x, keep-alive\r\n\r\n", 0, 0, False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: a, Close\r\n\r\n", 0, 0, True),
        (b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", NO_BODY, 0, False),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9223372036854775807\r\n\r\n", 0, (1 << 63) - 1, False),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n", 0, CHUNKED, False),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", TUNNEL | CONNECT, 0, False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nConnection: keep-alive, upgrade\r\n\r\n", TUNNEL, 0, False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\n", 0, 0, False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTapmirror-Loop: x\r\n\r\n", TRACED, 0, False),
        (b"HEAD / HTTP/1.0\r\ntapmirror-loop:x\r\n\r\n", TRACED | NO_BODY, 0, True),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX-Tapmirror-Loop: x\r\nTapmirror-Loops: x\r\n\r\n", 0, 0, False),
    ],
)
def test_heads(head: bytes, flags: int, length: int, closing: bool) -> None:
    found = read(head)
    assert found is not None
    assert (found.flags, found.length, found.closing) == (flags, length, closing)


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"Host: a\r\nHost: a\r\n",
        b"Host: a b\r\n",
        b"Host:\ta\r\n",
        b"Host : a\r\n",
        b"Host: a\r\n folded\r\n",
        b"Host: a\r\nX: \x00\r\n",
        b"Host: a\r\nX: y\rz\r\n",
        b"Host: a\r\nX\r\n",
        b"Host: a\r\n: y\r\n",
        b"Host: a\nX: y\r\n",
        b"Host: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n",
        b"Host: a\r\nContent-Length: 1, 1\r\n",
        b"Host: a\r\nContent-Length: +1\r\n",
        b"Host: a\r\nContent-Length: -1\r\n",
        b"Host: a\r\nContent-Length: 0x1\r\n",
        b"Host: a\r\nContent-Length:\r\n",
        b"Host: a\r\nContent-Length: 9223372036854775808\r\n",
        b"Host: a\r\nContent-Length: 18446744073709551616\r\n",
        b"Host: a\r\nTransfer-Encoding: gzip, chunked\r\n",
        b"Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Host: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n",
        b"Host: a\r\nTransfer-Encoding: xchunked\r\n",
    ],
)
def test_refused(lines: bytes) -> None:
    head = b"POST / HTTP/1.1\r\n%b\r\n" % lines
    assert read(head) is None
    assert PLAIN.match(head) is None


@pytest.mark.parametrize(
    "line",
    [b"GET  / HTTP/1.1", b"GET / HTTP/1.2", b"GET / HTTP/2.0", b"GET /a b HTTP/1.1", b" GET / HTTP/1.1", b"GET /",
     b"G\xc3T / HTTP/1.1", b"GET /\x7f HTTP/1.1", b"GET / http/1.1", b"GET / HTTP/1.1 "],
)  # fmt: skip
def test_lines_that_are_none(line: bytes) -> None:
    assert REQUEST_LINE.match(line + b"\r\n") is None
    assert read(line + b"\r\nHost: a\r\n\r\n") is None


def test_where_the_value_of_host_is() -> None:
    assert host_of(b"GET / HTTP/1.1\r\nA: b\r\nhOST:   example.test:8080  \r\n\r\n") == b"example.test:8080"
    assert host_of(b"GET / HTTP/1.1\r\nHost:\r\n\r\n") == b""
    assert host_of(b"GET / HTTP/1.0\r\n\r\n") is None


@pytest.mark.parametrize(
    ("data", "at"), [(b"a\r\n\r\nb", 1), (b"a\nb", 1), (b"a\rb", 1), (b"a\0b", 1), (b"a\r\nb\r", -1), (b"ab", -1)]
)
def test_the_first_byte_that_ends_a_head(data: bytes, at: int) -> None:
    found = STOP.search(data)
    assert (found.start() if found else -1) == at


FIELDS = st.sampled_from(
    [b"Host: a", b"host:b ", b"Host: ", b"Content-Length: 5", b"content-length:  007", b"Content-Length: x",
     b"Transfer-Encoding: chunked", b"Connection: keep-alive", b"Connection: close", b"Connection: upgrade",
     b"Upgrade: h2c", b"Accept: */*", b"X-Host: q", b"Cookie: a=b; c=\xff", b"Content-Lengthy: 5", b"Hosts: a", b"X:"]
)  # fmt: skip


@given(
    st.sampled_from([b"GET", b"HEAD", b"POST", b"CONNECT", b"HEADER"]),
    st.sampled_from([b"1.0", b"1.1"]),
    st.lists(FIELDS, max_size=5),
)
def test_what_the_short_way_takes_the_long_way_takes_the_same(
    method: bytes, version: bytes, fields: list[bytes]
) -> None:
    head = b"%b / HTTP/%b\r\n%b\r\n" % (method, version, b"".join(field + b"\r\n" for field in fields))
    plain = PLAIN.match(head)
    if plain is not None:
        found = read(head)
        assert found is not None
        assert (found.flags, found.closing, found.host) == (0, False, plain.span(1))
        assert found.length == int(plain[2] or 0)
