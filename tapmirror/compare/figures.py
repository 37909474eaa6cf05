# SPDX-License-Identifier: Apache-2.0
"""The results of a comparison, computed from its state: rates, quantiles, differences and noise, and the verdict.

Reports show them, and `report --format json` prints them.  Times are in milliseconds, shares between 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import Any, Final

import msgspec

from tapmirror.compare.findings import Change
from tapmirror.compare.identifiers import likely
from tapmirror.compare.noise import ENOUGH, Nature, Thresholds, apart_by_either, evidence_of, is_noise, nature
from tapmirror.compare.sketch import Sketch, value_at
from tapmirror.compare.statistics import (
    crowd,
    crowd_of_differences,
    difference_interval,
    ratio_interval,
    share_interval,
    thinned,
)
from tapmirror.compare.statuses import CrowdsByStatus, balanced_errors, balanced_statuses, chance, crowds_by_status
from tapmirror.compare.summary import (
    COARSE,
    SCHEMA,
    STATUS,
    Endpoint,
    Sample,
    Side,
    State,
    merged,
    state_bounds,
    whole,
)
from tapmirror.compare.thinning import LATE
from tapmirror.compare.verdict import P99, Counts, Verdict, VerdictLimits, judge
from tapmirror.spec.compare import Compare, Level

SCHEMA_FIGURES: Final = "tapmirror.report/1"
BINS: Final = 48
"""Most bins of a distribution for drawing."""
MS: Final = 1e-6


class Estimate(msgspec.Struct, frozen=True):
    """A number, and the interval that contains it (with the certainty of the limits' alpha)."""

    value: float | None
    """The number; None: it is not known."""
    low: float | None
    high: float | None
    """Upper end of the interval; None: there is no bound."""


class Bin(msgspec.Struct, frozen=True):
    """One bin of a distribution of times, in milliseconds, with how many of each side lie in it."""

    low: float
    high: float
    production: int
    shadow: int


class SideFigures(msgspec.Struct, frozen=True):
    """One side of an endpoint."""

    statuses: dict[str, int]
    """Responses by status code; `none`: no response came."""
    error_rate: float
    first: dict[str, float]
    """Time from the request's last byte to the response's first, in milliseconds: p50, p90, p99."""
    last: dict[str, float]
    """Time from the request's last byte to the response's last, in milliseconds: p50, p90, p99."""
    mean_bytes: float
    """Mean length of a body as it came, in bytes."""


class FieldFigures(msgspec.Struct, frozen=True):
    """A field in which responses differ."""

    kind: str
    path: str
    nature: Nature
    count: int
    """Exchanges in which it differed."""
    raw: float
    """Share of the exchanges in which it differed."""
    noise: float | None
    """Share of pairs of one version in which it differed; None: there were none."""
    rate: float
    """`raw` without the part that is due to noise."""
    samples: list[Sample]


class EndpointFigures(msgspec.Struct, frozen=True):
    """One endpoint, or all of them."""

    name: str
    pairs: int
    production: SideFigures
    shadow: SideFigures
    paired_ratio: dict[str, float]
    """Quantiles (p50, p90, p99) of the ratio of the shadow's time to production's in the same exchange."""
    p50_ratio: Estimate
    """The shadow's p50 divided by production's, of the time to the last byte."""
    p99_ratio: Estimate
    error_diff: Estimate
    """The shadow's error rate minus production's."""
    compared: int
    differing: int
    """Exchanges that differed by more than noise."""
    diff_rate: Estimate
    fields: list[FieldFigures]
    skipped: dict[str, int]
    """Bodies that could not be compared, by reason."""
    bins: list[Bin]
    """Distribution of the times to the last byte."""


class PointFigures(msgspec.Struct, frozen=True):
    """A stretch of time; production's value comes first."""

    at: float
    """Seconds from the first exchange."""
    requests: int
    errors: tuple[int, int]
    p50: tuple[float, float]
    p99: tuple[float, float]


class Figures(msgspec.Struct, frozen=True):
    """Everything about one shadow of one tap."""

    schema: str
    tap: str
    shadow: str
    level: str
    seconds: float
    requests: int
    paired: int
    unpaired: dict[str, int]
    failures: dict[str, int]
    thinned: int
    raw: int
    """Connections that are not HTTP/1, and so not compared."""
    rtt: float | None
    """Mean of the least round-trip times to the shadow, which its times include; None: not known."""
    notes: list[str]
    verdict: Verdict
    alpha: float
    all: EndpointFigures
    endpoints: list[EndpointFigures]
    """Figures of each endpoint, the worst first."""
    line: list[PointFigures]
    width: float
    """Seconds that a point of `line` covers."""


def merge(snapshots: Sequence[Mapping[str, Any]], spec: Compare) -> dict[str, State]:
    """Merge the snapshots of several workers into the states of all shadows, by label.

    Raises `msgspec.ValidationError` if one is malformed.
    """
    bounds = state_bounds(spec)
    by_label: dict[str, list[State]] = {}
    for snapshot in snapshots:
        if snapshot.get("schema") != SCHEMA:
            raise msgspec.ValidationError(f"its schema is {str(snapshot.get('schema'))[:40]}, and not {SCHEMA}")
        for label, state in msgspec.convert(snapshot.get("shadows"), dict[str, State], str_keys=True).items():
            by_label.setdefault(label, []).append(state)
    return {label: merged(states, bounds) for label, states in by_label.items()}


def figures(tap: str, shadow: str, state: State, spec: Compare, limits: VerdictLimits) -> Figures:
    """The figures of a state."""
    thresholds = _thresholds(spec)
    known = _noise_elsewhere(state, thresholds)
    total = whole(state)
    errors = error_crowd(state, total.only_shadow, total.only_production)
    wrong = total.only_shadow + total.only_production
    found = differing(state, spec, limits)
    by_status = crowds_by_status(state)
    crowds = {share: crowds_of(state, share) for share in (0.5, P99)}
    timed = total.production.last.count
    endpoints = [
        _endpoint(
            name,
            each,
            thresholds,
            known,
            limits,
            found[name].differing,
            {share: _part(both, each.production.last.count, timed) for share, both in crowds.items()},
            thinned(errors, (each.only_shadow + each.only_production) / wrong) if wrong else errors,
            by_status,
            _probed(name, spec),
        )
        for name, each in state.endpoints.items()
    ]
    endpoints.sort(key=lambda each: (-_badness(each), -_doublings(each), -each.pairs, each.name))
    together = sum(found.values(), Judged())
    everything = _endpoint(
        "all", total, thresholds, known, limits, together.differing, crowds, errors, {}, probes=False
    )
    counts = _counts(state, total, together, crowds[P99], errors)
    return Figures(
        SCHEMA_FIGURES,
        tap,
        shadow,
        state.level,
        0.0 if state.began is None else state.ended - state.began,
        state.requests,
        total.pairs,
        dict(sorted(state.unpaired.items(), key=lambda item: -item[1])),
        dict(sorted(state.failures.items(), key=lambda item: -item[1])),
        state.thinned,
        state.raw,
        state.rtt_ns / state.rtts * MS if state.rtts else None,
        [*state.notes, *_late(state, total.pairs), *_asked_once(endpoints, spec), *_taken(endpoints)],
        judge(counts, limits),
        limits.alpha,
        everything,
        endpoints,
        _line(state),
        state.width,
    )


def _counts(state: State, total: Endpoint, together: Judged, slowest: tuple[float, float], errors: float) -> Counts:
    """What the verdict is made from.

    `total` and `together` are sums over all endpoints, `slowest` the crowds beyond the 99th percentile (`crowds_of`),
    `errors` that of errors (`error_crowd`).
    """
    return Counts(
        total.pairs,
        total.only_shadow,
        total.only_production,
        total.production.last,
        total.shadow.last,
        total.compared,
        together.differing - together.erring,
        together.certain,
        together.possible,
        slowest,
        errors,
        state.requests,
    )


class Judged(msgspec.Struct, frozen=True):
    """How many exchanges of an endpoint differ, by how certain it is that the difference is not noise."""

    differing: int = 0
    """Exchanges that differ by more than noise."""
    certain: int = 0
    """Exchanges with a field that certainly differs more often than by noise; without those of `erring`."""
    possible: int = 0
    """Exchanges with a field that is not noise, or may not be noise; without those of `erring`."""
    erring: int = 0
    """Exchanges of `differing` that differ because only one side's response is an error."""

    def __add__(self, other: Judged) -> Judged:
        return Judged(
            self.differing + other.differing,
            self.certain + other.certain,
            self.possible + other.possible,
            self.erring + other.erring,
        )


def differing(state: State, spec: Compare, limits: VerdictLimits) -> dict[str, Judged]:
    """How many of each endpoint's exchanges differ."""
    known = _noise_elsewhere(state, _thresholds(spec))
    fields = sum(len(each.fields) for each in state.endpoints.values())
    by_status = crowds_by_status(state)
    return {
        name: judged_endpoint(name, each, spec, limits, known, fields, by_status)
        for name, each in state.endpoints.items()
    }


def judged_endpoint(
    name: str,
    endpoint: Endpoint,
    spec: Compare,
    limits: VerdictLimits,
    known: Set[str],
    fields: int,
    by_status: CrowdsByStatus,
) -> Judged:
    """How many of an endpoint's exchanges differ.

    `known` are the fields that are noise elsewhere (`noise_of`), `fields` how many fields differ at all endpoints,
    `by_status` as of `crowds_by_status`.

    If error rates have a limit, exchanges with an error of one side alone count only for that limit, as long as neither
    side certainly has more of them.  That limit compares the sums of both sides, while two equal versions with 1 % of
    errors each differ in 2 % of the exchanges.

    Statuses below 500 that are balanced (`balanced_statuses`) are not counted either: they come from rate limiters, or
    from races.
    """
    given = [limits.max_error_diff, limits.max_p99_ratio, limits.max_diff_rate]
    level = limits.alpha / max(1, sum(limit is not None for limit in given))
    level /= 2 * max(1, fields)  # half of it
    thresholds = _thresholds(spec)
    probes = _probed(name, spec)
    natures = {field: _nature(field, endpoint, thresholds, known, probes) for field in endpoint.fields}
    open_ = {field for field, what in natures.items() if what is not Nature.NOISE}
    different = {field for field in open_ if natures[field] is Nature.DIFFERENT}
    sure = {field for field in different if certainly(field, endpoint, probes, level)}
    counts, statuses = [0, 0, 0], [0, 0, 0]
    for signature, count in endpoint.signatures.items() if open_ else ():
        names = signature.split("\n")
        for place, among in enumerate((different, sure, open_)):
            if not among.isdisjoint(names):
                counts[place] += count
                statuses[place] += count if signature.endswith(_STATUS) else 0
    all_, seen, most, least = balanced_statuses(endpoint, level, by_status)
    if STATUS in open_:
        alike = [min(each, count) for each, count in zip((seen, most, least), statuses, strict=True)]
        more = (0, 0, 0)
    else:  # noise but for what one side has more of
        alike = [0, 0, 0]
        more = (all_ - most, all_ - most, all_ - least)
    balanced = 0 if limits.max_error_diff is None else balanced_errors(endpoint, level)
    erring = [min(balanced, count - less) for count, less in zip(statuses, alike, strict=True)]
    counted = [count - less + plus for count, less, plus in zip(counts, alike, more, strict=True)]
    return Judged(counted[0], counted[1] - erring[1], counted[2] - erring[2], erring[0])


def noise_of(endpoint: Endpoint, spec: Compare) -> set[str]:
    """Fields of an endpoint that are noise, as its noise pairs show."""
    return _noise(endpoint, _thresholds(spec))


def _probed(name: str, spec: Compare) -> bool:
    """Whether there are, or will be, probes of an endpoint."""
    return bool(spec.noise_probe) and spec.level is not Level.STATUS and name.startswith(_PROBED)


def _thresholds(spec: Compare) -> Thresholds:
    return Thresholds(spec.noise_relative / 100, spec.noise_absolute / 100)


def _endpoint(
    name: str,
    endpoint: Endpoint,
    thresholds: Thresholds,
    known: Set[str],
    limits: VerdictLimits,
    count: int,
    crowds: Mapping[float, tuple[float, float]],
    errors: float,
    by_status: CrowdsByStatus,
    probes: bool,
) -> EndpointFigures:
    """`count` of its exchanges differ; `errors` is the crowd of its errors, `by_status` those of statuses."""
    fields = sorted(
        _fields(endpoint, thresholds, known, by_status, probes),
        key=lambda each: (_ORDER[each.nature], -each.rate, each.path),
    )
    pairs = endpoint.pairs
    diff = (endpoint.only_shadow - endpoint.only_production) / pairs if pairs else None
    low, high = difference_interval(endpoint.only_shadow, endpoint.only_production, pairs, limits.alpha, errors)
    rate = count / endpoint.compared if endpoint.compared else None
    production, shadow = endpoint.production, endpoint.shadow
    return EndpointFigures(
        name,
        pairs,
        _side(production),
        _side(shadow),
        _quantiles(endpoint.ratio, 1.0),
        _ratio(shadow.last, production.last, 0.5, limits.alpha, crowds[0.5]),
        _ratio(shadow.last, production.last, P99, limits.alpha, crowds[P99]),
        Estimate(diff, low, high),
        endpoint.compared,
        count,
        Estimate(rate, *share_interval(count, endpoint.compared, limits.alpha)),
        fields,
        dict(sorted(endpoint.skipped.items(), key=lambda item: -item[1])),
        _bins(production.last, shadow.last),
    )


def certainly(name: str, endpoint: Endpoint, probes: bool, alpha: float) -> bool:
    """Whether probes, or repeats, show that a field is not noise; wrong with probability `alpha` at most.

    A field without such pairs, and a status, counts as not noise.
    """
    if not (probes or endpoint.probed or endpoint.repeated) or name.endswith(_STATUS):
        return True
    return apart_by_either(endpoint, endpoint.fields[name], alpha)


def _side(side: Side) -> SideFigures:
    count = sum(side.statuses.values())
    errors = sum(count for status, count in side.statuses.items() if status >= 500 or not status)
    return SideFigures(
        {str(status) if status else "none": side.statuses[status] for status in sorted(side.statuses)},
        errors / count if count else 0.0,
        _quantiles(side.first, MS),
        _quantiles(side.last, MS),
        side.bytes / count if count else 0.0,
    )


def _quantiles(sketch: Sketch, unit: float) -> dict[str, float]:
    return {name: sketch.quantile(share) * unit for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))}


