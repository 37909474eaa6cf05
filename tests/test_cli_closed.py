# SPDX-License-Identifier: Apache-2.0
"""A standard output that was closed before the command began."""

from __future__ import annotations

import errno
import json

import click
import pytest

from tapmirror.cli.closed import Closed


def test_all_that_is_printed_there_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = Closed()
    monkeypatch.setattr("sys.stdout", closed)
    for say in (click.echo, print, lambda text: json.dump(text, closed)):
        with pytest.raises(OSError, match="standard output is closed") as caught:
            say("something")
        assert caught.value.errno == errno.EBADF
    closed.flush()
    assert not closed.isatty()
