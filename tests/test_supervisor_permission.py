# SPDX-License-Identifier: Apache-2.0
"""What may not run beside what."""

from __future__ import annotations

import msgspec
import pytest

from daemon_rig import A, B, Rig, conversation, refused, tap
from tapmirror.control.messages import MAX_TAPS
from tapmirror.supervisor.permission import RefusedError, distinct


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


def test_there_may_be_a_thousand_taps_and_no_more() -> None:
    running = {f"tap{i}" for i in range(MAX_TAPS - 1)}
    distinct([A], running)
    distinct([tap("tap0")], running)
    with pytest.raises(RefusedError, match="taps at most"):
        distinct([A, B], running)