def crowds_of(state: State, share: float) -> tuple[float, float]:
    """The (shadow's, production's) crowds: how many of the times beyond the quantile `share` count as one."""
    line = state.line
    return (
        crowd({number: point.shadow for number, point in line.items() if point.shadow}, share),
        crowd({number: point.production for number, point in line.items() if point.production}, share),
    )


def error_crowd(state: State, only_shadow: int, only_production: int) -> float:
    """The crowd of errors of one side alone: how many count as one (`statistics.crowd_of_differences`)."""
    line = {number: (point.pairs, point.errors[1] - point.errors[0]) for number, point in state.line.items()}
    return crowd_of_differences(line, only_shadow, only_production, state.width)


def _part(crowds: tuple[float, float], count: int, of: int) -> tuple[float, float]:
    """The crowds of an endpoint with `count` of all `of` requests: its requests are farther from each other by that
    factor.
    """
    return crowds if not of else (thinned(crowds[0], count / of), thinned(crowds[1], count / of))


def _ratio(over: Sketch, under: Sketch, share: float, alpha: float, crowds: tuple[float, float]) -> Estimate:
    below = under.quantile(share)
    low, high = ratio_interval(over, under, share, alpha, crowds=crowds)
    return Estimate(over.quantile(share) / below if below else None, low, high if high < math.inf else None)


