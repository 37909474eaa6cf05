# SPDX-License-Identifier: Apache-2.0
"""What is said when something is wrong."""

from __future__ import annotations

import pytest

from tapmirror.cli.messages import as_option, fail, refuse_file, warn
from tapmirror.spec.document import FileError, Problem


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("ports[1]: 0 is not a port", "--port: 0 is not a port"),
        ("shadows[0].port: 0 is not a port", "--shadow: 0 is not a port"),
        ("file.pcap: at byte 0: the file is empty", "file.pcap: at byte 0: the file is empty"),
        ("no such thing", "no such thing"),
    ],
)
def test_fields_are_named_as_options(message: str, shown: str) -> None:
    assert as_option(message) == shown


def test_one_line_and_out(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        fail("no such thing", 2)
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", "tapmirror: error: no such thing\n")


def test_what_is_wrong_with_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        refuse_file("tap.yaml", FileError([Problem(3, "a.b", "x"), Problem(0, "", "y"), Problem(1, "", "z")]))
    assert caught.value.code == 2
    lines = ["tap.yaml: y", "tap.yaml:1: z", "tap.yaml:3: a.b: x"]
    assert capsys.readouterr().err.splitlines() == [f"tapmirror: error: {line}" for line in lines]


def test_a_name_with_a_line_end_stays_in_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fail("a\nb\x1b[2J: no such file", 2)
    assert capsys.readouterr().err == "tapmirror: error: a\\nb\\x1b[2J: no such file\n"


def test_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    warn("careful")
    assert capsys.readouterr() == ("", "tapmirror: careful\n")
