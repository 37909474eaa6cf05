# SPDX-License-Identifier: Apache-2.0
"""Descriptors or ports run out: what cannot be connected is counted, nothing spins, and the host has ports left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from e2e.driven import driven, serve, settled
from e2e.mirror import ROOM, connect
from lab import HashSink, Lab, LoadPlan, RecordingTcp, Tap, identity, load, tap, until
from lab import Load as Running
from lab.snapshot import cpu_seconds
from tapmirror.spec import Capture, Limits

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]

FILES = 64
PORTS = 100
FLOWS_A_SECOND = 28_000 // 60
SECONDS = 6
SPEC = """
iface: eth0
port: 80
shadow: 10.77.2.2:80
capture: {capture}
limits: {{drain_time: 0.5}}
"""
"""The shadow never answers: the drain is as long as it may be."""


@pytest.fixture
def limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command runs with few descriptors, and without the capability by which it would give itself more."""
    script = tmp_path / "tapmirror"
    words = f"prlimit --nofile={FILES}:{FILES} setpriv --bounding-set -sys_resource --inh-caps -all"
    script.write_text(f'#!/bin/sh\nexec {words} {tap.COMMAND} "$@"\n', encoding="ascii")
    script.chmod(0o755)
    monkeypatch.setattr(tap, "COMMAND", script)


@pytest.mark.alone
@pytest.mark.usefixtures("limited")
def test_with_64_descriptors_and_28_thousand_connections_a_minute(
    lab: Lab, record_property: Callable[[str, object], None]
) -> None:
    """To a shadow that never answers, so that each connection lingers.

    While they come, the worker's CPU is that of reading them: some 5 % of a core on an idle machine, twice that on a
    busy one.  With none it is nothing, though there still is no descriptor to spare.  A loop that spins takes all.
    """
    requests = FLOWS_A_SECOND * SECONDS
    with HashSink(lab.node), RecordingTcp(lab.shadow, 80), Tap(lab.node, spec=SPEC.format(capture="auto")) as running:
        workers = {pid: words for pid, words in running.processes().items() if "tapmirror.worker" in words}
        (worker,) = workers
        limits = Path(f"/proc/{worker}/limits").read_text(encoding="ascii")
        assert limits.partition("Max open files")[2].split()[:2] == [str(FILES)] * 2
        plan = LoadPlan(
            address=lab.node.addr4, requests=requests, connections=50, per_connection=1, rate=FLOWS_A_SECOND
        )
        before, began = cpu_seconds(workers), time.monotonic()
        assert Running(lab.client, plan).result().answered == requests
        under_load = (cpu_seconds(workers) - before) / (time.monotonic() - began)
        until(lambda: share_of(workers, 2.0) < 0.02, "that it rests")
        ledger = running.stop()
    record_property("cpu", under_load)
    identity(ledger)
    assert ledger["requests"]["seen"] == requests
    assert ledger["requests"]["dropped"]["no_resources"] > requests / 2
    assert under_load < 0.2, under_load


def share_of(pids: Iterable[int], seconds: float) -> float:
    """How much of a CPU processes use for a while."""
    before, began = cpu_seconds(pids), time.monotonic()
    time.sleep(seconds)
    return (cpu_seconds(pids) - before) / (time.monotonic() - began)


@pytest.mark.parametrize("capture", ["ebpf", "packet"])
def test_half_of_the_hosts_ports_stay_its_own(fresh: Lab, capture: str) -> None:
    """To a shadow that never answers, so that each connection lingers."""
    lab, requests = fresh, 2 * PORTS
    lab.node.sysctl("ipv4.ip_local_port_range", f"40000 {40_000 + PORTS - 1}")
    limits = Limits(**{**ROOM, "drain_time": 0.5})  # the shadow never answers: the drain is as long as it may be
    with (
        HashSink(lab.node),
        RecordingTcp(lab.shadow, 80),
        driven(lab.node, capture=Capture(capture), limits=limits) as tap,
    ):
        result = load(lab.client, lab.node.addr4, requests=requests, connections=requests, per_connection=1)
        assert result.answered == requests
        serve(tap, lambda: bool(tap.snapshot()["requests"]["seen"] == requests), "all of them read")
        assert len(to_shadow(lab)) == PORTS // 2
        with contextlib.ExitStack() as own:
            for _ in range(PORTS // 4):
                own.enter_context(connect(lab.node, "10.77.2.2", 80))
        ledger = settled(tap)
    assert ledger["requests"]["mirrored"] == PORTS // 2
    assert ledger["requests"]["dropped"] == {"no_resources": requests - PORTS // 2}
    assert not any(name.startswith("connect_E") for name in ledger["events"])


def to_shadow(lab: Lab) -> list[str]:
    """Connections of the node to the shadow."""
    return lab.node.run(["ss", "-Htn", "dst", "10.77.2.2"]).stdout.splitlines()
