# SPDX-License-Identifier: Apache-2.0
"""Files of taps on the command line: what cannot be read is one line and exit code 2."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from tapmirror.cli.files import read_file

TAP = "iface: eth0\nport: 80\nshadow: a:80\n"


def test_a_file_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tap.yaml").write_text(TAP)
    (tap,) = read_file(str(tmp_path / "tap.yaml"))
    assert tap.ports == (80,)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TAP.encode())))
    assert read_file("-") == [tap]


BOMB = b"name: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%b]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in b"bcdefghi"
)


def a_hundred_megabytes(path: Path) -> None:
    """Of a hole."""
    path.touch()
    os.truncate(path, 100 << 20)


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.write_bytes(b"x" * (300 << 10)), "longer than 256 KiB"),
        (a_hundred_megabytes, "longer than 256 KiB"),
        (lambda path: path.write_bytes(b"iface: [\n"), "tap.yaml:2: not YAML"),
        (lambda path: path.write_bytes(TAP.encode() + b"name: a\nname: b\n"), "tap.yaml:5: name: given twice"),
        (
            lambda path: path.write_bytes(TAP.encode() + b"prcent: 5\n"),
            "no such field of a tap (did you mean percent?)",
        ),
        (lambda path: path.write_bytes(TAP.encode() + b"percent: .nan\n"), "tap.yaml:4: percent: nan is not between"),
        (
            lambda path: path.write_bytes(TAP.encode() + b"limits: {flows: -1}\n"),
            "limits.flows: -1 is not between 1 and",
        ),
        (lambda path: path.write_bytes(TAP.encode() + b"name: caf\xe9\n"), "tap.yaml:4: not UTF-8"),
        (lambda path: path.write_bytes(TAP.encode() + BOMB), "more than 50000 values, aliases counted in full"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str], make: object, wanted: str) -> None:
    assert callable(make)
    make(tmp_path / "tap.yaml")
    with pytest.raises(SystemExit) as caught:
        read_file(str(tmp_path / "tap.yaml"))
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tapmirror: error: ") and wanted in line
