# SPDX-License-Identifier: Apache-2.0
"""Worker processes, as the supervisor has them: one process, and the place that one after the other takes.

Theory of operation
-------------------
What is captured belongs to the supervisor: the ring and its counters outlive whoever reads them.  A worker that dies (a
signal, out of memory, an error) is replaced over the same ring, after a pause that doubles with each failure; while
nobody reads, the ring fills, and what it has no room for is counted in the kernel as `ring_full`.  The successor gets
the ledgers of the last snapshot (`handover`), reads on where its predecessor had come to, and joins the connections in
mid-stream.  A place is lost after `FAILURES` deaths of which each came soon, and with who found a loop.
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
"""Seconds for a worker to start: Python's imports on a busy host."""
PIECES_TIME: Final = 20.0
"""Seconds for all pieces of an answer: some 2,000 at most, of which a busy worker sends ten in one iteration of its
loop."""
REPLY_TIME: Final = 5.0
"""Seconds for a worker to answer; it looks at its control socket in every iteration of its loop.  As in the two above,
those in which it waits for a CPU do not count (`patience`)."""
LOOK: Final = 1.0
"""Seconds between two looks at whether a worker that does not answer has a CPU."""
STARVED: Final = 5.0
"""Seconds for which a worker waits for a CPU that are told."""
LAST_WORDS: Final = 1024
"""Messages that are read of a worker that is gone, at most; the kernel keeps fewer (net.unix.max_dgram_qlen)."""
FIRST_PAUSE: Final = 0.1
"""Seconds before the first restart."""
LONGEST_PAUSE: Final = 5.0
"""Seconds before a restart at most."""
STEADY: Final = 10.0
"""Seconds for which a worker has run when its next death counts as the first again: twice the longest pause, so that
one that dies soon after each start does not take half of a processor for its starts."""
FAILURES: Final = 8
"""Deaths in a row after which the tap is given up: some 16 seconds, and whatever kills it is there to stay."""

Make: TypeAlias = Callable[[], "tuple[Setup, Sequence[int]]"]
"""The set-up of a worker that starts now, and its descriptors, which become the caller's."""


class TapError(Exception):
    """The tap cannot be started or went wrong; the message is one line for the user."""


class LoopError(TapError):
    """What the tap sends comes back to production: it is not to be tried again."""


class TapRefusedError(TapError):
    """It was told to do what makes no sense on this host."""


def _readable(sock: socket.socket, wait: float) -> bool:
    """Whether something is there, within `wait` seconds.  By poll(2): a daemon may have descriptors beyond 1024."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(wait * 1000))


class LoopFound(msgspec.Struct, frozen=True):
    """A loop, as a worker tells of it: what was sent to a shadow came back to production."""

    target: Annotated[int, msgspec.Meta(ge=0)]
    """The shadow's number among the copies of all."""
    client: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f:.]{2,45}\Z")]
    """Address that the request came from."""


