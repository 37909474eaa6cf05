# SPDX-License-Identifier: Apache-2.0
"""What is done with the taps: what is started together, changed, and made equal to files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from daemon_rig import A, B, C, Rig, at, conversation, kept, refused, tap, text
from lab import PATIENCE
from scripted_tap import Script
from tapmirror.spec import Compare, Ramp, TapSpec
from tapmirror.spec import Level as CompareLevel
from tapmirror.spec.settings import AllTaps
from tapmirror.supervisor import folder, state
from tapmirror.supervisor.daemon import Daemon
from tapmirror.supervisor.runner import Runner

# --- start and stop


@conversation
async def test_taps_start_and_stop_and_are_kept(rig: Rig) -> None:
    assert await rig.daemon.start([A, B], force=False) == ["a", "b"]
    assert rig.script.attached() == ["a", "b"]
    assert [each.spec for each in kept(rig).values()] == [A, B]
    await rig.until(lambda: all(each["ledger"] for each in rig.daemon.roster.told(None, ledger=True)), "ledgers")
    assert {each["tap"]: each["state"] for each in rig.daemon.roster.snapshots()} == {"a": "running", "b": "running"}
    ((stopped),) = await rig.daemon.stop("a")
    assert stopped["name"] == "a" and stopped["ledger"]["final"]
    assert rig.script.attached() == ["b"] == [*kept(rig)]
    await refused(rig.daemon.stop("a"), "not_found", r"^no tap has the name 'a' \(there are: b\)$")


@conversation
async def test_all_start_or_none(rig: Rig) -> None:
    gate = rig.script.gate("start")
    starting = asyncio.ensure_future(rig.daemon.start([A, B], force=False))
    await asyncio.to_thread(rig.script.reached["start"].wait, PATIENCE)
    await refused(rig.daemon.start([A], force=False), "refused", "a tap has the name 'a' already")
    assert kept(rig) == {}
    rig.script.fails["start"] = "no headers"
    gate.set()
    await refused(starting, "failed", "^a: no headers$")
    assert rig.states() == {} == kept(rig)
    rig.script.fails.clear()
    assert await rig.daemon.start([A], force=False) == ["a"]


@conversation
async def test_what_is_ended_for_another_that_failed_is_kept_no_more(rig: Rig) -> None:
    """Also while it drains."""
    make = rig.daemon.roster._make

    def one_fails(spec: TapSpec, *told: Any, **more: Any) -> Any:
        made: Any = make(spec, *told, **more)
        if spec.name == "a":
            made.start = made.prepare = lambda: rig.script.step("of a")
        return made

    rig.daemon.roster._make = one_fails
    rig.script.fails["of a"] = "no headers"
    gate = rig.script.gate("stop")
    starting = asyncio.ensure_future(rig.daemon.start([A, B], force=False))
    await at(rig, "stop")
    await rig.daemon.start([C], force=False)
    assert [*kept(rig)] == ["c"]
    gate.set()
    await refused(starting, "failed", "^a: no headers$")


@conversation
async def test_a_tap_that_hangs_holds_up_itself_alone(rig: Rig) -> None:
    gate = rig.script.gate("start")
    starting = asyncio.ensure_future(rig.daemon.start([A], force=False))
    await asyncio.to_thread(rig.script.reached["start"].wait, PATIENCE)
    del rig.script.gates["start"]
    assert await rig.daemon.start([B], force=False) == ["b"]
    stopping = asyncio.ensure_future(rig.daemon.stop("a"))
    await asyncio.sleep(0)
    gate.set()
    await refused(starting, "failed", "was stopped while it started")
    await stopping
    await rig.running("b")


@conversation
async def test_what_was_kept_before_another_failed_is_kept_no_more(rig: Rig) -> None:
    """One that is stopped takes its time, and meanwhile another request is written to disk."""
    await rig.daemon.start([C], force=False)
    make = rig.daemon.roster._make

    def b_starts_last(spec: TapSpec, *told: Any, **more: Any) -> Any:
        made: Any = make(spec, *told, **more)
        if spec.name == "b":
            made.prepare = lambda: rig.script.step("of b")
        return made

    rig.daemon.roster._make = b_starts_last
    last, stop = rig.script.gate("of b"), rig.script.gate("stop")
    starting = asyncio.ensure_future(rig.daemon.start([A, B, tap("d")], force=False))
    await rig.running("a", "c", "d")
    stopping = asyncio.ensure_future(rig.daemon.stop("d"))
    await at(rig, "stop")
    last.set()
    await rig.until(lambda: rig.daemon.roster.entry("a").accepted, "the other two are accepted")
    await rig.daemon.pause("c")
    assert [*kept(rig)] == ["c", "a", "b"]
    stop.set()
    await stopping
    await refused(starting, "failed", "^d: the tap was stopped while it started$")
    await rig.until(lambda: [*kept(rig)] == ["c"], "the other two are kept no more")


# --- apply


@conversation
async def test_apply_changes_only_what_changed(rig: Rig) -> None:
    rig.file("d.yaml", tap("d"))
    await rig.daemon.reload()
    await rig.daemon.start([A, B, C], force=False)
    before = {each.spec.name: each for each in rig.script.taps}
    wanted = [A, msgspec.structs.replace(B, percent=5.0), msgspec.structs.replace(C, seed=1), tap("e")]
    plan = [
        {"name": "c", "action": "restart", "fields": ["seed"]},
        {"name": "b", "action": "change", "fields": ["percent"]},
        {"name": "e", "action": "add", "fields": []},
        {"name": "a", "action": "keep", "fields": []},
    ]
    done = await rig.daemon.apply(wanted, dry_run=True, force=False)
    assert done == {"plan": plan, "failed": {}}
    assert len(rig.script.taps) == 4 and not any(("set_percent", 5.0) in each.did for each in rig.script.taps)
    assert await rig.daemon.apply(wanted, dry_run=False, force=False) == done
    assert rig.script.attached() == ["a", "b", "c", "d", "e"]
    assert {each.spec.name for each in rig.script.taps[4:]} == {"c", "e"}
    assert ("set_percent", 5.0) in before["b"].did and before["b"].attached
    assert {*kept(rig)} == {*"abcde"} and kept(rig)["b"].percent is None
    removed = await rig.daemon.apply([], dry_run=False, force=False)
    assert [step["action"] for step in removed["plan"]] == ["remove"] * 4
    assert rig.script.attached() == ["d"]
    await refused(rig.daemon.apply([tap("d")], dry_run=False, force=False), "refused", "is that of d.yaml")


@conversation
async def test_what_taps_warn_of_as_they_begin_is_told_to_who_asked(rig: Rig) -> None:
    rig.script.warns = {"a": ["no answer"], "c": ["one", "two"], "d": ["three"]}
    await rig.daemon.start([A, B], force=False)
    assert rig.daemon.notes(["a", "b", "gone"]) == {"notes": {"a": ["no answer"]}}
    assert rig.daemon.notes(["b"]) == {}
    rig.file("d.yaml", tap("d"))
    assert (await rig.daemon.reload())["notes"] == {"d": ["three"]}
    assert (await rig.daemon.apply([A, B, C], dry_run=False, force=False))["notes"] == {"c": ["one", "two"]}
    none = await rig.daemon.apply([msgspec.structs.replace(A, percent=0.0), B, C], dry_run=False, force=False)
    assert none["notes"] == {"a": ["nothing is mirrored: percent is 0"]} == rig.daemon.idle(["a", "b", "gone"])["notes"]
    rig.script.taps[0].warn("later")
    assert rig.daemon.notes(["a"]) == {"notes": {"a": ["no answer"]}}


@conversation
async def test_a_change_that_fails_is_not_kept(rig: Rig) -> None:
    await rig.daemon.start([A], force=False)
    rig.script.fails["set_percent"] = "the kernel refuses"
    wanted = [msgspec.structs.replace(A, percent=5.0)]
    assert (await rig.daemon.apply(wanted, dry_run=False, force=False))["failed"] == {"a": "the kernel refuses"}
    assert (kept(rig)["a"].spec, kept(rig)["a"].percent) == (A, None)
    rig.script.fails.clear()
    assert (await rig.daemon.apply(wanted, dry_run=False, force=False))["failed"] == {}
    assert (kept(rig)["a"].spec, kept(rig)["a"].percent) == (*wanted, None)


@conversation
async def test_what_cannot_be_restarted_goes_on_as_it_was(rig: Rig) -> None:
    await rig.daemon.start([A], force=False)
    rig.script.fails["start"] = "no such interface"
    applying = asyncio.ensure_future(
        rig.daemon.apply([msgspec.structs.replace(A, iface="eth9"), B], dry_run=False, force=False)
    )
    done = await applying
    assert done["failed"] == {"a": "no such interface; it goes on as it was", "b": "no such interface"}
    rig.script.fails.clear()
    await rig.running("a")
    assert kept(rig)["a"].spec == A


@conversation
async def test_a_new_tap_of_a_file_waits_for_its_interface_and_of_a_command_does_not(rig: Rig) -> None:
    """As at the daemon's start; who gives a command is told at once."""
    rig.file("d.yaml", tap("d"))
    make = rig.daemon.roster._make

    def waiting(*told: Any, **more: Any) -> Any:
        made: Any = make(*told, **more)
        made.state, made.state_reason = "waiting", "no interface eth0"
        return made

    rig.daemon.roster._make = waiting
    done = await rig.daemon.reload()
    assert (done["failed"], done["waits"]) == ({}, {"d": "no interface eth0"})
    rig.daemon.roster._make = make
    await rig.daemon.start([A], force=False)
    assert "waits" not in await rig.daemon.apply([A, B], dry_run=False, force=False)
    assert {each.spec.name: each.wait_for_interface for each in rig.script.taps} == {"d": True, "a": False, "b": False}


