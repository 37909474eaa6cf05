# SPDX-License-Identifier: Apache-2.0
"""The options of a tap are the same wherever they are taken; what they may be is in test_cli_run.py."""

from __future__ import annotations

from tapmirror.cli.main import main
from tapmirror.cli.options import OPTIONS


def test_run_and_start_take_the_same_options() -> None:
    names = [{option.name: option.opts for option in main.commands[each].params} for each in ("run", "start")]
    shared = names[0].keys() & names[1].keys()
    assert len(shared) >= len(OPTIONS)
    assert all(names[0][name] == names[1][name] for name in shared)
    assert {"name", "ttl", "force"} <= names[1].keys() and "duration" in names[0]
