# SPDX-License-Identifier: Apache-2.0
"""Reading a file of taps, for every command that takes one."""

from __future__ import annotations

import sys

from tapmirror.cli.messages import fail, refuse_file
from tapmirror.spec import TapSpec
from tapmirror.spec.document import MAX_BYTES, FileError
from tapmirror.spec.reading import read_taps


def read_file(file: str) -> list[TapSpec]:
    """The taps of a file (`-`: standard input); what is wrong is told line by line, exit code 2."""
    name = "standard input" if file == "-" else file
    try:
        if file == "-":
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with open(file, "rb") as opened:
                data = opened.read(MAX_BYTES + 1)
    except OSError as error:
        fail(f"-f {file}: {error.strerror}", 2)
    try:
        return read_taps(data)
    except FileError as problems:
        refuse_file(name, problems)
