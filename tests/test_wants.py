# SPDX-License-Identifier: Apache-2.0
"""Buckets are asked for once, however many connections want them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tapmirror.wants import Wants

ONE, OTHER = bytes(40), bytes(39) + b"\x01"


def test_the_first_asks_and_the_last_ends_it() -> None:
    wants = Wants()
    wants.want(ONE, 7)
    wants.want(OTHER, 7)
    assert wants.requests == [(ONE, True)]
    wants.unwant(ONE, 7)
    assert wants.requests == [(ONE, True)]
    wants.unwant(OTHER, 7)
    assert wants.requests == [(ONE, True), (OTHER, False)]
    wants.want(OTHER, 7)
    assert wants.requests[2:] == [(OTHER, True)]


@given(st.lists(st.integers(0, 7), max_size=60))
def test_what_the_capture_is_told_is_what_is_wanted(turns: list[int]) -> None:
    """Each turn one of eight connections, in four buckets, begins or ends to want its own."""
    wants = Wants()
    wanting: set[int] = set()
    told: set[int] = set()
    for who in turns:
        key = bytes([who % 4])
        if who in wanting:
            wanting.remove(who)
            wants.unwant(key, who % 4)
        else:
            wanting.add(who)
            wants.want(key, who % 4)
        for (bucket,), wanted in wants.requests:
            assert wanted is (bucket not in told)
            told ^= {bucket}
        wants.requests.clear()
        assert told == {each % 4 for each in wanting}
