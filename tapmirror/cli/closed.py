# SPDX-License-Identifier: Apache-2.0
"""A stand-in for a standard output that is closed (`>&-`): Python makes it None, and click then prints nothing."""

from __future__ import annotations

import errno
import io
from typing import NoReturn


class Closed(io.TextIOWrapper):
    """A stream to which every write fails, as on a full disk."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")

    def write(self, text: str, /) -> NoReturn:
        """Raises OSError."""
        raise OSError(errno.EBADF, "standard output is closed")
