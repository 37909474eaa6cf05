# SPDX-License-Identifier: Apache-2.0
"""Files that are replaced whole; what becomes of one that cannot be written is also in test_supervisor_state."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tapmirror.supervisor.durable import replace


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("there", [False, True])
def test_a_new_file_has_the_mode_that_is_asked_for(tmp_path: Path, there: bool) -> None:
    path = tmp_path / "a"
    for mode, wanted in ((0o600, 0o600), (0o666, 0o640)):
        if there:
            path.write_bytes(b"old")
        with umask(0o027):
            replace(path, tmp_path / "b", b"new", mode=mode)
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", wanted)
        assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_it_can_be_like_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(0o664)
    owner = (4001, 4002) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(path, *owner)
    with umask(0o077):
        replace(path, tmp_path / "b", b"new", like=path.stat())
    found = path.stat()
    assert (path.read_bytes(), found.st_mode & 0o777, found.st_uid, found.st_gid) == (b"new", 0o664, *owner)


def test_a_bad_link_beside_it_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "b").symlink_to(tmp_path / "victim")
    replace(tmp_path / "a", tmp_path / "b", b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
