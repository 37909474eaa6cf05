# SPDX-License-Identifier: Apache-2.0
"""Several reactors as one: each command to its target, and all of them served."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lab import PATIENCE
from tapmirror.events import END, START, DropReason, Finish, Open, Send
from tapmirror.ledger import Ledger
from tapmirror.replay import Reactor, Replay
from tapmirror.spec import TapSpec, parse_shadow

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Three:
    """Three shadows; the second refuses."""

    def __init__(self) -> None:
        self.listeners = [socket.socket() for _ in range(3)]
        for each in self.listeners:
            each.bind(("127.0.0.1", 0))
        addresses = [each.getsockname() for each in self.listeners]
        for each in (self.listeners[0], self.listeners[2]):
            each.listen()
        spec = TapSpec(iface="lo", ports=(80,), shadows=tuple(parse_shadow(f"{h}:{p}") for h, p in addresses))
        self.ledgers = [Ledger() for _ in addresses]
        self.replay = Replay(
            [
                Reactor([(socket.AF_INET, address)], spec, shadow, ledger)
                for address, shadow, ledger in zip(addresses, spec.shadows, self.ledgers, strict=True)
            ]
        )

    def iterate(self) -> None:
        """What has happened is seen, however late."""
        for _ in range(5):
            self.replay.run_once(0.01, time.monotonic)


@pytest.fixture
def three() -> Iterator[Three]:
    made = Three()
    yield made
    made.replay.close(DropReason.SHUTDOWN)
    for each in made.listeners:
        each.close()


def test_a_shadow_that_has_nothing_to_say_costs_no_turn(three: Three, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = {1: 0, 2: 0}
    for target in turns:
        reactor = three.replay.reactors[target]

        def counted(timeout: float, clock: Any, *, target: int = target, run_once: Any = reactor.run_once) -> None:
            turns[target] += 1
            run_once(timeout, clock)

        monkeypatch.setattr(reactor, "run_once", counted)
    three.iterate()
    assert turns == {1: 0, 2: 0}
    now = time.monotonic()
    three.replay.execute([Open(1, True, b"", 2)], now)
    three.replay.execute([Send(1, GET, len(GET), START | END, 2)], now)
    sock, _ = three.listeners[2].accept()
    with sock:
        three.iterate()
        assert sock.recv(100) == GET
        sock.sendall(OK)
        three.iterate()
    assert three.ledgers[2].responses == {"2xx": 1}
    assert turns[1] == 0 and 0 < turns[2] < 10


def test_commands_go_to_their_targets(three: Three) -> None:
    now = time.monotonic()
    for target in range(3):
        three.replay.execute([Open(1, True, b"", target)], now)
        three.replay.execute([Send(1, GET, len(GET), START | END, target)], now)
    assert three.replay.next_deadline() is not None
    three.iterate()
    for target in (0, 2):
        sock, _ = three.listeners[target].accept()
        with sock:
            assert sock.recv(1000) == GET
            sock.sendall(OK)
            three.iterate()
        assert three.ledgers[target].responses["2xx"] == 1
    assert three.ledgers[1].requests.dropped == {DropReason.SHADOW_DOWN: 1}
    assert [three.replay.held(target) for target in range(3)] == [(0, 0)] * 3
    for target in range(3):
        three.replay.execute([Finish(1, target)], now)
    three.iterate()
    three.replay.expire(time.monotonic() + 60)
    assert three.replay.idle()


def test_what_waits_for_the_rest_of_its_request_is_sent_at_all_of_them(
    three: Three, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    for target in (0, 2):
        three.replay.execute([Open(1, True, b"", target)], now)
        three.replay.execute([Send(1, GET, len(GET), START | END, target)], now)
    three.iterate()
    shadows = [three.listeners[target].accept()[0] for target in (0, 2)]
    for sock in shadows:
        assert sock.recv(100) == GET
        sock.setblocking(False)
    for target in (0, 2):
        three.replay.execute([Send(1, POST, len(POST), START, target)], now)
    three.replay.push()
    assert [sock.recv(100) for sock in shadows] == [POST, POST]
    for target in (0, 2):
        three.replay.execute([Send(1, b"123456789", 9, END, target)], now)
        three.replay.execute([Send(1, POST, len(POST), START, target)], now)
    at_the_wait: list[bytes] = []
    monkeypatch.setattr(three.replay.reactors[0], "run_once", lambda *_: at_the_wait.append(shadows[1].recv(100)))
    three.replay.run_once(5.0, time.monotonic)  # it waits at the first one
    assert at_the_wait == [b"123456789" + POST]
    for sock in shadows:
        sock.close()


def test_what_happens_at_any_of_them_ends_the_wait(three: Three) -> None:
    """The last reactor's epoll is watched by the first one's."""
    three.replay.execute([Open(1, True, b"", 2)], time.monotonic())
    three.replay.execute([Send(1, GET, len(GET), START | END, 2)], time.monotonic())
    began = time.monotonic()
    three.replay.run_once(PATIENCE, time.monotonic)
    assert time.monotonic() - began < PATIENCE / 2


def test_other_descriptors_are_watched(three: Three) -> None:
    reading, writing = socket.socketpair()
    called = []
    with reading, writing:
        three.replay.watch(reading.fileno(), lambda: called.append(1))
        writing.send(b"x")
        assert select.select([reading], [], [], PATIENCE)[0]
        three.replay.run_once(1.0, time.monotonic)
    assert called
