# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter

from tapmirror.compare.pairing import Conversation
from tapmirror.replay.hearing import Hearing
from tapmirror.replay.listener import Clock


def test_only_connections_that_are_compared_have_a_listener() -> None:
    talk = Conversation.__new__(Conversation)
    hearing = Hearing({7: talk}.get, 0, Clock(), Counter())
    assert hearing.listener(7) is not None
    assert hearing.listener(8) is None
