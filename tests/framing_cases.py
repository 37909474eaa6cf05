# SPDX-License-Identifier: Apache-2.0
"""Request streams: what is taken and into how many requests it falls, and what is refused.

The names say what is special.  Shared by the framer's tests and by the comparison with nginx.
"""

from __future__ import annotations

from typing import Final

GET: Final = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def head(*fields: bytes, line: bytes = b"POST / HTTP/1.1", host: bytes = b"Host: a") -> bytes:
    """A request head with Host first."""
    return b"\r\n".join((line, *([host] if host else []), *fields)) + b"\r\n\r\n"


def chunked(*body: bytes) -> bytes:
    """A request with the chunked body given as it is."""
    return head(b"Transfer-Encoding: chunked") + b"".join(body)


TAKEN: Final[dict[str, tuple[bytes, ...]]] = {
    "plain": (GET,),
    "pipelined": (GET, GET, GET),
    "fields": (
        head(b"User-Agent: x", b"Cookie: a=b; c=d", b"X: \t caf\xc3\xa9 ", b"Empty:", line=b"GET /x?y HTTP/1.1"),
    ),
    "keep-alive": (head(b"Connection: keep-alive", line=b"GET / HTTP/1.1"), GET),
    "keep-alive-odd-case": (head(b"CONNECTION:Keep-Alive, TE", line=b"GET / HTTP/1.1"), GET),
    "head-method": (head(line=b"HEAD / HTTP/1.1"), GET),
    "any-token-method": (head(line=b"!#$%&'*+-.^_`|~9 / HTTP/1.1"), GET),
    "options-asterisk": (head(line=b"OPTIONS * HTTP/1.1"), GET),
    "absolute-form": (head(line=b"GET http://b/ HTTP/1.1"), GET),
    "utf-8-target": (head(line=b"GET /\xc3\xa9 HTTP/1.1"), GET),
    "host-last": (head(b"Accept: */*", b"Host: a:80", host=b"X: y"), GET),
    "host-without-space": (head(host=b"hOsT:a"), GET),
    "length-0": (head(b"Content-Length: 0"), GET),
    "length-5": (head(b"Content-Length: 5") + b"hello", GET),
    "length-before-host": (head(b"Host: a", host=b"content-length:  5  ") + b"hello", GET),
    "length-leading-zeros": (head(b"Content-Length: 0005") + b"hello", GET),
    "length-with-get": (head(b"Content-Length: 5", line=b"GET / HTTP/1.1") + b"hello", GET),
    "length-body-is-a-request": (head(b"Content-Length: %d" % len(GET)) + GET, GET),
    "expect": (head(b"Expect: 100-continue", b"Content-Length: 5") + b"hello", GET),
    "1.0-keep-alive": (head(b"Connection: keep-alive", line=b"GET / HTTP/1.0", host=b"X: y"), GET),
    "1.0-length-keep-alive": (
        head(b"Connection: Keep-Alive", b"Content-Length: 3", line=b"POST / HTTP/1.0") + b"abc",
        GET,
    ),
    "chunked-empty": (chunked(b"0\r\n\r\n"), GET),
    "chunked": (chunked(b"5\r\nhello\r\n", b"a\r\n0123456789\r\n", b"0\r\n\r\n"), GET),
    "chunked-odd-case": (head(b"transfer-ENCODING:Chunked ") + b"00A\r\n0123456789\r\n000\r\n\r\n", GET),
    "chunked-looks-like-framing": (chunked(b"c\r\n0\r\n\r\nGET / H\r\n", b"0\r\n\r\n"), GET),
    "chunk-extensions": (chunked(b'5;a;b=c; d = "e\\";f"\r\nhello\r\n', b"0;x\r\n\r\n"), GET),
    "trailers": (chunked(b"1\r\nx\r\n", b"0\r\nX-Sum: 1\r\nOther:\r\n\r\n"), GET),
    "1000-chunks": (chunked(b"1\r\nx\r\n" * 1000, b"0\r\n\r\n"), GET),
}

