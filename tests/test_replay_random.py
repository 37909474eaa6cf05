# SPDX-License-Identifier: Apache-2.0
"""Random conversations with random hostile shadows: what reaches a shadow is whole requests of one client in their
order, none twice but what is counted so; books and counters are exact, and nothing stays behind.
"""

from __future__ import annotations

import contextlib
import random
import re
import select
import socket
from collections import Counter
from collections.abc import Callable
from typing import Final

import pytest

from replay_bench import CLOSE, GIVEN_UP, KEEP, OK, RESET, WHOLE, Bench
from tapmirror.events import END, NO_BODY, START, TUNNEL, Abort, DropReason, Excuse, Finish, Open, Turn
from tapmirror.replay.lane import ITEM_BYTES
from tapmirror.spec import Pacing

SEEDS: Final = 150
"""Of each group.  A failure names its seed: `World(seed).run()` repeats it."""
LAST_STEPS: Final = 60
"""Seconds of the reactor's clock after which nothing waits any more, whatever the shadow does."""
CHUNK: Final = 1 << 20
NAME: Final = re.compile(rb"\w+ /((\d+)-(\d+)) ")
HOSTILE: Final = (
    CLOSE,
    OK,
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
    b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\nabc",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    b"garbage\r\n\r\n",
    b"\x15\x03\x03\0\2\2\x28",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 500,
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 200",
    b"\r\n",
)


class Request:
    """What was given of a request; `whole` with its end."""

    def __init__(self, data: bytes, *, whole: bool) -> None:
        self.data = data
        self.whole = whole


class Client:
    """A connection that is mirrored; `under_way` is its request that has no end yet, `stream` what a raw one sent."""

    def __init__(self, flow: int, *, http: bool) -> None:
        self.flow = flow
        self.http = http
        self.under_way: Request | None = None
        self.stream = b""


