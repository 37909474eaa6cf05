# SPDX-License-Identifier: Apache-2.0
"""Raw streams: everything in order, and nothing after a hole."""

from __future__ import annotations

from tapmirror.events import DropReason, Lost, Part
from tapmirror.framing import RawFramer


def test_bytes_are_passed_on_as_they_come() -> None:
    framer, data = RawFramer(False), memoryview(b"abc")
    (part,) = framer.feed(data, True)
    assert isinstance(part, Part) and part.data is data
    assert (part.size, part.flags, framer.held, framer.transparent) == (3, 0, 0, True)
    assert list(framer.end()) == []


def test_joined_in_midstream_everything_is_lost() -> None:
    framer = RawFramer(True)
    assert not framer.transparent
    assert list(framer.feed(b"abc", True)) == [Lost(3, DropReason.MIDSTREAM)]
    assert list(framer.gap(5)) == []
    assert list(framer.feed(b"de", True)) == [Lost(2, DropReason.MIDSTREAM)]
    assert list(framer.end()) == []


def test_a_gap_ends_it() -> None:
    framer = RawFramer(False)
    framer.feed(b"abc", True)
    assert list(framer.gap(5)) == [Lost(0, DropReason.GAP, True)]
    assert not framer.transparent
    assert list(framer.gap(1)) == []
    assert list(framer.feed(b"de", True)) == [Lost(2, DropReason.GAP)]
    assert list(framer.end()) == []
