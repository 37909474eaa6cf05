# SPDX-License-Identifier: Apache-2.0
"""Worker processes as the supervisor sees them: one process, and the place that one process after another takes.

Theory of operation
-------------------
What is captured belongs to the supervisor: the ring and its counters outlive whoever reads them.  A worker that dies
(by a signal, for want of memory, by an error) is replaced on the same ring, after a pause that doubles with each
failure. While nobody reads, the ring fills, and the kernel counts as `ring_full` what it has no room for.  The
successor gets the ledgers of the last snapshot (`handover`), reads on where its predecessor stopped, and joins the
connections in mid-stream.  A place is lost after `FAILURES` deaths if each came soon after the start, and if the worker
found a loop.
"""

from __future__ import annotations

import copy
import os
import select
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any, Final, TypeAlias

import msgspec

from tapmirror import privsep, stdio
from tapmirror.events import DropReason
from tapmirror.spawn import how_ended, start, unsignalled
from tapmirror.spec.shadow import Shadow
from tapmirror.spec.tap import MAX_WORKERS
from tapmirror.supervisor.figures import checked, with_past
from tapmirror.supervisor.log import printable
from tapmirror.supervisor.patience import LONGEST, Patience, Scheduled
from tapmirror.worker.setup import MESSAGE, STATE_BYTES, Setup

READY_TIME: Final = 20.0
"""Seconds that a worker may take to start: Python's imports on a busy host."""
PIECES_TIME: Final = 20.0
"""Seconds that all pieces of a reply may take.  There are at most some 2,000, and a busy worker sends ten of them
in one iteration of its loop."""
REPLY_TIME: Final = 5.0
"""Seconds that a worker may take to answer.  It looks at its control socket in every iteration of its loop.  For
this limit and the two above, seconds in which the worker waits for a CPU do not count (`patience`)."""
LOOK: Final = 1.0
"""Seconds between two checks whether a worker that does not answer has a CPU."""
STARVED: Final = 5.0
"""Seconds without a CPU after which the user is told."""
LAST_WORDS: Final = 1024
"""Most messages that are read from a worker that is gone; the kernel keeps fewer (net.unix.max_dgram_qlen)."""
FIRST_PAUSE: Final = 0.1
"""Seconds before the first restart."""
LONGEST_PAUSE: Final = 5.0
"""Most seconds before a restart."""
STEADY: Final = 10.0
"""If a worker has run for this many seconds, its next death counts as the first again.  This is twice the longest
pause, so that a worker that dies soon after each start does not use half of a processor for its starts."""
FAILURES: Final = 8
"""After so many deaths in a row the tap is given up.  That takes some 16 seconds, so whatever kills the workers is
not going to stop."""

Make: TypeAlias = Callable[[], "tuple[Setup, Sequence[int]]"]
"""The set-up of a worker that starts now, and its descriptors, which then belong to the caller."""


class TapError(Exception):
    """The tap cannot be started, or failed.  The message is one line for the user."""


class LoopError(TapError):
    """What the tap sends comes back to production, so it must not be tried again."""


class TapRefusedError(TapError):
    """The request makes no sense on this host."""


def _readable(sock: socket.socket, wait: float) -> bool:
    """Whether there is something to read within `wait` seconds.  Uses poll(2), because a daemon may have descriptors
    beyond 1024.
    """
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(wait * 1000))


class LoopFound(msgspec.Struct, frozen=True):
    """A loop that a worker reports: what was sent to a shadow came back to production."""

    target: Annotated[int, msgspec.Meta(ge=0)]
    """The number of the shadow, where each of its copies counts."""
    client: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f:.]{2,45}\Z")]
    """The address from which the request came."""


