# SPDX-License-Identifier: Apache-2.0
"""The verdict: pass, fail, or not known yet, and then how many more requests are needed.

Each limit is compared with a confidence sequence: a limit is kept if the whole interval is on its good side, and broken
if the whole interval is on the other side.  Alpha is divided among the limits, so that with probability 1 - alpha no
verdict at any time is wrong about any of them.

For differences this holds as far as noise is recognised: the limit is kept only if it is kept with all fields that may
not be noise, and broken only by those that differ more often than noise pairs can explain.  Fields that are taken for
noise count for neither.  If there can be no noise pairs (for POST), a field is assumed not to be noise.  An error on
one side only counts only for the limit of error rates, if there is one.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Collection, Iterator
from typing import Final, TypeAlias

import msgspec

from tapmirror.compare.sketch import Sketch
from tapmirror.compare.statistics import Interval, difference_interval, ratio_interval, share_interval

P99: Final = 0.99
Intervals: TypeAlias = Callable[[float], Interval]
"""Returns the interval as it would be with this many times the observations."""
AGAIN: Final = 2.0
"""Least forecast for differences, in multiples of the requests so far: noise pairs, which decide, are few of them."""
FARTHEST: Final = 1000.0
"""How far a forecast looks ahead, in multiples of the requests so far."""


class Outcome(enum.Enum):
    """The result of a check, or of all checks."""

    PASS = "pass"
    FAIL = "fail"
    UNDECIDED = "undecided"


class VerdictLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits for a shadow; None: no limit."""

    max_error_diff: float | None = 0.001
    """By how much the shadow's error rate may be higher."""
    max_p99_ratio: float | None = 1.10
    """The shadow's 99th percentile of the time to the last byte, divided by production's."""
    max_diff_rate: float | None = 0.005
    """Share of the compared exchanges that differ by more than noise."""
    alpha: float = 0.01
    """Probability that any verdict at any time is wrong."""


class Counts(msgspec.Struct, frozen=True):
    """The counts from which a verdict is made."""

    pairs: int
    """Exchanges where both sides answered, or production did and the shadow failed to."""
    only_shadow: int
    """Exchanges of `pairs` in which only the shadow's response was an error."""
    only_production: int
    production: Sketch
    """Times of those that both answered."""
    shadow: Sketch
    compared: int
    """Exchanges whose responses were compared."""
    differing: int
    certain: int | None = None
    """Exchanges of `differing` with a field that certainly differs more often than by noise; None: all of them."""
    possible: int | None = None
    """Exchanges that differ in any field that is not known to be noise; None: as many as `differing`."""
    crowds: tuple[float, float] = (1.0, 1.0)
    """How many of the shadow's, and of production's, times beyond their 99th percentile count as one
    (`statistics.crowd`)."""
    error_crowd: float = 1.0
    """How many of the differences of errors count as one (`statistics.crowd_of_differences`)."""
    requests: int = 0
    """Requests that were needed for this, if more than `pairs`: if there are many a second, only a part of them is
    compared or timed."""


class Check(msgspec.Struct, frozen=True):
    """One limit."""

    name: str
    outcome: Outcome
    estimate: float
    low: float
    high: float
    limit: float
    more: int | None
    """Requests still needed, if things stay as they are; None: none, or more than can be foreseen."""


class Verdict(msgspec.Struct, frozen=True):
    """All limits together."""

    outcome: Outcome
    reason: str
    """Why, in one line."""
    more: int | None
    checks: tuple[Check, ...]


def together(outcomes: Collection[Outcome]) -> Outcome:
    """The outcome for several shadows: fail if one fails, pass if all of them do."""
    if Outcome.FAIL in outcomes:
        return Outcome.FAIL
    return Outcome.UNDECIDED if Outcome.UNDECIDED in outcomes or not outcomes else Outcome.PASS


def judge(counts: Counts, limits: VerdictLimits) -> Verdict:
    """The verdict on what was counted."""
    checks = tuple(_checks(counts, limits))
    if not checks:
        return Verdict(Outcome.UNDECIDED, "no limit is given", None, ())
    if not counts.pairs:
        seen = f", of {counts.requests:,} requests" if counts.requests else ""
        return Verdict(Outcome.UNDECIDED, f"nothing was compared yet{seen}", None, checks)
    failed = [check for check in checks if check.outcome is Outcome.FAIL]
    open_ = [check for check in checks if check.outcome is Outcome.UNDECIDED]
    if failed:
        return Verdict(Outcome.FAIL, "; ".join(map(_said, failed)), None, checks)
    if open_:
        awaited = _awaited(open_)
        needed = [check.more for check in awaited]
        more = None if None in needed else max(n for n in needed if n is not None)
        ahead = (
            "cannot be told soon" if more is None else f"{_surely(counts, awaited)} {more:,} more requests would tell"
        )
        return Verdict(Outcome.UNDECIDED, f"{'; '.join(map(_said, open_))}: {ahead}", more, checks)
    return Verdict(Outcome.PASS, "; ".join(map(_said, checks)), None, checks)


def _awaited(open_: list[Check]) -> list[Check]:
    """The checks that a verdict waits for: one broken limit is enough to fail, and to pass all must be kept."""
    broken = [check for check in open_ if check.estimate > check.limit and check.more is not None]
    return [min(broken, key=lambda check: check.more or 0)] if broken else open_


