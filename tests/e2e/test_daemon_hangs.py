# SPDX-License-Identifier: Apache-2.0
"""The kill switch, and workers that hang or chatter: none of them holds up anything else."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Final

import pytest

from e2e.mirror import PATIENCE, ROOM
from e2e.served import WEB, attached, state_of, under_load, untorn, web
from lab import (
    Lab,
    Snapshot,
    identity,
    open_to_all,
    unchanged,
    until,
)
from lab.daemon import Daemon
from tapmirror.control.client import Client
from tapmirror.control.messages import List, Set, Start, Status, Stop
from tapmirror.spec import Hook, Limits, Protocol, parse_shadow
from tapmirror.supervisor.workers import REPLY_TIME

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]


@pytest.mark.alone
@pytest.mark.parametrize("switch", ["file", "command"])
def test_the_kill_switch_waits_for_nothing_that_hangs(lab: Lab, switch: str) -> None:
    before = Snapshot.of(lab.node)
    with Daemon(lab.node) as daemon, under_load(lab) as (production, shadow, _running):
        soon = Limits(drain_time=0.5)
        daemon.ask(Start(taps=[web("a", limits=soon), web("b", limits=soon, shadows=(parse_shadow("10.77.2.2:81"),))]))
        shadow.wait_for(50, PATIENCE)
        hangs = daemon.workers()[0]
        os.kill(hangs, signal.SIGSTOP)
        try:
            began = time.monotonic()
            stopping = threading.Thread(target=daemon.ask, args=(Stop(all=True),))
            if switch == "file":
                (daemon.runtime / "STOP").touch()
            else:
                stopping.start()
            until(lambda: attached(lab.node) == [], "all capture has ended")
            assert time.monotonic() - began < REPLY_TIME, "the time that a worker is given"
            unchanged(lab.node, before)
            if switch == "file":
                assert "kill switch is on" in daemon.refusal(Start(taps=[web("c", ports=(82,))])).args[0]
                assert "KILL SWITCH" in daemon.run("status").stdout
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(hangs, signal.SIGCONT)
        if switch == "file":
            until(lambda: {state_of(daemon, "a"), state_of(daemon, "b")} == {"paused"}, "held", PATIENCE)
            (daemon.runtime / "STOP").unlink()
            count = len(shadow.got)
            shadow.wait_for(count + 100, PATIENCE)
        else:
            stopping.join(PATIENCE)
            assert daemon.ask(List())["taps"] == []
        untorn(production, shadow)


def test_a_worker_that_hangs_holds_up_its_own_tap_alone(lab: Lab) -> None:
    with Daemon(lab.node) as daemon, under_load(lab) as (_production, shadow, _running):
        daemon.ask(Start(taps=[web("hangs", shadows=(parse_shadow("10.77.2.2:81"),))]))
        (hangs,) = daemon.workers()
        os.kill(hangs, signal.SIGSTOP)
        try:
            daemon.run(*WEB)
            count = len(shadow.got)
            shadow.wait_for(count + 200, PATIENCE)
            daemon.ask(Set(name="web", percent=50.0))
            with Client(daemon.socket) as client:
                for _ in range(100):
                    began = time.monotonic()
                    client.ask(Status())
                    assert time.monotonic() - began < REPLY_TIME, "the time that a worker is given"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(hangs, signal.SIGCONT)


CHATTY: Final = """
def change(request):
    print("\\x1b[2J\\r" + request.target)
    return request
"""


def test_a_worker_that_prints_for_each_request_is_heard_seldom_and_waits_for_nobody(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook prints what the network sends: long, and with control characters before it."""
    open_to_all(tmp_path)
    (tmp_path / "chatty.py").write_text(CHATTY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        Daemon(lab.node) as daemon,
        under_load(lab, paths=("/" + "x" * 8000,), connections=4) as (production, shadow, _running),
    ):
        began = time.monotonic()
        chatty = web(hook=Hook(call="chatty:change"), protocol=Protocol.HTTP, limits=Limits(**ROOM))
        daemon.ask(Start(taps=[chatty]))
        shadow.wait_for(500, PATIENCE)
        daemon.send_signal(signal.SIGSTOP)  # nobody reads what it prints
        try:
            count = len(shadow.got)
            shadow.wait_for(count + 500, PATIENCE)
        finally:
            daemon.send_signal(signal.SIGCONT)
        count = len(shadow.got)
        shadow.wait_for(count + 500, PATIENCE)
        (done,) = daemon.ask(Stop(all=True))["stopped"]
        took = time.monotonic() - began
        identity(done["ledger"])
        assert not done["ledger"]["requests"]["dropped"].keys() - {"midstream"}
        untorn(production, shadow)
        said = [line for line in daemon.said().splitlines() if "event=worker_said" in line]
    assert 0 < len(said) <= 10 * (took + 1)
    assert "\\\\x1b[2J\\\\r/xxx" in said[0] and "\x1b" not in "".join(said)
    assert any("lines before it were held back" in line for line in said)
    assert max(map(len, said)) < 700
