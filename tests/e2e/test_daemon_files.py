# SPDX-License-Identifier: Apache-2.0
"""The daemon's files: its state on a full disk, good and bad files of taps, its settings."""

from __future__ import annotations

import json
import re
import signal
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from e2e.mirror import PATIENCE
from e2e.served import WEB, state_of, text, under_load, untorn
from lab import (
    HashSink,
    Lab,
    load,
    until,
)
from lab.daemon import Daemon
from tapmirror.control.messages import List, Status, Stop

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]


def test_a_full_disk_ends_nothing(lab: Lab) -> None:
    fill = "mount -t tmpfs -o size=64k,mode=700 none {0} && dd if=/dev/zero of={0}/filler bs=4k 2>/dev/null; "
    with HashSink(lab.node), HashSink(lab.shadow) as shadow, Daemon(lab.node, start=False) as daemon:
        daemon.state.mkdir(mode=0o700)
        script = fill.format(daemon.state) + 'exec "$@"'
        daemon.start(before=("unshare", "--mount", "--", "sh", "-c", script, "sh"))
        warning = (
            "could not be written: No space left on device; until they are written, a restart undoes this change\n"
        )
        assert daemon.run(*WEB).stderr.endswith(warning)
        facts = daemon.json("status")["daemon"]
        assert facts["state_error"].endswith("the taps could not be written: No space left on device")
        assert facts["state_errors"] >= 1
        assert "error: " in daemon.run("status").stdout
        assert load(lab.client, lab.node.addr4, requests=50, connections=4).failed == 0
        shadow.wait_for(50)
        inside = Path(f"/proc/{daemon.pid}/root{daemon.state}")
        (inside / "filler").unlink()
        assert daemon.run("set", "web", "percent=50").stderr == ""
        assert daemon.json("status")["daemon"]["state_error"] == ""
        assert json.loads((inside / "taps.json").read_bytes())["taps"][0]["spec"]["name"] == "web"


def test_a_state_of_another_version_is_set_aside(lab: Lab) -> None:
    with HashSink(lab.shadow), Daemon(lab.node, start=False) as daemon:
        daemon.state.mkdir(mode=0o700)
        (daemon.state / "taps.json").write_text('{"version": 99, "taps": "of another shape"}')
        daemon.start()
        line = "its version is 99, and this tapmirror reads 1; set aside as taps.json."
        until(lambda: line in daemon.said(), "the line")
        daemon.run(*WEB)
        assert any(path.name.endswith(".unread") for path in daemon.state.iterdir())


BAD: Final = (
    text(seed=5) + "percent: .nan\n",
    text(seed=5) + "seed: 6\n",
    "x0: &x0 [1, 1]\n" + "".join(f"x{i}: &x{i} [*x{i - 1}, *x{i - 1}]\n" for i in range(1, 40)),
    "\xff\xfe",
    text(seed=5) + "limits: {queue_bytes: -1}\n",
)
"""Not a number, a key given twice, a bomb of aliases, not UTF-8, a negative bound."""


def told(daemon: Daemon) -> list[str]:
    """What was said of reloads."""
    return [line for line in daemon.said().splitlines() if "event=reload" in line]


def refused_again(daemon: Daemon, before: int) -> bool:
    return daemon.said().count("the taps that ran before go on") > before


def test_reload_takes_good_files_and_leaves_all_as_it_is_for_a_bad_one(lab: Lab) -> None:
    with Daemon(lab.node, start=False) as daemon, under_load(lab) as (production, shadow, _running):
        (daemon.taps / "web.yaml").write_text(text())
        daemon.start()
        shadow.wait_for(100, PATIENCE)
        (worker,) = daemon.workers()
        for bad in BAD:
            refused, lines = daemon.said().count("the taps that ran before go on"), len(told(daemon))
            (daemon.taps / "bad.yaml").write_bytes(bad.encode("latin-1"))
            daemon.send_signal(signal.SIGHUP)
            until(partial(refused_again, daemon, refused), "the refusal", PATIENCE)
            assert len(told(daemon)) == lines + 1  # each has one thing that is wrong, and it is told once
        assert "bad.yaml" in daemon.ask(Status())["daemon"]["reload_error"]
        assert daemon.workers() == [worker]
        with (daemon.taps / "bad.yaml").open("wb") as file:
            file.truncate(100 << 20)
        assert "longer than 256 KiB" in daemon.run("reload", check=2).stderr
        (daemon.taps / "bad.yaml").write_text("iface: eth0\nport: 80\nshdow: a:1\n")
        asked = daemon.run("reload", check=2).stderr.splitlines()
        assert [line.partition("bad.yaml:")[2] for line in asked] == [
            "1: shadows is missing",
            "3: shdow: no such field of a tap (did you mean shadow?)",
        ]
        (daemon.taps / "bad.yaml").unlink()
        (daemon.taps / "web.yaml").write_text(text() + "---\n" + text("two", "10.77.2.2:81"))
        daemon.send_signal(signal.SIGHUP)
        until(lambda: len(daemon.ask(List())["taps"]) == 2, "the second tap", PATIENCE)
        until(lambda: state_of(daemon, "two") == "running", "the second tap", PATIENCE)
        assert worker in daemon.workers()
        assert daemon.ask(Status())["daemon"]["reload_error"] == ""
        untorn(production, shadow)


@pytest.mark.parametrize("by", ["start", "reload"])
def test_a_tap_of_a_file_waits_for_its_interface(lab: Lab, by: str) -> None:
    with HashSink(lab.shadow), Daemon(lab.node, start=False) as daemon:
        late = text("late").replace("eth0", "late0")
        if by == "start":
            (daemon.taps / "late.yaml").write_text(late)
        daemon.start()
        if by == "reload":
            (daemon.taps / "late.yaml").write_text(late)
            assert daemon.run("reload").stderr == "tapmirror: late waits: no interface late0\n"
        until(lambda: state_of(daemon, "late") in ("restarting", "waiting"), "it waits", PATIENCE)
        assert "late0" in daemon.ask(List())["taps"][0]["state_reason"]
        lab.node.run(["ip", "link", "add", "late0", "type", "veth", "peer", "name", "late1"])
        try:
            lab.node.run(["ip", "link", "set", "late0", "up"])
            until(lambda: state_of(daemon, "late") == "running", "it runs", PATIENCE)
        finally:
            daemon.ask(Stop(all=True))
            lab.node.run(["ip", "link", "del", "late0"])


def test_a_bad_daemon_yaml_is_told_and_nothing_begins(lab: Lab) -> None:
    with Daemon(lab.node, start=False) as daemon:
        (daemon.config / "daemon.yaml").write_text("budget: {cpu: much}\n")
        done = lab.node.run(daemon.words(), check=False)
        assert done.returncode == 2
        assert re.fullmatch(r"tapmirror: error: .*daemon\.yaml:1: budget\.cpu: 'much' is not a number\n", done.stderr)