class Connection:
    """The shadow's side of one, and what came over it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.got = b""
        self.answered = 0
        self.half_closed = False
        self.ended = False
        """The reactor closed it first, and not with a reset: what came is taken for all."""

    def owed(self) -> int:
        """Requests that were read, the last perhaps in part, and have no response yet."""
        return self.got.count(b" HTTP/1.1\r\n") - self.answered


class Shadow:
    """Answers when it likes and what it likes, or ends connections in any way; its buffers are small."""

    def __init__(self, bench: Bench, rand: random.Random) -> None:
        self.bench = bench
        self.rand = rand
        self.hostility = rand.choice((0.0, 0.1, 0.5))
        self.closes = rand.choice((0.0, 0.6))
        self.all: list[Connection] = []
        self.live: list[Connection] = []
        bench.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    def accept(self) -> None:
        while select.select([self.bench.listener], [], [], 0)[0]:
            sock, _ = self.bench.listener.accept()
            sock.setblocking(False)
            self.bench.socks.append(sock)
            self.all.append(Connection(sock))
            self.live.append(self.all[-1])

    def end(self, connection: Connection) -> None:
        self.live.remove(connection)
        connection.sock.close()

    def read(self, connection: Connection, most: int = CHUNK) -> None:
        before = len(connection.got)
        try:
            while (left := before + most - len(connection.got)) > 0:
                data = connection.sock.recv(left)
                if not data:
                    connection.ended = not connection.half_closed
                    if self.rand.random() < 0.7:
                        self.end(connection)
                    return
                connection.got += data
        except BlockingIOError:
            pass
        except OSError:
            self.end(connection)

    def read_all(self) -> None:
        self.accept()
        for connection in list(self.live):
            self.read(connection)

    def answer(self, connection: Connection, data: bytes) -> None:
        connection.answered += 1
        try:
            connection.sock.send(data)
        except BlockingIOError:
            pass
        except OSError:
            if connection in self.live:
                self.end(connection)

    # --- what it does of itself

    def read_some(self) -> None:
        if self.live:
            self.read(self.rand.choice(self.live), self.rand.choice((1, 100, 5000)))

    def answer_some(self) -> None:
        """Mostly what is owed; else whatever, asked or not."""
        self.read_all()
        for connection in list(self.live) if self.rand.random() < 0.5 else self.live[-1:]:
            if self.rand.random() < self.hostility:
                self.answer(connection, CLOSE if self.rand.random() < self.closes else self.rand.choice(HOSTILE))
            else:
                for _ in range(connection.owed()):
                    self.answer(connection, KEEP)  # right for a HEAD, too

    def end_some(self) -> None:
        if not self.live:
            return
        connection = self.rand.choice(self.live)
        how = self.rand.choice(("reset", "close", "half"))
        if how == "half":
            connection.half_closed = True
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_WR)
            return
        if how == "reset":
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.end(connection)


class World:
    """Clients, the reactor that mirrors them under tight bounds, and its shadow."""

    def __init__(self, seed: int) -> None:
        self.rand = rand = random.Random(seed)
        self.bench = Bench(
            pacing=Pacing.WAIT if rand.random() < 0.2 else Pacing.ASAP,
            queue_bytes=rand.choice((4096, 65536, 1 << 20)),
            queues_bytes=rand.choice((4096, 8192, 20_000, 1 << 20, 1 << 20)),
            connections=rand.choice((2, 100)),
        )
        self.shadow = Shadow(self.bench, rand)
        self.repeats = rand.choice(((1, 3), (1, 3, 400, 4000)))
        self.kinds = rand.choice(((6, 1, 1, 2), (9, 1, 0, 0)))
        self.tunnels = rand.choice((0.0, 0.1, 0.2))
        self.requests: dict[bytes, Request] = {}
        self.streams: list[Client] = []
        self.flows = self.numbers = 0
        self.clients: list[Client] = []
        self.actions: dict[Callable[[], None], float] = {
            self.connect: 1,
            self.send: 49,
            self.turn: 6,
            self.abort: 4,
            self.finish: 2,
            self.excuse: 2,
            self.time_passes: 15,
            self.shadow.read_all: 8,
            self.shadow.read_some: 3,
            self.shadow.answer_some: 20,
            self.shadow.end_some: 2,
        }

    def run(self) -> None:
        with self.bench:
            self.connect()
            for _ in range(self.rand.randint(200, 500)):
                (act,) = self.rand.choices(list(self.actions), list(self.actions.values()))
                act()
                within_bounds(self.bench)
            self.last_steps()
            assert self.bench.reactor.idle(), "something waits for ever"
            self.shadow.accept()
            self.bench.reactor.close(DropReason.SHUTDOWN)
            self.shadow.read_all()
            nothing_left(self.bench)
            came = Counter[bytes]()
            for connection in self.shadow.all:
                if connection.got.startswith(b"<"):
                    assert any(client.stream.startswith(connection.got) for client in self.streams), "a stream is torn"
                else:
                    came.update(whole_requests(connection, self.requests))
            sent_once(came, self.bench)

    def last_steps(self) -> None:
        """All clients end, and the shadow reads; it may or may not answer."""
        for client in self.clients:
            cut = client.under_way is not None
            self.bench.give(Abort(client.flow, GIVEN_UP, reset=True) if cut else Finish(client.flow))
        helpful = self.rand.random() < 0.5
        for _ in range(LAST_STEPS):
            self.shadow.read_all()
            for connection in list(self.shadow.live) if helpful else ():
                self.shadow.answer(connection, KEEP)
            self.iterate(1.0)
            if self.bench.reactor.idle():
                return

    def iterate(self, seconds: float) -> None:
        """As `Bench.iterate`, but it waits for nothing."""
        self.bench.now += seconds
        for _ in range(3):
            self.bench.reactor.run_once(0, lambda: self.bench.now)
        self.bench.reactor.expire(self.bench.now)
        self.bench.check()

    # --- what happens

    def connect(self) -> None:
        self.flows += 1
        client = Client(self.flows, http=self.rand.random() < 0.8)
        self.clients.append(client)
        if not client.http:
            self.streams.append(client)
        self.bench.give(Open(client.flow, client.http))

    def send(self) -> None:
        if not self.clients:
            return
        client = self.rand.choice(self.clients)
        self.numbers += 1
        if not client.http:
            data = b"<%d:%d>" % (client.flow, self.numbers) * self.rand.choice(self.repeats)
            client.stream += data
            self.bench.send(client.flow, data, 0)
        elif client.under_way is not None:
            self.go_on(client, client.under_way)
        else:
            self.ask(client)

    def ask(self, client: Client) -> None:
        method, flags, body = self.rand.choices(
            ((b"GET", WHOLE, 0), (b"HEAD", WHOLE | NO_BODY, 0), (b"POST", WHOLE, 9000), (b"POST", START, 0)),
            self.kinds,
        )[0]
        if method == b"GET" and self.rand.random() < self.tunnels:
            flags |= TUNNEL
        name = b"%d-%d" % (client.flow, self.numbers)
        data = b"%b /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (method, name) + b"z" * self.rand.choice((body and 1, body))
        self.requests[name] = request = Request(data, whole=bool(flags & END))
        if not request.whole:
            client.under_way = request
        self.bench.send(client.flow, data, flags)

    def go_on(self, client: Client, request: Request) -> None:
        data = b"B" * self.rand.choice((1, 10, 5000, 70_000))
        request.data += data
        request.whole = self.rand.random() < 0.5
        if request.whole:
            client.under_way = None
        self.bench.send(client.flow, data, END if request.whole else 0)

    def turn(self) -> None:
        if self.clients:
            self.bench.give(Turn(self.rand.choice(self.clients).flow, self.rand.choice((0, 1, 50))))

    def abort(self) -> None:
        client = self.rand.choice(self.clients) if self.clients else None
        if client is None or (client.http and client.under_way is None):
            return
        client.under_way = None
        reset = self.rand.random() < 0.5
        if reset:
            self.clients.remove(client)
        self.bench.give(Abort(client.flow, self.rand.choice((DropReason.GAP, GIVEN_UP)), reset=reset))

    def finish(self) -> None:
        client = self.rand.choice(self.clients) if self.clients else None
        if client is not None and client.under_way is None:
            self.clients.remove(client)
            self.bench.give(Finish(client.flow, answered=self.rand.random() < 0.5))

    def excuse(self) -> None:
        if self.clients:
            self.bench.give(Excuse(self.rand.choice(self.clients).flow))

    def time_passes(self) -> None:
        self.iterate(self.rand.choice((0, 0, 0, 0.06, 1.1, 6)))


# --- what must hold


def within_bounds(bench: Bench) -> None:
    """The part taken last may pass the bound by its item; turns, and what goes again, count apart."""
    memory, lanes = bench.reactor._memory, bench.reactor._lanes.values()
    parts = sum(item.answered < 0 and not item.repeated for lane in lanes for item in lane.queue)
    assert memory.held + parts * ITEM_BYTES <= memory.all_bytes + ITEM_BYTES, "the queues pass their bound"
    assert memory.items == sum(len(lane.queue) for lane in lanes), "items queued are miscounted"
    for lane in lanes:
        queued = sum(len(item.data) for item in lane.queue if not item.repeated)
        assert lane.queued == queued, f"flow {lane.flow} miscounts what it has queued"


def nothing_left(bench: Bench) -> None:
    memory = bench.reactor._memory
    left = {name: getattr(memory, name) for name in ("bytes", "held", "items", "repeats", "requests")}
    left["again"] = memory.resend_quota.count
    assert not any(left.values()), f"counters of memory are not back to 0: {left}"


def whole_requests(connection: Connection, requests: dict[bytes, Request]) -> list[bytes]:
    """Names of those that came whole over one connection.  The last may be cut, and nothing is behind a cut one."""
    got = connection.got
    came: list[bytes] = []
    flow, last, begin = None, -1, 0
    while begin < len(got):
        head = NAME.match(got, begin)
        if head is None:
            rest = got[begin:]
            known = any(each.data.startswith(rest) for each in requests.values())
            assert known and not connection.ended, f"no request behind {came}: {rest[:50]!r}"
            break
        name, number = head[1], int(head[3])
        assert flow in (None, head[2]), f"{name!r} went over a connection of flow {flow!r}"
        assert number > last, f"{name!r} went behind number {last}"
        flow, last = head[2], number
        wanted = requests[name]
        piece = got[begin : begin + len(wanted.data)]
        assert wanted.data.startswith(piece), f"{name!r} is torn or changed: {piece[:50]!r}, {len(piece)} bytes"
        begin += len(wanted.data)
        if begin <= len(got) and wanted.whole:
            came.append(name)
        else:
            assert begin >= len(got), f"something went behind {name!r}, which has no end"
            assert not connection.ended, f"{name!r} was cut, and the connection not reset"
    return came


def sent_once(came: Counter[bytes], bench: Bench) -> None:
    again = bench.ledger.events.get("sent_again", 0)
    twice = [name for name, count in came.items() if count > 1]
    assert came.total() - len(came) <= again, f"{twice} went again, and {again} are counted"
    assert came.total() <= bench.ledger.requests.mirrored + again, "more went than is counted"


@pytest.mark.parametrize("first", range(0, 4 * SEEDS, SEEDS))
def test_a_hostile_shadow_gets_whole_requests_in_order_and_books_are_exact(first: int) -> None:
    for seed in range(first, first + SEEDS):
        try:
            World(seed).run()
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
