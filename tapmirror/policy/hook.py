# SPDX-License-Identifier: Apache-2.0
"""What a hook gets and may return, and how that becomes a request again."""

from __future__ import annotations

import ipaddress
from typing import Final

import msgspec

from tapmirror.framing.head import HEAD, read_head
from tapmirror.policy.request import Request
from tapmirror.spec.match import TOKEN
from tapmirror.spec.rewrite import FRAMING

_FRAMING: Final = FRAMING - {"host"}


class HookRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request as a hook sees it.  To change it, return `request.replace(…)`; to drop it, return None.

    Texts are ISO 8859-1.  Fields that frame the request (Content-Length, Transfer-Encoding, Connection, …)
    are neither shown nor can they be set; Host can.
    """

    method: str
    target: str
    """The target of the request line, with the query."""
    headers: tuple[tuple[str, str], ...]
    """Names and values in their order."""
    body: bytes | None
    """The body, without the framing of chunks; None unless the hook has `body: true`."""
    client: str
    """The client's address."""
    connection: int
    """Number of the client's connection: the same for all its requests."""

    def replace(self, **changes: object) -> HookRequest:
        """A copy of this request with other values."""
        return msgspec.structs.replace(self, **changes)


def to_hook(request: Request, connection: int, body: bytes | None) -> HookRequest:
    """The request as the hook gets it."""
    headers = []
    for line in request.head[request.line_end + 2 : -4].split(b"\r\n"):
        name, _, value = line.decode("latin-1").partition(":")
        if name and name.lower() not in _FRAMING:  # HTTP/1.0 may have none
            headers.append((name, value.strip(" \t")))
    address = ipaddress.IPv6Address(request.client)
    query = b"" if request.query is None else b"?" + request.query
    return HookRequest(
        method=request.method.decode("latin-1"),
        target=(request.origin + request.path + query).decode("latin-1"),
        headers=tuple(headers),
        body=body,
        client=str(address.ipv4_mapped or address),
        connection=connection,
    )


def from_hook(changed: object, request: Request, shown: bytes | None) -> tuple[bytes, bytes | None] | None:
    """The head that a hook's result stands for, and the body if it was `shown` one; None: it is no valid request, or
    one that is framed otherwise.
    """
    if not isinstance(changed, HookRequest) or not all(isinstance(x, str) for x in (changed.method, changed.target)):
        return None
    try:
        lines = [f"{changed.method} {changed.target} {request.version.decode()}".encode("latin-1")]
        for name, value in changed.headers:
            if not TOKEN.fullmatch(name) or not isinstance(value, str):
                return None
            if name.lower() not in _FRAMING:
                lines.append(f"{name}: {value}".encode("latin-1"))
    except (ValueError, TypeError, AttributeError):
        return None
    if any(b"\r" in line or b"\n" in line for line in lines):
        return None
    for line in request.head[request.line_end + 2 : -4].split(b"\r\n"):
        if line.partition(b":")[0].lower().decode("latin-1") in _FRAMING:
            lines.append(line)
    head = b"\r\n".join([*lines, b"", b""])
    found, before = HEAD.fullmatch(head), HEAD.fullmatch(request.head)
    if found is None or before is None:
        return None
    new, old = read_head(found), read_head(before)
    if new is None or old is None or (new.length, new.closing) != (old.length, old.closing):
        return None
    if b"CONNECT" in (found[1], before[1]):
        return None
    if shown is None or not isinstance(changed.body, bytes | bytearray | memoryview):
        return (head, None) if shown is None and changed.body is None else None
    return head, bytes(changed.body)
