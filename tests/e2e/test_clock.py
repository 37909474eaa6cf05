# SPDX-License-Identifier: Apache-2.0
"""Clocks that jump: no timer is of the wall clock, and no other epoch of the monotonic one matters."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any, Final

import pytest

from e2e.mirror import PATIENCE, ROOM
from e2e.served import CALM
from lab import HashSink, Lab, Load, LoadPlan, identity, open_to_all, until
from lab.clock import WallClock
from lab.daemon import Daemon
from tapmirror.control.messages import Start, Status, Stop
from tapmirror.spec import Capture, Limits, TapSpec, parse_shadow

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]

HOUR: Final = 3600.0
YEARS: Final = 10 * 365 * 24 * HOUR
TTL: Final = 1000.0


def tap(capture: str, **more: Any) -> TapSpec:
    shadow = parse_shadow("10.77.2.2:80")
    more = {"capture": Capture(capture), "limits": Limits(**ROOM), "budget": CALM, **more}
    return TapSpec(iface="eth0", ports=(80,), shadows=(shadow,), name="web", **more)


def ledger(daemon: Daemon) -> dict[str, Any]:
    """Of its only tap, as it was a second ago at most; empty before the first."""
    (found,) = daemon.ask(Status())["taps"]
    assert found["state"] == "running", found
    return dict(found["ledger"] or {})


@pytest.mark.parametrize("capture", ["ebpf", "packet"])
def test_no_timer_is_of_the_wall_clock(lab: Lab, tmp_path: Path, capture: str) -> None:
    """After each jump the same connections go on: none expires, none to the shadow is closed, no tap ends."""
    open_to_all(tmp_path)
    wall = WallClock(tmp_path)
    connections = 20
    with (
        HashSink(lab.node) as production,
        HashSink(lab.shadow) as shadow,
        Daemon(lab.node, start=False, more=("--metrics=9464",)) as daemon,
    ):
        daemon.start(before=wall.before)
        began = time.monotonic()
        daemon.ask(Start(taps=[tap(capture, ttl=TTL)]))
        plan = LoadPlan(address=lab.node.addr4, requests=10**9, connections=connections, rate=200)
        load = Load(lab.client, plan)
        shadow.wait_for(10 * connections, PATIENCE)
        until(lambda: ledger(daemon).get("flows") == connections, "all flows", PATIENCE)
        for ahead in (HOUR, -HOUR, YEARS, -YEARS, 0.0):
            wall.jump(ahead)
            if abs(ahead) == YEARS:
                daemon.run("list")
                year = time.gmtime(time.time() + ahead).tm_year
                daemon.run("set", "web", "percent=100")
                until(lambda year=year: f"time={year}-" in daemon.said(), "a line of that year")  # type: ignore[misc]
            count = len(shadow.got)
            shadow.wait_for(count + 10 * connections, PATIENCE)
        (found,) = daemon.ask(Status())["taps"]
        assert TTL - 1 - (time.monotonic() - began) <= found["ends_in"] < TTL
        assert found["losses"] == 0
        assert load.stop().failed == 0
        (done,) = daemon.ask(Stop(all=True))["stopped"]
        assert not re.search("level=(warning|error)", daemon.said())
    whole = done["ledger"]
    identity(whole)
    assert whole["events"]["shadow_connects"] == connections and whole["worker"]["restarts"] == 0
    assert whole["requests"]["dropped"] == {} and whole["requests"]["mirrored"] == len(shadow.got)
    assert not {name for name in whole["events"] if "idle" in name or "timeout" in name or "lingered" in name}
    assert production.bad == shadow.bad == []


@pytest.mark.parametrize("ahead", [HOUR, -HOUR])
def test_a_tap_that_is_to_end_is_neither_lost_nor_longer_after_the_clock_was_set(
    lab: Lab, tmp_path: Path, ahead: float
) -> None:
    """Its end is kept by the wall clock, and a daemon that is killed writes nothing any more."""
    open_to_all(tmp_path)
    wall = WallClock(tmp_path)
    with HashSink(lab.node), HashSink(lab.shadow), Daemon(lab.node, start=False) as daemon:
        daemon.start(before=wall.before)
        daemon.ask(Start(taps=[tap("ebpf", ttl=TTL)]))
        kept = daemon.state / "taps.json"
        before = kept.read_bytes()
        wall.jump(ahead)
        until(lambda: kept.read_bytes() != before, "the new end on disk")
        daemon.kill()
        daemon.start(before=wall.before)
        until(lambda: bool(daemon.ask(Status())["taps"]), "the tap")
        assert TTL - PATIENCE < daemon.ask(Status())["taps"][0]["ends_in"] < TTL


@pytest.mark.parametrize("capture", ["ebpf", "packet"])
def test_the_monotonic_clock_may_begin_anywhere(lab: Lab, capture: str) -> None:
    """Ten years after the boot, in a time namespace: the kernel's stamps are of another epoch then."""
    with HashSink(lab.node), HashSink(lab.shadow) as shadow, Daemon(lab.node, start=False) as daemon:
        daemon.start(before=("unshare", "--time", "--fork", "--kill-child", f"--monotonic={YEARS:.0f}", "--"))
        daemon.ask(Start(taps=[tap(capture)]))
        plan = LoadPlan(address=lab.node.addr4, requests=400, connections=10, rate=200)
        assert Load(lab.client, plan).result().failed == 0
        shadow.wait_for(400, PATIENCE)
        (done,) = daemon.ask(Stop(all=True))["stopped"]
        # unshare takes no SIGTERM while its child runs
        (inner,) = (pid for pid, words in daemon.processes().items() if pid != daemon.pid and " daemon " in words)
        os.kill(inner, signal.SIGTERM)
    identity(done["ledger"])
    assert done["ledger"]["requests"]["mirrored"] == 400
    assert done["ledger"]["events"]["delay_us"] < YEARS * 1e6, "none waited for years"
