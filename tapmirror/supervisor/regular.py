# SPDX-License-Identifier: Apache-2.0
"""Reading files that another user may have replaced by something else: nothing there can make the daemon wait."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def content(path: Path, most: int, *, private: bool = False) -> bytes:
    """The content of a regular file, up to one byte more than `most`.  Raises OSError.

    `private`: only of a file that nobody but root and we ourselves can have written.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a FIFO does not wait
    with open(descriptor, "rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(0, "not a regular file")
        if private and (facts.st_uid not in (0, os.geteuid()) or facts.st_mode & 0o022):
            raise OSError(
                0, f"users other than root can write to it (owner {facts.st_uid}, mode {facts.st_mode & 0o777:o})"
            )
        return file.read(most + 1)
