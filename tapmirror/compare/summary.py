# SPDX-License-Identifier: Apache-2.0
"""The state of a comparison with one shadow: one bounded structure of plain data, which adds up over workers.

A process with privileges reads the states of workers, so the types say which numbers are allowed.

It has counts, sketches and a few samples; nothing grows with the number of requests.  Whatever is derived from it
(rates, quantiles, noise, a verdict) is in `figures`, so a state can be judged again with other limits.

Times are in nanoseconds; `began`, `ended` and the time line are in seconds of the caller's clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Final, TypeAlias, TypeVar

import msgspec

from tapmirror.compare.endpoints import OTHER, Places, fold
from tapmirror.compare.sketch import KEYS, MOST, Count, Sketch
from tapmirror.exchange import Asked, Delivery, Response
from tapmirror.spec.compare import Compare

Key = TypeVar("Key", int, str)

SCHEMA: Final = "tapmirror.compare/1"
CoarseKey: TypeAlias = Annotated[int, msgspec.Meta(ge=-KEYS, le=KEYS)]
PointNumber: TypeAlias = Annotated[int, msgspec.Meta(ge=-MOST, le=MOST)]
"""Number of a point of the time line, in 64 bits: after 64 doublings of the width there is only one point."""
Status: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=999)]
"""Status code of a response; 0: none came."""
BothStatuses: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,3} [0-9]{1,3}\Z")]
"""Production's status and the shadow's, as text: `200 429`."""
Ways: TypeAlias = Annotated[list[Count], msgspec.Meta(min_length=2, max_length=2)]
"""Exchanges in which production alone answered with a status, and in which the shadow alone did."""
POINTS: Final = 120
"""Most points of the time line: when there are more, each two become one."""
COARSE: Final = 2
"""A bucket of the time line's latencies is 4 buckets of the sketches wide (8 %), as a power of two."""
SIGNATURES: Final = 128
"""Most sets of fields that differ together, of one endpoint."""
SIGNATURES_LENGTH: Final = 1 << 16
"""Most characters of these sets: a name may have 200, and a hostile shadow's responses differ in 32 fields at once."""
STATUSES: Final = 64
"""Most different status codes of one endpoint; more come only from a hostile shadow, and count as 0."""
DISCORDANT: Final = 32
"""Most status codes for which the time line shows when one side alone answered with them: as many as `figures` has time
for in each brief."""
STATUS: Final = "value status"
"""The name of the difference of two statuses."""
ERROR: Final = 500
"""Status codes from here on are errors (RFC 9110, 15.6), and so is no response at all."""


class Sample(msgspec.Struct):
    """One exchange in which a field differed.  All texts are redacted and cut."""

    at: float
    curl: str
    production: str
    """Status line, fields and body of its response."""
    shadow: str
    one: str
    """The field's value in production's response."""
    other: str


class Field(msgspec.Struct):
    """One kind of difference at one path."""

    raw: Count = 0
    """Exchanges in which it differed."""
    probes: Count = 0
    """Requests that the shadow got twice and whose two responses differed in this field."""
    repeats: Count = 0
    """Requests that clients sent to production twice, and whose two responses differed in this field."""
    checks: Count = 0
    """Exchanges that differed in this field, and whose request the shadow got again to check that."""
    held: Count = 0
    """Exchanges of `checks` in which the shadow's second response had the same value in this field as its first one."""
    unlike: Count = 0
    """If the field is taken for an identifier: exchanges that speak against that."""
    samples: list[Sample] = []


class Side(msgspec.Struct):
    """One side of an endpoint."""

    statuses: dict[int, Count] = {}
    """Responses by status code; 0: no response."""
    first: Sketch = msgspec.field(default_factory=Sketch)
    """Nanoseconds from the request's last byte to the response's first, of exchanges that both sides answered after
    it."""
    last: Sketch = msgspec.field(default_factory=Sketch)
    """Nanoseconds from the request's last byte to the response's last, of the same exchanges as `first`."""
    bytes: Count = 0
    """Bytes of the bodies of all responses, as they came."""


