# SPDX-License-Identifier: Apache-2.0
"""Scenario 25: another version takes a daemon's place under load, and the first one comes back.

No request reaches the shadow twice and none of production's fails; that nobody captured for a time is told, and nothing
is missing that came before or behind it.  What a version cannot read of another one is refused or set aside with a
line.
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from e2e.mirror import PATIENCE
from e2e.served import SHADOW, WEB, under_load, untorn
from lab import HashSink, Lab, identity, load, until
from lab.daemon import Daemon
from lab.versions import FORMATS, LAYOUT, version
from tapmirror.control.messages import List, Status, Stop

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]

OLD, NEW = "1.0", "2.0.1"
RATE = 500


def tap_of(daemon: Daemon) -> dict[str, Any]:
    (tap,) = daemon.ask(Status())["taps"]
    return dict(tap)


def replaced(daemon: Daemon, package: Path, end: int) -> None:
    """Another version instead, which mirrors, and says that for some time nothing was captured."""
    if end == signal.SIGKILL:
        daemon.kill()
    else:
        assert daemon.stop(end) == 0
    daemon.package = package
    daemon.start()
    until(lambda: tap_of(daemon)["state"] == "running" and tap_of(daemon)["uncaptured_s"] > 0, "the tap", PATIENCE)


def test_an_upgrade_and_a_rollback_under_load(lab: Lab, tmp_path: Path) -> None:
    old = version(tmp_path / "old", OLD)
    new = version(tmp_path / "new", NEW, *LAYOUT)
    with (
        Daemon(lab.node, package=old) as daemon,
        under_load(lab, rate=RATE, bodies=(0, 300, 20_000)) as (production, shadow, running),
    ):
        daemon.run(*WEB)
        daemon.run("set", "web", "percent=100")
        shadow.wait_for(300, PATIENCE)
        before, meanwhile = len(production.got), 0
        for package, number, end in ((new, NEW, signal.SIGTERM), (old, OLD, signal.SIGKILL)):
            count = len(production.got)
            replaced(daemon, package, end)
            meanwhile += len(production.got) - count
            assert daemon.ask(Status())["daemon"]["version"] == number
            count = len(shadow.got)
            shadow.wait_for(count + 300, PATIENCE)
        assert running.stop().failed == 0
        (done,) = daemon.ask(Stop(all=True))["stopped"]
        identity(done["ledger"])
        untorn(production, shadow, killed=True)
        assert len([*daemon.cache.iterdir()]) == 2  # a program of each version, and the old one's was found again
        said = daemon.said()
    assert not re.search("error|Traceback", said), said
    assert len(re.findall(r"event=uncaptured tap=web msg=\"nothing was captured for [\d.]+ s before", said)) == 2
    missing = {got.uri for got in production.got[before:]} - {got.uri for got in shadow.got if got.whole}
    # What each of ten connections had under way at an end and a beginning comes on top.
    assert 0 < len(missing) <= meanwhile + 200, (len(missing), meanwhile)


def test_files_that_are_replaced_beneath_a_running_daemon_are_refused_and_not_misread(lab: Lab, tmp_path: Path) -> None:
    """A package manager has put the new version there, and nobody has restarted the daemon."""
    files = version(tmp_path / "files", OLD)
    with Daemon(lab.node, package=files) as daemon, under_load(lab) as (production, shadow, running):
        daemon.run(*WEB)
        shadow.wait_for(200, PATIENCE)
        version(files, NEW, *LAYOUT)
        count = len(shadow.got)
        shadow.wait_for(count + 100, PATIENCE)  # what runs goes on
        (worker,) = daemon.workers()
        os.kill(worker, signal.SIGKILL)
        digest = "[0-9a-f]{12}"
        line = re.compile(rf"tapmirror {NEW}-{digest} is installed now, and {OLD}-{digest} is running: restart it")
        until(lambda: bool(line.search(tap_of(daemon)["state_reason"])), "the reason", PATIENCE)
        assert tap_of(daemon)["state"] == "restarting"
        other = ("start", "--name=two", "--iface=eth0", "--port=81", f"--shadow={SHADOW}")
        assert re.fullmatch(rf"tapmirror: error: {line.pattern}\n", daemon.run(*other, check=1).stderr)
        assert "AF_PACKET" not in daemon.said()
        count, seen = len(shadow.got), len(production.got)
        production.wait_for(seen + 200, PATIENCE)
        assert len(shadow.got) == count
        replaced(daemon, files, signal.SIGTERM)
        assert daemon.ask(Status())["daemon"]["version"] == NEW
        shadow.wait_for(count + 200, PATIENCE)
        assert running.stop().failed == 0
        daemon.ask(Stop(all=True))
        untorn(production, shadow, killed=True)


def test_what_a_newer_version_wrote_or_says_is_told_and_not_misread(lab: Lab, tmp_path: Path) -> None:
    old = version(tmp_path / "old", OLD)
    new = version(tmp_path / "new", NEW, *FORMATS)
    with HashSink(lab.node), HashSink(lab.shadow) as shadow, Daemon(lab.node, package=new) as daemon:
        lab.node.run(daemon.command(*WEB), env=daemon.environment())
        done = daemon.run("list", check=2)
        assert done.stderr == "tapmirror: error: this daemon speaks version 2 of the protocol, not 1\n"
        theirs, environment = daemon.command("list"), daemon.environment()
        assert daemon.stop() == 0
        written = (daemon.state / "taps.json").read_bytes()
        programs = {path.name for path in daemon.cache.iterdir()}
        daemon.package = old
        daemon.start()
        place = re.escape(str(daemon.state / "taps.json"))
        line = (
            rf"{place}: its version is 2, and this tapmirror reads 1; "
            r"set aside as (taps\.json\.\S+\.unread), beginning without taps"
        )
        until(lambda: bool(re.search(line, daemon.said())), "the line")
        assert daemon.ask(List())["taps"] == []
        (aside,) = re.findall(line, daemon.said())
        assert (daemon.state / aside).read_bytes() == written
        refused = lab.node.run(theirs, env={**environment, "PYTHONPATH": str(new)}, check=False)
        assert refused.stderr == "tapmirror: error: this daemon speaks version 1 of the protocol, not 2\n"
        assert refused.returncode == 2
        daemon.run(*WEB)
        assert {path.name for path in daemon.cache.iterdir()} > programs  # it compiled its own
        assert load(lab.client, lab.node.addr4, requests=50, connections=4).failed == 0
        shadow.wait_for(50)