def _fields(
    endpoint: Endpoint, thresholds: Thresholds, known: Set[str], by_status: CrowdsByStatus, probes: bool
) -> list[FieldFigures]:
    found = []
    names = endpoint.fields.keys()
    for name, field in endpoint.fields.items():
        if not field.raw:
            continue
        evidence = evidence_of(endpoint, field)
        what = _nature(name, endpoint, thresholds, known, probes)
        if what is Nature.DIFFERENT and name.startswith(_IDENTIFIER) and name.replace(_IDENTIFIER, _VALUE, 1) in names:
            continue  # before it was known to be none: the value says it
        if name == STATUS and field.raw == sum(endpoint.discordant.values()):
            what = chance(endpoint, what, by_status)
        raw = field.raw / endpoint.compared if endpoint.compared else 0.0
        noise = evidence.noisy / evidence.pairs if evidence.pairs else None
        kind, _, path = name.partition(" ")
        rate = 0.0 if what is Nature.NOISE else max(0.0, raw - (noise or 0.0))
        found.append(FieldFigures(kind, path, what, field.raw, raw, noise, rate, field.samples))
    return found


def _nature(name: str, endpoint: Endpoint, thresholds: Thresholds, known: Set[str], probes: bool) -> Nature:
    """What a field of an endpoint is; `known` are those that are noise elsewhere."""
    field = endpoint.fields[name]
    evidence = evidence_of(endpoint, field, probes)
    if name.startswith(_IDENTIFIER) and not evidence.pairs:
        if likely(field.raw, field.unlike) or name.replace(_IDENTIFIER, _VALUE, 1) in known:
            return Nature.NOISE
        return Nature.WAITING if field.raw < ENOUGH and 2 * field.unlike <= field.raw else Nature.DIFFERENT
    what = nature(field.raw, endpoint.compared, evidence, thresholds)
    if what is not Nature.NOISE and not evidence.pairs and name in known:
        return Nature.NOISE
    if what is Nature.WAITING and name.endswith(_STATUS):
        return Nature.DIFFERENT  # seldom noise, and too grave to wait
    return what


