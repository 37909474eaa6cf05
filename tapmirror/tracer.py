# SPDX-License-Identifier: Apache-2.0
"""Marks requests on their way to a shadow, and recognises them if production gets them.

A proxy at a shadow that forwards to production opens connections of its own.  These have no mark of a tap, nor anything
else in their packets.  But HTTP proxies forward fields that they do not know (RFC 9110, 5.1).  So now and then the copy
of a request gets such a field, with a number that only the shadow learns.  If a request of production has it, what is
sent to that shadow comes back.  One such request is enough, and none comes by chance, or from a client that wants to
end the tap.

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
"""Least seconds between two marked requests to a shadow, in addition to `SPACING`."""
SPACING: Final = 16
"""At most one in this many requests to a shadow is marked, so that most are unchanged.  At first it is one in 1, 2, 4
and 8, without a pause."""
_HEAD_END: Final = re.compile(rb"\r\n\r\n")


class Loop(msgspec.Struct, frozen=True):
    """What was sent to a shadow came back to production."""

    target: int
    """The shadow's number among the copies of all."""
    client: bytes
    """The address that it came from, in 16 bytes."""


class _Target:
    """When one shadow's next request is marked."""

    __slots__ = ("due", "left", "spacing")

    def __init__(self) -> None:
        self.spacing = 1
        self.left = 1
        """How many requests from `due` on come before the next marked one."""
        self.due = 0.0


class Tracer:
    """The tracer of one worker.  `token` is the same in all workers of a tap; only its shadows learn it."""

    def __init__(self, token: bytes) -> None:
        self._token = token
        self._find = re.compile(re.escape(token) + rb"\.([0-9]{1,4})").search
        self._targets: dict[int, _Target] = {}
        self.due = 0.0
        """When the next request may be marked; until then commands need not be passed to `marked`."""
        self.loop: Loop | None = None

    def marked(self, commands: Sequence[Command], now: float) -> list[Command]:
        """The commands, with the field added to a request of each shadow now and then."""
        out: list[Command] = []
        for command in commands:
            if type(command) is Send and command.flags & START and self._takes(command.target, now):
                command = msgspec.structs.replace(command, data=self._with_field(command.data, command.target))
            out.append(command)
        if self._targets:
            self.due = min(each.due for each in self._targets.values())
        return out

    def look(self, head: Buffer, key: FlowKey) -> None:
        """Check a request of production that has the field."""
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
        """A request, or its beginning with the whole head, with the field added."""
        end = _HEAD_END.search(data).end() - 2  # type: ignore[union-attr]
        return b"".join((data[:end], b"%b: %b.%d\r\n" % (TRACE, self._token, target), data[end:]))
