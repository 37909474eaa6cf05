# SPDX-License-Identifier: Apache-2.0
"""A comparison in a few hundred numbers: for who watches it run, and for metrics.

A brief is plain data of which every number is a count or a sum, so that those of several workers add up
(`ledger.summed`); a verdict or a quantile is made of the sum (`judged`).  All of them only grow, but for what differs:
that falls when something turns out to be noise.  The whole state, with its fields and samples, is asked for where
somebody wants a report.

Endpoints: the first `NAMED` that are frequent have a place of their own and keep it, so that what metrics show of
them goes on; all the others are in `all` only.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec

from tapmirror.compare.briefs import BEYOND, BOUNDS, NAMED, badness
from tapmirror.compare.endpoints import OTHER
from tapmirror.compare.figures import Judged, crowds_of, error_crowd, judged_endpoint, noise_of
from tapmirror.compare.sketch import Sketch, value_at
from tapmirror.compare.statuses import crowds_by_status
from tapmirror.compare.summary import Endpoint, Side, State, Summary, is_error
from tapmirror.compare.verdict import P99, Counts, Verdict, VerdictLimits, judge
from tapmirror.ledger import summed
from tapmirror.spec.compare import Compare

FREQUENT: Final = 0.01
"""Share of the exchanges from which on an endpoint gets a place of its own."""
EVERY: Final = 2.0
"""Seconds until an endpoint is looked at anew."""
WORK: Final = 400.0
"""What one brief may look at, in differing fields, which take about 10 us each: what the ring has room for
meanwhile."""
LEAST: Final = 20
"""What an endpoint takes of a brief's `WORK`, beside one for each of its fields."""
COUNTS: Final = ("pairs", "only_shadow", "only_production", "compared", "differing")
"""The numbers of an endpoint."""
_EDGES: Final = tuple(float(bound) * 1e9 for bound in BOUNDS)


class Look(msgspec.Struct):
    """What an endpoint was when it was looked at last."""

    at: float
    counts: dict[str, Any]
    """The endpoint's numbers then (`COUNTS`), and what else a brief has of it."""
    found: Judged
    noise: set[str]
    """Fields of the endpoint that were noise then."""


class Briefing:
    """The briefs of one shadow.  What is differing costs too much to be made out of all endpoints at once: each brief
    looks at those anew that were looked at longest ago, and says of the others what they were then.
    """

    def __init__(self, spec: Compare, limits: VerdictLimits) -> None:
        self._spec = spec
        self._limits = limits
        self._named: list[str] = []
        """Endpoints that have a place of their own."""
        self._looks: dict[str, Look] = {}
        """Looks by endpoint; the oldest first."""

    def folded(self, names: Mapping[str, str]) -> None:
        """Endpoints became a part of others (`Summary.fold`; new names by old): their looks are added up, or counts
        would fall.
        """
        for name, template in names.items():
            gone, into = self._looks.pop(name, None), self._looks.get(template)
            if gone is not None and into is not None:
                into.counts = summed([into.counts, gone.counts])
                into.found += gone.found
            elif gone is not None:
                self._looks[template] = gone

    def brief(self, summary: Summary, now: float, work: float = math.inf) -> dict[str, Any]:
        """What a state says in short.  `work` bounds how much is looked at anew, in differing fields (`WORK`); `now`
        may be infinite: everything is looked at.
        """
        state, looks = summary.state, self._looks
        self._look(state, now, work)
        total = summed([_NOTHING, *(look.counts for look in looks.values())])
        found = sum((look.found for look in looks.values()), Judged())
        counts = {name: {key: look.counts[key] for key in COUNTS} for name, look in looks.items()}
        worst = max(counts, key=lambda name: badness(counts[name]), default=None)
        return {
            "requests": state.requests,
            "paired": total["pairs"],
            "unpaired": dict(state.unpaired),
            "failures": dict(state.failures),
            "certain": found.certain,
            "possible": found.possible,
            "erring": found.erring,
            "times": {
                side: {str(key): count for key, count in sketch.buckets.items()}
                for side, sketch in (("production", summary.production), ("shadow", summary.shadow))
            },
            "crowds": self._crowds(summary),
            "outages": self._outages(summary),
            "all": total,
            "endpoints": {name: looks[name].counts for name in self._places(total["pairs"])},
            "worst": {} if worst is None else {worst: counts[worst]},
        }

    def _crowds(self, summary: Summary) -> dict[str, float]:
        """By how much those of both sides at the 99th percentile are above 1, and of how many times that is told.

        A pause makes times slow of all workers at once: then what all of them together have above 1 is the sum.  Where
        each has its own it is less, and a verdict comes later than it could.
        """
        shadow, production = crowds_of(summary.state, P99)
        if min(shadow, production) < 1:
            return {"production": 0.0, "shadow": 0.0, "told": 0}
        return {"production": production - 1, "shadow": shadow - 1, "told": summary.production.count}

    def _outages(self, summary: Summary) -> dict[str, float]:
        """The same of errors, which come together while something is away.

        Where it cannot be told yet all of them are taken for one: other workers that can tell must not speak for them.
        """
        each = summary.state.endpoints.values()
        plus, minus = sum(one.only_shadow for one in each), sum(one.only_production for one in each)
        found = error_crowd(summary.state, plus, minus)
        if found < 1:
            return {"errors": float(plus + minus), "told": 0}
        return {"errors": found - 1, "told": sum(one.pairs for one in each)}

    def _look(self, state: State, now: float, work: float) -> None:
        """Look at endpoints whose turn it is: new ones first."""
        looks, endpoints = self._looks, state.endpoints
        chosen = []
        new = [name for name in endpoints if name not in looks]
        old = [name for name, look in looks.items() if now == math.inf or now - look.at >= EVERY]
        for name in (*new, *old):
            chosen.append(name)
            work -= LEAST + len(endpoints[name].fields)
            if work <= 0:
                break
        if not chosen:
            return
        at = now if now < math.inf else -math.inf  # the next brief is to look again
        noise = {name: noise_of(endpoints[name], self._spec) for name in chosen}
        known = set().union(*noise.values(), *(look.noise for name, look in looks.items() if name not in noise))
        fields = sum(len(each.fields) for each in endpoints.values())
        by_status = crowds_by_status(state)
        for name in chosen:
            endpoint = endpoints[name]
            found = judged_endpoint(name, endpoint, self._spec, self._limits, known, fields, by_status)
            looks.pop(name, None)
            looks[name] = Look(at, _endpoint(endpoint, found), found, noise[name])

    def _places(self, pairs: int) -> list[str]:
        """The endpoints that have a place, of so many exchanges; new ones get theirs."""
        looks, named = self._looks, self._named
        named[:] = [name for name in named if name in looks]
        for name in sorted(looks, key=lambda name: -looks[name].counts["pairs"]):
            if len(named) >= NAMED or looks[name].counts["pairs"] < FREQUENT * pairs:
                break
            if name not in named and name != OTHER:
                named.append(name)
        return named


