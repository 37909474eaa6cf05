# SPDX-License-Identifier: Apache-2.0
"""The set of the daemon's taps, which begins, holds and ends them, one by one or all together; and the kill switch.

What should be done with them is decided in `daemon`.  As there, nothing here waits in the loop.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tapmirror.spec import TapSpec
from tapmirror.spec.numbers import decimal
from tapmirror.supervisor.log import Level, Log
from tapmirror.supervisor.past import Past
from tapmirror.supervisor.permission import RefusedError
from tapmirror.supervisor.runner import PAUSED, Before, EndedError, Make, Runner, try_out
from tapmirror.supervisor.together import Together
from tapmirror.supervisor.workers import TapError

LOADERS: Final = 2
"""Most taps that start at a time: each compiles for a second and needs 150 MB."""


class Entry:
    """One tap of the daemon, and where it came from."""

    def __init__(self, runner: Runner, written: TapSpec, origin: str, *, paused: bool, ends: float | None) -> None:
        self.runner = runner
        self.written = written
        """The spec as it was written; that of the runner has the share that was set since."""
        self.origin = origin
        """The file that it came from; empty: a command."""
        self.paused = paused
        self.ends = ends
        """When its `ttl` is over, on the monotonic clock."""
        self.accepted = False
        """Whether the tap is kept on disk."""
        self.leaving = False
        self.unwanted = False
        """It was stopped or removed: it has no successor, and is not kept on disk any more."""

    @property
    def spec(self) -> TapSpec:
        """The spec with the share as it is now."""
        return self.runner.spec

    def told(self, *, ledger: bool) -> dict[str, Any]:
        """The tap as a reply describes it."""
        spec = self.spec
        now, reason = self.runner.state
        return {
            "name": spec.name,
            "state": now,
            "state_reason": reason,
            "percent": spec.percent,
            **_captured(self.runner.ledger, running=now == "running"),
            "by": spec.by.value,
            "iface": spec.iface,
            "ports": list(spec.ports),
            "addrs": list(spec.addrs),
            "shadows": [shadow.end_point for shadow in spec.shadows],
            "origin": self.origin,
            "since": self.runner.since,
            "ends_in": None if self.ends is None else max(0.0, round(self.ends - time.monotonic(), 1)),
            "losses": self.runner.losses,
            "uncaptured_s": round(self.runner.uncaptured, 2),
            **({"ledger": self.runner.ledger} if ledger else {}),
        }


def _captured(ledger: Mapping[str, Any] | None, *, running: bool) -> dict[str, Any]:
    """The fields `effective` (percent captured now; None: not known yet) and `trouble` of a reply.

    `trouble` says why a running tap captures less than it was asked to, or which shadow gets nothing.
    """
    if ledger is None or "share" not in ledger:
        return {"effective": None, "trouble": ""}
    share = ledger["share"]
    trouble = ""
    if running and share["effective"] != share["percent"]:
        trouble = f"at present {decimal(share['effective'])} %: {share['reason']}"
    elif running:
        causes = {label: shadow.get("reason", "") for label, shadow in ledger["shadows"].items()}
        trouble = "; ".join(f"shadow {label}: {cause}" for label, cause in causes.items() if cause)
    return {"effective": share["effective"], "trouble": trouble}


class Roster:
    """Use it within one running loop."""

    def __init__(self, stop_file: Path, log: Log, together: Together, make: Make) -> None:
        self.taps: dict[str, Entry] = {}
        """The taps by name."""
        self.killed = False
        """Whether the file STOP is there."""
        self.closing = False
        """The daemon is stopping: nothing begins any more."""
        self._stop_file = stop_file
        self._log = log
        self._together = together
        self._make = make
        self._loaders = threading.Semaphore(LOADERS)
        self._past = Past(self._tell_dropped)

    # --- looking

    def told(self, name: str | None, *, ledger: bool) -> list[dict[str, Any]]:
        """The taps, or one, as a reply has them.  Raises `RefusedError`."""
        chosen = [self.entry(name)] if name is not None else [self.taps[n] for n in sorted(self.taps)]
        return [entry.told(ledger=ledger) for entry in chosen]

    def entry(self, name: str) -> Entry:
        """The tap of a name.  Raises `RefusedError`."""
        if name not in self.taps:
            there = ", ".join(sorted(self.taps)[:10]) or "none"
            raise RefusedError("not_found", f"no tap has the name {name!r} (there are: {there})")
        return self.taps[name]

    def specs(self) -> list[TapSpec]:
        """Of the taps that are to run."""
        return [entry.spec for entry in self.taps.values() if not entry.leaving]

    def summary(self) -> str:
        """All in a line."""
        states = [entry.runner.state[0] for entry in self.taps.values()]
        counts = ", ".join(f"{states.count(name)} {name}" for name in dict.fromkeys(states))
        return f"{'KILL SWITCH; ' if self.killed else ''}taps: {counts or 'none'}"

    def snapshots(self) -> list[dict[str, Any]]:
        """The last ledgers of lives that ended lately, then that of each tap; for the metrics, from any thread."""
        there = [*self.taps.items()]  # before the past: a tap that ends meanwhile is in both then, and not in neither
        found = self._past.ledgers()
        for name, entry in there:
            life, ledger = entry.runner.counted
            facts = {"state": entry.runner.state[0], "uncaptured_s": entry.runner.uncaptured, "life": life}
            found.append({**(ledger or {"tap": name}), **facts})
        return found

    def _tell_dropped(self, name: str, what: str) -> None:
        message = f"many lives of taps ended lately: the metrics may lack {what} at the end of one"
        self._log.say(Level.NOTICE, "past", message, tap=name)

    # --- the kill switch

    def look_for_stop(self) -> None:
        """Hold all taps while the file STOP is there."""
        there = os.path.lexists(self._stop_file)
        before, self.killed = self.killed, there
        if there:
            self._hold_all()
        if there == before:
            return
        if there:
            self._log.say(Level.WARNING, "kill_switch", f"{self._stop_file} is there: all capture has ended")
            return
        self._log.say(Level.WARNING, "kill_switch", f"{self._stop_file} is gone: the taps start again")
        for entry in self.taps.values():
            if entry.paused:
                entry.runner.hold(PAUSED)
            else:
                entry.runner.release()

    def _hold_all(self) -> None:
        """Hold all taps that the kill switch does not hold yet; called at each look, as taps may have come."""
        free = [entry for entry in self.taps.values() if entry.runner.held != self._why()]
        self.mute(free)
        for entry in free:
            entry.runner.hold(self._why())

    def mute(self, entries: Iterable[Entry]) -> None:
        """End the capture of all of them, before anything slow is done for the first."""
        for entry in entries:
            entry.runner.mute()

    def _why(self) -> str:
        return f"{self._stop_file} is there"

    def not_killed(self) -> None:
        """Raises `RefusedError` while the kill switch is on."""
        if self.killed:
            raise RefusedError("refused", f"the kill switch is on: {self._stop_file} is there; remove it first")

    def not_closing(self) -> None:
        """Raises `RefusedError` once the daemon is stopping."""
        if self.closing:
            raise RefusedError("failed", "the daemon is stopping")

    # --- beginning and end

    def add(
        self,
        spec: TapSpec,
        origin: str,
        *,
        written: TapSpec | None = None,
        paused: bool = False,
        ttl: float | None = None,
        accepted: bool = False,
        before: Before | None = None,
    ) -> Entry:
        """Start a new tap.  Raises `RefusedError` while there is one of this name, which may still capture."""
        if spec.name in self.taps:
            raise RefusedError("busy", f"the tap {spec.name!r} is still there")
        runner = Runner(
            spec, self._log, self._loaders, self._together, make=self._make, before=before, over=self._past.remember
        )
        runner.keep_trying = accepted
        runner.waits = bool(origin)  # of a file, as at the daemon's start; who gives a command is told at once
        ends = None if ttl is None else time.monotonic() + ttl
        entry = Entry(runner, written or spec, origin, paused=paused, ends=ends)
        entry.accepted = accepted
        self.taps[spec.name] = entry
        runner.start(self._why() if self.killed else PAUSED if paused else "")
        return entry

    async def unfit(self, specs: Iterable[TapSpec]) -> dict[str, str]:
        """Why some of these cannot be started, by name, as far as can be checked beforehand."""
        tried = {spec.name: try_out(spec, self._make) for spec in specs}
        failed: dict[str, str] = {}
        for name, outcome in tried.items():
            try:
                await asyncio.wrap_future(outcome)
            except TapError as error:
                failed[name] = str(error)
        return failed

    def again(self, entry: Entry, before: Before) -> None:
        """Start a tap that has ended again, as it was, with what was left of its `ttl`."""
        ttl = None if entry.ends is None else entry.ends - time.monotonic()
        self.add(
            entry.spec,
            entry.origin,
            written=entry.written,
            paused=entry.paused,
            ttl=ttl,
            accepted=True,
            before=before,
        )

    async def started(self, entries: Sequence[Entry]) -> dict[str, BaseException]:
        """Wait for the first try of new taps; returns why some could not be started, by name.  These are gone then."""
        outcomes = await asyncio.gather(
            *(asyncio.wrap_future(entry.runner.started) for entry in entries), return_exceptions=True
        )
        self.not_closing()
        failed: dict[str, BaseException] = {}
        for entry, outcome in zip(entries, outcomes, strict=True):
            if outcome is None and not entry.leaving:
                entry.accepted = True
                entry.ends = None if entry.spec.ttl is None else time.monotonic() + entry.spec.ttl
            else:
                failed[entry.spec.name] = outcome or EndedError("the tap was stopped while it started")
        await self.leave([entry for entry in entries if not entry.accepted])
        return failed

    async def leave(self, entries: Sequence[Entry]) -> list[dict[str, Any] | None]:
        """End taps and forget them; returns their final ledgers."""
        ledgers = await self.ended(entries)
        for entry in entries:
            if self.taps.get(entry.spec.name) is entry:
                del self.taps[entry.spec.name]
        return ledgers

    async def ended(self, entries: Sequence[Entry]) -> list[dict[str, Any] | None]:
        """End taps and leave them in the roster; returns their final ledgers."""
        futures = []
        for entry in entries:
            entry.leaving = True
            futures.append(entry.runner.end())
        return await asyncio.gather(*(asyncio.shield(asyncio.wrap_future(future)) for future in futures))
