# SPDX-License-Identifier: Apache-2.0
"""The governor on simulated plants: it stays in bounds, settles, recovers, and does not swing."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapmirror.governor import (
    AIM,
    FLOOR,
    HOLD_MOST,
    PROBE,
    SILENT_TRIALS,
    SPARED,
    Decision,
    Governor,
    Health,
    Measure,
    Overall,
    State,
    measure,
)
from tapmirror.histogram import NAMES, Histogram
from tapmirror.spec import Budget
from tapmirror.spec.budget import WORKER
from tapmirror.spec.settings import AllTaps

Plant = Callable[[float, float], Measure]
"""(share, seconds since the start) to what is measured then."""
OK = Health(responses=100, answered=100, sent_bytes=10_000)


def run(plant: Plant, seconds: int, budget: Budget | None = None, governor: Governor | None = None) -> list[Decision]:
    """One decision a second."""
    governor = governor or Governor(budget or Budget(), 0.0)
    decisions: list[Decision] = []
    share = 1.0
    for now in range(1, seconds + 1):
        decisions.append(governor.observe(plant(share, now), float(now)))
        share = decisions[-1].share
    return decisions


def shares(decisions: list[Decision]) -> list[float]:
    return [decision.share for decision in decisions]


def drops(values: list[float]) -> int:
    """How often it went down."""
    return sum(after < before for before, after in itertools.pairwise(values))


# --- whatever happens

numbers = st.floats(0, 1e12)
healths = st.builds(
    Health,
    responses=st.integers(0, 1000),
    errors=st.integers(0, 1000),
    connects=st.integers(0, 10),
    connect_failures=st.integers(0, 10),
    silent=st.integers(0, 10),
    alike=st.integers(0, 1000),
    broke_off=st.integers(0, 10),
    answered=st.integers(0, 1000),
    sent_bytes=st.integers(0, 1000),
    times=st.dictionaries(st.sampled_from(NAMES), st.integers(0, 1000)),
)
measures = st.builds(
    Measure,
    ring_fill=st.floats(0, 1),
    delay=st.floats(0, 10),
    cpu_share=numbers,
    rss_bytes=st.integers(0, 1 << 50),
    shadow_bytes=numbers,
    host_cpu=st.floats(0, 100),
    host_memory=st.floats(0, 100),
    shadows=st.dictionaries(st.sampled_from("abc"), healths, max_size=3),
)


@given(st.lists(st.tuples(measures, st.floats(0, 1000)), max_size=50))
def test_the_share_is_one_and_has_a_reason_when_it_is_not_all(steps: list[tuple[Measure, float]]) -> None:
    governor, now = Governor(Budget(bandwidth=1e6), 0.0), 0.0
    for each, passed in steps:
        now += passed
        decision = governor.observe(each, now)
        assert 0 <= decision.share <= 1
        assert bool(decision.reason) == (decision.share < 1)
        assert decision.reason.isprintable()
        assert set(governor.breakers()) == set(each.shadows)


@given(measures, st.integers(1, 60))
def test_calm_gives_all_back(bad: Measure, seconds: int) -> None:
    """Whatever went before, the share is the full one again after the longest wait and some minutes."""
    budget = Budget(bandwidth=1e6)
    governor = Governor(budget, 0.0)
    for now in range(seconds):
        governor.observe(bad, float(now))
    calm = Measure(shadows=dict.fromkeys(bad.shadows, OK))
    for now in range(seconds, seconds + int(HOLD_MOST + 10 * budget.retry + 300)):
        decision = governor.observe(calm, float(now))
    assert decision == Decision(share=1.0, reason="")


# --- plants


@pytest.mark.parametrize("demand", [1.1, 2.0, 5.0, 50.0])
@pytest.mark.parametrize("kind", ["cpu", "bandwidth"])
def test_a_proportional_load_settles_below_its_budget(kind: str, demand: float) -> None:
    def plant(share: float, _now: float) -> Measure:
        return Measure(cpu_share=demand * share) if kind == "cpu" else Measure(shadow_bytes=1e6 * demand * share)

    values = shares(run(plant, 600, Budget(cpu=1.0, bandwidth=1e6)))
    settled = values[30:]
    assert max(settled) == min(settled), "it swings"
    assert 0.7 <= settled[-1] * demand <= 1.0
    assert drops(values) <= 4


@pytest.mark.parametrize("demand", [1.1, 2.0, 5.0, 50.0])
@pytest.mark.parametrize("kind", ["cpu", "bandwidth"])
def test_all_taps_together_settle_below_their_budget_and_come_back(kind: str, demand: float) -> None:
    """Three taps of which one takes most; each acts up to a second after it is told to."""
    overall = Overall(AllTaps(cpu=1.0, bandwidth=1e6), 0.0)
    parts, shares_of_all = (0.6, 0.3, 0.1), [1.0, 1.0]

    def measures(factor: float) -> list[Measure]:
        return [
            Measure(cpu_share=factor * part) if kind == "cpu" else Measure(shadow_bytes=1e6 * factor * part)
            for part in parts
        ]

    reasons = set()
    for now in range(1, 600):
        decision = overall.observe(measures(demand * shares_of_all[-2]), float(now))
        shares_of_all.append(decision.share)
        reasons.add(decision.reason)
    settled = shares_of_all[40:]
    assert max(settled) == min(settled), "it swings"
    assert 0.7 <= settled[-1] * demand <= 1.0
    what = "the workers of all taps use" if kind == "cpu" else "bytes/s of all taps go out"
    assert any(what in reason for reason in reasons)
    back = [overall.observe(measures(0.1), float(now)).share for now in range(600, 800)]
    assert back == sorted(back) and back[-1] == 1.0


def test_without_a_budget_of_all_taps_nothing_is_lowered() -> None:
    overall = Overall(AllTaps(), 0.0)
    much = Measure(cpu_share=1e9, rss_bytes=1 << 50, shadow_bytes=1e12, ring_fill=1.0, host_cpu=100.0)
    assert overall.observe([much] * 50, 1.0) == Decision(share=1.0, reason="")


def test_a_small_fixed_cost_does_not_swing_either() -> None:
    def plant(share: float, _now: float) -> Measure:
        return Measure(cpu_share=0.3 + 1.5 * share)

    settled = shares(run(plant, 1200))[200:]
    assert max(settled) == min(settled)
    assert 0.7 <= 0.3 + 1.5 * settled[-1] <= 1.0


@pytest.mark.parametrize("capacity", [0.9, 0.5, 0.2, 0.05])
def test_a_ring_that_fills_beyond_a_capacity(capacity: float) -> None:
    """All or nothing, as a queue is: empty below the capacity, full above it."""

    def plant(share: float, _now: float) -> Measure:
        return Measure(ring_fill=1.0 if share > capacity else 0.01)

    values = shares(run(plant, 3600))
    assert drops(values) <= 40, "it swings"
    late = values[600:]
    assert sum(value > capacity for value in late) / len(late) < 0.02
    assert sum(late) / len(late) > 0.5 * capacity


@pytest.mark.parametrize("capacity", [0.9, 0.5, 0.2, 0.05])
def test_workers_that_cannot_keep_up(capacity: float) -> None:
    """A queue: what passes the capacity waits, and goes on waiting until less comes."""
    queue, delays = 0.0, []

    def plant(share: float, _now: float) -> Measure:
        nonlocal queue
        queue = max(0.0, queue + share - capacity)
        delays.append(queue / capacity)
        return Measure(delay=0.001 + delays[-1])

    decisions = run(plant, 3600)
    values = shares(decisions)
    assert drops(values) <= 40, "it swings"
    assert sum(values[600:]) / 3000 > 0.5 * capacity
    assert sum(delay > 1 for delay in delays[600:]) / 3000 < 0.05
    assert any(
        re.fullmatch(r"the workers get too little CPU: they are \d+\.\d\d s behind", d.reason) for d in decisions
    )


@pytest.mark.parametrize(
    "delays", [[9.0], [0.3, 0.2], [5.0, 3.9, 3.0, 2.3, 1.8, 1.4, 1.1, 0.8, 0.6], [0.3, 0.3, 0.1] * 9]
)
def test_workers_that_were_held_up_and_catch_up_lose_nothing(delays: list[float]) -> None:
    pattern = [0.001] * 5 + delays + [0.001] * 5
    values = shares(run(lambda _share, now: Measure(delay=pattern[min(int(now), len(pattern) - 1)]), 60))
    assert values == [1.0] * len(values)


def test_pressure_with_its_lag() -> None:
    """PSI is an average of ten seconds; what the tap adds to it is a part of it."""
    average = 0.0

    def plant(share: float, _now: float) -> Measure:
        nonlocal average
        average += (40 + 50 * share - average) / 10
        return Measure(host_cpu=average, cpu_share=share)

    values = shares(run(plant, 3600))
    assert drops(values) <= 40
    assert 40 + 50 * (sum(values[600:]) / 3000) <= 72


@pytest.mark.parametrize("demand", [0.02, 0.5, 4.0])
def test_pressure_that_is_not_the_taps_leaves_it_a_tenth_of_a_core(demand: float) -> None:
    """A host that is merely busy: whatever the tap does, something waits."""

    def plant(share: float, now: float) -> Measure:
        return Measure(host_cpu=95.0 if now <= 600 else 10.0, cpu_share=demand * share)

    decisions = run(plant, 900, Budget(cpu=8.0))
    settled = shares(decisions)[100:600]
    assert max(settled) == min(settled), "it swings"
    assert settled[-1] == 1.0 if demand < SPARED else 0.7 * SPARED <= settled[-1] * demand <= SPARED
    if settled[-1] < 1:
        assert decisions[299].reason.startswith("this host is short of CPU (pressure 95 %): the workers may use 0.1 of")
    assert decisions[-1] == Decision(share=1.0, reason="")


def test_pressure_can_be_left_out_of_it() -> None:
    plant: Plant = lambda share, _now: Measure(host_cpu=100.0, cpu_share=0.9 * share)  # noqa: E731
    assert min(shares(run(plant, 60, Budget(host_cpu=100.0)))) == 1.0


def test_memory_that_does_not_come_back() -> None:
    decisions = run(lambda _share, _now: Measure(rss_bytes=1 << 30), 300)
    assert decisions[-1].share == FLOOR
    assert decisions[-1].reason == "the workers hold 1024 MiB; the budget is 512 MiB"


def test_a_burst_costs_seconds() -> None:
    values = shares(run(lambda _share, now: Measure(ring_fill=0.9 if now == 10 else 0.0), 60))
    assert values[9] == 0.5
    assert values[45:] == [1.0] * 15


def test_a_suspend_is_one_step() -> None:
    governor = Governor(Budget(), 0.0)
    assert governor.observe(Measure(ring_fill=1.0), 1.0).share == 0.5
    assert governor.observe(Measure(), 2.0).share == 0.5
    assert governor.observe(Measure(), 86_400.0).share < 0.6


def rises(values: list[float]) -> list[int]:
    """The seconds at which it began to go up."""
    ups = [after > before for before, after in itertools.pairwise(values)]
    return [i + 1 for i, (before, up) in enumerate(itertools.pairwise([False, *ups])) if up and not before]


def test_rises_that_fail_wait_longer_and_longer_but_not_for_ever() -> None:
    plant: Plant = lambda share, _now: Measure(ring_fill=0.9 if share > 0.6 else 0.0)  # noqa: E731
    waits = [after - before for before, after in itertools.pairwise(rises(shares(run(plant, 3000))))]
    assert waits[0] < 20 and waits[1] > waits[0]
    assert HOLD_MOST <= max(waits) <= HOLD_MOST + 30


def test_failures_are_forgotten_after_a_minute_at_the_full_share() -> None:
    """As long after them as at the first time the share is whole again."""

    def seconds(until: int) -> int:
        bursts = (10, 40, 70, 100, until)  # each amid the rise after the one before
        values = shares(run(lambda _share, now: Measure(ring_fill=0.9 if now in bursts else 0.0), until + 300))
        return values.index(1.0, until) - until

    first = shares(run(lambda _share, now: Measure(ring_fill=0.9 if now == 10 else 0.0), 100)).index(1.0, 10) - 10
    assert seconds(1000) == first < seconds(130)


def test_near_the_share_that_failed_it_rises_slowly() -> None:
    plant: Plant = lambda share, _now: Measure(ring_fill=0.9 if share > 0.7 else 0.0)  # noqa: E731
    values = shares(run(plant, 300))[100:]  # it has failed at 0.7 then, and not at the whole share
    steps = [after / before for before, after in itertools.pairwise(values) if after > before > 0.57]
    assert steps and max(steps) < 1.03, "0.8 of what failed is 0.56"


def test_the_reason_is_what_is_most_too_much() -> None:
    both = Measure(ring_fill=0.6, rss_bytes=4 << 30)
    assert run(lambda *_: both, 1)[0].reason == "the workers hold 4096 MiB; the budget is 512 MiB"


def test_many_workers_may_hold_more_unless_somebody_says_what() -> None:
    """Twenty that are idle hold 840 MiB."""
    idle = Measure(rss_bytes=20 * WORKER, workers=20)
    assert run(lambda *_: idle, 1)[0].share == 1
    assert run(lambda *_: idle, 1, Budget(memory=512 << 20))[0].share < 1


def test_after_several_at_once_the_slowest_to_follow_is_waited_for() -> None:
    both = Measure(ring_fill=0.6, rss_bytes=4 << 30)
    values = shares(run(lambda *_: both, 12))
    assert values[:10] == [0.5] * 10 and values[10] < 0.5, "ten seconds, for memory"


def test_pressure_that_is_left_out_of_it_holds_back_no_rise() -> None:
    off = Budget(host_cpu=100.0, host_memory=100.0)
    plant: Plant = lambda _share, now: Measure(  # noqa: E731
        ring_fill=0.9 if now == 10 else 0.0, host_cpu=100.0, host_memory=100.0
    )
    assert run(plant, 60, off)[-1].share == 1.0


def test_a_few_slow_responses_tell_nothing() -> None:
    def plant(_share: float, now: float) -> Measure:
        return Measure(shadows={"v2": Health(responses=1, sent_bytes=1, times={"30": 1} if now % 5 == 0 else {})})

    assert shares(run(plant, 300)) == [1.0] * 300


def test_slow_responses_get_less_until_they_are_fast() -> None:
    def plant(share: float, _now: float) -> Measure:
        times = Histogram()
        for part in (0.2, 0.9, 1.1):
            times.add(10.0 * share * part)
        return Measure(shadows={"v2": Health(responses=50, sent_bytes=1, times=times.snapshot()["buckets"])})

    decisions = run(plant, 1200)
    assert 0.2 < decisions[-1].share <= 0.5
    assert decisions[-1].reason == "shadow v2: half of its responses take more than 5 s"
    assert drops(shares(decisions)) <= 15


# --- the breaker


def down(share: float, _now: float) -> Measure:
    """Attempts as replay's back-off makes them: while there is something to send."""
    return Measure(shadows={"v2": Health(connect_failures=1 if share else 0)})


