# SPDX-License-Identifier: Apache-2.0
"""A tap's thread: begins, fails, tries again, is held and ended at whatever moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import msgspec
import pytest

from lab import PATIENCE, until
from scripted_tap import NoClaims, Script, alone
from tapmirror.spec import TapSpec, parse_shadow
from tapmirror.spec.budget import Budget
from tapmirror.spec.settings import AllTaps
from tapmirror.supervisor import runner as module
from tapmirror.supervisor import together
from tapmirror.supervisor.claims import ClaimedError
from tapmirror.supervisor.log import Log
from tapmirror.supervisor.runner import PAUSED, Before, EndedError, Runner, try_out
from tapmirror.supervisor.together import Together
from tapmirror.supervisor.workers import TapError, TapRefusedError

SPEC = TapSpec(iface="eth0", ports=(80,), shadows=(parse_shadow("s.test:80"),), name="web")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Claims", NoClaims)
    monkeypatch.setattr(module, "INTERVAL", 0.01)
    monkeypatch.setattr(module, "BACKOFF", (0.01, 0.02))


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log(lambda _: None, journal=False)
    yield log
    log.close()


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def runner(script: Script, log: Log) -> Iterator[Runner]:
    made = Runner(SPEC, log, threading.Semaphore(2), alone(), make=script)
    yield made
    if made._thread.is_alive():
        made.end().result(PATIENCE)
    until(lambda: not made._thread.is_alive(), "the thread's end")
    assert script.attached() == []
    assert all(tap.closed for tap in script.taps)


def said(log: Log) -> list[str]:
    return [line.text for line in log.of("web", 0)[0]]


def failed(future: Future[Any], kind: type[BaseException], words: str = "") -> None:
    with pytest.raises(kind, match=words):
        future.result(PATIENCE)


def test_it_runs_until_it_is_ended(runner: Runner, script: Script, log: Log) -> None:
    runner.start()
    runner.started.result(PATIENCE)
    until(lambda: runner.ledger is not None, "a ledger")
    assert runner.state == ("running", "")
    assert script.attached() == ["web"]
    assert ("service",) in script.taps[0].did
    final = runner.end().result(PATIENCE)
    assert final is not None and final["final"]
    assert "comparison" not in final, "it is too long for a reply"
    assert runner.end().result(PATIENCE) == final
    assert runner.state == ("stopped", "")
    assert said(log) == ["capture by ebpf"]


def test_what_cannot_be_started_is_told_to_who_asked_and_not_tried_again(
    runner: Runner, script: Script, log: Log
) -> None:
    script.fails["start"] = "no interface"
    runner.start()
    failed(runner.started, TapError, "^no interface$")
    assert runner.ended.result(PATIENCE) is None
    assert (len(script.taps), runner.state) == (1, ("failed", "no interface"))
    assert said(log) == ["no interface"]


def test_what_was_accepted_is_tried_until_it_runs(runner: Runner, script: Script) -> None:
    script.fails["start"] = "no interface"
    runner.keep_trying = True
    runner.start()
    until(lambda: len(script.taps) > 3, "tries")
    until(lambda: runner.state == ("restarting", "no interface; next try in 0.02 s"), "its state")
    script.fails.clear()
    until(lambda: runner.state == ("running", ""), "it runs")
    assert all(tap.wait_for_interface for tap in script.taps)
    assert all(tap.closed for tap in script.taps[:-1])


def test_want_of_descriptors_at_the_start_passes(
    runner: Runner, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(_spec: TapSpec) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(module, "Claims", no_room)
    runner.keep_trying = True
    runner.start()
    until(lambda: runner.state[0] == "restarting", "a failure")
    assert "Too many open files" in runner.state[1]
    monkeypatch.setattr(module, "Claims", NoClaims)
    until(lambda: runner.state == ("running", ""), "it runs")


class Noted:
    """In the place of a runner's state: notes each of them, however short it stands."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def __get__(self, runner: Runner, _kind: type[Runner]) -> tuple[str, str]:
        found: tuple[str, str] = runner.__dict__["_state"]
        return found

    def __set__(self, runner: Runner, state: tuple[str, str]) -> None:
        self.reasons.append(state[1])
        runner.__dict__["_state"] = state


