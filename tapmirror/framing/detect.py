# SPDX-License-Identifier: Apache-2.0
"""Which protocol a connection speaks, by its first bytes.

The rule
--------
`http` if the first line is a request line of HTTP/1 (RFC 9112, 3) with a method of the IANA
registry: method, one space, a target of visible characters, one space, `HTTP/1.0` or
`HTTP/1.1`, CR LF.  Anything else is `raw`, as soon as one byte says so: TLS, Redis, SMTP and
lower-case memcached differ in the method; SIP, RTSP and ICAP, which share methods with HTTP,
in the version; so does the preface of HTTP/2.  Other methods than the registered ones are
tokens like the words of any line protocol and are not taken for HTTP here (a tap that is told
`http` takes them).

What does not begin with a method is recognised after `LONGEST` + 1 bytes at most, and a line that
goes on with a target is `http` when `ENOUGH` bytes of it have come without its end.
"""

from __future__ import annotations

import re
from typing import Final, Literal, TypeAlias

from tapmirror.events import Buffer

Detected: TypeAlias = Literal["http", "raw"]

ENOUGH: Final = 4096
"""Bytes of a first line after which the version is not waited for: beyond any line protocol's
limit (SMTP 512, RFC 5321; IRC 512), within what HTTP servers take (nginx 8 KiB)."""

METHODS: Final = frozenset(
    b"ACL BASELINE-CONTROL BIND CHECKIN CHECKOUT CONNECT COPY DELETE GET HEAD LABEL LINK LOCK MERGE MKACTIVITY "
    b"MKCALENDAR MKCOL MKREDIRECTREF MKWORKSPACE MOVE OPTIONS ORDERPATCH PATCH POST PROPFIND PROPPATCH PUT REBIND "
    b"REPORT SEARCH TRACE UNBIND UNCHECKOUT UNLINK UNLOCK UPDATE UPDATEREDIRECTREF VERSION-CONTROL".split()
)
"""IANA's registry of HTTP methods (RFC 9110, 16.1) without PRI, which is HTTP/2's preface (RFC 9113, 11.6)."""
LONGEST: Final = max(map(len, METHODS))

_BEGUN: Final = frozenset(method[:n] for method in METHODS for n in range(len(method) + 1))
_TARGET: Final = re.compile(rb"[!-~\x80-\xff]+")
_VERSIONS: Final = (b"HTTP/1.1\r", b"HTTP/1.0\r")
_WHOLE: Final = re.compile(
    rb"(?:GET|POST|PUT|HEAD|DELETE|OPTIONS|PATCH) [!-~\x80-\xff]{1,%d} HTTP/1\.[01]\r\n" % (ENOUGH - 19)
).match
"""What most connections begin with, by the same rule."""


def detect(data: Buffer) -> Detected | None:
    """Say what the first bytes of a connection begin; None: the next ones are needed to tell.

    Call it again with all bytes so far.  It never answers None to `ENOUGH` bytes or more.
    """
    if _WHOLE(data):
        return "http"
    line, ended, _ = bytes(data[:ENOUGH]).partition(b"\n")
    method, space, rest = line.partition(b" ")
    if not space:
        return None if method in _BEGUN and not ended else "raw"
    if method not in METHODS:
        return "raw"
    target, space, version = rest.partition(b" ")
    if not ended:
        possible = not rest or (_TARGET.fullmatch(target) and any(v.startswith(version) for v in _VERSIONS))
        if not possible:
            return "raw"
        return None if len(line) < ENOUGH else "http"
    return "http" if version in _VERSIONS and _TARGET.fullmatch(target) else "raw"
