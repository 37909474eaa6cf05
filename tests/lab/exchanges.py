# SPDX-License-Identifier: Apache-2.0
"""A small shop in two versions, and a comparison that is fed with what passed: no network, all of it by a seed.

Responses carry what differs always: the time, a request id, products in random order, a token in a page.

    .venv/bin/python -m lab.exchanges broken > /tmp/report.html     (in tests/): a report of it
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any, Final

from tapmirror.compare.comparison import Comparison
from tapmirror.compare.figures import figures, merge
from tapmirror.compare.pairing import Conversation
from tapmirror.compare.verdict import VerdictLimits
from tapmirror.events import START
from tapmirror.exchange import PROBE, Unpaired
from tapmirror.spec import Compare, Level

NAMES: Final = ("anvil", "rocket skates", "bird seed", "tunnel paint", "magnet", "spring shoes")
ENDPOINTS: Final = ("/", "/products", "/products/{n}", "/cart", "/search?q={n}", "/users/{n}/orders")


class Plain:
    """No redaction."""

    def request(self, head: bytes, body: bytes) -> tuple[bytes, bytes | None]:
        return head, body

    def response(self, head: bytes, body: bytes) -> tuple[bytes, bytes | None]:
        return head, body

    def path(self, path: bytes) -> bytes:
        return path

    def field(self, path: str) -> str:
        return path


class Shop:
    """What a version answers."""

    def __init__(self, rand: random.Random, variant: str = "same") -> None:
        self.rand = rand
        self.variant = variant

    def response(self, path: str, second: float) -> bytes:
        """A whole response."""
        rand = self.rand
        broken = self.variant == "broken"
        stamp = f"2026-11-24T10:{int(second / 60) % 60:02}:{second % 60:06.3f}Z"
        number = int("".join(filter(str.isdigit, path)) or 0)
        if path == "/":
            token = f"{rand.getrandbits(64):016x}"
            page = f"<html><head><title>Shop</title></head><body><h1>Welcome</h1><p>Served at {stamp}</p>"
            page += f"<form><input name=csrf value={token}></form><p>Today: {NAMES[0]}</p></body></html>"
            return self.write(200, page, "text/html; charset=utf-8")
        document: dict[str, Any] = {"time": stamp, "request": f"{rand.getrandbits(64):016x}"}
        if path.startswith("/products/"):
            document |= {"id": number, "name": NAMES[number % 6], "price": {"amount": 10 + number, "currency": "EUR"}}
            document["stock"] = [{"place": place, "count": (number * 7 + n) % 50} for n, place in enumerate("ABC")]
            if broken and number % 100 == 77:  # as faults are: of the same requests whenever they come
                document["price"]["amount"] += 0.01
        elif path.startswith("/products"):
            products = [{"id": n, "name": name, "price": 10 + n} for n, name in enumerate(NAMES)]
            rand.shuffle(products)
            document["products"] = products
        elif path.startswith("/users"):
            document["orders"] = [{"id": 1000 + number, "email": "someone@example.com", "total": number * 3.5}]
            if broken and rand.random() < 0.004:
                return self.write(500, json.dumps({"error": "no such column: total"}))
        else:
            document |= {"items": number % 5, "results": [number, number + 1]}
        return self.write(200, json.dumps(document))

    def write(self, status: int, body: str, kind: str = "application/json") -> bytes:
        """Head and body."""
        data = body.encode()
        reason = "OK" if status < 400 else "Error"
        extra = "X-Powered-By: v2\r\n" if self.variant == "broken" and kind.startswith("text") else ""
        return (
            f"HTTP/1.1 {status} {reason}\r\nServer: shop\r\nDate: now\r\nContent-Type: {kind}\r\n"
            f"X-Request-Id: {self.rand.getrandbits(64):016x}\r\n{extra}Content-Length: {len(data)}\r\n\r\n"
        ).encode() + data


class Feed:
    """Requests of some clients, each on a connection of its own, as a worker would tell them."""

    def __init__(self, variant: str, seed: int = 1, spec: Compare | None = None, rate: float = 200.0) -> None:
        self.rand = random.Random(seed)
        self.spec = spec or Compare(level=Level.BODY)
        self.comparison = Comparison(self.spec, [("v2", "http://v2.test:8080")], Plain())
        self.old = Shop(random.Random(seed + 1))
        self.new = Shop(random.Random(seed + 2), variant)
        self.slower = 1.2 if variant in ("slower", "broken") else 1.0
        self.now = 1000.0
        self.step = 1 / rate
        self.talks: list[Conversation] = [self.comparison.opened(flow, False) for flow in range(20)]
        self.numbers = [0] * 20
        self.probes = 0

    def run(self, requests: int) -> Feed:
        """So many requests."""
        for _ in range(requests):
            self.one()
        return self

    def one(self) -> None:
        rand = self.rand
        flow = rand.randrange(20)
        talk = self.talks[flow]
        self.numbers[flow] = number = self.numbers[flow] + 1
        self.now += self.step
        path = rand.choice(ENDPOINTS).format(n=rand.randrange(1, 200))
        method = "POST" if path == "/cart" else "GET"
        head = f"{method} {path} HTTP/1.1\r\nHost: shop.example\r\nAccept: */*\r\nCookie: tenant={flow % 2}\r\n\r\n"
        probed = self.comparison.request(flow, number, head.encode(), START, self.now)
        asked = int(self.now * 1e9)
        talk.request_ended(number, asked)
        sides = [0, PROBE] if probed else [0]
        self.probes += probed
        for side in sides:
            talk.chosen(side, number, head.encode() if method == "GET" and not side else b"")
            talk.asked(side, number, 0)
            talk.sent(side, number, asked + 100_000, 900_000, 300_000)
        talk.decided(number)
        work = rand.lognormvariate(0.0, 0.5)
        took = 2e6 * (work + rand.expovariate(4.0))
        response = self.old.response(path, self.now)
        talk.production_data(memoryview(response)[:100], asked + int(took * 0.9))
        talk.production_data(memoryview(response)[100:], asked + int(took))
        for side in sides:
            took = 2e6 * (work + rand.expovariate(4.0)) * self.slower
            talk.shadow_data(
                side, self.new.response(path, self.now + (1.5 if side else 0.002)), asked + 100_000 + int(took)
            )
        self.comparison.settle()
        for check in self.comparison.checks:
            self.probes += 1
            talk.asked(PROBE, check.number, 0)
            talk.shadow_data(PROBE, self.new.response(path, self.now + 1.5), asked + int(2e9))
        self.comparison.checks.clear()


def main(variant: str, form: str = "html", requests: str = "20000") -> None:
    """Print a report."""
    from tapmirror.report import FORMS

    feed = Feed(variant).run(int(requests))
    feed.comparison.unpaired(Unpaired.NOT_SENT)
    ((label, state),) = merge([feed.comparison.snapshot()], feed.spec).items()
    print(FORMS[form](figures("shop", label, state, feed.spec, VerdictLimits())))


if __name__ == "__main__":
    main(*sys.argv[1:])
