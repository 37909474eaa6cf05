# SPDX-License-Identifier: Apache-2.0
"""Writes to disk which taps should run, whenever that changes, in a thread.

A disk that is full or gone ends no tap: the error is reported, and writing is tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tapmirror.supervisor import state
from tapmirror.supervisor.log import Level, Log

AGAIN: Final = 10.0
"""Seconds between two attempts to write what could not be written."""


class Persistence:
    """Writes what `what()` returns at each attempt.  Use it within one running asyncio loop."""

    def __init__(self, directory: Path, log: Log, what: Callable[[], state.State]) -> None:
        self.error = ""
        """Why the taps could not be written, if so."""
        self.errors = 0
        self._directory = directory
        self._log = log
        self._what = what
        self._dirty = False
        self._again = 0.0
        self._writing = asyncio.Lock()

    def due(self, now: float) -> bool:
        """Whether it is time to try again; if so, the next time is set.  `now` is of the monotonic clock."""
        if not self._dirty or now < self._again:
            return False
        self._again = now + AGAIN
        return True

    async def save(self) -> None:
        """Write the taps to disk; an error is kept in `error` and logged."""
        self._dirty = True
        async with self._writing:
            if not self._dirty:
                return
            self._dirty = False
            try:
                await asyncio.to_thread(state.save, self._directory, self._what())
            except OSError as error:
                self._dirty = True
                self.errors += 1
                self.error = f"{self._directory}: the taps could not be written: {error.strerror}"
                self._log.say(Level.ERROR, "state", self.error)
            else:
                self.error = ""
