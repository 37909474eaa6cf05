# SPDX-License-Identifier: Apache-2.0
"""Atomic replacement of files: at any moment, even after a power failure, a file has its old content or the new one."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def replace(path: Path, beside: Path, data: bytes, *, mode: int = 0o600, like: os.stat_result | None = None) -> None:
    """Write to `beside`, an unused name in the same directory, sync, and rename that to `path`.

    The mode is `mode` less the umask; with `like` it is that file's mode, and its owner too, if we may set it.  Raises
    OSError; then the earlier file is still there.
    """
    with suppress(FileNotFoundError):
        beside.unlink()
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if like is not None:
                with suppress(PermissionError):
                    os.fchown(descriptor, like.st_uid, like.st_gid)
                os.fchmod(descriptor, like.st_mode & 0o777)
            os.fsync(descriptor)
        os.rename(beside, path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
