# SPDX-License-Identifier: Apache-2.0
"""Reading a file of taps, for every command that takes one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from tapmirror.cli.messages import fail, refuse_file, warn
from tapmirror.spec import TapSpec
from tapmirror.spec.document import MAX_BYTES, FileError, load
from tapmirror.spec.kubernetes import import_tap, is_kubernetes
from tapmirror.spec.reading import taps_of


def read_file(
    file: str, given: dict[str, Any] | None = None, resolve: Sequence[str] = (), *, strict: bool = False
) -> list[TapSpec]:
    """The taps of a file (`-`: standard input).  Ends the program with a line for each error, and exit code 2.

    `given` and `resolve` are for a Kubernetes file, which does not say where to tap.  `strict`: anything in such a file
    that a mirror outside the path cannot do is an error.
    """
    name = "standard input" if file == "-" else file
    data = read_bytes(file, "-f", MAX_BYTES)
    try:
        documents = load(data)
        if not is_kubernetes(documents):
            if given or resolve:
                fail(f"-f {file}: this file describes its taps itself: no other options can be given", 2)
            return taps_of(documents)
        tap, warnings = import_tap(documents, given or {}, dict(_pair(text) for text in resolve))
        if warnings and strict:
            raise FileError(warnings)
        for warning in warnings:
            warn(f"{name}:{warning}")
        return [tap]
    except FileError as problems:
        refuse_file(name, problems)


def read_bytes(file: str, option: str, most: int) -> bytes:
    """The content of a file (`-`: standard input), up to one byte more than `most`; ends the program on an error."""
    try:
        if file == "-":
            if sys.stdin is None:  # it was closed when the program started
                fail(f"{option} -: standard input is closed", 2)
            return sys.stdin.buffer.read(most + 1)
        with open(file, "rb") as opened:
            return opened.read(most + 1)
    except OSError as error:
        fail(f"{option} {file}: {error.strerror}", 2)


def _pair(text: str) -> tuple[str, str]:
    name, sign, address = text.partition("=")
    if not sign or not name or not address:
        fail(f"--resolve: {text!r} is not NAME=HOST:PORT", 2)
    return name, address
