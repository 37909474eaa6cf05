# SPDX-License-Identifier: Apache-2.0
"""The head of an HTTP/1 request: its syntax, and what it says about framing.

Theory of operation
-------------------
A mirror must find the boundaries that production's server found, without seeing what that
server thought.  Servers agree about messages that follow the specification to the letter and
differ about all others: that difference is what request smuggling lives on.  So only the
former are taken, and the rest is not mirrored:

* Lines end in CR LF; a bare CR, a bare LF and NUL are nowhere (RFC 9112, 2.2; RFC 9110, 5.5).
* Request line: token, one space, target without white space or control characters, one space,
  `HTTP/1.0` or `HTTP/1.1` (RFC 9112, 2.3 and 3).  The target is a path or begins with a scheme; `*` is for
  OPTIONS and an authority for CONNECT (RFC 9112, 3.2).  Bytes above 0x7f are let through, as servers do.
* Field line: token, colon without space before it, value without control characters except
  tab; no line folding (RFC 9112, 5.1 and 5.2; RFC 9110, 5.5).
* Host: exactly one in 1.1, at most one in 1.0, and a host with perhaps a port, or empty: servers answer 400 to
  anything else and read no further (RFC 9112, 3.2; RFC 9110, 7.2).  Bytes above 0x7f are let through here too.
* No tab around the values of Host, Content-Length and Transfer-Encoding: RFC 9112, 5.1 lets it stand
  there, but nginx takes it for a part of the value.
* Content-Length: at most one, digits only, below 2**63.  The same value twice and a list of
  the same values are refused too, as RFC 9112, 6.3 allows (rule 5).
* Transfer-Encoding: at most one, `chunked` and nothing else, in 1.1 only, not together with
  Content-Length (RFC 9112, 6.1 and 6.3, rules 3 and 4).
* CONNECT has no body (RFC 9110, 9.3.6): one that announces any is refused.
* `close` anywhere in Connection, or 1.0 without `keep-alive`: nothing after this request is
  read by the server (RFC 9112, 9.3 and 9.6).
* Upgrade counts in 1.1 and with the connection option `upgrade` (RFC 9110, 7.8).

NOTE: before Python 3.11.5 a possessive repeat of a group (`(...)*+`) may miss a match
(CPython gh-106052).  The patterns here repeat single character classes possessively and groups
greedily; each iteration of a group can match in one way only, so that time stays linear.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from tapmirror.events import CONNECT, KEEPING, NO_BODY, TRACED, TUNNEL, Buffer

SAFE: Final = frozenset({b"GET", b"HEAD", b"OPTIONS"})
"""Methods of which a second copy does no harm (RFC 9110, 9.2.1)."""
_OVERRIDE: Final = re.compile(rb"\nx-(?:http-)?method(?:-override)?[ \t]*:", re.IGNORECASE)
"""Fields from which frameworks take the method, if they are configured to: a GET may be a DELETE."""
TRACE: Final = b"Tapmirror-Loop"
"""The field of a request whose copy a tap has marked (`tracer`)."""
CHUNKED: Final = -1
"""`Head.length` of a chunked body."""
MAX_LENGTH: Final = (1 << 63) - 1
"""Longest body and chunk: what a signed 64-bit file offset holds, as in nginx, Apache and Go."""

TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
"""One character of a token (RFC 9110, 5.6.2)."""
VALUE: Final = rb"[\t -~\x80-\xff]"
"""One character of a field value (RFC 9110, 5.5)."""
_VISIBLE: Final = rb"[!-~\x80-\xff]"

_PATH: Final = rb"(?:/|[A-Za-z][0-9A-Za-z+\-.]*+://)"
"""How a target in origin form or absolute form begins."""
_FORM: Final = rb"(?=CONNECT [^/ ]|OPTIONS \* |(?!CONNECT )" + TOKEN + rb"++ " + _PATH + rb")"
"""Whether the method and the target may occur together."""
_HOST: Final = rb"(?:(?:\[[0-9A-Za-z:.%_~\-]++\]|[!$&'()*+,;=%._~\-0-9A-Za-z\x80-\xff]++)(?::[0-9]*+)?)?"
"""A value of Host: uri-host and port (RFC 3986, 3.2.2 and 3.2.3), or nothing."""

REQUEST_LINE: Final = re.compile(_FORM + TOKEN + rb"++ " + _VISIBLE + rb"++ HTTP/1\.[01]\r\n")
HEAD: Final = re.compile(
    (_FORM + rb"(" + TOKEN + rb"++) " + _VISIBLE + rb"++ HTTP/1\.([01])\r\n")
    + (rb"(?:" + TOKEN + rb"++:" + VALUE + rb"*+\r\n)*\r\n")
)
"""A whole head: method, minor version.  What it says is for `read_head`."""
STOP: Final = re.compile(rb"\r\n\r\n|(?<!\r)\n|\r(?=[^\n])|\0")
"""The end of a head, or the first byte that no head can have."""

_ORDINARY: Final = (
    rb"(?:(?:(?![CHTUchtu](?i:onnection|ost|ontent-length|ransfer-encoding|pgrade|apmirror-loop):)"
    + TOKEN
    + rb"++:|[Cc]onnection: [Kk]eep-[Aa]live(?=\r))"
    + VALUE
    + rb"*+\r\n)*"
)
PLAIN: Final = re.compile(
    rb"(?!HEAD |CONNECT )"
    + (TOKEN + rb"++ " + _PATH + _VISIBLE + rb"*+ HTTP/1\.1\r\n")
    + (_ORDINARY + rb"[Hh]ost: *+(" + _HOST + rb") *+\r\n" + _ORDINARY)
    + (rb"(?:[Cc]ontent-[Ll]ength: *+([0-9]{1,18}) *+\r\n" + _ORDINARY + rb")?\r\n")
)
"""The head that nearly all requests have: 1.1, one Host (group 1), after it perhaps one Content-Length
(group 2), no close, no tunnel, no `TRACE`.  By it alone, in one pass, such a head is known to be valid; what it
does not match may be valid too."""

_FRAMING_FIELDS: Final = re.compile(
    rb"\r\n(host|content-length|transfer-encoding|connection|upgrade|tapmirror-loop): *([^\r]*)", re.IGNORECASE
)
_HOST_VALUE: Final = re.compile(_HOST)
_DIGITS: Final = re.compile(rb"[0-9]{1,19}")


class Head(msgspec.Struct, frozen=True, gc=False):
    """What a request's head says about framing."""

    flags: int
    """Those of NO_BODY, TUNNEL, CONNECT, KEEPING and TRACED that apply, as in `Part.flags`."""
    length: int
    """Bytes of the body; CHUNKED: its length is not announced."""
    closing: bool
    """The server reads no further request after this one."""
    host: tuple[int, int] | None
    """Where in the matched bytes the value of Host begins and ends."""


