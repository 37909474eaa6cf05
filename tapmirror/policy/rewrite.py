# SPDX-License-Identifier: Apache-2.0
"""`Rewrite` as a function from a request's head to the head that a shadow gets.

Whatever a template takes from a request, no control character gets into a field: the values come from a head that has
none but tabs, and the result is checked once more.
"""

from __future__ import annotations

import ipaddress
import re
import string
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Final, TypeAlias
from urllib.parse import quote

from tapmirror.policy.match import compile_re2
from tapmirror.policy.request import Request, decoded, port_start
from tapmirror.spec import PathRewrite, Rewrite, Shadow
from tapmirror.spec.rewrite import KEEP, SHADOW_SUFFIX, TARGET

Rewriter: TypeAlias = Callable[[Request, int, float], bytes | None]
"""(request, number of its connection, seconds since the epoch) to the new head; None: it would not be valid."""
Part: TypeAlias = Callable[[Request, int, float], bytes]

_TARGET: Final = re.compile(rb"[!-~\x80-\xff]+")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_MAPPED: Final = bytes(10) + b"\xff\xff"


def rewriter(shadow: Shadow, tap: str) -> Rewriter | None:
    """The function for one shadow; None: nothing is changed."""
    spec = shadow.rewrite
    if spec == Rewrite():
        return None
    line = _line_rewriter(spec)
    fields = _field_rewriter(spec, shadow, tap)

    def rewrite(request: Request, connection: int, time: float) -> bytes | None:
        if line is None:
            start, rest = request.head[: request.line_end], request.head[request.line_end :]
        else:
            changed = line(request)
            if changed is None:
                return None
            start, rest = changed, request.head[request.line_end :]
        if fields is not None:
            changed = fields(request, rest, connection, time)
            if changed is None:
                return None
            rest = changed
        return start + rest

    return rewrite


# --- the request line


def _line_rewriter(spec: Rewrite) -> Callable[[Request], bytes | None] | None:
    """A function that returns the new request line, without its CR LF."""
    if spec.method is None and spec.path is None and not spec.set_query and not spec.remove_query:
        return None
    method = spec.method.encode() if spec.method is not None else None
    path = _path_rewriter(spec.path) if spec.path is not None else None
    query = _query_rewriter(spec) if spec.set_query or spec.remove_query else None

    def rewrite(request: Request) -> bytes | None:
        # only CONNECT has a host with its port, only OPTIONS `*`, and there is nothing else (RFC 9112, 3.2.3 and 3.2.4)
        if request.path == b"*" or request.method == b"CONNECT":
            return request.head[: request.line_end] if method in (None, request.method) else None
        new_path = request.path if path is None else path(request.path)
        new_query = request.query if query is None else query(request.query)
        target = request.origin + new_path + (b"" if new_query is None else b"?" + new_query)
        if not _TARGET.fullmatch(target) or (request.path[:1] == b"/" and new_path[:1] != b"/"):
            return None
        return b"%b %b %b" % (request.method if method is None else method, target, request.version)

    return rewrite


def _path_rewriter(spec: PathRewrite) -> Callable[[bytes], bytes]:
    becomes = spec.becomes.encode()
    if spec.prefix is not None:
        prefix = spec.prefix.encode()
        return lambda path: becomes + path[len(prefix) :] if path.startswith(prefix) else path
    pattern = compile_re2(spec.regex or "")
    return lambda path: pattern.sub(becomes, path)


def _query_rewriter(spec: Rewrite) -> Callable[[bytes | None], bytes | None]:
    gone = frozenset(name.encode() for name in (*spec.remove_query, *spec.set_query))
    added = [f"{quote(name, safe='')}={quote(value, safe='')}".encode() for name, value in spec.set_query.items()]

    def rewrite(query: bytes | None) -> bytes | None:
        kept = [pair for pair in (query or b"").split(b"&") if pair and decoded(pair.partition(b"=")[0]) not in gone]
        return b"&".join([*kept, *added]) or None

    return rewrite


# --- the fields


