# SPDX-License-Identifier: Apache-2.0
"""What production said last, and of whom it is asked for a word.  What follows from it: `test_flows`."""

from __future__ import annotations

from tapmirror.standing import AWAITED, HEARD, Standing


def key(number: int) -> bytes:
    return number.to_bytes(40)


def test_the_last_word_counts_and_once() -> None:
    standing = Standing()
    assert not standing.goes_on(key(1), 7)
    standing.hear(key(1), 7)
    standing.hear(key(1), 9)
    assert not standing.goes_on(key(2), 9)
    assert not standing.goes_on(key(1), 7)
    assert standing.goes_on(key(1), 9)
    assert not standing.goes_on(key(1), 9)


def test_what_is_forgotten_goes_on_nowhere() -> None:
    standing = Standing()
    standing.hear(key(1), 7)
    standing.forget(key(1))
    standing.forget(key(2))
    assert not standing.goes_on(key(1), 7)


def test_the_oldest_makes_room() -> None:
    standing = Standing()
    for number in range(HEARD + 1):
        standing.hear(key(number), 5)
    assert [standing.goes_on(key(number), 5) for number in (0, 1, HEARD)] == [False, True, True]
    assert [standing.wait(key(number)) for number in range(AWAITED)] == [None] * AWAITED
    assert standing.wait(key(AWAITED)) == key(0)
    assert [standing.was_awaited(key(number)) for number in (0, 1, AWAITED)] == [False, True, True]


def test_a_word_is_waited_for_once() -> None:
    standing = Standing()
    assert not standing.was_awaited(key(1))
    standing.wait(key(1))
    assert standing.was_awaited(key(1))
    assert not standing.was_awaited(key(1))