class Endpoint(msgspec.Struct):
    """The exchanges of one endpoint."""

    pairs: Count = 0
    only_shadow: Count = 0
    """Exchanges in which only the shadow's response was an error."""
    only_production: Count = 0
    production: Side = msgspec.field(default_factory=Side)
    shadow: Side = msgspec.field(default_factory=Side)
    ratio: Sketch = msgspec.field(default_factory=Sketch)
    """Ratio of the shadow's time to the last byte to production's, of each exchange."""
    compared: Count = 0
    """Exchanges whose responses were compared up to the level of the spec."""
    erring: Count = 0
    """Exchanges of `compared` in which only one side's response was an error."""
    discordant: dict[BothStatuses, Count] = msgspec.field(default_factory=dict, name="turned")
    """Exchanges of `compared` with different statuses, both errors or neither, by production's and the shadow's status
    (`200 429`)."""
    before: Annotated[list[Status], msgspec.Meta(max_length=2)] = []
    """Statuses of production and the shadow in the exchange that waits to be compared with the next one; empty: none
    waits."""
    crossed: dict[BothStatuses, Count] = {}
    """Pairs of consecutive exchanges in which the same two statuses differed in opposite directions: by the two
    statuses, the lower one first (`201 409`)."""
    changed: dict[BothStatuses, Count] = {}
    """Pairs of consecutive exchanges in which both sides changed alike from one status to another: by the two statuses,
    the lower one first."""
    skipped: dict[str, Count] = {}
    """Bodies that could not be compared, by reason."""
    probed: Count = 0
    repeated: Count = 0
    fields: dict[str, Field] = {}
    signatures: dict[str, Count] = {}
    """How many exchanges differed in just these fields (one a line)."""


class Point(msgspec.Struct):
    """A stretch of the time line."""

    pairs: Count = 0
    errors: Annotated[list[Count], msgspec.Meta(min_length=2, max_length=2)] = msgspec.field(
        default_factory=lambda: [0, 0]
    )
    """Errors of production, and of the shadow."""
    production: dict[CoarseKey, Count] = {}
    """Times to the last byte, in coarse buckets."""
    shadow: dict[CoarseKey, Count] = {}


class State(msgspec.Struct):
    """The whole state of one shadow."""

    schema: str = SCHEMA
    level: str = ""
    began: float | None = None
    """When the first exchange was done."""
    ended: float = 0.0
    requests: Count = 0
    """Requests that were seen, paired or not."""
    unpaired: dict[str, Count] = {}
    failures: dict[str, Count] = {}
    """Exchanges that the shadow did not answer, by reason."""
    thinned: Count = 0
    """Exchanges of which only status and times were compared, because they were too many a second, or too long."""
    late: Count = 0
    """Exchanges that are not timed, because the tap sent the request late (`thinning.Backlog`)."""
    raw: Count = 0
    """Connections that are forwarded as bytes, because they are not HTTP/1."""
    rtt_ns: Count = 0
    """Sum of the round trips to the shadow, which its times contain; of `rtts` exchanges."""
    rtts: Count = 0
    endpoints: dict[str, Endpoint] = {}
    places: Places = {}
    """The places in paths where words were learned to be identifiers, and which words there are not."""
    width: Annotated[float, msgspec.Meta(ge=1, le=1 << 40)] = 1.0
    """Seconds of a point of the time line."""
    line: dict[PointNumber, Point] = {}
    """Points of the time line by number: each is `width` seconds long and begins at `number * width`."""
    discordant: dict[Status, dict[PointNumber, Ways]] = msgspec.field(default_factory=dict, name="turned")
    """Exchanges with different statuses, both errors or neither: by each of the two, and by point of the time line."""
    notes: list[str] = []
    """What the reader should know: codings that could not be undone."""


class StateBounds(msgspec.Struct, frozen=True):
    """Bounds of a state."""

    endpoints: int
    fields: int
    samples: int
    """Samples of one field."""
    all_samples: int
    given: frozenset[str] = frozenset()
    """The templates that are given: what they name is not learned."""


def state_bounds(spec: Compare) -> StateBounds:
    """The bounds that the spec gives."""
    return StateBounds(spec.max_endpoints, spec.max_fields, spec.samples, spec.max_samples, frozenset(spec.endpoints))


