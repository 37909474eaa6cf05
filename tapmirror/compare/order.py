# SPDX-License-Identifier: Apache-2.0
"""Which elements of two arrays belong to each other, where they stand in another order.

By a member that tells them apart (an `id`), or as those left when equal ones have found each other.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

MEMBERS: Final = 16
"""Members of an object that are tried as what tells it from others of its array."""


def by_member(one: list[Any], other: list[Any]) -> list[int] | None:
    """For each object its partner's place, if a member has a value of its own in each, the same ones on both sides.

    One that is called `id`, or like it, comes first.
    """
    if not all(type(each) is dict for each in (*one, *other)):
        return None
    names = sorted([*one[0]][:MEMBERS], key=lambda name: not name.lower().endswith("id"))
    for name in names:
        mine, its = [each.get(name) for each in one], [each.get(name) for each in other]
        if not all(type(value) in (str, int) for value in (*mine, *its)):
            continue
        places = {value: at for at, value in enumerate(its)}
        if len(places) == len(its) and places.keys() == {*mine}:
            return [places[value] for value in mine]
    return None


def by_value(one: list[bytes], other: list[bytes]) -> list[int] | None:
    """For each element its partner's place, if at least half of the elements are equal to one of the others: the rest
    go by their places.
    """
    places: dict[bytes, deque[int]] = {}
    for at, value in enumerate(other):
        places.setdefault(value, deque()).append(at)
    found = [places[value].popleft() if places.get(value) else -1 for value in one]
    if 2 * found.count(-1) > len(found):
        return None
    left = iter(sorted({*range(len(one))} - {*found}))
    return [at if at >= 0 else next(left) for at in found]
