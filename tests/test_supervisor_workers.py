# SPDX-License-Identifier: Apache-2.0
"""One worker process: it answers, it ends, it hangs, it cannot begin; each is told in one line."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from lab import Lab
from tapmirror import privsep
from tapmirror.source.live import open_live
from tapmirror.spec import Hook, Limits, Protocol, TapSpec, parse_shadow
from tapmirror.supervisor import TapError
from tapmirror.supervisor.workers import WorkerProcess
from tapmirror.worker import Setup

pytestmark = [pytest.mark.e2e, pytest.mark.ebpf]

SHADOW = "10.77.2.2"
PATIENCE = 30.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built:
        yield built


def started(lab: Lab, **change: Any) -> WorkerProcess:
    """A worker that looks at a packet socket of the node."""
    uid, gid = privsep.worker_identity()
    fields = {"iface": "eth0", "ports": (80,), "shadows": (parse_shadow(f"{SHADOW}:80"),), **change}
    spec = TapSpec(**fields)
    setup = Setup(spec=spec, addresses=[[(int(socket.AF_INET), [SHADOW, 80])]], capture="packet", uid=uid, gid=gid)
    with lab.node.enter(), open_live("eth0", Limits().ring_bytes, loopback=False, ports=None) as sock:
        worker = WorkerProcess(setup, [sock.fileno()])
    try:
        worker.wait_ready(PATIENCE)
    except BaseException:
        worker.close(0.0)
        raise
    return worker


def test_it_answers_and_goes_when_let_go(lab: Lab) -> None:
    worker = started(lab)
    try:
        found = worker.ask({"op": "snapshot"}, "snapshot", 5.0)["snapshot"]
        assert found["worker"]["pid"] == worker.pid
        assert not select.select([worker.fileno()], [], [], 0)[0]
    finally:
        worker.close(5.0)
    assert not os.path.exists(f"/proc/{worker.pid}")


def test_its_death_is_readable_and_told(lab: Lab) -> None:
    worker = started(lab)
    try:
        os.kill(worker.pid, signal.SIGKILL)
        assert select.select([worker.fileno()], [], [], 5.0)[0]
        with pytest.raises(TapError, match=r"^the worker process ended \(signal 9\)"):
            worker.ask({"op": "snapshot"}, "snapshot", 5.0)
    finally:
        worker.close(5.0)


def test_one_that_hangs_is_killed(lab: Lab) -> None:
    worker = started(lab)
    try:
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(TapError, match="did not answer within 0 s"):
            worker.ask({"op": "snapshot"}, "snapshot", 0.2)
    finally:
        worker.close(5.0)
    assert not os.path.exists(f"/proc/{worker.pid}")


def test_one_that_cannot_begin_says_why_and_is_gone(lab: Lab) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(TapError, match=r"^hook: cannot load no_such_module:f"):
        started(lab, protocol=Protocol.HTTP, hook=Hook(call="no_such_module:f"))
    assert set(os.listdir("/proc/self/fd")) == before
