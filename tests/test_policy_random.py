# SPDX-License-Identifier: Apache-2.0
"""Random taps and random requests on random connections: whatever clients send, all of it is accounted for at every
step, what leaves for a shadow is whole requests, and nothing leaves that was to be taken out.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import msgspec
import pytest

from policy_cases import key
from random_clients import RandomRequests
from random_taps import RandomTap
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
    Segment,
    Send,
)
from tapmirror.ledger import Ledger
from tapmirror.pipeline import Pipeline
from tapmirror.policy import HookRequest, Policy
from tapmirror.spec import Limits, TapSpec

SEEDS: Final = 130
"""Of each group.  A failure names its seed: `World(seed).run()` repeats it."""
ODD: Final = (b"\0", b"\r", b"\n", b"\r\n", b" ", b":", b"\xff", b"0", b"\r\n\r\n", b"GET / HTTP/1.1\r\n", b"%", b'"')
CHANGES: Final[dict[str, Sequence[object]]] = {
    "method": ("HEAD", "CONNECT", "", "a b", None),
    "target": ("/x", "x y", "/\r\nA: b", "*", "", "\xe9\u20ac", 5),
    "headers": (
        (("Host", "x"),),
        (("Host", "x"), ("Content-Length", "5")),
        (("Host", "x"), ("X", "y\r\nZ: w")),
        (("Host", "x"), ("X", "\0")),
        (("Host", "x"), ("Host", "y")),
        (("X y", "1"),),
        ((1, 2),),
        (),
        None,
    ),
    "body": (b"", b"new", bytearray(b"x"), memoryview(b"abc"), "text", None),
    "connection": (-1,),
}
"""What a hook may make of a request, valid or not."""


def hook(rand: random.Random) -> Callable[[HookRequest], object]:
    """A user's function that does anything."""

    def call(request: HookRequest) -> object:
        kind = rand.random()
        if kind < 0.5:
            return request
        if kind < 0.6:
            raise rand.choice((ValueError, SystemExit, RecursionError))
        if kind < 0.7:
            return rand.choice((None, 1, "x", b"GET / HTTP/1.1"))
        field = rand.choice(list(CHANGES))
        return request.replace(**{field: rand.choice(CHANGES[field])})

    return call


# --- what leaves

TOKEN: Final = rb"[!#-'*+\-.^_`|~0-9A-Za-z]+"
REQUEST: Final = re.compile(
    rb"(%b) ([!-~\x80-\xff]+) HTTP/1\.[01]\r\n((?:%b:[\t -~\x80-\xff]*\r\n)*)\r\n" % (TOKEN, TOKEN)
)
CHUNKS: Final = re.compile(rb"0\r\n(?:%b:[\t -~\x80-\xff]*\r\n)*\r\n" % TOKEN)


def wrong(data: bytes) -> str:
    """What keeps it from being one request, to a server that knows nothing of ours; empty: nothing does."""
    head = REQUEST.match(data)
    if head is None:
        return "no head"
    method, target, lines = head.groups()
    other = {b"CONNECT": rb"[^/?#]+", b"OPTIONS": rb"\*"}.get(method, rb"(?!)")
    if (method == b"CONNECT" or not re.match(rb"/|[A-Za-z]+://", target)) and not re.fullmatch(other, target):
        return "no target"
    fields = [(name.lower(), value.strip(b" \t")) for name, _, value in (x.partition(b":") for x in lines.splitlines())]
    values = dict(fields)
    framing = [name for name, _ in fields if name in (b"host", b"content-length", b"transfer-encoding")]
    if len(framing) > len(set(framing)) or {b"content-length", b"transfer-encoding"} <= values.keys():
        return f"framed twice: {framing}"
    at = head.end()
    if b"transfer-encoding" in values:
        while size := int(data[at : data.index(b"\r\n", at)].partition(b";")[0], 16):
            at = data.index(b"\r\n", at) + 2 + size
            if data[at : at + 2] != b"\r\n":
                return "a torn chunk"
            at += 2
        last = CHUNKS.fullmatch(re.sub(rb"\A0+[^\r]*", b"0", data[at:]))
        return "" if last is not None else "a torn end"
    length = int(values.get(b"content-length", b"0"))
    return "" if len(data) - at == length else f"{len(data) - at} bytes of a body of {length}"


class Connection:
    """One to a shadow."""

    def __init__(self) -> None:
        self.under_way: bytes | None = None
        self.flags = 0


