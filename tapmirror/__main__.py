# SPDX-License-Identifier: Apache-2.0
"""The `tapmirror` command, and `python -m tapmirror`."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command.  A Ctrl-C while Python imports it ends the process, without a traceback: nothing was begun."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from tapmirror.cli import main as command

    signal.signal(signal.SIGINT, signal.default_int_handler)
    command(prog_name="tapmirror")


if __name__ == "__main__":
    main()
