# SPDX-License-Identifier: Apache-2.0
"""The sockets of lanes: how they are opened and closed, and what is learned from a closed one.

A socket is registered once, edge triggered, for all events: that it is connected, writable again, readable or gone.
"""

from __future__ import annotations

import select
from typing import Final

from tapmirror.ledger import UNANSWERED_ALIKE, Ledger
from tapmirror.replay.dial import Dialer
from tapmirror.replay.lane import IDLE, Lane
from tapmirror.replay.ports import reset_on_close
from tapmirror.replay.turns import Turns

_INTEREST: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET


class Sockets:
    """The sockets of one reactor's lanes."""

    __slots__ = ("_dialer", "_events", "_responses", "_turns", "by_fd", "epoll", "unread")

    def __init__(self, dialer: Dialer, turns: Turns, ledger: Ledger) -> None:
        self._dialer = dialer
        self._turns = turns
        self._responses = ledger.responses
        self._events = ledger.events
        self.epoll = select.epoll()
        self.by_fd: dict[int, Lane] = {}
        """The lanes that have a socket, by its descriptor."""
        self.unread: dict[Lane, None] = {}
        """Lanes with something left to read for which there will be no event, in the order of their turns."""

    def connect(self, lane: Lane, now: float) -> bool:
        """Begin to connect; False if that is not possible now (the reason is the dialer's)."""
        if not self._dialer.dial(lane, now, len(self.by_fd)):
            return False
        self.by_fd[lane.fd] = lane
        self.epoll.register(lane.fd, _INTEREST)
        return True

    def ask_again(self, lane: Lane) -> None:
        """Ask for an event when the socket is writable, even if it already was."""
        self.epoll.modify(lane.fd, _INTEREST)

    def close(self, lane: Lane, torn: int = 0) -> None:
        """Close the socket of a lane, which is idle then.

        Of what went on it `torn` requests were dropped, or go again: they are not counted as unanswered.
        """
        self._dialer.forget(lane)
        lane.state = IDLE
        lane.ready = lane.lazy = False
        if self._turns:
            self._turns.forget(lane)
        self.unread.pop(lane, None)
        if lane.observing is not None:
            lane.observing.given_up()
            lane.observing = None
        if lane.framer is not None:
            noticed = lane.framer.closing and not (lane.framer.failed or lane.framer.idled)
            owed = lane.framer.eof()
            unanswered = owed - lane.unsent()
            torn += lane.torn
            if unanswered > torn:
                self._responses["unanswered"] += unanswered - torn
                lane.unanswered = True
                self.excuse(lane)
            self._dialer.like = lane.framer
            answered = lane.announced() - owed
            if noticed or answered > self._dialer.last:
                self._dialer.last = answered if noticed else 0
            lane.framer = None
            lane.resendable.prune(0)
        if lane.queue and not lane.begun:
            lane.queue[0].restart()
        if lane.sock is not None:
            del self.by_fd[lane.fd]
            lane.sock.close()
            lane.sock = None

    def excuse(self, lane: Lane) -> None:
        """If neither shadow nor production answered what was asked last, whichever ended first."""
        if lane.excused and lane.unanswered:
            lane.excused = lane.unanswered = False
            self._events[UNANSWERED_ALIKE] += 1
            if lane.blamed is not None:
                lane.blamed.forgive()

    def reset(self, lane: Lane, torn: int = 0) -> None:
        """Close with an RST, so that the shadow cannot take a part for a whole; `torn` as of `close`."""
        if lane.sock is not None:
            reset_on_close(lane.sock)
        self.close(lane, torn)