def _noise_elsewhere(state: State, thresholds: Thresholds) -> set[str]:
    """Fields that are noise at some endpoint where noise pairs were seen."""
    return set().union(*(_noise(endpoint, thresholds) for endpoint in state.endpoints.values()))


def _noise(endpoint: Endpoint, thresholds: Thresholds) -> set[str]:
    found = set()
    for name, field in endpoint.fields.items():
        evidence = evidence_of(endpoint, field)
        if evidence.noisy and is_noise(field.raw, endpoint.compared, evidence, thresholds):
            found.add(name)
    return found


def _badness(endpoint: EndpointFigures) -> float:
    """By what endpoints are sorted: errors, differences, slowness as far as it is certain."""
    slower = math.log(max(1.0, endpoint.p99_ratio.low or 1.0)) + math.log(max(1.0, endpoint.p50_ratio.low or 1.0))
    return 10 * max(0.0, endpoint.error_diff.value or 0.0) + (endpoint.diff_rate.value or 0.0) + slower


def _doublings(endpoint: EndpointFigures) -> int:
    """How many times the median seems to have doubled.

    This is certain only after hundreds of requests; until then it puts the most interesting endpoints first.
    """
    return int(math.log2(max(1.0, endpoint.p50_ratio.value or 1.0)))


def _late(state: State, pairs: int) -> list[str]:
    """A note that the tap was late, and how many exchanges are not timed for that."""
    if not state.late:
        return []
    cause = f"the tap was more than {1000 * LATE:.0f} ms behind"
    return [f"{state.late:,} of {pairs:,} exchanges are not timed: {cause}; it needs more CPU, or a smaller share"]


