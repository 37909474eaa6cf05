# SPDX-License-Identifier: Apache-2.0
"""The daemon's log: lines of `name=value` on standard error, few of each cause.  The last ones are kept for each tap.

A separate thread writes the lines from a bounded queue, so a journal that hangs, or a terminal that is stopped, delays
nothing.  Payload is never logged, only names, numbers and our own messages.  Whatever is in them, a line stays one line
of printable characters.
"""

from __future__ import annotations

import enum
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

RATE: Final = 10
"""Most lines a second of one cause and one tap."""
KEPT: Final = 200
"""Lines of a tap that are kept."""
KEPT_TAPS: Final = 200
"""Most taps whose lines are kept; the one with the oldest last line gives way."""
WAITING: Final = 1000
"""Most lines that wait to be written."""
LONGEST: Final = 500
"""Characters of a value that are shown."""
FLUSH_TIME: Final = 2.0
"""Seconds for the last lines to be written."""


class Level(enum.IntEnum):
    """How urgent a line is: syslog(3)."""

    ERROR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6


class Line(msgspec.Struct, frozen=True):
    """A line that is kept for a tap."""

    seq: int
    """Number of the line, which grows from one line to the next over all taps."""
    time: float
    """When it was said, in seconds of the wall clock."""
    level: str
    text: str


class Log:
    """Thread-safe.  `write` gets each line as bytes; `journal`: lines are for the journal."""

    def __init__(self, write: Callable[[bytes], object], *, journal: bool) -> None:
        self._write = write
        self._journal = journal
        self._lock = threading.Lock()
        self._causes: dict[tuple[str, str, str], _Cause] = {}
        """The causes of about the last second (`tick`), with how much of each was held back."""
        self._kept: dict[str, deque[Line]] = {}
        self._seq = 0
        self.lost = 0
        """Lines that were lost: the queue was full, or writing failed."""
        self._queue: queue.Queue[bytes | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._writer, name="log", daemon=True)
        self._thread.start()

    def say(self, level: Level, cause: str, message: str, *, tap: str = "", of: str = "", **fields: Any) -> None:
        """Log one line.  `cause` is a constant of the code, by which lines are counted and held back.

        Lines are counted separately for each `tap` and each `of`, so none is held back because of another's.
        """
        now = time.monotonic()
        with self._lock:
            found = self._causes.setdefault((cause, tap, of), _Cause(now))
            suppressed = found.passes(now)
            if suppressed is None:
                return
            self._put(level, cause, message, tap, fields | ({"suppressed": suppressed} if suppressed else {}))

    def tick(self) -> None:
        """Report how many lines of causes that are quiet now were held back.  Call it about once a second."""
        now = time.monotonic()
        with self._lock:
            for (cause, tap, of), found in [*self._causes.items()]:
                if not found.quiet(now):
                    continue
                if found.held:
                    fields = {"suppressed": found.held} | ({"of": of} if of else {})
                    self._put(Level.WARNING, cause, "lines like the last were held back", tap, fields)
                del self._causes[cause, tap, of]  # it would be as full as a new one by now

    def of(self, tap: str, after: int) -> tuple[list[Line], int]:
        """The kept lines of a tap that are newer than number `after`, and the number with which to continue."""
        with self._lock:
            return [line for line in self._kept.get(tap, ()) if line.seq > after], self._seq

    def close(self) -> None:
        """Write the lines that wait, for at most `FLUSH_TIME` each to queue the end and to reach it."""
        try:
            self._queue.put(None, timeout=FLUSH_TIME)
        except queue.Full:
            return
        self._thread.join(FLUSH_TIME)

    def _put(self, level: Level, cause: str, message: str, tap: str, fields: dict[str, Any]) -> None:
        self._seq += 1
        rest = "".join(f" {name}={quoted(value)}" for name, value in fields.items())
        if tap:
            kept = self._kept[tap] = self._kept.pop(tap, deque(maxlen=KEPT))
            kept.append(Line(self._seq, time.time(), level.name.lower(), printable(message) + rest))
            if len(self._kept) > KEPT_TAPS:
                del self._kept[next(iter(self._kept))]
        start = f"<{level.value}>" if self._journal else f"time={stamp(time.time())} "
        where = f" tap={quoted(tap)}" if tap else ""
        text = f"{start}level={level.name.lower()} event={cause}{where} msg={quoted(message)}{rest}\n"
        try:
            self._queue.put_nowait(text.encode())
        except queue.Full:
            self.lost += 1

    def _writer(self) -> None:
        torn = False
        while (line := self._queue.get()) is not None:
            try:
                self._write(b"\n" + line if torn else line)
                torn = False
            except OSError:
                with self._lock:
                    self.lost += 1
                torn = True  # a part of it may be there


class _Cause:
    """A token bucket of one second's lines."""

    __slots__ = ("_last", "_tokens", "held")

    def __init__(self, now: float) -> None:
        self.held = 0
        self._tokens = float(RATE)
        self._last = now

    def passes(self, now: float) -> int | None:
        """None: hold this line back.  Else the number of lines held back since the last one that passed."""
        self._tokens = min(float(RATE), self._tokens + (now - self._last) * RATE)
        self._last = now
        if self._tokens < 1:
            self.held += 1
            return None
        self._tokens -= 1
        held, self.held = self.held, 0
        return held

    def quiet(self, now: float) -> bool:
        """Whether nothing came for a second."""
        return now - self._last >= 1.0


def to_stderr() -> Log:
    """The log of a daemon: standard error is the journal if systemd says so (JOURNAL_STREAM of systemd.exec(5))."""
    try:
        facts = os.fstat(2)
        journal = os.environ.get("JOURNAL_STREAM") == f"{facts.st_dev}:{facts.st_ino}"
    except OSError:
        journal = False
    return Log(_write_whole, journal=journal)


def _write_whole(line: bytes) -> None:
    """Write a line to standard error.  Raises OSError, after a part of the line if the disk had room for no more."""
    while line:
        line = line[os.write(2, line) :]


def stamp(seconds: float) -> str:
    """A time of the wall clock, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03d}Z"


def printable(text: str) -> str:
    """One line of printable characters, not long: everything else is escaped."""
    short = text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in short)


def quoted(value: Any) -> str:
    """A value of logfmt: bare if it is one word, else in quotes."""
    text = printable(str(value))
    if text and not any(c in ' "=\\' for c in text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
