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
    """The taps of a file (`-`: standard input); what is wrong is told line by line, exit code 2.

    `given` and `resolve` are for a file of Kubernetes, which does not say where to tap; `strict`: what such a file has
    and a mirror beside the path cannot do is an error.
    """
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
        documents = load(data)
        if not is_kubernetes(documents):
            if given or resolve:
                fail(f"-f {file}: what a tap is, is in the file: no options beside it", 2)
            return taps_of(documents)
        tap, warnings = import_tap(documents, given or {}, dict(_pair(text) for text in resolve))
        if warnings and strict:
            raise FileError(warnings)
        for warning in warnings:
            warn(f"{name}:{warning}")
        return [tap]
    except FileError as problems:
        refuse_file(name, problems)


def _pair(text: str) -> tuple[str, str]:
    name, sign, address = text.partition("=")
    if not sign or not name or not address:
        fail(f"--resolve: {text!r} is not NAME=HOST:PORT", 2)
    return name, address