def _asked_once(endpoints: Sequence[EndpointFigures], spec: Compare) -> list[str]:
    """A note about endpoints where identifiers and times may count as differences, for lack of noise pairs."""
    names = [
        each.name
        for each in endpoints
        if not _probed(each.name, spec) and any(_always(field) and field.path != _STATUS[1:] for field in each.fields)
    ]
    if not names:
        return []
    where = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return [
        f"requests are sent only once at {where}: put what always differs there into ignore_paths or ignore_headers"
    ]


def _taken(endpoints: Sequence[EndpointFigures]) -> list[str]:
    """What was taken for identifiers and times that each version generates."""
    kind = _IDENTIFIER.strip()
    taken = [
        f"{each.name} " + ", ".join(fields)
        for each in endpoints
        if (fields := [one.path for one in each.fields if one.kind == kind and one.nature is Nature.NOISE])
    ]
    if not taken:
        return []
    more = f" and at {len(taken) - 10} more endpoints" if len(taken) > 10 else ""
    return [f"taken for identifiers and times that each version generates: {'; '.join(taken[:10])}{more}"]


def _always(field: FieldFigures) -> bool:
    """Whether it differs more often than not, and nothing is known of its noise."""
    return field.nature is Nature.DIFFERENT and field.noise is None and field.raw > 0.5


