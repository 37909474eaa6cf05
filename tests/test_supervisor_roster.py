# SPDX-License-Identifier: Apache-2.0
"""The taps that there are, and the kill switch: what is held and ended, whatever the taps do."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest

from daemon_rig import A, B, C, Rig, conversation, kept, refused, tap
from lab import PATIENCE
from tapmirror.supervisor import past as lives


@conversation
async def test_the_file_stop_ends_all_capture_and_its_end_brings_it_back(rig: Rig) -> None:
    await rig.daemon.start([A, B], force=False)
    await rig.daemon.pause("b")
    gate = rig.script.gate("start")
    late = asyncio.ensure_future(rig.daemon.start([C], force=False))
    await asyncio.to_thread(rig.script.reached["start"].wait, PATIENCE)
    rig.places.stop_file.touch()
    rig.daemon.tick(time.monotonic())
    assert rig.script.attached() == []
    gate.set()
    del rig.script.gates["start"]
    await late  # it is one of the taps now, and held
    await rig.until(lambda: set(rig.states().values()) == {"paused"}, "held")
    assert rig.daemon.roster.killed and rig.daemon.roster.summary() == "KILL SWITCH; taps: 3 paused"
    await refused(rig.daemon.start([tap("e")], force=True), "refused", "the kill switch is on: .*STOP is there")
    await refused(rig.daemon.apply([A, B, C, tap("e")], dry_run=False, force=False), "refused", "kill switch")
    await refused(rig.daemon.resume("a"), "refused", "kill switch")
    await refused(rig.daemon.reload(), "refused", "kill switch")
    await rig.daemon.set_percent("a", 1.0)
    await asyncio.sleep(0.05)
    assert rig.script.attached() == []
    rig.places.stop_file.unlink()
    await rig.running("a", "c")
    assert rig.states() == {"a": "running", "b": "paused", "c": "running"}
    assert rig.script.taps[-1].spec.percent + rig.script.taps[-2].spec.percent == 101.0


@conversation
async def test_the_file_stop_holds_at_each_look_what_is_not_held(rig: Rig) -> None:
    await rig.daemon.start([A, B], force=False)
    rig.places.stop_file.touch()
    rig.daemon.tick(time.monotonic())
    await rig.until(lambda: set(rig.states().values()) == {"paused"}, "held")
    gate = rig.script.gate("start")
    rig.daemon.roster.entry("a").runner.release()
    await asyncio.to_thread(rig.script.reached["start"].wait, PATIENCE)
    rig.daemon.tick(time.monotonic())
    gate.set()
    await rig.until(lambda: set(rig.states().values()) == {"paused"}, "held again")
    assert rig.script.attached() == []


@conversation
async def test_what_a_life_counted_to_its_end_is_kept_for_the_metrics_for_a_while(rig: Rig) -> None:
    def past() -> list[tuple[str, bool]]:
        return [(each["tap"], each["final"]) for each in rig.daemon.roster.snapshots() if "over" in each]

    await rig.daemon.start([A, B], force=False)
    await rig.until(lambda: all("worker" in each for each in rig.daemon.roster.snapshots()), "ledgers")
    lives = {each["tap"]: each["life"] for each in rig.daemon.roster.snapshots()}
    await rig.daemon.apply([msgspec.structs.replace(A, seed=1), B], dry_run=False, force=False)
    await rig.daemon.stop("b")
    assert past() == [("a", True), ("b", True)] == past()
    assert [each["life"] for each in rig.daemon.roster.snapshots()[:2]] == [lives["a"], lives["b"]]
    assert rig.daemon.roster.snapshots()[-1]["tap"] == "a" and "over" not in rig.daemon.roster.snapshots()[-1]


@conversation
async def test_a_tap_that_leaves_amid_a_scrape_is_in_it(rig: Rig) -> None:
    """Else its counters would begin anew with the next one."""
    await rig.daemon.start([A], force=False)
    await rig.until(lambda: "worker" in rig.daemon.roster.snapshots()[0], "a ledger")
    taps = dict(rig.daemon.roster.taps)

    class Leaves:
        def ledgers(self) -> list[dict[str, Any]]:
            rig.daemon.roster.taps.clear()
            return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig.daemon.roster, "_past", Leaves())
        found = rig.daemon.roster.snapshots()
    rig.daemon.roster.taps.update(taps)
    assert [each["tap"] for each in found] == ["a"]


@conversation
async def test_lives_that_are_over_are_forgotten(rig: Rig) -> None:
    def past() -> list[str]:
        return [each["tap"] for each in rig.daemon.roster.snapshots() if "over" in each]

    with pytest.MonkeyPatch.context() as patch:
        await rig.daemon.start([A], force=False)
        await rig.daemon.stop("a")
        assert past() == ["a"]
        patch.setattr(lives, "REMEMBERED", 0.0)
        assert past() == []
    for _ in range(3):
        await rig.daemon.start([A], force=False)
        await rig.daemon.stop("a")
    assert past() == ["a"] * 3


@pytest.mark.parametrize("switch", ["file", "command"])
def test_all_capture_ends_before_the_first_tap_is_taken_off(rig: Rig, switch: str) -> None:
    names = [f"tap{i}" for i in range(10)]

    @conversation
    async def test(rig: Rig) -> None:
        await rig.daemon.start([tap(name) for name in names], force=False)
        if switch == "file":
            rig.places.stop_file.touch()
            rig.daemon.tick(time.monotonic())
        else:
            await rig.daemon.stop_all()
        assert rig.script.ends[: len(names)] == [("mute", name) for name in names]
        await rig.until(lambda: {name for what, name in rig.script.ends if what == "detach"} == {*names}, "all off")

    test(rig)


@conversation
async def test_nothing_starts_while_the_file_stop_is_there(rig: Rig) -> None:
    await rig.daemon.start([A], force=False)
    rig.file("b.yaml", B)
    rig.places.stop_file.symlink_to("nowhere")
    await rig.daemon.close()
    await rig.begin()
    await rig.until(lambda: rig.states() == {"a": "paused", "b": "paused"}, "held")
    assert rig.script.taps == []
    rig.places.stop_file.unlink()
    await rig.running("a", "b")


@conversation
async def test_stop_all_ends_also_what_is_about_to_begin(rig: Rig) -> None:
    await rig.daemon.start([A, B], force=False)
    gate = rig.script.gate("stop")
    changed = [msgspec.structs.replace(A, seed=1), B, C]
    applying = asyncio.ensure_future(rig.daemon.apply(changed, dry_run=False, force=False))
    await asyncio.to_thread(rig.script.reached["stop"].wait, PATIENCE)
    stopping = asyncio.ensure_future(rig.daemon.stop_all())
    await asyncio.sleep(0)
    assert rig.script.attached() == []
    gate.set()
    await refused(applying, "failed", "all taps were stopped meanwhile")
    assert {each["name"] for each in await stopping} == {"a", "b"}
    assert rig.states() == {} == kept(rig)


@conversation
async def test_a_list_tells_what_is_wrong_with_what_runs(rig: Rig) -> None:
    def listed() -> tuple[float | None, str]:
        (told,) = rig.daemon.roster.told(None, ledger=False)
        return told["effective"], told["trouble"]

    def share(effective: float, reason: str, **causes: str) -> dict[str, Any]:
        shadows = {label: {"reason": cause} for label, cause in causes.items()}
        return {"share": {"percent": 50.0, "effective": effective, "reason": reason}, "shadows": shadows}

    gate = rig.script.gate("snapshot")  # the tap's own ledgers wait
    await rig.daemon.start([A], force=False)
    assert listed() == (None, "")
    runner = rig.daemon.roster.entry("a").runner
    for ledger, wanted in (
        (share(50.0, "", v2="", v3=""), (50.0, "")),
        (share(50.0, "", v2="", v3="it cannot be connected to"), (50.0, "shadow v3: it cannot be connected to")),
        (
            share(2.5, "shadow v2: it is tried again", v2="down"),
            (2.5, "at present 2.5 %: shadow v2: it is tried again"),
        ),
    ):
        runner.counted = (1, ledger)
        assert listed() == wanted
    rig.script.taps[0].state = "paused"
    runner.counted = (1, share(0.0, "paused", v2="down"))
    assert listed() == (0.0, ""), "it is not to capture"
    gate.set()


@conversation
async def test_what_the_metrics_have_no_room_for_is_in_the_log(rig: Rig) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lives, "HELD", 10)
        await rig.daemon.start([A], force=False)
        await rig.daemon.stop("a")
    assert [each for each in rig.daemon.roster.snapshots() if "over" in each] == []
    await rig.until(lambda: any(b"event=past tap=a" in line for line in rig.said), "a line")
