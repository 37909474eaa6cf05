# SPDX-License-Identifier: Apache-2.0
"""`TapSpec` and its parts, with the defaults of every bound and the reason for each."""

from __future__ import annotations

import enum
import ipaddress
import math
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from tapmirror.spec.budget import Budget, too_little
from tapmirror.spec.compare import Compare, Level
from tapmirror.spec.errors import Checked, Found, shown
from tapmirror.spec.match import Match, network_problems
from tapmirror.spec.numbers import Seconds
from tapmirror.spec.rewrite import KEEP, Redact, Rewrite
from tapmirror.spec.sampled import By, Sampled, divided, threshold
from tapmirror.spec.shadow import MAX_COPIES, Shadow

MAX_ADDRS = 16
"""Most production addresses of one tap: the capture program compares each packet with all of them."""
MAX_WORKERS = 64
"""Most workers of one tap: more than a host has processors to spare."""
MAX_CLIENTS = 32
"""Most networks of clients: with AF_PACKET, each packet is compared with all of them."""
MAX_SHADOWS = 16
"""Most shadows of one tap: as many end points as the capture program can leave out."""


ANY = "any"
"""Instead of an interface's name: all of them."""

LEAST = {
    "ring_bytes": 1 << 18,
    "head_bytes": 128,
    "heads_bytes": 128,
    "queue_bytes": 4096,
    "queues_bytes": 4096,
    "memory": 32 << 20,
}
"""Least values of limits: two of the largest packets; a request line and a Host; a small request; twice what a
worker has at its start."""
MOST = {"ring_bytes": 1 << 31}
"""Largest values of limits, if that is not `MOST_OF_ALL`: the kernel's largest ring, whose size is a power of two in 32
bits."""
MOST_OF_ALL = 1 << 40
LONGEST = 1_000_000
"""Most seconds of a limit, eleven days: poll(2) counts milliseconds in 31 bits."""


class Protocol(enum.Enum):
    """How a connection's bytes are framed."""

    AUTO = "auto"
    """By the first bytes of each connection: `http` if they begin an HTTP/1 request, else `raw`."""
    HTTP = "http"
    RAW = "raw"


class Capture(enum.Enum):
    """Where the packets come from."""

    AUTO = "auto"
    """eBPF, or AF_PACKET if the kernel or the system refuses that."""
    EBPF = "ebpf"
    PACKET = "packet"


class Pacing(enum.Enum):
    """When a connection's next bytes go to the shadow."""

    ASAP = "asap"
    WAIT = "wait"
    """After the shadow has responded, if production had: half-duplex, for stateful protocols."""


class Spread(enum.Enum):
    """Which of several shadows get a request."""

    ALL = "all"
    ROUND_ROBIN = "round-robin"
    """One of those that the rule names, in turn."""


class Over(enum.Enum):
    """What happens to a request whose body is longer than its rule's limit."""

    SKIP = "skip"
    """It is not mirrored.  If the length is not announced (chunked), the body is held up to the limit."""
    STREAM = "stream"
    """It is mirrored anyway, and counted."""


class BodyLimit(Checked, frozen=True, kw_only=True):
    """The longest body that a rule mirrors, and what happens to a longer one."""

    max: int
    """Bytes."""
    over: Over = Over.SKIP

    def _check(self) -> Found:
        if not 0 <= self.max <= 64 << 20:
            yield "max", f"{self.max} is not between 0 and {64 << 20}"


class Mirror(Sampled, frozen=True, kw_only=True):
    """One of the shadows that a rule mirrors to, with its own share."""

    shadow: str
    """Name of the shadow."""


class Rule(Sampled, frozen=True, kw_only=True):
    """What happens to the requests that match.  The first rule that matches decides, even if it mirrors nothing."""

    name: str = ""
    match: tuple[Match, ...] = ()
    """The rule matches if one of these does; empty: it matches every request."""
    mirror: tuple[Mirror, ...] | None = None
    """Shadows to mirror to: names (or structures with their own share), `none`, or `all` (the default)."""
    body: BodyLimit | None = None


class Hook(Checked, frozen=True, kw_only=True):
    """A Python function that sees every request before it is mirrored; short form: `MODULE:FUNCTION`."""

    call: str
    """`package.module:function`.  It is imported and called in the worker, without privilege."""
    body: bool = False
    """Whether the function needs the body.  Requests are then held until they are complete, up to `body_bytes`."""
    body_bytes: int = 1 << 20

    def _check(self) -> Found:
        module, colon, function = self.call.partition(":")
        if not (colon and function.isidentifier() and all(part.isidentifier() for part in module.split("."))):
            yield "call", f"{shown(self.call)} is not package.module:function"
        if not 0 < self.body_bytes <= 64 << 20:
            yield "body_bytes", f"{self.body_bytes} is not between 1 and {64 << 20}"


