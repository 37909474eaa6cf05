# SPDX-License-Identifier: Apache-2.0
"""Random requests, answered at random by production and by shadows that end, stall and say what is no HTTP: what is
held stays within its bound and is given back, each request is counted once, no response is that to another request, and
no sample shows what is redacted.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import zlib
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import msgspec
import pytest

from policy_cases import key
from random_clients import FORM, RandomRequests
from random_taps import RandomTap
from tapmirror.compare.comparison import Comparison
from tapmirror.compare.figures import figures, merge
from tapmirror.compare.pairing import Conversation
from tapmirror.compare.verdict import VerdictLimits
from tapmirror.comparing import ComparingPipeline
from tapmirror.events import (
    ACCEPTED,
    ACK,
    END,
    FIN,
    FROM_SERVER,
    NO_BODY,
    RST,
    START,
    TUNNEL,
    Abort,
    Command,
    Finish,
    Open,
    Send,
)
from tapmirror.exchange import PROBE, Exchange, Unpaired
from tapmirror.ledger import Ledger
from tapmirror.policy import Policy, is_needed
from tapmirror.policy.match import compile_text
from tapmirror.policy.samples import USUAL, SampleRedactor
from tapmirror.spec import Redact

SEEDS: Final = 150
"""Of each group.  A failure names its seed: `World(seed).run()` repeats it."""
STEPS: Final = 3000
DECIDES: Final = ("rules", "redact", "hook", "spread", "safe_methods", "percent", "ramp", "by", "key", "max_requests")
PAGE: Final = (b"x", b"</p>", b"<div><div>", b"<!-- ", b"&amp;&#x110000;&#99999999999;", b"<script>a={};</script>")
TREE: Final = (b"<c>1</c>", b"<c>", b"<![CDATA[x", b"<!DOCTYPE a [<!ENTITY x 'y'>]>", b"&x;", b"<d:e xmlns:d='u'/>")
PLAIN: Final = (b"hello", b"\xff\xfe\0", "\xe9\u65e5".encode(), b"1", b"null", b'"x"', b"a" * 5000, b"")
LINKS: Final = (
    b"Set-Cookie: a=%b",
    b"Location: /x?token=%b",
    b"Link: </a?password=%b>; rel=x",
    b"Location: http://h/#access_token=%b&a=1",
    b"Refresh: 5; url=/a?sid=%b",
    b"Location: /a;jsessionid=%b",
)
ODD: Final = (b"A: caf\xc3\xa9 \xff", b"B:", b"X: " + b"y" * 3000, b"C : d", b" folded")
CODINGS: Final = (b"gzip", b"deflate", b"br", b"zstd", b"x", b"gzip, gzip", b"GZIP", b"identity")


class ComparingTap(RandomTap):
    """A tap that compares, within bounds that are soon met."""

    def data(self) -> dict[str, Any]:
        pick = self.rand.choice
        data = super().data()
        for shadow in data["shadows"]:
            shadow.pop("pooled", None)
        if pick((True, True, False)):
            data = {name: value for name, value in data.items() if name not in DECIDES}
        compare: dict[str, Any] = {
            "level": pick(("status", "headers", "body", "body", "body")),
            "held_bytes": pick((5000, 20_000, 1 << 24, 1 << 24)),
            "pending": pick((2, 256, 256)),
            "hash_bytes": pick((0, 100, 1 << 20)),
            "body_bytes": pick((0, 50, 65_536)),
            "decoded_bytes": pick((100, 1 << 20)),
            "nodes": pick((5, 20_000)),
            "differences": pick((1, 32)),
            "max_endpoints": pick((1, 3, 100)),
            "max_fields": pick((1, 64)),
            "max_samples": pick((3, 200)),
            "max_bodies": pick((1, 1e6)),
            "max_exchanges": pick((50, 1e6)),
            "answer_time": pick((3, 30)),
        }
        if compare["level"] != "status":
            compare["noise_probe"] = pick((0, 50, 100))
        if self.rand.random() < 0.2:
            compare["ignore_paths"] = [pick(("a", "**.uid", "a.**", "[]", "*.b"))]
        if self.rand.random() < 0.2:
            compare["endpoints"] = [pick(("/a/{x}", "GET /{p...}", "/{a}/{b}"))]
        return {**data, "compare": compare}


class Responses:
    """Random responses."""

    def __init__(self, requests: RandomRequests) -> None:
        self.requests = requests
        self.rand = requests.rand

    def content(self) -> tuple[bytes, bytes]:
        """A body and its type."""
        pick, value = self.rand.choice, self.requests.value
        documents = [json.dumps(value(0, False)).encode() for _ in range(pick((1, 1, 3)))]
        return pick(
            (
                (documents[0], b"application/json"),
                (b"\n".join(documents), b"application/x-ndjson"),
                (b"".join(b"event: x\ndata: %b\n\n" % each for each in documents), b"text/event-stream"),
                (pick((b"[", b'{"a":')) * pick((10, 3000)) + b"1", b"application/json"),
                (b"<html><p id=a>" + pick(PAGE) * pick((1, 50)), b"text/html; charset=" + pick((b"utf-8", b"x"))),
                (b"<?xml version='1.0'?><a b='1'>" + pick(TREE) * pick((1, 50)) + b"</a>", b"application/xml"),
                (self.requests.pairs(), FORM),
                (pick(PLAIN), b"text/plain"),
                (self.rand.randbytes(100), b"application/octet-stream"),
            )
        )

    def coded(self, body: bytes) -> tuple[bytes, list[bytes]]:
        """Perhaps compressed, perhaps broken, with the field that tells of it."""
        pick = self.rand.choice
        if self.rand.random() < 0.8:
            return body, []
        name = pick(CODINGS)
        if b"gzip" in name.lower():
            body = gzip.compress(body, mtime=0)
        elif name == b"deflate":
            body = zlib.compress(body)
        damaged = (body[:-3], body[:5], body + b"x", body[:10] + b"\xff" + body[11:], gzip.compress(b"x" * 200_000))
        return pick((body, body, *damaged)), [b"Content-Encoding: " + name]

    def response(self, asked: bytes, number: bytes, content: tuple[bytes, bytes], hostile: float) -> tuple[bytes, bool]:
        """One to a request, and whether the connection ends with it."""
        rand, pick = self.rand, self.rand.choice
        body, kind = content
        body, fields = self.coded(body)
        status = pick((*[200] * 20, 201, 204, 304, 302, 404, 404, 500, 500))
        fields += [b"X-Id: " + number, b"Content-Type: " + kind, b"Date: now"]
        if rand.random() < 0.3:
            fields.append(pick(LINKS) % self.requests.secret(True))
        if rand.random() < 0.1:
            fields.append(pick(ODD))
        ends = rand.random() < 0.15
        bodiless = asked.startswith(b"HEAD ") or status in (204, 304)
        if b"Upgrade: websocket" in asked and rand.random() < 0.3:
            status, body = 101, b""
        elif bodiless or rand.random() < 0.6:
            fields.append(b"Content-Length: %d" % len(body))
        elif not ends:
            fields.append(b"Transfer-Encoding: chunked")
            sizes = [pick((1, 10, 1000)) for _ in body]
            body = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in pieces(body, sizes)) + b"0\r\n\r\n"
        if ends:
            fields.append(b"Connection: close")
        rand.shuffle(fields)
        head = b"\r\n".join((b"HTTP/1.1 %d OK" % status, *fields, b"", b""))
        data = pick((b"", b"", b"", b"HTTP/1.1 100 Continue\r\n\r\n")) + head + (b"" if bodiless else body)
        if rand.random() < hostile:
            again = data if ends else data * 2  # else a head with a secret would be a body
            bad = (data[: len(data) // 2], b"garbage\r\n\r\n", again, b"\x15\x03\x03", data.replace(b"\r\n", b"\n"))
            data = pick((*bad, data.replace(b"Content-Length: ", b"Content-Length: -")))
        return data, ends


def pieces(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    out = []
    for size in sizes:
        if data:
            out.append(data[:size])
            data = data[size:]
    return out


class Lane:
    """A connection to a shadow, as replay has it: what is queued, was sent, and comes back."""

    def __init__(self, world: World, target: int, talk: Conversation) -> None:
        self.world = world
        self.rand = world.rand
        self.target = target if target < world.targets else target - world.targets + PROBE
        self.talk = talk
        self.queue: list[tuple[int, int, bytes]] = []
        """Number, flags and data of requests, of which only the last may lack its end."""
        self.awaited: list[tuple[int, bytes]] = []
        """Flags and data of those that were sent whole."""
        self.partial = False
        """The last one was begun without its end."""
        self.incoming = b""
        self.ending = self.observing = self.tunnel = False
        self.responses = 0
        self.hostile = self.rand.choice((0.0, 0.0, 0.3))

    def take(self, command: Send) -> None:
        data = bytes(command.data)
        if command.flags & START:
            self.queue.append((command.number, command.flags, data))
        elif self.queue:
            number, flags, before = self.queue[-1]
            self.queue[-1] = number, flags | command.flags & END, before + data
        elif self.partial and command.flags & END:
            self.partial = False
            self.went(*self.under_way)

    def cut_off(self) -> None:
        """What is under way of production is given up."""
        if self.queue and not self.queue[-1][1] & END:
            self.leave_out(self.queue.pop()[0])
        elif self.partial:
            self.end("given up")

    def leave_out(self, number: int) -> None:
        if number:
            self.talk.left_out(self.target, number, Unpaired.NOT_SENT)

    def step(self) -> None:
        chance = self.rand.random()
        if chance < 0.5:
            if self.queue and not self.partial and not self.tunnel:
                self.send()
        elif chance < 0.97:
            self.receive()
        else:
            self.end(self.rand.choice(("closed", "reset", "too late", "given up")))

    def send(self) -> None:
        talk = self.talk
        number, flags, data = self.queue[0]
        if self.rand.random() < 0.05 and flags & END:
            self.leave_out(self.queue.pop(0)[0])
            return
        if self.observing and not number and not talk.owes(self.target):
            self.observing = False
            talk.unfollow(self.target)
        elif number and not self.observing:
            talk.follow(self.target, [flags & (NO_BODY | TUNNEL) for flags, _ in self.awaited], self.responses)
            self.observing = True
        if self.observing:
            talk.asked(self.target, number, flags)
            if self.rand.random() < 0.05:
                talk.withdraw(self.target, number)
                return
        del self.queue[0]
        if flags & END:
            self.went(number, flags, data)
        else:
            self.partial, self.under_way = True, (number, flags, data)

    def went(self, number: int, flags: int, data: bytes) -> None:
        if self.observing:
            self.talk.sent(self.target, number, self.world.time(), self.rand.choice((0, 1000)), 500)
        self.awaited.append((flags, data))
        self.tunnel = bool(flags & TUNNEL)

    def receive(self) -> None:
        if not self.incoming and self.awaited:
            _, data = self.awaited.pop(0)
            found = re.search(rb"\nN: (\d+)", data)
            number = found[1] if found is not None and not self.hostile else b""
            content = self.world.content.get(found[1] if found is not None else b"") or self.world.responses.content()
            self.incoming, self.ending = self.world.responses.response(data, number, content, self.hostile)
            self.responses += 1
        if not self.incoming:
            return
        size = self.rand.choice((1, 20, 1000, 1 << 20))
        piece, self.incoming = self.incoming[:size], self.incoming[size:]
        if self.observing:
            skipped = min(self.talk.shadow_skippable(self.target), len(piece)) if self.rand.random() < 0.5 else 0
            if skipped:
                self.talk.shadow_gap(self.target, skipped, self.world.time())
            self.talk.shadow_data(self.target, memoryview(piece)[skipped:], self.world.time())
        if self.ending and not self.incoming:
            self.end("closed")

    def end(self, how: str) -> None:
        """The connection is over; the next request opens another."""
        if self.observing:
            if how in ("closed", "reset"):
                self.talk.shadow_ended(self.target, self.world.time(), how == "reset")
            elif how == "too late":
                self.talk.timed_out(self.target, self.world.time())
            else:
                self.talk.given_up(self.target, Unpaired.NOT_SENT)
        self.observing = self.tunnel = self.partial = self.ending = False
        self.awaited.clear()
        self.incoming = b""
        self.responses = 0


class Client:
    """A connection of a client's, with production's responses."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.rand = rand = world.rand
        self.key = key(f"10.0.{number}.1", 40_000 + number)
        self.requests: list[tuple[bytes, bytes]] = []
        for _ in range(rand.choice((1, 3, 20))):
            world.asked += 1
            name = b"%d" % world.asked
            asked = world.requests.request()
            self.requests.append((asked.data.replace(b"\r\n\r\n", b"\r\nN: %b\r\n\r\n" % name, 1), name))
            if asked.last or asked.tunnel:
                break
        self.pipelines = rand.random() < 0.2
        self.loss = 0.0 if world.orderly else rand.choice((0.0, 0.02))
        self.began = not world.orderly and rand.random() < 0.1
        self.out = self.coming = b""
        self.waiting: list[tuple[bytes, bytes]] = []
        self.ends = False
        self.sent, self.got = 1000, 1

    def put(self, flags: int, data: bytes = b"") -> None:
        """A segment of its own or of production's, which may be lost."""
        ends = (self.got, self.sent) if flags & FROM_SERVER else (self.sent, self.got)
        if not data or self.rand.random() >= self.loss:
            segment = (self.key, flags, *ends, len(data), memoryview(bytearray(data)), self.world.time())
            self.world.do(self.world.pipeline.feed(segment, self.world.now))
        if flags & FROM_SERVER:
            self.got += len(data)
        else:
            self.sent += len(data)

    def step(self) -> bool:
        """One of the two sends something; False: it was the last."""
        rand, pick = self.rand, self.rand.choice
        if not self.began:
            self.began = True
            self.put(ACCEPTED)
        elif self.out:
            size = pick((1, 50, 1 << 20))
            piece, self.out = self.out[:size], self.out[size:]
            self.put(ACK, piece)
        elif self.requests and (self.pipelines or not (self.waiting or self.coming)) and rand.random() < 0.6:
            self.waiting.append(self.requests.pop(0))
            self.out = self.waiting[-1][0]
        elif self.coming:
            size = pick((1, 30, 1400, 1 << 20))
            piece, self.coming = self.coming[:size], self.coming[size:]
            self.put(FROM_SERVER | ACK, piece)
            if self.ends and not self.coming:
                self.put(pick((FIN, RST)) | ACK | FROM_SERVER)
                return False
        elif self.waiting:
            asked, name = self.waiting.pop(0)
            content = self.world.content[name] = self.world.responses.content()
            hostile = 0.0 if self.world.orderly else 0.05
            self.coming, self.ends = self.world.responses.response(asked, name, content, hostile)
        elif not self.requests or rand.random() < 0.05:
            self.put(pick((FIN, RST)) | ACK)
            return False
        return True