def well(_share: float, _now: float) -> Measure:
    return Measure(shadows={"v2": OK})


def test_a_dead_shadow_opens_its_breaker_and_its_return_closes_it() -> None:
    governor = Governor(Budget(), 0.0)
    seen: list[State] = []

    def plant(share: float, now: float) -> Measure:
        if state := governor.breakers().get("v2"):
            seen.append(state)
        return well(share, now) if now <= 10 or now > 100 else down(share, now)

    decisions = run(plant, 200, governor=governor)
    assert decisions[9].share == 1
    assert decisions[14].share == 0, "down for four seconds"
    assert decisions[14].reason == "shadow v2: it cannot be connected to; tried again after 5 s"
    tries = [i for i, state in enumerate(seen[:100]) if state is State.HALF_OPEN]
    assert 3 <= len(tries) <= 6, "after 5, 10, 20, 30 seconds"
    assert {decisions[i].share for i in tries} == {PROBE}
    back = next(i for i in range(100, 200) if decisions[i].share == 1)
    assert back <= 100 + 30 + 6, "the longest pause and the probes"
    assert decisions[-1] == Decision(share=1.0, reason="")
    assert governor.breakers() == {"v2": State.CLOSED}


def test_a_restart_of_the_shadow_does_not_open_it() -> None:
    decisions = run(lambda share, now: down(share, now) if 10 < now <= 13 else well(share, now), 30)
    assert min(shares(decisions)) == 1


