# SPDX-License-Identifier: Apache-2.0
"""`tapmirror spec` and `tapmirror explain` as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tapmirror.cli import main


def test_schema_and_example() -> None:
    runner = CliRunner()
    schema = runner.invoke(main, ["spec", "--schema"])
    assert schema.exit_code == 0 and "$defs" in json.loads(schema.stdout)
    example = runner.invoke(main, ["spec", "--example"])
    assert example.exit_code == 0 and example.stdout.startswith("# A tap")
    assert runner.invoke(main, ["explain", "-f", "-"], input=example.stdout).stdout.startswith(
        "Tap tap: TCP to port 80"
    )


@pytest.mark.parametrize(
    "words", [["spec"], ["spec", "--schema", "--example"], ["explain"], ["explain", "-f", "/no/such"]]
)
def test_wrong_calls(words: list[str]) -> None:
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2 and done.stdout == ""
    assert "Traceback" not in done.stderr and done.stderr


def test_explain_tells_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "tap.yaml").write_text("iface: eth0\nport: 0\nshadow: a\n")
    done = CliRunner().invoke(main, ["explain", "-f", str(tmp_path / "tap.yaml")])
    assert done.exit_code == 2
    assert [line.partition("tap.yaml")[2].split(": ")[:2] for line in done.stderr.splitlines()] == [
        [":2", "port"],
        [":3", "shadow"],
    ]
