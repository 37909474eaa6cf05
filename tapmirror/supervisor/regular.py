# SPDX-License-Identifier: Apache-2.0
"""Files that somebody else may have put there: nothing in their place holds up the daemon."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def content(path: Path, most: int) -> bytes:
    """Of a regular file, up to a byte more than `most`.  Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO holds up nobody
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "not a regular file")
        return file.read(most + 1)
