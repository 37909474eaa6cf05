# SPDX-License-Identifier: Apache-2.0
"""The reactor: commands in, bytes to the shadow, responses drained.

Theory of operation
-------------------
*Connections* (`sockets`).  A raw flow is connected when it opens, an HTTP flow with its first request.  The fast path
of `Send` is one `send` from the capture ring's memory.  If a part does not end its request, the bytes that do not fill
a packet wait for the next part (`MSG_MORE`); before the loop waits, `push` sends them.

*Responses* (`drain`).  A busy connection wakes the loop only for many bytes of responses; a sweep every second
(`sweep`) reads the rest.  All reading in one iteration of the loop is bounded, because the capture waits meanwhile.

*Loss.*  Only `ends` sends a request again, and only where that is safe.  When a connection ends, requests that are
queued whole use a new one.  While the shadow cannot be reached (`dial`), everything is dropped at once.  At a bound of
the queues a whole request is dropped; if a part of it was sent, the connection is reset, so that the shadow cannot take
it for whole.

*Pacing `wait`* (`turns`).  A turn in the queue holds back what follows until the shadow has answered.  There is none in
the middle of a request.

*Singly* (`singly`).  A shadow that loses what is sent ahead of its responses gets its requests one by one.
"""

from __future__ import annotations

import errno
import select
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from tapmirror.events import END, START, TUNNEL, WHOLE, Abort, Command, DropReason, Excuse, Finish, Open, Send, Turn
from tapmirror.ledger import Ledger
from tapmirror.replay.dial import Address, Dialer
from tapmirror.replay.drain import Drain
from tapmirror.replay.ends import Ends
from tapmirror.replay.lane import CONNECTING, GIVEN_UP, IDLE, OPEN, Item, Lane, QueueMemory
from tapmirror.replay.latency import Timing
from tapmirror.replay.observers import Observers
from tapmirror.replay.ports import GENTLE_CLOSES
from tapmirror.replay.responses import Responses, wake_for
from tapmirror.replay.singly import Singly
from tapmirror.replay.sockets import Sockets
from tapmirror.replay.sweep import Sweep
from tapmirror.replay.turns import Turns
from tapmirror.spec import Pacing, Shadow, TapSpec

LAZY_AFTER: Final = 8
"""Requests on a connection after which it counts as busy."""
EVENTS: Final = 1_024

_GONE: Final = select.EPOLLERR | select.EPOLLHUP
_ENDED: Final = select.EPOLLRDHUP | _GONE
_READABLE: Final = select.EPOLLIN | _ENDED


