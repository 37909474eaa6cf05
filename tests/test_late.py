# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from tapmirror.late import LATE, LATE_FLOWS, LateFlows


def key(number: int) -> bytes:
    return number.to_bytes(38, "big")


def test_the_last_end_of_a_flow_is_found() -> None:
    late = LateFlows()
    late.remember(key(1), 0xFFFFFFFF, True, 100.0)
    late.remember(key(2), 0, False, 100.0)
    assert (late.find(key(1)), late.find(key(2)), late.find(key(3))) == ((0xFFFFFFFF, True), (0, False), None)
    late.remember(key(1), 7, False, 102.5)
    assert late.find(key(1)) == (7, False)


def test_it_is_remembered_for_a_while_and_not_for_long() -> None:
    late = LateFlows()
    now, forgotten = 100.0, 0.0
    late.expire(now)
    late.remember(key(1), 1, True, now)
    while not forgotten:
        now += 0.1
        late.expire(now)
        if late.find(key(1)) is None:
            forgotten = now
    assert LATE <= forgotten - 100.0 <= 2 * LATE


def test_after_a_long_silence_nothing_is_remembered() -> None:
    late = LateFlows()
    late.remember(key(1), 1, True, 100.0)
    late.expire(100.0 + 10 * LATE)
    assert late.find(key(1)) is None


def test_of_many_the_last_ones_are_remembered() -> None:
    late = LateFlows()
    most = 10 * LATE_FLOWS
    for number in range(most):
        late.remember(key(number), number, True, 100.0)
    found = [number for number in range(most) if late.find(key(number))]
    assert found == list(range(found[0], most))
    assert LATE_FLOWS * 0.9 < len(found) < LATE_FLOWS * 1.5
