# SPDX-License-Identifier: Apache-2.0
"""Confidence that holds whenever one looks.

Theory of operation
-------------------
Who looks at a 99 % interval after every request, and stops when he likes what he sees, is wrong much more often than in
1 % of the cases.  A *confidence sequence* contains the true value at all times at once, with probability 1 - alpha
(Howard, Ramdas, McAuliffe and Sekhon, Annals of Statistics 2021).

All of them are built alike.  For each value that the truth may have, a gambler bets against it; if it is the truth,
his capital is a non-negative martingale that begins at 1, and exceeds 1/alpha ever with a probability of at most
alpha (Ville 1939).  The values against which he has not won that much are the interval (Waudby-Smith and Ramdas,
JRSS B 2023).  Here the bets are mixtures fixed in advance, so that the capital depends on counts alone: it is
computed when somebody looks, costs nothing before, and the counts of several workers add up.

* A share (of exchanges that differ): the beta-binomial mixture (Robbins 1970; Howard et al. 2021, 3.2).
* A paired difference of error rates.  Each exchange gives +1 (only the shadow failed), -1 (only production) or 0; their
  mean is the difference.  Exchanges where both fail or neither does add no variance: that is what pairing is for.
  Bets are fractions of a fixed grid (Waudby-Smith and Ramdas 2023, 4; mixture in place of adaptation).
* A quantile.  If it is x, then how many values are at or below x is binomial: the beta-binomial mixture again, so that
  the interval lies between two order statistics (Howard and Ramdas, Bernoulli 2022, Theorem 1 ff.).
* A majority (of responses that hold when they are asked for again, see `noise`): bets of fixed fractions on each.
* A ratio of two quantiles: of both intervals at alpha/2, which holds whatever depends on what.

What they assume: exchanges are alike and independent of each other.  Traffic that changes in time is averaged over.

Times are not independent: what a pause or a queue makes slow, it makes many requests slow.  When they were taken for
independent, two equal versions with such bursts were said to differ in a third of all runs (simulated:
`tests/lab/peeking.py`).  So for quantiles it matters how slow requests are spread over time: they vary more from one
stretch to the next than chance would have it by a factor, the *crowd* (Pearson's statistic of dispersion; the design
effect of cluster samples, Kish 1965), and that many requests count as one.  Errors are not independent either: while a
dependency is away, or a server restarts, each request fails.  Two equal versions with such outages at different times
were said to differ in up to half of all runs.  For the difference of error rates the crowd is that of the stretches'
differences; but what lasts longer than `LASTING` counts as more than one outage.  Otherwise a version that died for
good would never fail.  The same holds for other statuses that one side has more of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final, TypeAlias

from tapmirror.compare.sketch import Sketch

Interval: TypeAlias = tuple[float, float]

FRACTIONS: Final = tuple(0.001 * (0.99 / 0.001) ** (n / 23) for n in range(24))
"""Fractions of the capital that are bet each time: from what is best for differences of 0.1 % and great variance, to
nearly all."""
MAJORITY: Final = (0.2, 0.4, 0.6, 0.8, 0.95)
"""Fractions of the capital that are bet each time against "no majority": from what is best for a small one, to
nearly all."""
QUANTILE_PRIOR: Final = 1000.0
"""Weight of the mixture around the quantile, in observations: tightest at some 12,000 (Howard et al. 2021, 3.5)."""
STRETCHES: Final = 8
"""Least stretches of time that are needed to tell how much they differ."""
LASTING: Final = 30.0
"""Most seconds of errors in a row that count as one."""
_CHANCE: Final = 2.0
"""Standard deviations by which stretches of independent values differ now and then."""
_STEPS: Final = 50
"""Steps of a bisection: to 2**-50 of the range."""
_NEAR: Final = 1e-6
"""Relative error of an interval's edge, which is always told too far out."""


def share_evidence(hits: int, count: int, share: float, a: float = 0.5, b: float = 0.5) -> float:
    """Logarithm of the capital won by betting against "the share of hits is `share`"."""
    return _against(hits, count, share, _log_beta(a + hits, b + (count - hits)) - _log_beta(a, b))


def _against(hits: float, count: float, share: float, evidence: float) -> float:
    """The same, where what does not depend on the share is known."""
    if (share <= 0 and hits) or (share >= 1 and hits < count):
        return math.inf
    if hits:
        evidence -= hits * math.log(share)
    if hits < count:
        evidence -= (count - hits) * math.log1p(-share)
    return evidence


def share_interval(hits: float, count: float, alpha: float) -> Interval:
    """The interval of a share, of which `hits` of `count` were seen; holds with probability 1 - `alpha`."""
    return share_low(hits, count, alpha), share_high(hits, count, alpha)


