# SPDX-License-Identifier: Apache-2.0
"""The operations on a daemon's taps: start, stop, change, and make equal to files.

Runs in one asyncio loop and never waits in it: taps have threads of their own, files are read and written in others.
So whatever a tap, a disk or a resolver does, the kill switch and the control socket are served.

Taps have two origins.  Those of files are made equal to the files at the start and on reload.  Those of commands are
changed by `start` and `apply`.  Neither touches the other's; only `stop` stops taps of both.

Operations that add taps (`start`, `apply`, `reload`) run one after the other.  Those that stop taps wait for nothing.
So an operation that adds checks after each wait what was stopped meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Container, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, TypeVar

import msgspec

from tapmirror.spec import Level as CompareLevel
from tapmirror.spec import SpecError, TapSpec
from tapmirror.spec.settings import AllTaps
from tapmirror.supervisor import folder, state
from tapmirror.supervisor.log import Level, Log
from tapmirror.supervisor.permission import RefusedError, allowed, distinct, unslipped
from tapmirror.supervisor.persistence import Persistence
from tapmirror.supervisor.places import Places
from tapmirror.supervisor.plan import Action, Step, different, plan
from tapmirror.supervisor.roster import Entry, Roster
from tapmirror.supervisor.runner import Before, EndedError, Make, with_share
from tapmirror.supervisor.tap import NOTHING, Tap
from tapmirror.supervisor.together import Together
from tapmirror.supervisor.workers import TapError, TapRefusedError

AS_IT_WAS: Final = "it goes on as it was"
T = TypeVar("T")
NOTED: Final = 1.0
"""Seconds between two notes in /run that taps capture: so precisely the end of a killed daemon is known."""
STEPPED: Final = 1.0
"""Seconds by which the wall clock may drift from the monotonic one before the times on disk are written again."""


class Daemon:
    """Use it within one running loop.  Call `tick` several times a second."""

    def __init__(self, places: Places, log: Log, budget: AllTaps, make: Make = Tap) -> None:
        """`budget`: of all taps, until the files are read; taps that were kept on disk run before that."""
        self.places = places
        self.together = Together(budget, time.monotonic(), lambda line: log.say(Level.NOTICE, "share_of_all", line))
        self.roster = Roster(places.stop_file, log, self.together, make)
        self._taps = self.roster.taps
        self.persistence = Persistence(places.state, log, self._kept)
        self.reload_error = ""
        """Why the files were not taken at the last reload, if so."""
        self._log = log
        self._replaced: dict[str, Entry] = {}
        """Taps that are being restarted: they stay on disk until their successors run."""
        self._changing = asyncio.Lock()
        """Held while taps are added."""
        self._stopped: set[str] = set()
        self._stops = 0
        """How often all was stopped by command."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._next_note: float | None = None
        """When to note that taps capture; None: what an earlier daemon noted is still to be read."""
        self._ahead = _ahead()
        """Seconds by which the wall clock was ahead of the monotonic one at the last check whether it had been set."""

    # --- beginning and end

    async def restore(self) -> None:
        """Start what was kept and what the files say; what is wrong is told, and stops nothing."""
        kept, problems = await asyncio.to_thread(state.load, self.places.state)
        for problem in problems:
            self._log.say(Level.ERROR, "state", problem)
        until = self._captured_until()
        if kept.taps and until is None:
            words = "the host was started, its clock was set, or no tap captured: time without capture is not known"
            self._log.say(Level.NOTICE, "uncaptured", words)
        ran = {each.spec.name for each in kept.taps} if until is not None else set()
        self._stopped = set(kept.stopped)
        commands = [each for each in kept.taps if not each.origin]
        files = {each.spec.name: each for each in kept.taps if each.origin}
        try:
            found = await self._read_files([each.spec for each in commands], (), kept=True)
        except RefusedError as error:
            self._log.say(Level.ERROR, "reload", f"{error}; the taps that ran before go on")
        else:
            self._stopped &= found.keys()
            files = {
                name: _as_kept(files.get(name), file, spec)
                for name, (file, spec) in found.items()
                if name not in self._stopped
            }
        self.roster.look_for_stop()
        for each in (*commands, *files.values()):
            self._restore(each, Before(until) if until is not None and each.spec.name in ran else None)
        self._next_note = 0.0
        self._later(self.persistence.save())  # a disk that hangs holds up no start

    def _captured_until(self) -> float | None:
        """When taps were last seen to capture, in seconds of the wall clock; None: unknown.

        A note that is older than the host's start is ignored: a host without a battery begins in 1970, and its clock
        was set since.
        """
        with suppress(OSError):
            noted = self.places.captured.lstat().st_mtime
            if noted >= time.time() - time.clock_gettime(time.CLOCK_BOOTTIME):
                return noted
        return None

    def _note_capture(self) -> bool:
        """Note in /run that a tap captures, if one does; returns whether.  /run is memory: no disk can delay it.

        If no tap should capture, the note is removed: otherwise a later daemon would count from there.
        """
        states = {entry.runner.state[0] for entry in self._taps.values()}
        captures = "running" in states
        with suppress(OSError):
            if captures:
                self.places.captured.touch(mode=0o600)
            elif states <= {"paused", "waiting"}:
                self.places.captured.unlink(missing_ok=True)
        return captures

    def _restore(self, kept: state.Kept, before: Before | None) -> None:
        if kept.spec.name in self._taps:
            self._log.say(Level.ERROR, "state", "it is kept twice: the second is left out", tap=kept.spec.name)
            return
        left = None if kept.ends_at is None else kept.ends_at - time.time()
        if left is not None and left <= 0:
            self._log.say(Level.NOTICE, "ttl", "its ttl ended while no daemon ran", tap=kept.spec.name)
            if kept.origin:
                self._stopped.add(kept.spec.name)
            return
        spec = kept.spec
        if kept.percent is not None:
            spec = with_share(spec, kept.percent)
        self.roster.add(
            spec, kept.origin, written=kept.spec, paused=kept.paused, ttl=left, accepted=True, before=before
        )

    async def close(self) -> None:
        """Stop all, and keep on disk that they are to run."""
        self.roster.closing = True
        if self._next_note is not None:
            self._note_capture()
        await self.roster.ended([*self._taps.values()])
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- requests

    async def start(self, specs: Sequence[TapSpec], *, force: bool) -> list[str]:
        """Start all or none; their names.  Raises `RefusedError`."""
        stops = self._stops
        async with self._changing:
            self._not_overtaken(stops)
            self.roster.not_killed()
            distinct(specs, self._taps)
            for spec in specs:
                if spec.name in self._taps:
                    where = self._taps[spec.name].origin
                    origin = f" (of {where})" if where else ""
                    raise RefusedError("refused", f"a tap has the name {spec.name!r} already{origin}")
            unslipped(specs)
            allowed(specs, [*self.roster.specs(), *specs], force=force)
            entries = [self.roster.add(spec, "") for spec in specs]
        # The names are taken: one that hangs holds up no other request.
        failed = await self.roster.started(entries)
        if failed:
            rest = [entry for entry in entries if entry.accepted]
            for entry in rest:
                entry.unwanted = True
            self._later(self.persistence.save())  # they may be on disk: others were saved since they began
            await self.roster.leave(rest)
            name, error = next(iter(failed.items()))
            code = "refused" if isinstance(error, TapRefusedError) else "failed"
            raise RefusedError(code, f"{name}: {error}" if len(specs) > 1 else str(error))
        await self.persistence.save()
        return [spec.name for spec in specs]

    def notes(self, names: Iterable[str]) -> dict[str, Any]:
        """The field `notes` of a reply: warnings of these taps from their start, by name; empty if there are none."""
        notes = {name: self._taps[name].runner.notes for name in names if name in self._taps}
        found = {name: lines for name, lines in notes.items() if lines}
        return {"notes": found} if found else {}

    def idle(self, names: Iterable[str]) -> dict[str, Any]:
        """The same, for taps whose share was just set to 0."""
        found = {name: [NOTHING] for name in names if name in self._taps and not self._taps[name].spec.most()}
        return {"notes": found} if found else {}

    async def stop(self, name: str) -> list[dict[str, Any]]:
        """Stop a tap: its name and final ledger.  Raises `RefusedError`."""
        return await self._stop([self.roster.entry(name)])

    async def stop_all(self) -> list[dict[str, Any]]:
        """Stop all taps, all capture at once, and what is about to begin."""
        self._stops += 1
        return await self._stop([*self._taps.values()])

    async def apply(self, specs: Sequence[TapSpec], *, dry_run: bool, force: bool) -> dict[str, Any]:
        """Make the taps of commands equal to these: what is done, and what failed.  Raises `RefusedError`."""
        stops = self._stops
        async with self._changing:
            self._not_overtaken(stops)
            distinct(specs, self._taps)
            files = [entry for entry in self._taps.values() if entry.origin]
            for spec in specs:
                if spec.name in self._taps and self._taps[spec.name].origin:
                    where = self._taps[spec.name].origin
                    raise RefusedError("refused", f"the tap {spec.name!r} is that of {where}: change it there")
            running = {name: entry.spec for name, entry in self._taps.items() if not entry.origin and not entry.leaving}
            steps = plan(running, specs)
            changed = [step.spec for step in steps if step.action not in (Action.KEEP, Action.REMOVE)]
            unslipped(changed)
            allowed(changed, [*(entry.spec for entry in files), *specs], force=force)
            if dry_run:
                return {"plan": [step.told() for step in steps], "failed": {}}
            done = await self._carry_out(steps, {}, stops)
        await self.persistence.save()
        return done

    async def set_percent(self, name: str, percent: float) -> None:
        """The share of a tap, while it runs.  Raises `RefusedError`."""
        entry = self.roster.entry(name)
        try:
            with_share(entry.spec, percent)
        except SpecError as error:
            raise RefusedError("bad_request", str(error)) from None
        await self._done(entry.runner.set_percent(percent))
        await self.persistence.save()

    async def comparison(self, name: str) -> tuple[TapSpec, bytes]:
        """What a tap's comparison knows: a JSON list of its workers' states.  Raises `RefusedError`."""
        entry = self.roster.entry(name)
        if entry.spec.compare.level is CompareLevel.OFF:
            raise RefusedError("refused", f"the tap {name!r} compares nothing: start it with --compare")
        return entry.spec, await self._done(entry.runner.comparison())

    async def pause(self, name: str) -> None:
        """Capture nothing of a tap until `resume`.  Raises `RefusedError`."""
        entry = self._staying(name)
        entry.paused = True
        if not self.roster.killed:
            await self._done(entry.runner.pause())
        await self.persistence.save()

    async def resume(self, name: str) -> None:
        """The end of `pause`.  Raises `RefusedError`."""
        entry = self._staying(name)
        self.roster.not_killed()
        entry.paused = False
        await self._done(entry.runner.resume())
        await self.persistence.save()

    async def reload(self) -> dict[str, Any]:
        """Make the taps of files equal to the files: what is done, and what failed.  Raises `RefusedError`."""
        stops = self._stops
        async with self._changing:
            self._not_overtaken(stops)
            self.roster.not_killed()
            stopped, self._stopped = self._stopped, set()
            try:
                done = await self._reload(stops)
            except RefusedError:
                self._stopped |= stopped
                self._later(self.persistence.save())
                raise
        await self.persistence.save()
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
        self.roster.look_for_stop()
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
        if self._next_note is not None and now >= self._next_note and self._note_capture():
            self._next_note = now + NOTED
        if self.persistence.due(now) or self._was_set():
            self._later(self.persistence.save())

    # --- parts

    def _was_set(self) -> bool:
        """Whether the wall clock was set since the last check: then the ends of `ttl` on disk are wrong."""
        ahead = _ahead()
        if abs(ahead - self._ahead) < STEPPED:
            return False
        self._ahead = ahead
        return any(entry.ends is not None for entry in self._taps.values())

    def _not_overtaken(self, stops: int) -> None:
        """Raises `RefusedError` if all was stopped since `_stops` was this."""
        self.roster.not_closing()
        if self._stops != stops:
            raise RefusedError("failed", "all taps were stopped meanwhile: the new taps were not started")

    async def _begin(
        self,
        specs: Sequence[TapSpec],
        origins: Mapping[str, str],
        paused: Container[str],
        before: Mapping[str, Before],
    ) -> dict[str, str]:
        """Start new taps; returns why some could not be started, by name.  These are gone then."""
        failed = await self.roster.started(
            [
                self.roster.add(
                    spec,
                    origins.get(spec.name, ""),
                    paused=spec.name in paused,
                    before=before.get(spec.name),
                )
                for spec in specs
            ]
        )
        return {name: str(error) for name, error in failed.items()}

    async def _stop(self, entries: Sequence[Entry]) -> list[dict[str, Any]]:
        leaving = self._end(entries)
        for entry in entries:
            if entry.spec.name in self._replaced:
                self._replaced[entry.spec.name].unwanted = True
            if entry.origin:
                self._stopped.add(entry.spec.name)
        saved = asyncio.ensure_future(self.persistence.save())
        ledgers = await leaving
        await saved
        return [{"name": entry.spec.name, "ledger": ledger} for entry, ledger in zip(entries, ledgers, strict=True)]

    def _end(self, entries: Sequence[Entry]) -> asyncio.Task[list[dict[str, Any] | None]]:
        """End taps for good, their capture at once; done when they are gone, with their final ledgers."""
        self.roster.mute(entries)
        for entry in entries:
            entry.leaving = entry.unwanted = True
            entry.runner.end()
        return self._later(self.roster.leave(entries))

    async def _change(self, steps: Sequence[Step]) -> dict[str, str]:
        """Set shares, all at the same time; returns why some could not be set, by name."""
        asked = [(step, self._taps[step.name]) for step in steps]
        outcomes = [(step, entry, entry.runner.set_percent(step.spec.percent)) for step, entry in asked]
        failed: dict[str, str] = {}
        for step, entry, outcome in outcomes:
            try:
                await self._done(outcome)
            except RefusedError as error:
                failed[step.name] = str(error)
            else:
                entry.written = step.spec
        return failed

    def _staying(self, name: str) -> Entry:
        """The tap of a name.  Raises `RefusedError` if it is being stopped or restarted: the change would be lost."""
        entry = self.roster.entry(name)
        if entry.leaving:
            raise RefusedError("busy", f"the tap {name!r} is being stopped")
        return entry

    def _ready_for(self, steps: Sequence[Step]) -> None:
        """Raises `RefusedError` if a tap is not (any more) what the plan took it to be, or none may begin."""
        for step in steps:
            there = self._taps.get(step.name)
            if there is not None and there.leaving:
                raise RefusedError("busy", f"the tap {step.name!r} is being stopped")
            if there is not None and not there.accepted:
                raise RefusedError("busy", f"the tap {step.name!r} is being started")
            if (step.action is Action.ADD) != (there is None):
                raise RefusedError("busy", f"the tap {step.name!r} was changed meanwhile")
        if any(step.action is not Action.REMOVE for step in steps):
            self.roster.not_killed()

    async def _carry_out(self, steps: Sequence[Step], origins: Mapping[str, str], stops: int) -> dict[str, Any]:
        """Carry out a plan; the caller holds `_changing`, and saves afterwards.  Returns the plan, and what failed.

        `stops` is `_stops` as it was when this was asked for.
        """
        doing = [step for step in steps if step.action is not Action.KEEP]
        self._ready_for(doing)
        # Ends and lower shares look up no name: they come first, so that a name server that hangs cannot delay them.
        removing = self._end([self._taps[step.name] for step in doing if step.action is Action.REMOVE])
        failed = await self._change([step for step in doing if step.action is Action.CHANGE])
        slow = [step for step in doing if step.action in (Action.RESTART, Action.ADD)]
        if len(slow) < len(doing):
            self._later(self.persistence.save())  # the rest may take long
        doing = slow
        # Check before anything is stopped: a running tap must not end for a mistake in its successor.
        unfit = await self.roster.unfit(step.spec for step in doing if step.action is Action.RESTART)
        failed |= {name: f"{message}; {AS_IT_WAS}" for name, message in unfit.items()}
        doing = [step for step in doing if step.name not in unfit]
        self._not_overtaken(stops)
        self._ready_for(doing)
        old = {step.name: self._taps[step.name] for step in doing if step.action is Action.RESTART}
        self._replaced = old
        before = {name: Before(time.time(), entry.runner.uncaptured) for name, entry in old.items()}
        await asyncio.gather(removing, self.roster.leave([*old.values()]))
        self.roster.not_closing()  # what is replaced stays kept
        new = [step.spec for step in doing if step.action is Action.ADD]
        new += [step.spec for step in doing if step.name in old and not old[step.name].unwanted]
        if new and (self.roster.killed or self._stops != stops):
            self._replaced = {}
            for entry in old.values():
                if not entry.unwanted:
                    self.roster.again(entry, before[entry.spec.name])
            self._later(self.persistence.save())
            raise RefusedError("failed", "all taps were stopped meanwhile: the new taps were not started")
        failed |= {name: "it was stopped meanwhile" for name, entry in old.items() if entry.unwanted}
        paused = {name for name, entry in old.items() if entry.paused}
        for name, message in (await self._begin(new, origins, paused, before)).items():
            failed[name] = message
            self.roster.not_closing()
            if name in old and not old[name].unwanted and name not in self._taps:
                self.roster.again(old[name], before[name])
                failed[name] += f"; {AS_IT_WAS}"
        self._replaced = {}
        begun = {spec.name: self._taps[spec.name].runner.state for spec in new if spec.name in self._taps}
        waits = {name: reason for name, (state, reason) in begun.items() if state == "waiting"}
        changed = [step.name for step in steps if step.action is Action.CHANGE and step.name not in failed]
        notes = {**self.idle(changed).get("notes", {}), **self.notes(begun).get("notes", {})}
        told = {"plan": [step.told() for step in steps], "failed": failed, **({"notes": notes} if notes else {})}
        return {**told, "waits": waits} if waits else told

    async def _read_files(
        self, commands: Iterable[TapSpec], running: Iterable[TapSpec], *, kept: bool = False
    ) -> dict[str, tuple[str, TapSpec]]:
        """The taps of files: (file, tap) by name.  Raises `RefusedError` if any of them cannot be taken.

        `commands` are the taps of commands.  `running` are those of files that run, which were allowed before.
        `kept`: at the daemon's start, when mistakes that an earlier version accepted are accepted with a warning.
        """
        commands = list(commands)
        names = {spec.name for spec in commands}
        known = {spec.name: spec for spec in running}
        try:
            settings, found = await asyncio.to_thread(folder.both, self.places.settings, self.places.taps, kept=kept)
            taken = [
                f"{file}: the tap {name!r} was started by command" for name, (file, _) in found.items() if name in names
            ]
            if taken:
                raise folder.FolderError(taken)
            wanted = [spec for name, (_, spec) in found.items() if name not in self._stopped]
            changed = [spec for spec in wanted if known.get(spec.name) != spec]
            allowed(changed, [*commands, *wanted], force=True)  # whoever wrote the file has insisted
        except folder.FolderError as error:
            for problem in error.problems[1:]:  # the first is told by who asked for it
                self._log.say(Level.ERROR, "reload", problem)
            self.reload_error = str(error)
            raise RefusedError("refused", str(error), error.told()) from None
        except RefusedError as error:
            self.reload_error = str(error)
            raise
        self.reload_error = ""
        self.together.set_budget(settings.budget)
        return found

    async def _done(self, future: Future[Any]) -> Any:
        """Wait for what a tap was asked for.  Raises `RefusedError`."""
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except TapError as error:
            raise RefusedError("failed", str(error)) from None
        except EndedError as error:
            raise RefusedError("busy", str(error)) from None

    def _later(self, what: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

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


def _ahead() -> float:
    """Seconds by which the wall clock is ahead of the monotonic one.  The number changes if the clock is set."""
    return time.time() - time.monotonic()


def _as_kept(kept: state.Kept | None, file: str, spec: TapSpec) -> state.Kept:
    """A tap of a file at the daemon's start: as it was kept, if the file has not changed since.

    So a share that was set by command survives: it was probably lowered for a reason.
    """
    if kept is not None and kept.spec == spec:
        return msgspec.structs.replace(kept, origin=file)
    return state.Kept(spec=spec, origin=file, ends_at=None if spec.ttl is None else time.time() + spec.ttl)
