# SPDX-License-Identifier: Apache-2.0
"""What the observers of one copy of a shadow share, if its responses are compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from tapmirror.replay.observer import WASTE_BYTES, Clock, Observer
from tapmirror.replay.responses import LOOK_BYTES

if TYPE_CHECKING:
    from tapmirror.compare.pairing import Conversation


class Observers:
    """Makes the observers of one reactor.

    `conversation` returns the conversation of a production connection, if its responses are compared.  `target` is the
    shadow's number in it.
    """

    __slots__ = ("_buffer", "_clock", "_conversation", "_events", "_target", "_waste", "tick")

    def __init__(
        self, conversation: Callable[[int], Conversation | None], target: int, clock: Clock, events: Counter[str]
    ) -> None:
        self._conversation = conversation
        self._target = target
        self._clock = clock
        self._events = events
        self._buffer = memoryview(bytearray(LOOK_BYTES))
        self._waste = memoryview(bytearray(WASTE_BYTES))
        self.tick = clock.tick

    def observer(self, flow: int) -> Observer | None:
        """The observer of a flow's lane; None: its responses are not compared."""
        conversation = self._conversation(flow)
        if conversation is None:
            return None
        return Observer(conversation, self._target, self._clock, self._events, self._buffer, self._waste)
