# SPDX-License-Identifier: Apache-2.0
"""Memory that runs out: a control group with a limit, as `MemoryMax=` of systemd's units and containers have it.

Where the memory controller is not to be had (it is looked for where either version of control groups has it), who would
be the kernel's victim is asked of it (`oom_score`) and ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

from lab.hosts import bound_to_us, until

PLACES: Final = (
    (Path("/sys/fs/cgroup/memory"), "memory.usage_in_bytes", "memory.limit_in_bytes", "memory.oom_control"),
    (Path("/sys/fs/cgroup"), "memory.current", "memory.max", "memory.events"),
)
"""Of the first and the second version: how much there is, how much there may be, how many were ended."""
SPARE: Final = 32 << 20
NEIGHBOUR: Final = """
import re, sys
ended = lambda: int(re.search(r"oom_kill (\\d+)", open(sys.argv[1]).read())[1])
before, taken = ended(), []
while ended() == before:
    taken.append(b"x" * (1 << 20))
"""
"""Takes memory until the kernel has ended somebody, and gives it back; or is the one."""


class Scarce:
    """`with Scarce() as group:` what is in it at the end leaves it."""

    def __init__(self) -> None:
        for self._top, self._usage, self._limit, self._count in PLACES:
            self._group = self._top / f"tapmirror-lab-{os.getpid()}"
            with contextlib.suppress(OSError):  # there are no such groups here, or they are not ours
                self._group.mkdir()
                self._limited = (self._group / self._usage).exists()
                if self._limited:
                    return
                self._group.rmdir()
        self._limited = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._limited:
            return
        for pid in (self._group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (self._top / "cgroup.procs").write_text(pid)
        until(lambda: not (self._group / "cgroup.procs").read_text(), "the group is empty")
        self._group.rmdir()

    def before(self) -> tuple[str, ...]:
        """Words before a command that is to be in it, with all that comes of it."""
        join = f"echo $$ >{self._group}/cgroup.procs" if self._limited else ":"
        return ("sh", "-c", f'{join}; exec "$@"', "sh")

    def take(self, pids: Iterable[int]) -> None:
        """They are in it from now on."""
        for pid in pids:
            if self._limited:
                (self._group / "cgroup.procs").write_text(str(pid))

    def run_out(self, members: Iterable[int]) -> None:
        """A neighbour takes memory until the kernel has ended somebody.

        `members`: who is in the group, to be chosen from where there is none.
        """
        if not self._limited:
            os.kill(max(members, key=lambda pid: int(Path(f"/proc/{pid}/oom_score").read_text())), signal.SIGKILL)
            return
        usage, limit, count = (self._group / name for name in (self._usage, self._limit, self._count))
        limit.write_text(str(int(usage.read_text()) + SPARE))
        neighbour = [*self.before(), sys.executable, "-c", NEIGHBOUR, str(count)]
        subprocess.run(bound_to_us(neighbour), check=True, timeout=300)
