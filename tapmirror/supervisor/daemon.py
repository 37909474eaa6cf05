# SPDX-License-Identifier: Apache-2.0
"""The set of taps of a daemon: what is started, stopped, changed, kept on disk and held by the kill switch.

Runs in one asyncio loop and never waits in it: taps have threads of their own, files are read and written in others.
So whatever a tap, a disk or a resolver does, the kill switch and the control socket are served.

Taps have two origins.  Those of files are made equal to the files at the start and on reload; those of commands are
what `start`, `apply` and `stop` are about.  Neither touches the other, but for `stop`, which stops any.

What adds taps (`start`, `apply`, `reload`) is done one after the other; what stops them waits for nothing, so whatever
adds looks again after each wait at what was stopped meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from tapmirror.control.messages import MAX_TAPS
from tapmirror.spec import SpecError, TapSpec
from tapmirror.supervisor import folder, state
from tapmirror.supervisor.log import Level, Log
from tapmirror.supervisor.places import Places
from tapmirror.supervisor.plan import Action, Step, conflict, different, needs_force, plan
from tapmirror.supervisor.runner import PAUSED, EndedError, Make, Runner, with_share
from tapmirror.supervisor.tap import Tap
from tapmirror.supervisor.workers import TapError

LOADERS: Final = 2
"""Taps that start at a time: each compiles for a second, in 150 MB."""
SAVE_AGAIN: Final = 10.0
"""Seconds between two attempts to write what could not be written."""


class RefusedError(Exception):
    """A request is not done; `code` is one of the protocol's, the message one line for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Entry:
    """One tap."""

    def __init__(self, runner: Runner, written: TapSpec, origin: str, *, paused: bool, ends: float | None) -> None:
        self.runner = runner
        self.written = written
        """Its spec as it came; the runner's has the share that was set since."""
        self.origin = origin
        """The file that it came from; empty: a command."""
        self.paused = paused
        self.ends = ends
        """When its `ttl` is over, on the monotonic clock."""
        self.accepted = False
        """It is kept on disk."""
        self.leaving = False
        self.unwanted = False
        """It was stopped or removed: nothing is to follow it, and it is kept on disk no more."""

    @property
    def spec(self) -> TapSpec:
        """As it runs."""
        return self.runner.spec

    def told(self, *, ledger: bool) -> dict[str, Any]:
        """As an answer has it."""
        spec = self.spec
        now, reason = self.runner.state
        return {
            "name": spec.name,
            "state": now,
            "state_reason": reason,
            "percent": spec.percent,
            "by": spec.by.value,
            "iface": spec.iface,
            "ports": list(spec.ports),
            "addrs": list(spec.addrs),
            "shadows": [shadow.end_point for shadow in spec.shadows],
            "origin": self.origin,
            "since": self.runner.since,
            "ends_in": None if self.ends is None else max(0.0, round(self.ends - time.monotonic(), 1)),
            "losses": self.runner.losses,
            **({"ledger": self.runner.ledger} if ledger else {}),
        }


