# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from tapmirror.compare.figures import Bin, PointFigures, SideFigures
from tapmirror.compare.verdict import Check, Outcome
from tapmirror.report import charts

ONE = SideFigures({"200": 990, "500": 10}, 0.01, {}, {"p50": 1.0, "p90": 2.0, "p99": 4.0}, 10.0)
NONE = SideFigures({}, 0.0, {}, {"p50": 0.0, "p90": 0.0, "p99": 0.0}, 0.0)
LINE = [PointFigures(float(n), 100, (0, n % 2), (1.0 + n, 2.0), (5.0, 9.0)) for n in range(10)]


def numbers(picture: str) -> list[float]:
    root = ElementTree.fromstring(picture)  # well-formed
    found = []
    for element in root.iter():
        for name in ("x", "y", "width", "height", "x1", "x2", "y1", "y2", "cx", "cy"):
            if name in element.attrib and element.tag != "svg":
                found.append(float(element.attrib[name]))
    return found


@pytest.mark.parametrize(
    "picture",
    [
        charts.distribution([Bin(1.0 * n + 1, n + 2.0, n, 10 - n) for n in range(10)]),
        charts.distribution([Bin(1.0, 1.0, 0, 0)]),
        charts.quantile_marks(ONE, ONE),
        charts.quantile_marks(NONE, NONE),
        charts.timeline(LINE, 1.0),
        charts.statuses(ONE, NONE),
        charts.statuses(SideFigures({str(n): 1 for n in range(100, 164)}, 0, {}, {}, 0), ONE),
        *(
            charts.interval(Check(name, outcome, 0.01, -1.0, high, 0.001, None))
            for name in ("p99 ratio", "difference rate")
            for outcome in Outcome
            for high in (0.02, float("inf"))
        ),
    ],
)
def test_pictures_stay_within_their_frame(picture: str) -> None:
    for value in numbers(picture):
        assert -2 <= value <= 402


def test_a_distribution_is_drawn_upwards_and_downwards_in_proportion() -> None:
    root = ElementTree.fromstring(charts.distribution([Bin(1.0, 2.0, 30, 0), Bin(2.0, 4.0, 10, 20)]))
    bars = [each.attrib for each in root.iter("rect") if each.attrib["class"] in ("p", "s")]
    heights = {side: [float(bar["height"]) for bar in bars if bar["class"] == side] for side in "ps"}
    assert heights == {"p": [54.0, 18.0], "s": [0.0, 72.0]}  # of 72: three quarters, one, none and all
    assert all(float(bar["y"]) + float(bar["height"]) == 84 for bar in bars if bar["class"] == "p")
    assert all(float(bar["y"]) == 85 for bar in bars if bar["class"] == "s")
    assert [each.text for each in root.iter("title")][1] == "2 ms to 4 ms: production 25.0 %, shadow 100.0 %"


def test_nothing_to_draw() -> None:
    assert charts.distribution([]) == ""
    assert charts.timeline(LINE[:1], 1.0) == ""
    assert charts.timeline([PointFigures(float(n), 1, (0, 0), (0.0, 0.0), (0.0, 0.0)) for n in range(3)], 1.0) == ""


def test_a_point_with_hardly_any_requests_is_left_out() -> None:
    sparse = [*LINE, PointFigures(10.0, 1, (0, 0), (500.0, 500.0), (500.0, 500.0))]
    assert charts.timeline(sparse, 1.0) == charts.timeline(LINE, 1.0)


def test_a_rare_status_can_still_be_seen() -> None:
    picture = charts.statuses(SideFigures({"200": 1_000_000, "500": 1}, 0.0, {}, {}, 0), NONE)
    (width,) = re.findall(r'class="st5" x="[\d.]+" y="4" width="([\d.]+)"', picture)
    assert float(width) > 1


def test_axes_have_round_numbers() -> None:
    assert charts._ticks(0.9, 11.0) == [1.0, 2.0, 5.0, 10.0]
    assert 2 <= len(charts._ticks(1e-3, 1e6)) <= 6
    assert charts._ticks(0.0, 1.0) == []
