# SPDX-License-Identifier: Apache-2.0
"""Replay: the only stage that owns sockets towards the shadow.

One epoll reactor for each worker; each production connection has a shadow connection of its own,
whose answers are read, counted and thrown away.  Nothing is ever sent twice.
"""

from tapmirror.replay.reactor import Reactor
from tapmirror.replay.replay import Replay

__all__ = ["Reactor", "Replay"]
