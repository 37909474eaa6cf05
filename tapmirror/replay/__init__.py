# SPDX-License-Identifier: Apache-2.0
"""Replay: the only stage that owns sockets towards the shadow.

Each worker has one epoll reactor for each copy of each shadow.  Each production connection has a connection of its own
to the shadow, whose responses are read, counted and discarded.  Only safe requests that the shadow left unread, behind
a response with notice that it closes the connection, are sent again (`resend`).
"""

from tapmirror.replay.reactor import Reactor
from tapmirror.replay.replay import Replay

__all__ = ["Reactor", "Replay"]
