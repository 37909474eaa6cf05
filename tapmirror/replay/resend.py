# SPDX-License-Identifier: Apache-2.0
"""Copies of requests that wait for their responses behind others, in case the shadow leaves them unread.

Theory of operation
-------------------
A server may give notice with any response that it is the last one on its connection (RFC 9112, 9.6): after a number of
requests, or because it is restarting.  It must not process what came behind that request.  Clients send that again over
another connection, by themselves if the method is safe (RFC 9110, 9.2.2), and so does replay.  Other requests are not
repeated: some servers (Node.js) have already begun with what they read ahead, and discard its response.

Repeating needs the bytes, which have left the capture's ring by then.  Nothing is kept of a request that waits alone,
as most do: no response before it can leave it unread.  A request is repeated once, so a shadow that gives notice with
every response does not get all of them each time.
"""

from __future__ import annotations

from typing import Final

from tapmirror.events import END, Buffer
from tapmirror.framing.head import SAFE

RESEND_BYTES: Final = 4_096
"""Most bytes of a request of which a copy is kept."""
_INITIALS: Final = bytes({method[0] for method in SAFE})
"""First letters of safe methods; checked first, because most other requests need no copy."""


class ResendQuota:
    """Bounds the copies of all lanes by their number: measuring each would cost more than making it."""

    __slots__ = ("count", "most")

    def __init__(self, all_bytes: int) -> None:
        """Copies may take a quarter of `all_bytes`, the bound of the queues, in addition to it."""
        self.most = all_bytes // 4 // RESEND_BYTES
        self.count = 0


class Resendable:
    """The copies of one lane."""

    __slots__ = ("_all", "requests")

    def __init__(self, of_all: ResendQuota) -> None:
        self._all = of_all
        self.requests: list[bytes] = []
        """Copies of the requests that wait for their responses, the oldest first; b"": none is kept of this one."""

    def add(self, data: Buffer, flags: int) -> None:
        """Note a request that begins to be sent while a response is due."""
        of_all = self._all
        if flags & END and 0 < len(data) <= RESEND_BYTES and data[0] in _INITIALS and of_all.count < of_all.most:
            self.requests.append(bytes(data))
            of_all.count += 1
        else:
            self.requests.append(b"")

    def withdraw(self) -> None:
        """Nothing of the last request was sent."""
        if self.requests and self.requests.pop():
            self._all.count -= 1

    def prune(self, outstanding: int) -> None:
        """Forget all but the last `outstanding` requests, which still wait."""
        over = len(self.requests) - outstanding
        if over > 0:
            self._all.count -= over - self.requests[:over].count(b"")
            del self.requests[:over]