class Daemon:
    """Use it within one running loop.  Call `tick` several times a second."""

    def __init__(self, places: Places, log: Log, make: Make = Tap) -> None:
        self.places = places
        self.killed = False
        """The file STOP is there."""
        self.state_error = ""
        """Why the taps could not be written to disk, if so."""
        self.state_errors = 0
        self.reload_error = ""
        """Why the files were not taken at the last reload, if so."""
        self._log = log
        self._make = make
        self._taps: dict[str, Entry] = {}
        self._replaced: dict[str, Entry] = {}
        """Those that are being restarted: kept on disk as they were until what follows them runs."""
        self._changing = asyncio.Lock()
        """Held by what adds taps."""
        self._closing = False
        self._stopped: set[str] = set()
        self._stops = 0
        """How often all was stopped by command."""
        self._loaders = threading.Semaphore(LOADERS)
        self._dirty = False
        self._save_at = 0.0
        self._saving = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- looking

    def told(self, name: str | None, *, ledger: bool) -> list[dict[str, Any]]:
        """The taps, or one, as an answer has them.  Raises `RefusedError`."""
        chosen = [self._entry(name)] if name is not None else [self._taps[n] for n in sorted(self._taps)]
        return [entry.told(ledger=ledger) for entry in chosen]

    def _entry(self, name: str) -> Entry:
        if name not in self._taps:
            there = ", ".join(sorted(self._taps)[:10]) or "none"
            raise RefusedError("not_found", f"no tap has the name {name!r} (there are: {there})")
        return self._taps[name]

    def specs(self) -> list[TapSpec]:
        """Of the taps that are to run."""
        return [entry.spec for entry in self._taps.values() if not entry.leaving]

    def summary(self) -> str:
        """All in a line."""
        states = [entry.runner.state[0] for entry in self._taps.values()]
        counts = ", ".join(f"{states.count(name)} {name}" for name in dict.fromkeys(states))
        return f"{'KILL SWITCH; ' if self.killed else ''}taps: {counts or 'none'}"

    def snapshots(self) -> list[dict[str, Any]]:
        """The last ledger of each tap, for the metrics; any thread may ask."""
        found = []
        for name, entry in [*self._taps.items()]:
            found.append({**(entry.runner.ledger or {"tap": name}), "state": entry.runner.state[0]})
        return found

    # --- beginning and end

    async def restore(self) -> None:
        """Start what was kept and what the files say; what is wrong is told, and stops nothing."""
        kept, problems = await asyncio.to_thread(state.load, self.places.state)
        for problem in problems:
            self._log.say(Level.ERROR, "state", problem)
        self._stopped = set(kept.stopped)
        commands = [each for each in kept.taps if not each.origin]
        files = {each.spec.name: each for each in kept.taps if each.origin}
        try:
            found = await self._read_files([each.spec for each in commands], ())
        except RefusedError as error:
            self._log.say(Level.ERROR, "reload", f"{error}; the taps that ran before go on")
        else:
            self._stopped &= found.keys()
            files = {
                name: _as_kept(files.get(name), file, spec)
                for name, (file, spec) in found.items()
                if name not in self._stopped
            }
        self.look_for_stop()
        for each in (*commands, *files.values()):
            self._restore(each)
        self._later(self._save())  # a disk that hangs holds up no start

    def _restore(self, kept: state.Kept) -> None:
        if kept.spec.name in self._taps:
            self._log.say(Level.ERROR, "state", "it is kept twice: the second is left out", tap=kept.spec.name)
            return
        left = None if kept.ends_at is None else kept.ends_at - time.time()
        if left is not None and left <= 0:
            self._log.say(Level.NOTICE, "ttl", "its time was over while no daemon ran", tap=kept.spec.name)
            if kept.origin:
                self._stopped.add(kept.spec.name)
            return
        spec = kept.spec
        if kept.percent is not None:
            spec = with_share(spec, kept.percent)
        self._add(spec, kept.origin, written=kept.spec, paused=kept.paused, ttl=left, accepted=True)

    async def close(self) -> None:
        """Stop all, and keep on disk that they are to run."""
        self._closing = True
        await self._ended([*self._taps.values()])
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- requests

    async def start(self, specs: Sequence[TapSpec], *, force: bool) -> list[str]:
        """Start all or none; their names.  Raises `RefusedError`."""
        stops = self._stops
        async with self._changing:
            self._not_overtaken(stops)
            self._not_killed()
            self._distinct(specs)
            for spec in specs:
                if spec.name in self._taps:
                    where = self._taps[spec.name].origin
                    origin = f" (of {where})" if where else ""
                    raise RefusedError("refused", f"a tap has the name {spec.name!r} already{origin}")
            self._allowed(specs, [*self.specs(), *specs], force=force)
            entries = [self._add(spec, "") for spec in specs]
        # The names are taken: one that hangs holds up no other request.
        failed = await self._started(entries)
        if failed:
            rest = [entry for entry in entries if entry.accepted]
            for entry in rest:
                entry.unwanted = True
            await self._leave(rest)
            name, message = next(iter(failed.items()))
            raise RefusedError("failed", f"{name}: {message}" if len(specs) > 1 else message)
        await self._save()
        return [spec.name for spec in specs]

    async def stop(self, name: str) -> list[dict[str, Any]]:
        """Stop a tap: its name and final ledger.  Raises `RefusedError`."""
        return await self._stop([self._entry(name)])

    async def stop_all(self) -> list[dict[str, Any]]:
        """Stop all taps, all capture at once, and what is about to begin."""
        self._stops += 1
        return await self._stop([*self._taps.values()])

    async def apply(self, specs: Sequence[TapSpec], *, dry_run: bool, force: bool) -> dict[str, Any]:
        """Make the taps of commands equal to these: what is done, and what failed.  Raises `RefusedError`."""
        stops = self._stops
        async with self._changing:
            self._not_overtaken(stops)
            self._distinct(specs)
            files = [entry for entry in self._taps.values() if entry.origin]
            for spec in specs:
                if spec.name in self._taps and self._taps[spec.name].origin:
                    where = self._taps[spec.name].origin
                    raise RefusedError("refused", f"the tap {spec.name!r} is that of {where}: change it there")
            running = {name: entry.spec for name, entry in self._taps.items() if not entry.origin and not entry.leaving}
            steps = plan(running, specs)
            self._allowed(
                [step.spec for step in steps if step.action not in (Action.KEEP, Action.REMOVE)],
                [*(entry.spec for entry in files), *specs],
                force=force,
            )
            if dry_run:
                return {"plan": [step.told() for step in steps], "failed": {}}
            done = await self._carry_out(steps, {}, stops)
        await self._save()
        return done

    async def set_percent(self, name: str, percent: float) -> None:
        """The share of a tap, while it runs.  Raises `RefusedError`."""
        entry = self._entry(name)
        try:
            with_share(entry.spec, percent)
        except SpecError as error:
            raise RefusedError("bad_request", str(error)) from None
        await self._done(entry.runner.set_percent(percent))
        await self._save()

    async def pause(self, name: str) -> None:
        """Capture nothing of a tap until `resume`.  Raises `RefusedError`."""
        entry = self._entry(name)
        entry.paused = True
        if not self.killed:
            await self._done(entry.runner.pause())
        await self._save()

    async def resume(self, name: str) -> None:
        """The end of `pause`.  Raises `RefusedError`."""
        entry = self._entry(name)
        self._not_killed()
        entry.paused = False
        await self._done(entry.runner.resume())
        await self._save()

    async def reload(self) -> dict[str, Any]:
        """Make the taps of files equal to the files: what is done, and what failed.  Raises `RefusedError`."""
        stops = self._stops
        async with self._changing:
            self._not_overtaken(stops)
            self._not_killed()
            stopped, self._stopped = self._stopped, set()
            try:
                done = await self._reload(stops)
            except RefusedError:
                self._stopped |= stopped
                self._later(self._save())
                raise
        await self._save()
        return done

    async def _reload(self, stops: int) -> dict[str, Any]:
        commands = [entry.spec for entry in self._taps.values() if not entry.origin]
        found = await self._read_files(commands, self._of_files().values())
        self._not_overtaken(stops)
        running = self._of_files()
        found = {name: each for name, each in found.items() if name not in self._stopped}  # those stopped meanwhile
        for name, (file, _) in found.items():
            if name in running:
                self._taps[name].origin = file
        steps = plan(running, [spec for _, spec in found.values()])
        return await self._carry_out(steps, {name: file for name, (file, _) in found.items()}, stops)

    def _of_files(self) -> dict[str, TapSpec]:
        return {name: entry.spec for name, entry in self._taps.items() if entry.origin and not entry.leaving}

    # --- time

    def tick(self, now: float) -> None:
        """Look for the file STOP, for taps whose time is over, and for what is to be written yet."""
        self.look_for_stop()
        for entry in self._taps.values():
            entry.runner.detach()
        over = [
            entry
            for entry in self._taps.values()
            if entry.ends is not None and entry.ends <= now and not entry.unwanted
        ]
        for entry in over:
            entry.unwanted = True
            self._log.say(Level.NOTICE, "ttl", "its time is over", tap=entry.spec.name)
        if over:
            self._later(self._stop(over))
        if self._dirty and now >= self._save_at:
            self._save_at = now + SAVE_AGAIN
            self._later(self._save())

    def look_for_stop(self) -> None:
        """Hold all taps while the file STOP is there."""
        there = self.places.stop_file.is_symlink() or self.places.stop_file.exists()
        if there == self.killed:
            return
        self.killed = there
        if there:
            self._mute(self._taps.values())
            for entry in self._taps.values():
                entry.runner.hold(self._why_killed())
            self._log.say(Level.WARNING, "kill_switch", f"{self.places.stop_file} is there: all capture has ended")
            return
        self._log.say(Level.WARNING, "kill_switch", f"{self.places.stop_file} is gone: the taps begin anew")
        for entry in self._taps.values():
            if entry.paused:
                entry.runner.hold(PAUSED)
            else:
                entry.runner.release()

    # --- parts

    def _mute(self, entries: Iterable[Entry]) -> None:
        """End the capture of all before anything that takes time is done for one."""
        for entry in entries:
            entry.runner.mute()

    def _why_killed(self) -> str:
        return f"{self.places.stop_file} is there"

    def _not_killed(self) -> None:
        if self.killed:
            raise RefusedError("refused", f"the kill switch is on: {self.places.stop_file} is there; remove it first")

    def _not_closing(self) -> None:
        if self._closing:
            raise RefusedError("failed", "the daemon is stopping")

    def _not_overtaken(self, stops: int) -> None:
        """Raises `RefusedError` if all was stopped since `_stops` was this."""
        self._not_closing()
        if self._stops != stops:
            raise RefusedError("failed", "all taps were stopped meanwhile: what was to begin has not begun")

    def _distinct(self, specs: Sequence[TapSpec]) -> None:
        names = [spec.name for spec in specs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise RefusedError("refused", f"two taps have the name {twice!r}")
        if len({*names, *self._taps}) > MAX_TAPS:
            raise RefusedError("refused", f"a daemon has {MAX_TAPS} taps at most")

    def _allowed(self, specs: Iterable[TapSpec], beside: Sequence[TapSpec], *, force: bool) -> None:
        """Raises `RefusedError` if one of them may not run beside these."""
        for spec in specs:
            reason = conflict(spec, beside)
            if reason is None and not force:
                reason = needs_force(spec)
                reason = reason and f"{reason}; --force does it all the same"
            if reason is not None:
                raise RefusedError("refused", f"{spec.name}: {reason}")

    def _add(
        self,
        spec: TapSpec,
        origin: str,
        *,
        written: TapSpec | None = None,
        paused: bool = False,
        ttl: float | None = None,
        accepted: bool = False,
    ) -> Entry:
        """Raises `RefusedError` while there is one of this name: it may capture yet."""
        if spec.name in self._taps:
            raise RefusedError("busy", f"there is a tap {spec.name!r} yet")
        runner = Runner(spec, self._log, self._loaders, make=self._make)
        runner.keep_trying = accepted
        ends = None if ttl is None else time.monotonic() + ttl
        entry = Entry(runner, written or spec, origin, paused=paused, ends=ends)
        entry.accepted = accepted
        self._taps[spec.name] = entry
        runner.start(self._why_killed() if self.killed else PAUSED if paused else "")
        return entry

    async def _begin(
        self, specs: Sequence[TapSpec], origins: Mapping[str, str], paused: Container[str] = ()
    ) -> dict[str, str]:
        """Start new taps; why some could not be, by name.  Those are there no more."""
        return await self._started(
            [self._add(spec, origins.get(spec.name, ""), paused=spec.name in paused) for spec in specs]
        )

    def _again(self, entry: Entry) -> None:
        """Start a tap that has ended as it was, with the time that it had left."""
        ttl = None if entry.ends is None else entry.ends - time.monotonic()
        self._add(entry.spec, entry.origin, written=entry.written, paused=entry.paused, ttl=ttl, accepted=True)

    async def _started(self, entries: Sequence[Entry]) -> dict[str, str]:
        """Wait for the first try of new taps; why some could not be, by name.  Those are there no more."""
        outcomes = await asyncio.gather(
            *(asyncio.wrap_future(entry.runner.started) for entry in entries), return_exceptions=True
        )
        self._not_closing()
        failed = {}
        for entry, outcome in zip(entries, outcomes, strict=True):
            if outcome is None and not entry.leaving:
                entry.accepted = True
                entry.ends = None if entry.spec.ttl is None else time.monotonic() + entry.spec.ttl
            else:
                failed[entry.spec.name] = str(outcome or EndedError("the tap was stopped while it started"))
        await self._leave([entry for entry in entries if not entry.accepted])
        return failed

    async def _stop(self, entries: Sequence[Entry]) -> list[dict[str, Any]]:
        self._mute(entries)
        for entry in entries:
            entry.leaving = entry.unwanted = True
            if entry.spec.name in self._replaced:
                self._replaced[entry.spec.name].unwanted = True
            entry.runner.end()
            if entry.origin:
                self._stopped.add(entry.spec.name)
        saved = asyncio.ensure_future(self._save())
        ledgers = await self._leave(entries)
        await saved
        return [{"name": entry.spec.name, "ledger": ledger} for entry, ledger in zip(entries, ledgers, strict=True)]

    async def _leave(self, entries: Sequence[Entry]) -> list[dict[str, Any] | None]:
        """End taps and forget them; their final ledgers."""
        ledgers = await self._ended(entries)
        for entry in entries:
            if self._taps.get(entry.spec.name) is entry:
                del self._taps[entry.spec.name]
        return ledgers

    async def _ended(self, entries: Sequence[Entry]) -> list[dict[str, Any] | None]:
        futures = []
        for entry in entries:
            entry.leaving = True
            futures.append(entry.runner.end())
        return await asyncio.gather(*(asyncio.shield(asyncio.wrap_future(future)) for future in futures))

    def _ready_for(self, step: Step) -> None:
        """Raises `RefusedError` if the tap of this name is not (any more) what the plan took it to be."""
        there = self._taps.get(step.name)
        if there is not None and there.leaving:
            raise RefusedError("busy", f"the tap {step.name!r} is being stopped")
        if there is not None and not there.accepted:
            raise RefusedError("busy", f"the tap {step.name!r} is being started")
        if (step.action is Action.ADD) != (there is None):
            raise RefusedError("busy", f"the tap {step.name!r} was changed meanwhile")

    async def _carry_out(self, steps: Sequence[Step], origins: Mapping[str, str], stops: int) -> dict[str, Any]:
        """Do it, holding `_changing`; the plan, and what failed.  It is to be saved then.

        `stops` is `_stops` as it was when this was asked for.
        """
        doing = [step for step in steps if step.action is not Action.KEEP]
        for step in doing:
            self._ready_for(step)
        if any(step.action is not Action.REMOVE for step in doing):
            self._not_killed()
        there = {step.name: self._taps[step.name] for step in doing if step.action is not Action.ADD}
        old = {step.name: there[step.name] for step in doing if step.action is Action.RESTART}
        removed = [there[step.name] for step in doing if step.action is Action.REMOVE]
        failed: dict[str, str] = {}
        for step in doing:
            if step.action is Action.CHANGE:
                entry = there[step.name]
                entry.written = step.spec
                try:
                    await self._done(entry.runner.set_percent(step.spec.percent))
                except RefusedError as error:
                    failed[step.name] = str(error)
        self._not_closing()
        for entry in removed:
            entry.unwanted = True
        self._replaced = old
        await self._leave([*removed, *old.values()])
        self._not_closing()  # what is replaced stays kept
        new = [step.spec for step in doing if step.action is Action.ADD]
        new += [step.spec for step in doing if step.name in old and not old[step.name].unwanted]
        if new and (self.killed or self._stops != stops):
            self._replaced = {}
            for entry in old.values():
                if not entry.unwanted:
                    self._again(entry)
            self._later(self._save())
            raise RefusedError("failed", "all taps were stopped meanwhile: what was to begin has not begun")
        failed |= {name: "it was stopped meanwhile" for name, entry in old.items() if entry.unwanted}
        for name, message in (await self._begin(new, origins, {n for n in old if old[n].paused})).items():
            failed[name] = message
            self._not_closing()
            if name in old and not old[name].unwanted and name not in self._taps:
                self._again(old[name])
                failed[name] += "; it goes on as it was"
        self._replaced = {}
        return {"plan": [step.told() for step in steps], "failed": failed}

    async def _read_files(
        self, commands: Iterable[TapSpec], running: Iterable[TapSpec]
    ) -> dict[str, tuple[str, TapSpec]]:
        """The taps of files: (file, tap) by name.  Raises `RefusedError` if any of them cannot be taken.

        `commands` are the taps of commands, `running` those of files that run: what runs already was allowed once.
        """
        commands = list(commands)
        names = {spec.name for spec in commands}
        known = {spec.name: spec for spec in running}
        try:
            found = await asyncio.to_thread(folder.read, self.places.taps)
            taken = [
                f"{file}: the tap {name!r} was started by command" for name, (file, _) in found.items() if name in names
            ]
            if taken:
                raise folder.FolderError(taken)
            wanted = [spec for name, (_, spec) in found.items() if name not in self._stopped]
            changed = [spec for spec in wanted if known.get(spec.name) != spec]
            self._allowed(changed, [*commands, *wanted], force=True)  # whoever wrote the file has insisted
        except folder.FolderError as error:
            for problem in error.problems:
                self._log.say(Level.ERROR, "reload", problem)
            self.reload_error = str(error)
            raise RefusedError("refused", str(error)) from None
        except RefusedError as error:
            self.reload_error = str(error)
            raise
        self.reload_error = ""
        return found

    async def _done(self, future: Any) -> None:
        """Wait for what a tap was asked for.  Raises `RefusedError`."""
        try:
            await asyncio.shield(asyncio.wrap_future(future))
        except (TapError, EndedError) as error:
            raise RefusedError("failed", str(error)) from None

    def _later(self, what: Any) -> None:
        task = asyncio.ensure_future(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- what is kept

    async def _save(self) -> None:
        """Write which taps are to run.  A disk that is full or gone ends nothing: it is told, and tried again."""
        self._dirty = True
        async with self._saving:
            if not self._dirty:
                return
            self._dirty = False
            try:
                await asyncio.to_thread(state.save, self.places.state, self._kept())
            except OSError as error:
                self._dirty = True
                self.state_errors += 1
                self.state_error = f"{self.places.state}: the taps could not be written: {error.strerror}"
                self._log.say(Level.ERROR, "state", self.state_error)
            else:
                self.state_error = ""

    def _kept(self) -> state.State:
        now, wall = time.monotonic(), time.time()
        taps = [
            state.Kept(
                spec=entry.written,
                percent=entry.spec.percent if different(entry.spec, entry.written) else None,
                origin=entry.origin,
                paused=entry.paused,
                ends_at=None if entry.ends is None else wall + entry.ends - now,
            )
            for entry in {**self._replaced, **{n: e for n, e in self._taps.items() if e.accepted}}.values()
            if not entry.unwanted
        ]
        return state.State(taps=taps, stopped=sorted(self._stopped))


def _as_kept(kept: state.Kept | None, file: str, spec: TapSpec) -> state.Kept:
    """A tap of a file at the start: how it was, if the file says the same as then.

    So a share that was set by command stands: it was lowered for a reason.
    """
    if kept is not None and kept.spec == spec:
        return msgspec.structs.replace(kept, origin=file)
    return state.Kept(spec=spec, origin=file, ends_at=None if spec.ttl is None else time.time() + spec.ttl)
