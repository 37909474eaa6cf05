# SPDX-License-Identifier: Apache-2.0
"""What taps counted in lives that are over, for the metrics: no scrape has seen the last of it.

A ledger as Python objects takes some five times the room of its JSON, and a comparison of many shadows is long: so
they are held as JSON, and there is a bound for all of them together.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

REMEMBERED: Final = 120.0
"""Seconds for which the metrics have what a tap counted in a life that is over: two scrapes of Prometheus's default."""
LIVES: Final = 256
"""Lives that are remembered at most: all of 200 taps that `apply` restarts."""
HELD: Final = 4 << 20
"""Bytes of all that is remembered.  A ledger has some 10 kB, what it compared 25 kB more for each shadow."""


class Life:
    """One life of a tap that is over, and what it counted."""

    __slots__ = ("at", "compare", "ledger", "tap")

    def __init__(self, at: float, tap: str, ledger: bytes, compare: bytes) -> None:
        self.at = at
        """When it ended, on the monotonic clock."""
        self.tap = tap
        self.ledger = ledger
        """The ledger as JSON, without `compare`."""
        self.compare = compare
        """`compare` of the ledger as JSON; empty: nothing was compared, or there was no room for it."""

    @property
    def size(self) -> int:
        """Bytes of the life's JSON."""
        return len(self.ledger) + len(self.compare)


class Past:
    """May be used from any thread.  `dropped` receives the name of a tap, and what the metrics will not have of it."""

    def __init__(self, dropped: Callable[[str, str], None]) -> None:
        self._dropped = dropped
        self._lives: deque[Life] = deque()
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        """Bytes of all of them."""
        with self._lock:
            return self._held()

    def remember(self, life: int, ledger: dict[str, Any]) -> None:
        """A life has ended with this ledger."""
        rest = {**ledger, "life": life, "over": True}
        compare = rest.pop("compare", None)
        new = Life(time.monotonic(), str(ledger["tap"]), _json(rest), b"" if compare is None else _json(compare))
        with self._lock:
            self._forget()
            self._lives.append(new)
            dropped = self._make_room()
        for name, what in dropped:
            self._dropped(name, what)

    def ledgers(self) -> list[dict[str, Any]]:
        """The last ledger of each, the oldest first."""
        with self._lock:
            self._forget()
            lives = [(life.ledger, life.compare) for life in self._lives]
        return [
            {**json.loads(ledger), **({"compare": json.loads(compare)} if compare else {})} for ledger, compare in lives
        ]

    def _make_room(self) -> list[tuple[str, str]]:
        """What had to go, of which tap: the oldest comparison first, for the ledgers are short."""
        gone = []
        held = self._held()
        for life in self._lives:
            if held <= HELD:
                break
            if life.compare:
                held -= len(life.compare)
                life.compare = b""
                gone.append((life.tap, "what it compared"))
        while held > HELD or len(self._lives) > LIVES:
            life = self._lives.popleft()
            held -= life.size
            gone.append((life.tap, "what it counted"))
        return gone

    def _held(self) -> int:
        return sum(life.size for life in self._lives)

    def _forget(self) -> None:
        since = time.monotonic() - REMEMBERED
        while self._lives and self._lives[0].at < since:
            self._lives.popleft()


def _json(document: object) -> bytes:
    """Sums of several workers' counts may have more than 64 bits, which msgspec refuses."""
    return json.dumps(document, separators=(",", ":")).encode()
