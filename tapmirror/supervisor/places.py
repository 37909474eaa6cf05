# SPDX-License-Identifier: Apache-2.0
"""The daemon's directories, and the lock by which only one daemon uses them.

The lock is flock(2) on the directory itself: it needs no room on a full disk, and ends with the process that holds it.
The kernel names that process (/proc/locks), so no number in a stale file is trusted.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

RUNTIME: Final = Path("/run/tapmirror")
STATE: Final = Path("/var/lib/tapmirror")
CONFIG: Final = Path("/etc/tapmirror")


class Places(msgspec.Struct, frozen=True):
    """The directories of one daemon."""

    runtime: Path = RUNTIME
    """The control socket and the file STOP; emptied at a reboot."""
    state: Path = STATE
    config: Path = CONFIG
    """`daemon.yaml`, `taps.d/*.yaml`."""

    @property
    def stop_file(self) -> Path:
        """While it is there, nothing is captured."""
        return self.runtime / "STOP"

    @property
    def captured(self) -> Path:
        """Its modification time is when a tap of this daemon, or of an earlier one, was last seen to capture."""
        return self.runtime / "captured"

    @property
    def settings(self) -> Path:
        """The settings of the daemon itself."""
        return self.config / "daemon.yaml"

    @property
    def taps(self) -> Path:
        """The directory of taps."""
        return self.config / "taps.d"


class PlaceError(Exception):
    """A directory cannot be used; the message is one line for the user.

    `problems`: a line for each where there are several; the message has the first.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = problems


def take(directory: Path, mode: int, gid: int | None = None) -> int:
    """Make the directory if it is missing, and lock it; returns a descriptor that holds the lock.

    A directory to which another user can write is refused.  Raises `PlaceError`.
    """
    try:
        with suppress(FileExistsError):
            os.makedirs(directory, mode)
            os.chmod(directory, mode)
        if gid is not None:
            with suppress(PermissionError):
                os.chown(directory, -1, gid, follow_symlinks=False)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise PlaceError(f"{directory}: {error.strerror}") from None
    try:
        facts = os.fstat(descriptor)
        if facts.st_uid not in (0, os.geteuid()) or stat.S_IMODE(facts.st_mode) & 0o022:
            owners = f"its owner {facts.st_uid} and root" if facts.st_uid else "root"
            raise PlaceError(f"{directory}: users other than {owners} can write to it")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise PlaceError(f"{directory}: {owner(facts)} runs with it already") from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def owner(facts: os.stat_result) -> str:
    """Who holds the lock of a directory, in words."""
    wanted = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"
    with suppress(OSError):
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            words = line.split()
            if len(words) > 5 and words[1] == "FLOCK" and words[5] == wanted:
                return f"a daemon (pid {words[4]})"
    return "another daemon"
