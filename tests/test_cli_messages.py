# SPDX-License-Identifier: Apache-2.0
"""What is said when something is wrong."""

from __future__ import annotations

import pytest

from tapmirror.cli.messages import fail, warn


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("ports[1]: 0 is not a port", "--port: 0 is not a port"),
        ("shadow.port: 0 is not a port", "--shadow: 0 is not a port"),
        ("file.pcap: at byte 0: the file is empty", "file.pcap: at byte 0: the file is empty"),
        ("no such thing", "no such thing"),
    ],
)
def test_one_line_and_out(message: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        fail(message, 2)
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", f"tapmirror: error: {shown}\n")


def test_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    warn("careful")
    assert capsys.readouterr() == ("", "tapmirror: careful\n")
