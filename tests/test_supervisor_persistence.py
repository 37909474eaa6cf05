# SPDX-License-Identifier: Apache-2.0
"""What is written to disk, and a disk that is full or hangs."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import pytest

from daemon_rig import A, Rig, conversation, kept
from lab import PATIENCE
from tapmirror.supervisor import persistence


@conversation
async def test_a_disk_that_is_full_ends_nothing(rig: Rig) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(persistence, "AGAIN", 0.01)
        patch.setattr(os, "fsync", full)
        await rig.daemon.start([A], force=False)
        assert "No space left on device" in rig.daemon.persistence.error
        await rig.until(lambda: rig.daemon.persistence.errors > 2, "more tries")
        assert rig.script.attached() == ["a"] and kept(rig) == {}
        patch.undo()
        await rig.until(lambda: rig.daemon.persistence.error == "", "room again")
    assert [*kept(rig)] == ["a"]


@conversation
async def test_a_disk_that_is_full_is_not_tried_at_each_look(rig: Rig) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        await rig.daemon.start([A], force=False)
        now = time.monotonic()
        looks = [
            rig.daemon.persistence.due(now + seconds)
            for seconds in (0.0, 0.4, persistence.AGAIN, persistence.AGAIN + 0.4)
        ]
    assert looks == [True, False, True, False]


def full(_: int) -> None:
    raise OSError(28, "No space left on device")


@conversation
async def test_a_disk_that_hangs_holds_up_no_start_of_the_daemon(rig: Rig) -> None:
    await rig.daemon.start([A], force=False)
    await rig.daemon.close()
    hanging, go_on = threading.Event(), threading.Event()

    def hang(_: int) -> None:
        hanging.set()
        go_on.wait(PATIENCE)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", hang)
        await asyncio.wait_for(rig.begin(), PATIENCE / 2)
        await rig.running("a")
        assert await asyncio.to_thread(hanging.wait, PATIENCE)
        rig.places.stop_file.touch()
        await rig.running()
        go_on.set()
