# SPDX-License-Identifier: Apache-2.0
"""Which elements of two arrays belong to each other, if they are in another order.

They are matched by a member that distinguishes them (an `id`), or as those that remain when equal ones are matched.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

MEMBERS: Final = 16
"""Most members of an object that are tried as the one that distinguishes it from others in its array."""


def by_member(one: list[Any], other: list[Any]) -> list[int] | None:
    """The index of each object's partner, if a member has a different value in each object, the same set on both sides.

    A member that is called `id`, or similarly, is tried first.
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
    """The index of each element's partner, if at least half of the elements are equal to one on the other side.

    The rest are matched in their order.
    """
    places: dict[bytes, deque[int]] = {}
    for at, value in enumerate(other):
        places.setdefault(value, deque()).append(at)
    found = [places[value].popleft() if places.get(value) else -1 for value in one]
    if 2 * found.count(-1) > len(found):
        return None
    left = iter(sorted({*range(len(one))} - {*found}))
    return [at if at >= 0 else next(left) for at in found]