class Reactor:
    """All connections of one worker to one shadow.

    `addresses` are pairs of (family, socket address); connections use all of them.  `tls` is how connections are
    secured, if they are.  `gentle` is that of `Ports`.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        spec: TapSpec,
        shadow: Shadow,
        ledger: Ledger,
        tls: ssl.SSLContext | None = None,
        observers: Observers | None = None,
        gentle: int = GENTLE_CLOSES,
    ) -> None:
        self._ledger = ledger
        self._bytes = ledger.bytes
        self._requests = ledger.requests
        self._watched: dict[int, Callable[[], None]] = {}
        self._lanes: dict[int, Lane] = {}
        self._memory = QueueMemory(spec.limits.queue_bytes, spec.limits.queues_bytes)
        self._dialer = Dialer(addresses, spec.limits, shadow, ledger, tls)
        self._responses = Responses(ledger, paced=spec.pacing is Pacing.WAIT)
        self._timing = Timing(ledger.latency)
        self._turns = Turns(spec.limits.wait_time)
        self.paced = spec.pacing is Pacing.WAIT
        """Whether the reactor has something to do in each iteration, because a slow shadow causes no events."""
        self._sweep = Sweep(shadow.idle_time)
        self._wait_time = spec.limits.wait_time
        self._singly = Singly(self._memory, ledger, paced=self.paced)
        self._sockets = Sockets(self._dialer, self._turns, ledger)
        self._epoll = self._sockets.epoll
        self._by_fd = self._sockets.by_fd
        self._unread = self._sockets.unread
        self._ends = Ends(
            self._lanes,
            self._sockets,
            self._dialer,
            self._singly,
            ledger,
            spec.limits.linger_time,
            spec.limits.wait_time,
            gentle,
        )
        self._drain = Drain(
            self._responses,
            self._timing,
            self._ends,
            self._unread,
            ledger,
            paced=spec.pacing is Pacing.WAIT,
            secured=tls is not None,
        )
        self._read = self._drain.read
        self._broken = self._drain.broken
        self._observers = observers
        self._corked: set[Lane] = set()
        """Lanes whose last part since `push` did not end its request, so that the kernel may hold it back."""
        self.steps: Final[Mapping[type, Callable[[Any, float], None]]] = {
            Send: self._send if observers is None else self._send_observed,
            Open: self._open,
            Turn: self._turn,
            Finish: self._ends.finish,
            Excuse: self._ends.excuse,
            Abort: self._abort,
        }
        """What carries out a command of each type, given the time."""

    # --- the loop's side

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call back whenever another descriptor is readable."""
        self._watched[fd] = callback
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Stop calling back for this descriptor."""
        self._epoll.unregister(fd)
        del self._watched[fd]

    def run_once(self, timeout: float, clock: Callable[[], float]) -> None:
        """Wait at most `timeout` seconds for events and act on them."""
        if self._corked:
            self.push()
        events = self._epoll.poll(0.0 if self._unread else timeout, EVENTS)
        if self.paced and self._turns:
            self._turns.look(clock())  # also if there is nothing: a shadow that is slow has no events
        if not events and not self._unread:
            return
        now = clock()
        if self._observers is not None:
            self._observers.tick()
        self._drain.begin_iteration()
        for _ in range(len(self._unread)):
            if self._drain.left <= 0.0 or not self._unread:
                break
            lane = next(iter(self._unread))
            del self._unread[lane]
            self._on_readable(lane, now, ended=True)
        for fd, event in events:
            found = self._by_fd.get(fd)
            if found is not None:
                self._on_event(found, event, now)
            elif fd in self._watched:
                self._watched[fd]()

    def fileno(self) -> int:
        """A descriptor that is readable when `run_once` has something to do."""
        return self._epoll.fileno()

    @property
    def unread(self) -> bool:
        """Whether something is left to be read for which there will be no event."""
        return bool(self._unread)

    @property
    def behind(self) -> bool:
        """Whether a connection with pacing `wait` falls behind unless responses are read as they come."""
        return self._turns.behind

    def readdress(self, addresses: Sequence[Address]) -> None:
        """Connect to these from now on; what is connected stays."""
        self._dialer.readdress(addresses)

    def next_deadline(self) -> float | None:
        """When `expire` has something to do; None: no connection is open."""
        times = [at for at in (self._ends.next_deadline(), self._dialer.next_deadline()) if at is not None]
        if self._by_fd:
            times.append(self._sweep.next)
        if self._turns:
            times.append(0.0)
        return min(times) if times else None

    def expire(self, now: float) -> None:
        """Act on what took too long."""
        while (overdue := self._dialer.overdue(now)) is not None:
            self._ends.connect_failed(overdue, errno.ETIMEDOUT, now)
        self._ends.expire(now)
        for lane, deadline in self._turns.waiting():
            if now >= deadline:
                self._ledger.events["wait_timeouts"] += 1
                self._turns.pass_on(lane, now)
            self._flush(lane, now)
            if lane.finishing and lane.state == OPEN:
                self._ends.try_finish(lane, now)
        if self._sweep.due(now):
            self._sweep_all(now)

    def _sweep_all(self, now: float) -> None:
        self._singly.look(now)
        lanes = self._by_fd.values()
        for lane in [each for each in lanes if each.held_since and each.queue]:
            self._flush(lane, now)
        for lane in [each for each in lanes if each.torn and now - each.held_since >= self._wait_time]:
            self._ends.lost(lane, now)
        for lane in self._sweep.sluggish(lanes):
            self._on_readable(lane, now)
        for lane in self._sweep.unanswered(lanes):
            self._ledger.events["unanswered_closes"] += 1
            if lane.observer is not None:
                lane.observer.timed_out(now)
            self._ends.lost(lane, now)
        for lane in self._sweep.idle(lanes, now):
            self._ledger.events["idle_closes"] += 1
            self._sockets.close(lane)

    def held(self) -> tuple[int, int]:
        """(captured bytes queued, requests that are neither wholly sent nor dropped)."""
        return self._memory.bytes, self._memory.requests

    def idle(self) -> bool:
        """Whether nothing is queued and no connection waits for its end."""
        memory = self._memory
        return not (memory.bytes or memory.held or memory.repeats or self._ends or self._dialer)

    def close(self, reason: DropReason) -> None:
        """Drop what is queued and close every connection."""
        self._ends.close(reason)
        self._epoll.close()

    def push(self) -> None:
        """Send what waits to fill a packet, because nothing more comes for the moment."""
        for lane in self._corked:
            if lane.begun and lane.state == OPEN and not lane.queue:
                lane.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # type: ignore[union-attr]
        self._corked.clear()

    # --- commands

    def execute(self, commands: Iterable[Command], now: float) -> None:
        """Carry out commands of the pipeline."""
        steps = self.steps
        for command in commands:
            steps[type(command)](command, now)

    def _send(self, command: Send, now: float) -> None:
        """The fast path: one look-up, one `send`."""
        flow, data, size, flags = command.flow, command.data, command.size, command.flags
        lane = self._lanes.get(flow)
        if lane is None or not lane.ready or (flags > WHOLE and flags & TUNNEL):
            self._send_later(lane, command, now)
            return
        if flags == WHOLE or (flags and flags & START):
            framer: Any = lane.framer
            if framer.awaited and not framer.failed:
                lane.resendable.add(data, flags)
            framer.expect(flags)
        try:
            if flags == WHOLE or not lane.http or flags & END:
                count = lane.sock.send(data)  # type: ignore[union-attr]
            else:
                count = lane.sock.send(data, socket.MSG_MORE)  # type: ignore[union-attr]
                self._corked.add(lane)
        except BlockingIOError:
            count = 0
        except OSError:
            if self._keep_rest(lane, command, 0, now):
                self._broken(lane, now)
            return
        if count < len(data):
            self._keep_rest(lane, command, count, now)
        elif not flags:
            self._bytes.mirrored += size
        elif flags == WHOLE or flags & WHOLE == WHOLE:
            self._bytes.mirrored += size
            self._requests.mirrored += 1
            lane.sent += 1
            if lane.sent == LAZY_AFTER:
                lane.timed = 0  # from here on the responses may wait to be read
                self._responses.settle_in(lane)
            elif not lane.timed and (not lane.lazy or self._timing.left or now >= self._timing.until):
                self._timing.begin(lane, now)
            if lane.sent == lane.last:
                self._part(lane)
        else:
            lane.sent_whole(size, flags)
            if flags & END:
                self._went(lane, now)

    def _send_observed(self, command: Send, now: float) -> None:
        """Do what `_send` does, on a connection whose responses are compared."""
        lane = self._lanes.get(command.flow)
        if lane is None or lane.observer is None or (lane.observing is None and not command.number):
            self._send(command, now)
            return
        data, size, flags = command.data, command.size, command.flags
        if flags & START and lane.ready and lane.observing is not None and lane.observing.crowded(lane, command.number):
            self._read(lane, lane.sock, now, ended=False)  # type: ignore[arg-type]
        if not lane.ready or flags & TUNNEL:
            self._send(command, now)
            return
        if flags & START:
            lane.observer.start_or_stop(lane, command.number)
        if lane.observing is None:
            self._send(command, now)
            return
        if flags & START:
            framer: Any = lane.framer
            if framer.awaited and not framer.failed:
                lane.resendable.add(data, flags)
            framer.expect(flags)
            lane.observer.asked(command.number, flags)
        try:
            count = lane.observer.send(lane, data, flags, now)
        except BlockingIOError:
            count = 0
        except OSError:
            if self._keep_rest(lane, command, 0, now):
                self._broken(lane, now)
            return
        if count < len(data):
            self._keep_rest(lane, command, count, now)
            return
        if flags == WHOLE:
            self._bytes.mirrored += size
            self._requests.mirrored += 1
            lane.sent += 1
            self._went(lane, now)
            return
        lane.sent_whole(size, flags)
        if flags & END:
            self._went(lane, now)

    def _went(self, lane: Lane, now: float) -> None:
        """Note the last byte of a request that was sent in several parts, or whose response is compared."""
        if lane.observing is not None:
            self._timing.sent(lane, now)
            if lane.sent == LAZY_AFTER:
                self._responses.settle_in(lane)
        elif lane.sent == LAZY_AFTER:
            lane.timed = 0
            self._responses.settle_in(lane)
        elif not lane.timed and (not lane.lazy or self._timing.left or now >= self._timing.until):
            self._timing.begin(lane, now)
        if lane.sent == lane.last:
            self._part(lane)

    def _part(self, lane: Lane) -> None:
        """Let what follows wait for the response, which is read as it comes."""
        lane.ready = False
        if lane.lazy:
            wake_for(lane, 1)

    def _send_later(self, lane: Lane | None, command: Send, now: float) -> None:
        """Handle a part that cannot be sent at once: queue or drop it."""
        size, flags = command.size, command.flags
        if lane is None:
            self._bytes.dropped[DropReason.SHADOW_CLOSED] += size
            if flags & START:
                self._requests.dropped[DropReason.SHADOW_CLOSED] += 1
            return
        if flags & START and lane.state != GIVEN_UP:
            lane.skipping = None
        if lane.skipping is not None:
            lane.drop(size, flags, lane.skipping, command.number)
            return
        if flags & TUNNEL:
            lane.switching = True
            if lane.lazy:
                wake_for(lane, 1)
        elif flags & START and (lane.framer is None or lane.framer.tunnel is not True or lane.framer.upgraded):
            lane.switching = lane.tunnel = False
        elif lane.switching and not flags and not lane.open_request:
            lane.tunnel = True
        if lane.state == IDLE and not self._sockets.connect(lane, now):
            self._skip(lane, command, self._dialer.reason)
            return
        if lane.full(len(command.data)):
            self._overflow(lane, command, now)
            return
        lane.enqueue(bytes(command.data), size, flags, command.number)
        if lane.state == OPEN:
            self._flush(lane, now)

    def _keep_rest(self, lane: Lane, command: Send, count: int, now: float) -> bool:
        """Queue the rest of a part of which `count` bytes were sent, if all queues together have room for it.

        False: there is no connection any more.
        """
        data = command.data
        slow = self._memory.full(len(data) - count)
        lane.sent_in_part(bytes(data), command.size, command.flags, count, command.number)
        if not slow:
            return True
        lane.withdraw()
        if not lane.http or lane.tunnel:
            self._ends.give_up(lane, DropReason.SHADOW_SLOW)
            return False
        sock = lane.sock
        self._drain.look_once_more(lane, now)
        torn = lane.unsent()
        lane.drop_all(DropReason.SHADOW_SLOW)
        if torn:
            self._sockets.reset(lane, torn)
        return lane.sock is sock

    def _skip(self, lane: Lane, command: Send, reason: DropReason) -> None:
        """Drop a part, and the rest of its request."""
        lane.drop(command.size, command.flags, reason, command.number)
        if not command.flags & END:
            lane.skip(reason)

    def _overflow(self, lane: Lane, command: Send, now: float) -> None:
        """A bound is reached: give up the request under way, or the stream."""
        reason = DropReason.SHADOW_SLOW
        if command.flags & START:
            self._skip(lane, command, reason)
            return
        lane.drop(command.size, 0, reason)
        if lane.http and not lane.tunnel:
            self._drain.look_once_more(lane, now)
            self._ends.tear(lane, reason)
            if command.flags & END:
                lane.skipping = None
            self._go_on(lane, now)
        else:
            self._ends.give_up(lane, reason)

    def _open(self, command: Open, now: float) -> None:
        before = self._lanes.get(command.flow)
        if before is not None and before.http:
            # More second copies for a flow that has ended.  They use its connection: responses on another one beside it
            # would be taken for responses on this one.
            self._ends.take_back(before)
            return
        lane = Lane(command.flow, command.http, self._memory, self._ledger)
        self._lanes[command.flow] = lane
        if self._observers is not None and command.http:
            lane.observer = self._observers.observer(command.flow)
        if not command.http and not self._sockets.connect(lane, now):
            self._ends.give_up(lane, self._dialer.reason)

    def _turn(self, command: Turn, now: float) -> None:
        lane = self._lanes.get(command.flow)
        if lane is None or lane.state not in (OPEN, CONNECTING):
            return
        if lane.open_request:
            # `Expect: 100-continue`: the response that counts comes to the whole request, and the shadow may send no
            # 100.
            return
        lane.enqueue_turn(command.answered)
        if lane.state == OPEN:
            self._flush(lane, now)

    def _abort(self, command: Abort, now: float) -> None:
        lane = self._lanes.get(command.flow)
        if lane is None or not lane.open_request:
            self._ends.abort(command, now)
            return
        self._drain.look_once_more(lane, now)
        self._ends.abort(command, now)
        self._go_on(lane, now)

    # --- a connection's life

    def _on_event(self, lane: Lane, event: int, now: float) -> None:
        if lane.state == CONNECTING:
            failure = self._dialer.proceed(lane, gone=bool(event & _GONE))
            if failure is None:
                return
            if failure:
                self._ends.connect_failed(lane, failure, now)
                return
            lane.state = OPEN
            if lane.observer is not None:
                lane.observer.connected()
            if not lane.http:
                self._responses.settle_in(lane)
            if not lane.queue:
                lane.refresh()
        if event & select.EPOLLOUT and lane.queue:
            self._flush(lane, now)
        if event & select.EPOLLERR and lane.observer is not None and lane.sock is not None:
            lane.observer.late_stamps(lane.sock)
        if event & _READABLE and lane.sock is not None:
            self._on_readable(lane, now, ended=bool(event & _ENDED))
        if lane.finishing and lane.state == OPEN:
            self._ends.try_finish(lane, now)

    def _flush(self, lane: Lane, now: float) -> None:
        """Send what is queued, as far as the socket and the turns allow."""
        queue = lane.queue
        while queue and lane.state == OPEN:
            item = queue[0]
            if item.answered >= 0:
                if self._turns.silent(lane, now) and not self._read(lane, lane.sock, now, ended=False):  # type: ignore[arg-type]
                    return
                if not self._turns.answered(lane, item.answered, now):
                    return
                self._turns.pass_on(lane, now)
                continue
            if not self._may_send(lane, item, now):
                return
            try:
                data = item.data
                if lane.observing is not None:
                    count = lane.observing.send(lane, data, item.flags, now)
                else:
                    count = lane.sock.send(data)  # type: ignore[union-attr]
            except BlockingIOError:
                return
            except OSError:
                self._broken(lane, now)
                return
            if not lane.advance(count):
                return
            if item.flags & END:
                self._went(lane, now)
        lane.refresh()

    def _may_send(self, lane: Lane, item: Item, now: float) -> bool:
        """Whether the first queued part may go on this connection now."""
        framer = lane.framer
        if framer is None:
            return True
        if item.flags & START and not item.announced and (framer.upgraded or framer.offered):
            if framer.upgraded:  # the shadow accepted what production refused
                self._ends.lost(lane, now)
            return False
        if framer.tunnel is True:
            return True
        if lane.torn:
            return False
        if item.flags & START and not item.announced:
            if framer.closing:
                if not framer.awaited:
                    self._ends.lost(lane, now)
                return False
            if lane.parting and not self._waited(lane, now):
                if lane.lazy:
                    wake_for(lane, 1)
                return False
            if not framer.awaited:
                lane.held_since = 0.0
            if lane.observer is not None:
                lane.observer.start_or_stop(lane, item.number)
            if framer.awaited and not framer.failed:
                lane.resendable.add(item.data, 0 if item.repeated else item.flags)
            framer.expect(item.flags)
            if lane.observing is not None:
                lane.observing.asked(item.number, item.flags)
            item.announced = True
            return True
        if lane.tunnel and not item.flags:
            if framer.tunnel is False:
                lane.drop_all(DropReason.TUNNEL_REFUSED)
                lane.skip(DropReason.TUNNEL_REFUSED)
                lane.tunnel = False
            return False
        return True

    def _waited(self, lane: Lane, now: float) -> bool:
        """Whether a request that is sent singly has waited long enough; true until all responses have come."""
        if not lane.held_since:
            lane.held_since = now
        return now - lane.held_since >= self._wait_time and lane.sent != lane.last

    def _on_readable(self, lane: Lane, now: float, *, ended: bool = False) -> None:
        """Read and discard responses, then continue with what waited for them."""
        if lane.sock is None or lane.state != OPEN or not self._read(lane, lane.sock, now, ended=ended):
            return
        self._go_on(lane, now)

    def _go_on(self, lane: Lane, now: float) -> None:
        """Continue with what waited for the responses that were read."""
        if lane.torn and lane.framer is not None and lane.framer.outstanding < 2:
            self._ends.lost(lane, now)
        if lane.queue:
            self._flush(lane, now)
        if lane.finishing and lane.state == OPEN:
            self._ends.try_finish(lane, now)
