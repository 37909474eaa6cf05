# SPDX-License-Identifier: Apache-2.0
"""The counters of comparisons as metrics, by endpoint and side, with a bound on the number of endpoints.

Pure: briefs in (`compare.brief`), families of metrics out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, TypeAlias

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from tapmirror.compare.briefs import BEYOND, BOUNDS, NAMED
from tapmirror.compare.endpoints import OTHER
from tapmirror.compare.words import clean
from tapmirror.exchange import Failure, Unpaired

Brief: TypeAlias = Mapping[str, Any]

LABEL: Final = 200
"""Characters of an endpoint's name."""


class Compared:
    """Counters of one shadow's comparison.

    The first `NAMED` endpoints in the workers' briefs have series of their own as long as the tap runs; all others are
    `other`.  The number of differing exchanges may fall, when some of them turn out to be noise; the counter then
    stands still until it grows again.  All other numbers only grow, even if a worker is replaced (`figures.with_past`).
    What was counted is not counted again when its endpoint becomes part of another one.
    """

    def __init__(self) -> None:
        self.totals: dict[tuple[str, ...], float] = {}
        """Counters by (series, endpoint, …)."""
        self._last: dict[tuple[str, ...], float] = {}
        self._named: set[str] = set()

    def take(self, found: Brief) -> None:
        """Add what a brief has counted since the last one."""
        first = not self._last
        grown = self._grown("", found["all"], known=True)
        for name, endpoint in found["endpoints"].items():
            if name not in self._named and len(self._named) >= NAMED:
                continue
            self._named.add(name)
            shown = shown_endpoint(name)
            own = self._grown(name, endpoint, known=first or ("pairs", name) in self._last)
            if own["pairs",] > grown["pairs",]:  # a template took in others, which were counted as what they were
                own = {key: min(value, max(0, grown[key])) for key, value in own.items()}
            for key, value in own.items():
                self._add((key[0], shown, *key[1:]), value)
                grown[key] -= value
        for key, value in grown.items():
            self._add((key[0], OTHER, *key[1:]), max(0, value))
        for kind, known in (("unpaired", Unpaired), ("failures", Failure)):
            for key in [("unpaired", reason.value) for reason in known if reason.value in found[kind]]:
                self._add(key, self._growth(key, found[kind][key[1]]))

    def _add(self, key: tuple[str, ...], value: float) -> None:
        self.totals[key] = self.totals.get(key, 0) + value

    def _grown(self, name: str, endpoint: Brief, *, known: bool) -> dict[tuple[str, ...], float]:
        """By how much each number of an endpoint grew; 0 for a new endpoint, which was in `other` until now."""
        numbers = dict(_numbers(endpoint))
        grown = {key: self._growth((*key, name), value) for key, value in numbers.items()}
        return grown if known else dict.fromkeys(grown, 0.0)

    def _growth(self, key: tuple[str, ...], value: float) -> float:
        last, self._last[key] = self._last.get(key, 0), value
        return max(0, value - last)


def _numbers(endpoint: Brief) -> Iterator[tuple[tuple[str, ...], float]]:
    """Every number of an endpoint: ((series, …), value)."""
    for name in ("pairs", "compared", "differing"):
        yield (name,), endpoint[name]
    for side in ("production", "shadow"):
        yield ("errors", side), endpoint[side]["errors"]
        yield ("sum", side), endpoint[side]["sum_s"]
        for bound in (*BOUNDS, BEYOND):
            yield ("times", side, bound), endpoint[side]["times"].get(bound, 0)


def shown_endpoint(name: str) -> str:
    """An endpoint's name as a label: printable, and not long.

    The path came from the network; templates are in place of identifiers, and what `redact` names is removed.  The
    text format escapes the rest.
    """
    return clean(name)[:LABEL]


def families(compared: Sequence[tuple[str, str, Compared]]) -> Iterator[Metric]:
    """The metrics of all comparisons: (tap, shadow, counters)."""
    for name, series, text, labels in (
        ("exchanges", "pairs", "Requests that production and shadow both answered", ("endpoint",)),
        ("compared", "compared", "Of these, those whose responses were compared", ("endpoint",)),
        ("differing", "differing", "Of these, those that differ otherwise than by noise", ("endpoint",)),
        ("errors", "errors", "Responses that are errors (5xx, or none)", ("endpoint", "side")),
        ("unpaired", "unpaired", "Requests that could not be compared, by reason", ("reason",)),
    ):
        family = CounterMetricFamily(f"tapmirror_compare_{name}", text, labels=["tap", "shadow", *labels])
        for tap, label, of in compared:
            for key, value in of.totals.items():
                if key[0] == series:
                    family.add_metric([tap, label, *key[1:]], value)
        yield family
    yield _latency(compared)


def _latency(compared: Iterable[tuple[str, str, Compared]]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(
        "tapmirror_compare_latency_seconds",
        "Time to the last byte of responses to requests that both sides answered",
        labels=["tap", "shadow", "endpoint", "side"],
        unit="seconds",
    )
    for tap, label, of in compared:
        for _, endpoint, side in [key for key in of.totals if key[0] == "sum"]:
            counts = [of.totals[("times", endpoint, side, bound)] for bound in (*BOUNDS, BEYOND)]
            add_times(family, [tap, label, endpoint, side], BOUNDS, counts, of.totals[("sum", endpoint, side)])
    return family


def add_times(
    family: HistogramMetricFamily,
    labels: Sequence[str],
    bounds: Iterable[str],
    counts: Iterable[float],
    seconds: float,
) -> None:
    """Add a series to a histogram.

    `counts`: how many times are at most each bound and above the bound before it, then how many are above all bounds.
    `seconds`: the sum of all times.
    """
    names = (*(str(float(bound)) for bound in bounds), "+Inf")
    family.add_metric(labels, list(zip(names, accumulate(counts), strict=True)), seconds)
