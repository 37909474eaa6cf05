# SPDX-License-Identifier: Apache-2.0
"""First bytes in, protocol out, and how many bytes it takes to tell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapmirror.framing import detect
from tapmirror.framing.detect import ENOUGH, LONGEST, METHODS

HTTP = [
    b"GET / HTTP/1.1\r\n",
    b"GET / HTTP/1.0\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    b"CONNECT a:443 HTTP/1.1\r\n",
    b"GET http://a/ HTTP/1.1\r\n",
    b"VERSION-CONTROL /\xc3\xa9 HTTP/1.1\r\n",
]

RAW = {  # first bytes -> how many of them tell
    b"\x16\x03\x01\x02\x00": 1,  # TLS
    b"*1\r\n$4\r\nPING\r\n": 1,  # Redis
    b"PING\r\n": 2,
    b"get x\r\n": 1,  # memcached
    b"EHLO x\r\n": 1,
    b"SSH-2.0-OpenSSH\r\n": 2,
    b"\x00\x00\x00\x08\x04\xd2\x16/": 1,  # PostgreSQL
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": 3,
    b"\r\nGET / HTTP/1.1\r\n": 1,
    b"GET\r\n": 4,
    b"GET key\r\n": 8,  # Redis, inline
    b"GET  / HTTP/1.1\r\n": 5,
    b"GET /\r\n": 6,  # HTTP/0.9
    b"GET /\x00": 6,
    b"GET / HTTP/2.0\r\n": 12,
    b"GET / HTTP/1.1\n": 15,
    b"OPTIONS rtsp://a RTSP/1.0\r\n": 18,
    b"OPTIONS sip:a SIP/2.0\r\n": 15,
    b"FETCH 1 BODY\r\n": 1,
    b"GETS / HTTP/1.1\r\n": 4,
}


@pytest.mark.parametrize("first", HTTP)
def test_http_is_known_by_its_first_line(first: bytes) -> None:
    line = first.index(b"\n") + 1
    assert [detect(memoryview(first)[:n]) for n in range(len(first) + 1)] == [None] * line + ["http"] * (
        len(first) + 1 - line
    )


@pytest.mark.parametrize(("first", "needed"), RAW.items())
def test_raw_is_known_by_the_first_byte_that_does_not_fit(first: bytes, needed: int) -> None:
    assert [detect(first[:n]) for n in range(len(first) + 1)] == [None] * needed + ["raw"] * (len(first) + 1 - needed)


def test_every_registered_method() -> None:
    assert all(detect(method + b" / HTTP/1.1\r\n") == "http" for method in METHODS)


def test_a_long_line_is_not_waited_for() -> None:
    assert detect(b"GET /".ljust(ENOUGH - 1, b"a")) is None
    assert detect(b"GET /".ljust(ENOUGH, b"a")) == "http"
    assert detect(b"GET /".ljust(ENOUGH - 4, b"a") + b" HTT") == "http"
    assert detect(b"GET /".ljust(9 * ENOUGH, b"a")) == "http"


@given(st.binary(max_size=60))
def test_a_response_stands_whatever_follows(data: bytes) -> None:
    first = next((found for n in range(len(data)) if (found := detect(data[:n]))), None)
    if first is not None:
        assert detect(data) == first


@given(st.binary(min_size=LONGEST + 1, max_size=40).filter(lambda d: b" " not in d))
def test_what_is_no_method_is_known_after_the_longest_method(data: bytes) -> None:
    assert detect(data) == "raw"


@given(
    st.sampled_from([*sorted(METHODS), b"GETS", b"get"]),
    st.binary(max_size=12),
    st.sampled_from([b"HTTP/1.1\r\n", b"HTTP/1.0\r\n", b"HTTP/1.1\n", b"HTTP/2.0\r\n", b"HTTP/1.1\r\nHost: a\r\n"]),
)
def test_what_is_known_at_once_is_known_step_by_step(method: bytes, target: bytes, version: bytes) -> None:
    """The short way, for beginnings that are whole, says what the long way says of their parts."""
    data = method + b" /" + target + b" " + version
    line = data[: data.find(b"\n") + 1] or data
    told = next((found for n in range(len(line) + 1) if (found := detect(line[:n])) is not None), None)
    assert detect(data) == told


@pytest.mark.parametrize("length", range(ENOUGH - 40, ENOUGH + 40, 7))
def test_a_long_line_is_http_either_way(length: int) -> None:
    assert detect(b"GET /" + b"a" * (length - 16) + b" HTTP/1.1\r\n") == "http"
