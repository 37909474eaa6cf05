# SPDX-License-Identifier: Apache-2.0
"""Writing to disk which taps are to run, whenever that changes, in a thread.

A disk that is full or gone ends nothing: it is told, and tried again.
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
    """`what` is to be written: asked at each attempt.  Use it within one running loop."""

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
        """Whether to try again (of the monotonic clock); the next time is put off then."""
        if not self._dirty or now < self._again:
            return False
        self._again = now + AGAIN
        return True

    async def save(self) -> None:
        """Write it."""
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