def test_failures_with_successes_between_them_do_not_open_it() -> None:
    values = shares(run(lambda share, now: down(share, now) if now % 5 == 0 else well(share, now), 60))
    assert min(values) == 1


def seconds_closed(decisions: list[Decision], after: int) -> int:
    """How long it was left alone, from the first second without a share behind that one on."""
    values = shares(decisions)
    opened = values.index(0.0, after)
    return next(i for i in range(opened, len(values)) if values[i] > 0) - opened


def test_the_first_pause_is_no_longer_than_the_longest() -> None:
    assert seconds_closed(run(down, 60, Budget(retry=2.0)), 0) == 2


def test_a_shadow_that_was_well_for_a_minute_is_tried_again_as_soon_as_at_first() -> None:
    decisions = run(lambda share, now: down(share, now) if now <= 60 or now > 300 else well(share, now), 400)
    assert seconds_closed(decisions, 30) >= 10
    assert seconds_closed(decisions, 300) == seconds_closed(decisions, 0) == 5


@pytest.mark.parametrize(("responses", "gone"), [(4, False), (5, True)])
def test_of_a_shadow_that_is_tried_again_a_few_errors_are_enough(responses: int, gone: bool) -> None:
    """And what it answered before it was left alone counts no more."""

    def plant(_share: float, now: float) -> Measure:
        bad = Health(responses=1000, errors=1000, sent_bytes=1) if now <= 1 else Health()
        if now == 8:
            bad = Health(responses=responses, errors=responses, connects=1, connected=1, sent_bytes=1)
        return Measure(shadows={"v2": bad})

    values = shares(run(plant, 8))
    assert values[0] == values[4] == 0 and values[5] == PROBE <= values[6]
    assert (values[7] == 0) == gone


