# SPDX-License-Identifier: Apache-2.0
"""The daemon as a process: its directories and lock, signals, the control socket, the audit log."""

from __future__ import annotations

import asyncio
import fcntl
import grp
import os
import pwd
import resource
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from tapmirror import __version__, privsep
from tapmirror.control.client import SOCKET
from tapmirror.control.messages import (
    MAX_REPORT,
    Apply,
    List,
    Logs,
    Pause,
    Plain,
    Reload,
    Report,
    Request,
    Resume,
    Set,
    Start,
    Status,
    Stop,
)
from tapmirror.control.server import Call, Peer, Server
from tapmirror.spec.settings import AllTaps
from tapmirror.supervisor import folder
from tapmirror.supervisor.daemon import Daemon
from tapmirror.supervisor.endpoint import Endpoint, EndpointError
from tapmirror.supervisor.log import Level, Log
from tapmirror.supervisor.metrics import TapMetrics
from tapmirror.supervisor.notify import Notifier
from tapmirror.supervisor.permission import RefusedError
from tapmirror.supervisor.places import PlaceError, Places, take

GROUP: Final = "tapmirror"
"""Name of the group whose members may change taps."""
LOOK: Final = 0.2
"""Seconds between two looks at the file STOP: all capture has to end within a second, and each look wakes a process,
which may delay one of production's."""
TICK: Final = 0.4
"""Seconds between two calls of everything else that is done regularly."""
REPORTS: Final = 2
"""Most reports that are assembled at a time: each is in memory twice."""
STOP_TIME: Final = 30.0
"""Seconds for all taps to end when the daemon is told to."""


