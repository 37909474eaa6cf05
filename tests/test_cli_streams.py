# SPDX-License-Identifier: Apache-2.0
"""`tapmirror streams` as a user runs it."""

from __future__ import annotations

import gzip
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from capture_files import pcap
from tapmirror.cli.streams import BIG
from test_offline import GET, Talk

COMMAND = Path(sys.executable).parent / "tapmirror"


def command(*words: str | Path, stdin: IO[bytes] | None = None) -> subprocess.CompletedProcess[str]:
    line = [str(COMMAND), "streams", *map(str, words)]
    return subprocess.run(line, stdin=stdin, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    talk = Talk()
    talk.put(0, GET)
    path = tmp_path / "traffic.pcap"
    path.write_bytes(pcap(talk.frames))
    return path


def records(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_lines_of_json(capture: Path, tmp_path: Path) -> None:
    done = command(capture, "--http")
    assert (done.returncode, done.stderr) == (0, "")
    assert [r["type"] for r in records(done.stdout)] == ["http1", "stream"]
    assert command(capture, "--http", "--out", tmp_path / "out.jsonl").stdout == ""
    assert (tmp_path / "out.jsonl").read_text() == done.stdout
    assert command(capture, "--port", "81").stdout == ""


def test_the_capture_is_not_overwritten(capture: Path) -> None:
    before = capture.read_bytes()
    done = command(capture, "--out", capture)
    assert done.returncode == 2 and "that is the capture file itself" in done.stderr
    assert capture.read_bytes() == before


@pytest.mark.parametrize(
    ("closed", "wanted"), [(">&-", "standard output is closed"), ("<&-", "standard input is closed")]
)
def test_closed_standard_streams(capture: Path, closed: str, wanted: str) -> None:
    file = capture if closed == ">&-" else "-"
    line = f"exec {COMMAND} streams {file} {closed}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2 and wanted in done.stderr and len(done.stderr.splitlines()) == 1


def test_standard_input(capture: Path) -> None:
    with capture.open("rb") as file:
        assert len(records(command("-", stdin=file).stdout)) == 1
    packed = subprocess.Popen(["gzip", "-c", str(capture)], stdout=subprocess.PIPE)
    assert len(records(command("-", stdin=packed.stdout).stdout)) == 1
    assert packed.wait() == 0 and packed.stdout is not None
    packed.stdout.close()


def test_a_damaged_file(capture: Path) -> None:
    capture.write_bytes(capture.read_bytes() + b"rubbish")
    size = capture.stat().st_size - 7
    done = command(capture)
    assert (done.returncode, len(records(done.stdout))) == (2, 1)
    assert done.stderr == f"tapmirror: error: {capture}: at byte {size:,}: a packet's header is cut: 7 of 16 bytes\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.pcap"], "tapmirror: error: none.pcap: it cannot be opened: No such file or directory\n"),
        (["."], "tapmirror: error: .: it cannot be opened: Is a directory\n"),
        (["{capture}", "--out", "/dev/full"], "tapmirror: error: /dev/full: No space left on device\n"),
        (["{capture}", "--out", "none/out"], "tapmirror: error: none/out: No such file or directory\n"),
        (["{capture}", "--payload-dir", "{capture}/x"], "tapmirror: error: {capture}/x: Not a directory\n"),
    ],
)
def test_one_line_of_error(words: list[str], message: str, capture: Path) -> None:
    done = command(*(word.format(capture=capture) for word in words))
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message.format(capture=capture))


@pytest.mark.parametrize("words", [[], ["a", "b"], ["a", "--port", "0"], ["a", "--port", "x"], ["a", "--walk"]])
def test_wrong_use(words: list[str]) -> None:
    done = command(*words)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("tapmirror: error: ")


def test_a_file_of_payload_that_cannot_be_written_is_named(capture: Path, tmp_path: Path) -> None:
    """As on a full disk, by a limit for files."""
    folder = tmp_path / "payloads"
    done = subprocess.run(
        ["prlimit", "--fsize=1", COMMAND, "streams", capture, "--payload-dir", folder],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"tapmirror: error: {folder}/00000")
    assert done.stderr.endswith(": File too large\n") and done.stderr.count("\n") == 1


def test_standard_output_that_is_full_or_closed(capture: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [COMMAND, "streams", capture], stdout=full, stderr=subprocess.PIPE, text=True, timeout=300, check=False
        )
    assert (done.returncode, done.stderr) == (2, "tapmirror: error: standard output: No space left on device\n")
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end) as closed:
        done = subprocess.run(
            [COMMAND, "streams", capture], stdout=closed, stderr=subprocess.PIPE, text=True, timeout=300, check=False
        )
    assert (done.returncode, done.stderr) == (1, "")


def test_remarks_go_to_standard_error(capture: Path) -> None:
    data = capture.read_bytes()
    capture.write_bytes(data[:-1] + b"X")
    done = command(capture, "--verify-checksums")
    assert done.returncode == 0
    assert done.stderr == f"tapmirror: {capture}: 1 segments with a wrong checksum were left out\n"


def test_a_bar_on_a_terminal(capture: Path) -> None:
    frame = bytes(60_000)
    with gzip.open(capture, "wb", compresslevel=0) as file:
        file.write(pcap([frame] * (BIG // len(frame) + 2)))
    main, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    done = subprocess.Popen([COMMAND, "streams", capture], stderr=terminal, stdout=subprocess.DEVNULL, env=environment)
    os.close(terminal)
    shown = b""
    while True:
        try:
            piece = os.read(main, 65_536)
        except OSError:  # the end of a terminal
            break
        shown += piece
    os.close(main)
    assert done.wait(60) == 0
    assert b"reading" in shown and b"%" in shown
