# SPDX-License-Identifier: Apache-2.0
"""The daemon's process: who did what is told in words; what it is as a whole is in e2e/test_daemon.py."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tapmirror.control import Peer
from tapmirror.control.messages import Apply, Set, Start, Stop
from tapmirror.spec import TapSpec, parse_shadow
from tapmirror.spec.settings import AllTaps
from tapmirror.supervisor import serve as module
from tapmirror.supervisor import state
from tapmirror.supervisor.daemon import Daemon
from tapmirror.supervisor.log import Log
from tapmirror.supervisor.places import PlaceError, Places
from tapmirror.supervisor.serve import Service, barred, group_id, serve, summary, what, who

SPEC = TapSpec(iface="eth0", ports=(80,), shadows=(parse_shadow("a:1"),), name="web")


def test_who_and_what_for_the_log() -> None:
    assert who(Peer(7, 0, 0, (), may_change=True)) == {"user": "root", "uid": 0, "pid": 7}
    assert who(Peer(7, 4001, 0, (), may_change=False)) == {"user": "4001", "uid": 4001, "pid": 7}
    assert what(Start(taps=[SPEC, SPEC])) == {"op": "start", "taps": "web,web"}
    assert what(Stop(all=True)) == {"op": "stop", "all": True}
    assert what(Set(name="web", percent=0.0)) == {"op": "set", "name": "web", "percent": 0.0}
    assert what(Apply(taps=[], dry_run=True, force=True)) == {"op": "apply", "dry_run": True, "force": True, "taps": ""}


def test_a_plan_in_a_line() -> None:
    plan = [{"action": action} for action in ("add", "keep", "add")]
    assert summary({"plan": plan, "failed": {}}) == "2 add, 1 keep"
    assert summary({"plan": [], "failed": {"web": "why"}}) == "no taps; web FAILED: why"


def test_the_workers_user_is_turned_away_and_we_are_not() -> None:
    assert 0 not in barred() and os.geteuid() not in barred()
    assert group_id("root") == 0 and group_id("no-such-group") is None


def test_without_the_bounds_that_it_is_to_have_it_does_not_begin(tmp_path: Path) -> None:
    places = Places(tmp_path / "run", tmp_path / "state", tmp_path / "etc")
    places.config.mkdir()
    places.settings.write_text("budget: {cpu: none}\n")
    log = Log(lambda _: None, journal=False)
    with pytest.raises(PlaceError, match=r"daemon\.yaml:1: budget\.cpu: 'none' is not a number"):
        serve(places, log)
    log.close()
    assert not places.runtime.exists()


@contextmanager
def signals_kept() -> Iterator[None]:
    """What is done on the signals of a daemon is afterwards what it was before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_bounds_count_also_where_a_file_of_taps_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The taps that were kept run then."""
    places = Places(tmp_path / "run", tmp_path / "state", tmp_path / "etc")
    places.taps.mkdir(parents=True)
    places.settings.write_text("budget: {cpu: 1}\n")
    (places.taps / "x.yaml").write_text("name: x\nport: 99999\n")
    made: list[Daemon] = []

    class Watched(Daemon):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    def end(line: bytes) -> None:
        if b"serving" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(module, "Daemon", Watched)
    log = Log(end, journal=False)
    with signals_kept():
        serve(places, log, "root")
    log.close()
    assert "x.yaml" in made[0].reload_error
    assert made[0].together.told()["budget"] == {"cpu": 1.0}


def test_the_kill_switch_is_looked_for_while_the_state_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places(tmp_path / "run", tmp_path / "state", tmp_path / "etc")
    for path in (places.runtime, places.state, places.taps):
        path.mkdir(parents=True)
    real, reading, go_on = state.load, threading.Event(), threading.Event()

    def load(directory: Path) -> Any:
        reading.set()
        assert go_on.wait(10)
        return real(directory)

    monkeypatch.setattr(state, "load", load)
    lines: list[bytes] = []
    log = Log(lines.append, journal=False)

    async def said(words: bytes) -> None:
        while not any(words in line for line in lines):
            await asyncio.sleep(0.01)

    async def whole() -> None:
        service = Service(places, log, AllTaps(), "root", None)
        running = asyncio.ensure_future(service.run(None))
        assert await asyncio.to_thread(reading.wait, 10)
        places.stop_file.touch()
        await asyncio.wait_for(said(b"all capture has ended"), 10)
        assert not any(b"serving" in line for line in lines)
        go_on.set()
        await asyncio.wait_for(said(b"serving"), 10)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(running, 10)

    with signals_kept():
        asyncio.run(whole())
    log.close()