@pytest.mark.parametrize("retry", [2.0, 30.0])
@pytest.mark.parametrize("kind", ["black hole", "deaf"])
def test_a_shadow_whose_failures_take_long_to_show_gets_the_first_few_connections_only(kind: str, retry: float) -> None:
    """A connection to a black hole fails after ten seconds, and so long takes a reply that does not come."""
    values = [1.0]

    def plant(share: float, now: float) -> Measure:
        then = values[int(now) - 10] if now > 10 else 0.0
        values.append(share)
        asked, failed = round(100 * share), round(100 * then)
        if kind == "black hole":
            return Measure(shadows={"v2": Health(connects=asked, connect_failures=failed)})
        deaf = Health(connects=asked, connected=asked, sent_bytes=asked, responses=failed, errors=failed)
        return Measure(shadows={"v2": deaf})

    late = shares(run(plant, 600, Budget(retry=retry)))[60:]
    assert set(late) == {0.0, PROBE}


@pytest.mark.parametrize("patience", [0, 10])
def test_what_goes_out_on_connections_from_before_does_not_close_it(patience: int) -> None:
    """New ones are refused, or fail after ten seconds; one from before still takes bytes whenever it is half open."""
    values = [1.0]
    governor = Governor(Budget(), 0.0)

    def plant(share: float, now: float) -> Measure:
        values.append(share)
        then = values[int(now) - patience] if now > patience else 0.0
        kept = 50 if governor.breakers().get("v2") is State.HALF_OPEN else 0
        asked, failed = round(100 * share), round(100 * then)
        return Measure(shadows={"v2": Health(connects=asked, connect_failures=failed, sent_bytes=kept)})

    late = shares(run(plant, 600, governor=governor))[60:]
    assert set(late) == {0.0, PROBE}


