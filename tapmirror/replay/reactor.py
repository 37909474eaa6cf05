# SPDX-License-Identifier: Apache-2.0
"""The reactor: commands in, bytes to the shadow, answers drained.

Theory of operation
-------------------
*Connections.*  A raw flow is connected when it opens, an HTTP flow with its first request.  A socket is
registered once, edge triggered, for everything; an event tells that it is connected, writable again,
readable or gone.  The fast path of `Send` is one `send` from the capture ring's memory.

*Answers.*  Raw answers are discarded in the kernel (`MSG_TRUNC`, tcp(7)), HTTP answers are framed for their
status and their bodies discarded.  A busy connection is woken only for `LAZY_BYTES` of them (`SO_RCVLOWAT`);
a sweep every second reads what is less.  Each turn reads a bounded amount of each connection.

*Loss.*  Nothing is sent twice.  When the shadow closes a connection, the request that went in part is
dropped, those that went and have no answer are counted `unanswered`, those still queued whole go over
a new connection.  A raw stream that lost bytes is given up.  While the shadow cannot be reached (`Backoff`)
what comes is dropped at once.  At a bound of the queues a whole request is dropped; if part of it
went already the connection is reset, so that the shadow cannot take it for whole.

*Ends.*  A raw FIN is passed on as a half-close after what is queued, a raw RST as an RST.  An HTTP flow
that ended, however it ended, is closed when its whole requests are sent and answered, within `linger_time`: a server
that sees its client gone might not do what production did.

*Pacing `wait`.*  A turn in the queue holds back what follows until every request is answered (HTTP), or the
shadow sent as much as production, or something and then nothing for `SILENCE` (raw), or `wait_time` is over.
"""

from __future__ import annotations

import _socket
import errno
import select
import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from tapmirror.events import END, LOOP_DSCP, START, TUNNEL, Abort, Command, DropReason, Finish, Open, Send, Turn
from tapmirror.framing import ResponseFramer
from tapmirror.ledger import Ledger
from tapmirror.replay.backoff import Backoff
from tapmirror.replay.lane import CONNECTING, GIVEN_UP, IDLE, OPEN, Item, Lane, Pool
from tapmirror.replay.tls import TlsSocket
from tapmirror.spec import Pacing, Shadow, TapSpec

LAZY_BYTES: Final = 16_384
"""Answers that wake us on a busy connection: some twenty small ones, far less than a receive buffer."""
LAZY_AFTER: Final = 8
"""Requests on a connection after which it counts as busy."""
SWEEP: Final = 1.0
"""Seconds between two reads of what is less."""
SILENCE: Final = 0.05
"""Seconds without a byte after which a raw answer counts as complete (pacing `wait`)."""
READS: Final = 8
"""Reads of one connection in one turn."""
LOOK_BYTES: Final = 65_536
"""Size of a read whose bytes are looked at."""
DISCARD_BYTES: Final = 1 << 20
"""Size of a read whose bytes are not."""
OUTSTANDING: Final = 16_384
"""Requests without an answer beyond which a connection is given up at the next sweep: each costs memory."""
EVENTS: Final = 1_024
TIME_WAIT: Final = 60.0
"""Seconds for which Linux keeps a port whose connection we closed first (TCP_TIMEWAIT_LEN)."""
GENTLE_CLOSES: Final = 4_096
"""How many connections are closed by FIN in that time, at most: of the 28,232 ephemeral ports that the
host has by default (ip_local_port_range) the rest stays production's.  Beyond it, HTTP connections are
closed by RST, which leaves nothing behind."""

_RESET: Final = struct.pack("ii", 1, 0)
_INTEREST: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_GONE: Final = select.EPOLLERR | select.EPOLLHUP
_ENDED: Final = select.EPOLLRDHUP | _GONE
_READABLE: Final = select.EPOLLIN | _ENDED
_WHOLE: Final = START | END
_EXHAUSTED: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.EAGAIN}
)


Address: TypeAlias = tuple[int, tuple[Any, ...]]
"""(address family, socket address)."""


