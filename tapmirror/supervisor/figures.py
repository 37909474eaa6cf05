# SPDX-License-Identifier: Apache-2.0
"""The check of a worker's figures: the supervisor accepts them in exactly the shape that workers send, and no other.

A worker reads bytes of the network, so it is not trusted, and its figures go into metrics, tables and the governor of a
process that is root.  A field that is missing, unknown, of another type or out of bounds is an error.

Pure: values only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from tapmirror import histogram, spec
from tapmirror.compare.briefs import BEYOND, BOUNDS, NAMED, badness
from tapmirror.exchange import Failure, Unpaired
from tapmirror.ledger import summed

MOST: Final = (1 << 63) - 1
"""Largest count that is believed.  The kernel's counters have 64 bits, and none of them gets there."""
NAMES: Final = 256
"""Most reasons, events or kinds of responses in one table: there are some 150 in all."""

Count: TypeAlias = Annotated[int, Meta(ge=0, le=MOST)]
Difference: TypeAlias = Annotated[int, Meta(ge=-MOST, le=MOST)]
"""A difference of counts that are not read at the same moment: it may be below 0 for a moment."""
Seconds: TypeAlias = Annotated[float, Meta(ge=0, le=1e12)]
Name: TypeAlias = Annotated[str, Meta(pattern=r"^[ -~]{1,64}\Z")]
Table: TypeAlias = Annotated[dict[Name, Difference], Meta(max_length=NAMES)]
Label: TypeAlias = Annotated[str, Meta(max_length=1024)]
Buckets: TypeAlias = Annotated[dict[Annotated[str, Meta(pattern=r"^-?[0-9]{1,4}\Z")], Count], Meta(max_length=4096)]
"""Counts of a sketch, by bucket."""


class _Closed(msgspec.Struct, forbid_unknown_fields=True):
    """A structure that takes these fields and no others."""


class Fates(_Closed):
    """What `ledger.Account.snapshot` gives."""

    seen: Count
    mirrored: Count
    sampled_out: Difference
    filtered: Table
    dropped: Table
    in_flight: Difference
    unaccounted: Difference


class Latency(_Closed):
    """What `histogram.Histogram.snapshot` gives."""

    count: Count
    sum_s: Seconds
    buckets: Annotated[dict[Name, Count], Meta(max_length=len(histogram.NAMES))]


class Shadow(_Closed):
    """What `ledger.View.snapshot` gives."""

    bytes: Fates
    requests: Fates
    events: Table
    answers: Table
    latency: Latency


class Ring(_Closed):
    """The capture ring: its size in bytes, and how full it is (0 to 1)."""

    bytes: Count
    fill: Annotated[float, Meta(ge=0, le=16)]


class Process(_Closed):
    """What the worker's process costs."""

    pid: Count
    cpu_s: Seconds
    rss_kb: Count
    sandbox: Annotated[list[Name], Meta(max_length=8)]


class Times(_Closed):
    """One side's times and errors at an endpoint, as in `compare.brief`."""

    errors: Count
    times: Annotated[dict[Name, Count], Meta(max_length=len(BOUNDS) + 1)]
    sum_s: Seconds

    def __post_init__(self) -> None:
        if not self.times.keys() <= {*BOUNDS, BEYOND}:
            raise ValueError("bounds that there are not")


class Counted(_Closed):
    """An endpoint's counts, as in `compare.brief`."""

    pairs: Count
    only_shadow: Count
    only_production: Count
    compared: Count
    differing: Count

    def __post_init__(self) -> None:
        if self.only_shadow + self.only_production > self.pairs or not self.differing <= self.compared <= self.pairs:
            raise ValueError("parts that are more than the whole")


class ComparedEndpoint(Counted):
    """An endpoint's counts with each side's times and errors, as in `compare.brief`."""

    production: Times
    shadow: Times


class Crowds(_Closed):
    """How far the times' crowds are above 1, as in `compare.brief` (`Briefing._crowds`)."""

    production: Annotated[float, Meta(ge=0, le=1e30)]
    shadow: Annotated[float, Meta(ge=0, le=1e30)]
    told: Count