def test_connections_from_before_are_enough_where_none_is_tried() -> None:
    """Clients whose connections stand for hours: what was down is well when they get through."""
    governor = Governor(Budget(), 0.0)
    run(down, 20, governor=governor)
    assert governor.breakers()["v2"] is not State.CLOSED
    for now in range(21, 80):
        governor.observe(well(1.0, now), float(now))
    assert governor.breakers()["v2"] is State.CLOSED


def test_a_connection_whose_client_left_amid_it_does_not_keep_it_half_open() -> None:
    governor = Governor(Budget(), 0.0)
    run(down, 20, governor=governor)
    tried = False
    for now in range(20, 200):
        half = governor.breakers()["v2"] is State.HALF_OPEN
        governor.observe(Measure(shadows={"v2": Health(connects=int(half and not tried), sent_bytes=9)}), float(now))
        tried = tried or half
    assert governor.breakers()["v2"] is State.CLOSED


SILENT = "shadow v2: it breaks all connections off without a byte; tried again after "


class Forwarder:
    """With nobody behind it: it takes connections and breaks them off after `patience` seconds.

    A second brings so many clients; after 16 that were broken off the worker tries one in five seconds.
    """

    def __init__(self, clients: int, patience: int) -> None:
        self.clients, self.patience = clients, patience
        self.ended = 0
        self.next = 0.0
        self.tried: dict[float, int] = {}

    def health(self, share: float, now: float) -> Health:
        silent = self.ended >= 16
        tried = 0
        if share and now >= self.next:
            tried = 1 if silent else self.clients
            self.next = now + 5 * silent
        self.tried[now] = tried
        ended = self.tried.get(now - self.patience, 0)
        self.ended += ended
        down = ended if self.ended >= 16 else 0
        return Health(
            responses=ended,
            errors=ended,
            connects=tried,
            connected=tried,
            connect_failures=down,
            silent=down,
            sent_bytes=100 * tried,
        )


