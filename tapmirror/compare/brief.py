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

from bisect import bisect_left
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from tapmirror.compare.endpoints import OTHER
from tapmirror.compare.figures import Judged, differing
from tapmirror.compare.sketch import Sketch, value_at
from tapmirror.compare.summary import ERROR, Endpoint, Side, State
from tapmirror.compare.verdict import Counts, Limits, Verdict, judge
from tapmirror.spec.compare import Compare

NAMED: Final = 10
"""Endpoints with a place of their own: each is 36 series of a shadow's metrics."""
FREQUENT: Final = 0.01
"""Share of the exchanges from which on an endpoint gets one."""
BOUNDS: Final = ("0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10")
"""Of histograms, in seconds: Prometheus' own, and 1 and 2.5 ms below them."""
BEYOND: Final = "+Inf"
_EDGES: Final = tuple(float(bound) * 1e9 for bound in BOUNDS)


def brief(state: State, spec: Compare, limits: Limits, named: list[str]) -> dict[str, Any]:
    """What a state says in short.  `named` are the endpoints that have a place; new ones are added to it."""
    total = _whole(state)
    found = differing(state, spec, limits)
    named[:] = [name for name in named if name in state.endpoints]
    ranked = sorted(state.endpoints, key=lambda name: -state.endpoints[name].pairs)
    for name in ranked:
        if len(named) >= NAMED or state.endpoints[name].pairs < FREQUENT * total.pairs:
            break
        if name not in named and name != OTHER:
            named.append(name)
    counts = {name: _counts(each, found[name]) for name, each in state.endpoints.items()}
    worst = max(counts, key=lambda name: badness(counts[name]), default=None)
    everything = sum((each for each in found.values()), Judged())
    return {
        "requests": state.requests,
        "paired": total.pairs,
        "unpaired": dict(state.unpaired),
        "failures": dict(state.failures),
        "certain": everything.certain,
        "possible": everything.possible,
        "times": {
            "production": _buckets(total.production.last),
            "shadow": _buckets(total.shadow.last),
        },
        "all": _endpoint(total, everything),
        "endpoints": {name: _endpoint(state.endpoints[name], found[name]) for name in named},
        "worst": {} if worst is None else {worst: counts[worst]},
    }


def judged(found: Mapping[str, Any], limits: Limits | None = None) -> Verdict:
    """The verdict so far, of a brief or the sum of several."""
    everything = found["all"]
    sketches = {
        side: Sketch({int(key): count for key, count in found["times"][side].items()})
        for side in ("production", "shadow")
    }
    counts = Counts(
        everything["pairs"],
        everything["only_shadow"],
        everything["only_production"],
        sketches["production"],
        sketches["shadow"],
        everything["compared"],
        everything["differing"],
        found["certain"],
        found["possible"],
    )
    return judge(counts, limits or Limits())


def _whole(state: State) -> Endpoint:
    """All endpoints as one, as far as a brief needs it."""
    total = Endpoint()
    for each in state.endpoints.values():
        for name in ("pairs", "only_shadow", "only_production", "compared"):
            setattr(total, name, getattr(total, name) + getattr(each, name))
        for into, side in ((total.production, each.production), (total.shadow, each.shadow)):
            into.last.merge(side.last)
            for status, count in side.statuses.items():
                into.statuses[status] = into.statuses.get(status, 0) + count
    return total


def _counts(endpoint: Endpoint, found: Judged) -> dict[str, int]:
    return {
        "pairs": endpoint.pairs,
        "only_shadow": endpoint.only_shadow,
        "only_production": endpoint.only_production,
        "compared": endpoint.compared,
        "differing": found.differing,
    }


def _endpoint(endpoint: Endpoint, found: Judged) -> dict[str, Any]:
    return {
        **_counts(endpoint, found),
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
    errors = sum(count for status, count in side.statuses.items() if status >= ERROR or not status)
    return {"errors": errors, "times": times, "sum_s": seconds}


@lru_cache(4096)
def _bin(key: int) -> tuple[str, float]:
    """Bound and value in seconds of a bucket of a sketch."""
    value = value_at(key)
    index = bisect_left(_EDGES, value)
    return (BOUNDS[index] if index < len(BOUNDS) else BEYOND), value * 1e-9


def _buckets(sketch: Sketch) -> dict[str, int]:
    return {str(key): count for key, count in sketch.buckets.items()}


def badness(counts: Mapping[str, int]) -> float:
    """Of an endpoint in a brief.  As reports sort them, but for slowness: errors first."""
    errors = max(0, counts["only_shadow"] - counts["only_production"]) / max(1, counts["pairs"])
    return 10 * errors + counts["differing"] / max(1, counts["compared"])
