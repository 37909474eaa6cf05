# SPDX-License-Identifier: Apache-2.0
"""What is said where one direction of the connections is not seen."""

from __future__ import annotations

import pytest

from tapmirror.supervisor.sides import ENOUGH, ciphered, missing


@pytest.mark.parametrize(
    ("syn", "syn_ack", "bare_ack", "egress", "said"),
    [
        (0, ENOUGH, 0, 20, "only production's side is seen, and nothing of its clients"),
        (0, ENOUGH - 1, 0, 20, ""),
        (0, ENOUGH, 1, 20, ""),
        (1, 100, 0, 0, ""),
        (ENOUGH, 0, ENOUGH, 0, "only the clients' side is seen, and nothing of production"),
        (1_000_000, 0, 0, 0, ""),  # nothing listens there
        (ENOUGH, 0, ENOUGH - 1, 0, ""),
        (0, 0, 100, 0, ""),  # connections that stood before
        (ENOUGH, 0, ENOUGH, 1, ""),
        (50, 50, 50, 10, ""),
        (0, 0, 0, 0, ""),
    ],
)
def test_one_side_alone(syn: int, syn_ack: int, bare_ack: int, egress: int, said: str) -> None:
    events = {"kernel_syn": syn, "kernel_syn_ack": syn_ack, "kernel_bare_ack": bare_ack, "kernel_egress": egress}
    line = missing({name: count for name, count in events.items() if count}, ["eth0", "br0"])
    assert line.startswith(f"eth0, br0: {said}" if said else "")
    assert bool(line) == bool(said)


def test_clients_that_another_tap_stands_for_are_seen() -> None:
    """A host that is a shadow itself: what comes in bears the mark, and is left out for that (`loop`)."""
    assert missing({"kernel_loop_syn": 20, "kernel_syn_ack": 20, "kernel_egress": 20}, ["eth0"]) == ""


@pytest.mark.parametrize(
    ("connections", "of", "told"),
    [
        (0, 1000, False),
        (ENOUGH - 1, ENOUGH - 1, False),
        (ENOUGH, ENOUGH, True),
        (900, 1000, True),
        pytest.param(500, 1_000_000, False, id="scanners, in the course of time"),
    ],
)
def test_that_clients_speak_tls(connections: int, of: int, told: bool) -> None:
    line = ciphered({"flows": of, "flows_tls": connections})
    assert ("clients speak TLS" in line) == told == bool(line)