class Summary:
    """A state that grows by one exchange at a time."""

    __slots__ = ("_bounds", "_samples", "production", "shadow", "state")

    def __init__(self, bounds: StateBounds, level: str) -> None:
        self._bounds = bounds
        self._samples = 0
        self.state = State(level=level)
        self.production = Sketch()
        """Production's times to the last byte at all endpoints, in nanoseconds; kept because the sum takes long."""
        self.shadow = Sketch()
        """The shadow's times to the last byte at all endpoints, in nanoseconds."""

    def endpoint(self, name: str) -> Endpoint:
        """The endpoint of this name, or the common one if there are too many."""
        endpoints = self.state.endpoints
        found = endpoints.get(name)
        if found is None:
            if len(endpoints) >= self._bounds.endpoints:
                name = OTHER
            found = endpoints.setdefault(name, Endpoint())
        return found

    def observe(self, endpoint: Endpoint, asked: Asked, production: Response, delivery: Delivery, now: float) -> None:
        """Count the statuses, sizes and times of an exchange."""
        state = self.state
        response = delivery.response
        endpoint.pairs += 1
        mine, its = endpoint.production, endpoint.shadow
        status, other = production.status, response.status
        if status in mine.statuses:
            mine.statuses[status] += 1
        else:
            _count(mine.statuses, status)
        if other in its.statuses:
            its.statuses[other] += 1
        else:
            _count(its.statuses, other)
        wrong, its_wrong = status >= ERROR or not status, other >= ERROR or not other
        if wrong != its_wrong:
            if wrong:
                endpoint.only_production += 1
            else:
                endpoint.only_shadow += 1
        else:
            _beside(endpoint, status, other)
        mine.bytes += production.length
        its.bytes += response.length
        if state.began is None:
            state.began = now
        state.ended = now
        number = int(now / state.width)
        point = state.line.get(number)
        if point is None:
            point = self._point(now)
        point.pairs += 1
        if wrong:
            point.errors[0] += 1
        if its_wrong:
            point.errors[1] += 1
        if status != other and wrong == its_wrong:
            number = int(now / state.width)  # the time line may have become coarser
            for side, each in enumerate((status, other)):
                ways = _ways(state, each)
                if ways is not None:
                    ways.setdefault(number, [0, 0])[side] += 1
        if not other:
            if response.failure is not None:
                reason = response.failure.value
                state.failures[reason] = state.failures.get(reason, 0) + 1
            return
        if asked.late:
            state.late += 1
            return
        if asked.timed and 0 < delivery.sent_ns <= response.last_ns:
            self._time(endpoint, point, asked, production, delivery)

    def _time(self, endpoint: Endpoint, point: Point, asked: Asked, production: Response, delivery: Delivery) -> None:
        """Count the times of an exchange.

        None are counted if production's response came before the request's end, so that both sides stay comparable.
        """
        state, mine, its = self.state, endpoint.production, endpoint.shadow
        response = delivery.response
        ended = _its_turn(asked.ended_ns, production, 0)
        sent = _its_turn(delivery.sent_ns, response, delivery.least_ns)
        took = production.last_ns - ended
        if took <= 0:
            return
        mine.first.add(production.first_ns - ended)
        key = mine.last.add(took)
        times = self.production.buckets
        times[key] = times.get(key, 0) + 1
        key >>= COARSE
        point.production[key] = point.production.get(key, 0) + 1
        its.first.add(response.first_ns - sent)
        its_took = response.last_ns - sent
        key = its.last.add(its_took)
        times = self.shadow.buckets
        times[key] = times.get(key, 0) + 1
        key >>= COARSE
        point.shadow[key] = point.shadow.get(key, 0) + 1
        endpoint.ratio.add(its_took / took)
        if delivery.least_ns:
            state.rtt_ns += delivery.least_ns
            state.rtts += 1

    def differed(self, endpoint: Endpoint, fields: list[str]) -> list[str]:
        """Count an exchange that differed in these fields; returns those of which a sample is wanted."""
        wanted = []
        names = set()
        for name in fields:
            field = self._field(endpoint, name)
            if field is None:
                name = OTHER
                field = endpoint.fields.setdefault(OTHER, Field())
            if name not in names:
                names.add(name)
                field.raw += 1
                if name != OTHER and len(field.samples) < self._bounds.samples:
                    wanted.append(name)
        signature = "\n".join(sorted(names))
        if signature not in endpoint.signatures and not _has_room(endpoint, signature):
            # Its least noisy field stands for all fields: the exchange is judged rightly by it, whatever else differs.
            signature = min(names, key=lambda name: _noisiness(endpoint.fields[name]))
        _count_text(endpoint.signatures, signature, SIGNATURES + self._bounds.fields + 1)
        return wanted if self._samples < self._bounds.all_samples else []

    def add_discordant(self, endpoint: Endpoint, one: int, other: int) -> None:
        """Count an exchange whose statuses differ, both those of errors or neither."""
        _count_text(endpoint.discordant, f"{one} {other}", STATUSES)

    def noisy(self, endpoint: Endpoint, fields: list[str], *, probe: bool) -> None:
        """Count a noise pair: two responses of one version, which differed in these fields."""
        if probe:
            endpoint.probed += 1
        else:
            endpoint.repeated += 1
        for name in {name if self._field(endpoint, name) is not None else OTHER for name in fields}:
            field = endpoint.fields.setdefault(name, Field())
            if probe:
                field.probes += 1
            else:
                field.repeats += 1

    def checked(self, endpoint: Endpoint, held: Mapping[str, bool]) -> None:
        """Count a check; `held`: for each field that had differed, whether the shadow's second response held."""
        for name, same in held.items():
            field = endpoint.fields.get(name)
            if field is not None:
                field.checks += 1
                field.held += same

    def unlike(self, endpoint: Endpoint, fields: list[str]) -> None:
        """Count an exchange in which these fields did not look like the identifiers that they were taken for."""
        for name in fields:
            field = endpoint.fields.get(name)
            if field is not None:
                field.unlike += 1

    def add_sample(self, endpoint: Endpoint, field: str, sample: Sample) -> None:
        """Keep a sample that was asked for."""
        endpoint.fields[field].samples.append(sample)
        self._samples += 1

    def unpaired(self, reason: str, count: int = 1) -> None:
        """Count requests that were not compared."""
        self.state.unpaired[reason] = self.state.unpaired.get(reason, 0) + count

    def fold(self, places: Places) -> dict[str, str]:
        """Merge endpoints whose names are the same after what was learned of paths (`places`).

        Returns the new name of each endpoint that is gone.
        """
        self.state.places = places
        folded = fold_endpoints(self.state.endpoints, places, self._bounds)
        for endpoint in self.state.endpoints.values():
            _limit_fields(endpoint, self._bounds.fields)
        return folded

    def _field(self, endpoint: Endpoint, name: str) -> Field | None:
        field = endpoint.fields.get(name)
        if field is None and len(endpoint.fields) < self._bounds.fields:
            field = endpoint.fields[name] = Field()
        return field

    def _point(self, now: float) -> Point:
        state = self.state
        while len(state.line) >= POINTS and int(now / state.width) not in state.line:
            _coarsen(state)
        return state.line.setdefault(int(now / state.width), Point())


