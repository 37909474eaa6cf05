# SPDX-License-Identifier: Apache-2.0
"""What framers hold of messages that are not whole, all of them together, against a bound."""

from __future__ import annotations


class HeadMemory:
    """`bytes` are held, `limit` is the most; who takes more gives up what it holds.

    Each framer is bounded by itself too, so the bound is passed by at most one message, and for a moment.
    """

    __slots__ = ("bytes", "limit")

    def __init__(self, limit: int) -> None:
        self.bytes = 0
        self.limit = limit

    def resize(self, before: int, after: int) -> bool:
        """Someone held `before` bytes and holds `after`.  False: that is too much, and has to be given up."""
        self.bytes += after - before
        return after <= before or self.bytes <= self.limit