@pytest.mark.parametrize("patience", [0, 4])
@pytest.mark.parametrize("clients", [1, 40])
def test_a_forwarder_with_nobody_behind_it_is_left_alone_for_longer_and_longer(clients: int, patience: int) -> None:
    forwarder = Forwarder(clients, patience)

    def plant(share: float, now: float) -> Measure:
        if now > 900:
            return well(share, now) if share else Measure(shadows={"v2": Health()})
        return Measure(shadows={"v2": forwarder.health(share, now)})

    decisions = run(plant, 1000)
    late = decisions[500:900]
    assert {decision.share for decision in late} == {0.0, PROBE}
    trial = 5 * SILENT_TRIALS + patience
    assert [decision.share for decision in late].count(PROBE) <= 400 * trial // (30 + trial) + trial
    assert {decision.reason for decision in late if not decision.share} == {f"{SILENT}30 s"}
    back = next(i for i, decision in enumerate(decisions[900:]) if decision.share == 1)
    assert back <= 30 + 6, "the longest pause and the probes"
    assert decisions[-1] == Decision(share=1.0, reason="")


def test_who_breaks_off_all_connections_is_down_though_bytes_are_sent() -> None:
    """A quiet tap, of whose responses too few are missing to say anything; one that comes says that it is back."""
    tried = Health(responses=1, errors=1, connects=1, connected=1, connect_failures=1, silent=1, sent_bytes=100)
    going = Health(connects=1, connected=1, sent_bytes=100)

    def plant(_share: float, now: float) -> Measure:
        return Measure(shadows={"v2": tried if now % 2 else going})

    long = 2 * SILENT_TRIALS + 2
    decisions = run(plant, long)
    assert shares(decisions) == [1.0] * (long - 4) + [0.0] * 4
    assert decisions[-1].reason == f"{SILENT}5 s"
    answered = Health(responses=1, answered=1, connects=1, connected=1, sent_bytes=100)
    assert (
        min(shares(run(lambda share, now: Measure(shadows={"v2": answered}) if now == 9 else plant(share, now), long)))
        == 1
    )


def test_whose_clients_are_mostly_closed_without_a_response_is_not_kept_out() -> None:
    """As nginx does with 444."""
    silent = Health(responses=1, errors=1, connects=1, connected=1, connect_failures=1, silent=1, sent_bytes=100)
    answered = Health(responses=1, answered=1, connects=1, connected=1, sent_bytes=100)

    def plant(_share: float, now: float) -> Measure:
        return Measure(shadows={"v2": answered if now % 10 == 0 else silent})

    assert min(shares(run(plant, 100, Budget(errors=1.0)))) == 1.0


def test_what_production_leaves_unanswered_too_is_not_the_shadows_error() -> None:
    """Most requests are closed without a byte by both, which may be told a second late; the others are judged."""

    def plant(errors: int, late: int) -> Plant:
        def told(_share: float, now: float) -> Measure:
            alike = 80 if now > late else 0
            return Measure(
                shadows={
                    "v2": Health(responses=100, errors=80 + errors, alike=alike, answered=20 - errors, sent_bytes=9)
                }
            )

        return told

    assert min(shares(run(plant(5, 0), 60))) == 1
    decisions = run(plant(15, 0), 60)
    assert decisions[0].reason == "shadow v2: 75% of its responses are errors; tried again after 5 s"
    first = run(plant(5, 1), 60)
    assert [decision.share for decision in first].count(0.0) <= 6 and first[-1].share == 1


