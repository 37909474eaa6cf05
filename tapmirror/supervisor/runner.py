# SPDX-License-Identifier: Apache-2.0
"""One tap of the daemon: a thread that drives it, so that a worker that hangs holds up its own tap and no other.

    held ──release──► starting ──► running ──hold──► held
                        │  ▲          │
                        ▼  └─back-off─┴─ all of it was lost
                      failed

If the first try to start a tap fails, whoever asked for the tap is told the reason, and that is all.  Once a tap was
accepted, it is tried again after every failure, with growing pauses.  *Held* is a tap that should run and may not at
the moment, because it is paused or the kill switch is on.
"""

from __future__ import annotations

import itertools
import os
import select
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from tapmirror.spec import TapSpec
from tapmirror.supervisor.claims import ClaimedError, Claims
from tapmirror.supervisor.log import Level, Log
from tapmirror.supervisor.regulation import Regulation
from tapmirror.supervisor.tap import Tap
from tapmirror.supervisor.together import Together
from tapmirror.supervisor.workers import LoopError, TapError, TapRefusedError

INTERVAL: Final = 1.0
"""Seconds between two snapshots."""
BACKOFF: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds before each further try to start; the last one for all that follow."""
STEADY: Final = 60.0
"""Seconds of running after which the next loss of a tap counts as its first one again."""

PAUSED: Final = "paused by command"
LIVES: Final = itertools.count(1)
"""Numbers of lives: each beginning of any tap gets the next one."""


class Make(Protocol):
    """What makes a tap: `Tap` itself."""

    def __call__(
        self, spec: TapSpec, warn: Callable[[str], None], said: Callable[[str], None], *, wait_for_interface: bool
    ) -> Tap:
        """A tap that is not started."""


Command: TypeAlias = Callable[[Tap | None], object]
"""Something to be done in the tap's thread; its argument is None while the tap does not run."""


class EndedError(Exception):
    """The tap was ended before it could be done."""


def try_out(spec: TapSpec, make: Make) -> Future[None]:
    """Check what can be checked before a tap is started: its interface, addresses and names.

    Runs in a thread of its own, because a name server may hang.  The future is done, or has the `TapError`.
    """
    outcome: Future[None] = Future()
    outcome.set_running_or_notify_cancel()  # not to be cancelled by whoever waits: the thread sets the outcome

    def run() -> None:
        try:
            tap = make(spec, lambda _: None, lambda _: None, wait_for_interface=False)
            try:
                tap.prepare()
            finally:
                tap.close()
        except Exception as error:
            outcome.set_exception(as_tap_error(error))
        else:
            outcome.set_result(None)

    threading.Thread(target=run, name=f"try {spec.name}", daemon=True).start()
    return outcome


class Before(msgspec.Struct, frozen=True):
    """What a tap carries over from before: from an earlier daemon, or from its restart with another spec."""

    until: float
    """When its capture ended, of the wall clock in seconds."""
    uncaptured: float = 0.0
    """Seconds for which nothing was captured until then (`Runner.uncaptured`)."""