class Shadows:
    """What the pipeline would have replay do, for all targets."""

    def __init__(self) -> None:
        self.open: dict[tuple[int, int], Connection] = {}
        self.got: defaultdict[int, list[bytes]] = defaultdict(list)
        """By target: requests, also those that were cut off, and pieces of tunnels."""
        self.bytes: defaultdict[int, int] = defaultdict(int)
        self.requests: defaultdict[int, int] = defaultdict(int)

    def do(self, command: Command) -> None:
        place = (command.target, command.flow)
        if isinstance(command, Open):
            assert place not in self.open, "opened twice"
            self.open[place] = Connection()
            return
        connection = self.open[place]
        if isinstance(command, Send):
            self._send(connection, command)
        elif isinstance(command, Abort):
            if connection.under_way is not None:
                self.got[command.target].append(connection.under_way)
                connection.under_way = None
            else:
                assert command.reset or connection.flags & TUNNEL, "nothing is under way"
        elif isinstance(command, Finish):
            assert connection.under_way is None, "an end amid a request"
        if isinstance(command, Finish) or (isinstance(command, Abort) and command.reset):
            del self.open[place]

    def _send(self, connection: Connection, command: Send) -> None:
        self.bytes[command.target] += command.size
        if command.flags & START:
            assert connection.under_way is None, "a request amid another"
            self.requests[command.target] += 1
            connection.under_way, connection.flags = b"", command.flags
        if connection.under_way is None:
            assert connection.flags & TUNNEL, f"no part of a request: {bytes(command.data)!r}"
            self.got[command.target].append(bytes(command.data))
            return
        connection.under_way += command.data
        if command.flags & END:
            whole, connection.under_way = connection.under_way, None
            assert not (problem := wrong(whole)), f"{problem}: {whole!r}"
            assert bool(connection.flags & NO_BODY) == whole.startswith(b"HEAD "), "it has a response of another kind"
            self.got[command.target].append(whole)


class Tap:
    """Pipeline and policy of a tap, and its shadows; after each step all bytes and requests are counted."""

    def __init__(self, spec: TapSpec, rand: random.Random) -> None:
        self.spec = spec
        self.ledger = Ledger()
        function = hook(rand) if spec.hook is not None else None
        ledgers = [Ledger() for _ in spec.shadows]
        self.policy = Policy(spec, ledgers, secret=b"k" * 32, epoch=1e9, hook=function)
        self.pipeline = Pipeline(spec, self.ledger, self.policy)
        self.shadows = Shadows()
        self.now = 1.0
        self.fed = 0

    def feed(self, segment: Segment) -> None:
        if not segment[1] & FROM_SERVER:
            self.fed += segment[4]
        self.do(self.pipeline.feed(segment, self.now))

    def do(self, commands: Sequence[Command]) -> None:
        for command in commands:
            self.shadows.do(command)
        self._count()
        while self.pipeline.rest:
            self.do(self.pipeline.work(self.now))

    def close(self) -> None:
        self.do(self.pipeline.close(self.now))
        assert self.pipeline.held() == (0, 0)
        assert self.policy._held_bytes == 0
        assert not any(each.held_bytes or each.held_requests for each in self.policy.destinations)

    def _count(self) -> None:
        size = self.ledger.bytes.settled() + self.pipeline.held()[1]
        for each in self.policy.destinations:
            account, copies = each.ledger, each.spec.copies
            sent = sum(self.shadows.bytes[target] for target in each.targets)
            assert copies * (self.fed - size) == account.bytes.settled() + sent + each.held_bytes, "bytes unaccounted"
            sent = sum(self.shadows.requests[target] for target in each.targets)
            seen = copies * self.ledger.requests.seen
            assert seen == account.requests.settled() + sent + each.held_requests, "requests unaccounted"
        held = [talk.held for talk in self.policy._talks.values() if talk.held is not None]
        assert sum(len(each.body) for each in held) <= self.policy._held_bytes <= self.spec.limits.held_bytes


class World:
    """Clients of a tap, some of which send what is no HTTP, or lose some of it; and whoever changes the tap."""

    def __init__(self, seed: int) -> None:
        self.rand = rand = random.Random(seed)
        spec = RandomTap(rand).tap()
        self.tap = Tap(spec, rand)
        self.requests = RandomRequests(rand, spec.redact)
        self.hostility = rand.choice((0.0, 0.0, 0.3))
        self.secrets: set[bytes] = set()

    def run(self) -> None:
        clients = [Client(self, number) for number in range(self.rand.randint(1, 5))]
        while clients:
            client = self.rand.choice(clients)
            if not client.step():
                clients.remove(client)
            self.something_happens()
        self.tap.close()
        everything = b"\n".join(text for got in self.tap.shadows.got.values() for text in got)
        left = self.secrets & {*re.findall(rb"S3CR3T\d+X", everything + unquote_to_bytes(everything))}
        assert not left, f"{sorted(left)} left the host"

    def something_happens(self) -> None:
        tap, pick = self.tap, self.rand.choice
        kind = self.rand.random()
        if kind < 0.05:
            tap.now += pick((0, 0.1, 5, 1000 if self.rand.random() < 0.05 else 1))
            tap.do(tap.pipeline.expire(tap.now))
        elif kind < 0.07:
            tap.policy.set_percent(pick((0, 50, 100)))
        elif kind < 0.09:
            tap.policy.set_thresholds(pick(([], [self.rand.randrange(1 << 32) for _ in tap.spec.shadows])))
        elif kind < 0.092:
            tap.do(tap.pipeline.drop_above(pick((1 << 31, 1 << 32)), tap.now))


