# SPDX-License-Identifier: Apache-2.0
"""The output of a worker: a pipe into which it writes without ever waiting, and of which only some lines are passed on.

A worker prints next to nothing itself: a traceback when it breaks down, and whatever a user's hook prints.  It must
never wait for the reader (the journal, a stopped terminal), and must not be able to flood it.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Final

RATE: Final = 5.0
"""Most lines a second that are passed on from one worker."""
BURST: Final = 30.0
"""Most lines that are passed on at once: enough for a traceback."""
READ_BYTES: Final = 1 << 16
"""Bytes of a read: as much as the pipe holds, so that one read empties it (pipe(7))."""
WRITE_BYTES: Final = 4096
"""PIPE_BUF: writes of up to this many bytes are complete or fail."""
LINE_BYTES: Final = 400


class Unwaiting(io.TextIOBase):
    """A stream to a non-blocking descriptor; lines for which there is no room are lost and counted."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._line = ""
        self._lost = 0

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, text: str) -> int:
        """Write whole lines, or lose them."""
        self._line += text[:WRITE_BYTES] if len(self._line) < WRITE_BYTES else ""
        if "\n" in text or len(self._line) >= WRITE_BYTES:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Write what there is, or lose it."""
        text, self._line = self._line, ""
        if not text:
            return
        before = f"({self._lost} more that found no room)\n" if self._lost else ""
        data = (before + text).encode("utf-8", "backslashreplace")
        if len(data) > WRITE_BYTES:
            data = data[: WRITE_BYTES - 1] + b"\n"
        try:
            os.write(self._descriptor, data)
        except OSError:  # no room, or nobody reads any more
            self._lost += 1
        else:
            self._lost = 0


def print_without_waiting() -> None:
    """Let this process print without waiting from now on.  Its descriptors 1 and 2 must be a non-blocking pipe."""
    sys.stdout = sys.stderr = Unwaiting(2)


class Output:
    """The reading end of what one worker prints; `theirs` is for its descriptors 1 and 2."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._ours, self.theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._rest = b""
        self._tokens = BURST
        self._last = 0.0
        self._held = 0

    def let_go(self) -> None:
        """Close our copy of the worker's end, which the worker has now."""
        if self.theirs >= 0:
            os.close(self.theirs)
            self.theirs = -1

    def lines(self, now: float) -> list[str]:
        """The lines that have come and may be passed on; it does at most one read."""
        if self._ours < 0:
            return []
        try:
            data = os.read(self._ours, READ_BYTES)
        except OSError:  # nothing yet
            return []
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_BYTES or not data:  # one without end, or the last
            whole.append(self._rest[: LINE_BYTES + 1])
            self._rest = b""
        return self._few([line for line in whole if line.strip()], now)

    def close(self, now: float) -> list[str]:
        """Close the pipe; returns the last lines."""
        self.let_go()
        found = self.lines(now)
        if self._rest:
            found += self._few([self._rest], now)
        if self._held:
            found.append(f"({self._held} more lines were held back)")
        if self._ours >= 0:
            os.close(self._ours)
            self._ours = -1
        self._rest, self._held = b"", 0
        return found

    def _few(self, lines: list[bytes], now: float) -> list[str]:
        self._tokens = min(BURST, self._tokens + max(0.0, now - self._last) * RATE)
        self._last = now
        found = []
        for line in lines:
            if self._tokens < 1:
                self._held += 1
                continue
            self._tokens -= 1
            held, self._held = self._held, 0
            found.append(shown(line) + (f" ({held} lines before it were held back)" if held else ""))
        return found


def shown(line: bytes) -> str:
    """A line in printable characters, and not long, so that it may be shown anywhere."""
    text = line[:LINE_BYTES].decode("utf-8", "backslashreplace")
    dots = "..." if len(line) > LINE_BYTES else ""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text) + dots
