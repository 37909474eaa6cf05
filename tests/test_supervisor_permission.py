# SPDX-License-Identifier: Apache-2.0
"""What may not run beside what."""

from __future__ import annotations

import msgspec
import pytest

from daemon_rig import A, B, Rig, conversation, refused, tap
from tapmirror.control.messages import MAX_TAPS
from tapmirror.spec import Budget
from tapmirror.supervisor import permission
from tapmirror.supervisor.permission import RefusedError, distinct, unslipped


@conversation
async def test_what_may_not_run_together(rig: Rig) -> None:
    twin = msgspec.structs.replace(A, name="twin")
    await refused(rig.daemon.start([A, A], force=False), "refused", "two taps have the name 'a'")
    await refused(rig.daemon.start([A, twin], force=True), "refused", "the shadow would get every request twice")
    await rig.daemon.start([A], force=False)
    await refused(rig.daemon.start([twin], force=True), "refused", "twin: the tap 'a' mirrors eth0 port 80")
    ssh = tap("ssh", 22)
    await refused(rig.daemon.start([ssh], force=False), "refused", "port 22 is SSH's.*--force")
    assert await rig.daemon.start([ssh], force=True) == ["ssh"]


def test_workers_that_are_automatic_are_as_many_as_this_host_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command's file may be of another host; the daemon's own is where they run."""
    spec = tap("a", workers="auto", budget=Budget(memory=100_000_000))
    unslipped([spec])
    monkeypatch.setattr(permission, "automatic", lambda: 3)
    with pytest.raises(RefusedError, match=r"^a: budget\.memory: .* the 126 MiB that 3 workers hold"):
        unslipped([spec])


def test_there_may_be_a_thousand_taps_and_no_more() -> None:
    running = {f"tap{i}" for i in range(MAX_TAPS - 1)}
    distinct([A], running)
    distinct([tap("tap0")], running)
    with pytest.raises(RefusedError, match="taps at most"):
        distinct([A, B], running)
