# SPDX-License-Identifier: Apache-2.0
"""How numbers and names are put into words, the same in all reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from tapmirror.compare.figures import EndpointFigures, Estimate, FieldFigures, Figures
from tapmirror.compare.noise import Nature
from tapmirror.compare.verdict import Check, Outcome, share

KINDS: Final = {
    "value": "another value",
    "type": "another type",
    "missing": "missing at the shadow",
    "extra": "only at the shadow",
    "identifier": "another identifier or time",
    "order": "another order",
    "length": "another length",
    "other": "others, too many to list",
}
OUTCOMES: Final = {Outcome.PASS: "PASS", Outcome.FAIL: "FAIL", Outcome.UNDECIDED: "UNDECIDED"}
COLUMNS: Final = ("endpoint", "requests", "errors", "", "p50", "", "p99", "", "change", "differing")
SIDES: Final = ("", "", *("production", "shadow") * 3, "", "")
"""The second row of the table's heads."""
LIMITS: Final = ("limit", "found", "interval", "at most", "")
"""Heads of the table of what the shadow must keep to."""
UNPAIRED: Final = {
    "not_sent": "the shadow did not get it",
    "gap": "a part of production's response was not seen",
    "cut": "production's response is longer than this level captures; level body captures all",
    "order": "after a missing part, until it is certain which response belongs to which request",
    "unparsed": "production's response is not HTTP/1",
    "unanswered": "production's response was incomplete when its connection ended or the time ran out: no error",
    "reconnect": "the shadow closed its keep-alive connection in the meantime",
    "broken": "the request was not seen completely",
    "tunnel": "after an upgrade to another protocol",
    "limit": "too many were in progress",
    "thinned": "more per second than are compared (max_exchanges)",
    "shutdown": "still in progress at the end",
}
"""Why a request was not compared: `Unpaired`."""
FAILURES: Final = {
    "closed": "it closed the connection",
    "invalid": "its response is not HTTP/1",
    "timeout": "the time ran out",
}
"""Why the shadow gave no response: `Failure`."""
RAW: Final = "connections that are not HTTP/1: mirrored as bytes, not compared"
EARLY: Final = "too early to tell it from noise"
CONTAINS: Final = (
    "Production's times run from the last byte of the request to the first or last byte of the response, at this "
    "host's interface.  The shadow's times run from the last byte sent to it until its response arrives at this host: "
    "they contain the network round trip{rtt}.  A request that waited for the previous one on its connection is timed "
    "from the response to that one."
)


def milliseconds(value: float) -> str:
    """A time given in milliseconds, to three digits."""
    if value >= 1000:
        return f"{value / 1000:.3g} s" if value < 1e6 else f"{value / 1000:,.0f} s"
    return f"{value:.3g} ms" if value >= 0.1 else f"{value * 1000:.3g} µs"


def took(value: float) -> str:
    """The same of a quantile, which is 0 where nothing was timed."""
    return milliseconds(value) if value else "-"


def percent(value: float | None) -> str:
    """A share."""
    return "-" if value is None else share(value)


def times(value: float | None) -> str:
    """A ratio."""
    return "-" if value is None else f"{value:.2f}"


def count(value: float) -> str:
    """A number of things."""
    return f"{value:,.0f}"


