# SPDX-License-Identifier: Apache-2.0
"""The daemon's process: who did what is told in words; what it is as a whole is in e2e/test_daemon*.py."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from lab import PATIENCE
from tapmirror import privsep
from tapmirror.control.client import Client, ControlError, NoDaemonError
from tapmirror.control.messages import Apply, List, Set, Start, Stop
from tapmirror.control.server import Peer
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
    assert barred() == {privsep.worker_identity()[0]} - {0, os.geteuid()}
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


def held_while_the_state_is_read(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Set when what was kept on disk begins to be read, and to be set for that to go on."""
    real, reading, go_on = state.load, threading.Event(), threading.Event()

    def load(directory: Path) -> Any:
        reading.set()
        assert go_on.wait(PATIENCE)
        return real(directory)

    monkeypatch.setattr(state, "load", load)
    return reading, go_on


def test_the_kill_switch_is_looked_for_while_the_state_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places(tmp_path / "run", tmp_path / "state", tmp_path / "etc")
    for path in (places.runtime, places.state, places.taps):
        path.mkdir(parents=True)
    reading, go_on = held_while_the_state_is_read(monkeypatch)
    lines: list[bytes] = []
    log = Log(lines.append, journal=False)

    async def said(words: bytes) -> None:
        while not any(words in line for line in lines):
            await asyncio.sleep(0.01)

    async def whole() -> None:
        service = Service(places, log, AllTaps(), "root", None)
        running = asyncio.ensure_future(service.run(None))
        assert await asyncio.to_thread(reading.wait, PATIENCE)
        places.stop_file.touch()
        await asyncio.wait_for(said(b"all capture has ended"), PATIENCE)
        assert not any(b"serving" in line for line in lines)
        go_on.set()
        await asyncio.wait_for(said(b"serving"), PATIENCE)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(running, PATIENCE)

    with signals_kept():
        asyncio.run(whole())
    log.close()


class Manager:
    """In the place of the service manager: what it is told, in order."""

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(path))
        self._sock.setblocking(False)
        self.told: list[str] = []

    def hear(self) -> list[str]:
        """The words of each message, without status and times."""
        with suppress(BlockingIOError):
            while True:
                self.told.append(self._sock.recv(4096).decode().split("\n")[0])
        return [each for each in self.told if not each.startswith("STATUS=")]

    async def until(self, words: list[str]) -> None:
        """Wait until just this was said, but for the watchdog."""
        end = time.monotonic() + PATIENCE
        while [each for each in self.hear() if each != "WATCHDOG=1"] != words:
            assert time.monotonic() < end, f"{self.hear()}, not {words}"
            await asyncio.sleep(0.01)

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
def places(tmp_path: Path) -> Places:
    found = Places(tmp_path / "run", tmp_path / "state", tmp_path / "etc")
    for path in (found.runtime, found.state, found.taps):
        path.mkdir(parents=True)
    return found


def with_service(places: Places, log: Log, talk: Callable[[], Awaitable[None]]) -> None:
    """Run a service while something is done with it."""

    async def whole() -> None:
        running = asyncio.ensure_future(Service(places, log, AllTaps(), "root", None).run(None))
        await talk()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(running, PATIENCE)

    with signals_kept():
        asyncio.run(whole())


def client_of(places: Places) -> Client:
    """Of the service, which may have been started a moment ago."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return Client(places.runtime / "control.sock")
        except NoDaemonError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def test_what_the_service_manager_is_told(places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ready when the taps that were kept are there, and not before; who asks meanwhile waits."""
    manager = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    reading, go_on = held_while_the_state_is_read(monkeypatch)
    log = Log(lambda _: None, journal=False)

    def ask() -> dict[str, Any]:
        with client_of(places) as client:
            return client.ask(List())

    async def talk() -> None:
        assert await asyncio.to_thread(reading.wait, PATIENCE)
        asking = asyncio.ensure_future(asyncio.to_thread(ask))
        await asyncio.sleep(0.5)
        assert not asking.done() and set(manager.hear()) == {"WATCHDOG=1"}, "it is alive, and not ready"
        go_on.set()
        assert await asyncio.wait_for(asking, PATIENCE) == {"taps": []}
        await manager.until(["READY=1"])
        os.kill(os.getpid(), signal.SIGHUP)
        await manager.until(["READY=1", "RELOADING=1", "READY=1"])
        (places.taps / "x.yaml").write_text("{")
        os.kill(os.getpid(), signal.SIGHUP)
        await manager.until(["READY=1", "RELOADING=1", "READY=1", "RELOADING=1", "READY=1"])

    with_service(places, log, talk)
    assert manager.hear()[-1] == "STOPPING=1"
    assert "STATUS=taps: none" in manager.told
    manager.close()
    log.close()


def test_a_daemon_that_hangs_is_not_told_as_alive(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    log = Log(lambda _: None, journal=False)

    async def talk() -> None:
        await manager.until(["READY=1"])
        manager.hear()
        time.sleep(1.0)  # as whatever holds up the loop
        before = len(manager.told)
        manager.hear()
        assert "WATCHDOG=1" not in manager.told[before:]
        end = time.monotonic() + PATIENCE
        while "WATCHDOG=1" not in manager.told[before:]:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
            manager.hear()

    with_service(places, log, talk)
    manager.close()
    log.close()


def test_who_did_what_is_in_the_log_and_attempts_are_counted_apart(places: Places) -> None:
    lines: list[bytes] = []
    log = Log(lines.append, journal=False)

    def ask() -> None:
        with client_of(places) as client:
            for request in (Stop(), Stop(name="web", all=True)):
                with pytest.raises(ControlError, match="name: give a name or all"):
                    client.ask(request)
            for _ in range(30):  # of what changes nothing there may be any number
                client.ask(Apply(taps=[], dry_run=True))
            client.ask(Apply(taps=[]))
            client.ask(List())

    async def talk() -> None:
        await asyncio.wait_for(asyncio.to_thread(ask), PATIENCE)

    with_service(places, log, talk)
    log.close()
    audit = [line.decode() for line in lines if b"event=audit" in line]
    own = f"user=root uid=0 pid={os.getpid()}"
    assert f'bad_request: name: give a name or all" {own} op=stop\n' in audit[0]
    assert any(line.endswith(f'msg=done {own} op=apply taps=""\n') for line in audit)
    assert len(audit) < 25 and not any("op=list" in line for line in audit)


def test_a_comparison_that_is_too_long_is_no_report(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    async def comparison(_daemon: Daemon, _name: str) -> tuple[TapSpec, bytes]:
        return SPEC, b"x" * 101

    monkeypatch.setattr(Daemon, "comparison", comparison)
    monkeypatch.setattr(module, "MAX_REPORT", 100)
    log = Log(lambda _: None, journal=False)

    def ask() -> None:
        with (
            client_of(places) as client,
            pytest.raises(ControlError, match="101 bytes, more than a report may have"),
        ):
            client.report("web")

    async def talk() -> None:
        await asyncio.wait_for(asyncio.to_thread(ask), PATIENCE)

    with_service(places, log, talk)
    log.close()