class Service:
    """Requests to a `Daemon`, and its life."""

    def __init__(self, places: Places, log: Log, budget: AllTaps, group: str, metrics: tuple[str, int] | None) -> None:
        self._places = places
        self._metrics = metrics
        self._notifier = Notifier()
        self._log = log
        self._group = group
        self._daemon = Daemon(places, log, budget)
        self._began = time.monotonic()
        self._leave = asyncio.Event()
        self._restored = asyncio.Event()
        self._calls: set[asyncio.Task[None]] = set()
        self._reports = asyncio.Semaphore(REPORTS)

    async def run(self, gid: int | None) -> None:
        """Serve until SIGTERM or SIGINT; a second one is the default action.  Raises `PlaceError`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_end, number)
        loop.add_signal_handler(signal.SIGHUP, self._on_reload)
        path = self._places.runtime / SOCKET
        try:
            server = Server(path, self._serve, self._denied, group=self._group, gid=gid, barred=barred())
        except OSError as error:
            raise PlaceError(f"{path}: {error.strerror}") from None
        endpoint = None
        try:
            if self._metrics is not None:
                endpoint = Endpoint(TapMetrics(self._daemon.roster.snapshots).registry(), *self._metrics)
            restoring = asyncio.create_task(self._restore(path))
            await self._serve_until_told(server)
            if restoring.done():
                restoring.result()
            restoring.cancel()
            self._log.say(Level.INFO, "daemon", "stopping: the taps send what was captured")
            self._notifier.stopping()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._daemon.close(), STOP_TIME)
        except EndpointError as error:
            raise PlaceError(str(error)) from None
        finally:
            server.close()
            if endpoint is not None:
                endpoint.close()

    async def _restore(self, path: Path) -> None:
        """Restore while the ticks already run: the file STOP works even if the disk hangs."""
        try:
            await self._daemon.restore()
        except BaseException:
            self._leave.set()
            raise
        self._restored.set()
        self._log.say(Level.INFO, "daemon", "serving", version=__version__, pid=os.getpid(), socket=path)
        self._notifier.ready()

    async def _serve_until_told(self, server: Server) -> None:
        alive = next_tick = 0.0
        told = asyncio.create_task(self._leave.wait())
        while not told.done():
            now = time.monotonic()
            self._daemon.roster.look_for_stop()
            if now >= next_tick:
                next_tick = now + TICK
                self._daemon.tick(now)
                server.expire(now)
                self._log.tick()
                self._notifier.status(self._daemon.roster.summary())
            if self._notifier.watchdog is not None and now >= alive:
                alive = now + self._notifier.watchdog
                self._notifier.alive()
            await asyncio.wait({told}, timeout=LOOK)

    def _on_end(self, number: int) -> None:
        self._leave.set()
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)

    def _on_reload(self) -> None:
        self._task(self._reload_by_signal())

    async def _reload_by_signal(self) -> None:
        await self._restored.wait()
        self._notifier.reloading()
        try:
            done = await self._daemon.reload()
        except RefusedError as error:
            self._log.say(Level.ERROR, "reload", f"{error}; the taps that ran before go on")
        else:
            self._log.say(Level.NOTICE, "reload", summary(done))
        finally:
            self._notifier.ready()

    # --- requests

    def _serve(self, call: Call) -> None:
        self._task(self._answer(call))

    def _task(self, what: Any) -> None:
        task = asyncio.create_task(what)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _answer(self, call: Call) -> None:
        await self._restored.wait()
        descriptor = None
        try:
            if isinstance(call.request, Report):
                result, descriptor = await self._report(call.request.name)
            else:
                result = await self._do(call.request)
        except RefusedError as error:
            self._audit(call.peer, call.request, f"{error.code}: {error}", done=False)
            call.refuse(error.code, str(error), error.problems)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._log.say(Level.ERROR, "internal", f"{error!r}")
            call.refuse("failed", f"internal error: {error!r}")
            raise
        else:
            self._audit(call.peer, call.request, "done", done=True)
            if descriptor is None and call.request.changes and self._daemon.persistence.error:
                result["warning"] = (
                    f"{self._daemon.persistence.error}; until they are written, a restart undoes this change"
                )
            call.answer(result, descriptor)

    async def _report(self, name: str) -> tuple[dict[str, Any], int]:
        """The reply to `Report` and its descriptor.  Raises `RefusedError`."""
        async with self._reports:
            spec, data = await self._daemon.comparison(name)
            if len(data) > MAX_REPORT:
                raise RefusedError("failed", f"the comparison has {len(data)} bytes, more than a report may have")
            try:
                descriptor = await asyncio.to_thread(sealed, data)
            except OSError as error:
                raise RefusedError("failed", f"no room for the report: {error.strerror}") from None
        compare = msgspec.to_builtins(spec.compare)
        return {"tap": spec.name, "compare": compare, "bytes": len(data)}, descriptor

    async def _do(self, request: Plain) -> dict[str, Any]:
        daemon = self._daemon
        match request:
            case List():
                return {"taps": daemon.roster.told(None, ledger=False)}
            case Status():
                return {"daemon": self._facts(), "taps": daemon.roster.told(request.name, ledger=True)}
            case Logs():
                lines, after = self._log.of(request.name, request.after)
                if not lines:
                    daemon.roster.told(request.name, ledger=False)  # or it is refused
                return {"lines": lines, "next": after}
            case Start():
                names = await daemon.start(request.taps, force=request.force)
                return {"started": names, **daemon.notes(names)}
            case Stop():
                if request.all == (request.name is not None):
                    raise RefusedError("bad_request", "name: give a name or all")
                done = await (daemon.stop_all() if request.name is None else daemon.stop(request.name))
                return {"stopped": done}
            case Apply():
                return await daemon.apply(request.taps, dry_run=request.dry_run, force=request.force)
            case Set():
                await daemon.set_percent(request.name, request.percent)
                return {"name": request.name, "percent": request.percent, **daemon.idle([request.name])}
            case Pause():
                await daemon.pause(request.name)
                return {"name": request.name}
            case Resume():
                await daemon.resume(request.name)
                return {"name": request.name}
            case Reload():
                return await daemon.reload()

    def _facts(self) -> dict[str, Any]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - self._began, 1),
            "killed": self._daemon.roster.killed,
            "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
            "state_error": self._daemon.persistence.error,
            "state_errors": self._daemon.persistence.errors,
            "reload_error": self._daemon.reload_error,
            "log_lines_lost": self._log.lost,
            "all_taps": self._daemon.together.told(),
        }

    # --- who did what

    def _audit(self, peer: Peer, request: Request, outcome: str, *, done: bool) -> None:
        """Write the audit line.

        Lines are held back by user and change, so that nobody can hide a change behind a flood of other requests.
        """
        if request.changes:
            by, facts = who(peer), what(request)
            changed = done and "dry_run" not in facts
            of = [facts[field] for field in ("op", "name", "taps") if field in facts] if changed else ["asked in vain"]
            self._log.say(Level.NOTICE, "audit", outcome, of=" ".join(map(str, (by["user"], *of))), **by, **facts)

    def _denied(self, peer: Peer, request: Request) -> None:
        by = who(peer)
        self._log.say(Level.WARNING, "denied", "may only look", of=by["user"], **by, **what(request))


def sealed(data: bytes) -> int:
    """A descriptor of memory with these bytes, which can be read and not be changed.  Raises OSError."""
    descriptor = os.memfd_create("report", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def who(peer: Peer) -> dict[str, Any]:
    """A peer, for the log.  The name is for people; what was checked is the number."""
    # NOTE: where users come from a directory service that hangs, this waits for it.
    try:
        name = pwd.getpwuid(peer.uid).pw_name
    except KeyError:
        name = str(peer.uid)
    return {"user": name, "uid": peer.uid, "pid": peer.pid}


def what(request: Request) -> dict[str, Any]:
    """A request, for the log."""
    facts: dict[str, Any] = {"op": request.__struct_config__.tag}
    for field in ("name", "percent", "all", "force", "dry_run"):
        value = getattr(request, field, None)
        if value is not None and value is not False:
            facts[field] = value
    taps = getattr(request, "taps", None)
    if taps is not None:
        facts["taps"] = ",".join(spec.name for spec in taps)
    return facts


def summary(done: dict[str, Any]) -> str:
    """What a plan did, in a line."""
    actions = [step["action"] for step in done["plan"]]
    counts = ", ".join(f"{actions.count(action)} {action}" for action in dict.fromkeys(actions))
    failed = "".join(f"; {name} FAILED: {message}" for name, message in done["failed"].items())
    return f"{counts or 'no taps'}{failed}"


def barred() -> frozenset[int]:
    """Users that may not even look: the one that workers run as, in case a worker is taken over."""
    with suppress(privsep.PrivilegeError):
        return frozenset({privsep.worker_identity()[0]} - {0, os.geteuid()})
    return frozenset()


def group_id(name: str) -> int | None:
    """The number of a group; None: there is none of this name."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def serve(places: Places, log: Log, group: str = GROUP, metrics: tuple[str, int] | None = None) -> None:
    """Be the daemon; `metrics`: where to serve them.  Raises `PlaceError`, with nothing done, if it cannot."""
    try:
        budget = folder.settings(places.settings).budget  # a daemon without its budget must not run
    except folder.FolderError as error:
        raise _not_begun(error, places) from None
    gid = group_id(group)
    raise_file_limit()
    held = [take(places.runtime, 0o750, gid)]
    try:
        held.append(take(places.state, 0o700))
        if gid is None:
            log.say(Level.INFO, "daemon", f"there is no group {group}: only root may use the control socket")
        asyncio.run(_main(places, log, budget, group, gid, metrics))
    finally:
        for descriptor in held:
            os.close(descriptor)


def _not_begun(error: folder.FolderError, places: Places) -> PlaceError:
    """Why the daemon does not start, and everything that is wrong in the files of taps, so that one start tells all."""
    try:
        folder.read(places.taps, kept=True)
    except folder.FolderError as more:
        error = folder.FolderError([*error.problems, *more.problems])
    return PlaceError(str(error), error.told())


async def _main(
    places: Places, log: Log, budget: AllTaps, group: str, gid: int | None, metrics: tuple[str, int] | None
) -> None:
    await Service(places, log, budget, group, metrics).run(gid)


def raise_file_limit() -> None:
    """As many descriptors as the system allows: a tap takes about ten."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
