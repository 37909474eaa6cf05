# SPDX-License-Identifier: Apache-2.0
"""Scenario 27: the table of connections (conntrack) is full, at the shadow or on production's own host."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from e2e.mirror import PATIENCE
from e2e.served import SHADOW, under_load, untorn
from lab import Lab, Tap, identity, until
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
    and without a tap.  What the tap opens is, and gets no answer.
    """
    host = {"shadow": lab.shadow, "node": lab.node}[where]
    with (
        tracked(host, 80 if where == "node" else None),
        under_load(lab, rate=1_000, connections=40, per_connection=5) as (production, shadow, running),
        Tap(lab.node, shadow=SHADOW) as tap,
    ):
        shadow.wait_for(500, PATIENCE)
        workers = [pid for pid, words in tap.processes().items() if "tapmirror.worker" in words]
        with full(host):
            before = turned_away(host)
            seen, mirrored, cpu, began = len(production.got), len(shadow.got), cpu_seconds(workers), time.monotonic()
            production.wait_for(seen + 7_000, PATIENCE)
            took = time.monotonic() - began
            record_property("cpu", (cpu_seconds(workers) - cpu) / took)
            assert cpu_seconds(workers) - cpu < 0.2 * took  # what reading them costs, as in test_descriptors
            assert turned_away(host) > before
            assert len(shadow.got) - mirrored < 1_000
        count = len(shadow.got)
        shadow.wait_for(count + 1_000, PATIENCE)
        result = running.stop()
        assert result.failed == 0
        ledger = tap.stop()
        identity(ledger)
        untorn(production, shadow)
        requests, events = ledger["requests"], ledger["events"]
        assert requests["dropped"].pop("midstream", 0) < 100
        assert set(requests["dropped"]) == {"shadow_down"} and requests["dropped"]["shadow_down"] > 3_000
        until(lambda: len(shadow.got) == requests["mirrored"], "all that was mirrored")
        attempts = sum(count for name, count in events.items() if name.startswith("connect_E"))
        assert 0 < events["connect_ETIMEDOUT"] <= attempts
        # Ten a second; in the first second, until it is known, one for each connection.
        assert attempts <= 10 * result.seconds + 1.5 * result.connections / result.seconds