def _beside(endpoint: Endpoint, status: int, other: int) -> None:
    """Compare an exchange with the one before it.  Each exchange is in only one such pair, so none counts twice."""
    if not endpoint.before:
        endpoint.before = [status, other]
        return
    before, its_before = endpoint.before
    endpoint.before = []
    if before == status:
        return
    both = f"{before} {status}" if before < status else f"{status} {before}"
    if before == other and its_before == status:
        _count_text(endpoint.crossed, both, STATUSES)
    elif before == its_before and status == other:
        _count_text(endpoint.changed, both, STATUSES)


def _ways(state: State, status: int) -> dict[int, list[int]] | None:
    """The points of a status; None: there are too many statuses."""
    if status not in state.discordant and len(state.discordant) >= DISCORDANT:
        return None
    return state.discordant.setdefault(status, {})


def _its_turn(asked_ns: int, response: Response, rtt_ns: int) -> int:
    """When a server could begin with a request, as its client saw it: when it had the request and was done with the
    previous one.

    Clients send as fast as production answers.  So requests queue at a slower shadow, and if that waiting counted, the
    shadow would seem ever slower.  If two responses have the same stamp, the waiting counts.
    """
    since = response.since_ns
    return max(asked_ns, since - rtt_ns) if since < response.first_ns else asked_ns


