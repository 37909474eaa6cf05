# SPDX-License-Identifier: Apache-2.0
"""The data of SYNs: passed on if production took it, and never held for long."""

from __future__ import annotations

import pytest

from tapmirror.early import EARLY_BYTES, EARLY_FLOWS, EarlyData
from tapmirror.events import ACK, SYN, UNACCEPTED, DropReason, FilterReason, FlowKey, Segment
from tapmirror.ledger import Ledger

PATIENCE = 10.0


def key(number: int = 0) -> FlowKey:
    return number.to_bytes(40, "big")


def syn(data: bytes, *, number: int = 0, seq: int = 999, flags: int = SYN, length: int | None = None) -> Segment:
    return key(number), flags, seq, 0, len(data) if length is None else length, memoryview(data), 0


class Held:
    """What is held, its ledger, and whether they agree."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.early = EarlyData(PATIENCE, self.ledger)
        self.bytes = self.segments = 0

    def put(self, segment: Segment, now: float = 0.0) -> None:
        self.bytes += segment[4]
        self.segments += bool(segment[4])
        self.early.hold(segment, now)

    def check(self) -> None:
        assert self.ledger.bytes.settled() + self.early.size == self.bytes
        assert self.ledger.segments.settled() + len(self.early) == self.segments


def test_production_took_it() -> None:
    held = Held()
    held.put(syn(b"early", seq=0xFFFFFFFF))
    held.check()
    assert held.early.taken(key(), 5) == (0, b"early", 0)
    assert held.early.taken(key(), 5) is None and held.early.size == 0
    assert not held.ledger.bytes.settled()


@pytest.mark.parametrize("first", [1000, 1004, 1006])
def test_production_did_not_take_all_of_it(first: int) -> None:
    held = Held()
    held.put(syn(b"early"))
    assert held.early.taken(key(), first) is None
    assert held.ledger.bytes.filtered == {FilterReason.NOT_ACCEPTED: 5}
    held.check()


@pytest.mark.parametrize(
    ("segment", "filtered", "dropped"),
    [
        (syn(b"early", flags=SYN | ACK), {FilterReason.OUTSIDE: 5}, {}),
        (syn(b"early", flags=SYN | UNACCEPTED), {FilterReason.OUTSIDE: 5}, {}),
        (syn(bytes(EARLY_BYTES + 1)), {}, {DropReason.CUT: EARLY_BYTES + 1}),
        (syn(b"ear", length=5), {}, {DropReason.CUT: 5}),
        (syn(b""), {}, {}),
    ],
    ids=["SYN-ACK", "unaccepted", "large", "cut", "empty"],
)
def test_what_is_not_held(segment: Segment, filtered: dict[FilterReason, int], dropped: dict[DropReason, int]) -> None:
    held = Held()
    held.put(segment)
    assert len(held.early) == 0
    assert (held.ledger.bytes.filtered, held.ledger.bytes.dropped) == (filtered, dropped)
    held.check()


def test_a_repeated_one_takes_the_place_of_the_first() -> None:
    held = Held()
    held.put(syn(b"first"))
    held.put(syn(b"again", seq=1999))
    assert held.ledger.bytes.filtered == {FilterReason.DUPLICATE: 5}
    assert held.early.taken(key(), 2005) == (2000, b"again", 0)


def test_the_oldest_goes_first() -> None:
    held = Held()
    for number in range(EARLY_FLOWS + 2):
        held.put(syn(b"x", number=number))
        held.check()
    assert len(held.early) == EARLY_FLOWS
    assert [held.early.taken(key(number), 1001) is None for number in (0, 1, 2)] == [True, True, False]


def test_what_production_leaves_without_a_response_goes_after_a_while() -> None:
    held = Held()
    held.put(syn(b"first", number=1), 0.0)
    held.put(syn(b"second", number=2), 5.0)
    held.early.expire(PATIENCE - 0.1)
    assert len(held.early) == 2
    held.early.expire(PATIENCE)
    assert held.ledger.bytes.filtered == {FilterReason.NOT_ACCEPTED: len(b"first")}
    held.early.expire(5.0 + PATIENCE)
    assert len(held.early) == 0
    held.check()


def test_what_is_given_up_has_a_reason() -> None:
    held = Held()
    held.put(syn(b"first", number=1))
    held.put(syn(b"second", number=2))
    held.early.drop(key(1), DropReason.MULTIPATH)
    held.early.drop(key(3), DropReason.MULTIPATH)
    held.early.close()
    assert held.ledger.bytes.dropped == {DropReason.MULTIPATH: 5, DropReason.SHUTDOWN: 6}
    held.check()