class World:
    """Clients, production, a tap that compares, and its shadows; `orderly`: production's side is seen whole."""

    def __init__(self, seed: int) -> None:
        self.rand = rand = random.Random(seed)
        self.spec = spec = ComparingTap(rand).tap()
        policy = (
            Policy(spec, [Ledger() for _ in spec.shadows], hook=lambda request: request) if is_needed(spec) else None
        )
        self.labels = [label for shadow in spec.shadows for label in shadow.copy_labels]
        self.targets = len(self.labels)
        self.orderly = rand.random() < 0.7
        self.comparison = Comparison(
            spec.compare,
            [(label, f"http://{label}") for label in self.labels],
            SampleRedactor([USUAL, *([spec.redact] if spec.redact is not None else [])], b"k"),
            [compile_text(pattern) for pattern in spec.compare.ignore_patterns],
        )
        self.sink = self.comparison.paired
        self.comparison.paired = self.paired  # type: ignore[method-assign]
        self.pipeline = ComparingPipeline(spec, Ledger(), policy, self.comparison)
        self.requests = RandomRequests(rand, Redact(privacy="strict"))
        self.responses = Responses(self.requests)
        self.content: dict[bytes, tuple[bytes, bytes]] = {}
        """Of production's responses, by the number of the request: shadows often say the same."""
        self.lanes: dict[tuple[int, int], Lane] = {}
        self.asked = 0
        self.now = 1.0
        self.secrets: set[bytes] = set()

    def time(self) -> int:
        self.now += 0.0001
        return int(self.now * 1e9)

    def run(self) -> None:
        clients = [Client(self, number) for number in range(self.rand.randint(1, 5))]
        for _ in range(STEPS):
            chance = self.rand.random()
            if not clients:
                break
            if chance < 0.4:
                client = self.rand.choice(clients)
                if not client.step():
                    clients.remove(client)
            elif chance < 0.95 and self.lanes:
                self.rand.choice([*self.lanes.values()]).step()
            else:
                self.now += self.rand.choice((0.01, 0.01, 0.5, 2.0))
                self.do(self.pipeline.expire(self.now))
            self.within_bounds()
            self.secrets.update(self.requests.secrets)
            self.requests.secrets.clear()
        self.do(self.pipeline.close(self.now))
        for lane in self.lanes.values():
            lane.end("given up")
        self.pipeline.shut()
        self.judge()

    def do(self, commands: Sequence[Command]) -> None:
        for command in commands:
            place = (command.target, command.flow)
            if isinstance(command, Open):
                if (talk := self.pipeline.conversation(command.flow)) is not None:
                    self.lanes[place] = Lane(self, command.target, talk)
            elif place not in self.lanes:
                continue  # nothing of it is compared any more
            elif isinstance(command, Send):
                self.lanes[place].take(command)
            elif isinstance(command, Abort):
                self.lanes[place].cut_off()
                if command.reset:
                    self.over(place)
            elif isinstance(command, Finish) and self.rand.random() < 0.5:
                self.over(place)
        if self.pipeline.window is not None:
            self.pipeline.opened(self.time())
        self.pipeline.response_wants.clear()
        if self.pipeline.rest:
            self.do(self.pipeline.work(self.now))

    def over(self, place: tuple[int, int]) -> None:
        lane = self.lanes.pop(place)
        for number, _, _ in lane.queue:
            lane.leave_out(number)
        lane.end("given up")

    # --- what must hold

    def paired(self, exchange: Exchange) -> None:
        """In place of the comparison's: responses name the request that they are to."""
        asked = re.search(rb"\nN: (\d+)", exchange.asked.head)
        responses = [delivery.response for delivery in exchange.deliveries.values()]
        if self.orderly and not exchange.asked.checks:
            responses.append(exchange.production)
        for response in responses:
            named = re.search(rb"\nX-Id: (\d+)", response.head)
            assert asked is None or named is None or asked[1] == named[1], "a response to another request"
        self.sink(exchange)

    def within_bounds(self) -> None:
        assert 0 <= self.comparison._memory.free <= self.spec.compare.held_bytes, "more is held than may be"

    def judge(self) -> None:
        assert self.comparison._memory.free == self.spec.compare.held_bytes, "something is not given back"
        text = msgspec.json.encode(self.pipeline.state())
        msgspec.json.encode(self.pipeline.brief(self.now))
        for label, state in merge([self.comparison.snapshot()], self.spec.compare).items():
            counted = sum(each.pairs for each in state.endpoints.values()) + sum(state.unpaired.values())
            assert state.requests == counted, f"{label}: {state.requests} requests, {counted} of them have an outcome"
            msgspec.json.encode(figures("tap", label, state, self.spec.compare, VerdictLimits()))
        left = self.secrets & {*re.findall(rb"S3CR3T\d+X", text + unquote_to_bytes(text))}
        assert not left, f"{sorted(left)} can be read"


@pytest.mark.parametrize("first", range(0, 4 * SEEDS, SEEDS))
def test_whatever_is_answered_counts_are_exact_pairs_are_right_and_no_secret_is_shown(first: int) -> None:
    for seed in range(first, first + SEEDS):
        try:
            World(seed).run()
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
