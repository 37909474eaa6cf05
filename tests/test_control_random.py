# SPDX-License-Identifier: Apache-2.0
"""Random clients of the control socket: requests in pieces, several at once, rubbish, lines without end; clients that
read slowly, not at all, half-close, or leave amid a reply.

Whatever they do, each gets the replies to its requests in their order until it is given up, what is held is bounded,
the loop meets no exception, somebody who asks properly is served at once, and in the end nothing is left.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from tapmirror.control import server
from tapmirror.control.messages import List, Logs, Pause, ProtocolError, Report, Status, read_request
from tapmirror.control.server import Call, Server
from tapmirror.supervisor.serve import sealed

LONGEST: Final = 4_000
HELD: Final = 12_000
CLIENTS: Final = 6
REPLY: Final = 400_000
"""Bytes of a long reply: more than a socket holds."""


class World:
    """A server with small limits, in a loop that is driven step by step, and a clock of its own."""

    def __init__(self, path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rand = random.Random(seed)
        self.now = 1_000.0
        self.errors: list[Any] = []
        self.late: list[Call] = []
        self.clients: list[RandomClient] = []
        self.path = path
        for name, value in {
            "MAX_MESSAGE": LONGEST,
            "MAX_HELD": HELD,
            "MAX_CLIENTS": CLIENTS,
            "READ": self.rand.choice((7, 100, 65_536)),
            "time": SimpleNamespace(monotonic=lambda: self.now),
        }.items():
            monkeypatch.setattr(server, name, value)
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))

        async def made() -> Server:
            return Server(path, self.serve, lambda *who: self.errors.append(who), group="operators", gid=None)

        self.server = self.loop.run_until_complete(made())

    def serve(self, call: Call) -> None:
        match call.request:
            case List():
                call.answer({"taps": []})
            case Status():
                self.late.append(call)
            case Logs(after=size):
                call.answer({"lines": "x" * min(size, REPLY)})
            case Report(name=name):
                call.answer({"tap": name}, sealed(b"report"))
            case Pause():
                call.refuse("not_found", "no such tap")

    def turn(self, count: int = 1) -> None:
        """Iterations of the server's loop."""
        for _ in range(count):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()
        assert not self.errors, self.errors
        connections = self.server._clients
        assert len(connections) <= CLIENTS
        assert all(len(each.lines) <= LONGEST + server.READ for each in connections)

    def step(self) -> None:
        """Something happens."""
        rand, roll = self.rand, self.rand.random()
        if roll < 0.1 and len(self.clients) < 2 * CLIENTS:
            self.clients.append(RandomClient(self))
        elif roll < 0.2 and self.late:
            self.late.pop(rand.randrange(len(self.late))).answer({"late": True})
        elif roll < 0.22:
            self.now += rand.choice((0.1, 0.1, 0.1, 1.0, 6.0, 11.0))
            self.server.expire(self.now)
            assert sum(len(each.lines) for each in self.server._clients) <= HELD
        elif roll < 0.25:
            self.ask()
        elif self.clients:
            rand.choice(self.clients).act()
        self.turn(rand.randint(0, 3))

    def ask(self) -> None:
        """Somebody asks properly; where all places are taken by who waits for a reply, that is said."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self.path))
            sock.setblocking(False)
            sock.send(b'{"v":1,"id":7,"op":"list"}\n')
            self.turn(8)
            reply = json.loads(sock.recv(4096))
        busy = sum(each.waits for each in self.server._clients) >= CLIENTS
        assert reply == {"v": 1, "id": 7, "ok": {"taps": []}} or (busy and reply["error"]["code"] == "busy")

    def close(self) -> None:
        """All leave; nothing is left."""
        for client in self.clients:
            client.leave()
        for _ in range(2 * LONGEST):  # what they sent before may come by a few bytes an iteration
            while self.late:
                self.late.pop().answer({})
            self.turn()
            if not self.server._clients:
                break
        assert not self.server._clients
        self.loop.call_soon(self.server.close)
        self.turn(2)
        self.loop.close()


class RandomClient:
    """What it has sent, and what it has been answered."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(world.path))
        self.sock.setblocking(False)
        self.number = 0
        self.waits = b""
        """To be sent."""
        self.sent = b""
        self.got = b""
        self.over = False

    def act(self) -> None:
        """Send something, read something, or leave."""
        roll = self.world.rand.random()
        if self.over:
            self.leave()
        elif roll < 0.55:
            self.send()
        elif roll < 0.9:
            self.read(self.world.rand.choice((1, 100, 100_000, 1 << 20)))
        elif roll < 0.98:
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError:
                self.over = True
        else:
            self.leave()

    def leave(self) -> None:
        self.check()
        self.sock.close()
        self.world.clients = [each for each in self.world.clients if each is not self]

    def line(self) -> bytes:
        """The next thing that it says."""
        rand, self.number = self.world.rand, self.number + 1
        head = b'{"v":1,"id":%d,"op":' % self.number
        if rand.random() < 0.07:  # behind which it is not heard any more
            return rand.choice(
                (
                    b'{"id":3}\n',
                    b"\n",
                    rand.randbytes(rand.randint(1, 60)),
                    b"[" * rand.randint(1, LONGEST) + b"\n",
                    head + b'"pause","name":"' + b"y" * rand.choice((LONGEST - 40, 2 * LONGEST)) + b'"}\n',
                )
            )
        return rand.choice(
            (
                head + b'"list"}\n',
                head + b'"list"}\n' * rand.randint(1, 4),
                head + b'"status"}\n',
                head + b'"logs","name":"web","after":%d}\n' % rand.choice((1, 5_000, REPLY)),
                head + b'"report","name":"web"}\n',
                head + b'"pause","name":"web"}\n',
                head + b'"nonsense"}\n',
                head + b'"list","more":1}\n',
                b'{"v":2,"id":"x","op":"list"}\n',
                head + b'"pause","name":"' + b"y" * 100 + b'"}\n',
            )
        )

    def send(self) -> None:
        """A piece of it, as much as goes."""
        rand = self.world.rand
        self.waits = self.waits or b"".join(self.line() for _ in range(rand.choice((1, 1, 1, 3))))
        piece = self.waits[: rand.choice((1, 10, 1 << 20, 1 << 20))]
        try:
            count = self.sock.send(piece)
        except BlockingIOError:
            return
        except OSError:
            self.over = True
            return
        self.sent += piece[:count]
        self.waits = self.waits[count:]

    def read(self, most: int) -> None:
        try:
            data = self.sock.recv(most)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.over = self.over or not data
        self.got += data

    def check(self) -> None:
        """What it has been answered are replies to what it has sent, in their order."""
        replies = [json.loads(line) for line in self.got.split(b"\n")[:-1]]
        if replies and replies[0].get("error", {}).get("code") == "busy":
            assert len(replies) == 1
            return
        for reply, wanted in zip(replies, self.wanted(), strict=False):
            assert (reply.get("id"), "ok" in reply) == wanted, (reply, wanted)
        assert len(replies) <= len([*self.wanted()])

    def wanted(self) -> Iterator[tuple[Any, bool]]:
        """Of each line: the id of its reply, and whether it is done; nothing is read behind one without an id."""
        *lines, rest = self.sent.split(b"\n")
        for line in lines:
            if len(line) > LONGEST:
                yield None, False
                return
            try:
                request = read_request(line)
            except ProtocolError as error:
                yield error.id, False
                if error.id is None:
                    return
            else:
                yield request.id, not isinstance(request, Pause)
        if len(rest) > LONGEST:
            yield None, False


@pytest.mark.parametrize("seed", range(30))
def test_random_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    world = World(tmp_path / "s", seed, monkeypatch)
    for _ in range(1_500):
        world.step()
    world.close()
    assert len(os.listdir("/proc/self/fd")) == before, "no descriptor is left"
