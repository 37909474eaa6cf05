# SPDX-License-Identifier: Apache-2.0
"""The daemon's own end, and what else wants its place or its memory."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest

from e2e.mirror import PATIENCE
from e2e.served import SHADOW, WEB, attached, state_of, states_of, text, under_load, untorn, web
from lab import (
    HashSink,
    Lab,
    LabError,
    Load,
    LoadPlan,
    Nginx,
    Snapshot,
    Tap,
    identity,
    load,
    unchanged,
    until,
)
from lab.daemon import Daemon
from lab.scarce import Scarce
from tapmirror.control.messages import List, Start, Stop

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]


def all_gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}/exe").exists() for pid in pids)


@pytest.mark.alone
def test_killed_it_leaves_nothing_and_comes_back_as_it_was(lab: Lab) -> None:
    before = Snapshot.of(lab.node)
    with Daemon(lab.node) as daemon, under_load(lab) as (production, shadow, _running):
        daemon.run(*WEB)
        daemon.run("start", "--name=held", "--iface=eth0", "--port=81", f"--shadow={SHADOW}")
        daemon.run("pause", "held")
        (daemon.taps / "file.yaml").write_text(text("file", "10.77.2.2:82"))
        daemon.run("reload")
        shadow.wait_for(100, PATIENCE)
        left = daemon.workers()
        assert len(left) == 3
        for _ in range(2):
            daemon.kill()
            unchanged(lab.node, before)
            until(partial(all_gone, left), "the workers' end", PATIENCE)
            count = len(shadow.got)
            daemon.start()
            until(lambda: states_of(daemon) == {"file": "running", "held": "paused", "web": "running"}, "all", PATIENCE)
            shadow.wait_for(count + 200, PATIENCE)
            left = daemon.workers()
        assert len(daemon.ask(Stop(all=True))["stopped"]) == 3
        untorn(production, shadow)
        daemon.kill()
        daemon.start()
        assert [tap["name"] for tap in daemon.ask(List())["taps"]] == []


def test_sigterm_drains_and_keeps_the_taps(lab: Lab) -> None:
    with HashSink(lab.node), HashSink(lab.shadow) as shadow, Daemon(lab.node) as daemon:
        daemon.run(*WEB)
        assert load(lab.client, lab.node.addr4, requests=200, connections=4).failed == 0
        assert daemon.stop() == 0
        shadow.wait_for(200)
        assert attached(lab.node) == []
        assert not daemon.socket.exists()
        assert "Traceback" not in daemon.said()
        daemon.start()
        until(lambda: state_of(daemon) == "running", "it is back")


@pytest.mark.parametrize("shared", ["runtime", "state"])
def test_a_second_daemon_is_refused(lab: Lab, shared: str) -> None:
    with Daemon(lab.node) as daemon, Daemon(lab.node, start=False) as second:
        setattr(second, shared, getattr(daemon, shared))
        done = lab.node.run(second.words(), check=False)
        assert done.returncode == 2
        assert f": a daemon (pid {daemon.pid}) runs with it already\n" in done.stderr
        assert "Traceback" not in done.stderr
        assert daemon.ask(List()) == {"taps": []}


def test_the_same_tap_of_another_daemon_or_run_is_refused(lab: Lab) -> None:
    with HashSink(lab.node), HashSink(lab.shadow) as shadow, Daemon(lab.node) as daemon, Daemon(lab.node) as second:
        daemon.run(*WEB)
        line = f"is mirrored to {SHADOW} already, by the process {daemon.pid}"
        assert line in second.run(*WEB, check=2).stderr
        with pytest.raises(LabError, match=re.escape(line)):
            Tap(lab.node, shadow=SHADOW)
        assert load(lab.client, lab.node.addr4, requests=50, connections=4).failed == 0
        shadow.wait_for(50)
        daemon.run("stop", "web")
        assert len(shadow.got) == 50
        second.run(*WEB)


def test_where_memory_runs_out_a_worker_is_the_victim_and_production_is_not(lab: Lab) -> None:
    """Of all in one control group: production, the daemon, a neighbour who takes more than there is, and the worker."""
    with (
        Nginx(lab.node) as production,
        Nginx(lab.shadow) as shadow,
        Scarce() as group,
        Daemon(lab.node, start=False) as daemon,
    ):
        daemon.start(before=group.before())
        group.take(production.processes())
        daemon.ask(Start(taps=[web()]))
        running = Load(lab.client, LoadPlan(address=lab.node.addr4, requests=10**9, connections=10, rate=500))
        shadow.wait_for(200, PATIENCE)
        (worker,) = daemon.workers()
        others = {*daemon.processes(), *production.processes()} - {worker}
        group.run_out([*others, worker])
        until(lambda: worker not in daemon.processes(), "the worker's end")
        assert others <= {*daemon.processes(), *production.processes()}
        count = shadow.requests()
        shadow.wait_for(count + 200, PATIENCE)
        assert running.stop().failed == 0
        (done,) = daemon.ask(Stop(all=True))["stopped"]
    identity(done["ledger"])
    assert done["ledger"]["worker"]["restarts"] == 1