def _bins(one: Sketch, other: Sketch) -> list[Bin]:
    """Both distributions in bins of equal width on a logarithmic scale, without the outermost 0.1 %."""
    if not one.count and not other.count:
        return []
    both = Sketch()
    both.merge(one)
    both.merge(other)
    low, high = both.around(0.001, 0.999)
    step = (math.log(high) - math.log(low)) / BINS
    counts = [[0] * BINS, [0] * BINS]
    for into, sketch in zip(counts, (one, other), strict=True):
        for value, count in sketch.points():
            into[min(BINS - 1, max(0, int((math.log(value) - math.log(low)) / step)))] += count
    edges = [low * math.exp(step * n) * MS for n in range(BINS + 1)]
    return [Bin(edges[n], edges[n + 1], counts[0][n], counts[1][n]) for n in range(BINS)]


def _line(state: State) -> list[PointFigures]:
    found = []
    start = min(state.line, default=0)
    for number in sorted(state.line):
        point = state.line[number]
        found.append(
            PointFigures(
                (number - start) * state.width,
                point.pairs,
                (point.errors[0], point.errors[1]),
                (_coarse(point.production, 0.5), _coarse(point.shadow, 0.5)),
                (_coarse(point.production, 0.99), _coarse(point.shadow, 0.99)),
            )
        )
    return found


def _coarse(buckets: dict[int, int], share: float) -> float:
    wanted = math.ceil(share * sum(buckets.values()))
    seen = 0
    for key in sorted(buckets):
        seen += buckets[key]
        if seen >= wanted:
            return value_at(key, COARSE) * MS
    return 0.0


_STATUS: Final = " status"
"""The end of the names of differences of statuses; such responses are not compared any further."""
_IDENTIFIER: Final = f"{Change.IDENTIFIER.value} "
_VALUE: Final = f"{Change.VALUE.value} "
_PROBED: Final = ("GET ", "HEAD ", "OPTIONS ")
"""The beginning of names of endpoints whose requests a shadow may get twice."""
_ORDER: Final = {Nature.DIFFERENT: 0, Nature.WAITING: 1, Nature.NOISE: 2}
