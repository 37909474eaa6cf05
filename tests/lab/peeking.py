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
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, TypeAlias

from tapmirror.compare.figures import certainly, figures
from tapmirror.compare.noise import Nature, Thresholds, evidence_of, nature, short, wanted
from tapmirror.compare.sketch import Sketch
from tapmirror.compare.statistics import (
    QUANTILE_PRIOR,
    crowd,
    crowd_of_differences,
    difference_evidence,
    difference_interval,
    ratio_interval,
    share_evidence,
)
from tapmirror.compare.summary import COARSE, POINTS, Endpoint, Field, State, Summary, state_bounds
from tapmirror.compare.verdict import Counts, Outcome, VerdictLimits, judge
from tapmirror.comparing import PROBE_DELAY
from tapmirror.exchange import Asked, Delivery, Response
from tapmirror.spec import Compare, Level

Statuses: TypeAlias = Iterator[tuple[int, int]]
"""Production's and the shadow's, exchange by exchange."""
CREATED, TAKEN = 201, 409


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


def bursts(rand: random.Random, every: int, size: int) -> Iterator[float]:
    """Times of which once in so many requests about so many in a row are slow: a pause, a queue."""
    left = 0
    while True:
        if not left and rand.random() * every < 1:
            left = 1 + int(rand.expovariate(1 / size))
        yield rand.lognormvariate(15, 0.4) * (10 if left else 1)
        left = max(0, left - 1)


def outages(rand: random.Random, every: float, size: int) -> Iterator[bool]:
    """Errors: once in so many requests about so many in a row."""
    left = 0
    while True:
        if not left and rand.random() * every < 1:
            left = 1 + int(rand.expovariate(1 / size))
        yield left > 0
        left = max(0, left - 1)


def drift(rand: random.Random, rho: float) -> Iterator[float]:
    """Times of which each is as slow as the one before was, but for a part."""
    at = rand.gauss(0, 1)
    while True:
        at = rho * at + math.sqrt(1 - rho * rho) * rand.gauss(0, 1)
        yield math.exp(15 + 0.5 * at)


def false_alarms_in_a_row(
    make: Callable[[random.Random], Iterator[float]],
    runs: int,
    length: int,
    rate: int,
    alpha: float,
    slower: float = 1.0,
) -> tuple[int, int]:
    """Runs of two versions, so many requests a second, in which the p99 ratio was ever said to be over 1.1: by their
    crowds, and without.
    """
    wrong = naive = 0
    for run in range(runs):
        both = [make(random.Random(f"{run} {side}")) for side in range(2)]
        sketches = Sketch(), Sketch()
        lines: list[dict[int, dict[int, int]]] = [{}, {}]
        width, look = 1, 300
        missed = taken = False
        for n in range(length):
            for side, (times, sketch, line) in enumerate(zip(both, sketches, lines, strict=True)):
                key = sketch.add(next(times) * (slower if side else 1)) >> COARSE
                point = line.setdefault(int(n / rate / width), {})
                point[key] = point.get(key, 0) + 1
            if len(lines[0]) > POINTS:
                width *= 2
                lines = [coarser(line) for line in lines]
            if n < look:
                continue
            look = int(look * 1.15)
            crowds = crowd(lines[1], 0.99), crowd(lines[0], 0.99)
            missed = missed or ratio_interval(sketches[1], sketches[0], 0.99, alpha, crowds=crowds)[0] > 1.1
            taken = taken or ratio_interval(sketches[1], sketches[0], 0.99, alpha)[0] > 1.1
        wrong += missed
        naive += taken
    return wrong, naive


def false_alarms_of_outages(
    every: float, size: int, runs: int, length: int, rate: int, alpha: float, more: float = 0.0
) -> tuple[int, int]:
    """Runs of two versions with outages of their own, of which the shadow has so many errors more, so many requests a
    second, in which it was ever said to have 0.1 % more: by the crowd of errors, and without.
    """
    wrong = naive = 0
    for run in range(runs):
        rand = random.Random(run)
        both = [outages(random.Random(f"{run} {side}"), every, size) for side in range(2)]
        line: dict[int, tuple[int, int]] = {}
        width, look = 1, 300
        counts = [0, 0]
        missed = taken = False
        for n in range(length):
            mine, its = next(both[0]), next(both[1]) or rand.random() < more
            counts[0] += its > mine
            counts[1] += mine > its
            at = int(n / rate / width)
            size_, sum_ = line.get(at, (0, 0))
            line[at] = size_ + 1, sum_ + its - mine
            if len(line) > POINTS:
                width *= 2
                longer: dict[int, tuple[int, int]] = {}
                for number, (size_, sum_) in line.items():
                    others = longer.get(number >> 1, (0, 0))
                    longer[number >> 1] = size_ + others[0], sum_ + others[1]
                line = longer
            if n < look:
                continue
            look = int(look * 1.15)
            found = crowd_of_differences(line, counts[0], counts[1], width)
            missed = missed or difference_interval(counts[0], counts[1], n + 1, alpha, found)[0] > 0.001
            taken = taken or difference_interval(counts[0], counts[1], n + 1, alpha)[0] > 0.001
        wrong += missed
        naive += taken
    return wrong, naive


