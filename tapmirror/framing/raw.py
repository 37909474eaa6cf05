# SPDX-License-Identifier: Apache-2.0
"""The framer of protocols that are not looked into: bytes in order, or nothing.

A raw stream has no boundary at which it could be taken up: what stood before the tap began
(`midstream`) and what follows a gap is lost to its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tapmirror.events import Buffer, DropReason, Lost, Message, Part

_NOTHING: Final[tuple[Message, ...]] = ()


class RawFramer:
    """One stream of bytes; the interface of `RequestFramer`."""

    __slots__ = ("_reason", "transparent")

    held: Final = 0
    """Bytes kept back: none ever."""
    astray: Final = False
    """No request is told of that one could miss."""

    def __init__(self, midstream: bool) -> None:
        self._reason = DropReason.MIDSTREAM if midstream else None
        self.transparent = not midstream
        """Whether every byte is passed on as it is, as one `Part` for each `feed`."""

    def feed(self, data: Buffer, after_response: bool) -> Sequence[Message]:
        """Take the next bytes of the stream; `after_response` does not matter here."""
        if self._reason is None:
            return (Part(data, len(data), 0),)
        return (Lost(len(data), self._reason),)

    def no_more(self) -> Sequence[Message]:
        """Production has sent its FIN, and may still read: bytes go on."""
        return _NOTHING

    def gap(self, length: int) -> Sequence[Message]:
        """`length` bytes are missing here: the stream cannot go on."""
        if self._reason is not None:
            return _NOTHING
        self._reason = DropReason.GAP
        self.transparent = False
        return (Lost(0, DropReason.GAP, True),)

    def end(self) -> Sequence[Message]:
        """The stream is over.  Nothing is held, so nothing is lost by it."""
        return _NOTHING