def size(value: float) -> str:
    """Bytes."""
    for unit in ("B", "KB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}" if unit != "B" else f"{value:.0f} B"
        value /= 1000
    return f"{value:.3g} GB"


def duration(seconds: float) -> str:
    """A length of time."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def between(estimate: Estimate) -> str:
    """An interval of shares."""
    return f"{percent(estimate.low)} to {percent(estimate.high)}"


def limits_of(check: Check) -> tuple[str, str, str]:
    """(estimate, interval, limit) of a check."""
    show = times if check.name == "p99 ratio" else percent
    high = show(check.high) if check.high < 1e9 else "?"
    return show(check.estimate), f"{show(check.low)} to {high}", show(check.limit)


def rtt(figures: Figures) -> str:
    """What the times contain."""
    return CONTAINS.format(rtt=f", which is {milliseconds(figures.rtt)} at least" if figures.rtt is not None else "")


def nature(field: FieldFigures) -> str:
    """What noise says of a field."""
    if field.noise is None:
        return "no noise measured here"
    return f"noise {percent(field.noise)}"


def slower(endpoint: EndpointFigures) -> str:
    """How the shadow's p99 compares."""
    value = endpoint.p99_ratio.value
    if value is None:
        return "-"
    return f"{(value - 1) * 100:+.0f} %"


def compared(figures: Figures) -> str:
    """How much was compared."""
    return (
        f"{count(figures.paired)} of {count(figures.requests)} requests compared in {duration(figures.seconds)}, "
        f"level {figures.level}"
    )


def cells(endpoint: EndpointFigures) -> tuple[str, ...]:
    """An endpoint in a table with the columns `COLUMNS`; its name comes first, as it is."""
    one, other = endpoint.production, endpoint.shadow
    return (
        endpoint.name,
        count(endpoint.pairs),
        percent(one.error_rate),
        percent(other.error_rate),
        took(one.last["p50"]),
        took(other.last["p50"]),
        took(one.last["p99"]),
        took(other.last["p99"]),
        slower(endpoint),
        percent(endpoint.diff_rate.value),
    )


def open_fields(endpoint: EndpointFigures) -> list[FieldFigures]:
    """Its fields that are no noise."""
    return [field for field in endpoint.fields if field.nature is not Nature.NOISE]


def noise(figures: Figures, most: int) -> Iterator[str]:
    """Which fields are taken for noise, and where: at most so many, in a line for all endpoints that have the same."""
    found: dict[str, list[str]] = {}
    for endpoint in figures.endpoints:
        for path in dict.fromkeys(field.path for field in endpoint.fields if field.nature is Nature.NOISE):
            found.setdefault(path, []).append(endpoint.name)
    alike: dict[str, list[str]] = {}
    for path in sorted(found, key=lambda path: (-len(found[path]), path))[:most]:
        alike.setdefault(some(found[path]), []).append(path)
    for where, paths in alike.items():
        yield f"taken for noise at {where}: {', '.join(paths)}"
    if len(found) > most:
        yield f"taken for noise: {count(len(found) - most)} more fields"


def some(names: Sequence[str]) -> str:
    """The first of these names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {count(len(names) - 3)} more" if len(names) > 3 else "")


def losses(figures: Figures) -> Iterator[tuple[str, int]]:
    """What was not compared, and how often."""
    for reason, number in figures.failures.items():
        yield f"errors of the shadow: it gave no response ({FAILURES.get(reason, reason)})", number
    for reason, number in figures.unpaired.items():
        yield f"not compared ({UNPAIRED.get(reason, reason)})", number
    if figures.thinned:
        yield "only status and times compared (beyond max_bodies, or marked to find loops)", figures.thinned
    if figures.raw:
        yield RAW, figures.raw
    skipped: Counter[str] = Counter()
    for endpoint in figures.endpoints:
        skipped.update(endpoint.skipped)
    for reason, number in skipped.most_common():
        yield f"bodies not compared ({reason})", number
    whole = {
        endpoint.name: field.count
        for endpoint in figures.endpoints
        for field in endpoint.fields
        if (field.path, field.kind, field.nature) == ("body", "value", Nature.NOISE)
    }
    if whole:
        what = "bodies that differ by themselves and are too long (body_bytes), or no text: a fault in them is not seen"
        yield f"{what}, at {some([*whole])}", sum(whole.values())


def remarks(figures: Figures) -> Iterator[str]:
    """The same in lines, and what the reader should know."""
    for what, number in losses(figures):
        yield f"{what}: {count(number)}"
    yield from figures.notes