@pytest.mark.parametrize(("steady", "last"), [(0.0, "0.01"), (60.0, "0.02")])
def test_one_that_was_well_for_long_is_tried_again_as_soon_as_at_first(
    runner: Runner, script: Script, monkeypatch: pytest.MonkeyPatch, steady: float, last: str
) -> None:
    monkeypatch.setattr(module, "STEADY", steady)
    noted = Noted()
    monkeypatch.setattr(Runner, "_state", noted, raising=False)
    runner.start()
    runner.started.result(PATIENCE)
    for losses in (1, 2):
        script.fails["snapshot"] = "it died"
        until(lambda losses=losses: runner.losses >= losses, "the loss")  # type: ignore[misc]
        script.fails.clear()
        until(lambda: runner.state == ("running", ""), "it runs again")
    waits = [reason for reason in noted.reasons if "next try" in reason]
    assert (waits[0], waits[-1]) == ("it died; next try in 0.01 s", f"it died; next try in {last} s")


def test_any_error_while_it_runs_passes(
    runner: Runner, script: Script, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.start()
    runner.started.result(PATIENCE)

    def breaks(_now: float) -> None:
        raise KeyError("x")

    monkeypatch.setattr(script.taps[0], "service", breaks)
    until(lambda: runner.losses > 0 and runner.state == ("running", ""), "it runs again")
    assert script.taps[0].closed
    assert "internal error: KeyError: 'x'" in said(log)


def test_an_error_of_a_command_goes_to_who_asked(runner: Runner, script: Script) -> None:
    def breaks(_tap: object) -> None:
        raise KeyError("x")

    runner.start()
    runner.started.result(PATIENCE)
    failed(runner.ask(breaks), TapError, "^internal error: KeyError: 'x'$")
    assert runner.state == ("running", "")


def test_what_is_lost_begins_anew(runner: Runner, script: Script, log: Log) -> None:
    runner.start()
    runner.started.result(PATIENCE)
    assert not script.taps[0].wait_for_interface  # who asks is told at once
    script.fails["snapshot"] = "the worker process ended (signal 9)"
    until(lambda: runner.losses > 0, "the loss")
    script.fails.clear()
    until(lambda: runner.state == ("running", "") and script.attached() == ["web"], "it runs again")
    assert "the worker process ended (signal 9)" in said(log)


def test_the_time_between_a_loss_and_the_next_beginning_is_counted(runner: Runner, script: Script, log: Log) -> None:
    runner.start()
    runner.started.result(PATIENCE)
    assert runner.uncaptured == 0 and "nothing was captured" not in "\n".join(said(log))  # it had not begun before
    for _ in range(2):
        losses, before = runner.losses, runner.uncaptured
        script.fails["start"] = script.fails["snapshot"] = "no more"
        until(lambda losses=losses: runner.losses > losses and runner.state[0] == "restarting", "the loss")  # type: ignore[misc]
        script.fails.clear()
        while_down = runner.uncaptured
        assert while_down > before  # it is counted while it is down
        until(lambda: runner.state == ("running", ""), "it runs again")
        assert runner.uncaptured >= while_down
    assert "\n".join(said(log)).count("nothing was captured for ") == 2


def test_what_was_counted_stays_where_it_is_held_then(runner: Runner, script: Script, log: Log) -> None:
    runner.start()
    runner.started.result(PATIENCE)
    script.fails["start"] = script.fails["snapshot"] = "no more"
    until(lambda: runner.losses > 0 and runner.uncaptured > 0.02, "the loss")
    while_down = runner.uncaptured
    runner.hold(PAUSED)
    until(lambda: runner.state[0] == "paused", "it is held")
    held = runner.uncaptured
    assert held >= while_down
    assert "s before it was held" in "\n".join(said(log))
    script.fails.clear()
    runner.release()
    until(lambda: runner.state == ("running", ""), "it runs again")
    assert runner.uncaptured == held


@pytest.mark.parametrize(("ago", "most"), [(5.0, 10.0), (-1000.0, 5.0)])
def test_the_time_since_an_earlier_daemon_is_counted(script: Script, log: Log, ago: float, most: float) -> None:
    """Of a clock that was set back nothing is known but the time since."""
    before = Before(time.time() - ago, uncaptured=100.0)
    made = Runner(SPEC, log, threading.Semaphore(2), alone(), make=script, before=before)
    made.start()
    made.started.result(PATIENCE)
    try:
        until(lambda: "nothing was captured for" in "\n".join(said(log)), "the line")
        assert 100 + max(0.0, ago) <= made.uncaptured + 1e-6 <= 100 + most
    finally:
        made.end().result(PATIENCE)


def test_the_time_in_which_it_was_held_is_not_counted(script: Script, log: Log) -> None:
    before = Before(time.time() - 5)
    made = Runner(SPEC, log, threading.Semaphore(2), alone(), make=script, before=before)
    made.start(PAUSED)
    made.started.result(PATIENCE)
    made.release()
    until(lambda: made.state == ("running", ""), "it runs")
    made.end().result(PATIENCE)
    assert made.uncaptured == 0


def test_the_final_ledger_is_the_last_one_if_the_tap_is_lost_at_the_end(runner: Runner, script: Script) -> None:
    runner.start()
    until(lambda: runner.ledger is not None, "a ledger")
    script.fails["stop"] = "the worker process ended"
    final = runner.end().result(PATIENCE)
    assert final is not None and "final" not in final


@pytest.mark.parametrize("step", ["prepare", "start", "snapshot", "stop"])
def test_whatever_hangs_it_is_detached_at_once(runner: Runner, script: Script, step: str) -> None:
    gate = script.gate(step)
    runner.start()
    if step == "stop":
        until(lambda: runner.ledger is not None, "a ledger")
        runner.end()
    assert script.reached[step].wait(PATIENCE)
    runner.hold("killed")
    assert script.attached() == []
    runner.end()
    gate.set()
    runner.ended.result(PATIENCE)
    assert script.attached() == []
    assert runner.losses == 0


@pytest.mark.parametrize("step", ["prepare", "start", "snapshot"])
def test_held_and_released_it_begins_anew_however_quick(runner: Runner, script: Script, step: str) -> None:
    gate = script.gate(step)
    runner.keep_trying = step == "prepare"  # or who asked is told
    runner.start()
    assert script.reached[step].wait(PATIENCE)
    runner.hold("killed")
    runner.release()
    gate.set()
    until(lambda: script.attached() == ["web"] and runner.state == ("running", ""), "it runs again")
    assert len(script.taps) == 2


def test_held_from_the_start(runner: Runner, script: Script) -> None:
    runner.start(PAUSED)
    runner.started.result(PATIENCE)
    until(lambda: runner.state == ("paused", PAUSED), "held")
    assert script.taps == []
    runner.resume().result(PATIENCE)
    until(lambda: script.attached() == ["web"], "it runs")


def test_who_looks_after_a_command_sees_what_it_changed(
    runner: Runner, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the share of the last snapshot, which may be a second old."""
    monkeypatch.setattr(module, "INTERVAL", 3600.0)
    runner.start()
    until(lambda: runner.ledger is not None, "a ledger")
    script.fails["snapshot"] = "nobody looks"
    for command, reason in ((runner.pause, "paused"), (runner.resume, "")):
        command().result(PATIENCE)
        assert runner.ledger is not None and runner.ledger["share"]["reason"] == reason


def test_who_asks_for_a_pause_hurries_the_tap(runner: Runner, script: Script) -> None:
    """Its thread may be waiting for a worker."""
    runner.start()
    until(lambda: runner.ledger is not None, "a ledger")
    runner.pause().result(PATIENCE)
    did = script.taps[0].did
    assert did.index(("hurry",)) < did.index(("pause",))


def test_one_that_was_held_is_said_to_start_as_soon_as_it_is_resumed(runner: Runner, script: Script) -> None:
    runner.start(PAUSED)
    until(lambda: runner.state == ("paused", PAUSED), "held")
    seen: list[str] = []
    gate = script.gate("prepare")
    resumed = runner.resume()
    resumed.add_done_callback(lambda _: seen.append(runner.state[0]))  # in the tap's thread, before it goes on
    assert script.reached["prepare"].wait(PATIENCE)
    assert seen == ["starting"]
    gate.set()


@pytest.mark.parametrize("asked", [["resume"], ["pause", "resume"]])
def test_what_was_asked_for_before_does_not_undo_the_kill_switch(
    runner: Runner, script: Script, asked: list[str]
) -> None:
    gate = script.gate("start")
    runner.start()
    assert script.reached["start"].wait(PATIENCE)
    waiting = [getattr(runner, command)() for command in asked]
    runner.hold("killed")
    gate.set()
    for future in waiting:
        future.result(PATIENCE)
    assert runner.held == "killed"
    until(lambda: runner.state == ("paused", "killed"), "held")
    assert script.attached() == [] and len(script.taps) == 1
    runner.release()
    until(lambda: script.attached() == ["web"], "it runs")


def test_a_paused_tap_that_is_lost_is_still_held_by_the_kill_switch(runner: Runner, script: Script) -> None:
    runner.start()
    runner.started.result(PATIENCE)
    runner.pause().result(PATIENCE)
    gate = script.gate("stop")
    runner.hold("killed")
    assert script.reached["stop"].wait(PATIENCE)
    resumed = runner.resume()  # asked for before STOP was seen
    script.fails["stop"] = "lost"
    gate.set()
    resumed.result(PATIENCE)
    assert runner.held == "killed"
    until(lambda: runner.state[0] in ("paused", "restarting"), "held")
    assert script.attached() == []


def test_what_leads_back_to_production_stays_off_until_it_is_resumed(runner: Runner, script: Script) -> None:
    """Whatever comes between: the kill switch's end is not a wish to have it again."""
    runner.start()
    runner.started.result(PATIENCE)
    script.loops = "it comes back"
    until(lambda: runner.state == ("failed", "it comes back"), "it is off")
    assert script.attached() == []
    begun = script.begun()
    script.loops = ""
    runner.hold("killed")
    until(lambda: runner.state == ("paused", "killed"), "held")
    runner.release()
    until(lambda: runner.state == ("failed", "it comes back"), "it is off again")
    time.sleep(0.05)  # five times its back-off
    assert script.begun() == begun
    runner.resume().result(PATIENCE)
    until(lambda: runner.state == ("running", "") and script.attached() == ["web"], "it runs")
    runner.hold("killed")
    runner.release()
    until(lambda: script.begun() == begun + 2 and runner.state == ("running", ""), "it runs")


def test_a_paused_tap_that_is_lost_stays_paused(runner: Runner, script: Script) -> None:
    runner.start()
    runner.started.result(PATIENCE)
    runner.pause().result(PATIENCE)
    assert runner.state == ("paused", "")
    script.fails["snapshot"] = "lost"
    until(lambda: runner.state == ("paused", PAUSED), "held")
    assert script.attached() == []
    assert runner.uncaptured == 0, "it was not to capture"
    script.fails.clear()
    runner.resume().result(PATIENCE)
    until(lambda: runner.state == ("running", "") and script.attached() == ["web"], "it runs")


def test_a_resume_that_meets_the_loss_of_a_paused_tap_begins_it_anew(
    runner: Runner, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wakes the thread up, which sees first that the tap is lost."""
    monkeypatch.setattr(module, "INTERVAL", 60.0)
    runner.start()
    runner.started.result(PATIENCE)
    runner.pause().result(PATIENCE)  # nothing is done behind it but to wait for the next

    def lost(now: float) -> None:
        raise TapError("all its workers died")

    script.taps[0].service = lost  # type: ignore[method-assign]
    runner.resume().result(PATIENCE)
    until(lambda: runner.state == ("running", ""), "it runs")
    assert script.attached() == ["web"] and len(script.taps) == 2


def test_a_share_that_was_set_is_that_of_every_tap_to_come(runner: Runner, script: Script) -> None:
    runner.start()
    runner.started.result(PATIENCE)
    runner.set_percent(5.0).result(PATIENCE)
    assert ("set_percent", 5.0) in script.taps[0].did
    runner.hold("killed")
    runner.release()
    until(lambda: len(script.taps) == 2, "the next")
    assert script.taps[1].spec.percent == runner.spec.percent == 5.0


def test_a_share_that_cannot_be_set_is_not_kept(runner: Runner, script: Script) -> None:
    runner.start()
    runner.started.result(PATIENCE)
    script.fails["set_percent"] = "the kernel refuses"
    failed(runner.set_percent(5.0), TapError, "the kernel refuses")
    assert runner.spec.percent == 100.0


def test_commands_of_a_tap_that_ends_are_refused_and_none_waits_for_ever(runner: Runner, script: Script) -> None:
    gate = script.gate("start")
    runner.start()
    assert script.reached["start"].wait(PATIENCE)
    waiting = runner.set_percent(5.0)
    runner.end()
    failed(runner.set_percent(5.0), EndedError, "is being stopped")
    gate.set()
    failed(waiting, EndedError, "was stopped")


def test_ended_while_it_starts(runner: Runner, script: Script) -> None:
    gate = script.gate("start")
    runner.start()
    assert script.reached["start"].wait(PATIENCE)
    runner.end()
    gate.set()
    runner.ended.result(PATIENCE)
    assert script.attached() == []


def test_so_many_start_at_a_time(script: Script, log: Log) -> None:
    gate = script.gate("start")
    turns = threading.Semaphore(2)
    runners = [Runner(SPEC, log, turns, alone(), make=script) for _ in range(5)]
    for each in runners[:2]:
        each.start()
    until(lambda: script.at_a_time == 2, "two")
    for each in runners[2:]:
        each.start()
    until(lambda: all(each.state[1] == "waits for its turn" for each in runners[2:]), "the others")
    runners[4].end().result(PATIENCE)  # in its place in the queue
    gate.set()
    for each in runners[:4]:
        each.started.result(PATIENCE)
    assert script.most_at_a_time <= 4  # two starts, and the two snapshots of who came before
    for each in runners:
        each.end().result(PATIENCE)


def test_one_whose_names_are_looked_up_takes_nobodys_turn(script: Script, log: Log) -> None:
    gate = script.gate("prepare")
    turn = threading.Semaphore(1)
    slow, quick = (Runner(SPEC, log, turn, alone(), make=script) for _ in range(2))
    slow.start()
    assert script.reached["prepare"].wait(PATIENCE)
    assert slow.state == ("starting", "looks up its shadows")
    del script.gates["prepare"]
    quick.start()
    quick.started.result(PATIENCE)
    gate.set()
    slow.started.result(PATIENCE)
    for each in (slow, quick):
        each.end().result(PATIENCE)


def test_the_governor_lowers_the_share(script: Script, log: Log) -> None:
    spec = TapSpec(
        iface="eth0",
        ports=(80,),
        shadows=SPEC.shadows,
        name="web",
        budget=Budget(memory=1, host_cpu=100, host_memory=100),
    )
    made = Runner(spec, log, threading.Semaphore(2), alone(), make=script)
    cost = {"cpu_s": 0.0, "rss_kb": 1 << 20}
    made.start()
    made.started.result(PATIENCE)
    script.taps[0].snapshot = lambda: {  # type: ignore[method-assign]
        "tap": "web", "shadows": {}, "events": {}, "worker": cost
    }  # fmt: skip
    until(lambda: any(did[0] == "throttle" for did in script.taps[0].did), "less")
    (_, share, reason, _) = next(did for did in script.taps[0].did if did[0] == "throttle")
    assert share < 1 and "the budget is 0 MiB" in reason
    until(lambda: f"{share:.0%} of its share: {reason}" in said(log), "the line")
    made.end().result(PATIENCE)


def test_the_budget_of_all_taps_lowers_the_share_of_each(
    script: Script, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "PERIOD", 0.01)
    of_all = Together(AllTaps(memory=3 << 30), 0.0, lambda _: None)
    spec = msgspec.structs.replace(SPEC, budget=Budget(memory=1 << 40, host_cpu=100, host_memory=100))
    taps = [Runner(spec, log, threading.Semaphore(2), of_all, make=script) for _ in range(2)]
    for each in taps:
        each.start()
        each.started.result(PATIENCE)
    cost = {"tap": "web", "shadows": {}, "events": {}, "worker": {"cpu_s": 0.0, "rss_kb": 2 << 20}}
    for tap in script.taps:
        tap.snapshot = lambda: cost  # type: ignore[method-assign]
    until(lambda: all(any(did[0] == "throttle" for did in tap.did) for tap in script.taps), "less")
    for tap in script.taps:
        (_, share, reason, _) = next(did for did in tap.did if did[0] == "throttle")
        assert share < 1 and "all taps: the workers of all taps hold 4096 MiB" in reason
    taps[0].end().result(PATIENCE)
    assert of_all.told()["used"]["memory"] == 2 << 30
    taps[1].end().result(PATIENCE)
    assert of_all.told()["used"]["memory"] == 0


def test_an_interface_that_goes_and_comes_is_told_once_each(runner: Runner, script: Script, log: Log) -> None:
    runner.start()
    runner.started.result(PATIENCE)
    (tap,) = script.taps
    for state, reason in [("waiting", "no interface eth0"), ("paused", ""), ("waiting", "no interface eth0")]:
        tap.state, tap.state_reason = state, reason
        seen = len(tap.did)
        until(lambda seen=seen: len(tap.did) > seen + 1, "two looks at it")  # type: ignore[misc]
    assert said(log)[1:] == ["no interface eth0"]
    tap.state, tap.state_reason = "running", ""
    until(lambda: len(said(log)) == 3, "it is told")
    assert said(log)[2] == "it waits no more, and captures"


def test_what_is_claimed_is_let_go_with_the_tap(
    runner: Runner, script: Script, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed: list[str] = []

    class Claimed(NoClaims):
        def __init__(self, spec: TapSpec) -> None:
            if claimed:
                raise ClaimedError("it is claimed")
            claimed.append(spec.name)

        def close(self) -> None:
            claimed.clear()

    monkeypatch.setattr(module, "Claims", Claimed)
    runner.start()
    runner.started.result(PATIENCE)
    other = Runner(SPEC, log, threading.Semaphore(1), alone(), make=script)
    other.start()
    failed(other.started, TapRefusedError, "it is claimed")
    script.fails["snapshot"] = "lost"
    until(lambda: runner.losses > 0, "the loss")
    script.fails.clear()
    until(lambda: runner.state == ("running", ""), "it runs again")
    assert claimed == ["web"]
    runner.end().result(PATIENCE)
    assert claimed == []


def test_who_waits_for_a_trial_may_go(script: Script) -> None:
    """A daemon that ends amid it: the thread is not to fail for that (pytest would say so)."""
    gate = script.gate("prepare")
    outcome = try_out(SPEC, script)
    until(script.reached["prepare"].is_set, "the trial")
    assert not outcome.cancel()
    gate.set()
    assert outcome.result(5.0) is None
