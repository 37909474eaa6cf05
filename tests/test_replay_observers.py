# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter

from tapmirror.compare.pairing import Conversation
from tapmirror.replay.observer import Clock
from tapmirror.replay.observers import Observers


def test_only_connections_that_are_compared_have_a_listener() -> None:
    talk = Conversation.__new__(Conversation)
    observers = Observers({7: talk}.get, 0, Clock(), Counter())
    assert observers.observer(7) is not None
    assert observers.observer(8) is None