class Limits(Checked, frozen=True, kw_only=True):
    """The limit of every buffer, table and queue."""

    ring_bytes: int = 16 << 20
    """Size of the capture ring; a power of two.  Requests of 200 bytes at 20,000 a second fill it in three seconds, 1
    Gbit/s of bodies in 130 ms: longer than any observed pause of the worker.  It counts as memory of the worker."""
    flows: int = 65_536
    """Number of connections in the flow table: about twice the ephemeral ports (28,232) that one client address has
    by default.  At most half of it is for connections joined mid-stream that production has not acknowledged yet."""
    flow_bytes: int = 6 << 20
    """Out-of-order bytes held for one flow: Linux's own largest receive buffer (tcp_rmem[2], 6 MiB).  Production's
    kernel would not hold more either."""
    flow_segments: int = 4096
    """Out-of-order segments held for one flow: `flow_bytes` in full-sized Ethernet segments (1,460 bytes).  Each
    costs at least 100 bytes of memory, however short it is."""
    reassembly_bytes: int = 32 << 20
    """Out-of-order and not yet accepted bytes held in all flows together; the latter take at most half of it."""
    reassembly_segments: int = 65_536
    """Out-of-order and not yet accepted segments held in all flows together; each costs memory however short it is."""
    head_bytes: int = 64 << 10
    """Length of a request head. nginx accepts 32 KiB (large_client_header_buffers 4 8k), Node.js 16 KiB, Go 1 MiB."""
    heads_bytes: int = 16 << 20
    """Incomplete heads, and first bytes that do not show the protocol yet, in all flows together; the same again
    for the responses of each shadow, and for what clients send before production accepts their connections.  A
    quarter of all flows may stop after 1,000 bytes."""
    queue_bytes: int = 4 << 20
    """Bytes queued for one connection to a shadow, as they will be sent: with what a rewrite adds.  Each part counts
    150 bytes extra, the memory that it needs however short it is."""
    queues_bytes: int = 64 << 20
    """Bytes queued for all connections to a shadow together.  Copies of requests that may have to be sent again take
    up to a quarter as much beside them."""
    connections: int = 16_384
    """Open connections to a shadow, for each worker.  All of them together use at most half of the host's
    ephemeral ports."""
    flow_idle: Seconds = 900.0
    """Seconds without a segment after which a flow is forgotten: longer than the usual keep-alive times (nginx 75 s,
    AWS load balancer 60 s, Go client 90 s)."""
    hole_time: Seconds = 3.0
    """Seconds after which out-of-order bytes that production has not acknowledged make room for others, if half of
    `reassembly_bytes` or `reassembly_segments` is used: several retransmission time-outs (RFC 6298: 1 s at first)."""
    accept_time: Seconds = 10.0
    """Seconds that a connection's data is held until production shows that it accepted the connection."""
    linger_time: Seconds = 10.0
    """Seconds that a connection to the shadow stays open for outstanding responses after the client has gone."""
    wait_time: Seconds = 5.0
    """Seconds that pacing `wait` waits for the shadow's response before it continues.  The end of a raw connection
    waits as long with any pacing."""
    backoff_max: Seconds = 5.0
    """Longest pause between attempts to reach a shadow that is down, in seconds."""
    drain_time: Seconds = 5.0
    """Seconds to send what is queued when the tap ends."""
    held_bytes: int = 32 << 20
    """Bodies held in all flows together, if a body must be complete before it can be mirrored."""
    memory: int = 512 << 20
    """Memory of a worker in bytes, plus `queues_bytes` for each copy beyond the first.  The other limits add up to
    half of it.  A worker that needs more ends, and another one starts."""

    def _check(self) -> Found:
        for field in msgspec.structs.fields(type(self)):
            value = getattr(self, field.name)
            whole = isinstance(field.default, int)
            least = LEAST.get(field.name, 1 if whole else 0.001)
            most = MOST.get(field.name, MOST_OF_ALL if whole else LONGEST)
            if not least <= value <= most:
                yield field.name, f"{value} is not between {least} and {most}"
        if self.ring_bytes & (self.ring_bytes - 1):
            yield "ring_bytes", f"{self.ring_bytes} is not a power of two"