@pytest.mark.parametrize(
    ("good", "bad", "broke_off", "cause"),
    [
        (0, 0, 20, "it breaks all connections off without a byte"),
        (4, 0, 20, "83% of its responses are errors"),
        (0, 20, 40, "100% of its responses are errors"),
        (0, 0, 4, "100% of its responses are errors"),
    ],
    ids=["nobody", "some", "bad", "hangs"],
)
def test_who_breaks_connections_off_is_not_said_to_answer(good: int, bad: int, broke_off: int, cause: str) -> None:
    alike = 30
    health = Health(
        responses=20 + good + bad + alike,
        errors=20 + bad + alike,
        alike=alike,
        broke_off=broke_off,
        answered=good + bad,
        sent_bytes=9,
    )
    decisions = run(lambda _share, _now: Measure(shadows={"v2": health}), 1)
    assert decisions[0].reason == f"shadow v2: {cause}; tried again after 5 s"


def test_bad_responses_open_it_and_a_bug_does_not() -> None:
    def responses(errors: int) -> Plant:
        return lambda _share, _now: Measure(shadows={"v2": Health(responses=100, errors=errors, sent_bytes=1)})

    assert min(shares(run(responses(30), 60))) == 1
    decisions = run(responses(80), 60)
    assert decisions[0] == Decision(
        share=0.0, reason="shadow v2: 80% of its responses are errors; tried again after 5 s"
    )
    assert min(shares(run(responses(100), 60, Budget(errors=1.0)))) == 1


def test_a_few_errors_of_a_quiet_shadow_tell_nothing() -> None:
    plant: Plant = lambda _share, now: Measure(  # noqa: E731
        shadows={"v2": Health(responses=1, errors=1, sent_bytes=1)} if now % 5 == 0 else {"v2": Health()}
    )
    assert min(shares(run(plant, 100))) == 1


def test_a_dead_shadow_costs_the_others_nothing() -> None:
    def plant(_share: float, _now: float) -> Measure:
        return Measure(shadows={"v2": OK, "dead": Health(connect_failures=1)})

    governor = Governor(Budget(), 0.0)
    decisions = run(plant, 100, governor=governor)
    assert min(shares(decisions)) == 1
    assert [each.shadows for each in decisions].count({"dead": 0.0}) > 50
    assert not any({*each.shadows} - {"dead"} for each in decisions)
    assert governor.breakers()["dead"] is not State.CLOSED
    assert governor.causes({}) == {"v2": "", "dead": "it cannot be connected to"}
    for now in range(100, 150):
        governor.observe(Measure(shadows={"v2": OK, "dead": OK}), float(now))
    assert governor.causes({}) == {"v2": "", "dead": ""}


def test_a_shadow_that_was_not_reached_at_the_start_is_unwell_until_it_is() -> None:
    governor = Governor(Budget(), 0.0)
    unreached = {"v2": "Connection refused"}
    down_then = {"v2": "it is down, or was at the start (Connection refused)"}
    assert governor.causes(unreached) == down_then, "before the first measure"
    run(lambda _share, _now: Measure(shadows={"v2": Health()}), 5, governor=governor)
    assert governor.causes(unreached) == down_then, "nothing was tried"
    run(down, 5, governor=governor)
    assert governor.causes(unreached) == {"v2": "it cannot be connected to"}, "what is known now is worth more"
    run(well, 30, governor=governor)
    assert governor.causes(unreached) == {"v2": ""}


def test_a_slow_shadow_is_spared_and_the_others_get_what_the_tap_captures() -> None:
    """Its share is its own, below that of the tap, which a load has lowered."""

    def plant(_share: float, now: float) -> Measure:
        return Measure(
            ring_fill=0.9 if now == 1 else 0.45,
            shadows={"v2": OK, "slow": Health(responses=1, sent_bytes=1, times={"30": 1})},
        )

    decision = run(plant, 30)[-1]
    assert set(decision.shadows) == {"slow"} and 0 < decision.shadows["slow"] < decision.share < 1


def test_without_traffic_nothing_moves() -> None:
    plant: Plant = lambda _share, _now: Measure(shadows={"v2": Health()})  # noqa: E731
    assert shares(run(plant, 100)) == [1.0] * 100


