# SPDX-License-Identifier: Apache-2.0
"""The daemon's directories: one owner, whom nobody else can put things into."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tapmirror.supervisor.places import PlaceError, Places, take


def test_it_is_made_and_locked_and_the_second_is_told_who_has_it(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    held = take(path, 0o750)
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    with pytest.raises(PlaceError, match=rf"^{path}: a daemon \(pid {os.getpid()}\) runs with it already$"):
        take(path, 0o750)
    os.close(held)
    os.close(take(path, 0o750))


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory to a group")
def test_it_is_of_the_mode_and_the_group_that_it_is_to_be_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        os.close(take(tmp_path / "run", 0o750, 4242))
    finally:
        os.umask(before)
    facts = (tmp_path / "run").stat()
    assert (stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid) == (0o750, 0, 4242)


def test_the_lock_is_gone_with_its_owner_however_it_ended(tmp_path: Path) -> None:
    code = "import sys,time;from pathlib import Path;from tapmirror.supervisor.places import take;"
    code += "d=take(Path(sys.argv[1]),0o700);print('held',flush=True);time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(PlaceError, match=rf"pid {other.pid}\)"):
            take(tmp_path, 0o700)
        other.kill()
        other.wait()
        os.close(take(tmp_path, 0o700))


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
def test_one_that_others_can_write_into_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(PlaceError, match="users other than root can write to it"):
        take(tmp_path, 0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory away")
def test_one_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 4001, 4001)
    with pytest.raises(PlaceError, match="users other than its owner 4001 and root"):
        take(tmp_path, 0o700)


def test_a_link_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").write_text("")
    for name in ("link", "file"):
        with pytest.raises(PlaceError, match=f"{name}: Not a directory"):
            take(tmp_path / name, 0o700)


def test_where_things_are() -> None:
    places = Places()
    assert places.stop_file == Path("/run/tapmirror/STOP")
    assert places.taps == Path("/etc/tapmirror/taps.d")