class Outages(_Closed):
    """How far the errors' crowd is above 1, as in `compare.brief` (`Briefing._outages`)."""

    errors: Annotated[float, Meta(ge=0, le=1e30)]
    told: Count


class Compared(_Closed):
    """What `compare.brief` says of one shadow."""

    requests: Count
    paired: Count
    unpaired: dict[Unpaired, Count]
    failures: dict[Failure, Count]
    certain: Count
    possible: Count
    erring: Count
    times: Annotated[dict[Literal["production", "shadow"], Buckets], Meta(min_length=2)]
    crowds: Crowds
    outages: Outages
    all: ComparedEndpoint
    endpoints: Annotated[dict[Label, ComparedEndpoint], Meta(max_length=NAMED)]
    worst: Annotated[dict[Label, Counted], Meta(max_length=1)]

    def __post_init__(self) -> None:
        if not self.certain <= self.possible <= self.all.compared or self.erring > self.all.differing:
            raise ValueError("differences that are more than the whole")


class Brief(_Closed):
    """What `ComparingPipeline.brief` gives."""

    shadows: Annotated[dict[Label, Compared], Meta(max_length=NAMES)]
    capture: Table


class Snapshot(_Closed):
    """What `Worker.snapshot` gives."""

    segments: Fates
    bytes: Fates
    requests: Fates
    events: Table
    answers: Table
    shadows: dict[Label, Shadow]
    flows: Count
    ring: Ring
    worker: Process
    compare: Brief | UnsetType = UNSET


class Last(Snapshot):
    """A worker's last snapshot; its `comparison` is judged where it is merged."""

    comparison: dict[str, Any] | UnsetType = UNSET


def checked(found: object, shadows: Sequence[spec.Shadow], *, final: bool = False) -> dict[str, Any]:
    """A worker's snapshot, checked against the shadows of its tap, as plain data.  Raises ValueError."""
    figures = msgspec.convert(found, Last if final else Snapshot)
    if figures.shadows.keys() != {shadow.label for shadow in shadows}:
        raise ValueError("its shadows are not the tap's")
    compared = figures.compare.shadows if isinstance(figures.compare, Brief) else {}
    if not compared.keys() <= {label for shadow in shadows for label in shadow.copy_labels}:
        raise ValueError("it compares shadows that are not the tap's")
    if not (math.isfinite(figures.worker.cpu_s) and math.isfinite(figures.ring.fill)):
        raise ValueError("a figure that is no number")
    for shadow in figures.shadows.values():
        times = shadow.latency
        if not times.buckets.keys() <= set(histogram.NAMES):
            raise ValueError("buckets that there are not")
        if times.count != sum(times.buckets.values()) or not math.isfinite(times.sum_s):
            raise ValueError("times that do not add up")
    plain: dict[str, Any] = msgspec.to_builtins(figures)
    return plain


def with_past(brief: Mapping[str, Any], past: Mapping[str, Any]) -> dict[str, Any]:
    """A worker's brief (`compare` of its snapshot) with that of its predecessors added.

    The result has the size of one brief, however many predecessors there were.  Endpoints that are listed stay listed;
    of two worst endpoints the worse one stays.  Of two crowds the larger one stays: they came one after the other, so
    they do not add up.
    """
    total = summed([dict(past), dict(brief)])
    for label, each in total["shadows"].items():
        both = [found["shadows"][label] for found in (past, brief) if label in found.get("shadows", ())]
        total["shadows"][label] = {
            **each,
            "crowds": {
                **each["crowds"],
                **{side: max(one["crowds"][side] for one in both) for side in ("production", "shadow")},
            },
            "outages": {**each["outages"], "errors": max(one["outages"]["errors"] for one in both)},
            "endpoints": dict(islice(each["endpoints"].items(), NAMED)),
            "worst": dict(sorted(each["worst"].items(), key=lambda item: -badness(item[1]))[:1]),
        }
    return {**total, "capture": dict(islice(total["capture"].items(), NAMES))}
