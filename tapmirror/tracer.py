# SPDX-License-Identifier: Apache-2.0
"""Requests that are marked on their way to a shadow, and known again where production gets them.

A proxy at a shadow that leads to production opens connections of its own: they bear no mark of a tap, and have nothing
else by which packets would tell.  What HTTP proxies do pass on is a field that they do not know (RFC 9110, 5.1).
So the copy of a request gets one now and then, with a number that nobody else knows: if a request of production has
it, what is sent to that shadow comes back.  One is enough, and none comes by chance or from a client who wants the tap
to end.

Pure: no I/O, no clock.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from tapmirror.events import START, TRACED, Buffer, Command, FlowKey, Send
from tapmirror.framing.head import TRACE

PAUSE: Final = 1.0
"""Seconds between two requests that are marked,"""
SPACING: Final = 16
"""and so many requests: of few, most are as they came.  At first it is 1, 2, 4 and 8, and without a pause."""
_HEAD_END: Final = re.compile(rb"\r\n\r\n")


class Loop(msgspec.Struct, frozen=True):
    """What was sent to a shadow came back to production."""

    target: int
    """The shadow's number among the copies of all."""
    client: bytes
    """The address that it came from, in 16 bytes."""


class Tracer:
    """Of one worker.  `token` is the same in all workers of a tap, and known to nobody else."""

    def __init__(self, token: bytes) -> None:
        self._token = token
        self._find = re.compile(re.escape(token) + rb"\.([0-9]{1,4})").search
        self._spacing = 1
        self._after = 0
        self.due = 0.0
        """When the next request may be marked."""
        self.loop: Loop | None = None

    def wants(self, requests: int, now: float) -> bool:
        """Whether one of these is to be marked, of which so many were seen."""
        return now >= self.due and requests >= self._after

    def marked(self, commands: list[Command], requests: int, now: float) -> list[Command]:
        """The commands; if one is to be marked, for each shadow the first request that begins.

        Of those that are compared (`Send.number`) one that may be: TRACED.
        """
        if not self.wants(requests, now):
            return commands
        out: list[Command] = []
        marked: set[int] = set()
        for command in commands:
            if type(command) is Send and command.target not in marked and _may_be(command):
                marked.add(command.target)
                command = msgspec.structs.replace(command, data=self._with_field(command.data, command.target))
            out.append(command)
        if marked:
            self._after = requests + self._spacing
            if self._spacing < SPACING:
                self._spacing *= 2
            else:
                self.due = now + PAUSE
        return out

    def look(self, head: Buffer, key: FlowKey) -> None:
        """Take note of a request of production with the field."""
        found = self._find(head)
        if found is not None and self.loop is None:
            self.loop = Loop(int(found[1]), key[:16])

    def _with_field(self, data: Buffer, target: int) -> bytes:
        """A request, or its beginning with the whole head, with one field more."""
        end = _HEAD_END.search(data).end() - 2  # type: ignore[union-attr]
        return b"".join((data[:end], b"%b: %b.%d\r\n" % (TRACE, self._token, target), data[end:]))


def _may_be(command: Send) -> bool:
    """It begins a request, and what differs in the answer to that is not taken for a fault."""
    return bool(command.flags & START and (not command.number or command.flags & TRACED))
