# SPDX-License-Identifier: Apache-2.0
"""The ledgers of workers as one."""

from __future__ import annotations

from typing import Any

from ledgers import snapshot
from tapmirror.histogram import Histogram
from tapmirror.supervisor.ledgers import quantiles, together


def worker(pid: int, fill: float, delay: int) -> dict[str, Any]:
    found = snapshot()
    found["ring"] = {"bytes": 1 << 20, "fill": fill}
    found["worker"]["pid"] = pid
    found["events"] = {"flows": 1, "delay_records": 10, "delay_us": delay}
    return found


def test_sums_hide_no_worker_that_is_behind() -> None:
    found = together([worker(7, 0.25, 100), worker(8, 0.75, 900)], {"tap": "web", "state": "running"}, {})
    assert found["segments"]["seen"] == 2000 and found["events"]["delay_us"] == 1000
    assert found["ring"] == {"bytes": 1 << 20, "fill": 0.75}, "the ring of the worst one"
    assert found["worker"]["pid"] == 7
    assert [(each["pid"], each["delay_us"]) for each in found["workers"]] == [(7, 100), (8, 900)]


def test_names_that_were_looked_up_are_among_the_events() -> None:
    found = together([worker(7, 0.0, 0)], {}, {"lookups": 3, "failures": 0})
    assert {name: count for name, count in found["events"].items() if name.startswith("names_")} == {"names_lookups": 3}


def test_quantiles_are_of_what_was_timed() -> None:
    assert quantiles({}) == {}
    times = Histogram()
    for seconds in (*[0.001] * 90, *[1.0] * 10):
        times.add(seconds)
    found = quantiles(times.snapshot()["buckets"])
    assert 0 < found["p50_ms"] <= 1 and 100 < found["p99_ms"] <= 1000