@conversation
async def test_what_is_known_to_fail_stops_nothing(rig: Rig) -> None:
    """A name that does not resolve, an interface that is not there: of the taps that run none is touched for it."""
    await rig.daemon.start([A, B], force=False)
    (before,) = (each for each in rig.script.taps if each.spec.name == "a")
    rig.script.fails["prepare"] = "cannot resolve"
    wanted = [msgspec.structs.replace(A, iface="eth9"), msgspec.structs.replace(B, percent=5.0)]
    done = await rig.daemon.apply(wanted, dry_run=False, force=False)
    assert done["failed"] == {"a": "cannot resolve; it goes on as it was"}
    assert before.attached and not before.closed and rig.script.attached() == ["a", "b"]
    assert rig.script.ends == [("detach", "a")]  # what was only tried out
    assert (kept(rig)["a"].spec, kept(rig)["b"].spec.percent) == (A, 5.0)


@pytest.mark.parametrize("by", ["apply", "reload"])
def test_what_ends_and_what_is_lowered_waits_for_no_name_server(rig: Rig, by: str) -> None:
    wanted = [msgspec.structs.replace(B, percent=5.0), msgspec.structs.replace(C, seed=1), tap("e")]

    async def act(*specs: TapSpec) -> dict[str, Any]:
        if by == "apply":
            return await rig.daemon.apply(specs, dry_run=False, force=False)
        rig.file("web.yaml", *specs)
        return await rig.daemon.reload()

    @conversation
    async def test(rig: Rig) -> None:
        await act(A, B, C)
        before = {each.spec.name: each for each in rig.script.taps}
        gate = rig.script.gate("prepare")  # where names are looked up
        acting = asyncio.ensure_future(act(*wanted))
        await at(rig, "prepare")
        await rig.until(lambda: [*rig.states()] == ["b", "c"] and rig.script.attached() == ["b", "c"], "a is gone")
        assert ("set_percent", 5.0) in before["b"].did and before["c"].attached
        await rig.until(lambda: {*kept(rig)} == {"b", "c"} and kept(rig)["b"].spec.percent == 5.0, "kept on disk")
        assert not acting.done()
        gate.set()
        assert (await acting)["failed"] == {}
        await rig.running("b", "c", "e")

    test(rig)