def merged(states: list[State], bounds: StateBounds) -> State:
    """The sum of the states of several workers."""
    total = State()
    for state in states:
        _merge_state(total, state)
    fold_endpoints(total.endpoints, total.places, bounds)
    if len(total.endpoints) > bounds.endpoints:
        ranked = sorted(total.endpoints, key=lambda name: (name == OTHER, -total.endpoints[name].pairs))
        for name in ranked[bounds.endpoints :]:
            if name != OTHER:
                merge_endpoint(total.endpoints.setdefault(OTHER, Endpoint()), total.endpoints.pop(name))
    kept = 0
    for endpoint in total.endpoints.values():
        _limit_fields(endpoint, bounds.fields)
        for field in endpoint.fields.values():
            del field.samples[min(bounds.samples, max(0, bounds.all_samples - kept)) :]
            kept += len(field.samples)
    return total


def whole(state: State) -> Endpoint:
    """All endpoints as one, without their fields."""
    total = Endpoint()
    for endpoint in state.endpoints.values():
        merge_endpoint(total, endpoint, fields=False)
    return total


def fold_endpoints(endpoints: dict[str, Endpoint], places: Places, bounds: StateBounds) -> dict[str, str]:
    """Merge endpoints whose names are the same after what was learned of paths (`places`).

    Returns the new name of each endpoint that is gone.
    """
    folded = fold(endpoints, places, bounds.given)
    for name, template in folded.items():
        merge_endpoint(endpoints.setdefault(template, Endpoint()), endpoints.pop(name))
    return folded


def is_error(status: int) -> bool:
    """Whether a status is an error; 0, which stands for no response, is one."""
    return status >= ERROR or not status


def merge_endpoint(into: Endpoint, other: Endpoint, *, fields: bool = True) -> None:
    """Add the exchanges of another endpoint, which must not be used afterwards."""
    for name in ("pairs", "only_shadow", "only_production", "compared", "erring", "probed", "repeated"):
        setattr(into, name, getattr(into, name) + getattr(other, name))
    for mine, its in ((into.production, other.production), (into.shadow, other.shadow)):
        _add(mine.statuses, its.statuses)
        mine.first.merge(its.first)
        mine.last.merge(its.last)
        mine.bytes += its.bytes
    into.ratio.merge(other.ratio)
    _add(into.skipped, other.skipped)
    _add(into.discordant, other.discordant)
    _add(into.crossed, other.crossed)
    _add(into.changed, other.changed)
    if not fields:
        return
    for name, field in other.fields.items():
        found = into.fields.setdefault(name, Field())
        found.raw += field.raw
        found.probes += field.probes
        found.repeats += field.repeats
        found.checks += field.checks
        found.held += field.held
        found.unlike += field.unlike
        found.samples = found.samples + field.samples
    for signature, count in other.signatures.items():
        into.signatures[signature] = into.signatures.get(signature, 0) + count


def _merge_state(into: State, other: State) -> None:
    into.level = other.level
    if other.began is not None:
        into.began = other.began if into.began is None else min(into.began, other.began)
    into.ended = max(into.ended, other.ended)
    for name in ("requests", "thinned", "late", "raw", "rtt_ns", "rtts"):
        setattr(into, name, getattr(into, name) + getattr(other, name))
    _add(into.unpaired, other.unpaired)
    _add(into.failures, other.failures)
    into.notes = sorted({*into.notes, *other.notes})
    for place, words in other.places.items():  # what one of them tells apart stays apart
        into.places[place] = sorted({*into.places.get(place, ()), *words})
    for name, endpoint in other.endpoints.items():
        merge_endpoint(into.endpoints.setdefault(name, Endpoint()), endpoint)
    while into.width < other.width:
        _coarsen(into)
    shift = int(math.log2(into.width / other.width)) if into.width > other.width else 0
    for number, point in other.line.items():
        _merge_point(into.line.setdefault(number >> shift, Point()), point)
    for status, ways in other.discordant.items():
        mine = _ways(into, status)
        if mine is not None:
            _add_ways(mine, ways, shift)
    while len(into.line) > POINTS:
        _coarsen(into)