class Reactor:
    """All connections of one worker to one shadow.

    `addresses` are (family, socket address), tried in turn after a failure; `tls` is how a connection is
    secured, if it is.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        spec: TapSpec,
        shadow: Shadow,
        ledger: Ledger,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._addresses = list(addresses)
        self._tls = tls
        self._tls_name = (shadow.tls.sni if shadow.tls is not None else None) or shadow.host
        self._connect_time = shadow.connect_time
        self._idle_time = shadow.idle_time
        self._limits = spec.limits
        self._wait = spec.pacing is Pacing.WAIT
        self._ledger = ledger
        self._bytes = ledger.bytes
        self._requests = ledger.requests
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[], None]] = {}
        self._lanes: dict[int, Lane] = {}
        self._by_fd: dict[int, Lane] = {}
        self._pool = Pool(spec.limits.queue_bytes, spec.limits.queues_bytes)
        self._backoff = Backoff(spec.limits.backoff_max)
        self._connecting: dict[Lane, float] = {}
        self._lingering: dict[Lane, float] = {}
        self._waiting: dict[Lane, float] = {}
        self._unread: set[Lane] = set()
        self._next_sweep = 0.0
        self._closes = 0
        self._closes_since = 0.0
        self._buffer = bytearray(LOOK_BYTES)
        self._view = memoryview(self._buffer)
        self._waste = bytearray(DISCARD_BYTES)
        self._steps: dict[type, Callable[[Any, float], None]] = {
            Send: self._send,
            Open: self._open,
            Turn: self._turn,
            Finish: self._finish,
            Abort: self._abort,
        }

    # --- the loop's side

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call back whenever another descriptor is readable."""
        self._watched[fd] = callback
        self._epoll.register(fd, select.EPOLLIN)

    def run_once(self, timeout: float, clock: Callable[[], float]) -> None:
        """Wait at most `timeout` seconds for events and act on them."""
        events = self._epoll.poll(0.0 if self._unread else timeout, EVENTS)
        if not events and not self._unread:
            return
        now = clock()
        unread, self._unread = self._unread, set()
        for lane in unread:
            self._on_readable(lane, now, ended=True)
        for fd, event in events:
            found = self._by_fd.get(fd)
            if found is not None:
                self._on_event(found, event, now)
            elif fd in self._watched:
                self._watched[fd]()

    def fileno(self) -> int:
        """Readable when `run_once` has something to do."""
        return self._epoll.fileno()

    @property
    def unread(self) -> bool:
        """Something is left to be read that no event will tell of."""
        return bool(self._unread)

    def readdress(self, addresses: Sequence[Address]) -> None:
        """Connect to these from now on; what is connected stays."""
        self._addresses = list(addresses)

    def next_deadline(self) -> float | None:
        """When `expire` has something to do; None: no connection is open."""
        times = [next(iter(table.values())) for table in (self._connecting, self._lingering) if table]
        if self._by_fd:
            times.append(self._next_sweep)
        if self._waiting:
            times.append(0.0)
        return min(times) if times else None

    def expire(self, now: float) -> None:
        """Act on what took too long."""
        while self._connecting and next(iter(self._connecting.values())) <= now:
            self._connect_failed(next(iter(self._connecting)), errno.ETIMEDOUT, now)
        while self._lingering and next(iter(self._lingering.values())) <= now:
            lane = next(iter(self._lingering))
            self._ledger.events["lingered_out"] += 1
            self._remove(lane, DropReason.SHADOW_SLOW)
        for lane, deadline in list(self._waiting.items()):
            if now >= deadline:
                self._ledger.events["wait_timeouts"] += 1
                self._pass_turn(lane, now)
            else:
                self._flush(lane, now)
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP
            for lane in [lane for lane in self._by_fd.values() if lane.lazy]:
                self._on_readable(lane, now)
            for lane in [
                lane for lane in self._by_fd.values() if lane.framer and lane.framer.outstanding > OUTSTANDING
            ]:
                self._ledger.events["unanswered_closes"] += 1
                self._lost(lane, now)
            if self._idle_time:
                self._close_idle(now)

    def held(self) -> tuple[int, int]:
        """(captured bytes queued, requests that are neither wholly sent nor dropped)."""
        return self._pool.bytes, self._pool.requests

    def idle(self) -> bool:
        """Nothing is queued and no connection waits for its end."""
        return not self._pool.bytes and not self._lingering and not self._connecting

    def close(self, reason: DropReason) -> None:
        """Drop what is queued and close every connection."""
        for lane in list(self._lanes.values()):
            self._remove(lane, reason)
        self._epoll.close()

    # --- commands

    def execute(self, command: Command, now: float) -> None:
        """Carry out one command of the pipeline."""
        self._steps[type(command)](command, now)

    def _send(self, command: Send, now: float) -> None:
        """The fast path: one look-up, one `send`."""
        flow, data, size, flags = command.flow, command.data, command.size, command.flags
        lane = self._lanes.get(flow)
        if lane is None or not lane.ready or flags & TUNNEL:
            self._send_later(lane, command, now)
            return
        if flags & START:
            lane.framer.expect(flags)  # type: ignore[union-attr]
        try:
            count = lane.sock.send(data)  # type: ignore[union-attr]
        except BlockingIOError:
            count = 0
        except OSError:
            lane.sent_in_part(bytes(data), size, flags, 0)
            self._lost(lane, now)
            return
        if count < len(data):
            lane.sent_in_part(bytes(data), size, flags, count)
        elif not flags:
            self._bytes.mirrored += size
        elif flags & _WHOLE == _WHOLE:
            self._bytes.mirrored += size
            self._requests.mirrored += 1
            lane.sent += 1
            if lane.sent == LAZY_AFTER:
                self._settle_in(lane)
        else:
            lane.sent_whole(size, flags)

    def _send_later(self, lane: Lane | None, command: Send, now: float) -> None:
        """The ways of a part that cannot be sent at once."""
        size, flags = command.size, command.flags
        if lane is None:
            self._bytes.dropped[DropReason.SHADOW_CLOSED] += size
            if flags & START:
                self._requests.dropped[DropReason.SHADOW_CLOSED] += 1
            return
        if flags & START and lane.state != GIVEN_UP:
            lane.skipping = None
        if lane.skipping is not None:
            lane.drop(size, flags, lane.skipping)
            return
        if flags & TUNNEL:
            lane.switching = True
        elif flags & START and not (lane.framer is not None and lane.framer.tunnel is True):
            lane.switching = lane.tunnel = False
        elif lane.switching and not flags and not lane.open_request:
            lane.tunnel = True
        if lane.state == IDLE and not self._connect(lane, now):
            self._skip(lane, command, self._backoff.reason)
            return
        if lane.full(len(command.data)):
            self._overflow(lane, command, now)
            return
        lane.enqueue(bytes(command.data), size, flags)
        if lane.state == OPEN:
            self._flush(lane, now)

    def _skip(self, lane: Lane, command: Send, reason: DropReason) -> None:
        """Drop a part and what belongs to it."""
        lane.drop(command.size, command.flags, reason)
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
            if lane.drop_last(reason):
                self._reset(lane)
                lane.drop_all(reason)
            if command.flags & END:
                lane.skipping = None
        else:
            self._give_up(lane, reason)

    def _open(self, command: Open, now: float) -> None:
        lane = Lane(command.flow, command.http, self._pool, self._ledger)
        self._lanes[command.flow] = lane
        if not command.http and not self._connect(lane, now):
            self._give_up(lane, self._backoff.reason)

    def _turn(self, command: Turn, now: float) -> None:
        lane = self._lanes.get(command.flow)
        if lane is None or lane.state not in (OPEN, CONNECTING):
            return
        lane.enqueue_turn(command.answered)
        if lane.state == OPEN:
            self._flush(lane, now)

    def _finish(self, command: Finish, now: float) -> None:
        lane = self._lanes.get(command.flow)
        if lane is None:
            return
        lane.finishing = True
        if lane.state in (IDLE, GIVEN_UP):
            self._remove(lane, DropReason.INCOMPLETE)
            return
        self._lingering[lane] = now + self._limits.linger_time
        if lane.lazy:
            self._set_lazy(lane, 1)
        if lane.state == OPEN:
            self._try_finish(lane, now)

    def _abort(self, command: Abort, now: float) -> None:
        lane = self._lanes.get(command.flow)
        if lane is None:
            return
        if not lane.http or lane.tunnel:
            self._give_up(lane, command.reason)
            if command.reset:
                self._remove(lane, command.reason)
            return
        if lane.drop_last(command.reason):
            self._reset(lane)
            lane.drop_all(command.reason)
        if command.reset:
            self._finish(Finish(command.flow), now)

    # --- a connection's life

    def _connect(self, lane: Lane, now: float) -> bool:
        """Begin to connect; False if that is not possible now (the reason is the back-off's)."""
        connecting = self._connecting
        oldest = next(iter(connecting.values())) - self._connect_time if connecting else now
        if not self._backoff.allows(now, oldest):
            return False
        if len(self._by_fd) >= self._limits.connections:
            self._backoff.failed(now, DropReason.NO_RESOURCES, now)
            return False
        family, address = self._addresses[0]
        try:
            sock = _socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:
            self._backoff.failed(now, DropReason.NO_RESOURCES, now)
            return False
        if family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, LOOP_DSCP << 2)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, LOOP_DSCP << 2)
        if lane.http:
            # The last step of the handshake goes with the request that waits, as its acknowledgement: a packet
            # less, and the shadow wakes once and not twice (tcp_rcv_synsent_state_process, "pingpong mode").
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        number = sock.connect_ex(address)
        if number not in (0, errno.EINPROGRESS):
            sock.close()
            self._count_failure(number, now, now)
            return False
        lane.sock = sock
        lane.state = CONNECTING
        lane.framer = ResponseFramer(self._limits.head_bytes) if lane.http else None
        lane.sent = 0
        lane.lazy = False
        lane.shadow_done = False
        lane.heard = 0
        lane.fd = sock.fileno()
        self._by_fd[lane.fd] = lane
        self._connecting[lane] = now + self._connect_time
        self._epoll.register(lane.fd, _INTEREST)
        self._ledger.events["shadow_connects"] += 1
        return True

    def _on_event(self, lane: Lane, event: int, now: float) -> None:
        if lane.state == CONNECTING:
            if event & _GONE:
                number = lane.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # type: ignore[union-attr]
                self._connect_failed(lane, number, now)
                return
            if self._tls is not None and not self._secured(lane, self._tls, now):
                return
            del self._connecting[lane]
            lane.state = OPEN
            self._backoff.succeeded()
            if not lane.http:
                self._settle_in(lane)
            lane.refresh()
        if event & select.EPOLLOUT and lane.queue:
            self._flush(lane, now)
        if event & _READABLE and lane.sock is not None:
            self._on_readable(lane, now, ended=bool(event & _ENDED))
        if lane.finishing and lane.state == OPEN:
            self._try_finish(lane, now)

    def _secured(self, lane: Lane, context: ssl.SSLContext, now: float) -> bool:
        """Go on with the TLS handshake; whether it is done."""
        try:
            if not isinstance(lane.sock, TlsSocket):
                assert lane.sock is not None
                lane.sock = TlsSocket(lane.sock, context, self._tls_name)
            return lane.sock.handshake()
        except (OSError, ValueError) as error:
            self._ledger.events["tls_failures"] += 1
            number = error.errno if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else None
            self._connect_failed(lane, number or errno.EPROTO, now)
            return False

    def _connect_failed(self, lane: Lane, number: int, now: float) -> None:
        self._count_failure(number, now, self._connecting[lane] - self._connect_time)
        reason = self._backoff.reason
        self._unhook(lane)
        lane.drop_all(reason)
        if not lane.http:
            lane.state = GIVEN_UP
            lane.skip(reason)
        if lane.finishing:
            self._remove(lane, reason)

    def _count_failure(self, number: int, now: float, began: float) -> None:
        self._ledger.events[f"connect_{errno.errorcode.get(number, 'error')}"] += 1
        exhausted = number in _EXHAUSTED
        self._backoff.failed(now, DropReason.NO_RESOURCES if exhausted else DropReason.SHADOW_DOWN, began)
        self._addresses.append(self._addresses.pop(0))

    def _flush(self, lane: Lane, now: float) -> None:
        """Send what is queued, as far as the socket and the turns allow."""
        queue = lane.queue
        while queue and lane.state == OPEN:
            item = queue[0]
            if item.answered >= 0:
                if not self._answered(lane, item.answered, now):
                    return
                self._pass_turn(lane, now, flush=False)
                continue
            if not self._may_send(lane, item, now):
                return
            try:
                count = lane.sock.send(memoryview(item.data)[item.offset :])  # type: ignore[union-attr]
            except BlockingIOError:
                return
            except OSError:
                self._lost(lane, now)
                return
            if not lane.advance(count):
                return
        lane.refresh()

    def _may_send(self, lane: Lane, item: Item, now: float) -> bool:
        """Whether the first queued part may go on this connection now."""
        framer = lane.framer
        if framer is None or framer.tunnel is True:
            return True
        if item.flags & START and not item.announced:
            if framer.closing:
                if not framer.outstanding:
                    self._lost(lane, now)
                return False
            framer.expect(item.flags)
            item.announced = True
            return True
        if lane.tunnel and not item.flags:
            if framer.tunnel is False:
                lane.drop_all(DropReason.TUNNEL_REFUSED)
                lane.skip(DropReason.TUNNEL_REFUSED)
                lane.tunnel = False
            return False
        return True

    def _on_readable(self, lane: Lane, now: float, *, ended: bool = False) -> None:
        """Read and discard, a bounded amount.

        A read that was not filled emptied the socket: more will be a new edge (epoll(7)), except for an
        end that came with this one (`ended`).
        """
        sock = lane.sock
        if sock is None or lane.state != OPEN:
            return
        try:
            for _ in range(READS):
                asked, count = (
                    self._read_http(lane, sock) if lane.framer is not None else self._read_raw(lane, sock, now)
                )
                if not count:
                    self._shadow_ended(lane, now)
                    return
                if count < asked and not ended and self._tls is None:
                    break
            else:
                self._unread.add(lane)
        except BlockingIOError:
            pass
        except OSError:
            self._ledger.events["shadow_resets"] += 1
            self._lost(lane, now)
            return
        if lane.queue:
            self._flush(lane, now)
        if lane.finishing and lane.state == OPEN:
            self._try_finish(lane, now)

    def _read_raw(self, lane: Lane, sock: _socket.socket | TlsSocket, now: float) -> tuple[int, int]:
        """(bytes asked for, bytes read); nothing of them is looked at."""
        count = sock.recv_into(self._waste, DISCARD_BYTES, socket.MSG_TRUNC)
        if self._wait:
            lane.heard += count
            lane.heard_at = now
        return DISCARD_BYTES, count

    def _read_http(self, lane: Lane, sock: _socket.socket | TlsSocket) -> tuple[int, int]:
        """(bytes asked for, bytes read); of bodies nothing is looked at."""
        framer = lane.framer
        assert framer is not None
        skippable = framer.skippable()
        if skippable:
            asked = min(skippable, DISCARD_BYTES)
            count = sock.recv_into(self._waste, asked, socket.MSG_TRUNC)
            framer.skip(count)
            return asked, count
        count = sock.recv_into(self._buffer, LOOK_BYTES)
        if count:
            for status in framer.feed(self._view[:count]):
                self._ledger.answers[_CLASSES[status // 100]] += 1
            if framer.closing:
                lane.ready = False
            if framer.failed:
                self._ledger.answers["garbage"] += 1
        return LOOK_BYTES, count

    def _shadow_ended(self, lane: Lane, now: float) -> None:
        """The shadow closed its side."""
        if lane.http:
            self._lost(lane, now)
            return
        lane.shadow_done = True
        if lane.finishing and not lane.queue:
            self._remove(lane, DropReason.SHADOW_CLOSED)

    def _lost(self, lane: Lane, now: float) -> None:
        """The connection is of no more use: what went in part is dropped, the rest goes over a new one."""
        if not lane.http or lane.tunnel:
            self._give_up(lane, DropReason.SHADOW_CLOSED)
            if lane.finishing:
                self._remove(lane, DropReason.SHADOW_CLOSED)
            return
        if lane.state == OPEN:
            self._unhook(lane)
        lane.drop_begun(DropReason.SHADOW_CLOSED)
        if lane.queue and not self._connect(lane, now):
            lane.drop_all(self._backoff.reason)
        if lane.finishing and lane.state == IDLE:
            self._remove(lane, DropReason.SHADOW_CLOSED)

    def _try_finish(self, lane: Lane, now: float) -> None:
        """Close an ended flow when nothing is left to be sent or answered."""
        if lane.queue:
            return
        if lane.framer is not None and not lane.tunnel:
            if not lane.framer.outstanding:
                self._spare_ports(lane, now)
                self._remove(lane, DropReason.INCOMPLETE)
            return
        if lane.shadow_done:
            self._remove(lane, DropReason.INCOMPLETE)
            return
        if lane.finishing and lane.sock is not None:
            try:
                lane.sock.shutdown(socket.SHUT_WR)
            except OSError:
                self._remove(lane, DropReason.SHADOW_CLOSED)

    def _spare_ports(self, lane: Lane, now: float) -> None:
        """An answered connection is about to be closed: see that it does not keep its port for long."""
        if now - self._closes_since >= TIME_WAIT:
            self._closes_since = now
            self._closes = 0
        self._closes += 1
        if self._closes > GENTLE_CLOSES and lane.sock is not None:
            lane.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def _give_up(self, lane: Lane, reason: DropReason) -> None:
        """A stream lost bytes: reset the connection, drop the rest of the flow."""
        self._reset(lane)
        lane.drop_all(reason)
        lane.state = GIVEN_UP
        lane.skip(reason)

    def _reset(self, lane: Lane) -> None:
        """Close with an RST, so that the shadow cannot take a part for a whole."""
        if lane.sock is not None:
            lane.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._unhook(lane)

    def _unhook(self, lane: Lane) -> None:
        """Close the socket of a lane, which is idle then."""
        lane.state = IDLE
        lane.ready = False
        self._connecting.pop(lane, None)
        self._waiting.pop(lane, None)
        self._unread.discard(lane)
        if lane.framer is not None:
            unanswered = lane.framer.eof() - lane.unsent()
            if unanswered > 0:
                self._ledger.answers["unanswered"] += unanswered
            lane.framer = None
        if lane.queue and not lane.begun:
            lane.queue[0].announced = False
        if lane.sock is not None:
            del self._by_fd[lane.fd]
            lane.sock.close()
            lane.sock = None

    def _remove(self, lane: Lane, reason: DropReason) -> None:
        """The flow is over."""
        lane.drop_all(reason)
        self._unhook(lane)
        self._lingering.pop(lane, None)
        self._lanes.pop(lane.flow, None)

    # --- turns, and how many bytes wake us

    def _answered(self, lane: Lane, answered: int, now: float) -> bool:
        """Whether the shadow answered as production had; else wait for it."""
        if lane.framer is not None and not lane.tunnel:
            done = not lane.framer.outstanding
        else:
            done = lane.heard >= answered or (lane.heard > 0 and now - lane.heard_at >= SILENCE)
        if not done:
            self._waiting.setdefault(lane, now + self._limits.wait_time)
        return done

    def _pass_turn(self, lane: Lane, now: float, *, flush: bool = True) -> None:
        self._waiting.pop(lane, None)
        if lane.queue and lane.queue[0].answered >= 0:
            lane.queue.popleft()
            lane.heard = 0
        if flush:
            self._flush(lane, now)

    def _settle_in(self, lane: Lane) -> None:
        """The connection lasts: what is not worth its system calls for one request is now."""
        lane.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # type: ignore[union-attr]
        if not self._wait:
            self._set_lazy(lane, LAZY_BYTES)

    def _close_idle(self, now: float) -> None:
        """Close what has had nothing to send and nothing to wait for long enough."""
        for lane in list(self._by_fd.values()):
            if lane.sent != lane.sent_at_sweep or lane.queue or lane.framer is None or lane.framer.outstanding:
                lane.sent_at_sweep = lane.sent
                lane.idle_since = now
            elif lane.state == OPEN and not lane.begun and not lane.tunnel and now - lane.idle_since >= self._idle_time:
                self._ledger.events["idle_closes"] += 1
                self._unhook(lane)

    def _set_lazy(self, lane: Lane, size: int) -> None:
        lane.lazy = size > 1
        lane.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)  # type: ignore[union-attr]


_CLASSES: Final = ["other", "1xx", "2xx", "3xx", "4xx", "5xx", "other", "other", "other", "other"]