def judged(found: Mapping[str, Any], limits: VerdictLimits | None = None) -> Verdict:
    """The verdict so far, of a brief or the sum of several."""
    everything = found["all"]
    sketches = {
        side: Sketch({int(key): count for key, count in found["times"][side].items()})
        for side in ("production", "shadow")
    }
    crowds = found["crowds"]
    told = 0 < sketches["production"].count <= 2 * crowds["told"]  # a worker that has few times tells nothing of them
    outages = found.get("outages", {"errors": 0.0, "told": 0})  # a daemon from before they were looked at has none
    known = everything["pairs"] <= 2 * outages["told"]
    counts = Counts(
        everything["pairs"],
        everything["only_shadow"],
        everything["only_production"],
        sketches["production"],
        sketches["shadow"],
        everything["compared"],
        everything["differing"] - found.get("erring", 0),  # a daemon from before has none
        found["certain"],
        found["possible"],
        (1 + crowds["shadow"], 1 + crowds["production"]) if told else (0.0, 0.0),
        1 + outages["errors"] if known else 0.0,
        found["requests"],
    )
    return judge(counts, limits or VerdictLimits())


def _endpoint(endpoint: Endpoint, found: Judged) -> dict[str, Any]:
    return {
        "pairs": endpoint.pairs,
        "only_shadow": endpoint.only_shadow,
        "only_production": endpoint.only_production,
        "compared": endpoint.compared,
        "differing": found.differing,
        "production": _side(endpoint.production),
        "shadow": _side(endpoint.shadow),
    }


def _side(side: Side) -> dict[str, Any]:
    """Errors, and the times to the last byte by bound; each value is in one of them, `sum_s` is their sum."""
    times = dict.fromkeys((*BOUNDS, BEYOND), 0)
    seconds = 0.0
    for key, count in side.last.buckets.items():
        bound, value = _bin(key)
        times[bound] += count
        seconds += value * count
    errors = sum(count for status, count in side.statuses.items() if is_error(status))
    return {"errors": errors, "times": times, "sum_s": seconds}


@lru_cache(4096)
def _bin(key: int) -> tuple[str, float]:
    """Bound and value in seconds of a bucket of a sketch."""
    value = value_at(key)
    index = bisect_left(_EDGES, value)
    return (BOUNDS[index] if index < len(BOUNDS) else BEYOND), value * 1e-9


_NOTHING: Final = _endpoint(Endpoint(), Judged())