def _coarsen(state: State) -> None:
    """Join each two points of the time line."""
    line: dict[int, Point] = {}
    for number, point in state.line.items():
        _merge_point(line.setdefault(number >> 1, Point()), point)
    state.line = line
    for status, ways in state.discordant.items():
        state.discordant[status] = {}
        _add_ways(state.discordant[status], ways, 1)
    state.width *= 2


def _merge_point(into: Point, other: Point) -> None:
    into.pairs += other.pairs
    into.errors = [one + more for one, more in zip(into.errors, other.errors, strict=True)]
    _add(into.production, other.production)
    _add(into.shadow, other.shadow)


def _add_ways(into: dict[int, list[int]], other: Mapping[int, list[int]], shift: int) -> None:
    for number, ways in other.items():
        found = into.setdefault(number >> shift, [0, 0])
        for side in range(2):
            found[side] += ways[side]


def _limit_fields(endpoint: Endpoint, most: int) -> None:
    """Join the rarest fields into one, and the signatures that contain them."""
    if len(endpoint.fields) > most:
        ranked = sorted(endpoint.fields, key=lambda name: (name == OTHER, -endpoint.fields[name].raw))
        gone = set(ranked[most:]) - {OTHER}
        rest = endpoint.fields.setdefault(OTHER, Field())
        for name in gone:
            field = endpoint.fields.pop(name)
            rest.raw += field.raw
            rest.probes += field.probes
            rest.repeats += field.repeats
        # in how many they differ together is not known: in no more than there are
        rest.raw = min(rest.raw, endpoint.compared)
        rest.probes, rest.repeats = min(rest.probes, endpoint.probed), min(rest.repeats, endpoint.repeated)
        signatures: dict[str, int] = {}
        for signature, count in endpoint.signatures.items():
            names = {OTHER if name in gone else name for name in signature.split("\n")}
            key = "\n".join(sorted(names))
            signatures[key] = signatures.get(key, 0) + count
        endpoint.signatures = signatures
    size = sum(map(len, endpoint.signatures))
    if len(endpoint.signatures) > SIGNATURES + most + 1 or size > 2 * SIGNATURES_LENGTH:
        ranked = sorted(endpoint.signatures, key=lambda each: -endpoint.signatures[each])
        size = 0
        for place, signature in enumerate(ranked):
            size += len(signature)
            if place < SIGNATURES and size <= SIGNATURES_LENGTH:
                continue
            least = min(signature.split("\n"), key=lambda name: _noisiness(endpoint.fields.get(name, _NO_FIELD)))
            count = endpoint.signatures.pop(signature)
            endpoint.signatures[least] = endpoint.signatures.get(least, 0) + count


def _has_room(endpoint: Endpoint, signature: str) -> bool:
    known = endpoint.signatures
    return len(known) < SIGNATURES and sum(map(len, known)) + len(signature) <= SIGNATURES_LENGTH


def _noisiness(field: Field) -> tuple[float, int]:
    return (field.probes + field.repeats) / max(1, field.raw), field.raw


def _count(counts: dict[int, int], status: int) -> None:
    if status not in counts and len(counts) >= STATUSES:
        status = 0
    counts[status] = counts.get(status, 0) + 1


def _count_text(counts: dict[str, int], name: str, most: int) -> None:
    if name in counts or len(counts) < most:
        counts[name] = counts.get(name, 0) + 1


def _add(into: dict[Key, int], other: Mapping[Key, int]) -> None:
    for key, count in other.items():
        into[key] = into.get(key, 0) + count


_NO_FIELD: Final = Field()