@conversation
async def test_a_share_that_cannot_be_set_yet_holds_up_no_other(rig: Rig) -> None:
    await rig.daemon.start([A, B], force=False)
    gate = rig.script.gate("set_percent")
    asked: list[str] = []
    real = Runner.set_percent

    def set_percent(runner: Runner, percent: float) -> Any:
        asked.append(runner.spec.name)
        return real(runner, percent)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "set_percent", set_percent)
        wanted = [msgspec.structs.replace(each, percent=5.0) for each in (A, B)]
        applying = asyncio.ensure_future(rig.daemon.apply(wanted, dry_run=False, force=False))
        await rig.until(lambda: asked == ["a", "b"], "both are asked")
        assert not applying.done()
        gate.set()
        assert (await applying)["failed"] == {}


@conversation
async def test_all_is_stopped_while_a_change_is_tried_out(rig: Rig) -> None:
    await rig.daemon.start([A], force=False)
    gate = rig.script.gate("prepare")
    applying = asyncio.ensure_future(
        rig.daemon.apply([msgspec.structs.replace(A, iface="eth9")], dry_run=False, force=False)
    )
    await rig.until(rig.script.reached["prepare"].is_set, "the trial")
    await rig.daemon.stop_all()
    gate.set()
    await refused(applying, "failed", "all taps were stopped meanwhile")
    assert rig.script.attached() == [] and kept(rig) == {}


@conversation
async def test_each_beginning_has_a_life_of_its_own_in_the_snapshots(rig: Rig) -> None:
    async def life() -> int:
        await rig.until(lambda: "worker" in rig.daemon.roster.snapshots()[-1], "a ledger")
        return int(rig.daemon.roster.snapshots()[-1]["life"])

    await rig.daemon.start([A], force=False)
    first = await life()
    await rig.daemon.set_percent("a", 5.0)
    assert await life() == first
    await rig.daemon.apply([msgspec.structs.replace(A, seed=1)], dry_run=False, force=False)
    assert await life() > first


@conversation
async def test_a_paused_tap_that_is_changed_stays_paused(rig: Rig) -> None:
    await rig.daemon.start([A], force=False)
    await rig.daemon.pause("a")
    await rig.daemon.apply([msgspec.structs.replace(A, seed=1)], dry_run=False, force=False)
    assert rig.states() == {"a": "paused"} and kept(rig)["a"].paused
    await rig.daemon.resume("a")
    await rig.running("a")


# --- live changes


@conversation
async def test_a_share_is_set_and_kept(rig: Rig) -> None:
    await rig.daemon.start([A], force=False)
    await rig.daemon.set_percent("a", 2.5)
    assert ("set_percent", 2.5) in rig.script.taps[0].did
    assert (kept(rig)["a"].spec, kept(rig)["a"].percent) == (A, 2.5)
    for wrong in (-1.0, 100.1, float("inf")):
        await refused(rig.daemon.set_percent("a", wrong), "bad_request", "percent: .* is not between 0 and 100")
    rig.script.fails["set_percent"] = "the kernel refuses"
    await refused(rig.daemon.set_percent("a", 3.0), "failed", "the kernel refuses")
    assert kept(rig)["a"].percent == 2.5
    await rig.daemon.close()
    await rig.begin()
    await rig.running("a")
    assert rig.script.taps[0].spec.percent == 2.5
    await rig.daemon.set_percent("a", 100.0)
    assert kept(rig)["a"].percent is None


@conversation
async def test_a_ramp_ends_where_a_share_is_set(rig: Rig) -> None:
    ramp = tap("r", ramp=Ramp(start=0, end=5, over=60))
    await rig.daemon.start([ramp], force=False)
    await rig.daemon.set_percent("r", 2.0)
    assert (kept(rig)["r"].spec, kept(rig)["r"].percent) == (ramp, 2.0)
    await rig.daemon.close()
    await rig.begin()
    await rig.running("r")
    assert (rig.script.taps[0].spec.percent, rig.script.taps[0].spec.ramp) == (2.0, None)


