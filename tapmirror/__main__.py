# SPDX-License-Identifier: Apache-2.0
"""The `tapmirror` command, and `python -m tapmirror`."""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import Final

UNWRITABLE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
"""What a write to standard output fails with where it is a file on a disk, or closed (`cli.closed`)."""
OWN_SIGNALS: Final = (["run"], ["daemon"])
"""Commands that have handlers of their own before they begin anything."""


def main() -> None:
    """Run the command.  A Ctrl-C while Python imports it ends the process, without a traceback: nothing was begun.

    So it does before a command of `OWN_SIGNALS` has its handlers: click would end with 1, which says that a tap broke
    down, or that a shadow fails.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from tapmirror.cli.main import COMMANDS, command
    from tapmirror.cli.main import main as group

    for word in sys.argv[1:2]:
        if word in COMMANDS:
            command(word)
    if sys.argv[1:2] not in OWN_SIGNALS:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        group(prog_name="tapmirror")
    except OSError as error:
        if error.errno not in UNWRITABLE or error.filename is not None:
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)  # what is still to be written, else fails once more at the end
        try:
            if sys.stderr is not None:
                sys.stderr.write(f"tapmirror: error: what is printed cannot be written: {error.strerror}\n")
        except OSError:  # it was standard error that took nothing
            os.dup2(nowhere, 2)
        sys.exit(2)  # 1 is the exit code of a verdict that says that a shadow fails
    finally:
        try:
            if sys.stderr is not None:
                sys.stderr.flush()
        except OSError:  # what it has no room for, which the interpreter would end with 120 for (Python 3.12)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


if __name__ == "__main__":
    main()
