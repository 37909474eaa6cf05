# SPDX-License-Identifier: Apache-2.0
"""The real daemon between real servers under load: what operators do."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from e2e.mirror import PATIENCE
from e2e.served import SHADOW, WEB, attached, state_of, text, under_load, untorn, web
from lab import (
    HashSink,
    Lab,
    identity,
    load,
    until,
)
from lab.daemon import Daemon
from tapmirror.control.messages import List, Start, Status, Stop
from tapmirror.spec import parse_shadow
from tapmirror.supervisor.workers import REPLY_TIME

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]


def test_a_day_of_an_operator(lab: Lab, tmp_path: Path) -> None:
    with HashSink(lab.node), HashSink(lab.shadow) as shadow, Daemon(lab.node) as daemon:
        assert daemon.run("list").stdout == "no taps\n"
        assert daemon.json("list") == {"taps": []}
        assert daemon.run(*WEB).stdout == "started: web\n"
        assert load(lab.client, lab.node.addr4, requests=100, connections=4).failed == 0
        shadow.wait_for(100)
        assert re.search(r"^web +running +100 % +eth0 +80 +10\.77\.2\.2:80 +command", daemon.run("list").stdout, re.M)
        until(lambda: "shadow 10.77.2.2:80: 2xx 100" in daemon.run("status", "web").stdout, "all responses")
        shown = daemon.run("status", "web").stdout
        assert "web: running" in shown and "requests: 100 seen, 100 mirrored" in shown
        assert "info: capture by ebpf" in daemon.run("logs", "web").stdout
        file = tmp_path / "taps.yaml"
        file.write_text(f"{text(seed=1)}---\n{text('two', port=81)}")
        plan = daemon.run("apply", "-f", str(file), "--dry-run").stdout
        assert plan == "! restart web  (seed)\n+ add     two\n"
        assert [tap["name"] for tap in daemon.json("list")["taps"]] == ["web"]
        assert daemon.run("apply", "-f", str(file)).stdout == plan
        assert {tap["name"]: tap["state"] for tap in daemon.json("list")["taps"]} == {
            "web": "running",
            "two": "running",
        }
        assert load(lab.client, lab.node.addr4, requests=10, connections=1).failed == 0
        shadow.wait_for(110)
        stopped = daemon.run("stop", "web").stdout
        assert "Ledger of web" in stopped and stopped.endswith("stopped: web\n")
        (two,) = daemon.json("stop", "--all")["stopped"]
        assert two["name"] == "two" and two["ledger"]["segments"]["seen"] == 0
        until(lambda: "op=stop all=True" in daemon.said(), "the line of the last command")  # lines are written beside
        said = daemon.said()
    for words in ("op=start taps=web", "op=apply taps=web,two", "op=stop name=web", "op=stop all=True"):
        assert re.search(rf"event=audit msg=done user=root uid=0 pid=\d+ {words}\n", said), (words, said)
    assert "op=list" not in said and "dry_run=True" in said


def test_refusals_are_one_line_and_an_exit_code(lab: Lab, tmp_path: Path) -> None:
    no_tap = "no tap has the name 'nonsense' (there are: web)"
    with HashSink(lab.shadow), Daemon(lab.node) as daemon:
        daemon.run(*WEB)
        bad = tmp_path / "bad.yaml"
        bad.write_text("name: x\niface: eth0\nport: 0\nshadow: a:1\n")
        for code, words, line in [
            (2, ("stop", "nonsense"), no_tap),
            (2, ("pause", "nonsense"), no_tap),
            (2, ("set", "nonsense", "percent=5"), no_tap),
            (2, ("logs", "nonsense"), no_tap),
            (2, ("status", "nonsense"), no_tap),
            (2, ("stop",), "give the NAME of a tap, or --all"),
            (2, ("stop", "web", "--all"), "give the NAME of a tap, or --all"),
            (2, ("set", "web", "percent=101"), "percent: 101.0 is not between 0 and 100"),
            (2, ("set", "web", "percent=nan"), "percent: 'nan' is not a number"),
            (2, ("set", "web", "colour=red"), "'colour=red': only percent=P can be set"),
            (2, WEB, "a tap has the name 'web' already"),
            (2, ("start", "--name=ssh", "--iface=eth0", "--port=22", f"--shadow={SHADOW}"), "port 22 is SSH's"),
            (2, ("start", "--name=b", "--iface=eth0", "--port=80", f"--shadow={SHADOW}"), "every request twice"),
            (1, ("start", "--name=b", "--iface=eth9", "--port=80", "--shadow=10.77.2.2:81"), "no interface 'eth9'"),
            (1, ("start", "--name=b", "--iface=eth0", "--port=80", "--shadow=nowhere.invalid:81"), "cannot resolve"),
            (2, ("start", "--name=b", "--iface=eth0", "--port=80", "--shadow=10.77.1.2:80"), "10.77.1.2 port 80 is"),
            (2, ("start", "--name=b", "--iface=eth0", "--port=80", "--shadow=224.0.0.1:81"), "not the address of one"),
            (2, ("apply", "-f", str(bad)), "bad.yaml:3: port: 0 is not a port"),
        ]:  # fmt: skip
            done = daemon.run(*words, check=code)
            assert line in done.stderr and done.stdout == "", (words, done)
            assert done.stderr.count("\n") == 1 and done.stderr.startswith("tapmirror: error: ")
        assert [tap["name"] for tap in daemon.json("list")["taps"]] == ["web"]
        daemon.stop()
        done = daemon.run("list", check=2)
        assert "no daemon at" in done.stderr and done.stderr.count("\n") == 1


def test_changes_under_load_tear_nothing(lab: Lab, tmp_path: Path) -> None:
    with Daemon(lab.node) as daemon, under_load(lab, bodies=(0, 300, 20_000)) as (production, shadow, running):
        daemon.run(*WEB)
        shadow.wait_for(200, PATIENCE)
        file = tmp_path / "taps.yaml"
        for share in (40, 70):
            file.write_text(text(percent=share))
            assert daemon.run("apply", "-f", str(file)).stdout == "~ change  web  (percent)\n"
            settle(daemon, share)
        daemon.run("set", "web", "percent=100")
        settle(daemon, 100)
        daemon.run("pause", "web")
        until(lambda: state_of(daemon) == "paused", "paused")
        seen = len(production.got)
        production.wait_for(seen + 200, PATIENCE)
        count = len(shadow.got)
        production.wait_for(seen + 400, PATIENCE)
        assert len(shadow.got) <= count + 1
        daemon.run("resume", "web")
        shadow.wait_for(count + 200, PATIENCE)
        file.write_text(text(seed=7, percent=100))
        assert daemon.run("apply", "-f", str(file)).stdout == "! restart web  (seed)\n"
        count = len(shadow.got)
        shadow.wait_for(count + 200, PATIENCE)
        assert running.stop().failed == 0
        (stopped,) = daemon.json("stop", "web")["stopped"]
        ledger = stopped["ledger"]
        identity(ledger)
        assert {unit: ledger[unit]["in_flight"] for unit in ("segments", "bytes", "requests")} == {
            "segments": 0, "bytes": 0, "requests": 0
        }  # fmt: skip
        untorn(production, shadow)


def settle(daemon: Daemon, share: float) -> None:
    """Wait until the tap has this share, and seen some traffic with it."""

    def ledger() -> dict[str, Any]:
        (tap,) = daemon.ask(Status(name="web"))["taps"]
        assert tap["percent"] == share
        return dict(tap["ledger"] or {})

    before = ledger().get("segments", {}).get("seen", 0)
    until(lambda: ledger().get("segments", {}).get("seen", 0) > before + 100, f"traffic with {share} %", PATIENCE)


@pytest.mark.parametrize("name", ["apply", "reload"])
def test_a_shadow_that_moves_to_another_port_under_load(lab: Lab, tmp_path: Path, name: str) -> None:
    """A worker may connect to its shadows' ports only, for good: the new one takes another worker."""
    with (
        Daemon(lab.node) as daemon,
        under_load(lab, bodies=(0, 300, 20_000)) as (production, shadow, _running),
        HashSink(lab.shadow, 81) as moved,
    ):
        path = tmp_path / "tap.yaml" if name == "apply" else daemon.taps / "web.yaml"
        words = ("apply", "-f", str(path)) if name == "apply" else ("reload",)
        path.write_text(text())
        daemon.run(*words)
        shadow.wait_for(200, PATIENCE)
        path.write_text(text(shadow="10.77.2.2:81"))
        daemon.run(*words)
        moved.wait_for(200, PATIENCE)
        assert state_of(daemon) == "running"
        daemon.run("stop", "--all")
        untorn(production, shadow)
        untorn(production, moved)
        assert not {got.uri for got in shadow.got if got.whole} & {got.uri for got in moved.got if got.whole}


