# SPDX-License-Identifier: Apache-2.0
"""Standard output that was closed when the command began (`>&-`), of which Python makes None, and click silence."""

from __future__ import annotations

import errno
import io
from typing import NoReturn


class Closed(io.TextIOWrapper):
    """Takes its place: what is printed there fails, as it does where a disk is full."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")

    def write(self, text: str, /) -> NoReturn:
        """Raises OSError."""
        raise OSError(errno.EBADF, "standard output is closed")