class Client:
    """A connection, and all that will come over it."""

    def __init__(self, world: World, number: int) -> None:
        self.tap = world.tap
        self.rand = rand = world.rand
        self.key = key(f"10.0.{number}.{rand.randint(1, 9)}", 40_000 + number)
        self.stream = b""
        self.begins = [0]
        self.odd = rand.random() < world.hostility
        for _ in range(rand.choice((1, 3, 10))):
            asked = world.requests.request()
            self.stream += asked.data
            self.begins.append(len(self.stream))
            if not self.odd:
                world.secrets.update(asked.secrets)
            if asked.tunnel and rand.random() < 0.5:
                self.stream += b"\x81frames of a tunnel"
                break
            if asked.last:
                break
        if self.odd:
            self.stream = mutated(rand, self.stream)
        self.sizes = rand.choice(((1,), (1, 7, 100), (10, 1000, 5000), (100_000,)))
        self.at = 0
        self.answered = 1
        self.began = rand.random() < 0.05
        """Or the tap did, when it stood."""

    def put(self, flags: int, data: bytes = b"", length: int = 0) -> None:
        """A segment of its own, or of its server's with so many bytes."""
        ends = (self.answered, 1000 + self.at) if flags & FROM_SERVER else (1000 + self.at, self.answered)
        self.tap.feed((self.key, flags, *ends, length or len(data), memoryview(bytearray(data)), 0))

    def step(self) -> bool:
        """Send something; False: it was the last."""
        if not self.began:
            self.began = True
            self.put(ACCEPTED)
            return True
        size = self.rand.choice(self.sizes)
        ends = [begin for begin in self.begins if self.at < begin <= self.at + size]
        if ends and self.rand.random() < 0.5:  # as clients do: a request begins a segment
            size = ends[0] - self.at
        for _ in range(20 if size == 1 else 1):
            piece = self.stream[self.at : self.at + size]
            if piece and not (self.odd and self.rand.random() < 0.05):  # else it is lost
                self.put(ACK, piece)
            self.at += len(piece)
        if self.at in self.begins or self.rand.random() < 0.6:
            self.put(FROM_SERVER | ACK, length=10)
            self.answered += 10
        if self.at < len(self.stream) and self.rand.random() > 0.002:
            return True
        if self.rand.random() < 0.8:
            self.put(self.rand.choice((FIN, RST)) | ACK)
        return False


def mutated(rand: random.Random, stream: bytes) -> bytes:
    changed = bytearray(stream)
    for _ in range(rand.choice((1, 3))):
        at = rand.randrange(len(changed) + 1)
        how = rand.random()
        if how < 0.3:
            changed[at : at + 1] = bytes([rand.randrange(256)])
        elif how < 0.6:
            changed[at:at] = rand.choice(ODD)
        elif how < 0.8:
            del changed[at : at + rand.choice((1, 2, 50))]
        else:
            changed[at:at] = changed[at : at + rand.choice((10, 100))]
    return bytes(changed)


def cut(seed: int, sizes: Sequence[int]) -> Any:
    """What all shadows got of a client, whose stream came in pieces of these sizes."""
    rand = random.Random(seed)
    spec = RandomTap(rand).tap()
    roomy = msgspec.structs.replace(Limits(), held_bytes=spec.limits.held_bytes, queue_bytes=spec.limits.queue_bytes)
    requests = RandomRequests(rand, spec.redact)
    stream = b"".join(requests.request().data for _ in range(5))
    tap = Tap(msgspec.structs.replace(spec, limits=roomy), random.Random(seed))
    tap.feed((key(), ACCEPTED, 1000, 1, 0, b"", 0))
    pieces = random.Random(0)
    at = 0
    while at < len(stream):
        piece = stream[at : at + pieces.choice(sizes)]
        tap.feed((key(), ACK, 1000 + at, 1, len(piece), memoryview(piece), 0))
        at += len(piece)
    tap.close()
    return {target: b"".join(got) for target, got in tap.shadows.got.items() if got}


@pytest.mark.parametrize("first", range(0, 4 * SEEDS, SEEDS))
def test_whatever_clients_send_whole_requests_leave_without_secrets_and_books_are_exact(first: int) -> None:
    for seed in range(first, first + SEEDS):
        try:
            World(seed).run()
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error


def test_however_a_stream_is_cut_the_same_leaves() -> None:
    for seed in range(SEEDS):
        whole = cut(seed, (1 << 20,))
        assert cut(seed, (1, 2, 50, 1000)) == whole, f"seed {seed}"
