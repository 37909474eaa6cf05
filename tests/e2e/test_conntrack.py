# SPDX-License-Identifier: Apache-2.0
"""Scenario 27: the table of connections (conntrack) is full, at the shadow or on production's own host."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from e2e.driven import attempts, driven, known_to_be_down, serve, settled
from e2e.served import under_load, untorn
from lab import Lab, until
from lab.conntrack import full, tracked, turned_away
from lab.snapshot import cpu_seconds

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]


@pytest.mark.alone
@pytest.mark.parametrize("where", ["shadow", "node"])
def test_a_full_table_of_connections_costs_copies_alone_and_they_come_back(
    lab: Lab, where: str, record_property: Callable[[str, object], None]
) -> None:
    """The real table of a network namespace, up to the machine's own bound: `lab.conntrack` says how.

    On production's host its own port is not tracked: new connections of production would be dropped like any, with
    and without a tap.  What the tap opens is, and gets no reply.
    """
    host = {"shadow": lab.shadow, "node": lab.node}[where]
    with (
        tracked(host, 80 if where == "node" else None),
        under_load(lab, rate=1_000, connections=40, per_connection=5) as (production, shadow, running),
        driven(lab.node) as tap,
    ):
        serve(tap, lambda: len(shadow.got) > 500, "mirroring")
        workers = [tap.snapshot()["worker"]["pid"]]
        with full(host):
            before = turned_away(host)
            seen, mirrored, cpu, began = len(production.got), len(shadow.got), cpu_seconds(workers), time.monotonic()
            serve(tap, lambda: known_to_be_down(tap), "that it is known to be down")
            since, made = time.monotonic(), attempts(tap)
            serve(tap, lambda: len(production.got) > seen + 7_000, "more requests")
            made = attempts(tap) - made
            assert made <= 10 * (time.monotonic() - since) + 1  # ten a second
            took = time.monotonic() - began
            record_property("cpu", (cpu_seconds(workers) - cpu) / took)
            assert cpu_seconds(workers) - cpu < 0.2 * took  # what reading them costs, as in test_descriptors
            assert turned_away(host) > before
            assert len(shadow.got) - mirrored < 1_000
        count = len(shadow.got)
        serve(tap, lambda: len(shadow.got) > count + 1_000, "that it resumes by itself")
        assert running.stop().failed == 0
        ledger = settled(tap)
        untorn(production, shadow)
        requests, events = ledger["requests"], ledger["events"]
        assert requests["dropped"].pop("midstream", 0) < 100
        assert set(requests["dropped"]) == {"shadow_down"} and requests["dropped"]["shadow_down"] > 3_000
        until(lambda: len(shadow.got) == requests["mirrored"], "all that was mirrored")
        assert events["connect_ETIMEDOUT"] > 0