_TE_CL: Final = b"0\r\n\r\n"
REFUSED: Final[dict[str, bytes]] = {
    # request line
    "empty-method": b" / HTTP/1.1\r\nHost: a\r\n\r\n",
    "two-spaces": b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "tab-for-space": b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "space-in-target": b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "space-after-version": b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
    "no-version": b"GET /\r\nHost: a\r\n\r\n",
    "version-0.9": b"GET / HTTP/0.9\r\nHost: a\r\n\r\n",
    "version-1.2": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "version-1.10": b"GET / HTTP/1.10\r\nHost: a\r\n\r\n",
    "version-2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "version-lower-case": b"GET / http/1.1\r\nHost: a\r\n\r\n",
    "control-in-target": b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
    "method-not-a-token": b"GE(T / HTTP/1.1\r\nHost: a\r\n\r\n",
    "leading-lf": b"\n" + GET,
    "leading-space": b" " + GET,
    # lines
    "bare-lf-everywhere": GET.replace(b"\r\n", b"\n"),
    "bare-lf-request-line": b"GET / HTTP/1.1\nHost: a\r\n\r\n",
    "bare-lf-field": b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
    "bare-lf-end": b"GET / HTTP/1.1\r\nHost: a\r\n\n",
    "bare-cr-in-value": b"GET / HTTP/1.1\r\nHost: a\r\nX: y\rContent-Length: 5\r\n\r\n",
    "bare-cr-in-name": b"GET / HTTP/1.1\r\nHost: a\r\nX\r: y\r\n\r\n",
    "cr-cr-lf": b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n",
    "nul-in-value": b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
    "nul-in-name": b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\0: chunked\r\n\r\n" + _TE_CL,
    "fold": b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n",
    "fold-tab": b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\tz\r\n\r\n",
    "fold-first": b"GET / HTTP/1.1\r\n Host: a\r\nHost: a\r\n\r\n",
    "fold-hides-chunked": head(b"Transfer-Encoding:\r\n chunked") + _TE_CL,
    "no-colon": b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
    "empty-name": b"GET / HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n",
    "space-before-colon": head(b"X : y"),
    "space-in-name": head(b"X y: z"),
    "name-not-ascii": head(b"X\xe9: z"),
    # Host
    "host-missing": b"GET / HTTP/1.1\r\n\r\n",
    "host-twice": head(b"Host: b"),
    "host-twice-same": head(b"Host: a"),
    "host-twice-1.0": head(b"Host: a", b"Connection: keep-alive", line=b"GET / HTTP/1.0"),
    "host-with-space": head(host=b"Host: a b"),
    "host-tab": head(host=b"Host:\ta"),
    "host-space-before-colon": head(host=b"Host : a"),
    # Content-Length
    "length-twice": head(b"Content-Length: 5", b"Content-Length: 6") + b"hello!",
    "length-twice-same": head(b"Content-Length: 5", b"Content-Length: 5") + b"hello",
    "length-list": head(b"Content-Length: 5, 5") + b"hello",
    "length-empty": head(b"Content-Length:"),
    "length-plus": head(b"Content-Length: +5") + b"hello",
    "length-minus": head(b"Content-Length: -5") + b"hello",
    "length-hex": head(b"Content-Length: 0x5") + b"hello",
    "length-fraction": head(b"Content-Length: 5.0") + b"hello",
    "length-underscore": head(b"Content-Length: 1_0") + b"0123456789",
    "length-inner-space": head(b"Content-Length: 1 0") + b"0123456789",
    "length-tab": head(b"Content-Length: 5\t") + b"hello",
    "length-tab-before": head(b"Content-Length:\t5") + b"hello",
    "length-vertical-tab": head(b"Content-Length: \x0b5") + b"hello",
    "length-arabic-digit": head("Content-Length: \u0665".encode()) + b"hello",
    "length-2^63": head(b"Content-Length: 9223372036854775808") + b"hello",
    "length-2^64+5": head(b"Content-Length: 18446744073709551621") + b"hello",
    "length-long": head(b"Content-Length: " + b"0" * 40 + b"5") + b"hello",
    "length-space-before-colon": head(b"Content-Length : 5") + b"hello",
    # CL.TE, TE.CL
    "cl-te": head(b"Content-Length: 6", b"Transfer-Encoding: chunked") + b"0\r\n\r\nG",
    "te-cl": head(b"Transfer-Encoding: chunked", b"Content-Length: 4") + b"12\r\nGPOST / HTTP/1.1\r\n\r\n0\r\n\r\n",
    "cl-0-te": head(b"Content-Length: 0", b"Transfer-Encoding: chunked") + _TE_CL,
    "te-cl-odd-case": head(b"tRANSFER-eNCODING: chunked", b"cONTENT-lENGTH: 4") + _TE_CL,
    # TE.TE
    "te-twice": head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked") + _TE_CL,
    "te-twice-identity": head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity") + _TE_CL,
    "te-identity": head(b"Transfer-Encoding: identity"),
    "te-list": head(b"Transfer-Encoding: gzip, chunked") + _TE_CL,
    "te-list-last-not-chunked": head(b"Transfer-Encoding: chunked, gzip") + _TE_CL,
    "te-list-empty": head(b"Transfer-Encoding: ,chunked") + _TE_CL,
    "te-list-same": head(b"Transfer-Encoding: chunked, chunked") + _TE_CL,
    "te-empty": head(b"Transfer-Encoding:"),
    "te-xchunked": head(b"Transfer-Encoding: xchunked") + _TE_CL,
    "te-quoted": head(b'Transfer-Encoding: "chunked"') + _TE_CL,
    "te-parameter": head(b"Transfer-Encoding: chunked;q=1") + _TE_CL,
    "te-tab": head(b"Transfer-Encoding: chunked\t") + _TE_CL,
    "te-tab-before": head(b"Transfer-Encoding:\tchunked") + _TE_CL,
    "te-vertical-tab": head(b"Transfer-Encoding: \x0bchunked") + _TE_CL,
    "te-form-feed": head(b"Transfer-Encoding: chunked\x0c") + _TE_CL,
    "te-nbsp": head(b"Transfer-Encoding: \xa0chunked") + _TE_CL,
    "te-space-before-colon": head(b"Transfer-Encoding : chunked") + _TE_CL,
    "te-bare-lf": head(b"X: y\nTransfer-Encoding: chunked") + _TE_CL,
    "te-bare-cr": head(b"X: y\rTransfer-Encoding: chunked") + _TE_CL,
    "te-1.0": head(b"Connection: keep-alive", b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.0") + _TE_CL,
    # CONNECT
    "connect-length": head(b"Content-Length: 5", line=b"CONNECT a:1 HTTP/1.1") + b"hello",
    "connect-chunked": head(b"Transfer-Encoding: chunked", line=b"CONNECT a:1 HTTP/1.1") + _TE_CL,
    # other protocols
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n",
    "redis": b"*1\r\n$4\r\nPING\r\n",
    "response": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
}
"""Nothing of these may be mirrored."""

BROKEN: Final[dict[str, bytes]] = {
    name: chunked(body)
    for name, body in {
        "size-empty": b"\r\nhello\r\n0\r\n\r\n",
        "size-plus": b"+5\r\nhello\r\n0\r\n\r\n",
        "size-minus": b"-5\r\nhello\r\n0\r\n\r\n",
        "size-0x": b"0x5\r\nhello\r\n0\r\n\r\n",
        "size-g": b"5g\r\nhello\r\n0\r\n\r\n",
        "size-space-before": b" 5\r\nhello\r\n0\r\n\r\n",
        "size-space-after": b"5 \r\nhello\r\n0\r\n\r\n",
        "size-underscore": b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n",
        "size-2^63": b"8000000000000000\r\nhello\r\n0\r\n\r\n",
        "size-2^64+5": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
        "size-many-zeros": b"00000000000000005\r\nhello\r\n0\r\n\r\n",
        "size-bare-lf": b"5\nhello\r\n0\r\n\r\n",
        "size-bare-cr": b"5\rhello\r\n0\r\n\r\n",
        "size-cr-cr-lf": b"5\r\r\nhello\r\n0\r\n\r\n",
        "extension-empty": b"5;\r\nhello\r\n0\r\n\r\n",
        "extension-bare-lf": b"5;a\nhello\r\n0\r\n\r\n",
        "extension-bare-cr": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
        "extension-nul": b"5;a\0\r\nhello\r\n0\r\n\r\n",
        "extension-no-semicolon": b"5 a\r\nhello\r\n0\r\n\r\n",
        "extension-quote-open": b'5;a="b\r\nhello\r\n0\r\n\r\n',
        "extension-line-in-quotes": b'5;a="\r\nhello\r\n0\r\n\r\n',
        "extension-4-kib": b"5;" + b"a" * 4096 + b"\r\nhello\r\n0\r\n\r\n",
        "data-longer": b"5\r\nhello!\r\n0\r\n\r\n",
        "data-shorter": b"5\r\nhell\r\n0\r\n\r\n",
        "data-bare-lf": b"5\r\nhello\n0\r\n\r\n",
        "data-bare-cr": b"5\r\nhello\r0\r\n\r\n",
        "data-unended": b"5\r\nhello0\r\n\r\n",
        "trailer-no-colon": b"0\r\nX\r\n\r\n",
        "trailer-fold": b"0\r\nX: y\r\n z\r\n\r\n",
        "trailer-bare-lf": b"0\r\nX: y\n\r\n",
        "trailer-bare-lf-end": b"0\r\n\n",
        "trailer-request": b"0\r\n" + GET,
        "trailer-length": b"0\r\nContent-Length: 5\r\n\r\n",
        "trailer-chunked": b"0\r\ntransfer-encoding: chunked\r\n\r\n",
    }.items()
}
"""Announced, found to be ambiguous in the body, and given up: the request must never end."""
