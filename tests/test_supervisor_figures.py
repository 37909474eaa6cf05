# SPDX-License-Identifier: Apache-2.0
"""A worker's figures: those of a real ledger are taken as they are; whatever else a hostile one says is refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest

from briefs import brief
from lab.exchanges import Feed
from tapmirror.compare.briefs import NAMED
from tapmirror.compare.summary import Endpoint, State
from tapmirror.events import DropReason, FilterReason
from tapmirror.exchange import Failure, Unpaired
from tapmirror.histogram import BOUNDS
from tapmirror.ledger import Ledger, View
from tapmirror.spec.compare import Compare, Level
from tapmirror.spec.shadow import parse_shadow
from tapmirror.supervisor.figures import MOST, NAMES, checked, with_past

LABEL = "s.test:80"
ALL = [{reason.value: 1 for reason in reasons} for reasons in (Unpaired, Failure)]
SHADOWS = [parse_shadow(LABEL, copies=3)]


def figures() -> dict[str, Any]:
    """As a worker makes them, with every reason that there is."""
    ledger = Ledger()
    for unit in (ledger.segments, ledger.bytes, ledger.requests):
        unit.filtered.update(dict.fromkeys(FilterReason, 1))
        unit.dropped.update(dict.fromkeys(DropReason, 2))
    ledger.events.update({"kernel_syn": 3, "connect_ECONNREFUSED": 1})
    ledger.responses.update({"2xx": 1, "garbage": 2})
    for seconds in (*BOUNDS, 1e6):
        ledger.latency.add(seconds)
    view = View(ledger.bytes, ledger.requests, ledger.events, ledger.responses, ledger.latency, 5, 6)
    compared = brief(State(endpoints={"GET /a": Endpoint(pairs=3)}, unpaired=ALL[0], failures=ALL[1]))
    return {
        **ledger.snapshot(segments=-1),
        "shadows": {LABEL: view.snapshot()},
        "flows": 4,
        "compare": {"shadows": {LABEL: compared}, "capture": {"flows": 1}},
        "ring": {"bytes": 1 << 20, "fill": 0.25},
        "worker": {"pid": 7, "cpu_s": 1.5, "rss_kb": 1000, "sandbox": ["seccomp", "landlock"]},
    }


def test_a_workers_figures_are_taken_as_they_are() -> None:
    assert checked(figures(), SHADOWS) == figures()
    without = figures()
    del without["compare"]
    assert checked(without, SHADOWS) == without


def test_copies_of_a_shadow_are_compared_each_by_itself() -> None:
    found = figures()
    compared = found["compare"]["shadows"]
    compared.update(dict.fromkeys((f"{LABEL}#2", f"{LABEL}#3"), compared[LABEL]))
    assert checked(found, SHADOWS) == found


@pytest.mark.parametrize("end", ["", "1", "4", "02", "x\x1b[2J"])
def test_of_copies_there_are_those_of_the_spec(end: str) -> None:
    found = figures()
    compared = found["compare"]["shadows"]
    compared[f"{LABEL}#{end}"] = compared[LABEL]
    with pytest.raises(ValueError, match="compares shadows that are not the tap's"):
        checked(found, SHADOWS)


def test_only_the_last_carry_a_comparison() -> None:
    last = {**figures(), "comparison": {"shadows": {}}}
    assert checked(last, SHADOWS, final=True) == last
    with pytest.raises(ValueError, match="comparison"):
        checked(last, SHADOWS)


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "a list for a count": lambda it: it["answers"].update({"2xx": []}),
    "a text for a count": lambda it: it["segments"].update(seen="1"),
    "a fraction": lambda it: it["requests"]["dropped"].update(late=0.5),
    "below nothing": lambda it: it["bytes"].update(seen=-1),
    "beyond 64 bits": lambda it: it["events"].update(flows=MOST + 1),
    "far beyond": lambda it: it.update(flows=10**400),
    "no number": lambda it: it["worker"].update(cpu_s=math.nan),
    "infinity": lambda it: it["ring"].update(fill=math.inf),
    "a field is missing": lambda it: it["worker"].pop("rss_kb"),
    "a field is unknown": lambda it: it.update(more=1),
    "of a shadow too": lambda it: it["shadows"][LABEL].update(more=1),
    "times of another shape": lambda it: it["shadows"][LABEL].update(latency={"buckets": [], "count": 0, "sum_s": 0}),
    "a bucket that there is not": lambda it: it["shadows"][LABEL]["latency"]["buckets"].update({"0.7": 0}),
    "times that do not add up": lambda it: it["shadows"][LABEL]["latency"].update(count=1),
    "times without end": lambda it: it["shadows"][LABEL]["latency"].update(sum_s=math.inf),
    "fewer than none": lambda it: it["shadows"][LABEL]["latency"]["buckets"].update({"1": -1}),
    "a shadow that is not the tap's": lambda it: it["shadows"].update({"other": it["shadows"][LABEL]}),
    "a shadow is missing": lambda it: it["shadows"].clear(),
    "a name with a line end": lambda it: it["events"].update({"x\n": 1}),
    "a long name": lambda it: it["answers"].update({"x" * 65: 1}),
    "an empty name": lambda it: it["answers"].update({"": 1}),
    "many names": lambda it: it["events"].update({f"x{i}": 1 for i in range(NAMES)}),
    "a comparison of another shape": lambda it: it["compare"]["shadows"].update({LABEL: 1}),
    "a comparison with another shadow": lambda it: it["compare"]["shadows"].update(x=it["compare"]["shadows"][LABEL]),
    "a comparison with many end points": lambda it: it["compare"]["shadows"][LABEL]["endpoints"].update(
        {str(n): it["compare"]["shadows"][LABEL]["all"] for n in range(NAMED + 1)}
    ),
    "crowds without end": lambda it: it["compare"]["shadows"][LABEL]["crowds"].update(shadow=1e31),
    "a time that is none": lambda it: it["compare"]["shadows"][LABEL]["times"]["shadow"].update(x=1),
    "a reason that is none": lambda it: it["compare"]["shadows"][LABEL]["unpaired"].update(other=1),
    "of a failure": lambda it: it["compare"]["shadows"][LABEL]["failures"].update(gap=1),
    "a reason fewer than none": lambda it: it["compare"]["shadows"][LABEL]["unpaired"].update(gap=-1),
    "a bound of no histogram": lambda it: it["compare"]["shadows"][LABEL]["all"]["shadow"]["times"].update({"0.3": 1}),
    "a bound that is none": lambda it: it["compare"]["shadows"][LABEL]["all"]["shadow"]["times"].update({"a\n": 1}),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_whatever_else_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    found = copy.deepcopy(figures())
    change(found)
    with pytest.raises(ValueError):  # noqa: PT011 -- msgspec's errors are ValueErrors too
        checked(found, SHADOWS)


def test_real_comparisons_are_taken_as_they_are() -> None:
    """Of each level, with noise, failures and end points that become one."""
    for level in (Level.STATUS, Level.HEADERS, Level.BODY):
        feed = Feed("broken", spec=Compare(level=level, max_endpoints=4))
        found = figures()
        for _ in range(5):
            found["compare"]["shadows"] = {LABEL: feed.run(200).comparison.brief()["v2"]}
            assert checked(found, SHADOWS) == found


@pytest.mark.parametrize("place", ["all", "endpoints", "worst"])
@pytest.mark.parametrize(
    "change",
    [{"differing": 3}, {"compared": 4}, {"only_shadow": 4}, {"only_production": 4}, {"pairs": 1}],
    ids=str,
)
def test_no_part_is_more_than_the_whole(place: str, change: dict[str, int]) -> None:
    found = figures()
    compared = found["compare"]["shadows"][LABEL]
    one = compared[place] if place == "all" else compared[place]["GET /a"]
    one.update(compared=2, only_shadow=1, only_production=1)
    assert checked(found, SHADOWS) == found
    one.update(change)
    with pytest.raises(ValueError, match="more than the whole"):
        checked(found, SHADOWS)


@pytest.mark.parametrize(("certain", "possible"), [(2, 1), (0, 3), (3, 3)])
def test_what_differs_is_no_more_than_what_was_compared(certain: int, possible: int) -> None:
    found = figures()
    compared = found["compare"]["shadows"][LABEL]
    compared["all"].update(compared=2)
    compared.update(certain=1, possible=2)
    assert checked(found, SHADOWS) == found
    compared.update(certain=certain, possible=possible)
    with pytest.raises(ValueError, match="more than the whole"):
        checked(found, SHADOWS)


def test_errors_of_one_side_are_no_more_than_what_differs() -> None:
    found = figures()
    compared = found["compare"]["shadows"][LABEL]
    compared["all"].update(compared=2, differing=1)
    compared.update(erring=1)
    assert checked(found, SHADOWS) == found
    compared.update(erring=2)
    with pytest.raises(ValueError, match="more than the whole"):
        checked(found, SHADOWS)


@pytest.mark.parametrize("found", [None, [], "x", {}])
def test_what_is_no_snapshot_at_all_is_refused(found: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        checked(found, SHADOWS)


def test_a_comparison_with_its_past_is_of_the_size_of_one() -> None:
    past: dict[str, Any] = {"shadows": {}, "capture": {}}
    for life in range(5):
        endpoints = {f"GET /{life}/{n}": Endpoint(pairs=10 + life, only_shadow=life % 3) for n in range(NAMED)}
        found = brief(State(requests=7, endpoints=endpoints))
        capture = {f"{life} {n}": 1 for n in range(NAMES)}
        found["crowds"].update(told=10, shadow=float(life % 3))
        found["outages"].update(told=10, errors=float(life % 3))
        past = with_past({"shadows": {LABEL: found}, "capture": capture}, past)
    found = past["shadows"][LABEL]
    assert [*found["endpoints"]] == [f"GET /0/{n}" for n in range(NAMED)], "they keep their places"
    assert [*found["worst"]] == ["GET /2/0"]
    assert found["crowds"] == {"production": 0.0, "shadow": 2.0, "told": 50}
    assert found["outages"] == {"errors": 2.0, "told": 50}
    assert (found["requests"], found["all"]["pairs"]) == (35, NAMED * (10 + 11 + 12 + 13 + 14))
    taken = figures()
    taken["compare"] = past
    assert checked(taken, SHADOWS) == taken
