# SPDX-License-Identifier: Apache-2.0
"""`tapmirror install` and `uninstall`: what they say and how they fail."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result

from runner import CliRunner
from tapmirror.cli import main


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_a_dry_run_says_what_would_be_done(tmp_path: Path) -> None:
    done = run("install", "--root", tmp_path, "--command", "/opt/t/tapmirror", "--dry-run")
    assert done.exit_code == 0
    assert f"write  {tmp_path}/etc/systemd/system/tapmirror.service" in done.output.splitlines()
    assert not list(tmp_path.iterdir())


def test_install_and_uninstall_an_image(tmp_path: Path) -> None:
    assert run("install", "--root", tmp_path, "--command", "/opt/t/tapmirror").exit_code == 0
    assert (tmp_path / "etc/systemd/system/tapmirror.service").exists()
    done = run("uninstall", "--root", tmp_path)
    assert done.exit_code == 0
    assert f"leave  {tmp_path}/etc/tapmirror" in done.output.splitlines()
    assert not (tmp_path / "etc/systemd/system/tapmirror.service").exists()


def test_nothing_to_uninstall(tmp_path: Path) -> None:
    assert run("uninstall", "--root", tmp_path).output == "nothing is installed\n"


def test_what_must_not_be_looked_at_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "var/cache/tapmirror").mkdir(parents=True)

    def iterdir(path: Path) -> Iterator[Path]:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", iterdir)  # as for who is not root
    done = run("uninstall", "--root", tmp_path)
    assert done.exit_code == 2
    assert done.output == f"tapmirror: error: {tmp_path}/var/cache/tapmirror: Permission denied\n"


def test_what_cannot_be_printed_is_no_fault_of_a_file(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [
            sys.executable,
            "-m",
            "tapmirror",
            "install",
            "--root",
            str(tmp_path),
            "--command",
            "/opt/t",
            "--dry-run",
        ]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "tapmirror: error: what is printed cannot be written: No space left on device\n"


def test_a_refusal_is_one_line(tmp_path: Path) -> None:
    done = run("install", "--root", tmp_path, "--command", "/root/x")
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert done.output.startswith("tapmirror: error: /root/x: the service cannot look there")