def share_low(hits: float, count: float, alpha: float) -> float:
    """The lower end of `share_interval`."""
    if not hits:
        return 0.0
    middle = hits / count
    known, short = _short(hits, count, alpha)
    start = max(middle - math.sqrt(2 * middle * short / count), middle * math.exp(-1 - short / hits))
    return min(middle, max(0.0, _root(hits, count, known, start)))


def share_high(hits: float, count: float, alpha: float) -> float:
    """The upper end of `share_interval`."""
    misses = count - hits
    if not misses:
        return 1.0
    middle = hits / count
    known, short = _short(hits, count, alpha)
    part = short / count
    start = middle + part + math.sqrt(2 * middle * part + part * part)
    start = min(start, 1 - (1 - middle) * math.exp(-1 - short / misses))
    return max(middle, min(1.0, _root(hits, count, known, start)))


def _short(hits: float, count: float, alpha: float) -> tuple[float, float]:
    """The part of the evidence that does not depend on the share, minus what is enough; and by how much the evidence
    against the estimate itself falls short of that.
    """
    known = _log_beta(0.5 + hits, 0.5 + (count - hits)) - _log_beta(0.5, 0.5) + math.log(alpha)
    return known, max(0.0, -_against(hits, count, hits / count, known))


def _root(hits: float, count: float, known: float, at: float) -> float:
    """The share at which the evidence is enough, by Newton's method from a share `at` that is farther from the
    estimate.  There the slope only grows, so no step goes too far, and the result is on the outer side.

    The first share is at most where count * KL(estimate, share) is what is missing: of that divergence it is known to
    be more than (estimate - share)**2 / 2 by the greater of both.
    """
    for _ in range(_STEPS):
        value = _against(hits, count, at, known)
        slope = count * at - hits
        if value <= 0 or not slope:
            break
        step = value * at * (1 - at) / slope
        at -= step
        if abs(step) <= _NEAR * at:
            break
    return at


@lru_cache(4096)
def majority_evidence(hits: int, count: int) -> float:
    """Logarithm of the capital won against "each is a hit with a probability of at most one half", whatever each
    depends on of those before it.  Bets as in `difference_evidence`.
    """
    logs = [hits * math.log1p(bet) + (count - hits) * math.log1p(-bet) for bet in MAJORITY]
    most = max(logs)
    return most + math.log(sum(math.exp(each - most) for each in logs) / len(logs))


def difference_evidence(plus: float, minus: float, count: float, mean: float) -> float:
    """Logarithm of the capital won against "the mean is at most `mean`" by `count` values of which so many were
    +1 and -1, the others 0.
    """
    scale = 1 / (1 + abs(mean))
    zero = count - plus - minus
    logs = []
    for fraction in FRACTIONS:
        bet = fraction * scale
        logs.append(
            plus * math.log1p(bet * (1 - mean)) + minus * math.log1p(-bet * (1 + mean)) + zero * math.log1p(-bet * mean)
        )
    most = max(logs)
    return most + math.log(sum(math.exp(each - most) for each in logs) / len(logs))


def difference_interval(plus: float, minus: float, count: float, alpha: float, crowd: float = 1.0) -> Interval:
    """The interval of the mean of `count` values, of which `plus` are +1, `minus` are -1 and the others 0; `crowd` of
    them count as one (`crowd_of_differences`).
    """
    if not count or crowd < 1:
        return -1.0, 1.0
    plus, minus, count = plus / crowd, minus / crowd, count / crowd
    enough = math.log(2 / alpha)
    mean = (plus - minus) / count
    low = _edge(-1.0, mean, lambda at: difference_evidence(plus, minus, count, at) < enough)
    high = -_edge(-1.0, -mean, lambda at: difference_evidence(minus, plus, count, at) < enough)
    return low, high


def quantile_interval(sketch: Sketch, share: float, alpha: float, times: float = 1.0) -> Interval:
    """The interval of the quantile `share` (0 to 1).  `times`: as if there had been so many times as many values,
    distributed alike.
    """
    count = round(sketch.count * times)
    low, high = _ranks(count, share, alpha)
    return sketch.around(low / max(count, 1), high / max(count, 1))


