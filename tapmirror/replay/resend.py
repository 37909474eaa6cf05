# SPDX-License-Identifier: Apache-2.0
"""Copies of requests that wait for their answers behind others, in case the shadow leaves them unread.

Theory of operation
-------------------
A server may say with any answer that it is the last one on its connection (RFC 9112, 9.6): after so many requests, or
because it is being restarted.  It must not process what came behind that request, which clients send again over another
connection then, by themselves if the method is safe (RFC 9110, 9.2.2).  So is it done here.  Others are not repeated:
there are servers (Node.js) that have begun by then with what they read ahead, and throw its answer away.

Repeating takes the bytes, which have left the capture's ring by then.  Nothing is kept where a request is the only one
that waits, as most are: no answer before it can leave it unread.  Each goes again once: a shadow that gives notice with
every answer shall not be sent all of them each time.
"""

from __future__ import annotations

from typing import Final

from tapmirror.events import END, Buffer
from tapmirror.framing.head import SAFE

RESEND_BYTES: Final = 4_096
"""Size of a request beyond which no copy of it is kept."""
_INITIALS: Final = bytes({method[0] for method in SAFE})
"""Looked at first, for of most other requests no copy need be made."""


class ResendQuota:
    """The copies of all lanes, against their bound: their number, as measuring each would cost more than making it."""

    __slots__ = ("count", "most")

    def __init__(self, all_bytes: int) -> None:
        """Beside queues that have this room, they may take a quarter of it."""
        self.most = all_bytes // 4 // RESEND_BYTES
        self.count = 0


class Resendable:
    """The copies of one lane."""

    __slots__ = ("_all", "requests")

    def __init__(self, of_all: ResendQuota) -> None:
        self._all = of_all
        self.requests: list[bytes] = []
        """Copies of the requests that wait for their answers, the oldest first; b"" in place of one that is not
        kept."""

    def add(self, data: Buffer, flags: int) -> None:
        """A request begins to be sent while an answer is due."""
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
        """Only so many wait."""
        over = len(self.requests) - outstanding
        if over > 0:
            self._all.count -= over - self.requests[:over].count(b"")
            del self.requests[:over]
