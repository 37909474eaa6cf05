# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import msgspec
import pytest

from hostile_figures import empty, shop
from tapmirror.compare.noise import Nature
from tapmirror.exchange import Failure, Unpaired
from tapmirror.report import FORMS, terminal, words


@pytest.mark.parametrize(
    ("value", "want"), [(0.05, "50 µs"), (1.234, "1.23 ms"), (999, "999 ms"), (1500, "1.5 s"), (2e6, "2,000 s")]
)
def test_times(value: float, want: str) -> None:
    assert words.milliseconds(value) == want


def test_what_was_not_timed_has_no_time() -> None:
    """As uploads that production refuses before their end: no report says that they took 0 µs."""
    found = empty()
    assert words.cells(found.all)[4:8] == ("-",) * 4
    assert "µs" not in "".join(FORMS[form](found) for form in ("terminal", "markdown", "html"))
    assert "µs" not in terminal(found, width=80)


@pytest.mark.parametrize(
    ("value", "want"),
    [(None, "-"), (0.0, "0.00 %"), (0.00001, "0.001 %"), (0.0123, "1.23 %"), (0.5, "50.0 %"), (-0.02, "-2.00 %")],
)
def test_shares(value: float | None, want: str) -> None:
    assert words.percent(value) == want


@pytest.mark.parametrize(("value", "want"), [(12, "12 B"), (1234, "1.23 KB"), (5e6, "5 MB"), (7e9, "7 GB")])
def test_sizes(value: float, want: str) -> None:
    assert words.size(value) == want


@pytest.mark.parametrize(("value", "want"), [(5, "5 s"), (600, "10 min"), (86_400, "24.0 h")])
def test_durations(value: float, want: str) -> None:
    assert words.duration(value) == want


def test_every_reason_has_words() -> None:
    assert words.UNPAIRED.keys() == {reason.value for reason in Unpaired}
    assert words.FAILURES.keys() == {reason.value for reason in Failure}


def test_what_was_not_compared_is_said() -> None:
    figures = empty()
    endpoints = [msgspec.structs.replace(figures.all, skipped={"too long": 2, "too long decoded": n}) for n in (1, 3)]
    figures = msgspec.structs.replace(
        figures,
        failures={"closed": 1200},
        unpaired={"gap": 5, "new": 1},
        thinned=7,
        raw=1500,
        endpoints=endpoints,
        notes=["so"],
    )
    assert [*words.remarks(figures)] == [
        "errors of the shadow: it gave no response (it closed the connection): 1,200",
        "not compared (a part of production's response was not seen): 5",
        "not compared (new): 1",
        "only status and times compared (beyond max_bodies, or marked to find loops): 7",
        "connections that are not HTTP/1: mirrored as bytes, not compared: 1,500",
        "bodies not compared (too long): 4",
        "bodies not compared (too long decoded): 4",
        "so",
    ]


def test_noise_is_named_where_it_is() -> None:
    """A path alone says nothing where it is noise at one endpoint and a difference at another."""
    figures = shop("same", 3000)
    lines = [*words.noise(figures, 100)]
    assert "taken for noise at GET /products: body.products" in lines
    assert "taken for noise at GET /products, GET /search, POST /cart and 2 more: body.request, body.time" in lines
    assert [*words.noise(figures, 2)] == [lines[0], f"taken for noise: {sum(_paths(lines)) - 2} more fields"]
    assert words.some(["a", "b", "c"]) == "a, b, c"


def test_bodies_that_are_noise_as_a_whole_are_said_to_hide_what_else_differs() -> None:
    figures = shop("same", 50)
    (field, *_), name = figures.endpoints[0].fields, figures.endpoints[0].name
    for path, want in (("body", [("at " + name, 7)]), ("body.a", [])):
        noise = msgspec.structs.replace(field, path=path, kind="value", nature=Nature.NOISE, count=7)
        endpoint = msgspec.structs.replace(figures.endpoints[0], fields=[noise])
        found = words.losses(msgspec.structs.replace(figures, endpoints=[endpoint]))
        assert [(what[what.index("at GET") :], number) for what, number in found if "by themselves" in what] == want


def _paths(lines: list[str]) -> list[int]:
    return [line.partition(": ")[2].count(", ") + 1 for line in lines]
