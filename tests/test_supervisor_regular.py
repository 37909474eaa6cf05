# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest

from tapmirror.supervisor.regular import content


def test_a_byte_more_than_the_bound_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert (content(tmp_path / "a", 3), content(tmp_path / "a", 9)) == (b"1234", b"12345")


def test_what_is_no_file_holds_up_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"):
            content(path, 10)
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(OSError, match="directory"):
            content(path, 10)