def _checks(counts: Counts, limits: VerdictLimits) -> Iterator[Check]:
    given = [limits.max_error_diff, limits.max_p99_ratio, limits.max_diff_rate]
    alpha = limits.alpha / max(1, sum(limit is not None for limit in given))
    requests = max(counts.pairs, counts.requests)
    if limits.max_error_diff is not None:
        n = counts.pairs
        told = counts.error_crowd >= 1

        def errors(times: float) -> Interval:
            crowd = counts.error_crowd if told or times == 1 else 1.0
            plus, minus = counts.only_shadow * times, counts.only_production * times
            return difference_interval(plus, minus, n * times, alpha, crowd)

        yield _check(
            "error rate difference",
            (counts.only_shadow - counts.only_production) / n if n else 0.0,
            limits.max_error_diff,
            errors,
            n,
            requests,
            1.0 if told else AGAIN,
        )
    if limits.max_p99_ratio is not None:
        under = counts.production.quantile(P99)
        known = min(counts.crowds) >= 1

        def ratio(times: float) -> Interval:
            crowds = counts.crowds if known or times == 1 else (1.0, 1.0)
            return ratio_interval(counts.shadow, counts.production, P99, alpha, times, crowds)

        yield _check(
            "p99 ratio",
            counts.shadow.quantile(P99) / under if under else 0.0,
            limits.max_p99_ratio,
            ratio,
            counts.production.count,
            requests,
            1.0 if known else AGAIN,
        )
    if limits.max_diff_rate is not None:
        compared = counts.compared

        def rate(times: float) -> Interval:
            count = round(compared * times)
            certain = counts.differing if counts.certain is None or times > 1 else counts.certain
            possible = counts.differing if counts.possible is None else counts.possible
            low = share_interval(round(certain * times), count, alpha / 2)[0]
            return low, share_interval(round(possible * times), count, alpha)[1]

        yield _check(
            "difference rate",
            counts.differing / compared if compared else 0.0,
            limits.max_diff_rate,
            rate,
            compared,
            requests,
            AGAIN if counts.certain is not None and counts.certain < counts.differing else 1.0,
        )


def _check(
    name: str,
    estimate: float,
    limit: float,
    interval: Intervals,
    count: int,
    requests: int,
    least: float = 1.0,
) -> Check:
    """The check of one limit.

    `count`: observations behind the estimate; `requests`: requests that these needed.  A forecast is at least `least`
    times the requests.
    """
    low, high = interval(1.0)
    outcome = _outcome(low, high, limit)
    more = None
    if outcome is Outcome.UNDECIDED:
        times = _needed(interval, limit) if count else None
        more = None if times is None else _rounded((max(times, least) - 1) * requests)
    return Check(name, outcome, estimate, low, high, limit, more)


def _outcome(low: float, high: float, limit: float) -> Outcome:
    if high <= limit:
        return Outcome.PASS
    return Outcome.FAIL if low > limit else Outcome.UNDECIDED


def _needed(interval: Intervals, limit: float) -> float | None:
    """By what factor the observations must grow to decide, if things stay as they are."""
    if _outcome(*interval(FARTHEST), limit) is Outcome.UNDECIDED:
        return None
    low, high = 1.0, FARTHEST
    while high / low > 1.05:
        at = math.sqrt(low * high)
        low, high = (at, high) if _outcome(*interval(at), limit) is Outcome.UNDECIDED else (low, at)
    return high


def _rounded(number: float) -> int:
    """Round up to two digits, since it is a forecast."""
    if number < 10:
        return max(1, math.ceil(number))
    unit = int(10 ** (math.floor(math.log10(number)) - 1))
    return math.ceil(number / unit) * unit


def share(value: float) -> str:
    """A share as text, in percent."""
    if value and abs(value) < 0.0001:
        return f"{value * 100:.1g} %"
    return f"{value * 100:.2f} %" if abs(value) < 0.1 else f"{value * 100:.1f} %"


def _said(check: Check) -> str:
    relation = {Outcome.PASS: "within", Outcome.FAIL: "over", Outcome.UNDECIDED: "not yet known to keep to"}
    if check.name == "p99 ratio":
        value, low, high, limit = (_times(x) for x in (check.estimate, check.low, check.high, check.limit))
    else:
        value, low, high, limit = (share(x) for x in (check.estimate, check.low, check.high, check.limit))
    return f"{check.name} {value} ({low} to {high}) is {relation[check.outcome]} the limit of {limit}"


def _surely(counts: Counts, open_: list[Check]) -> str:
    """The wording for how sure a forecast is: something new may come, or come in groups, which needs more requests."""
    seen = {
        "error rate difference": counts.only_shadow + counts.only_production,
        "difference rate": counts.differing if counts.possible is None else counts.possible,
    }
    known = {"error rate difference": counts.error_crowd >= 1, "p99 ratio": min(counts.crowds) >= 1}
    sure = all(seen.get(check.name, 1) and known.get(check.name, True) for check in open_)
    return "about" if sure else "at least"


def _times(value: float) -> str:
    return f"{value:.3f}" if value < math.inf else "any"
