# SPDX-License-Identifier: Apache-2.0
"""What the tests of policy share: requests, connections, a policy with its ledgers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tapmirror.events import END, START, Command, Finish, Open, Send
from tapmirror.ledger import Ledger
from tapmirror.packet import flow_key
from tapmirror.policy import HookRequest, Policy
from tapmirror.policy.request import Request
from tapmirror.spec import TapSpec
from tapmirror.spec.document import Document
from tapmirror.spec.reading import taps_of

V4 = bytes(10) + b"\xff\xff"

BOOKINFO = b"""\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
    - route: [{destination: {host: reviews, subset: v1}, weight: 100}]
      mirror: {host: reviews, subset: v2}
      mirrorPercentage: {value: 50.0}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
"""
"""Istio's sample: all traffic to v1 of reviews, half of it mirrored to v2."""


def key(client: str = "10.0.0.1", port: int = 40_000) -> bytes:
    """The flow key of a client's connection."""
    address = V4 + bytes(int(part) for part in client.split("."))
    return flow_key(address, V4 + bytes((10, 0, 0, 2)), port.to_bytes(2, "big"), b"\0\x50", 0)


def head(line: str = "GET / HTTP/1.1", *fields: str, host: str | None = "shop.test") -> bytes:
    """A request's head."""
    lines = [line, *([f"Host: {host}"] if host is not None else []), *fields]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def request(
    line: str = "GET / HTTP/1.1", *fields: str, host: str | None = "shop.test", client: str = "10.0.0.1"
) -> Request:
    """The same as policy sees it."""
    return Request(head(line, *fields, host=host), key(client))


def tap_of(**spec: Any) -> TapSpec:
    """A tap as a file describes it."""
    data = {"iface": "eth0", **({} if "ports" in spec else {"port": 80}), "protocol": "http", **spec}
    if "shadow" not in data and "shadows" not in data:
        data["shadow"] = "new:80"
    (tap,) = taps_of([Document(data, {}, [])])
    return tap


class Tried:
    """A policy, what went in and what came out; the identity of each shadow's ledger is checked."""

    def __init__(self, function: Callable[[HookRequest], object] | None = None, /, **spec: Any) -> None:
        self.spec = tap_of(**spec)
        self.ledgers = [Ledger() for _ in self.spec.shadows]
        self.policy = Policy(self.spec, self.ledgers, secret=b"k" * 32, epoch=1_000_000_000.0, hook=function)
        self.out: list[Command] = []
        self.bytes = 0
        self.requests = 0
        self._flows = 0

    def open(self, client: str = "10.0.0.1", port: int | None = None, http: bool = True) -> int:
        """A connection; its number."""
        self._flows += 1
        self.give(Open(self._flows, http, key(client, port or 40_000 + self._flows)))
        return self._flows

    def give(self, command: Command, now: float = 1.0) -> list[Command]:
        """Route one command; what comes of it."""
        if isinstance(command, Send):
            self.bytes += command.size
            self.requests += bool(command.flags & START)
        found = self.policy.route([command], now)
        kept: list[Command] = [
            Send(each.flow, bytes(each.data), each.size, each.flags, each.target) if isinstance(each, Send) else each
            for each in found
        ]
        self.out += kept
        self.check()
        return kept

    def ask(
        self, data: bytes, flow: int | None = None, now: float = 1.0, flags: int = START | END
    ) -> list[bytes | None]:
        """A whole request; what each target gets of it."""
        if flow is None:
            flow = self.open()
        got: list[bytes | None] = [None] * sum(shadow.copies for shadow in self.spec.shadows)
        for command in self.give(Send(flow, memoryview(data), len(data), flags), now):
            if isinstance(command, Send):
                got[command.target] = bytes(command.data)
        return got

    def body(self, flow: int, data: bytes, *, end: bool = False, now: float = 1.0) -> list[Command]:
        """A part of a body."""
        return self.give(Send(flow, memoryview(data), len(data), END if end else 0), now)

    def finish(self, flow: int) -> list[Command]:
        """The end of a connection."""
        return self.give(Finish(flow))

    def check(self) -> None:
        """All that went in was sent on, is held, or has its reason; for each shadow."""
        for each in self.policy.destinations:
            sends = [c for c in self.out if isinstance(c, Send) and c.target in each.targets]
            copies = each.spec.copies
            for account, sent, held, seen in (
                (each.ledger.bytes, sum(c.size for c in sends), each.held_bytes, self.bytes),
                (each.ledger.requests, sum(bool(c.flags & START) for c in sends), each.held_requests, self.requests),
            ):
                assert account.settled() + sent + held == seen * copies, (
                    each.spec.label,
                    account.settled(),
                    sent,
                    held,
                )

    def fates(self, shadow: int = 0) -> dict[str, int]:
        """Requests that a shadow did not get, by reason."""
        account = self.ledgers[shadow].requests
        found = {
            reason.value: count for reason, count in (*account.filtered.items(), *account.dropped.items()) if count
        }
        return found | ({"sampled_out": account.sampled_out} if account.sampled_out else {})


def sends(commands: Sequence[Command]) -> list[tuple[int, bytes]]:
    """(target, data) of what is to be sent."""
    return [(each.target, bytes(each.data)) for each in commands if isinstance(each, Send)]