class WorkerProcess:
    """A worker process, and our end of its control socket, which stays ours until `close`.

    `warn` receives one-line warnings, `said` the lines that the worker prints.
    """

    def __init__(
        self, setup: Setup, fds: Sequence[int], warn: Callable[[str], None], said: Callable[[str], None]
    ) -> None:
        """Begin to start the worker.  The descriptors stay the caller's.  Raises OSError."""
        self._warn = warn
        self._said = said
        self._pieces = privsep.Pieces(STATE_BYTES)
        self.ready = False
        """Whether the worker mirrors."""
        self.loop: LoopFound | None = None
        """Whether the worker found that what it sends comes back to production."""
        self._output = stdio.Output()
        try:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except BaseException:
            self._output.close(0.0)
            raise
        try:
            self._process = start("tapmirror.worker", theirs, self._output.theirs)
        except BaseException:
            self._control.close()
            self._output.close(0.0)
            raise
        self._output.let_go()
        self._scheduled = Scheduled(self.pid)  # before it has what it waits for to become another user's
        self._starting = Patience(self._scheduled)
        self._began = self._starting.now()
        self._told = False
        """Whether the user was told that the worker waits for a CPU."""
        self._hurried = False
        try:
            privsep.send_large(self._control, msgspec.to_builtins(setup), fds)
        except BaseException:
            self.close(0.0)
            raise

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    def fileno(self) -> int:
        """The descriptor that is readable when the worker has become ready, and when it has died."""
        return self._control.fileno()

    def hear(self, now: float) -> None:
        """Pass on some of the lines that the worker printed."""
        for line in self._output.lines(now):
            self._said(line)

    def look(self) -> None:
        """Take note of what the worker says unasked.  Raises `TapError` if it is gone or cannot start."""
        if _readable(self._control, 0.0):
            self._take()

    def hurry(self, hurried: bool) -> None:
        """Count time without a CPU from now on as well, because somebody waits for the worker; or no more.

        Any thread may call this.
        """
        self._hurried = hurried

    def wait_ready(self, wait: float) -> None:
        """Wait until it is ready.  Raises `TapError` if it is gone, cannot start, or takes over `wait` seconds."""
        end = self._look(self._starting) + wait
        while not self.ready:
            self._wait(self._starting, end, wait)
            self._take()

    def late(self) -> bool:
        """Whether the worker has had `READY_TIME` to start.  Ask about once a second."""
        return self._look(self._starting) - self._began > READY_TIME

    def ask(self, request: dict[str, Any], reply: str, wait: float) -> dict[str, Any]:
        """Send a request; returns the reply.  Raises `TapError` if the worker is gone, or over `wait` seconds late."""
        self.tell(request)
        return self.reply(reply, wait)

    def tell(self, request: dict[str, Any]) -> None:
        """Send a request.  Raises `TapError` if the worker is gone."""
        try:
            privsep.send(self._control, request)
        except OSError:
            raise self._gone() from None

    def reply(self, reply: str, wait: float) -> dict[str, Any]:
        """Wait for the reply to a request.  Raises `TapError` if the worker is gone, or silent for `wait` seconds.

        A long reply comes in pieces, as the worker finds time for them, for up to `PIECES_TIME`.
        """
        patience = Patience(self._scheduled)
        most = patience.now() + max(wait, PIECES_TIME)
        while True:
            self._wait(patience, min(patience.now() + wait, most), wait)
            message = self._take()
            if reply in message:
                return message

    def close(self, wait: float) -> None:
        """Let the worker drain and exit, for at most `wait` seconds.  It is gone afterwards."""
        self._control.close()
        try:
            self._process.wait(wait)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._scheduled.close()
        for line in self._output.close(time.monotonic()):
            self._said(line)

    def _wait(self, patience: Patience, end: float, wait: float) -> None:
        """Wait until there is a message, or the end."""
        while not _readable(self._control, min(LOOK, max(0.0, end - patience.now()))):
            if self._look(patience) >= end:
                self._process.kill()  # it hangs, and would not drain either
                starved = f", and waited {patience.starved:.0f} s for a CPU besides" if patience.starved >= 1.0 else ""
                raise TapError(f"the worker process did not answer within {wait:.0f} s{starved}")

    def _look(self, patience: Patience) -> float:
        if self._hurried:
            patience.lose()
        now = patience.look()
        if patience.starved >= STARVED and not self._told:
            self._told = True
            self._warn(
                f"the worker process has waited {patience.starved:.0f} s for a CPU: the host is too busy, or a limit "
                f"(CPUQuota=, cpu.max) is too low; it is replaced if it does not answer after {LONGEST:.0f} s of this"
            )
        return now

    def _take(self) -> dict[str, Any]:
        """The next message of the worker."""
        try:
            message = self._pieces.take(privsep.receive_bare(self._control, MESSAGE))
        except (OSError, EOFError):
            raise self._gone() from None
        except (ValueError, RecursionError) as error:
            self._process.kill()
            raise TapError(f"the worker process said what cannot be read: {printable(str(error))}") from None
        if "error" in message:
            raise TapError(printable(str(message["error"])))
        if "loop" in message:
            try:
                self.loop = msgspec.convert(message["loop"], LoopFound)
            except msgspec.ValidationError as error:
                self._process.kill()
                raise TapError(f"the worker process told of a loop that cannot be: {printable(str(error))}") from None
        self.ready = self.ready or "ready" in message
        return message

    def _gone(self) -> TapError:
        """Why the worker is gone, by its last words.  The kernel hands these out only after the error that nobody
        listens there.
        """
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return TapError("the worker process ended (it hangs)")
        with suppress(OSError, EOFError, ValueError, RecursionError):
            for _ in range(LAST_WORDS):
                if not _readable(self._control, 0.0):
                    break
                message = self._pieces.take(privsep.receive_bare(self._control, MESSAGE))
                if "error" in message:
                    return TapError(printable(str(message["error"])))
        return TapError(f"the worker process ended ({how_ended(code)})")


