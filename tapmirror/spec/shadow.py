# SPDX-License-Identifier: Apache-2.0
"""A shadow: where copies go, which, and how they are changed."""

from __future__ import annotations

import ipaddress
import math

from tapmirror.spec.errors import Checked, Found, SpecError, shown
from tapmirror.spec.match import Match
from tapmirror.spec.numbers import Seconds
from tapmirror.spec.rewrite import Rewrite
from tapmirror.spec.sampled import Sampled

MAX_COPIES = 64
"""Most copies of one shadow: each has its own connections."""
MAX_POOL = 1024


class Tls(Checked, frozen=True, kw_only=True):
    """TLS to the shadow.  Files are read once, at the start, before the worker gives up its privileges."""

    sni: str | None = None
    """Name that is requested (SNI) and that the certificate must have; default: the shadow's host."""
    ca_file: str | None = None
    """Certificates to trust, PEM; default: the system's."""
    cert_file: str | None = None
    """Client certificate (and chain), PEM."""
    key_file: str | None = None
    """Key of the client certificate, PEM, if it is not in the same file."""
    verify: bool = True
    """False: do not check the certificate."""

    def _check(self) -> Found:
        if self.key_file is not None and self.cert_file is None:
            yield "key_file", "needs cert_file"
        if not self.verify and self.ca_file is not None:
            yield "ca_file", "has no effect with verify: false"
        if self.sni is not None and not _is_host(self.sni):
            yield "sni", f"{shown(self.sni)} is not a host name"


class Shadow(Sampled, frozen=True, kw_only=True):
    """Where the copies go; `HOST:PORT` for short."""

    host: str
    """A name, or an IP address (IPv6 without brackets)."""
    port: int
    name: str = ""
    """Name in rules, ledger and status; default: `HOST:PORT`."""
    match: tuple[Match, ...] = ()
    """Which of the requests that the rules mirror go to this shadow: those that match one of these; empty: all."""
    copies: int = 1
    """How many times each request is sent, each time on separate connections."""
    rewrite: Rewrite = Rewrite()
    tls: Tls | None = None
    pooled: int = 0
    """Number of connections that all production connections share; 0: each has its own."""
    connect_time: Seconds = 5.0
    """Time-out for establishing a connection, in seconds."""
    idle_time: Seconds = 0.0
    """Seconds after which an idle connection is closed; the next request opens another.  0: never."""

    resolve_every: Seconds = 30.0
    """Seconds between two look-ups of the name; 0: only at the start.  The system's resolver does not report a
    time to live; load balancers and DNS discovery commonly use up to 60 s (AWS ELB), Kubernetes 30 s.  New
    connections use the new addresses; existing ones are kept."""

    def _check(self) -> Found:
        yield from super()._check()
        if not 0 < self.port < 65536:
            yield "port", f"{self.port} is not a port (1 to 65535)"
        if not _is_host(self.host):
            yield "host", f"{shown(self.host)} is not a host name or address"
        if not self.name.isprintable() or len(self.name) > 63:
            yield "name", f"{shown(self.name)} is not a name of up to 63 printable characters"
        if not 1 <= self.copies <= MAX_COPIES:
            yield "copies", f"{self.copies} is not between 1 and {MAX_COPIES}"
        if self.resolve_every and not 0.1 <= self.resolve_every <= 86_400:
            yield "resolve_every", f"{self.resolve_every} is neither 0 nor between 0.1 and 86400"
        if not 0 <= self.pooled <= MAX_POOL:
            yield "pooled", f"{self.pooled} is not between 0 and {MAX_POOL}"
        if not 0 < self.connect_time < math.inf:
            yield "connect_time", f"{self.connect_time} is not a number of seconds above 0"
        if not 0 <= self.idle_time < math.inf:
            yield "idle_time", f"{self.idle_time} is not a number of seconds"

    @property
    def end_point(self) -> str:
        """`HOST:PORT`, with brackets where they are needed."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def label(self) -> str:
        """Its name or, if it has none, its end point."""
        return self.name or self.end_point

    @property
    def copy_labels(self) -> tuple[str, ...]:
        """What a comparison calls each of its copies: `web`, `web#2`, …"""
        return (self.label, *(f"{self.label}#{copy}" for copy in range(2, self.copies + 1)))


def parse_shadow(text: str, **more: object) -> Shadow:
    """Read `HOST:PORT`, with an IPv6 literal in brackets.  Raises `SpecError`."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or "/" in text:  # a URL
        raise SpecError("shadow", f"{shown(text)} is not HOST:PORT")
    if host.startswith("[") != host.endswith("]") or (":" in host and not host.startswith("[")):
        raise SpecError("shadow", f"{shown(text)}: an IPv6 address goes in brackets, as in [2001:db8::1]:80")
    if host.startswith("["):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise SpecError("shadow", f"{shown(host)} is not an IPv6 address") from None
    elif not _is_host(host):
        raise SpecError("shadow", f"{shown(host)} is not a host name or address")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise SpecError("shadow", f"{port[:20]!r} is not a port (1 to 65535)")
    return Shadow(host=host, port=int(port), **more)  # type: ignore[arg-type]


def _is_host(text: str) -> bool:
    """Whether it is an address, or a name that a resolver may know: underscores and letters beyond ASCII are in use."""
    if ":" not in text:
        return bool(text) and all(c.isalnum() or c in "-._" for c in text)
    try:
        return bool(ipaddress.IPv6Address(text))
    except ValueError:
        return False
