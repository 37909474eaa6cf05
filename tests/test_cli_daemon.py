# SPDX-License-Identifier: Apache-2.0
"""`tapmirror daemon` as it begins; what it does is in e2e/test_daemon*.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner import CliRunner
from tapmirror.cli.main import main


@pytest.mark.parametrize(
    ("metrics", "line"),
    [
        ("x", "'x' is not PORT or ADDRESS:PORT"),
        ("0", "'0' is not PORT or ADDRESS:PORT"),  # one that nobody knows
        ("127.0.0.1:99999", "is not PORT or ADDRESS:PORT"),
        ("localhost:80", "localhost"),
    ],
)
def test_where_metrics_are_served_is_checked(metrics: str, line: str) -> None:
    done = CliRunner().invoke(main, ["daemon", "--metrics", metrics])
    assert done.exit_code == 2 and line in done.output


def test_directories_that_cannot_be_had_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    words = [f"--{name}-dir={tmp_path / name}" for name in ("state", "config")]
    done = CliRunner().invoke(main, ["daemon", f"--runtime-dir={file / 'x'}", *words])
    assert done.exit_code == 2
    assert done.output.splitlines()[-1] == f"tapmirror: error: {file / 'x'}: Not a directory"


def test_a_group_that_is_not_there_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    words = [f"--{name}-dir={tmp_path / name}" for name in ("runtime", "state", "config")]
    done = CliRunner().invoke(main, ["daemon", *words, "--group", "no-such-group"])
    assert (done.exit_code, done.output) == (2, "tapmirror: error: --group: there is no group 'no-such-group'\n")
    assert not list(tmp_path.iterdir())


def test_all_that_is_wrong_with_the_files_is_told_where_it_does_not_begin(tmp_path: Path) -> None:
    """By the bounds of all taps, without which it does not; those of taps.d would be told only by the next start."""
    words = [f"--{name}-dir={tmp_path / name}" for name in ("runtime", "state", "config")]
    taps = tmp_path / "config" / "taps.d"
    taps.mkdir(parents=True)
    (tmp_path / "config" / "daemon.yaml").write_text("budget: {cpu: 0}\ncpu: 1\n")
    (taps / "a.yaml").write_text("iface: eth0\nport: 0\nshadow: a:80\n")
    done = CliRunner().invoke(main, ["daemon", *words])
    assert done.exit_code == 2
    places = [line.removeprefix("tapmirror: error: ").partition(": ")[0] for line in done.output.splitlines()]
    file = tmp_path / "config" / "daemon.yaml"
    assert places == [f"{file}:1", f"{file}:2", f"{taps / 'a.yaml'}:2"]
