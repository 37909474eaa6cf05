# SPDX-License-Identifier: Apache-2.0
"""What the processes of a tap must have in common: the version, and the header shared by kernel and user space.

Loader and workers are started from the files that are installed at that moment.  These need not be the supervisor's
files: the package may have been replaced meanwhile.  Then shared memory and messages would be misinterpreted.  So each
process gets the supervisor's `CONTRACT` on its command line, in a form that all versions can read, and refuses a
different one before it reads anything else.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from tapmirror import __version__


def bpf_text(name: str) -> str:
    """A file of `bpf/`, which is within the package, or beside it in a clone of the repository.  Raises OSError."""
    package = Path(__file__).parent
    inside = package / "bpf"
    return ((inside if inside.is_dir() else package.parent / "bpf") / name).read_text(encoding="utf-8")


CONTRACT: Final = f"{__version__}-{hashlib.sha256(bpf_text('tap.h').encode()).hexdigest()[:12]}"
"""The contract of the files that this process was started from."""


def broken(theirs: str) -> str | None:
    """Why we must not work with a supervisor that has this contract, in one line; None: it is ours."""
    if theirs == CONTRACT:
        return None
    return f"tapmirror {CONTRACT} is installed now, and {theirs or 'an older one'} is running: restart it"
