# SPDX-License-Identifier: Apache-2.0
"""Simulations of `compare.statistics`: how often it is wrong for who looks after every request, and how soon it sees.

    .venv/bin/python -m lab.peeking          (in tests/; a few minutes)

False alarms: how often the truth is ever left out.  It must be below alpha.  Beside it stands what a usual interval
of the same level, looked at as often, does.  Power: after how many requests a real difference is proven.
"""

from __future__ import annotations

import math
import random
import statistics

from tapmirror.compare.sketch import Sketch
from tapmirror.compare.statistics import (
    QUANTILE_PRIOR,
    difference_evidence,
    ratio_interval,
    share_evidence,
)
from tapmirror.compare.verdict import Counts, Limits, Outcome, judge


def false_alarms_of_shares(runs: int, length: int, share: float, alpha: float, rand: random.Random) -> tuple[int, int]:
    """Runs in which the true share was ever left out: by the sequence, and by the usual (Wald) interval."""
    wrong = usual = 0
    z = statistics.NormalDist().inv_cdf(1 - alpha / 2)
    enough = -math.log(alpha)
    for _ in range(runs):
        hits = 0
        missed = naive = False
        for n in range(1, length + 1):
            hits += rand.random() < share
            missed = missed or share_evidence(hits, n, share) >= enough
            if n >= 30 and not naive:
                mean = hits / n
                naive = abs(mean - share) > z * math.sqrt(max(mean * (1 - mean), 1e-12) / n)
        wrong += missed
        usual += naive
    return wrong, usual


def false_alarms_of_differences(
    runs: int, length: int, plus: float, minus: float, alpha: float, rand: random.Random
) -> int:
    """Runs in which the true difference of error rates was ever left out."""
    wrong = 0
    enough = math.log(2 / alpha)
    truth = plus - minus
    for _ in range(runs):
        more = less = 0
        for n in range(1, length + 1):
            at = rand.random()
            if at < plus:
                more += 1
            elif at < plus + minus:
                less += 1
            elif n % 16:
                continue  # without an event the capital only falls, or grows too little to matter
            if (
                difference_evidence(more, less, n, truth) >= enough
                or difference_evidence(less, more, n, -truth) >= enough
            ):
                wrong += 1
                break
    return wrong


def false_alarms_of_quantiles(runs: int, length: int, share: float, alpha: float, rand: random.Random) -> int:
    """Runs in which the true quantile was ever left out."""
    wrong = 0
    enough = -math.log(alpha)
    for _ in range(runs):
        below = 0
        for n in range(1, length + 1):
            below += rand.random() < share
            if share_evidence(below, n, share, QUANTILE_PRIOR * share, QUANTILE_PRIOR * (1 - share)) >= enough:
                wrong += 1
                break
    return wrong


def latencies(rand: random.Random) -> tuple[float, float]:
    """Of production and of an equal shadow, for one request: some requests are slow on both."""
    work = rand.lognormvariate(0.0, 0.5)
    return 2e6 * (work + rand.expovariate(4.0)), 2e6 * (work + rand.expovariate(4.0))


class Stream:
    """Exchanges of which a verdict is asked again and again."""

    def __init__(self, rand: random.Random, slower: float, errors: float, differing: float) -> None:
        self.rand = rand
        self.slower, self.errors, self.differing = slower, errors, differing
        self.production, self.shadow = Sketch(), Sketch()
        self.pairs = self.only_shadow = self.only_production = self.differs = 0

    def step(self, count: int) -> None:
        """So many more exchanges."""
        rand = self.rand
        for _ in range(count):
            one, other = latencies(rand)
            self.production.add(one)
            self.shadow.add(other * self.slower)
            at = rand.random()
            self.only_shadow += at < 0.001 + self.errors
            self.only_production += 0.5 < at < 0.501
            self.differs += rand.random() < self.differing
        self.pairs += count

    def counts(self) -> Counts:
        return Counts(
            self.pairs,
            self.only_shadow,
            self.only_production,
            self.production,
            self.shadow,
            self.pairs,
            self.differs,
        )


def first_verdict(stream: Stream, limits: Limits, most: int) -> tuple[Outcome, int]:
    """The first one that is not undecided, looked for ever more rarely (each tenth more)."""
    while stream.pairs < most:
        stream.step(max(50, stream.pairs // 10))
        found = judge(stream.counts(), limits).outcome
        if found is not Outcome.UNDECIDED:
            return found, stream.pairs
    return Outcome.UNDECIDED, stream.pairs


def show(name: str, wrong: int, runs: int, alpha: float, more: str = "") -> None:
    print(f"{name:52} {wrong:4} of {runs} = {100 * wrong / runs:5.2f} %  (alpha {100 * alpha:g} %){more}")


def main() -> None:
    rand = random.Random(1)
    alpha, runs = 0.05, 1000
    for share in (0.001, 0.05, 0.5):
        wrong, usual = false_alarms_of_shares(runs, 5000, share, alpha, rand)
        show(f"share {share}", wrong, runs, alpha, f"   usual interval: {100 * usual / runs:.0f} %")
    for plus, minus in ((0.001, 0.001), (0.05, 0.05), (0.3, 0.3), (0.02, 0.001)):
        wrong = false_alarms_of_differences(runs, 5000, plus, minus, alpha, rand)
        show(f"error rates, only shadow {plus}, only production {minus}", wrong, runs, alpha)
    for share in (0.5, 0.99):
        show(f"quantile {share}", false_alarms_of_quantiles(runs, 20_000, share, alpha, rand), runs, alpha)
    for name, slower, errors, differing in (
        ("equal", 1.0, 0.0, 0.0),
        ("20 % slower", 1.2, 0.0, 0.0),
        ("50 % slower", 1.5, 0.0, 0.0),
        ("1 % more errors", 1.0, 0.01, 0.0),
        ("1 % of answers differ", 1.0, 0.0, 0.01),
    ):
        found = [
            first_verdict(Stream(random.Random(seed), slower, errors, differing), Limits(), 400_000)
            for seed in range(20)
        ]
        outcomes = {each.value: sum(outcome is each for outcome, _ in found) for each in Outcome}
        median = statistics.median(count for _, count in found)
        print(f"verdict, {name:24} {outcomes}, median after {median:,.0f} requests")
    stream = Stream(random.Random(3), 1.2, 0.0, 0.0)
    for count in (10_000, 90_000):
        stream.step(count)
        low, high = ratio_interval(stream.shadow, stream.production, 0.99, 0.01)
        print(f"20 % slower, after {stream.pairs:,}: p99 ratio between {low:.3f} and {high:.3f} (alpha 1 %)")


if __name__ == "__main__":
    main()