def read_head(found: re.Match[bytes]) -> Head | None:
    """Interpret a match of `HEAD`.  None: ambiguous by the rules above."""
    source: Buffer = found.string
    hosts: list[tuple[int, int]] = []
    lengths: list[bytes] = []
    codings: list[bytes] = []
    options: list[bytes] = []
    upgrade = False
    traced = 0
    for field in _FRAMING_FIELDS.finditer(source, found.end(2), found.end()):
        name, value = field[1].lower(), field[2].rstrip(b" ")
        if name == b"host":
            if not _HOST_VALUE.fullmatch(value):
                return None
            hosts.append((field.start(2), field.start(2) + len(value)))
        elif name == b"content-length":
            lengths.append(value)
        elif name == b"transfer-encoding":
            codings.append(value.lower())
        elif name == b"connection":
            options.append(value.lower())
        elif name == b"upgrade":
            upgrade = True
        else:
            traced = TRACED
    current = found[2] == b"1"
    if len(hosts) > 1 or (current and not hosts):
        return None
    length = _body_length(lengths, codings, current)
    if length is None:
        return None
    flags, closing = traced, False
    if options or not current:
        tokens = [token.strip(b" \t") for value in options for token in value.split(b",")]
        closing = any(b"close" in token for token in tokens) or (not current and b"keep-alive" not in tokens)
        upgrade = upgrade and current and b"upgrade" in tokens
        flags |= TUNNEL if upgrade else 0
        flags |= 0 if current or closing else KEEPING
    method = found[1]
    if method == b"CONNECT":
        if lengths or codings:
            return None
        flags |= TUNNEL | CONNECT
    elif method == b"HEAD":
        flags |= NO_BODY
    return Head(flags, length, closing, hosts[0] if hosts else None)


def _body_length(lengths: list[bytes], codings: list[bytes], current: bool) -> int | None:
    """The length of a request's body by RFC 9112, 6.3, without the leniencies that it allows.  None: refused."""
    if codings:
        return CHUNKED if codings == [b"chunked"] and not lengths and current else None
    if not lengths:
        return 0
    if len(lengths) > 1 or not _DIGITS.fullmatch(lengths[0]):
        return None
    length = int(lengths[0])
    return length if length <= MAX_LENGTH else None


def is_safe(request: Buffer) -> bool:
    """Whether a request may be sent to a shadow twice.

    `request` is what the shadow gets: a rewrite or a hook may have changed production's request.
    """
    return bytes(request[:8]).partition(b" ")[0] in SAFE and not _OVERRIDE.search(request)
