# SPDX-License-Identifier: Apache-2.0
"""A wall clock that jumps, for processes of the lab alone: the machine's own is everybody's."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).parent / "wall.c"


class WallClock:
    """`before` are words to be put before a command: it, and what it starts, is ahead by what `jump` says."""

    def __init__(self, folder: Path) -> None:
        """Compiles a library into the directory, which all must be able to look into.  Raises `CalledProcessError`."""
        library = folder / "wall.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", f"{library}", f"{SOURCE}"], check=True)
        self._file = folder / "wall"
        self.jump(0.0)
        self.before = ("env", f"LD_PRELOAD={library}", f"LAB_WALL={self._file}")

    def jump(self, ahead: float) -> None:
        """So many seconds ahead of the kernel's from now on; the file is never shorter than a number."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("=q", round(ahead)))