class WorkerSlot:
    """The place of a worker, which the next one takes if a worker dies.

    Call `start`, then `service` whenever a descriptor is readable, and at least once a second.  `lost` says why no
    worker takes the place any more ("": a worker has it, or will have it).  `said` receives the lines that workers
    print, a few a second.
    """

    def __init__(self, make: Make, warn: Callable[[str], None], said: Callable[[str], None]) -> None:
        self.lost = ""
        self.reason = ""
        """Why there is no worker just now; "": there is one."""
        self.restarts = 0
        self._make = make
        self._warn = warn
        self._said = said
        self._process: WorkerProcess | None = None
        self._failures = 0
        self._due = 0.0
        """When the next worker is to be started, if there is none."""
        self._began = 0.0
        """When the present worker was started."""
        self._last: dict[str, Any] = {}
        """The last snapshot.  While a worker runs, it can be asked for a newer one."""
        self._handover: dict[str, Any] | None = None
        self._shadows: Sequence[Shadow] = ()
        """The shadows of the tap."""
        self._pending: dict[tuple[str, int | None], tuple[dict[str, Any], str]] = {}
        """What a starting worker is to be told as soon as it is ready: the last request of each kind, and the name
        of its reply."""
        self._drains = False
        self._hurried = False
        self._loop: LoopFound | None = None
        """The loop that a dead worker had found."""
        self._looked = 0.0
        self._cpu = 0.0
        """Seconds of CPU that dead workers had used."""
        self._compared: dict[str, Any] = {"shadows": {}, "capture": {}}
        """What the comparisons of dead workers said, in short."""

    def begin(self) -> None:
        """Begin to start the first worker; `start` waits for it.  Raises OSError; call `close` in that case, too."""
        if self._process is None:
            self._launch()

    def start(self) -> None:
        """Start the first worker, and wait for it.  Raises `TapError` or OSError; call `close` in that case, too."""
        self.begin()
        assert self._process is not None
        self._process.wait_ready(READY_TIME)
        self._tell_pending(self._process)
        self._look(self._process)

    @property
    def running(self) -> bool:
        """Whether a worker has the place, and mirrors."""
        return self._process is not None and self._process.ready

    @property
    def loop(self) -> LoopFound | None:
        """Whether its worker found that what it sends comes back to production."""
        return self._loop if self._process is None else self._process.loop

    def filenos(self) -> list[int]:
        """The descriptor that is readable when `service` has something to do."""
        return [self._process.fileno()] if self._process is not None else []

    def due(self) -> float | None:
        """When `service` has something to do that no descriptor shows; None: nothing."""
        return None if self._process is not None or self.lost else self._due

    def service(self, now: float) -> None:
        """Take note of the death of a worker, and start the next one when it is time.  Look at the ledger once a
        second.
        """
        if self.lost:
            return
        if self._process is None:
            if now >= self._due:
                self._restart(now)
            return
        ready = self._process.ready
        self._process.hear(now)
        try:
            self._process.look()
            if self._process.ready and not ready:
                self._tell_pending(self._process)
                self.reason = ""
            elif not ready and self._process.late():
                raise TapError(f"the worker process did not start within {READY_TIME:.0f} s")
            if self._process.ready and now - self._looked >= 1.0:
                self._look(self._process)
        except TapError as error:
            self._died(error)
            return
        if self._process.ready and now - self._began >= STEADY:
            self._failures = 0

    def snapshot(self) -> dict[str, Any]:
        """The ledger.  If no worker runs, it is the last one that a worker gave."""
        if self._process is not None and self._process.ready:
            try:
                self._look(self._process)
            except TapError as error:
                self._died(error)
        return copy.deepcopy(self._last)

    def comparison(self) -> dict[str, Any] | None:
        """The state of its comparison; None: no worker runs."""
        if self._process is None or not self._process.ready:
            return None
        try:
            state = self._process.ask({"op": "compare"}, "compare", REPLY_TIME)["compare"]
            if not isinstance(state, dict):
                raise TapError("the worker process said what is no comparison")
        except TapError as error:
            self._died(error)
            return None
        return state

    def tell(self, request: dict[str, Any], reply: str) -> None:
        """Tell the worker something, if there is one; a later one has it from its set-up.

        A starting worker is told when it is ready: the last request of each kind (of addresses: the last for each
        shadow).
        """
        if self._process is None:
            return
        if not self._process.ready:
            kind = (request["op"], request.get("shadow"))
            self._pending.pop(kind, None)  # the last is to be the last also among those of other kinds
            self._pending[kind] = (request, reply)
            return
        try:
            self._process.ask(request, reply, REPLY_TIME)
        except TapError as error:
            self._died(error)

    def _tell_pending(self, process: WorkerProcess) -> None:
        """Tell a worker that has become ready what has changed since it was set up.  Raises `TapError`."""
        pending, self._pending = self._pending, {}
        for request, reply in pending.values():
            process.ask(request, reply, REPLY_TIME)

    def hurry(self, hurried: bool = True) -> None:
        """The tap ends or is to pause, so a worker that gets no CPU is not waited for longer than any other; or that is
        over.

        Any thread may call this.
        """
        self._hurried = hurried
        process = self._process
        if process is not None:
            process.hurry(hurried)

    def begin_drain(self, *, comparison: bool) -> None:
        """Tell the worker to pass on what was captured, and to exit; `drain` waits for that."""
        if self._process is not None and self._process.ready and not self._drains:
            try:
                self._process.tell({"op": "drain", "comparison": comparison})
                self._drains = True
            except TapError as error:
                self._died(error)

    def drain(self, wait: float, *, comparison: bool) -> dict[str, Any]:
        """Let the worker pass on what was captured, and exit; returns the final ledger, with the state of its
        comparison if `comparison` is set.

        If the worker has died, now or before, and the next one has not begun, what was captured since then waits in the
        ring.  In that case this waits for the next worker, as long as there is time.
        """
        end = time.monotonic() + wait
        while True:
            if self._process is None and self._last and not self.lost:
                self._restart(time.monotonic())
            final = self._drained(wait, comparison=comparison)
            wait = end - time.monotonic()
            if final is not None:
                return final
            if self.lost or not self._last or wait <= 0.0:
                return written_off(self._last)

    def _drained(self, wait: float, *, comparison: bool) -> dict[str, Any] | None:
        """The final ledger of the present worker; None: it died."""
        if self._process is not None and not self._process.ready:
            try:
                self._process.wait_ready(wait)
            except TapError as error:
                self._died(error)
        self.begin_drain(comparison=comparison)
        if self._process is not None and self._process.ready:
            try:
                self._last = self._counted(self._process.reply("final", wait)["final"], final=True)
                return self._last
            except TapError as error:
                self._died(error)
        return None

    def close(self, wait: float) -> None:
        """End the worker, which may drain for `wait` seconds."""
        if self._process is not None:
            self._process.close(wait)
            self._process = None

    def _launch(self) -> None:
        self._pending.clear()
        self._drains = False
        setup, fds = self._make()
        self._shadows = setup.spec.shadows
        setup = msgspec.structs.replace(setup, past=self._handover)
        try:
            with unsignalled():  # what a signal's handler raises comes when `close` knows of it
                self._process = WorkerProcess(setup, fds, self._warn, self._said)
        finally:
            for fd in fds:
                os.close(fd)
        self._began = time.monotonic()
        self._process.hurry(self._hurried)

    def _restart(self, now: float) -> None:
        self.restarts += 1
        try:
            self._launch()
        except (OSError, privsep.PrivilegeError) as error:
            self._died(TapError(f"the worker process cannot be started: {error}"))

    def _look(self, process: WorkerProcess) -> None:
        message = process.ask({"op": "snapshot"}, "snapshot", REPLY_TIME)
        handover = message.get("handover")
        if not isinstance(handover, dict):
            raise TapError("the worker process handed over no ledgers")
        self._last = self._counted(message["snapshot"])
        self._handover = handover
        self._looked = time.monotonic()

    def _counted(self, found: object, *, final: bool = False) -> dict[str, Any]:
        """The figures of a worker and of its predecessors together.  Raises `TapError` if they cannot be right."""
        try:
            snapshot = checked(found, self._shadows, final=final)
        except ValueError as error:
            raise TapError(f"the worker process gave figures that cannot be: {printable(str(error))}") from None
        snapshot["worker"]["cpu_s"] += self._cpu
        if "compare" in snapshot:
            snapshot["compare"] = with_past(snapshot["compare"], self._compared)
        snapshot["worker"]["restarts"] = self.restarts
        return snapshot

    def _died(self, error: TapError) -> None:
        now = time.monotonic()
        if self._process is not None:
            if self._process.ready and now - self._began >= STEADY:
                self._failures = 0
            self._loop = self._process.loop
            self._process.close(0.0)
            self._process = None
        if self._last:
            self._cpu = self._last["worker"]["cpu_s"]
            self._compared = self._last.get("compare", self._compared)
        self._failures += 1
        self.reason = str(error)
        if self._loop is not None:  # it read nothing more: the next one would send it all to production
            self.lost = self.reason
            return
        if self._failures >= FAILURES:
            self.lost = f"{error} {FAILURES} times in a row"
            return
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (self._failures - 1))
        self._due = now + pause
        self._warn(f"{error}; another one starts in {pause:.1f} s")


def written_off(ledger: dict[str, Any]) -> dict[str, Any]:
    """The ledger of a worker that is gone and not replaced: what it had in flight is lost."""
    for view in (ledger, *ledger["shadows"].values()):
        for unit in ("segments", "bytes", "requests"):
            account = view.get(unit)
            if account is not None and account["in_flight"]:
                lost = DropReason.WORKER_LOST.value
                account["dropped"][lost] = account["dropped"].get(lost, 0) + account["in_flight"]
                account["in_flight"] = 0
    return ledger


def automatic() -> int:
    """How many workers `workers: auto` means on this host: half of the processors are left to production."""
    return max(1, min(MAX_WORKERS, len(os.sched_getaffinity(0)) // 2))
