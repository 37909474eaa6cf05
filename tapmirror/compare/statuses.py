# SPDX-License-Identifier: Apache-2.0
"""What different statuses of two responses mean: a fault of one side, chance, or statuses that are swapped.

Of two equal versions, each may answer 404 or 429 where the other does not, but both equally often.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, TypeAlias

import msgspec

from tapmirror.compare.noise import ENOUGH, SURPRISE, Nature, apart_by_either
from tapmirror.compare.statistics import crowd_of_differences, majority_evidence, share_interval, thinned
from tapmirror.compare.summary import STATUS, BothStatuses, Endpoint, State

CrowdsByStatus: TypeAlias = Mapping[int, tuple[float, int]]
"""By status: (how many exchanges count as one, how many there are), of those in which one side alone answers with
it."""


def crowds_by_status(state: State) -> CrowdsByStatus:
    """For each status that one side alone answers with: (how many such exchanges count as one, how many there are).

    Only exchanges count in which both statuses are errors, or neither is.  Such statuses come together: a rate limiter
    rejects for some time, and the other side's at another time.

    They are counted by status, with a sign for the side that answers it.  One count for all, signed by whose status is
    lower, would not do: 403 in place of 200 and of 404 is higher than the one and lower than the other, and they would
    cancel out.
    """
    found = {}
    sizes = {number: point.pairs for number, point in state.line.items()}
    for status, ways in state.discordant.items():
        one, other = (sum(each[side] for each in ways.values()) for side in range(2))
        sums = {number: each[0] - each[1] for number, each in ways.items()}
        line = {number: (size, sums.get(number, 0)) for number, size in sizes.items()}
        found[status] = crowd_of_differences(line, one, other, state.width), max(1, one + other)
    return found


def balanced_statuses(endpoint: Endpoint, alpha: float, by_status: CrowdsByStatus) -> tuple[int, int, int, int]:
    """Returns (all, balanced as seen, at most, at least): exchanges of the endpoint whose statuses differ, both below
    500 or neither, and how many of them are balanced by as many in the opposite direction (200 for 404, and 404 for
    200).  The bounds hold with probability 1 - `alpha`; `by_status` as of `crowds_by_status`.

    Of two equal versions either direction is as likely, so balanced exchanges say nothing.  What one side has more
    often is no noise, even if pairs of one version differ as often: those of a shadow that answers 404 now and then do.

    A fault may be balanced too, but not by chance: such statuses (`_no_chance`) are never counted as balanced.
    """
    all_ = sum(endpoint.discordant.values())
    if not all_:
        return 0, 0, 0, 0
    seen, most, least = 0, 0.0, 0.0
    alpha /= 2  # for either way to see a fault
    pairs = _by_pair(endpoint)
    said, sure = _no_chance(endpoint, SURPRISE), _no_chance(endpoint, alpha)
    for both, (one, other) in pairs.items():
        count = one + other
        low, high = _majority(one, count, alpha / len(pairs), _crowd_of(by_status, both, count))
        if both not in said:
            seen += count - abs(one - other)
            least += count * (1 - max(1 - 2 * low, 2 * high - 1))
        if both not in sure:
            most += count * (1 - max(0.0, 2 * low - 1, 1 - 2 * high))
    return all_, seen, min(all_, math.ceil(most)), max(0, math.floor(least))


def balanced_errors(endpoint: Endpoint, alpha: float) -> int:
    """How many exchanges with an error of one side alone are, or may be (at `alpha`), balanced by the other side's.

    It is counted for each endpoint, because one that answers nothing but errors could be balanced by others.
    """
    one, other = endpoint.only_shadow, endpoint.only_production
    low, high = share_interval(one, one + other, alpha) if one + other else (0.0, 1.0)
    return endpoint.erring if low <= 0.5 <= high else min(endpoint.erring, 2 * min(one, other))


def chance(endpoint: Endpoint, what: Nature, by_status: CrowdsByStatus) -> Nature:
    """The nature of an endpoint's differing statuses, where both responses are errors or neither is.

    Different, if they differ otherwise than by chance (`_no_chance`), or one side has one of two statuses more often
    for certain.  Else `what`, their nature by noise pairs; but where that is different and each two are there in both
    directions, they are noise, or `WAITING` while they are few.
    """
    if _no_chance(endpoint, SURPRISE):
        return Nature.DIFFERENT
    pairs = _by_pair(endpoint)
    for both, (one, other) in pairs.items():
        low, high = _majority(one, one + other, SURPRISE / len(pairs), _crowd_of(by_status, both, one + other))
        if not low <= 0.5 <= high:
            return Nature.DIFFERENT
    if what is Nature.DIFFERENT and all(map(all, pairs.values())):
        return Nature.NOISE if min(map(sum, pairs.values())) >= ENOUGH else Nature.WAITING
    return what


def _no_chance(endpoint: Endpoint, alpha: float) -> set[BothStatuses]:
    """Pairs of statuses, the lower one first, that certainly differ for another reason than chance.

    They differ equally often in both directions, but are there again when asked twice, or are swapped.

    429 (RFC 6585, 4) is never among them.  It only says that there were too many requests before: a limiter that has
    reached its number for this minute answers 429 again, and one that rejects each third request may reject another
    third on either side.
    """
    found = {*_by_pair(endpoint)} if _there_again(endpoint, alpha) else _swapped(endpoint, alpha)
    return {both for both in found if _TOO_MANY not in both.split()}


def _there_again(endpoint: Endpoint, alpha: float) -> bool:
    """Whether different statuses are not chance: pairs of one version differ less than half as often.

    Half as often may be chance too: something that did not exist yet (404) may exist when the shadow is asked again.
    """
    field = endpoint.fields.get(STATUS)
    return field is not None and apart_by_either(endpoint, msgspec.structs.replace(field, raw=field.raw // 2), alpha)


def _swapped(endpoint: Endpoint, alpha: float) -> set[BothStatuses]:
    """Pairs of statuses that are certainly swapped.

    Take two consecutive exchanges.  Let production answer them with one status and then the other with probability p,
    and the other way round with q.  An equal shadow does the same independently.  So the sides cross, each answering in
    another order, with probability 2pq, and change alike with p^2 + q^2, which is no less, whatever the requests are,
    even in a race for one seat.  A shadow that answers 409 where production answers 201 crosses, and hardly ever
    changes alike.

    Consecutive exchanges are used instead of totals, because something that is down in some minutes on one side, and in
    others on the other side, is seldom down on both.

    NOTE: if production itself answers with both, in more than the square of the share that is swapped, this looks the
    same as chance.
    """
    enough = -math.log(alpha / max(1, len(endpoint.crossed)))
    return {
        both
        for both, count in endpoint.crossed.items()
        if majority_evidence(count, count + endpoint.changed.get(both, 0)) > enough
    }


def _majority(one: int, count: int, alpha: float, crowd: float) -> tuple[float, float]:
    """The interval of the share that differs in one direction, of `count` that differ; `crowd` of them count as one."""
    return share_interval(one / crowd, count / crowd, alpha) if crowd >= 1 else (0.0, 1.0)


def _by_pair(endpoint: Endpoint) -> dict[BothStatuses, tuple[int, int]]:
    """For each pair of statuses, the lower one first: how often production had it, and how often the shadow."""
    found: dict[BothStatuses, tuple[int, int]] = {}
    for both, count in endpoint.discordant.items():
        key = " ".join(sorted(both.split(), key=int))
        one, other = found.get(key, (0, 0))
        found[key] = (one + count, other) if key == both else (one, other + count)
    return found


def _crowd_of(by_status: CrowdsByStatus, both: BothStatuses, count: int) -> float:
    """The crowd of two statuses that differ `count` times at an endpoint: the larger one of both; 0: not known yet.

    For statuses that are not counted separately, because there are too many, it is the largest of all.
    """
    known = [by_status[status] for status in map(int, both.split()) if status in by_status]
    return max((thinned(crowd, min(1.0, count / every)) for crowd, every in known or by_status.values()), default=1.0)


_TOO_MANY: Final = "429"
"""The status that says nothing about a request, except that there were others before it."""
