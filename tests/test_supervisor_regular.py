# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest

from tapmirror.supervisor.regular import content


def test_a_byte_more_than_the_bound_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert (content(tmp_path / "a", 3), content(tmp_path / "a", 9)) == (b"1234", b"12345")


def test_a_private_one_is_nobody_elses(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    for mode, ours in ((0o600, True), (0o644, True), (0o620, False), (0o602, False)):
        path.chmod(mode)
        if ours:
            assert content(path, 9, private=True) == b"1"
        else:
            with pytest.raises(
                OSError, match=rf"users other than root can write to it \(owner {os.geteuid()}, mode {mode:o}\)"
            ):
                content(path, 9, private=True)
    assert content(path, 9) == b"1"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: giving a file away")
def test_a_private_one_belongs_to_root_or_us(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    os.chown(tmp_path / "a", 4001, -1)
    with pytest.raises(OSError, match=r"users other than root can write to it \(owner 4001, "):
        content(tmp_path / "a", 9, private=True)


def test_what_is_no_file_holds_up_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"):
            content(path, 10)
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(OSError, match="directory"):
            content(path, 10)
