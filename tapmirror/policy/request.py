# SPDX-License-Identifier: Apache-2.0
"""A request's head, of which only those parts are read that somebody asks for.  `framing.head` took the head for valid;
nothing is validated here.
"""

from __future__ import annotations

import base64
import binascii
import re
from functools import cached_property
from typing import Final
from urllib.parse import unquote_to_bytes

import msgspec

from tapmirror.events import KEEPING, FlowKey

_ORIGIN: Final = re.compile(rb"[a-z][a-z0-9+.-]*+://[^/?]*+", re.IGNORECASE)
"""Scheme and authority of a target in absolute form."""
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_CONNECTION: Final = re.compile(rb"\r\n[Cc](?i:onnection):([^\r]*)")
TOKEN_BYTES: Final = 8192
"""Longest JSON Web Token that is looked into: what servers take as one field (nginx: large_client_header_buffers)."""


class Request:
    """The head of a request on the connection `key`."""

    def __init__(self, head: bytes, key: FlowKey) -> None:
        self.head = head
        self.key = key
        self.line_end = end = head.find(b"\r")
        self.method, target, self.version = head[:end].split(b" ")
        self.origin = b""
        """Scheme and authority of a target in absolute form; otherwise empty."""
        if not target.startswith(b"/"):
            origin = _ORIGIN.match(target)
            if origin is not None:
                self.origin, target = origin[0], target[origin.end() :]
        self.path, mark, query = target.partition(b"?")
        self.query = query if mark else None
        """The query; None: the target has no question mark."""

    @cached_property
    def target(self) -> bytes:
        """Path and query."""
        return self.path if self.query is None else self.path + b"?" + self.query

    @cached_property
    def fields(self) -> dict[bytes, bytes]:
        """Values by lower-case name; several of one name joined by `, ` (RFC 9110, 5.3)."""
        fields: dict[bytes, bytes] = {}
        for line in self.head[self.line_end + 2 : -4].split(b"\r\n"):
            name, _, value = line.partition(b":")
            name = name.lower()
            value = value.strip(b" \t")
            before = fields.get(name)
            fields[name] = value if before is None else before + (b"; " if name == b"cookie" else b", ") + value
        return fields

    @cached_property
    def host(self) -> bytes:
        """The Host field without its port, in lower case."""
        host = self.fields.get(b"host", b"").lower()
        end = port_start(host)
        return host if end < 0 else host[:end]

    @cached_property
    def client(self) -> bytes:
        """The client's address, 16 bytes."""
        return self.key[:16]

    @cached_property
    def length(self) -> int | None:
        """Length of the body as announced; None: it is chunked."""
        found = _LENGTH.search(self.head, self.line_end)
        if found is not None:
            return int(found[1])
        return None if b"transfer-encoding" in self.fields else 0

    @cached_property
    def parameters(self) -> dict[bytes, bytes]:
        """Parameters of the query by name, decoded.  Of several with one name, the first counts."""
        found: dict[bytes, bytes] = {}
        for pair in (self.query or b"").split(b"&"):
            name, _, value = pair.partition(b"=")
            if name:
                found.setdefault(decoded(name), decoded(value))
        return found

    @cached_property
    def cookies(self) -> dict[bytes, bytes]:
        """Cookies by name.  Of several with one name, the first counts (RFC 6265, 5.4)."""
        found: dict[bytes, bytes] = {}
        for pair in self.fields.get(b"cookie", b"").split(b";"):
            name, sign, value = pair.strip(b" \t").partition(b"=")
            if sign:
                found.setdefault(name, value)
        return found

    @cached_property
    def claims(self) -> dict[str, object]:
        """Claims of the JSON Web Token in Authorization (RFC 7519), unverified; empty: there is none that can be
        read.
        """
        scheme, _, token = self.fields.get(b"authorization", b"").partition(b" ")
        parts = token.strip(b" ").split(b".")
        if scheme.lower() != b"bearer" or len(parts) != 3 or len(token) > TOKEN_BYTES:
            return {}
        try:
            return msgspec.json.decode(base64.urlsafe_b64decode(parts[1] + b"==="), type=dict[str, object])
        except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return {}


def persistent(head: bytes, flags: int) -> tuple[bytes, int]:
    """A head, with its flags, that keeps the connection open (RFC 9112, 9.3), because requests of other clients use it
    too.
    """
    options = b",".join(_CONNECTION.findall(head)).lower()
    old = head.startswith(b"HTTP/1.0\r", head.find(b"\r") - 8)
    if b"close" not in options and (not old or b"keep-alive" in options):
        return head, flags
    head = _CONNECTION.sub(b"", head)
    return (head[:-2] + b"Connection: keep-alive\r\n\r\n", flags | KEEPING) if old else (head, flags)


def decoded(text: bytes) -> bytes:
    """A name or value of a query, decoded."""
    return unquote_to_bytes(text.replace(b"+", b" ")) if b"%" in text or b"+" in text else text


def port_start(host: bytes) -> int:
    """The index of the colon before the port in `host[:port]`; -1: it has no port.  Colons within brackets belong to an
    IPv6 address (Envoy: HeaderUtility::getPortStart).
    """
    colon = host.rfind(b":")
    return -1 if colon < host.rfind(b"]") else colon
