# SPDX-License-Identifier: Apache-2.0
"""The bound of what all framers hold; that they keep it is tested with them."""

from __future__ import annotations

from tapmirror.framing import Pool


def test_who_passes_the_bound_is_told() -> None:
    pool = Pool(100)
    assert pool.resize(0, 60)
    assert pool.resize(0, 40)
    assert not pool.resize(0, 1)
    assert pool.bytes == 101
    assert pool.resize(1, 0), "less is never too much"
    assert not pool.resize(40, 41)
    assert pool.resize(60, 20)
    assert pool.bytes == 61
