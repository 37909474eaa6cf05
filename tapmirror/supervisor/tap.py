# SPDX-License-Identifier: Apache-2.0
"""The privileged side of a tap: checks, loader, interfaces, workers; no byte of the network.

`Tap.start` is transactional: if anything fails, everything that was begun before is undone.  The packet sockets are
held here and nowhere else, so when this process dies, however it dies, the kernel detaches the program.  The worker
sees the end of its control socket and ends by itself.

What is captured, and how much of it, is decided here and passed on to the kernel and the workers.  There is no thread:
all of this happens within calls of a `Tap`.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from tapmirror import privsep
from tapmirror.spec import TapSpec
from tapmirror.supervisor import ledgers
from tapmirror.supervisor.addresses import Address, packed, port
from tapmirror.supervisor.capture import OpenCapture, open_capture
from tapmirror.supervisor.links import Bell, Hold, Links, present
from tapmirror.supervisor.probing import LEADS_BACK, Probing, field, refused, resolved
from tapmirror.supervisor.resolving import Names, Undecided
from tapmirror.supervisor.share import Share
from tapmirror.supervisor.sides import ciphered, missing
from tapmirror.supervisor.workers import REPLY_TIME, LoopError, LoopFound, TapError, WorkerSlot, automatic
from tapmirror.worker.setup import Setup

EXCLUDED: Final = 16
"""Most end points that the capture program can leave out; copies to others it recognises by the loop mark alone."""
LOOK: Final = 1.0
"""Seconds between two looks at the interfaces if nothing reports a change."""
LAST_WAIT: Final = 1.0
"""Seconds for the reply of a worker that is asked at the end, when the time for all workers is over already."""
NOTHING: Final = "nothing is mirrored: percent is 0"


class Tap:
    """One running tap.

    `warn` receives one-line warnings, `said` the lines that workers print, a few a second.  Call `start`, then
    `service` at least once a second and when a descriptor of `filenos` is readable, `snapshot` as often as wanted, then
    `stop`.  `wait_for_interface`: an interface that is not there at the start is no error.
    """

    def __init__(
        self,
        spec: TapSpec,
        warn: Callable[[str], None],
        said: Callable[[str], None],
        *,
        wait_for_interface: bool = False,
    ) -> None:
        self.capture = ""
        """`ebpf` or `packet`, once started."""
        self._warn = warn
        self._said = said
        self._wait_for_interface = wait_for_interface
        self._addresses: list[list[Address]] = []
        self._left: list[tuple[bytes, int]] = []
        """Former end points of shadows that moved: there may still be connections to them."""
        self._names: Names | None = None
        self._open_capture: OpenCapture | None = None
        self._workers = automatic() if spec.workers == "auto" else spec.workers
        self._links = Links(spec.links(), self._hold)
        self._without = ""
        """Which interfaces are not captured, as it was last reported."""
        self._bell: Bell | None = None
        self._next_look = 0.0
        self._slots: list[WorkerSlot] = []
        self._secret = os.urandom(32)
        self._began = time.monotonic()
        self._share = Share(spec)
        self._probing = Probing(spec, self._arrived, warn)
        self._one_sided = False
        """Whether the user was told that only one direction of the connections is seen."""
        self._ciphered = False
        """Whether the user was told that clients speak TLS."""
        self._ended: str | None = None
        """Why the tap is over; None: it is not."""
        self.loops = False
        """Whether something that the tap sent came back to production."""

    def prepare(self) -> None:
        """The part of a start that attaches nothing: checks, and the shadows' names (half a minute if a name server
        hangs).

        `start` calls it if nobody else did.  Raises `TapError`.
        """
        if os.geteuid() != 0:
            raise TapError("capturing needs root: run it with sudo")
        if lacking := privsep.lacking():
            raise TapError(f"root has no {', '.join(lacking)} here, without which no tap starts (see tapmirror doctor)")
        if not (self.spec.many or self._wait_for_interface or present(self.spec.links())):
            names = ", ".join(name for _, name in socket.if_nameindex())
            raise TapError(f"iface: no interface {self.spec.iface!r} here (there are: {names})")
        if not self.spec.most():
            self._warn(NOTHING)
        for name, message in self.spec.slips(self._workers):
            self._warn(f"{name}: {message}")
        for i, shadow in enumerate(self.spec.shadows):
            if shadow.tls is not None and not shadow.tls.verify:
                danger = f"TLS WITHOUT VERIFICATION: whoever answers at {shadow.end_point} gets the copies"
                self._warn(f"{field(self.spec, i)}: {danger}")
        try:
            self._addresses = [resolved(self.spec, i) for i in range(len(self.spec.shadows))]
        except (OSError, privsep.PrivilegeError) as error:
            raise TapError(f"the tap cannot be started: {error}") from None

    def start(self) -> None:
        """Attach and begin to mirror.  Raises `TapError`, with nothing attached."""
        if not self._addresses:
            self.prepare()
        try:
            self._bell = Bell()
            self._open_capture = open_capture(
                self.spec,
                self._workers,
                excluded=self._excluded(),
                threshold=self._share.threshold(),
                probe=self._probing.seq,
                warn=self._warn,
            )
            self.capture = "ebpf" if self._open_capture.is_ebpf else "packet"
            self._probing.behind_ring = not self._open_capture.is_ebpf
            self._slots = [
                WorkerSlot(partial(self._set_up, shard), self._warn, self._said) for shard in range(self._workers)
            ]
            if self._ended is not None:  # while the program was compiled
                self.hurry()
            for slot in self._slots:
                slot.begin()
            for slot in self._slots:
                slot.start()
            self._follow_links()
            while not self._probe(time.monotonic()):
                self._probing.wait()
            self._names = Names(
                self.spec.shadows,
                self._addresses,
                self._refusal_of_move,
                self._warn,
                identity=privsep.worker_identity(),
                now=time.monotonic(),
            )
        except (OSError, privsep.PrivilegeError) as error:
            self.close()
            raise TapError(f"the tap cannot be started: {error}") from None
        except BaseException as error:
            self.close(at_once=not isinstance(error, Exception))
            raise

    # --- while it runs

    @property
    def spec(self) -> TapSpec:
        """The tap's spec, with the share as it is now."""
        return self._share.spec

    @property
    def state(self) -> str:
        """One of starting, running, paused, waiting (for an interface), restarting (a worker), stopped."""
        return self._condition()[0]

    @property
    def state_reason(self) -> str:
        """The reason for the state, in one line for people; "": there is nothing to say."""
        return self._condition()[1]

    def _condition(self) -> tuple[str, str]:
        if self._ended is not None:
            return "stopped", self._ended
        if not self._slots:
            return "starting", ""
        dead = [slot.reason for slot in self._slots if not slot.running]
        if dead:
            return "restarting", dead[0]
        if self._share.paused:
            return "paused", ""
        waits_for = self._links.waits_for()
        if waits_for:
            return "waiting", waits_for
        without = self._links.without()
        return "running", f"not captured: {without}" if without else ""

    @property
    def unreached(self) -> Mapping[str, str]:
        """Why shadows could not be reached when they were probed, by label.  They may be reachable by now."""
        return self._probing.unreached

    def interfaces(self) -> list[str]:
        """The interfaces that are captured now."""
        return self._links.names()

    def filenos(self) -> list[int]:
        """Readable when there is something for `service` to do."""
        fds = [fd for slot in self._slots for fd in slot.filenos()]
        return fds if self._bell is None else [self._bell.fileno(), *fds]

    def due(self) -> float | None:
        """When `service` has something to do before the second is over (of `time.monotonic`); None: nothing."""
        times = [time for slot in self._slots if (time := slot.due()) is not None]
        probed = self._probing.due()
        if probed is not None and self._ended is None:
            times.append(probed)
        return min(times) if times else None

    def service(self, now: float) -> None:
        """Follow interfaces and the shadows' names, restart workers that died.  Waits for nothing that takes long."""
        if self._ended is not None or self._bell is None:
            return
        if self._bell.rung() or now >= self._next_look:
            self._next_look = now + LOOK
            self._follow_links()
        try:
            self._probe(now)
        except TapError as error:
            self._end(str(error))
        for slot in self._slots:
            slot.service(now)
        self._follow_names(now)
        self._end_if_lost()

    def _follow_links(self) -> None:
        """Capture the interfaces that there are, and tell which cannot be; if none can, `waits_for` does."""
        self._links.follow()
        without = self._links.without()
        if without and without != self._without:
            self._warn(f"not captured: {without}")
        self._without = without

    def snapshot(self) -> dict[str, Any]:
        """The ledger.  Raises `TapError` if the tap is over."""
        ledger = self.last()
        self._tell(ledger["events"], self._links.names())
        self._end_if_lost()
        if self._ended is not None:
            raise LoopError(self._ended) if self.loops else TapError(self._ended)
        return ledger

    def _tell(self, events: Mapping[str, int], links: Sequence[str]) -> None:
        """Report, once, traffic at these interfaces that cannot be mirrored (`sides`)."""
        if not self._one_sided and (line := missing(events, links)):
            self._one_sided = True
            self._warn(line)
        if not self._ciphered and (line := ciphered(events)):
            self._ciphered = True
            self._warn(line)

    def last(self) -> dict[str, Any]:
        """The ledger as far as it is known, of a tap that broke down too, until `stop`.  Raises `TapError`."""
        if not self._slots:
            raise TapError(self._ended or "the tap does not run")
        return self._with_facts([slot.snapshot() for slot in self._slots])

    def set_percent(self, percent: float) -> None:
        """Change the tap's share (a ramp is over then).

        By connection, the kernel decides: connections that fall out are given up at once, each with the request
        under way on it, and those that come in are joined at their next request.  Otherwise it decides on requests
        that begin from here on.
        """
        self._take(spec=msgspec.structs.replace(self.spec, percent=percent, ramp=None))

    def throttle(self, share: float, reason: str = "", shadows: Mapping[str, float] | None = None) -> None:
        """Capture only this part (0 to 1) of the tap's own share; `reason` is for people.

        `shadows`: lower parts for single shadows, by label; also parts of the tap's own share.
        """
        parts = {} if shadows is None else {label: max(0.0, part) for label, part in shadows.items()}
        self._take(throttle=min(1.0, max(0.0, share)), reason=reason, parts=parts)

    def pause(self) -> None:
        """Capture nothing until `resume`; connections are given up as by a share of nothing."""
        self._links.suspend(True)  # before the workers, which may be slow to answer
        try:
            self._take(paused=True)
        finally:
            for slot in self._slots:
                slot.hurry(False)
            if self._ended is not None:  # amid this
                self.hurry()

    def resume(self) -> None:
        """Capture again."""
        self._links.suspend(False)
        self._take(paused=False)

    def hurry(self) -> None:
        """Stop being patient with workers that get no CPU, because `pause` or the end is due.  From any thread."""
        for slot in self._slots:
            slot.hurry()

    def mute(self) -> None:
        """End all capture for good, within microseconds; `detach` is due then.  In any thread, as often as wanted."""
        self._links.mute()

    def detach(self) -> None:
        """Take the capture off all interfaces for good.  From any thread, as often as you like."""
        self._end("detached")

    def comparison(self) -> list[dict[str, Any]]:
        """The states of the comparisons of all workers that run."""
        return [state for slot in self._slots if (state := slot.comparison()) is not None]

    def stop(self, *, comparison: bool = True) -> dict[str, Any]:
        """Detach, let the workers drain, and return the final ledger.

        `comparison`: with the states of the workers' comparisons, which may have megabytes.
        """
        if not self._slots:
            raise TapError("the tap does not run")
        links = self._links.names()
        try:
            self._end("")
            end = time.monotonic() + self.spec.limits.drain_time * 2 + REPLY_TIME
            for slot in self._slots:
                slot.begin_drain(comparison=comparison)
            # All drain at the same time: one that is asked late has answered by then, or never will.
            parts = [slot.drain(max(LAST_WAIT, end - time.monotonic()), comparison=comparison) for slot in self._slots]
            found = next((slot.loop for slot in self._slots if slot.loop is not None), None)
            if found is not None and not self.loops:  # among the last that it sent
                self.loops = True
                self._warn(self._told(found))
            states = [part.pop("comparison") for part in parts if "comparison" in part]
            ledger = self._with_facts(parts)
            self._tell(ledger["events"], links)  # a short run has had no other look
            return {**ledger, "comparison": states} if states else ledger
        finally:
            self.close()

    def close(self, *, at_once: bool = False) -> None:
        """Detach and end the workers, in any state; `at_once`: what still waits for the shadow is lost."""
        self._links.release()
        for slot in self._slots:
            slot.close(0.0 if at_once else self.spec.limits.drain_time + REPLY_TIME)
        self._slots = []
        for part in (self._open_capture, self._bell, self._names):
            if part is not None:
                part.close()
        self._open_capture = self._bell = self._names = None
        self._probing.give_up()

    def _end_if_lost(self) -> None:
        for slot in self._slots:
            if slot.loop is not None and self._ended is None:
                self.loops = True
                self._end(f"{self._told(slot.loop)}; the tap is detached")
            if slot.lost:
                self._end(f"{slot.lost}; the tap is detached")

    def _told(self, loop: LoopFound) -> str:
        """Report to people what a worker found."""
        labels = [shadow.label for shadow in self.spec.shadows for _ in range(shadow.copies)]
        label = labels[min(loop.target, len(labels) - 1)]
        return (
            f"what is sent to the shadow {label} comes back to production, from {loop.client}: "
            "something there passes requests on"
        )

    def _end(self, reason: str) -> None:
        """End the tap; its last ledger can still be had."""
        self._links.release()
        if self._ended is None:
            self._ended = reason
        self.hurry()

    def _take(self, **changes: Any) -> None:
        """Change the share, in the kernel and in the workers."""
        before = self._share.threshold()
        self._share = msgspec.structs.replace(self._share, **changes)
        threshold = self._share.threshold()
        # A worker drops what it gets and does not want.  So the kernel is first to take less, and last to take more.
        if threshold < before and self._open_capture is not None:
            self._open_capture.set_threshold(threshold)
        message = {
            "op": "share",
            "threshold": threshold,
            "shadows": self._share.thresholds(),
            "percent": self.spec.percent,
        }
        for slot in self._slots:
            slot.tell(message, "share")
        if threshold > before and self._open_capture is not None:
            self._open_capture.set_threshold(threshold)

    # --- where the shadows are

    def _probe(self, now: float) -> bool:
        """Probe whether a shadow leads back to production, once there is an interface at which that can be seen.

        Returns whether all is known.  Raises `TapError` if a shadow leads back.
        """
        if self._blind():
            self._probing.give_up()
            return True
        self._probing.look(now)
        return self._probing.all_found(self._addresses, now)

    def _refusal_of_move(self, index: int, addresses: Sequence[Address]) -> str | Undecided | None:
        """Why a shadow may not have the addresses that its name has now, of which those that are new are probed.

        Where nothing is captured at the moment all addresses are probed later.
        """
        reason = refused(self.spec, index, addresses)
        new = [address for address in addresses if address not in self._addresses[index]]
        if reason is not None or not new:
            return reason
        if self._blind():
            self._probing.forget()
            return None
        found = self._probing.found(new, time.monotonic())
        if found is None:
            return Undecided()
        return LEADS_BACK if found.leads_back else None

    def _arrived(self) -> int:
        """Probes that have been seen to arrive at the tap."""
        return int(self.last()["events"].get("kernel_loop_syn", 0))

    def _blind(self) -> bool:
        """Whether nothing is captured at the moment, so that a probe that arrives is not seen."""
        return self._share.paused or bool(self._links.waits_for())

    def _follow_names(self, now: float) -> None:
        """Let new connections go to the present addresses of the shadows' names."""
        for index, found in self._names.poll(now) if self._names is not None else ():
            self._left = self._excluded()
            self._addresses[index] = found
            if self._open_capture is not None:
                self._open_capture.set_excluded(self._excluded())
            request = {"op": "addresses", "shadow": index, "addresses": found, "excluded": self._excluded()}
            for slot in self._slots:
                slot.tell(request, "addresses")

    # --- parts

    def _excluded(self) -> list[tuple[bytes, int]]:
        """End points that are never captured."""
        found = [(packed(str(address[0])), port(address)) for found in self._addresses for _, address in found]
        return list(dict.fromkeys([*found, *self._left]))[:EXCLUDED]

    def _set_up(self, shard: int) -> tuple[Setup, list[int]]:
        """The set-up of a worker that starts now, and its descriptors."""
        assert self._open_capture is not None
        uid, gid = privsep.worker_identity()
        setup = Setup(
            spec=self.spec,
            addresses=[[(family, list(address)) for family, address in found] for found in self._addresses],
            capture="ring" if self._open_capture.is_ebpf else "packet",
            excluded=self._excluded(),
            addrs=[packed(addr) for addr in self.spec.addrs],
            block_bytes=self._open_capture.block_bytes,
            cpus=self._open_capture.cpus,
            shard=shard,
            workers=self._workers,
            threshold=self._share.threshold(),
            thresholds=self._share.thresholds(),
            probe=self._probing.seq,
            secret=self._secret,
            began=self._began,
            uid=uid,
            gid=gid,
        )
        return setup, self._open_capture.worker_fds(shard)

    def _hold(self, name: str) -> Hold:
        """Begin to capture on an interface.  Raises OSError."""
        assert self._open_capture is not None
        return self._open_capture.hold(name)

    def _with_facts(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """The ledger of all workers together."""
        state, reason = self._condition()
        facts = {
            "tap": self.spec.name,
            "capture": self.capture,
            "state": state,
            "state_reason": reason,
            "away_s": round(self._links.away, 2),
            "missing_s": {name: round(seconds, 2) for name, seconds in self._links.missing.items()},
        }
        names = {} if self._names is None else msgspec.structs.asdict(self._names.counts)
        return self.with_share(ledgers.together(parts, facts, names))

    def with_share(self, ledger: Mapping[str, Any]) -> dict[str, Any]:
        """A ledger of the tap with its share as it is now."""
        return self._share.entered(ledger)