@conversation
async def test_what_is_refused_by_now_costs_no_tap_that_was_kept_and_none_of_a_file_at_the_start(rig: Rig) -> None:
    """As an earlier version took them."""
    idle = Compare(noise_probe=5.0)
    slips = [tap("a", compare=idle), tap("-b", 81)]
    state.save(rig.places.state, state.State(taps=[state.Kept(spec=each) for each in slips]))
    rig.file("f.yaml", text(tap("f", 82)) + "compare: {noise_probe: 5}\n")
    await rig.begin()
    await rig.running("-b", "a", "f")
    refusal = "f.yaml:\\d+: compare.noise_probe: nothing is compared: set compare to a level"
    await refused(rig.daemon.reload(), "refused", refusal)
    await refused(rig.daemon.start([tap("g", 83, compare=idle)], force=True), "refused", "g: compare.noise_probe: noth")
    await refused(
        rig.daemon.apply([*slips, tap("-h", 84)], dry_run=False, force=True), "refused", "-h: name: '-h' begins with -"
    )
    await rig.daemon.apply([slips[0]], dry_run=False, force=False)
    await rig.running("a", "f")


@conversation
async def test_pause_outlives_a_restart(rig: Rig) -> None:
    await rig.daemon.start([A], force=False)
    await rig.daemon.pause("a")
    assert ("pause",) in rig.script.taps[0].did
    await rig.daemon.close()
    await rig.begin()
    await rig.until(lambda: rig.states() == {"a": "paused"}, "paused")
    assert rig.script.taps == []
    await rig.daemon.resume("a")
    await rig.running("a")
    await rig.daemon.pause("a")
    await rig.daemon.resume("a")
    assert rig.script.taps[0].did.index(("pause",)) < rig.script.taps[0].did.index(("resume",))


def uncaptured(rig: Rig) -> dict[str, float]:
    """By tap, in seconds."""
    return {each["name"]: each["uncaptured_s"] for each in rig.daemon.roster.told(None, ledger=False)}