class TapSpec(Sampled, frozen=True, kw_only=True):
    """One tap: what is captured where, and what is done with it."""

    iface: str
    """Interface that production's traffic passes; several separated by commas, patterns (`veth*`), or `any`."""
    ports: tuple[int, ...]
    """Production's ports."""
    shadows: tuple[Shadow, ...]
    """Where the copies go."""
    name: str = "tap"
    """Name of the tap, in status, log and metrics."""
    addrs: tuple[str, ...] = ()
    """Production's local addresses; empty: any."""
    clients: tuple[str, ...] = ()
    """Networks whose clients are mirrored; the capture leaves out all others.  Empty: any client."""
    seed: int = 0
    """Seed of the sampling hash: the same seed selects the same connections."""
    protocol: Protocol = Protocol.AUTO
    """`http`: mirror HTTP/1 requests; `raw`: mirror bytes; `auto`: decide by the first bytes of each connection."""
    capture: Capture = Capture.AUTO
    """`ebpf`, or `packet` (AF_PACKET); `auto`: eBPF, or AF_PACKET if the host has no eBPF."""
    pacing: Pacing = Pacing.ASAP
    """`asap`: send at once; `wait`: wait for the shadow's response where production gave one (stateful protocols)."""
    promisc: bool = False
    """Take packets addressed to other hosts: the interface is a mirror port (SPAN), on which production's packets
    come in."""
    decap: bool = False
    """Decode tunnels and reassemble IP fragments; uses AF_PACKET."""
    safe_methods: bool = False
    """Mirror only GET, HEAD and OPTIONS."""
    loop_check: bool = True
    """Add the field `Tapmirror-Loop` to the copy of some HTTP requests, at most one in 16 and one a second.  If
    such a request arrives at production, something at the shadow forwards requests to production, and the tap
    ends."""
    rules: tuple[Rule, ...] = ()
    """Tried in order.  A request that matches none is not mirrored.  Empty: every request goes to every shadow."""
    spread: Spread = Spread.ALL
    """Each request goes to all shadows of its rule, or to one of them in turn."""
    redact: Redact | None = None
    hook: Hook | None = None
    compare: Compare = Compare()
    ttl: Seconds | None = None
    """Seconds after which the tap ends by itself."""
    workers: int | Literal["auto"] = 1
    """Processes that share the connections of the tap; auto: half the number of processors.  `limits` hold for
    each of them, `ring_bytes` too; caps (`max_requests`, `max_bytes`) are divided among them."""
    limits: Limits = Limits()
    budget: Budget = Budget()

    def _check(self) -> Found:
        yield from super()._check()
        if self.workers != "auto" and not 1 <= self.workers <= MAX_WORKERS:
            yield "workers", f"{self.workers} is not auto nor between 1 and {MAX_WORKERS}"
        if self.decap and self.workers != 1:
            yield "workers", "must be 1 with decap: the kernel cannot distinguish the connections in tunnels"
        for name in self.links():
            if message := interface_error(name):
                yield "iface", message
        if not self.ports:
            yield "ports", "at least one port is needed"
        for i, port in enumerate(self.ports):
            if not 0 < port < 65536:
                yield f"ports[{i}]", f"{port} is not a port (1 to 65535)"
        if not self.name or not self.name.isprintable() or len(self.name) > 63:
            yield "name", f"{shown(self.name)} is not a name of up to 63 printable characters"
        if len(self.addrs) > MAX_ADDRS:
            yield "addrs", f"at most {MAX_ADDRS} addresses, not {len(self.addrs)}"
        for i, addr in enumerate(self.addrs):
            try:
                ipaddress.ip_address(addr)
            except ValueError:
                yield f"addrs[{i}]", f"{shown(addr)} is not an IP address"
        if len(self.clients) > MAX_CLIENTS:
            yield "clients", f"at most {MAX_CLIENTS} networks, not {len(self.clients)}"
        yield from network_problems("clients", self.clients)
        if self.decap and self.capture is Capture.EBPF:
            yield "decap", "eBPF does not look into tunnels: capture by AF_PACKET (packet)"
        if self.ttl is not None and not 0 < self.ttl < math.inf:
            yield "ttl", f"{self.ttl} is not a number of seconds above 0"
        if not 0 <= self.seed < 1 << 32:
            yield "seed", f"{self.seed} is not between 0 and {(1 << 32) - 1}"
        yield from self._shadow_problems()
        if self.protocol is not Protocol.HTTP:
            yield from (
                (field, f"needs requests: protocol must be http, not {self.protocol.value}")
                for field in self.http_only()
            )

    def _shadow_problems(self) -> Found:
        if not 1 <= len(self.shadows) <= MAX_SHADOWS:
            yield "shadows", f"{len(self.shadows)} shadows: one is needed, {MAX_SHADOWS} are the most"
        if sum(shadow.copies for shadow in self.shadows) > MAX_COPIES:
            yield "shadows", f"more than {MAX_COPIES} copies in all"
        if self.compare.level is not Level.OFF:
            if self.protocol is Protocol.RAW:
                yield (
                    "compare",
                    "needs requests and responses, which raw bytes do not have: protocol must be http or auto",
                )
            for i, shadow in enumerate(self.shadows):
                if shadow.pooled:
                    yield (
                        f"shadows[{i}].pooled",
                        "compare finds the response to a request by its connection: not on pooled ones",
                    )
        labels = [shadow.label for shadow in self.shadows]
        for i, shadow in enumerate(self.shadows):
            if self.protocol is Protocol.RAW and shadow.rewrite.host != KEEP:
                yield (
                    f"shadows[{i}].rewrite.host",
                    "needs requests, which raw bytes do not have: protocol must be http or auto",
                )
            others = {label for other in self.shadows[:i] for label in other.copy_labels}
            taken = [label for label in shadow.copy_labels if label in others]
            if taken:
                yield f"shadows[{i}].name", f"{shown(taken[0])} is there already"
        for i, rule in enumerate(self.rules):
            for j, mirror in enumerate(rule.mirror or ()):
                if mirror.shadow not in labels:
                    yield (
                        f"rules[{i}].mirror[{j}]",
                        f"no shadow has the name {shown(mirror.shadow)} (there are: {', '.join(labels)})",
                    )
                elif mirror.shadow in [other.shadow for other in (rule.mirror or ())[:j]]:
                    yield f"rules[{i}].mirror[{j}]", f"{shown(mirror.shadow)} is there already"

    def slips(self, auto: int = 1, *, probe_given: bool = False) -> Found:
        """What is refused in a file or command, but was not always: a tap that was stored with it continues.  `auto` is
        how many workers the host would start; on another host it is known only that there will be one at least.
        `probe_given`: see `Compare.slips`.
        """
        return slips(self.name, self.compare, self.budget, self.workers, auto, probe_given=probe_given)

    def http_only(self) -> Iterator[str]:
        """The fields in use that need requests, which raw bytes do not have."""
        if self.needs_requests():
            yield "by" if self.by is not By.CONNECTION else "max_requests" if self.max_requests else "max_bytes"
        for field in ("safe_methods", "rules", "redact", "hook"):
            if getattr(self, field):
                yield field
        for i, shadow in enumerate(self.shadows):
            if shadow.needs_requests():
                yield f"shadows[{i}]"
            if shadow.match:
                yield f"shadows[{i}].match"
            if shadow.pooled:
                yield f"shadows[{i}].pooled"
            if msgspec.structs.replace(shadow.rewrite, host=KEEP) != Rewrite():
                yield f"shadows[{i}].rewrite"

    def links(self) -> tuple[str, ...]:
        """Names of interfaces, or patterns of them (fnmatch)."""
        return ("*",) if self.iface == ANY else tuple(self.iface.split(","))

    @property
    def many(self) -> bool:
        """Whether the tap may have several interfaces."""
        return self.iface == ANY or any(character in self.iface for character in ",*?[")

    def of_worker(self, workers: int) -> TapSpec:
        """The spec for one of `workers` workers, with its part of the caps."""
        rules = tuple(
            divided(
                rule if rule.mirror is None else replace(rule, mirror=tuple(divided(m, workers) for m in rule.mirror)),
                workers,
            )
            for rule in self.rules
        )
        shadows = tuple(divided(shadow, workers) for shadow in self.shadows)
        return replace(divided(self, workers), rules=rules, shadows=shadows)

    def threshold(self) -> int:
        """How many of the 2**32 values of a flow's hash the kernel passes on; all, unless the share is taken by
        connection.
        """
        return threshold(self.most()) if self.by is By.CONNECTION else 1 << 32


def interface_error(name: str) -> str | None:
    """Why this can be neither the name of an interface nor a pattern of names."""
    if not name or not name.isprintable() or "/" in name or " " in name or len(name.encode()) > 15:
        return f"{shown(name)} is not an interface name"
    return None


def slips(
    name: str,
    compare: Compare,
    budget: Budget,
    workers: int | Literal["auto"],
    auto: int,
    *,
    probe_given: bool,
) -> Found:
    """`TapSpec.slips` of data that may have other faults as well."""
    if name.startswith("-"):
        yield "name", f"{shown(name)} begins with -: commands would take it for an option"
    elif "/" in name:
        yield "name", f"{shown(name)} has a /: `report` and `verdict` would take it for a file"
    for field, message in compare.slips(probe_given=probe_given):
        yield f"compare.{field}", message
    if workers == "auto":
        if message := too_little(budget.memory, auto):
            yield "budget.memory", f"{message} (workers: auto)"
    elif message := too_little(budget.memory, workers):
        yield "budget.memory", message


def to_builtins(spec: TapSpec) -> Any:
    """The spec as plain data, for messages between processes."""
    return msgspec.to_builtins(spec)
