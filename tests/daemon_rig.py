# SPDX-License-Identifier: Apache-2.0
"""A daemon with scripted taps, in directories of its own: what its tests share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lab import PATIENCE
from scripted_tap import NoClaims, Script
from tapmirror.spec import TapSpec, parse_shadow
from tapmirror.spec.settings import AllTaps
from tapmirror.supervisor import runner, state
from tapmirror.supervisor.daemon import Daemon
from tapmirror.supervisor.log import Log
from tapmirror.supervisor.permission import RefusedError
from tapmirror.supervisor.places import Places


def tap(name: str, port: int = 0, **more: Any) -> TapSpec:
    shadow = parse_shadow(f"{name}.test:80")
    base: dict[str, Any] = {"iface": "eth0", "ports": (port or 80,), "shadows": (shadow,)}
    return TapSpec(name=name, **{**base, **more})


A, B, C = tap("a"), tap("b"), tap("c")


class Rig:
    """A daemon with scripted taps, in directories of its own; every wait turns its clock."""

    def __init__(self, top: Path, log: Log, said: list[bytes]) -> None:
        self.said = said
        """The lines of the log."""
        self.places = Places(top / "run", top / "state", top / "etc")
        for path in (self.places.runtime, self.places.state, self.places.taps):
            path.mkdir(parents=True)
        self.log = log
        self.script = Script()
        self.daemon: Daemon

    async def begin(self) -> Daemon:
        """A new daemon, as after a restart."""
        self.script = Script()
        self.daemon = Daemon(self.places, self.log, AllTaps(), self.script)
        await self.daemon.restore()
        return self.daemon

    async def until(self, condition: Callable[[], object], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, what
            self.daemon.tick(time.monotonic())
            await asyncio.sleep(0.005)

    async def running(self, *names: str) -> None:
        """Wait until just these capture."""
        await self.until(lambda: self.script.attached() == [*names], f"{names}, not {self.script.attached()}")

    def file(self, name: str, *specs: TapSpec | str) -> None:
        """Write a file of taps."""
        texts = [each if isinstance(each, str) else text(each) for each in specs]
        (self.places.taps / name).write_text("---\n".join(texts))

    def states(self) -> dict[str, str]:
        return {each["name"]: each["state"] for each in self.daemon.roster.told(None, ledger=False)}


def text(spec: TapSpec) -> str:
    return str(msgspec.yaml.encode(spec).decode())


def rigged(top: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """For the fixture `rig`: one that is closed afterwards."""
    monkeypatch.setattr(runner, "Claims", NoClaims)
    monkeypatch.setattr(runner, "INTERVAL", 0.01)
    monkeypatch.setattr(runner, "BACKOFF", (0.01,))
    said: list[bytes] = []
    log = Log(said.append, journal=False)
    yield Rig(top, log, said)
    log.close()


def conversation(test: Callable[[Rig], Awaitable[None]]) -> Callable[[Rig], None]:
    """A test that is a coroutine; at its end everything is stopped."""

    async def whole(rig: Rig) -> None:
        await rig.begin()
        try:
            await test(rig)
        finally:
            await rig.daemon.close()
            assert rig.script.attached() == []

    def run(rig: Rig) -> None:
        asyncio.run(whole(rig))

    run.__name__ = test.__name__
    return run


async def refused(what: Awaitable[object], code: str, words: str) -> None:
    with pytest.raises(RefusedError, match=words) as caught:
        await what
    assert caught.value.code == code


def kept(rig: Rig) -> dict[str, state.Kept]:
    found, problems = state.load(rig.places.state)
    assert problems == []
    return {each.spec.name: each for each in found.taps}


async def at(rig: Rig, step: str) -> None:
    """Wait until a tap is at a step that has a gate."""
    assert await asyncio.to_thread(rig.script.reached[step].wait, PATIENCE)
