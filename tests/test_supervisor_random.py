# SPDX-License-Identifier: Apache-2.0
"""Random requests to a daemon, many at a time, while taps fail, hang and die, files change, the disk is full and the
kill switch comes and goes: each is answered, no tap captures twice, and in the end what runs, what is on disk and what
a restart begins are the same, and nothing else stays behind.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from daemon_rig import text
from lab import PATIENCE, until
from scripted_tap import Script, ScriptedTap
from tapmirror.control.messages import ProtocolError, read_request, write_error, write_reply
from tapmirror.control.server import Peer
from tapmirror.spec import TapSpec
from tapmirror.spec.settings import AllTaps
from tapmirror.supervisor import persistence, runner, state
from tapmirror.supervisor.claims import ClaimedError
from tapmirror.supervisor.daemon import Daemon
from tapmirror.supervisor.durable import replace
from tapmirror.supervisor.log import Log
from tapmirror.supervisor.places import Places
from tapmirror.supervisor.serve import Service
from tapmirror.supervisor.workers import TapError

SEEDS: Final = 60
"""A failure names its seed, which does not repeat the order in which threads run: try it some times."""
NAMES: Final = ("a", "b", "c", "d")
ROOT: Final = Peer(1, 0, 0, (), may_change=True)
LOOP: Final = "it came back"
REQUESTS: Final = {
    "start": 14,
    "apply": 6,
    "stop": 5,
    "stop all": 1,
    "set": 5,
    "pause": 5,
    "resume": 5,
    "reload": 6,
    "status": 2,
    "list": 1,
    "logs": 1,
    "report": 2,
    "bad": 2,
}
BAD: Final = (
    *(b"", b"{", b"[]", b"\xff", b"[" * 5000, b'{"v":2}', b'{"v":1,"op":"x"}', b'{"v":1,"op":"stop"}'),
    *(
        b'{"v":1,"op":"set","name":"a","percent":1e999}',
        b'{"v":1,"op":"start","taps":[]}',
        b'{"v":1,"op":"list","id":"\\u0000"}',
    ),
)
FILES: Final = ("a: [", "iface: eth0", "\0", "", "taps: 5", "- 1", r'"\ud800"')


class FakeClaims:
    """In the place of `Claims`, so that tests that run at the same time do not meet."""

    held: Final[dict[tuple[int, str], str]] = {}

    def __init__(self, spec: TapSpec) -> None:
        self._mine = [(spec.ports[0], shadow.end_point) for shadow in spec.shadows]
        for place in self._mine:
            if self.held.setdefault(place, spec.name) != spec.name:
                self._mine = []
                raise ClaimedError(f"{self.held[place]} has it")

    def close(self) -> None:
        for place in self._mine:
            self.held.pop(place)


class Troubled(Script):
    """Steps of taps that fail, take their time, or wait for the gate, at random."""

    def __init__(self, rand: random.Random) -> None:
        super().__init__()
        self.rand = rand
        self.failing = self.slow = 0.0
        self.gate_of_all = threading.Event()
        self.problems: list[str] = []
        self.calm()

    def calm(self) -> None:
        """From here on all goes well."""
        self.failing = self.slow = 0.0
        self.loops = ""
        self.gate_of_all.set()

    def step(self, name: str) -> None:
        chance = self.rand.random()
        if chance < self.slow:
            time.sleep(chance * 0.02)
        elif chance < self.slow * 1.2:
            self.gate_of_all.wait(PATIENCE)
        super().step(name)
        if self.rand.random() < self.failing:
            raise self.rand.choice((TapError("failed"), OSError(errno.EMFILE, "too many"), MemoryError(), ValueError()))

    def __call__(self, spec: TapSpec, warn: Any, said: Any, *, wait_for_interface: bool) -> Any:
        self.taps.append(OnlyOne(spec, warn, wait_for_interface, self))
        return self.taps[-1]


class OnlyOne(ScriptedTap):
    """Tells when a second one of its name captures."""

    def start(self) -> None:
        super().start()
        script = self._script
        assert isinstance(script, Troubled)
        if self.attached and script.attached().count(self.spec.name) > 1:
            script.problems.append(f"{self.spec.name} captures twice")


class Call:
    """In the place of `control.server.Call`."""

    def __init__(self, line: bytes, request: Any) -> None:
        self.peer = ROOT
        self.line = line
        self.request = request
        self.replies: list[bytes] = []

    def answer(self, result: dict[str, Any], descriptor: int | None = None) -> None:
        self.replies.append(write_reply(self.request.id, result))
        if descriptor is not None:
            os.close(descriptor)

    def refuse(self, code: str, message: str, problems: Any = ()) -> None:
        self.replies.append(write_error(self.request.id, code, message, problems))


class World:
    """A daemon in directories of its own, who asks it, and what happens to it."""

    def __init__(self, seed: int, top: Path, disk: list[bool]) -> None:
        self.rand = random.Random(seed)
        self.places = Places(top / "run", top / "state", top / "etc")
        for path in (self.places.runtime, self.places.state, self.places.taps):
            path.mkdir(parents=True)
        self.disk = disk
        """Whether it is full."""
        self.said: list[bytes] = []
        self.log = Log(self.said.append, journal=False)
        self.calls: list[tuple[Call, asyncio.Task[None]]] = []
        self.events: tuple[Callable[[], None], ...] = (
            *(self.files, self.files, self.lost, self.lost, self.kill_switch),
            *(self.gate, self.loop, self.fill_disk, self.reload, self.clock),
        )

    def run(self) -> None:
        threads = threading.active_count()
        descriptors = len(os.listdir("/proc/self/fd"))
        try:
            asyncio.run(self.live())
        finally:
            self.log.close()
        until(lambda: threading.active_count() <= threads, "no thread is left")
        assert len(os.listdir("/proc/self/fd")) <= descriptors, "descriptors are left"
        assert not FakeClaims.held, "claims are left"
        assert not [line for line in self.said if b"event=internal" in line]

    async def live(self) -> None:
        await self.begin()
        try:
            for _ in range(self.rand.randint(1, 3)):
                self.script.failing = self.rand.choice((0.0, 0.0, 0.02, 0.2))
                self.script.slow = self.rand.choice((0.0, 0.1, 0.5))
                for _ in range(self.rand.choice((3, 10, 40))):
                    self.rand.choice((self.ask, self.ask, self.ask, self.rand.choice(self.events)))()
                    await asyncio.sleep(self.rand.choice((0, 0, 0, 0.002, 0.01)))
                await self.settle()
                if self.rand.random() < 0.6:
                    await self.restart()
        finally:
            await self.end()

    # --- the daemon

    async def begin(self) -> None:
        self.script = Troubled(self.rand)
        self.service = Service(self.places, self.log, AllTaps(), "", None)
        self.daemon = self.service._daemon = Daemon(self.places, self.log, AllTaps(), self.script)
        await self.daemon.restore()
        self.service._restored.set()
        self.ticks = asyncio.create_task(self.tick())

    async def tick(self) -> None:
        while True:
            self.daemon.roster.look_for_stop()
            self.daemon.tick(time.monotonic())
            assert not self.script.problems
            await asyncio.sleep(0.003)

    async def end(self) -> None:
        self.script.calm()
        self.ticks.cancel()
        await asyncio.wait_for(self.daemon.close(), PATIENCE)
        assert all(tap.closed for tap in self.script.taps), "a tap is left open"

    async def settle(self) -> None:
        """All is well again: each request is answered once, and what there is is the same everywhere."""
        self.script.calm()
        self.disk[0] = False
        for call, task in self.calls:
            await asyncio.wait_for(task, PATIENCE)
            assert len(call.replies) == 1, f"{call.line!r} has {len(call.replies)} replies"
        self.calls.clear()
        if self.places.stop_file.exists():
            await self.soon(lambda: "" if self.daemon.roster.killed and not self.script.attached() else "it captures")
            self.places.stop_file.unlink()
        await self.soon(self.amiss)
        kept, problems = state.load(self.places.state)
        entries = self.daemon.roster.taps
        on_disk = {each.spec.name: (each.spec, each.paused, each.origin) for each in kept.taps}
        assert not problems
        assert {name: (entry.written, entry.paused, entry.origin) for name, entry in entries.items()} == on_disk

    async def soon(self, amiss: Callable[[], str]) -> None:
        """Wait until nothing is amiss, at some looks in a row."""
        end = time.monotonic() + PATIENCE
        well = 0
        while well < 3:
            await asyncio.sleep(0.004)
            if self.ticks.done():
                self.ticks.result()
            found = amiss()
            well = 0 if found else well + 1
            assert time.monotonic() < end, f"{found}: {self.daemon.roster.told(None, ledger=False)}"

    def amiss(self) -> str:
        """What is under way, or is not what it is said to be."""
        entries = self.daemon.roster.taps
        if self.daemon._tasks or self.daemon.persistence._dirty or self.daemon.roster.killed:
            return "something is to be done"
        if any(entry.ends is not None for entry in entries.values()):
            return "a time is not over"
        for name, entry in entries.items():
            found = entry.runner.state
            if found != ("failed", LOOP) and found[0] != ("paused" if entry.paused else "running"):
                return f"{name} is {found}"
        there = sorted(tap.spec.name for tap in self.script.taps if not tap.closed)
        if there != sorted(set(FakeClaims.held.values())) or not set(there) <= entries.keys():
            return f"{there} are open, and claimed is {FakeClaims.held}"
        running = {name for name, entry in entries.items() if entry.runner.state[0] == "running"}
        if not running <= {*self.script.attached()} <= {*there}:
            return f"{running} run, and {self.script.attached()} capture"
        return ""

    async def restart(self) -> None:
        """What was started by command is there again, as it was; of a daemon that was killed, too."""
        before = self.commands()
        kept = self.places.state / state.NAME
        killed = kept.read_bytes() if self.rand.random() < 0.5 and kept.exists() else None
        await self.end()
        if killed is not None:
            kept.write_bytes(killed)
        await self.begin()
        await self.soon(self.amiss)
        assert self.commands() == before

    def commands(self) -> dict[str, tuple[float, bool]]:
        entries = self.daemon.roster.taps
        return {name: (entry.spec.percent, entry.paused) for name, entry in entries.items() if not entry.origin}

    # --- who asks

    def tap(self) -> dict[str, Any]:
        pick = self.rand.choice
        name = pick(NAMES)
        host, ports = pick((*[name] * 9, "x")), [pick((*[80] * 8, 22))]
        shadow = {"host": f"{host}.test", "port": pick((80, 81))}
        tap = {"name": name, "iface": pick((*["eth0"] * 8, "any")), "ports": ports, "shadows": [shadow]}
        some = (
            {"percent": pick((0, 5, 100.0))},
            {"ramp": {"from": 0, "to": 9, "over": 3}},
            {"ttl": pick((0.01, 0.05))},
        )
        more = pick(({}, {}, {}, {"compare": {"level": "status"}}, *some))
        return {**tap, "protocol": "http", **more}

    def line(self) -> bytes:
        pick = self.rand.choice
        (op,) = self.rand.choices([*REQUESTS], [*REQUESTS.values()])
        if op == "bad":
            return pick(BAD)
        name = {"name": pick((*NAMES, "a", "b", "nobody"))}
        taps = {"taps": [self.tap() for _ in range(pick((1, 1, 2, 3)))], "force": pick((True, False))}
        fields: dict[str, Any] = {
            "start": taps,
            "apply": {**taps, "dry_run": self.rand.random() < 0.2},
            "stop all": {"op": "stop", "all": True},
            "set": {**name, "percent": pick((0, 1, 50, 100, 101, -1, 1e-9, 1e300))},
            "status": pick((name, {})),
        }
        plain = name if op in ("stop", "pause", "resume", "logs", "report") else {}
        return json.dumps({"v": 1, "id": 7, "op": op, **fields.get(op, plain)}).encode()

    def ask(self) -> None:
        line = self.line()
        try:
            call = Call(line, read_request(line))
        except ProtocolError as error:
            write_error(error.id, error.code, str(error))
            return
        self.calls.append((call, asyncio.create_task(self.service._answer(call))))  # type: ignore[arg-type]

    # --- what happens

    def files(self) -> None:
        for path in self.places.taps.iterdir():
            if self.rand.random() < 0.5:
                path.unlink()
        for name in self.rand.sample(("1.yaml", "2.yml", ".x.yaml", "3.txt"), 2):
            texts = [text(msgspec.convert(self.tap(), TapSpec)) for _ in range(self.rand.choice((1, 2)))]
            if self.rand.random() < 0.15:
                texts.append(self.rand.choice(FILES))
            (self.places.taps / name).write_text("---\n".join(texts))

    def lost(self) -> None:
        """A tap's workers all die."""
        taps = [tap for tap in self.script.taps if tap.attached]
        if taps:
            tap = self.rand.choice(taps)
            tap.attached = False
            tap.detached.set()

    def kill_switch(self) -> None:
        if self.places.stop_file.exists():
            self.places.stop_file.unlink()
        elif self.rand.random() < 0.5:
            self.places.stop_file.touch()

    def gate(self) -> None:
        gate = self.script.gate_of_all
        (gate.clear if gate.is_set() else gate.set)()

    def loop(self) -> None:
        self.script.loops = self.rand.choice(("", "", LOOP))

    def fill_disk(self) -> None:
        self.disk[0] = not self.disk[0]

    def reload(self) -> None:
        call = Call(b"SIGHUP", None)
        call.replies.append(b"none is due")
        self.calls.append((call, asyncio.create_task(self.service._reload_by_signal())))

    def clock(self) -> None:
        """The wall clock is set."""
        self.daemon._ahead += self.rand.choice((-5.0, 5.0, 1e5))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """A disk that may be full; and what would wait for seconds does not."""
    full = [False]

    def on_disk(path: Path, beside: Path, data: bytes) -> None:
        if full[0]:
            beside.write_bytes(data[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(path, beside, data)

    monkeypatch.setattr(state, "replace", on_disk)
    monkeypatch.setattr(runner, "Claims", FakeClaims)
    monkeypatch.setattr(runner, "INTERVAL", 0.005)
    monkeypatch.setattr(runner, "BACKOFF", (0.002, 0.005))
    monkeypatch.setattr(persistence, "AGAIN", 0.02)
    yield full
    FakeClaims.held.clear()


@pytest.mark.parametrize("first", range(0, SEEDS, 20))
def test_each_is_answered_and_in_the_end_all_is_as_it_is_said_to_be(
    first: int, tmp_path: Path, disk: list[bool]
) -> None:
    for seed in range(first, first + 20):
        try:
            World(seed, tmp_path / str(seed), disk).run()
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
