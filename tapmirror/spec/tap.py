# SPDX-License-Identifier: Apache-2.0
"""`TapSpec` and its parts, with the defaults of every bound and the reason for each."""

from __future__ import annotations

import enum
import ipaddress
import math
from typing import Any

import msgspec

MAX_ADDRS = 16
"""Production addresses of one tap: the capture program compares each packet with all of them."""


class SpecError(ValueError):
    """A value that the spec refuses; `field` is its path, the message one line."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class Protocol(enum.Enum):
    """How a connection's bytes are framed."""

    AUTO = "auto"
    """By the first bytes of each connection: `http` if they begin an HTTP/1 request, else `raw`."""
    HTTP = "http"
    RAW = "raw"


class Capture(enum.Enum):
    """Where the packets come from."""

    AUTO = "auto"
    """eBPF; where the kernel or the system refuses it, AF_PACKET."""
    EBPF = "ebpf"
    PACKET = "packet"


class Pacing(enum.Enum):
    """When a connection's next bytes go to the shadow."""

    ASAP = "asap"
    WAIT = "wait"
    """After the shadow answered as production did: half-duplex, for stateful protocols."""


class Shadow(msgspec.Struct, frozen=True, kw_only=True):
    """Where the copies go."""

    host: str
    """A name or an address literal (IPv6 without brackets)."""
    port: int


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The bound of every buffer, table and queue.  The core has no defaults of its own."""

    ring_bytes: int = 16 << 20
    """Capture ring; a power of two.  Requests of 200 bytes at 20,000 a second fill it in three seconds,
    1 Gbit/s of bodies in 130 ms: longer than any pause of the worker seen; and it is memory of the worker."""
    flows: int = 65_536
    """Flow table.  About twice the ephemeral ports (28,232) that one client address has by default."""
    flow_bytes: int = 6 << 20
    """Out-of-order bytes held for one flow: Linux's own largest receive buffer (tcp_rmem[2], 6 MiB);
    production's kernel would not hold more either."""
    flow_segments: int = 4096
    """Out-of-order segments held for one flow: flow_bytes in full-sized Ethernet segments (1,460 bytes)
    of which each costs at least 100 bytes of memory however short it is."""
    reassembly_bytes: int = 32 << 20
    """Out-of-order and not yet accepted bytes held in all flows."""
    reassembly_segments: int = 65_536
    """The same in segments, each with its own cost of memory."""
    head_bytes: int = 64 << 10
    """A request head.  nginx takes 32 KiB (large_client_header_buffers 4 8k), Node.js 16 KiB, Go 1 MiB."""
    queue_bytes: int = 4 << 20
    """Queued for one shadow connection."""
    queues_bytes: int = 64 << 20
    """Queued for all connections of a shadow."""
    connections: int = 16_384
    """Open connections to a shadow, half of the default range of ephemeral ports at most."""
    flow_idle: float = 900.0
    """Seconds without a segment after which a flow is forgotten.  Longer than the usual keep-alive times
    (nginx 75 s, AWS load balancer 60 s, Go client 90 s)."""
    hole_time: float = 3.0
    """Seconds that a hole may stand before it is taken for a gap where production's acknowledgements do
    not tell: several retransmission time-outs (RFC 6298: 1 s at first)."""
    accept_time: float = 10.0
    """Seconds that data of a connection joined mid-stream is held for production's first acknowledgement."""
    connect_time: float = 5.0
    """Seconds for a connection to the shadow to be established."""
    linger_time: float = 10.0
    """Seconds that a shadow connection stays open for outstanding answers after the client is gone."""
    wait_time: float = 5.0
    """Seconds that pacing `wait` waits for the shadow's answer before it goes on."""
    backoff_max: float = 5.0
    """Longest pause between attempts to reach a shadow that is down, in seconds."""
    drain_time: float = 5.0
    """Seconds for what is queued to leave at the end."""


class TapSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One tap: what is captured where, and what is done with it."""

    iface: str
    ports: tuple[int, ...]
    shadow: Shadow
    name: str = "tap"
    addrs: tuple[str, ...] = ()
    """Local addresses of production; empty: any."""
    percent: float = 100.0
    """Share of the connections, in steps of 0.0001."""
    seed: int = 0
    """Of the sampling hash: the same seed chooses the same connections."""
    protocol: Protocol = Protocol.AUTO
    capture: Capture = Capture.AUTO
    pacing: Pacing = Pacing.ASAP
    promisc: bool = False
    """Packets for other stations too: the interface is a mirror port (SPAN), where production's packets come in."""
    decap: bool = False
    """Look into tunnels, and put IP fragments together; through AF_PACKET."""
    host: str | None = None
    """Replaces the value of the Host header; None keeps the client's."""
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        """Raises `SpecError` for the first field with a value out of its range."""
        if not self.iface or not self.iface.isprintable() or "/" in self.iface or len(self.iface.encode()) > 15:
            raise SpecError("iface", f"{self.iface!r} is not an interface name")
        if not self.ports:
            raise SpecError("ports", "at least one port is needed")
        for i, port in enumerate(self.ports):
            if not 0 < port < 65536:
                raise SpecError(f"ports[{i}]", f"{port} is not a port (1 to 65535)")
        if len(self.addrs) > MAX_ADDRS:
            raise SpecError("addrs", f"at most {MAX_ADDRS} addresses, not {len(self.addrs)}")
        for i, addr in enumerate(self.addrs):
            try:
                ipaddress.ip_address(addr)
            except ValueError:
                raise SpecError(f"addrs[{i}]", f"{addr!r} is not an IP address") from None
        if not 0 < self.shadow.port < 65536:
            raise SpecError("shadow.port", f"{self.shadow.port} is not a port (1 to 65535)")
        if not self.shadow.host or not self.shadow.host.isprintable() or " " in self.shadow.host:
            raise SpecError("shadow.host", f"{self.shadow.host!r} is not a host name or address")
        if not math.isfinite(self.percent) or not 0 <= self.percent <= 100:
            raise SpecError("percent", f"{self.percent} is not between 0 and 100")
        if self.decap and self.capture is Capture.EBPF:
            raise SpecError("decap", "eBPF does not look into tunnels: capture by AF_PACKET (packet)")
        if not 0 <= self.seed < 1 << 32:
            raise SpecError("seed", f"{self.seed} is not between 0 and {(1 << 32) - 1}")
        if self.host is not None and (not self.host or any(c <= " " or c >= "\x7f" for c in self.host)):
            raise SpecError("host", f"{self.host!r} is not a host name")

    def threshold(self) -> int:
        """Of 2**32 hash values, how many are mirrored: `percent` rounded to its step of 0.0001."""
        return round(self.percent * 10_000) * (1 << 32) // 1_000_000


def parse_shadow(text: str) -> Shadow:
    """Read `HOST:PORT`, with an IPv6 literal in brackets.  Raises `SpecError`."""
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise SpecError("shadow", f"{text!r} is not HOST:PORT")
    if host.startswith("[") != host.endswith("]") or (":" in host and not host.startswith("[")):
        raise SpecError("shadow", f"{text!r}: an IPv6 address goes in brackets, as in [2001:db8::1]:80")
    if host.startswith("["):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise SpecError("shadow", f"{host!r} is not an IPv6 address") from None
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise SpecError("shadow", f"{port[:20]!r} is not a port (1 to 65535)")
    return Shadow(host=host, port=int(port))


def to_builtins(spec: TapSpec) -> Any:
    """The spec as plain data, for messages between processes."""
    return msgspec.to_builtins(spec)
