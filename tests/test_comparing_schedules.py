# SPDX-License-Identifier: Apache-2.0
"""Random schedules of many connections, records lost of both sides, joined mid-stream, in turns: never a wrong pair."""

from __future__ import annotations

import random
from collections import Counter, deque

import pytest

from tapmirror.compare.comparison import Comparison
from tapmirror.comparing import ComparingPipeline
from tapmirror.events import ACCEPTED, ACK, FIN, FROM_SERVER, START, FlowKey, Segment, Send
from tapmirror.exchange import Exchange
from tapmirror.ledger import Ledger
from tapmirror.packet import BUCKETS, flow_hash
from tapmirror.policy.samples import USUAL, SampleRedactor
from tapmirror.spec import Compare, Level, Shadow, TapSpec
from test_comparing import OK, key

MASK = 0xFFFFFFFF
CONNECTIONS = 12
STEPS = 2000
SEEDS = 10
"""Of each kind of capture: 270 schedules in all."""
COPIED = 120
"""Bytes of each of production's segments: a whole head."""


class Client:
    """A connection of a client that waits for each response; it begins below the end of the sequence space."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.key = key(port)
        self.asked = self.answered = MASK - 500
        self.number = 0
        self.waits: str | None = None


class World:
    """Clients, production, the capture that loses a part of its records, and a tap that reads it in batches."""

    def __init__(self, seed: int, loss: float, midstream: float, most: float) -> None:
        self.rand = random.Random(seed)
        self.loss = loss
        self.midstream = midstream
        spec = TapSpec(
            iface="lo",
            ports=(80,),
            shadows=(Shadow(host="s", port=1, name="s0"),),
            compare=Compare(level=Level.STATUS, noise_probe=0, max_exchanges=most),
        )
        self.comparison = Comparison(spec.compare, [("s0", "http://s0")], SampleRedactor([USUAL], b"k"))
        self.comparison.paired = self.paired  # type: ignore[method-assign]
        self.pipeline = ComparingPipeline(spec, Ledger(), None, self.comparison)
        self.chunked = self.rand.choice((0.0, 0.3, 1.0))
        self.stays = self.rand.choice((0.98, 0.8, 0.7))
        self.now = 1.0
        self.ring: deque[Segment] = deque()
        self.window = (0, BUCKETS)
        self.bits: Counter[int] = Counter()
        self.acks: dict[FlowKey, bool] = {}
        self.pairs = 0
        self.wrong: list[tuple[str, str]] = []
        self.requests = 0
        self.ports = iter(range(1000, 60_000))
        self.clients = [self.connect() for _ in range(CONNECTIONS)]

    def paired(self, exchange: Exchange) -> None:
        want = exchange.asked.target.decode()
        got = exchange.production.head.partition(b"X-Id: ")[2].partition(b"\r\n")[0].decode()
        self.pairs += 1
        if want != got:
            self.wrong.append((want, got))

    def connect(self) -> Client:
        client = Client(next(self.ports))
        if self.rand.random() >= self.midstream:
            self.put(client, ACCEPTED)
        return client

    def put(self, client: Client, flags: int, data: bytes = b"", captured: bool = True) -> None:
        seq, ack = client.asked, client.answered
        if flags & FROM_SERVER:
            seq, ack = ack, seq
        payload = memoryview(data[: COPIED if flags & FROM_SERVER else None] if captured else b"")
        if self.rand.random() >= self.loss:
            self.ring.append((client.key, flags, seq, ack, len(data), payload, int(self.now * 1e9)))

    def captures(self, client: Client) -> bool:
        bucket = flow_hash(client.key, 0) % BUCKETS
        return bool(self.bits[bucket]) or (bucket - self.window[0]) % BUCKETS < self.window[1]

    def ask(self, client: Client) -> None:
        client.number += 1
        client.waits = f"/{client.port}/{client.number}"
        body = b"b" * self.rand.choice((0, 0, 40))
        data = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (client.waits.encode(), len(body)) + body
        cut = self.rand.randrange(1, len(data)) if self.rand.random() < 0.2 else len(data)
        for part in filter(None, (data[:cut], data[cut:])):
            self.put(client, ACK, part)
            client.asked = (client.asked + len(part)) & MASK

    def answer(self, client: Client) -> None:
        assert client.waits is not None
        body = b"b" * self.rand.choice((0, 2, 50))
        head = b"HTTP/1.1 200 OK\r\nX-Id: %b\r\nContent-Length: %d\r\n\r\n" % (client.waits.encode(), len(body))
        data = head + body
        if self.rand.random() < self.chunked:
            head = b"HTTP/1.1 200 OK\r\nX-Id: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % client.waits.encode()
            data = head + b"".join(b"%x\r\n%b\r\n" % (size, b"b" * size) for size in (7, 30, 300)) + b"0\r\n\r\n"
        client.waits = None
        cut = self.rand.randrange(1, len(data)) if self.rand.random() < 0.2 else len(data)
        for part in filter(None, (data[:cut], data[cut:])):
            captured = self.captures(client)
            if captured or self.acks.get(client.key):
                self.put(client, ACK | FROM_SERVER, part, captured)
            client.answered = (client.answered + len(part)) & MASK

    def batch(self) -> None:
        for _ in range(min(len(self.ring), self.rand.randrange(1, 40))):
            for command in self.pipeline.feed(self.ring.popleft(), self.now):
                if isinstance(command, Send) and command.flags & START:
                    self.requests += 1
                    talk = self.pipeline.conversation(command.flow)
                    if command.number and talk is not None:
                        talk.asked(0, command.number, command.flags)
                        talk.shadow_data(0, OK, int(self.now * 1e9))
        self.acks.update(self.pipeline.flows.ack_requests)
        self.pipeline.flows.ack_requests.clear()
        for flow, wanted in self.pipeline.response_wants:
            self.bits[flow_hash(flow, 0) % BUCKETS] = wanted
        self.pipeline.response_wants.clear()
        if self.pipeline.window is not None:
            self.window = self.pipeline.window
            self.pipeline.opened(int(self.now * 1e9))

    def run(self) -> None:
        rand = self.rand
        for _ in range(STEPS):
            self.now += rand.random() * 0.004
            client = rand.choice(self.clients)
            what = rand.random()
            if what > self.stays:
                self.put(client, ACK | FIN)
                self.clients[self.clients.index(client)] = self.connect()
            elif client.waits is None:
                self.ask(client)
            else:
                self.answer(client)
            if rand.random() < 0.15 or len(self.ring) > 200:
                self.batch()
            if rand.random() < 0.01:
                self.now += rand.choice((0.05, 0.3))
                self.pipeline.expire(self.now)


@pytest.mark.parametrize("midstream", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("loss", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("most", [1e9, 40.0, 10.0])
def test_never_a_wrong_pair_of_a_client_that_waits(most: float, loss: float, midstream: float) -> None:
    pairs = requests = 0
    for seed in range(SEEDS):
        world = World(seed, loss, midstream, most)
        world.run()
        assert world.wrong == [], seed
        pairs += world.pairs
        requests += world.requests
    few = most < 1e9
    assert pairs > requests * (0.01 if few else 0.2)
    if few:
        assert pairs < requests * 0.6, "connections take turns"