def test_ttl_ends_a_tap_by_itself(lab: Lab) -> None:
    with HashSink(lab.shadow), Daemon(lab.node) as daemon:
        daemon.run(*WEB, "--ttl=1")
        until(lambda: daemon.ask(List())["taps"] == [], "its end")
        assert attached(lab.node) == []
        until(lambda: "its time is over" in daemon.said(), "the line")


@pytest.mark.apart
def test_fifty_taps_on_one_interface(lab: Lab) -> None:
    specs = [
        web(f"tap{i:02}", shadows=(parse_shadow(f"10.77.2.2:{8000 + i}"),), capture="packet", percent=100.0 - i)
        for i in range(49)
    ]  # fmt: skip
    with Daemon(lab.node) as daemon, HashSink(lab.node), HashSink(lab.shadow) as shadow:
        daemon.ask(Start(taps=[*specs, web("web")]))
        assert len(attached(lab.node)) >= 50
        assert load(lab.client, lab.node.addr4, requests=200, connections=10, rate=200).failed == 0
        shadow.wait_for(200, PATIENCE)
        assert len(daemon.workers()) == 50
        began = time.monotonic()
        taps = daemon.ask(Status())["taps"]
        assert time.monotonic() - began < REPLY_TIME, "the time that one worker is given"
        assert {tap["state"] for tap in taps} == {"running"}
        files = len(os.listdir(f"/proc/{daemon.pid}/fd"))
        stopped = daemon.ask(Stop(all=True))["stopped"]
        assert attached(lab.node) == [] and len(stopped) == 50
        for each in stopped:
            identity(each["ledger"])
        until(lambda: len(os.listdir(f"/proc/{daemon.pid}/fd")) < files / 4, "descriptors are closed")
        until(lambda: len(os.listdir(f"/proc/{daemon.pid}/task")) < 20, "threads end")