class WorkerProcess:
    """A worker and our end of its control socket; ours until `close`.

    `warn` receives one-line warnings, `said` the lines that it prints.
    """

    def __init__(
        self, setup: Setup, fds: Sequence[int], warn: Callable[[str], None], said: Callable[[str], None]
    ) -> None:
        """Begin to start it.  The descriptors stay the caller's.  Raises OSError."""
        self._warn = warn
        self._said = said
        self._pieces = privsep.Pieces(STATE_BYTES)
        self.ready = False
        """Whether the worker mirrors."""
        self.loop: LoopFound | None = None
        """It found that what it sends comes back to production."""
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
        """The user was told that it waits for a CPU."""
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
        """Readable when the worker has become ready, and when it died."""
        return self._control.fileno()

    def hear(self, now: float) -> None:
        """Pass on some of what it printed."""
        for line in self._output.lines(now):
            self._said(line)

    def look(self) -> None:
        """Take note of what it says unasked.  Raises `TapError` if it is gone or cannot start."""
        if _readable(self._control, 0.0):
            self._take()

    def hurry(self, hurried: bool) -> None:
        """From now on time without a CPU counts as well: somebody waits.  Or not any more.  In any thread."""
        self._hurried = hurried

    def wait_ready(self, wait: float) -> None:
        """Raises `TapError` if it is gone, cannot start, or takes over `wait` seconds."""
        end = self._look(self._starting) + wait
        while not self.ready:
            self._wait(self._starting, end, wait)
            self._take()

    def late(self) -> bool:
        """Whether it has had `READY_TIME` to start.  Ask about once a second."""
        return self._look(self._starting) - self._began > READY_TIME

    def ask(self, request: dict[str, Any], answer: str, wait: float) -> dict[str, Any]:
        """Send a request; the message that answers it.  Raises `TapError`: it is gone, or over `wait` seconds late."""
        self.tell(request)
        return self.answer(answer, wait)

    def tell(self, request: dict[str, Any]) -> None:
        """Send a request.  Raises `TapError`: it is gone."""
        try:
            privsep.send(self._control, request)
        except OSError:
            raise self._gone() from None

    def answer(self, answer: str, wait: float) -> dict[str, Any]:
        """Wait for the message that answers a request.  Raises `TapError`: it is gone, or silent for `wait` seconds.

        A long answer comes in pieces, as the worker finds time for them, for up to `PIECES_TIME`.
        """
        patience = Patience(self._scheduled)
        most = patience.now() + max(wait, PIECES_TIME)
        while True:
            self._wait(patience, min(patience.now() + wait, most), wait)
            message = self._take()
            if answer in message:
                return message

    def close(self, wait: float) -> None:
        """Let it drain and go, for `wait` seconds at most; it is gone then."""
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
        """Until there is something to take, or the end."""
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
        """The next message."""
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
        """Why it is: by its last words, which the kernel hands out only after the error that nobody listens there."""
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
    """The place of a worker, which others take when one dies.

    Call `start`; then `service` when a descriptor is readable and at least once a second.  `lost` says why no worker
    takes the place any more ("": one has it, or will have).  `said` receives the lines that workers print, a few a
    second.
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
        """When the next one is to be started, if there is none."""
        self._began = 0.0
        """When the present worker was started."""
        self._last: dict[str, Any] = {}
        """The last snapshot; as long as one runs it can be asked for a newer one."""
        self._handover: dict[str, Any] | None = None
        self._shadows: Sequence[Shadow] = ()
        """The tap's."""
        self._pending: dict[tuple[str, int | None], tuple[dict[str, Any], str]] = {}
        """What a worker that is starting is to be told: the last request of each kind, and its answer's name."""
        self._drains = False
        self._hurried = False
        self._loop: LoopFound | None = None
        """What one that died had found."""
        self._looked = 0.0
        self._cpu = 0.0
        """Seconds of CPU of those that died."""
        self._compared: dict[str, Any] = {"shadows": {}, "capture": {}}
        """What the comparisons of those that died said, in short."""

    def begin(self) -> None:
        """Start the first worker; `start` waits for it.  Raises OSError; `close` is due then too."""
        if self._process is None:
            self._launch()

    def start(self) -> None:
        """Start the first worker, and wait for it.  Raises `TapError`, OSError; `close` is due then too."""
        self.begin()
        assert self._process is not None
        self._process.wait_ready(READY_TIME)
        self._tell_pending(self._process)
        self._look(self._process)

    @property
    def running(self) -> bool:
        """A worker has it, and mirrors."""
        return self._process is not None and self._process.ready

    @property
    def loop(self) -> LoopFound | None:
        """Its worker found that what it sends comes back to production."""
        return self._loop if self._process is None else self._process.loop

    def filenos(self) -> list[int]:
        """Readable when there is something for `service` to do."""
        return [self._process.fileno()] if self._process is not None else []

    def due(self) -> float | None:
        """When there is something to do that no descriptor tells of; None: nothing."""
        return None if self._process is not None or self.lost else self._due

    def service(self, now: float) -> None:
        """Take note of a worker's death, and start the next when it is time; look at the ledger once a second."""
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
        """The ledger; the last one that was given, where no worker runs."""
        if self._process is not None and self._process.ready:
            try:
                self._look(self._process)
            except TapError as error:
                self._died(error)
        return copy.deepcopy(self._last)

    def comparison(self) -> dict[str, Any] | None:
        """The state of its comparison; None where no worker runs."""
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

    def tell(self, request: dict[str, Any], answer: str) -> None:
        """Tell the worker something, if there is one; a later one has it from its set-up.

        One that is starting is told when it is ready: of each kind (of addresses: for each shadow) the last.
        """
        if self._process is None:
            return
        if not self._process.ready:
            kind = (request["op"], request.get("shadow"))
            self._pending.pop(kind, None)  # the last is to be the last also among those of other kinds
            self._pending[kind] = (request, answer)
            return
        try:
            self._process.ask(request, answer, REPLY_TIME)
        except TapError as error:
            self._died(error)

    def _tell_pending(self, process: WorkerProcess) -> None:
        """Tell a worker that has become ready what changed since it was set up.  Raises `TapError`."""
        pending, self._pending = self._pending, {}
        for request, answer in pending.values():
            process.ask(request, answer, REPLY_TIME)

    def hurry(self, hurried: bool = True) -> None:
        """The tap ends or is to pause: a worker that gets no CPU is not waited for any longer than another one.  Or it
        is again.  In any thread.
        """
        self._hurried = hurried
        process = self._process
        if process is not None:
            process.hurry(hurried)

    def begin_drain(self, *, comparison: bool) -> None:
        """Let the worker pass on what was captured, and end; `drain` waits for it."""
        if self._process is not None and self._process.ready and not self._drains:
            try:
                self._process.tell({"op": "drain", "comparison": comparison})
                self._drains = True
            except TapError as error:
                self._died(error)

    def drain(self, wait: float, *, comparison: bool) -> dict[str, Any]:
        """Let the worker pass on what was captured, and end; the final ledger, with the state of its comparison if that
        is wanted.

        Where it died, now or before, and the next has not begun, what was captured since waits in the ring: that one is
        waited for, as long as the time lasts.
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
        """The final ledger of the worker that is there; None: it died."""
        if self._process is not None and not self._process.ready:
            try:
                self._process.wait_ready(wait)
            except TapError as error:
                self._died(error)
        self.begin_drain(comparison=comparison)
        if self._process is not None and self._process.ready:
            try:
                self._last = self._counted(self._process.answer("final", wait)["final"], final=True)
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
        """A worker's figures with those of its predecessors.  Raises `TapError` if they are not to be believed."""
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
    """A ledger whose worker is gone for good: what it had in flight is lost."""
    for view in (ledger, *ledger["shadows"].values()):
        for unit in ("segments", "bytes", "requests"):
            account = view.get(unit)
            if account is not None and account["in_flight"]:
                lost = DropReason.WORKER_LOST.value
                account["dropped"][lost] = account["dropped"].get(lost, 0) + account["in_flight"]
                account["in_flight"] = 0
    return ledger


def automatic() -> int:
    """How many workers `workers: auto` is on this host: it leaves production half of the processors."""
    return max(1, min(MAX_WORKERS, len(os.sched_getaffinity(0)) // 2))