class Runner:
    """The thread that drives one tap.  Call `start` once and `end` last.  All that is public may be used in any thread.

    `loaders` bounds how many taps start at a time: each compiles for a second and in 150 MB.  Names are looked up
    before that: a name server that hangs holds up no other tap.  `together` has the budget of all taps.
    """

    def __init__(
        self,
        spec: TapSpec,
        log: Log,
        loaders: threading.Semaphore,
        together: Together,
        *,
        make: Make = Tap,
        before: Before | None = None,
        over: Callable[[int, dict[str, Any]], None] = lambda _life, _ledger: None,
    ) -> None:
        """`over` receives each life that ended, with its last ledger; in the tap's thread."""
        self.spec = spec
        self.counted: tuple[int, dict[str, Any] | None] = (0, None)
        """(life, its last snapshot); each life counts from zero.  Replaced as a whole: other threads read it."""
        self.losses = 0
        """How often the whole tap was lost and began again."""
        self._idle: tuple[float, float | None] = (0.0, None)
        """(seconds without capture so far, since when there is none, of CLOCK_MONOTONIC; None: the tap captures, or
        should not).  Replaced as a whole, because other threads read it."""
        if before is not None:
            ago = max(0.0, time.time() - before.until)  # the clock may have been set back
            self._idle = (before.uncaptured, time.monotonic() - ago)
        self.since = time.time()
        """When the tap was started, in seconds of the wall clock."""
        self.started: Future[None] = Future()
        """The outcome of the first try: done, or the `TapError`."""
        self.ended: Future[dict[str, Any] | None] = Future()
        """The final ledger, if there is one."""
        self.notes: list[str] = []
        """Warnings until `started` is done, for whoever asked for the tap."""
        self.keep_trying = False
        """Whether the first try is followed by others."""
        self.waits = False
        """Whether an interface that is not there is waited for, also at the first try."""
        self._log = log
        self._loaders = loaders
        self._together = together
        self._make = make
        self._over = over
        self._tap: Tap | None = None
        self._claims: Claims | None = None
        self._state = ("starting", "")
        self._held = ""
        self._loop = ""
        """Why it is off until it is resumed: what it sent came back to production."""
        self._paused = False
        self._let_go: Tap | None = None
        """The last tap that was detached by another thread."""
        self._interrupted = False
        """The running tap was detached by another thread and has to end, even if it may begin again at once."""
        self._ending = False
        self._failures = 0
        self._life = 0
        self._commands: list[tuple[Command, Future[Any]]] = []
        self._lock = threading.RLock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name=f"tap {spec.name}", daemon=True)

    def start(self, held: str = "") -> None:
        """Begin; `held`: why it is not to run yet."""
        self._held = held
        if held:
            self._idle = (self._idle[0], None)
        self._thread.start()

    @property
    def state(self) -> tuple[str, str]:
        """What it is doing, and why, in one line for people."""
        tap = self._tap
        if tap is not None and self._state[0] == "running":
            return tap.state, tap.state_reason
        return self._state

    @property
    def ledger(self) -> dict[str, Any] | None:
        """The last snapshot; None before the first."""
        return self.counted[1]

    @property
    def uncaptured(self) -> float:
        """Seconds for which the tap should have captured and did not, including a time that still lasts.

        An upper bound: the end of a daemon that was killed is known only to within a second, and the time ends when
        the tap is completely up.
        """
        seconds, since = self._idle
        return seconds if since is None else seconds + time.monotonic() - since

    @property
    def held(self) -> str:
        """Why it is not to run at the moment; empty: it is to run."""
        return self._held

    def ask(self, command: Command) -> Future[Any]:
        """Have something done in the tap's thread."""
        future: Future[Any] = Future()
        with self._lock:
            if not self._ending:
                self._commands.append((command, future))
                self._poke()
                return future
        future.set_exception(EndedError("the tap is being stopped"))
        return future

    def mute(self) -> None:
        """Capture nothing any more, in microseconds; `hold` or `end` is due."""
        tap = self._tap
        if tap is not None:
            tap.mute()

    def hold(self, reason: str) -> None:
        """Capture nothing from now on, whatever else the tap's thread is doing; let go what was captured."""
        with self._lock:
            self._held = reason
        self._interrupted = True
        self._detach()

    def release(self) -> None:
        """End `hold`: start the tap anew."""
        self._held = self._loop
        self._poke()

    def end(self) -> Future[dict[str, Any] | None]:
        """Detach at once, drain what was captured, and end the thread.  May be called again."""
        with self._lock:
            self._ending = True
        self._detach()
        return self.ended

    def detach(self) -> None:
        """Repeat this for a tap that was just being started when `hold` or `end` was called."""
        if self._leaving():
            self._detach()

    def _leaving(self) -> bool:
        return self._ending or self._interrupted or bool(self._held)

    def _detach(self) -> None:
        """Detach in another thread: the kernel needs 10 ms for each packet socket, and our own thread may hang."""
        tap = self._tap
        if tap is not None and tap is not self._let_go:
            self._let_go = tap
            tap.mute()
            try:
                threading.Thread(target=tap.detach, name=f"off {self.spec.name}", daemon=True).start()
            except RuntimeError:  # no more threads are allowed
                tap.detach()
        self._poke()

    def _poke(self) -> None:
        with self._lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    # --- the thread

    def _run(self) -> None:
        final: dict[str, Any] | None = None
        try:
            while not self._ending:
                if self._held:
                    self._count_uncaptured("it was held")
                    self._accepted()
                    self._state = ("failed" if self._held == self._loop else "paused", self._held)
                    self._wait(None)
                    continue
                if self._begin():
                    final = self._drive()
                elif not self.keep_trying:
                    break
                if self._state[0] == "failed":
                    self._pause()
        except BaseException as error:
            self._state = ("failed", f"internal error: {error!r}")
            self._log.say(Level.ERROR, "internal", f"{error!r}", tap=self.spec.name)
            if not self.started.done():
                self.started.set_exception(error)
        finally:
            self._finish(final)

    def _finish(self, final: dict[str, Any] | None) -> None:
        with self._lock:
            self._ending = True
        self._refuse_commands()
        self._close()
        if self._state[0] != "failed":
            self._state = ("stopped", "")
        if not self.started.done():
            self.started.set_exception(EndedError("the tap was stopped while it started"))
        with self._lock:
            os.close(self._wake)
            self._wake = -1
        self.ended.set_result(final)

    def _begin(self) -> bool:
        """Whether the tap runs."""
        self._interrupted = False
        self._state = ("starting", "looks up its shadows")
        try:
            self._claims = Claims(self.spec)
            waits = self.keep_trying or self.waits
            self._tap = tap = self._make(self.spec, self._warn, self._say, wait_for_interface=waits)
            tap.prepare()
            if not self._start(tap):
                self._close()
                return False
        except Exception as error:
            self._failed(as_tap_error(error))
            return False
        if self._ending:
            return False
        self._state = ("running", "")
        self.since = time.time()
        self._accepted()
        self._log.say(Level.INFO, "started", f"capture by {tap.capture}", tap=self.spec.name)
        self._count_uncaptured("this start")
        return True

    def _count_uncaptured(self, end: str) -> None:
        """Add the time without capture that is over now; `end` says what ended it, for the log."""
        if self._idle[1] is not None:
            before, whole = self._idle[0], self.uncaptured
            self._idle = (whole, None)
            message = f"nothing was captured for {whole - before:.2f} s before {end}"
            self._log.say(Level.NOTICE, "uncaptured", message, tap=self.spec.name)

    def _start(self, tap: Tap) -> bool:
        """Start the tap when its turn comes; False: it should not run any more."""
        self._state = ("starting", "waits for its turn")
        while not self._loaders.acquire(timeout=0.1):
            if self._leaving():
                return False
        try:
            if self._leaving():
                return False
            self._state = ("starting", "loads the program and starts the worker")
            tap.start()
            return True
        finally:
            self._loaders.release()

    def _accepted(self) -> None:
        if not self.started.done():
            self.keep_trying = True
            self.started.set_result(None)

    def _failed(self, error: TapError) -> None:
        self._close()
        if self._leaving():
            return
        self._failures += 1
        self._state = ("failed", str(error))
        self._log.say(Level.ERROR, "not_started", str(error), tap=self.spec.name)
        if not self.started.done():
            self.started.set_exception(error)

    def _drive(self) -> dict[str, Any] | None:
        """Drive the tap until it ends, is held, or is lost; returns its last ledger."""
        tap = self._tap
        assert tap is not None
        began, self._life = time.monotonic(), next(LIVES)
        try:
            self._go_on(tap)
            self._state = ("stopping", self._held or "sends what was captured")
            ledger = tap.stop(comparison=False)  # too long for replies: it is asked for while the tap runs
            self.counted = (self._life, ledger)
        except Exception as error:
            self._lost(as_tap_error(error), time.monotonic() - began)
        finally:
            self._close()
        if self.counted[0] == self._life and self.ledger is not None:
            self._over(self._life, self.ledger)
        return self.ledger

    def _close(self) -> None:
        tap, self._tap = self._tap, None
        if tap is not None:
            tap.close()
        claims, self._claims = self._claims, None
        if claims is not None:
            claims.close()

    def _go_on(self, tap: Tap) -> None:
        """Drive the tap until it is to end or to be held.  Raises `TapError` if it is lost."""
        regulation = Regulation(self.spec.budget, self._together, time.monotonic(), self._tell_share)
        try:
            self._serve(tap, regulation)
        finally:
            self._together.forget(regulation)

    def _serve(self, tap: Tap, regulation: Regulation) -> None:
        due = time.monotonic()
        waits_for = ""
        while not self._leaving():
            now = time.monotonic()
            try:
                tap.service(now)
                waits_for = self._tell_waiting(tap, waits_for)
                if now >= due:
                    ledger = tap.snapshot()
                    regulation.observe(tap, ledger, now)
                    self.counted = (self._life, ledger)
                    due = now + INTERVAL
            except TapError:
                if self._leaving():  # it was detached amid this
                    return
                raise
            self._serve_commands(tap)
            until = min(due, tap.due() or due)
            self._wait(max(0.0, until - time.monotonic()), tap.filenos())

    def _tell_waiting(self, tap: Tap, before: str) -> str:
        """What the tap waits for; `before` is the result of the last call.  A change is logged."""
        state, reason = tap.state, tap.state_reason
        if state == "running" and before:
            self._log.say(Level.NOTICE, "waiting", "it waits no more, and captures", tap=self.spec.name)
            return ""
        if state == "waiting" and reason != before:
            self._log.say(Level.WARNING, "waiting", reason, tap=self.spec.name)
            return reason
        return before

    def _lost(self, error: TapError, lasted: float) -> None:
        if lasted >= STEADY:
            self._failures = 0
        self._failures += 1
        self.losses += 1
        if not (self._paused or self._leaving()):
            self._idle = (self._idle[0], time.monotonic())
        self._state = ("failed", str(error))
        self._log.say(Level.ERROR, "lost", str(error), tap=self.spec.name)
        if isinstance(error, LoopError):
            with self._lock:
                self._loop = str(error)
                self._held = self._held or self._loop
        if self._paused:
            self._hold_paused()

    def _hold_paused(self) -> None:
        """Hold it by command, unless it is held already: `resume` must not end another reason."""
        with self._lock:
            self._held = self._held or PAUSED

    def _pause(self) -> None:
        """Wait until the next try is due, and serve commands meanwhile."""
        wait = BACKOFF[min(self._failures, len(BACKOFF)) - 1] if self._failures else 0.0
        state, reason = self._state
        if state == "failed":
            self._state = ("restarting", f"{reason}; next try in {wait:g} s")
        end = time.monotonic() + wait
        while not self._leaving() and (left := end - time.monotonic()) > 0:
            self._wait(left)

    def _wait(self, seconds: float | None, descriptors: list[int] | None = None) -> None:
        """Wait for a command, for one of the descriptors to be readable, or for the time to be over."""
        if descriptors is None and self._serve_commands(None):
            return  # a command that came before this wait wakes nobody, and may have ended the reason to wait
        poll = select.poll()
        for descriptor in (self._wake, *(descriptors or ())):
            poll.register(descriptor, select.POLLIN)
        poll.poll(None if seconds is None else seconds * 1000)
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        if descriptors is None:
            self._serve_commands(None)

    def _serve_commands(self, tap: Tap | None) -> bool:
        """Carry out what was asked for; returns whether there was anything."""
        with self._lock:
            commands, self._commands = self._commands, []
        for command, future in commands:
            try:
                result = command(tap)
                life, ledger = self.counted
                if tap is not None and ledger is not None and life == self._life:
                    self.counted = life, tap.with_share(ledger)  # with the change, for whoever reads it next
                future.set_result(result)
            except Exception as error:
                future.set_exception(as_tap_error(error))
        return bool(commands)

    def _refuse_commands(self) -> None:
        with self._lock:
            commands, self._commands = self._commands, []
        for _, future in commands:
            future.set_exception(EndedError("the tap was stopped"))

    def _warn(self, message: str) -> None:
        if not self.started.done():
            self.notes.append(message)
        self._log.say(Level.WARNING, "warning", message, tap=self.spec.name)

    def _say(self, line: str) -> None:
        self._log.say(Level.WARNING, "worker_said", line, tap=self.spec.name)

    def _tell_share(self, message: str) -> None:
        self._log.say(Level.NOTICE, "share", message, tap=self.spec.name)

    # --- what can be asked for

    def set_percent(self, percent: float) -> Future[Any]:
        """The share, now and after every restart."""

        def change(tap: Tap | None) -> None:
            if tap is not None:
                tap.set_percent(percent)
            self.spec = with_share(self.spec, percent)

        return self.ask(change)

    def comparison(self) -> Future[Any]:
        """The states of its workers' comparisons, as a JSON list."""

        def look(tap: Tap | None) -> bytes:
            if tap is None:
                raise TapError("the tap does not run: there is nothing to report")
            return msgspec.json.encode(tap.comparison())

        return self.ask(look)

    def pause(self) -> Future[Any]:
        """Capture nothing until `resume`."""

        def change(tap: Tap | None) -> None:
            self._paused = True
            if tap is not None:
                tap.pause()
            else:
                self._hold_paused()

        tap = self._tap
        if tap is not None:  # its thread may be waiting for a worker, on a host that is too busy
            tap.hurry()
        return self.ask(change)

    def resume(self) -> Future[Any]:
        """Capture again, also what ended because it led back to production."""

        def change(tap: Tap | None) -> None:
            self._paused = False
            if tap is not None:
                tap.resume()
                return
            with self._lock:  # the kill switch may have come since this was asked for
                if self._held in (PAUSED, self._loop):
                    self._held = self._loop = ""
                    self._state = ("starting", "")

        return self.ask(change)


def as_tap_error(error: Exception) -> TapError:
    """Any error as a `TapError` in one line: a lack of descriptors or memory may pass, so the tap is tried again."""
    if isinstance(error, TapError):
        return error
    if isinstance(error, ClaimedError):
        return TapRefusedError(str(error))
    kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
    return TapError(f"internal error: {kind}{' '.join(str(error).split())}")


def with_share(spec: TapSpec, percent: float) -> TapSpec:
    """The tap with a share that was set: a ramp is over then.  Raises `SpecError`."""
    return msgspec.structs.replace(spec, percent=percent, ramp=None)
