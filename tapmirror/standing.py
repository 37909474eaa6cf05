# SPDX-License-Identifier: Apache-2.0
"""Connections that stand and that the flow table does not know: what production said of them last, and of which it is
asked for a word.

Of a connection that stood when the tap began production may speak first, as when it answers a request from before.  The
number that it acknowledges is that of what the client sends next, and who cannot see it has to guess 32 bits: so data
that begins there is the connection's, like that of a client who has completed a handshake.  The same is known of a
connection that was followed until it was silent for too long, or left the share.

Only production's data is such a word.  A bare acknowledgement also comes where there is no connection: to what is out
of the window of a handshake that the client did not complete (`tcp_check_req`), whose first number was chosen by
whoever sent the SYN, under any address, and to what comes behind a connection's end (TIME-WAIT).

Where it could not be heard in time, because it answered before it was asked for, the connection was given up.  Then its
next word is waited for, which tells the same.

Both are bounded, and the oldest goes.

Pure: no clock.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from tapmirror.events import FlowKey

HEARD: Final = 16_384
"""Connections of which the last word is remembered, some 4 MB: so many may stand when a tap begins."""
AWAITED: Final = 1_024
"""Connections of which a word is waited for.  For each, production's packets of one of 65,536 buckets become records:
one in 64 of all at most, however many connections somebody feigns."""


class Standing:
    """Such connections of one worker, by key."""

    __slots__ = ("_awaited", "_heard")

    def __init__(self) -> None:
        self._heard: OrderedDict[FlowKey, int] = OrderedDict()
        self._awaited: OrderedDict[FlowKey, None] = OrderedDict()

    def hear(self, key: FlowKey, ack: int) -> None:
        """Production has sent data, and has all that the client sent before `ack`."""
        self._heard[key] = ack
        if len(self._heard) > HEARD:
            self._heard.popitem(last=False)

    def forget(self, key: FlowKey) -> None:
        """What was heard holds no more."""
        self._heard.pop(key, None)

    def goes_on(self, key: FlowKey, seq: int) -> bool:
        """Whether data at `seq` is what production waits for; if so, the table knows the connection from now on."""
        if self._heard.get(key) != seq:
            return False
        del self._heard[key]
        return True

    def wait(self, key: FlowKey) -> FlowKey | None:
        """Wait for production's next word; which connection is not waited for any more, for want of room."""
        self._awaited[key] = None
        return self._awaited.popitem(last=False)[0] if len(self._awaited) > AWAITED else None

    def was_awaited(self, key: FlowKey) -> bool:
        """Wait no more; whether it was waited for."""
        return bool(self._awaited) and self._awaited.pop(key, key) is None