@contextlib.contextmanager
def up_for(seconds: float) -> Iterator[None]:
    """The host was started so long ago."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "clock_gettime", lambda _: seconds)
        yield


@conversation
async def test_the_time_in_which_no_daemon_ran_is_counted(rig: Rig) -> None:
    """Of taps that were to capture then; from when any was last seen to."""
    await rig.daemon.start([A, B], force=False)
    await rig.daemon.pause("b")
    await rig.until(rig.places.captured.exists, "the note")
    await rig.daemon.close()
    long_ago = time.time() - 1000
    os.utime(rig.places.captured, (long_ago, long_ago))
    rig.file("c.yaml", C)
    with up_for(2000.0):
        await rig.begin()
    await rig.running("a", "c")
    await rig.until(lambda: uncaptured(rig)["a"] >= 1000, "it is counted")
    assert 1000 <= uncaptured(rig)["a"] < 1000 + PATIENCE and uncaptured(rig)["b"] == uncaptured(rig)["c"] == 0
    await rig.until(lambda: rig.places.captured.stat().st_mtime > long_ago + 500, "the next note")
    await rig.daemon.resume("b")
    await rig.running("a", "b", "c")
    assert uncaptured(rig)["b"] == 0


@conversation
async def test_while_no_tap_is_to_capture_there_is_no_note(rig: Rig) -> None:
    """A daemon that begins days later counts none of them."""
    await rig.daemon.start([A], force=False)
    await rig.until(rig.places.captured.exists, "the note")
    await rig.daemon.pause("a")
    await rig.until(lambda: not rig.places.captured.exists(), "it is taken back")
    await rig.daemon.resume("a")
    await rig.until(rig.places.captured.exists, "the next note")


@conversation
async def test_the_note_is_taken_back_while_all_wait_and_not_while_one_is_being_restarted(rig: Rig) -> None:
    await rig.daemon.start([A], force=False)
    await rig.until(rig.places.captured.exists, "the note")
    rig.script.taps[-1].state = "waiting"
    await rig.until(lambda: not rig.places.captured.exists(), "it is taken back")
    rig.script.taps[-1].state = "running"
    await rig.until(rig.places.captured.exists, "the next note")
    rig.script.taps[-1].state = "restarting"
    rig.daemon._next_note = 0.0
    rig.daemon.tick(time.monotonic())
    assert rig.places.captured.exists(), "what it does not capture meanwhile is counted"


@conversation
async def test_the_note_is_written_once_a_second_and_at_the_end(rig: Rig) -> None:
    await rig.daemon.start([A], force=False)
    await rig.until(rig.places.captured.exists, "the note")
    os.utime(rig.places.captured, (0, 0))
    due = rig.daemon._next_note
    assert due is not None and due <= time.monotonic() + 1.0
    rig.daemon.tick(due - 0.001)
    assert rig.places.captured.stat().st_mtime == 0, "not at each look"
    rig.daemon.tick(due)
    assert rig.places.captured.stat().st_mtime > 0
    before = time.time()
    await rig.daemon.close()
    assert rig.places.captured.stat().st_mtime >= before - 0.1


@conversation
async def test_it_is_told_where_nobody_knows_for_how_long_nothing_was_captured(rig: Rig) -> None:
    """A reboot takes the note with it."""
    await rig.daemon.start([A], force=False)
    await rig.until(rig.places.captured.exists, "the note")
    await rig.daemon.close()
    rig.places.captured.unlink()
    await rig.begin()
    await rig.running("a")
    assert uncaptured(rig) == {"a": 0}
    await rig.until(lambda: b"time without capture is not known" in b"".join(rig.said), "the line")


@conversation
async def test_a_note_from_before_the_host_was_started_is_none(rig: Rig) -> None:
    """Its clock began in 1970, and was set meanwhile; or the directory is kept over a reboot."""
    await rig.daemon.start([A], force=False)
    await rig.until(rig.places.captured.exists, "the note")
    await rig.daemon.close()
    long_ago = time.time() - 1000
    os.utime(rig.places.captured, (long_ago, long_ago))
    with up_for(900.0):
        await rig.begin()
    await rig.running("a")
    assert uncaptured(rig) == {"a": 0}
    await rig.until(lambda: b"time without capture is not known" in b"".join(rig.said), "the line")


@conversation
async def test_a_tap_that_is_restarted_goes_on_counting_the_time(rig: Rig) -> None:
    await rig.daemon.start([A], force=False)
    rig.daemon.roster.taps["a"].runner._idle = (50.0, None)
    await rig.daemon.apply([msgspec.structs.replace(A, seed=1)], dry_run=False, force=False)
    await rig.until(lambda: uncaptured(rig)["a"] >= 50, "it goes on")


@conversation
async def test_ttl_ends_a_tap_also_across_a_restart(rig: Rig) -> None:
    await rig.daemon.start([tap("a", ttl=0.05), tap("b", ttl=1000.0), tap("c", ttl=0.2)], force=False)
    await rig.until(lambda: "a" not in rig.states(), "the end of a")
    assert 990 < rig.daemon.roster.told("b", ledger=False)[0]["ends_in"] <= 1000
    await rig.daemon.close()
    await asyncio.sleep(0.2)
    await rig.begin()
    await rig.running("b")
    await rig.until(lambda: [*kept(rig)] == ["b"], "kept")
    assert 990 < rig.daemon.roster.told("b", ledger=False)[0]["ends_in"] < 1000


@conversation
async def test_the_end_of_a_ttl_is_told_once_however_long_the_tap_drains(rig: Rig) -> None:
    gate = rig.script.gate("stop")
    await rig.daemon.start([tap("a", ttl=0.05)], force=False)
    await rig.until(rig.script.reached["stop"].is_set, "the end of its time")
    for _ in range(20):
        rig.daemon.tick(time.monotonic())
        await asyncio.sleep(0.005)
    assert "a" in rig.states()
    gate.set()
    await rig.until(lambda: "a" not in rig.states(), "its end")
    await rig.until(lambda: b"event=ttl" in b"".join(rig.said), "the line")
    assert b"".join(rig.said).count(b"event=ttl") == 1


@conversation
async def test_the_ttl_of_a_file_counts_from_the_first_start_and_is_over_for_good(rig: Rig) -> None:
    rig.file("web.yaml", tap("a", ttl=1000.0), B)
    await rig.daemon.close()
    await rig.begin()
    await rig.running("a", "b")
    await rig.until(lambda: set(kept(rig)) == {"a", "b"}, "kept")
    assert 900 < (kept(rig)["a"].ends_at or 0) - time.time() <= 1000
    await rig.daemon.close()
    found, _ = state.load(rig.places.state)  # its time passes while no daemon runs
    taps = [msgspec.structs.replace(each, ends_at=each.ends_at and 1.0) for each in found.taps]
    state.save(rig.places.state, msgspec.structs.replace(found, taps=taps))
    for _ in range(2):
        await rig.begin()
        await rig.running("b")
        await rig.until(lambda: [*kept(rig)] == ["b"], "kept")
        assert rig.states() == {"b": "running"}
        await rig.daemon.close()
    await rig.begin()
    await rig.daemon.reload()
    await rig.until(lambda: set(rig.states()) == {"a", "b"}, "asked for, it begins anew")


@conversation
async def test_a_jump_of_the_wall_clock_ends_no_tap(rig: Rig) -> None:
    await rig.daemon.start([tap("a", ttl=1000.0), tap("b", ttl=0.1)], force=False)
    real = time.time
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + 1e6)
        await rig.until(lambda: "b" not in rig.states(), "the end of b, by the clock that does not jump")
        assert rig.script.attached() == ["a"]
        assert 990 < rig.daemon.roster.told("a", ledger=False)[0]["ends_in"] <= 1000


@conversation
async def test_an_end_is_kept_by_the_wall_clock_as_it_is_set(rig: Rig) -> None:
    await rig.daemon.start([tap("a", ttl=1000.0)], force=False)
    real = time.time
    with pytest.MonkeyPatch.context() as patch:
        for ahead in (3_600.0, -3_600.0):
            patch.setattr(time, "time", lambda ahead=ahead: real() + ahead)
            await rig.until(lambda: 990 < (kept(rig)["a"].ends_at or 0) - time.time() <= 1000, "its end, on disk")


# --- several at a time


@conversation
async def test_one_that_is_stopped_amid_its_restart_stays_so(rig: Rig) -> None:
    await rig.daemon.start([A], force=False)
    gate = rig.script.gate("stop")
    applying = asyncio.ensure_future(rig.daemon.apply([msgspec.structs.replace(A, seed=1)], dry_run=False, force=False))
    await asyncio.to_thread(rig.script.reached["stop"].wait, PATIENCE)
    stopping = asyncio.ensure_future(rig.daemon.stop("a"))
    await asyncio.sleep(0)
    gate.set()
    assert (await applying)["failed"] == {"a": "it was stopped meanwhile"}
    await stopping
    assert rig.states() == {} == kept(rig)


@conversation
async def test_what_is_refused_to_one_that_is_restarted_has_no_effect_either(rig: Rig) -> None:
    await rig.daemon.start([A], force=False)
    gate = rig.script.gate("stop")
    applying = asyncio.ensure_future(rig.daemon.apply([msgspec.structs.replace(A, seed=1)], dry_run=False, force=False))
    await at(rig, "stop")
    await refused(rig.daemon.pause("a"), "busy", "is being stopped")
    await refused(rig.daemon.set_percent("a", 5.0), "busy", "is being stopped")
    gate.set()
    assert (await applying)["failed"] == {}
    await rig.running("a")
    assert not kept(rig)["a"].paused and kept(rig)["a"].percent is None


@conversation
async def test_two_reloads_at_a_time_leave_one_tap_of_a_name(rig: Rig) -> None:
    rig.file("web.yaml", A)
    await rig.daemon.reload()
    gate = rig.script.gate("stop")
    rig.file("web.yaml", msgspec.structs.replace(A, seed=1))
    first = asyncio.ensure_future(rig.daemon.reload())
    await at(rig, "stop")
    second = asyncio.ensure_future(rig.daemon.reload())
    starting = asyncio.ensure_future(rig.daemon.start([A], force=False))
    await asyncio.sleep(0.05)
    assert rig.script.begun() == 1  # nothing begins beside what still drains
    gate.set()
    assert [step["action"] for step in (await first)["plan"]] == ["restart"]
    assert [step["action"] for step in (await second)["plan"]] == ["keep"]
    await refused(starting, "refused", "a tap has the name 'a' already")
    assert rig.script.attached() == ["a"] and rig.script.begun() == 2


@conversation
async def test_nothing_begins_in_the_place_of_a_tap_that_still_drains(rig: Rig) -> None:
    rig.file("web.yaml", A)
    await rig.daemon.reload()
    await rig.daemon.start([B], force=False)
    gate = rig.script.gate("stop")
    stopping = asyncio.ensure_future(rig.daemon.stop_all())
    await at(rig, "stop")
    await refused(rig.daemon.reload(), "busy", "^the tap 'a' is being stopped$")
    await refused(rig.daemon.apply([B], dry_run=False, force=False), "busy", "^the tap 'b' is being stopped$")
    gate.set()
    await stopping
    assert len(rig.script.taps) == 2
    await rig.daemon.close()
    await rig.begin()
    await rig.until(lambda: rig.states() == {}, "the refused reload forgot that a was stopped")


@conversation
async def test_what_is_being_started_is_not_changed(rig: Rig) -> None:
    gate = rig.script.gate("start")
    starting = asyncio.ensure_future(rig.daemon.start([A], force=False))
    await at(rig, "start")
    changed = msgspec.structs.replace(A, seed=1)
    await refused(rig.daemon.apply([changed], dry_run=False, force=False), "busy", "'a' is being started")
    gate.set()
    assert await starting == ["a"]


@conversation
async def test_stop_all_ends_also_what_waits_for_its_turn(rig: Rig) -> None:
    await rig.daemon.start([A], force=False)
    gate = rig.script.gate("stop")
    applying = asyncio.ensure_future(rig.daemon.apply([], dry_run=False, force=False))
    await at(rig, "stop")
    starting = asyncio.ensure_future(rig.daemon.start([B], force=False))
    await asyncio.sleep(0)
    stopping = asyncio.ensure_future(rig.daemon.stop_all())
    await asyncio.sleep(0)
    gate.set()
    await refused(starting, "failed", "all taps were stopped meanwhile")
    await asyncio.gather(applying, stopping)
    assert rig.states() == {} == kept(rig)


@conversation
async def test_a_tap_that_is_stopped_while_the_files_are_read_stays_so(rig: Rig) -> None:
    rig.file("web.yaml", A, B)
    await rig.daemon.reload()
    real, reading, go_on = folder.read, threading.Event(), threading.Event()

    def read(*args: Any, **more: Any) -> Any:
        reading.set()
        assert go_on.wait(PATIENCE)
        return real(*args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "read", read)
        reloading = asyncio.ensure_future(rig.daemon.reload())
        assert await asyncio.to_thread(reading.wait, PATIENCE)
        await rig.daemon.stop("a")
        go_on.set()
        assert [(step["name"], step["action"]) for step in (await reloading)["plan"]] == [("b", "keep")]
        assert rig.states() == {"b": "running"}
    await rig.daemon.close()
    await rig.begin()
    await rig.running("b")
    assert [*rig.states()] == ["b"]


@conversation
async def test_what_follows_in_a_restart_can_be_stopped_too(rig: Rig) -> None:
    await rig.daemon.start([A], force=False)
    gate = rig.script.gate("start")
    applying = asyncio.ensure_future(rig.daemon.apply([msgspec.structs.replace(A, seed=1)], dry_run=False, force=False))
    await at(rig, "start")
    assert kept(rig)["a"].spec == A
    stopping = asyncio.ensure_future(rig.daemon.stop("a"))
    await asyncio.sleep(0)
    gate.set()
    assert (await applying)["failed"] == {"a": "the tap was stopped while it started"}
    await stopping
    assert rig.states() == {} == kept(rig)


@conversation
async def test_a_restart_that_fails_keeps_the_time_that_is_left(rig: Rig) -> None:
    await rig.daemon.start([tap("a", ttl=1000.0)], force=False)
    rig.script.fails["start"] = "no such interface"
    await rig.daemon.apply([tap("a", ttl=1000.0, iface="eth9")], dry_run=False, force=False)
    assert 990 < rig.daemon.roster.told("a", ledger=False)[0]["ends_in"] <= 1000
    assert kept(rig)["a"].ends_at is not None


@conversation
async def test_the_kill_switch_amid_a_restart_loses_no_tap(rig: Rig) -> None:
    await rig.daemon.start([A], force=False)
    gate = rig.script.gate("stop")
    applying = asyncio.ensure_future(rig.daemon.apply([msgspec.structs.replace(A, seed=1)], dry_run=False, force=False))
    await at(rig, "stop")
    rig.places.stop_file.touch()
    rig.daemon.tick(time.monotonic())
    gate.set()
    await refused(applying, "failed", "all taps were stopped meanwhile")
    assert rig.script.attached() == []
    rig.places.stop_file.unlink()
    await rig.running("a")


@conversation
async def test_what_is_asked_for_while_the_daemon_stops_costs_no_tap(rig: Rig) -> None:
    rig.file("web.yaml", C)
    await rig.daemon.reload()
    await rig.daemon.start([A, B], force=False)
    gate = rig.script.gate("stop")
    applying = asyncio.ensure_future(
        rig.daemon.apply([msgspec.structs.replace(A, seed=1), B], dry_run=False, force=False)
    )
    await at(rig, "stop")
    closing = asyncio.ensure_future(rig.daemon.close())
    await asyncio.sleep(0)
    late = [
        asyncio.ensure_future(refused(each, "failed", "^the daemon is stopping$"))
        for each in (
            rig.daemon.start([tap("d")], force=False),
            rig.daemon.apply([], dry_run=False, force=False),
            rig.daemon.reload(),
        )
    ]
    stopping = asyncio.ensure_future(rig.daemon.stop("b"))
    await asyncio.sleep(0)
    gate.set()
    await refused(applying, "failed", "^the daemon is stopping$")
    await asyncio.gather(closing, stopping, *late)
    assert rig.script.begun() == 3
    assert {name: each.spec for name, each in kept(rig).items()} == {"a": A, "c": C}


@conversation
async def test_the_daemon_can_stop_while_what_follows_in_a_restart_starts(rig: Rig) -> None:
    await rig.daemon.start([A], force=False)
    gate = rig.script.gate("start")
    applying = asyncio.ensure_future(
        rig.daemon.apply([msgspec.structs.replace(A, seed=1), B], dry_run=False, force=False)
    )
    await at(rig, "start")
    closing = asyncio.ensure_future(rig.daemon.close())
    await asyncio.sleep(0)
    gate.set()
    await refused(applying, "failed", "^the daemon is stopping$")
    await closing
    await rig.begin()
    await rig.running("a")
    assert rig.script.taps[0].spec == A


# --- files


@conversation
async def test_files_are_taken_at_the_start_and_at_reload(rig: Rig) -> None:
    rig.file("web.yaml", A, B)
    await rig.daemon.start([C], force=False)
    done = await rig.daemon.reload()
    assert [(step["name"], step["action"]) for step in done["plan"]] == [("a", "add"), ("b", "add")]
    assert {each["name"]: each["origin"] for each in rig.daemon.roster.told(None, ledger=False)} == {
        "a": "web.yaml", "b": "web.yaml", "c": ""
    }  # fmt: skip
    rig.file("web.yaml", msgspec.structs.replace(A, percent=5.0))
    (first,) = [each for each in rig.script.taps if each.spec.name == "a"]
    done = await rig.daemon.reload()
    assert [(step["name"], step["action"]) for step in done["plan"]] == [("b", "remove"), ("a", "change")]
    assert ("set_percent", 5.0) in first.did
    await rig.running("a", "c")
    rig.file("more.yaml", B)
    await rig.daemon.close()
    await rig.begin()
    await rig.running("a", "b", "c")


@conversation
async def test_the_budget_of_all_taps_is_read_anew_with_the_files(rig: Rig) -> None:
    rig.file("a.yaml", A)
    (rig.places.config / "daemon.yaml").write_text("budget: {cpu: 2}\n")
    await rig.daemon.reload()
    await rig.running("a")
    assert rig.daemon.together.told()["budget"] == {"cpu": 2.0}
    rig.file("a.yaml", A, B)
    (rig.places.config / "daemon.yaml").write_text("budget: {cpu: -1}\n")
    await refused(rig.daemon.reload(), "refused", r"daemon\.yaml:1: budget\.cpu: -1\.0 is not a number above 0$")
    assert rig.daemon.together.told()["budget"] == {"cpu": 2.0}
    await rig.running("a")
    rig.file("b.yaml", "name: c\nport: 99999\n")
    await refused(rig.daemon.reload(), "refused", r"daemon\.yaml:1: budget\.cpu: .* \(and [1-9] more\)")
    (rig.places.taps / "b.yaml").unlink()
    (rig.places.config / "daemon.yaml").unlink()
    await rig.daemon.reload()
    await rig.running("a", "b")
    assert rig.daemon.together.told()["budget"] == {}


@conversation
async def test_a_bad_file_leaves_everything_as_it_is(rig: Rig) -> None:
    rig.file("web.yaml", A)
    await rig.daemon.reload()
    rig.file("bad.yaml", "name: b\niface: eth0\nport: 99999\n")
    rig.file("web.yaml", msgspec.structs.replace(A, seed=1))
    await refused(rig.daemon.reload(), "refused", "bad.yaml.*and 1 more")
    await rig.until(lambda: b"event=reload" in b"".join(rig.said), "the second problem")
    assert b"".join(rig.said).count(b"bad.yaml") == 1  # the first goes to who asked
    assert "bad.yaml" in rig.daemon.reload_error
    assert rig.script.taps[0].attached and len(rig.script.taps) == 1
    await rig.daemon.close()
    await rig.begin()  # also at the start: what was kept of files goes on
    await rig.running("a")
    assert rig.script.taps[0].spec == A and "bad.yaml" in rig.daemon.reload_error
    (rig.places.taps / "bad.yaml").unlink()
    await rig.daemon.reload()
    assert rig.daemon.reload_error == ""
    assert rig.script.taps[-1].spec.seed == 1


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (msgspec.structs.replace(A, seed=1), "b.yaml: the tap 'a' was started by command"),
        (msgspec.structs.replace(A, name="twin"), "twin: the tap 'a' mirrors eth0 port 80"),
    ],
)
def test_files_may_not_do_what_commands_may_not(rig: Rig, spec: TapSpec, words: str) -> None:
    async def test(rig: Rig) -> None:
        await rig.daemon.start([A], force=False)
        rig.file("b.yaml", spec)
        await refused(rig.daemon.reload(), "refused", words)
        await rig.running("a")
        await rig.daemon.close()
        await rig.begin()
        await rig.running("a")
        assert words in rig.daemon.reload_error

    conversation(test)(rig)


@conversation
async def test_a_tap_of_a_file_that_was_stopped_comes_back_only_if_it_is_asked_for(rig: Rig) -> None:
    rig.file("web.yaml", A, B)
    await rig.daemon.reload()
    await rig.daemon.stop("a")
    await rig.daemon.close()
    await rig.begin()
    await rig.running("b")
    await rig.daemon.reload()
    await rig.running("a", "b")


@conversation
async def test_that_a_tap_was_stopped_is_forgotten_with_its_file(rig: Rig) -> None:
    rig.file("web.yaml", A)
    await rig.daemon.reload()
    await rig.daemon.stop("a")
    (rig.places.taps / "web.yaml").unlink()
    await rig.daemon.close()
    await rig.begin()
    assert rig.states() == {}
    await rig.daemon.close()
    rig.file("web.yaml", A)
    await rig.begin()
    await rig.running("a")


@conversation
async def test_a_tap_of_a_file_that_is_renamed_is_not_touched_and_tells_the_new_name(rig: Rig) -> None:
    rig.file("web.yaml", A)
    await rig.daemon.reload()
    (rig.places.taps / "web.yaml").rename(rig.places.taps / "other.yaml")
    assert [step["action"] for step in (await rig.daemon.reload())["plan"]] == ["keep"]
    assert rig.daemon.roster.told("a", ledger=False)[0]["origin"] == "other.yaml" == kept(rig)["a"].origin


@conversation
async def test_a_share_that_was_set_outlives_a_restart_unless_the_file_changed(rig: Rig) -> None:
    rig.file("web.yaml", A)
    await rig.daemon.reload()
    await rig.daemon.set_percent("a", 1.0)
    await rig.daemon.close()
    await rig.begin()
    await rig.running("a")
    assert rig.script.taps[0].spec.percent == 1.0
    rig.file("web.yaml", msgspec.structs.replace(A, percent=50.0))
    await rig.daemon.close()
    await rig.begin()
    await rig.running("a")
    assert rig.script.taps[0].spec.percent == 50.0
    await rig.daemon.set_percent("a", 1.0)
    await rig.daemon.reload()  # asked for: as the file says
    assert ("set_percent", 50.0) in rig.script.taps[0].did


# --- what is kept


@conversation
async def test_a_tap_that_cannot_run_now_is_tried_until_it_can(rig: Rig) -> None:
    await rig.daemon.start([A], force=False)
    await rig.daemon.close()
    rig.file("b.yaml", B)
    rig.script = Script()
    rig.script.fails["start"] = "no name server"
    rig.daemon = Daemon(rig.places, rig.log, AllTaps(), rig.script)
    await rig.daemon.restore()
    await rig.until(lambda: [*rig.states().values()] == ["restarting"] * 2, "tries")
    await rig.until(lambda: [*kept(rig)] == ["a", "b"], "kept")
    rig.script.fails.clear()
    await rig.running("a", "b")


@conversation
async def test_a_comparison_is_that_of_a_tap_that_compares_and_runs(rig: Rig) -> None:
    await rig.daemon.start([A, tap("b", 81, compare=Compare(level=CompareLevel.BODY))], force=False)
    spec, data = await rig.daemon.comparison("b")
    (found,) = msgspec.json.decode(data)
    assert (spec.name, found["shadows"]["v2"]["requests"]) == ("b", 3)
    await refused(rig.daemon.comparison("a"), "refused", "compares nothing")
    await refused(rig.daemon.comparison("c"), "not_found", "no tap")
    rig.places.stop_file.touch()
    await rig.until(lambda: rig.states()["b"] == "paused", "the tap to be held")
    await refused(rig.daemon.comparison("b"), "failed", "does not run")


@conversation
async def test_one_that_is_kept_twice_begins_once(rig: Rig) -> None:
    """Somebody edited the file."""
    await rig.daemon.close()
    twice = [state.Kept(spec=A), state.Kept(spec=msgspec.structs.replace(A, seed=7)), state.Kept(spec=B)]
    state.save(rig.places.state, state.State(taps=twice))
    await rig.begin()
    await rig.running("a", "b")
    assert rig.daemon.roster.entry("a").spec == A
    await rig.until(lambda: b"it is kept twice" in b"".join(rig.said), "the line")
