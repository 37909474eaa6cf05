# SPDX-License-Identifier: Apache-2.0
"""What of the lab or of a tap is on the host itself: to be the same after a run as before it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

from lab.hosts import MARK
from lab.snapshot import network_programs


@dataclass(frozen=True)
class Trace:
    """As it is at one moment.  Without root, what one may see."""

    processes: frozenset[str]
    """Those that this run's labs started, and all that came of them: they carry its mark.
    A network without a name is held by a process, so with them the networks are gone, and what is attached there."""
    names: frozenset[str]
    """Networks that have a name."""
    mounts: frozenset[str]
    interfaces: frozenset[str]
    """Of the host's own network."""
    packet_sockets: frozenset[str]
    """Of the host's own network."""
    programs: frozenset[str]
    """Those for sockets and interfaces, of the whole kernel: another run on this machine shows here."""

    @classmethod
    def now(cls, *, beside: bool = False) -> Self:
        """Look around.  `beside`: another run is there, and the programs are its."""
        named = Path("/run/netns")
        sockets = Path("/proc/net/packet").read_text(encoding="ascii").splitlines()[1:]
        return cls(
            processes=frozenset(marked()),
            names=frozenset(path.name for path in (named.iterdir() if named.exists() else ())),
            mounts=frozenset(line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()),
            interfaces=frozenset(os.listdir("/sys/class/net")),
            packet_sockets=frozenset(line.split()[8] for line in sockets),
            programs=frozenset(() if beside else network_programs()),
        )

    def since(self, before: Self) -> str:
        """What is there now and was not before, in words; empty: nothing."""
        found = ((each.name, getattr(self, each.name) - getattr(before, each.name)) for each in fields(self))
        return "; ".join(f"{name}: {', '.join(sorted(new))}" for name, new in found if new)


def marked() -> Iterator[str]:
    """The processes that carry our mark, but ourselves."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # it is gone, or another's
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                    yield f"{entry.name} ({words.strip()[:100]})"