def _field_rewriter(
    spec: Rewrite, shadow: Shadow, tap: str
) -> Callable[[Request, bytes, int, float], bytes | None] | None:
    """A function that returns the fields: the head behind the request line."""
    host = _host_rewriter(spec.host, shadow)
    put = dict(spec.set_headers)
    if spec.marker is not None:
        put[spec.marker] = tap.replace("{", "{{").replace("}", "}}")
    added = [(name, template(value, tap, shadow.label)) for name, value in (*put.items(), *spec.add_headers.items())]
    gone = _removing([*put, *spec.remove_headers, *(["X-Forwarded-For"] if spec.x_forwarded_for else [])])
    if host is None and not added and gone is None:
        return None
    constant = all(isinstance(value, bytes) for _, value in added)
    block = b"".join(b"%b: %b\r\n" % (name.encode(), value) for name, value in added if isinstance(value, bytes))
    parts = [(name.encode(), value) for name, value in added]

    def rewrite(request: Request, rest: bytes, connection: int, time: float) -> bytes | None:
        if host is not None:
            rest = host(request, rest)
        if gone is not None:
            rest = gone.sub(b"", rest)
        more = block if constant else _filled(parts, request, connection, time)
        if spec.x_forwarded_for:
            before = request.fields.get(b"x-forwarded-for")
            client = show_address(request.client)
            more += b"X-Forwarded-For: %b\r\n" % (client if not before else before + b", " + client)
        if not constant and more.count(b"\r\n") != len(parts) + spec.x_forwarded_for:
            return None
        return rest[:-2] + more + b"\r\n" if more else rest

    return rewrite


def _filled(parts: Iterable[tuple[bytes, bytes | Part]], request: Request, connection: int, time: float) -> bytes:
    lines = []
    for name, value in parts:
        text = value if isinstance(value, bytes) else value(request, connection, time)
        lines.append(b"%b: %b\r\n" % (name, _CONTROL.sub(b"", text)))
    return b"".join(lines)


def _removing(names: Iterable[str]) -> re.Pattern[bytes] | None:
    """An expression that matches the lines of these fields, each with the CR LF before it.

    Both cases of the first letter are spelled out: a search that must begin with one of few bytes is
    several times faster than one that ignores case from the first.
    """
    known = {name.lower() for name in names}
    if not known:
        return None
    each = "|".join(f"[{name[0].upper()}{name[0]}](?i:{re.escape(name[1:])})" for name in sorted(known))
    return re.compile(rf"\r\n(?:{each}):[^\r]*".encode())


def _host_rewriter(host: str, shadow: Shadow) -> Callable[[Request, bytes], bytes] | None:
    if host == KEEP:
        return None
    field = re.compile(rb"(\r\n[hH](?i:ost): *)([^\r]*?)( *)(?=\r)")
    if host == SHADOW_SUFFIX:
        return lambda _, rest: field.sub(lambda found: found[1] + with_suffix(found[2]) + found[3], rest, 1)
    value = (shadow.end_point if host == TARGET else host).encode()
    return lambda _, rest: field.sub(lambda found: found[1] + value + found[3], rest, 1)


def with_suffix(host: bytes) -> bytes:
    """`host[:port]` to `host-shadow[:port]`, as Envoy's shadow writer does; an empty one stays."""
    if not host:
        return host
    end = port_start(host)
    return host + b"-shadow" if end < 0 else host[:end] + b"-shadow" + host[end:]


# --- templates


def template(text: str, tap: str, shadow: str) -> bytes | Part:
    """A function that fills a template; bytes if the result is always the same."""
    parts: list[bytes | Part] = []
    for literal, name, _, _ in string.Formatter().parse(text):
        parts.append(literal.encode())
        if name == "tap":
            parts.append(tap.encode())
        elif name == "shadow":
            parts.append(shadow.encode())
        elif name is not None:
            parts.append(_READERS[name])
    if all(isinstance(part, bytes) for part in parts):
        return b"".join(part for part in parts if isinstance(part, bytes))
    known = list(parts)
    return lambda request, connection, time: b"".join(
        part if isinstance(part, bytes) else part(request, connection, time) for part in known
    )


def show_address(address: bytes) -> bytes:
    """An address of 16 bytes as text; one of IPv4 is written as such."""
    if address.startswith(_MAPPED):
        return b"%d.%d.%d.%d" % tuple(address[12:])
    return str(ipaddress.IPv6Address(address)).encode()


def _rfc3339(time: float) -> bytes:
    """Seconds since the epoch as 2026-11-23T08:15:30.123Z."""
    return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%dT%H:%M:%S}.{int(time * 1000) % 1000:03}Z".encode()


_READERS: Final[dict[str, Part]] = {
    "client": lambda request, _, __: show_address(request.client),
    "client_port": lambda request, _, __: b"%d" % int.from_bytes(request.key[32:34], "big"),
    "connection": lambda _, connection, __: b"%d" % connection,
    "host": lambda request, _, __: request.fields.get(b"host", b""),
    "target": lambda request, _, __: request.target,
    "time": lambda _, __, time: _rfc3339(time),
}
