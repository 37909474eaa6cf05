# SPDX-License-Identifier: Apache-2.0
"""The states of a connection, by their table."""

from __future__ import annotations

from tapmirror.flow import TRANSITIONS, Flow, Move, State
from tapmirror.ledger import Ledger
from tapmirror.spec import Limits
from tapmirror.tcp import ReassemblyMemory, Receiver


def begun(*, midstream: bool) -> Flow:
    return Flow(1, bytes(40), 1000, Receiver(1000, ReassemblyMemory(Limits()), Ledger()), 1.0, midstream)


def test_how_it_begins() -> None:
    assert begun(midstream=False).state is State.OPEN
    assert begun(midstream=True).state is State.TENTATIVE


def test_every_state_but_the_last_leads_to_the_end() -> None:
    """By an RST, whatever came before; and nothing leads out of the last one."""
    for state in State:
        assert TRANSITIONS.get((state, Move.RESET), state) is State.CLOSED
    assert all(state is not State.CLOSED for state, _ in TRANSITIONS)


def test_both_sides_have_to_end() -> None:
    for first, second in ((Move.CLIENT_FIN, Move.SERVER_FIN), (Move.SERVER_FIN, Move.CLIENT_FIN)):
        half = TRANSITIONS[State.OPEN, first]
        assert half not in (State.OPEN, State.CLOSED)
        assert TRANSITIONS.get((half, first), half) is half
        assert TRANSITIONS[half, second] is State.CLOSED


def test_only_production_s_word_opens_what_was_joined_in_midstream() -> None:
    assert {move for state, move in TRANSITIONS if state is State.TENTATIVE} == {Move.CONFIRMED, Move.RESET}
    assert [key for key, after in TRANSITIONS.items() if after is State.OPEN] == [(State.TENTATIVE, Move.CONFIRMED)]
