# SPDX-License-Identifier: Apache-2.0
"""The budget of all taps: whoever measures gets the share that all have; who has gone counts no more."""

from __future__ import annotations

import threading

from tapmirror.governor import Measure
from tapmirror.spec.settings import AllTaps
from tapmirror.supervisor.together import Together

MIB = 1 << 20


def test_the_sum_counts_and_all_get_the_same_share() -> None:
    said: list[str] = []
    of_all = Together(AllTaps(cpu=1.0), 0.0, said.append)
    assert of_all.observe("a", Measure(cpu_share=0.8), 1.0).share == 1.0
    assert of_all.observe("b", Measure(cpu_share=0.9), 1.1).share == 1.0  # the sums were looked at just now
    low = of_all.observe("a", Measure(cpu_share=0.8), 2.1)
    assert low.share == 0.5 and low.reason == "all taps: the workers of all taps use 1.70 cores; the budget is 1"
    assert of_all.observe("b", Measure(cpu_share=0.9), 2.2) == low
    assert said == [f"50% of their shares: {low.reason}"]
    told = of_all.told()
    assert told["budget"] == {"cpu": 1.0} and told["used"]["cpu"] == 1.7
    assert told["share"] == 0.5 and told["reason"] == low.reason
    of_all.forget("b")
    assert of_all.told()["used"]["cpu"] == 0.8
    now, share = 3.0, low.share
    while share < 1:
        share = of_all.observe("a", Measure(cpu_share=0.4 * share), now).share
        now += 1.0
        assert now < 60
    assert said[1:] == ["whole shares"]


def test_another_budget_counts_from_the_next_look_on() -> None:
    of_all = Together(AllTaps(), 0.0, lambda _: None)
    big = Measure(cpu_share=9.0, rss_bytes=300 * MIB, shadow_bytes=1e9)
    assert of_all.observe("a", big, 1.0).share == 1.0
    of_all.set_budget(AllTaps(memory=200 * MIB))
    low = of_all.observe("a", big, 2.0)
    assert low.share < 1 and "hold 300 MiB; the budget is 200 MiB" in low.reason
    of_all.set_budget(AllTaps())
    shares = [of_all.observe("a", big, float(now)).share for now in range(3, 60)]
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_many_threads() -> None:
    of_all = Together(AllTaps(bandwidth=1e6), 0.0, lambda _: None)

    def one(name: int) -> None:
        for now in range(100):
            of_all.observe(name, Measure(shadow_bytes=1e5), float(now))
        of_all.forget(name)

    threads = [threading.Thread(target=one, args=(name,)) for name in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert of_all.told()["used"] == {"cpu": 0, "memory": 0, "bandwidth": 0}
