# SPDX-License-Identifier: Apache-2.0
"""Whatever happens, each request is paired, unpaired or pending, once for each shadow; in the end nothing is held."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tapmirror.events import ACK, FIN, FROM_SERVER, RST, START, Send
from tapmirror.exchange import PROBE, Unpaired
from tapmirror.spec import Level, Match, Protocol, Rule, Text
from test_comparing import BAD, OK, Tap

RESPONSES = (
    OK,
    OK,
    OK,
    OK,
    BAD,
    BAD,
    OK + OK,
    OK[:20],
    b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno",
    b"garbage\r\n\r\n",
)


class World(Tap):
    """A tap with any clients, production and shadows, seen through losses."""

    def __init__(self, seed: int) -> None:
        self.rand = rand = random.Random(seed)
        rules: dict[str, Any] = {}
        if rand.random() < 0.4:
            rules = {"protocol": Protocol.HTTP, "rules": (Rule(match=(Match(path=Text(prefix="/a")),)),)}
        super().__init__(
            level=rand.choice((Level.STATUS, Level.BODY)),
            shadows=rand.choice((1, 2, 3)),
            probe=rand.choice((0.0, 100.0)),
            most=rand.choice((1e9, 1e9, 50.0)),
            **rules,
        )
        self.ports = rand.choice((1, 3, 20))
        self.lanes: list[tuple[int, int]] = []
        """(flow, shadow) of what was sent."""
        for port in range(1, self.ports + 1):
            if rand.random() < 0.8:
                self.accept(port)

    def act(self, commands: Any) -> None:
        """Replay: it sends, leaves out, or never comes to it."""
        shadows = len(self.spec.shadows)
        for command in commands:
            if not isinstance(command, Send) or not command.flags & START or not command.number:
                continue
            talk = self.pipeline.conversation(command.flow)
            if talk is None:
                continue
            target = command.target if command.target < shadows else PROBE + command.target - shadows
            fate = self.rand.random()
            if fate < 0.1:
                talk.left_out(target, command.number, Unpaired.NOT_SENT)
            elif fate < 0.95:
                talk.asked(target, command.number, command.flags)
                talk.sent(target, command.number, int(self.now * 1e9), 0)
                self.lanes.append((command.flow, target))

    def step(self) -> None:
        """Something happens."""
        rand, port = self.rand, self.rand.randint(1, self.ports)
        side = rand.choice((0, FROM_SERVER))
        match rand.choices("abcdefghi", (40, 40, 60, 4, 3, 2, 3, 1, 5))[0]:
            case "a":
                self.ask(rand.choice(("/a", "/b")), port, rand.choice(("GET", "POST", "HEAD")))
            case "b":
                self.answer(rand.choice(RESPONSES), port)
            case "c" if self.lanes:
                flow, target = rand.choice(self.lanes[-5:])
                self.shadow_answers(flow, target)
            case "d":  # a hole
                self.at[port, bool(side)] = self.at.get((port, bool(side)), 1000) + rand.randint(1, 50)
            case "e":
                self.put(port, ACK | FIN | side)
            case "f":
                self.put(port, RST | side)
            case "g":
                self.accept(port)
            case "h":
                self.act(self.pipeline.drop_above(rand.choice((0, 1 << 31, (1 << 32) - 1)), self.now))
            case _:
                self.later(rand.choice((0.05, 1.1, 40.0)))
        if rand.random() < 0.5:
            self.batch()

    def shadow_answers(self, flow: int, target: int) -> None:
        """A shadow does what it likes, or the tap gives it up."""
        talk, now = self.pipeline.conversation(flow), int(self.now * 1e9)
        if talk is None:
            return
        match self.rand.choices("abcde", (70, 10, 5, 5, 10))[0]:
            case "a":
                talk.shadow_data(target, self.rand.choice(RESPONSES), now)
            case "b":
                talk.shadow_ended(target, now, reset=self.rand.random() < 0.5)
            case "c":
                talk.timed_out(target, now)
            case "d":
                talk.given_up(target, Unpaired.NOT_SENT)
            case _:
                talk.left_out(target, self.rand.randint(1, 5), Unpaired.NOT_SENT)

    def pending(self) -> int:
        """Requests of clients that are under way."""
        talks = self.comparison._conversations.values()
        return sum(not pending.asked.checks for talk in talks for pending in talk._pending.values())

    def check(self) -> None:
        for shadow in self.spec.shadows:
            state = self.state(str(shadow.name))
            told = sum(self.pairs(str(shadow.name)).values()) + sum(state["unpaired"].values())
            assert state["requests"] == told + self.pending()


@pytest.mark.parametrize("first", range(0, 600, 200))
def test_each_request_is_counted_once(first: int) -> None:
    pairs = 0
    for seed in range(first, first + 200):
        world = World(seed)
        for _ in range(world.rand.randint(20, 150)):
            world.step()
            world.check()
        world.act(world.pipeline.close(world.now))
        world.pipeline.shut()
        world.check()
        assert world.pending() == 0
        assert world.comparison._memory.free == world.spec.compare.held_bytes
        pairs += sum(world.pairs().values())
    assert pairs > 100
