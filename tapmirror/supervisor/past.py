# SPDX-License-Identifier: Apache-2.0
"""The last ledgers of lives of taps that are over, for the metrics: no scrape has seen what was counted last.

As Python objects a ledger takes about five times the room of its JSON, and a comparison of many shadows is long.  So
ledgers are held as JSON, with a bound for all of them together.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

REMEMBERED: Final = 120.0
"""Seconds for which a life that is over stays in the metrics: two scrapes at Prometheus's default interval."""
LIVES: Final = 256
"""Most lives that are remembered: those of 200 taps that one `apply` restarts."""
HELD: Final = 4 << 20
"""Most bytes that are remembered.  A ledger has some 10 kB, and 25 kB more for each shadow that is compared."""


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
    """The lives that are remembered; thread-safe.

    `dropped` receives the name of a tap and what the metrics will lack of it.
    """

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
        """Forget what exceeds the bounds: comparisons, then ledgers, the oldest first; returns (tap, what is lost)."""
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
    """JSON of the standard library: sums over workers may have more than 64 bits, which msgspec refuses."""
    return json.dumps(document, separators=(",", ":")).encode()
