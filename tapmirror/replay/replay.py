# SPDX-License-Identifier: Apache-2.0
"""All shadows of a worker, with a reactor for each copy of each, so that none waits for another.

The worker sleeps on the epoll of the first reactor.  That one watches the epolls of the others, which therefore cost
nothing in an iteration without events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from tapmirror.events import Command, DropReason
from tapmirror.replay.reactor import Reactor


class Replay:
    """Passes each command to the reactor of its target."""

    def __init__(self, reactors: Sequence[Reactor]) -> None:
        self.reactors = list(reactors)
        self._first, *self._others = reactors
        self._awake: list[Reactor] = []
        """Reactors other than the first that have events."""
        for other in self._others:
            self._first.watch(other.fileno(), partial(self._awake.append, other))
        self.execute: Callable[[Iterable[Command], float], None] = (
            self._dispatch if self._others else self._first.execute
        )
        """Carries out commands of the pipeline, in their order."""

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call back whenever another descriptor is readable."""
        self._first.watch(fd, callback)

    def unwatch(self, fd: int) -> None:
        """Stop calling back for this descriptor."""
        self._first.unwatch(fd)

    def readdress(self, targets: Iterable[int], addresses: Sequence[tuple[int, tuple[Any, ...]]]) -> None:
        """Connect these targets to other addresses from now on; open connections stay."""
        for target in targets:
            self.reactors[target].readdress(addresses)

    def run_once(self, timeout: float, clock: Callable[[], float]) -> None:
        """Wait at most `timeout` seconds for events and act on them."""
        if not self._others:
            self._first.run_once(timeout, clock)
            return
        unread = []
        for other in self._others:
            other.push()
            if other.unread:
                unread.append(other)
        self._first.run_once(0.0 if unread else timeout, clock)
        for other in self._others if self._first.paced else dict.fromkeys(unread + self._awake):
            other.run_once(0.0, clock)
        self._awake.clear()

    def push(self) -> None:
        """Send what waits to fill a packet; call it before a pause."""
        for each in self.reactors:
            each.push()

    @property
    def behind(self) -> bool:
        """Whether a connection with pacing `wait` falls behind unless responses are read as they come."""
        return any(each.behind for each in self.reactors)

    def next_deadline(self) -> float | None:
        """When `expire` has something to do; None: no connection is open."""
        times = [time for each in self.reactors if (time := each.next_deadline()) is not None]
        return min(times) if times else None

    def expire(self, now: float) -> None:
        """Act on what took too long."""
        for each in self.reactors:
            each.expire(now)

    def held(self, target: int) -> tuple[int, int]:
        """(captured bytes queued for a target, requests that are neither wholly sent nor dropped)."""
        return self.reactors[target].held()

    def idle(self) -> bool:
        """Whether nothing is queued and no connection waits for its end."""
        return all(each.idle() for each in self.reactors)

    def close(self, reason: DropReason) -> None:
        """Drop what is queued and close every connection."""
        for each in reversed(self.reactors):
            each.close(reason)

    def _dispatch(self, commands: Iterable[Any], now: float) -> None:
        reactors = self.reactors
        for command in commands:
            reactors[command.target].steps[type(command)](command, now)
