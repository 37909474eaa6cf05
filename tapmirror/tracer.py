# SPDX-License-Identifier: Apache-2.0
"""Requests that are marked on their way to a shadow, and known again where production gets them.

A proxy at a shadow that leads to production opens connections of its own: they bear no mark of a tap, and have nothing
else by which packets would tell.  What HTTP proxies do pass on is a field that they do not know (RFC 9110, 5.1).
So the copy of a request gets one now and then, with a number that only the shadow learns: if a request of production
has it, what is sent to that shadow comes back.  One is enough, and none comes by chance or from a client who wants the
tap to end.

Pure: no I/O, no clock.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from tapmirror.events import START, Buffer, Command, FlowKey, Send
from tapmirror.framing.head import TRACE

PAUSE: Final = 1.0
"""Seconds from one marked request to a shadow to the next, at least, once so many went by as `SPACING` says."""
SPACING: Final = 16
"""One of so many requests to a shadow is marked, so that most are as they came.  At first it is one of 1, 2, 4 and
8, without a pause."""
_HEAD_END: Final = re.compile(rb"\r\n\r\n")


class Loop(msgspec.Struct, frozen=True):
    """What was sent to a shadow came back to production."""

    target: int
    """The shadow's number among the copies of all."""
    client: bytes
    """The address that it came from, in 16 bytes."""


class _Target:
    """What is known of one shadow's requests."""

    __slots__ = ("due", "left", "spacing")

    def __init__(self) -> None:
        self.spacing = 1
        self.left = 1
        """Requests to the next one that is marked, of those from `due` on."""
        self.due = 0.0


class Tracer:
    """Of one worker.  `token` is the same in all workers of a tap, and known to nobody else but its shadows."""

    def __init__(self, token: bytes) -> None:
        self._token = token
        self._find = re.compile(re.escape(token) + rb"\.([0-9]{1,4})").search
        self._targets: dict[int, _Target] = {}
        self.due = 0.0
        """When the next request may be marked: before, commands need not be shown to `marked`."""
        self.loop: Loop | None = None

    def marked(self, commands: Sequence[Command], now: float) -> list[Command]:
        """The commands, with a field more in a request now and then of each shadow."""
        out: list[Command] = []
        for command in commands:
            if type(command) is Send and command.flags & START and self._takes(command.target, now):
                command = msgspec.structs.replace(command, data=self._with_field(command.data, command.target))
            out.append(command)
        if self._targets:
            self.due = min(each.due for each in self._targets.values())
        return out

    def look(self, head: Buffer, key: FlowKey) -> None:
        """Take note of a request of production with the field."""
        found = self._find(head)
        if found is not None and self.loop is None:
            self.loop = Loop(int(found[1]), key[:16])

    def _takes(self, number: int, now: float) -> bool:
        """Whether the request that begins for this shadow is marked."""
        target = self._targets.get(number)
        if target is None:
            target = self._targets[number] = _Target()
        if now < target.due:
            return False
        target.left -= 1
        if target.left:
            return False
        target.left = target.spacing
        if target.spacing < SPACING:
            target.spacing *= 2
        else:
            target.due = now + PAUSE
        return True

    def _with_field(self, data: Buffer, target: int) -> bytes:
        """A request, or its beginning with the whole head, with one field more."""
        end = _HEAD_END.search(data).end() - 2  # type: ignore[union-attr]
        return b"".join((data[:end], b"%b: %b.%d\r\n" % (TRACE, self._token, target), data[end:]))