def ratio_interval(
    over: Sketch,
    under: Sketch,
    share: float,
    alpha: float,
    times: float = 1.0,
    crowds: tuple[float, float] = (1.0, 1.0),
) -> Interval:
    """The interval of the ratio of two distributions' quantiles `share` (0 to 1).  `crowds` says how many values of
    each distribution count as one (`crowd`).
    """
    if not over.count or not under.count or min(crowds) < 1:
        return 0.0, math.inf
    low, high = quantile_interval(over, share, alpha / 2, times / crowds[0])
    least, most = quantile_interval(under, share, alpha / 2, times / crowds[1])
    return low / most, high / least if least > 0 else math.inf


def crowd(line: Mapping[int, Mapping[int, int]], share: float) -> float:
    """How many of the values beyond the quantile `share` count as one, because they come together: 1 if they do not, 0
    if that cannot be told yet.  `line`: by the number of a stretch of time, the counts of its values by bucket.

    It is looked for among single stretches and among those that are two, four, ... times as long, because slowness may
    last that long.
    """
    if len(line) < STRETCHES:
        return 0.0
    total: dict[int, int] = {}
    for buckets in line.values():
        for key, size in buckets.items():
            total[key] = total.get(key, 0) + size
    count = sum(total.values())
    found = 1.0
    beyond = 0
    for edge in sorted(total, reverse=True):
        before, beyond = beyond, beyond + total[edge]
        if beyond >= (1 - share) * count:
            break
    for first, tail in ((edge, beyond), (edge + 1, before)):
        if (1 - share) * count / 4 <= tail < count:
            rows = {
                number: (sum(buckets.values()), sum(size for key, size in buckets.items() if key >= first))
                for number, buckets in line.items()
            }
            part = tail / count
            found = max(found, _dispersion(rows, part, part * (1 - part)))
    return found


def crowd_of_differences(line: Mapping[int, tuple[int, int]], plus: int, minus: int, width: float) -> float:
    """How many of the values that are not 0 count as one, because they come together.  It is like `crowd`, for values
    of +1, -1 and 0.  `line`: by the number of a stretch of `width` seconds, (values, their sum); `plus` and `minus` are
    how many values of each sign there are in all.
    """
    count = sum(size for size, _ in line.values())
    if not plus + minus or not count:
        return 1.0
    if len(line) < STRETCHES:
        return 0.0
    mean = (plus - minus) / count
    variance = (plus + minus) / count - mean * mean
    if variance <= 0:
        return 1.0
    return max(1.0, min(_dispersion(line, mean, variance), count / (len(line) * width) * LASTING))


def thinned(size: float, part: float) -> float:
    """The crowd among this part (0 to 1) of all values, which are farther from each other by as much; 0: it cannot be
    told.
    """
    return size if size <= 1 else 1 + (size - 1) * part


def _dispersion(line: Mapping[int, tuple[int, int]], mean: float, variance: float) -> float:
    """By what factor the sums of stretches, (values, sum), vary more than those of independent values with this mean
    and variance.  The length of stretches with the largest factor counts.
    """
    found = 1.0
    rows = line
    while len(rows) >= STRETCHES:
        squares = sum((hits - size * mean) ** 2 / size for size, hits in rows.values() if size)
        free = len(rows) - 1
        factor = squares / (variance * free)
        if factor > 1 + _CHANCE * math.sqrt(2 / free):
            found = max(found, factor)
        longer: dict[int, tuple[int, int]] = {}
        for number, (size, hits) in rows.items():
            others = longer.get(number >> 1, (0, 0))
            longer[number >> 1] = size + others[0], hits + others[1]
        rows = longer
    return found


@lru_cache(256)
def _ranks(count: int, share: float, alpha: float) -> tuple[int, int]:
    """The order statistics between which the quantile lies; 0 and count + 1 stand for the places beyond all of them."""
    enough = -math.log(alpha)
    a, b = QUANTILE_PRIOR * share, QUANTILE_PRIOR * (1 - share)

    def possible(hits: int) -> bool:
        """Whether this many values may be at or below the quantile."""
        return share_evidence(hits, count, share, a, b) < enough

    middle = min(count, max(0, round(count * share)))
    low, high = -1, middle  # low is not possible, high is
    while high - low > 1:
        at = (low + high) // 2
        low, high = (low, at) if possible(at) else (at, high)
    least = high
    low, high = middle, count + 1
    while high - low > 1:
        at = (low + high) // 2
        low, high = (at, high) if possible(at) else (low, at)
    return least, low + 1


def _edge(outside: float, inside: float, possible: Callable[[float], bool]) -> float:
    """The end of an interval between a value outside of it and one inside."""
    if possible(outside):
        return outside
    for _ in range(_STEPS):
        if abs(outside - inside) <= _NEAR * abs(inside):
            break
        at = (outside + inside) / 2
        if possible(at):
            inside = at
        else:
            outside = at
    return outside


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