def coarser(line: dict[int, dict[int, int]]) -> dict[int, dict[int, int]]:
    """Each two stretches as one."""
    found: dict[int, dict[int, int]] = {}
    for number, buckets in line.items():
        into = found.setdefault(number >> 1, {})
        for key, size in buckets.items():
            into[key] = into.get(key, 0) + size
    return found


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


def first_verdict(stream: Stream, limits: VerdictLimits, most: int) -> tuple[Outcome, int]:
    """The first one that is not undecided, looked for ever more rarely (each tenth more)."""
    while stream.pairs < most:
        stream.step(max(50, stream.pairs // 10))
        found = judge(stream.counts(), limits).outcome
        if found is not Outcome.UNDECIDED:
            return found, stream.pairs
    return Outcome.UNDECIDED, stream.pairs


class Kind(NamedTuple):
    """What makes a field differ, by its chances."""

    raw: float
    """That an exchange differs."""
    pair: float
    """That a pair of one version does."""
    holds: float
    """That a check of an exchange that differs holds."""


def flicker(rate: float) -> Kind:
    """Each response is an odd one with this chance, on both sides."""
    return Kind(2 * rate * (1 - rate), 2 * rate * (1 - rate), 0.5)


def one_of(count: int) -> Kind:
    """One of so many values, drawn for each response: it differs nearly always, or in every second exchange."""
    return Kind(1 - 1 / count, 1 - 1 / count, 1 / count)


def clock(step: float, apart: float) -> Kind:
    """Of the time in steps of so many seconds; both sides answer so many seconds after each other."""
    later = min(1.0, PROBE_DELAY / step)
    return Kind(min(1.0, apart / step), later, 1 - later)


def fault(rate: float) -> Kind:
    """Of the new version, in requests of this share."""
    return Kind(rate, 0.0, 1.0)


def believed(kind: Kind, length: int, rand: random.Random, share: float = 0.01) -> tuple[int, int]:
    """After how many requests of one endpoint a field is said to be different, and is different for certain, for who
    looks at every pair, and else at every tenth difference; 0: never.  `share` is that of probes and checks.
    """
    limits = Thresholds(0.2, 0.0003)
    endpoint = Endpoint()
    field = endpoint.fields["value body.x"] = Field()
    probes = checks = 0.0
    said = 0
    saves = lacks = False
    for number in range(1, length + 1):
        endpoint.compared = number
        probes += share / 2 if saves and checks < 5 else share
        checks = min(5.0, checks + share / 2) if saves else 0.0
        looks = probes >= 1
        if looks:
            probes -= 1
            endpoint.probed += 1
            field.probes += rand.random() < kind.pair
        if rand.random() < kind.raw:
            field.raw += 1
            looks = looks or field.raw % 10 == 1
            if wanted(field.raw, number, evidence_of(endpoint, field)):
                saves = True
                if checks >= 1:
                    checks -= 1
                    field.checks += 1
                    field.held += rand.random() < kind.holds
                    lacks = looks = True
        if lacks and checks >= 2:
            lacks = short(field.raw, number, evidence_of(endpoint, field))
            if lacks:
                checks -= 1
                endpoint.probed += 1
                field.probes += rand.random() < kind.pair
        if looks and not said:
            said = number * (nature(field.raw, number, evidence_of(endpoint, field, True), limits) is Nature.DIFFERENT)
        if looks and said and certainly("value body.x", endpoint, True, 0.01 / 3 / 2):
            return said, number
    return said, 0


def swapping(rand: random.Random, rate: float, both: float = 0.0) -> Statuses:
    """A fault: of this share of the requests, those that production takes the shadow does not, and of as many the other
    way round.  Of the share `both` neither takes any.
    """
    while True:
        at = rand.random()
        if at < rate:
            yield CREATED, TAKEN
        elif at < 2 * rate:
            yield TAKEN, CREATED
        else:
            yield (TAKEN, TAKEN) if at < 2 * rate + both else (CREATED, CREATED)


def by_chance(rand: random.Random, rate: float, status: int = TAKEN) -> Statuses:
    """Equal: each side answers this by itself."""
    while True:
        yield tuple(status if rand.random() < rate else CREATED for _ in range(2))  # type: ignore[misc]


def by_request(rand: random.Random) -> Statuses:
    """Equal: the same, with a rate for each of twenty kinds of requests."""
    rates = [rand.random() ** 4 / 2 for _ in range(20)]
    while True:
        yield next(by_chance(rand, rand.choice(rates)))


def in_bursts(rand: random.Random, rate: float, size: int) -> Statuses:
    """Equal: so many in a row, of each side at times of its own."""
    taken = [rand.random() < rate for _ in range(2)]
    while True:
        yield TAKEN if taken[0] else CREATED, TAKEN if taken[1] else CREATED
        taken = [rand.random() * size > 1 if each else rand.random() * size < rate / (1 - rate) for each in taken]


def races(rand: random.Random, rate: float, clients: int) -> Statuses:
    """Equal: so often some clients want one seat, and who comes first gets it."""
    while True:
        if rand.random() < rate:
            first = [rand.randrange(clients) for _ in range(2)]
            for client in range(clients):
                yield tuple(CREATED if client == each else TAKEN for each in first)  # type: ignore[misc]
        else:
            yield CREATED, CREATED


def in_turn(rand: random.Random, every: int, status: int) -> Statuses:
    """Equal: each side answers every so many requests so, from one of its own on."""
    first = [rand.randrange(every) for _ in range(2)]
    number = 0
    while True:
        number += 1
        yield tuple(status if number % every == each else CREATED for each in first)  # type: ignore[misc]


def in_windows(rand: random.Random, window: int, over: float, status: int, *served: int) -> Statuses:
    """Equal: of so many requests in a row so large a share too many is answered with this, on each side by a window
    that begins at a time of its own; the others with one of those served, as the request is.
    """
    first = [rand.randrange(window) for _ in range(2)]
    number = 0
    while True:
        number += 1
        wants = rand.choice(served)
        yield tuple(status if (number + each) % window >= window * (1 - over) else wants for each in first)  # type: ignore[misc]


def first_fail(statuses: Statuses, most: int, limits: VerdictLimits) -> int:
    """After how many requests to one endpoint the verdict is FAIL, looked for each tenth more; 0: it is not."""
    spec = Compare(level=Level.STATUS)
    summary = Summary(state_bounds(spec), spec.level.value)
    endpoint = summary.endpoint("POST /seats")
    asked = Asked(1, b"POST", b"/seats", b"", timed=False)
    look = 100
    for number in range(1, most + 1):
        one, other = next(statuses)
        summary.observe(endpoint, asked, Response(one), Delivery(Response(other), 0), number / 100)
        endpoint.compared += 1
        if one != other:
            summary.add_discordant(endpoint, one, other)
            summary.differed(endpoint, ["value status"])
        if number in (look, most):
            look += look // 10
            if verdict_of(summary.state, spec, limits) is Outcome.FAIL:
                return number
    return 0


def verdict_of(state: State, spec: Compare, limits: VerdictLimits) -> Outcome:
    """On a state."""
    return figures("tap", "shadow", state, spec, limits).verdict.outcome


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
    rows: dict[str, Callable[[random.Random], Iterator[float]]] = {
        "independent": lambda rand: drift(rand, 0.0),
        "30 slow once in 3,000": lambda rand: bursts(rand, 3000, 30),
        "40 slow once in 10,000": lambda rand: bursts(rand, 10_000, 40),
        "as before but for 10 %": lambda rand: drift(rand, 0.9),
        "as before but for 1 %": lambda rand: drift(rand, 0.99),
        "as before but for 0.1 %": lambda rand: drift(rand, 0.999),
    }
    for name, make in rows.items():
        for speed in (100, 1000):
            wrong, naive = false_alarms_in_a_row(make, 100, 30_000, speed, 0.01 / 3)
            show(f"p99 ratio, {name}, {speed}/s", wrong, 100, 0.01 / 3, f"   taken for independent: {naive} %")
        wrong, naive = false_alarms_in_a_row(make, 20, 100_000, 100, 0.01 / 3, slower=1.5)
        print(f"   50 % slower is seen in 100,000 requests in {5 * wrong} % (taken for independent {5 * naive} %)")
    for every, size in ((20_000, 200), (50_000, 20), (100_000, 2000)):
        wrong, naive = false_alarms_of_outages(every, size, 100, 60_000, 100, 0.01 / 3)
        name = f"errors, {size} once in {every:,}, 100/s"
        show(name, wrong, 100, 0.01 / 3, f"   taken for independent: {naive} %")
        seen, naive = false_alarms_of_outages(every, size, 20, 60_000, 100, 0.01 / 3, more=0.01)
        print(f"   1 % more is seen in 60,000 requests in {5 * seen} % (taken for independent {5 * naive} %)")
    for name, kind in (
        *((f"flicker of {100 * rate:g} %", flicker(rate)) for rate in (0.05, 0.005, 0.001)),
        *((f"one of {count} values", one_of(count)) for count in (2, 3, 1000)),
        *((f"clock of {step} s, 5 ms apart", clock(step, 0.005)) for step in (1, 10, 60, 3600)),
        *((f"clock of {step} s, 100 ms apart", clock(step, 0.1)) for step in (1, 10, 60, 3600)),
    ):
        both = [believed(kind, 100_000, random.Random(seed)) for seed in range(200)]
        said, certain = (sum(map(bool, each)) for each in zip(*both, strict=True))
        show(f"noise, {name}", certain, 200, 0.01, f"   said to be different: {said / 2:g} %")
    for rate in (0.1, 0.01, 0.003):
        both = [believed(fault(rate), 100_000, random.Random(seed)) for seed in range(50)]
        medians = [statistics.median(each) for each in zip(*both, strict=True)]
        print(f"fault in {100 * rate:g} %: said after {medians[0]:,.0f} requests, certain after {medians[1]:,.0f}")
    for name, slower, errors, differing in (
        ("equal", 1.0, 0.0, 0.0),
        ("20 % slower", 1.2, 0.0, 0.0),
        ("50 % slower", 1.5, 0.0, 0.0),
        ("1 % more errors", 1.0, 0.01, 0.0),
        ("1 % of responses differ", 1.0, 0.0, 0.01),
    ):
        found = [
            first_verdict(Stream(random.Random(seed), slower, errors, differing), VerdictLimits(), 400_000)
            for seed in range(20)
        ]
        outcomes = {each.value: sum(outcome is each for outcome, _ in found) for each in Outcome}
        median = statistics.median(count for _, count in found)
        print(f"verdict, {name:24} {outcomes}, median after {median:,.0f} requests")
    limits = VerdictLimits(max_error_diff=None, max_p99_ratio=None)
    equal: dict[str, Callable[[random.Random], Statuses]] = {
        **{f"{rate:.1%}": partial(by_chance, rate=rate) for rate in (0.001, 0.01, 0.1, 0.3)},
        "by request": by_request,
        **{f"10 % in rows of {size}": partial(in_bursts, rate=0.1, size=size) for size in (3, 30, 1000)},
        **{f"{count} clients, a seat": partial(races, rate=0.1, clients=count) for count in (2, 3)},
        **{
            f"15 % by windows of {seconds} s, {refused} for {' and '.join(map(str, served))}": partial(
                in_windows, *(100 * seconds, 0.15, refused, *served)
            )
            for seconds in (10, 60)
            for refused, served in ((403, (200,)), (403, (200, 404)), (302, (200, 301)))
        },
        "each third 429": partial(in_turn, every=3, status=429),
        "each third 409": partial(in_turn, every=3, status=TAKEN),
    }
    for name, statuses in equal.items():
        wrong = sum(first_fail(statuses(random.Random(seed)), 20_000, limits) > 0 for seed in range(200))
        show(f"statuses of POST, {name}", wrong, 200, limits.alpha)
    for rate, neither in ((0.1, 0), (0.05, 0), (0.02, 0), (0.01, 0), (0.1, 0.002), (0.1, 0.005), (0.1, 0.01)):
        ends = [first_fail(swapping(random.Random(seed), rate, neither), 300_000, limits) for seed in range(20)]
        median = statistics.median(end or math.inf for end in ends)
        print(f"{rate:.0%} change places each way, {neither:.1%} on both sides: failed after {median:,.0f} requests")
    stream = Stream(random.Random(3), 1.2, 0.0, 0.0)
    for count in (10_000, 90_000):
        stream.step(count)
        low, high = ratio_interval(stream.shadow, stream.production, 0.99, 0.01)
        print(f"20 % slower, after {stream.pairs:,}: p99 ratio between {low:.3f} and {high:.3f} (alpha 1 %)")


if __name__ == "__main__":
    main()
