# SPDX-License-Identifier: Apache-2.0
"""A comparison in some hundred numbers, for live views and metrics.

A brief is plain data.  Every number in it is a count or a sum, so briefs of several workers add up (`ledger.summed`);
verdicts and quantiles are computed from the sum (`judged`).  Numbers only grow, except those of differing exchanges,
which fall when a difference turns out to be noise.  For a report, the whole state is asked for, with fields and
samples.

The first `NAMED` frequent endpoints get a place of their own and keep it, so that their metrics continue.  All others
are only in `all`.
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
"""Share of the exchanges that an endpoint needs to get a place of its own."""
EVERY: Final = 2.0
"""Seconds until an endpoint is computed again."""
WORK: Final = 400.0
"""Most differing fields that one brief computes again, each in 10 us: the ring has room for what comes meanwhile."""
LEAST: Final = 20
"""How much of `WORK` an endpoint takes, in addition to one for each of its fields."""
COUNTS: Final = ("pairs", "only_shadow", "only_production", "compared", "differing")
"""The numbers of an endpoint."""
_EDGES: Final = tuple(float(bound) * 1e9 for bound in BOUNDS)


class Look(msgspec.Struct):
    """What was computed of an endpoint the last time."""

    at: float
    counts: dict[str, Any]
    """The endpoint's numbers then (`COUNTS`), and what else a brief has of it."""
    found: Judged
    noise: set[str]
    """Fields of the endpoint that were noise then."""


class Briefing:
    """Makes the briefs of one shadow.

    Judging what differs is too expensive for all endpoints at once.  So each brief computes those again that were
    computed longest ago, and keeps the earlier numbers of the others.
    """

    def __init__(self, spec: Compare, limits: VerdictLimits) -> None:
        self._spec = spec
        self._limits = limits
        self._named: list[str] = []
        """Endpoints that have a place of their own."""
        self._looks: dict[str, Look] = {}
        """Looks by endpoint; the oldest first."""

    def folded(self, names: Mapping[str, str]) -> None:
        """Add up the looks of endpoints that became part of others (`Summary.fold`; new names by old).

        Otherwise counts would fall.
        """
        for name, template in names.items():
            gone, into = self._looks.pop(name, None), self._looks.get(template)
            if gone is not None and into is not None:
                into.counts = summed([into.counts, gone.counts])
                into.found += gone.found
            elif gone is not None:
                self._looks[template] = gone

    def brief(self, summary: Summary, now: float, work: float = math.inf) -> dict[str, Any]:
        """The brief of a state.

        `work` bounds how many differing fields are computed again (`WORK`).  If `now` is infinite, all are.
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
        """By how much the crowds of both sides at the 99th percentile exceed 1, and from how many times that is known.

        A pause makes the times of all workers slow together; then the excess of all is the sum.  If each worker has its
        own pauses, it is less than the sum, and a verdict comes later than it could.
        """
        shadow, production = crowds_of(summary.state, P99)
        if min(shadow, production) < 1:
            return {"production": 0.0, "shadow": 0.0, "told": 0}
        return {"production": production - 1, "shadow": shadow - 1, "told": summary.production.count}

    def _outages(self, summary: Summary) -> dict[str, float]:
        """The same for errors, which come together while something is down.

        As long as it is not known, all errors count as one: other workers must not decide for this one.
        """
        each = summary.state.endpoints.values()
        plus, minus = sum(one.only_shadow for one in each), sum(one.only_production for one in each)
        found = error_crowd(summary.state, plus, minus)
        if found < 1:
            return {"errors": float(plus + minus), "told": 0}
        return {"errors": found - 1, "told": sum(one.pairs for one in each)}

    def _look(self, state: State, now: float, work: float) -> None:
        """Compute the endpoints whose turn it is again, new ones first."""
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
        """The endpoints that have a place, after giving one to new frequent ones; `pairs` are all exchanges."""
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
    told = 0 < sketches["production"].count <= 2 * crowds["told"]  # a worker with few times does not know their crowd
    outages = found.get("outages", {"errors": 0.0, "told": 0})  # an earlier version has none
    known = everything["pairs"] <= 2 * outages["told"]
    counts = Counts(
        everything["pairs"],
        everything["only_shadow"],
        everything["only_production"],
        sketches["production"],
        sketches["shadow"],
        everything["compared"],
        everything["differing"] - found.get("erring", 0),  # an earlier version has none
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
