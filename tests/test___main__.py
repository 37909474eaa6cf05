# SPDX-License-Identifier: Apache-2.0
"""The command as it is started."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-P", "-X", "importtime", "-m", "tapmirror", "--version"]


def test_it_can_be_ended_while_it_is_imported() -> None:
    with subprocess.Popen(COMMAND, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.endswith(" click.core\n"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
        assert process.wait() == -signal.SIGINT
    assert "Traceback" not in rest


def test_a_run_can_be_ended_before_it_has_begun(tmp_path: Path) -> None:
    """Here while it reads its file.  Not with 1, which says that a tap broke down, or that a shadow fails."""
    file = tmp_path / "tap.yaml"
    os.mkfifo(file)
    command = [sys.executable, "-m", "tapmirror", "run", "-f", str(file)]
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process,
        open(file, "wb"),  # once it has opened it
    ):
        process.send_signal(signal.SIGINT)
        assert process.communicate() == (b"", b"")
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize("words", [["spec", "--example"], ["explain", "-f", "-"]])
def test_a_full_disk_under_what_it_prints_is_one_line(words: list[str]) -> None:
    example = subprocess.run([sys.executable, "-m", "tapmirror", "spec", "--example"], capture_output=True, check=True)
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "tapmirror", *words]
        done = subprocess.run(command, input=example.stdout, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.stderr == b"tapmirror: error: what is printed cannot be written: No space left on device\n"
    assert done.returncode == 2


@pytest.mark.parametrize("words", [["nope"], ["run"], ["explain", "-f", "/nope"], ["list", "--socket", "/nope"]])
def test_what_is_wrong_has_its_exit_code_also_where_it_cannot_be_told(words: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-m", "tapmirror", *words], stderr=full, timeout=300, check=False)
    assert done.returncode == 2


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_disk_that_takes_a_part_is_one_line(tmp_path: Path, unbuffered: str) -> None:
    """A limit of the file's size is like such a disk."""
    command = [sys.executable, "-m", "tapmirror", "spec", "--example"]
    shell = ["bash", "-c", 'ulimit -f 4; exec "$@"', "bash", *command]
    with open(tmp_path / "example.yaml", "wb") as file:
        env = {**os.environ, "PYTHONUNBUFFERED": unbuffered, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(shell, stdout=file, stderr=subprocess.PIPE, check=False, env=env)
    assert (tmp_path / "example.yaml").stat().st_size == 4096
    assert done.stderr == b"tapmirror: error: what is printed cannot be written: File too large\n"
    assert done.returncode == 2


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["spec", "--example"], ["doctor"], ["doctor", "--json"]], ids=" ".join
)
def test_a_closed_standard_output_is_one_line(words: list[str]) -> None:
    """And no success: what was asked for did not come."""
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "tapmirror", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stderr == "tapmirror: error: what is printed cannot be written: standard output is closed\n"
    assert done.returncode == 2
    command[2] += " 2>&-"
    assert subprocess.run(command, timeout=300, check=False).returncode == 2


def test_the_locale_ends_nothing() -> None:
    """Not every one has all that is printed."""
    command = [sys.executable, "-m", "tapmirror", "spec", "--example"]
    usual = subprocess.run(command, capture_output=True, check=True).stdout
    assert "…" in usual.decode()
    latin = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    assert subprocess.run(command, stdout=subprocess.PIPE, check=True, env=latin).stdout == usual
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=theirs, env=latin) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while data := os.read(ours, 1 << 16):
                shown += data
    os.close(ours)
    assert process.returncode == 0
    assert shown.replace(b"\r\n", b"\n").decode("latin-1") == usual.decode().replace("…", "?")


def test_it_says_its_own_name() -> None:
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("tapmirror, version ")