@pytest.mark.parametrize("retry", [1.0, 5.0, 30.0])
def test_a_shadow_that_is_back_is_taken_up_within_the_longest_pause(retry: float) -> None:
    """Whenever it comes back: the first connections a look (a second) later at most, all of them after five more."""
    for back in range(30, 140, 7):
        governor = Governor(Budget(retry=retry), 0.0)

        def plant(share: float, now: float, back: int = back) -> Measure:
            if now <= back:
                return down(share, now)
            return well(share, now) if share else Measure(shadows={"v2": Health()})

        values = shares(run(plant, back + 60, governor=governor))
        first = next(at for at, share in enumerate(values[back:], 1) if share)
        whole = next(at for at, share in enumerate(values[back:], 1) if share == 1.0)
        assert first <= retry + 1 and whole <= retry + 1 + 5, (back, first, whole)
        assert set(values[back + whole - 1 :]) == {1.0}


# --- snapshots


def snapshot(**changes: Any) -> dict[str, Any]:
    shadow = {
        "answers": {"1xx": 5, "2xx": 10},
        "events": {"shadow_connects": 3},
        "bytes": {"mirrored": 1000},
        "latency": {"buckets": {"0.01": 3, "1": 2}},
    }
    return {
        "shadows": {"v2": shadow},
        "worker": {"pid": 1, "cpu_s": 2.0, "rss_kb": 1024},
        "events": {"delay_records": 100, "delay_us": 7},
        **changes,
    }


def test_measures_of_two_snapshots() -> None:
    shadow = {
        "answers": {"1xx": 9, "2xx": 20, "5xx": 4, "garbage": 1, "unanswered": 2},
        "events": {
            "shadow_connects": 9,
            "shadow_connected": 1,
            "connect_ECONNREFUSED": 2,
            "connect_silent": 1,
            "shadow_broke_off": 2,
            "unanswered_alike": 1,
        },
        "bytes": {"mirrored": 5000},
        "latency": {"buckets": {"0.01": 3, "1": 4, "inf": 1}},
    }
    after = snapshot(
        shadows={"v2": shadow, "new": shadow},
        worker={"pid": 1, "cpu_s": 3.0, "rss_kb": 2048},
        workers=[{}, {}],
        ring={"bytes": 1 << 24, "fill": 0.25},
        events={"delay_records": 300, "delay_us": 50_000_007},
    )
    found = measure(snapshot(), after, 2.0, 12.0, 3.0)
    assert found == Measure(
        ring_fill=0.25,
        delay=0.25,
        cpu_share=0.5,
        rss_bytes=2048 * 1024,
        workers=2,
        shadow_bytes=4500.0,
        host_cpu=12.0,
        host_memory=3.0,
        shadows={
            "v2": Health(
                responses=17,
                errors=7,
                alike=1,
                broke_off=2,
                connects=6,
                connect_failures=3,
                silent=1,
                connected=1,
                answered=15,
                sent_bytes=4000,
                times={"1": 2, "inf": 1},
            ),
            "new": Health(
                responses=27,
                errors=7,
                alike=1,
                broke_off=2,
                connects=9,
                connect_failures=3,
                silent=1,
                connected=1,
                answered=25,
                sent_bytes=5000,
                times={"0.01": 3, "1": 4, "inf": 1},
            ),
        },
    )


def test_one_worker_of_four_that_is_behind_is_not_hidden_by_the_others() -> None:
    def told(seconds: int) -> dict[str, Any]:
        records, waits = (10_000, 10_000, 10_000, 100), (0.001, 0.001, 0.001, 0.6)
        each = [
            {"delay_records": n * seconds, "delay_us": int(n * seconds * wait * 1e6)}
            for n, wait in zip(records, waits, strict=True)
        ]
        return snapshot(workers=each, events={name: sum(one[name] for one in each) for name in each[0]})

    decisions = run(lambda _share, now: measure(told(int(now)), told(int(now) + 1), 1.0, 0.0, 0.0), 10)
    assert decisions[-1].share < 1
    assert decisions[-1].reason == "the workers get too little CPU: they are 0.60 s behind"


def test_a_replaced_worker_is_not_taken_for_less_than_nothing() -> None:
    found = measure(snapshot(), snapshot(worker={"pid": 2, "cpu_s": 0.1, "rss_kb": 10}), 1.0, 0.0, 0.0)
    assert found.cpu_share == 0 and found.delay == 0
    assert AIM < 1
