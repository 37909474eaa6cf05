# SPDX-License-Identifier: Apache-2.0
"""The bound of what all framers hold; that they keep it is tested with them."""

from __future__ import annotations

from tapmirror.framing import HeadMemory


def test_who_passes_the_bound_is_told() -> None:
    memory = HeadMemory(100)
    assert memory.resize(0, 60)
    assert memory.resize(0, 40)
    assert not memory.resize(0, 1)
    assert memory.bytes == 101
    assert memory.resize(1, 0), "less is never too much"
    assert not memory.resize(40, 41)
    assert memory.resize(60, 20)
    assert memory.bytes == 61
