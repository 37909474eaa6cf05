# SPDX-License-Identifier: Apache-2.0
"""Capture files by what they are, not by their names."""

from __future__ import annotations

import contextlib
import gzip
from pathlib import Path

import pytest

from capture_files import enhanced, interface, pcap, section
from tapmirror.source.blocks import CaptureError
from tapmirror.source.files import CaptureFile

PCAP = pcap([b"frame"] * 3)
PCAPNG = section() + interface() + enhanced(b"frame") * 3
KINDS = {
    "pcap": PCAP,
    "pcapng": PCAPNG,
    "pcap.gz": gzip.compress(PCAP, mtime=0),
    "pcapng.gz": gzip.compress(PCAPNG, mtime=0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "capture"
    path.write_bytes(KINDS[kind])
    capture = CaptureFile(str(path))
    read: list[int] = []
    capture.on_read = read.append
    assert [bytes(frame) for _, _, _, frame in capture.frames()] == [b"frame"] * 3
    assert capture.size == sum(read) == len(KINDS[kind])
    capture.close()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "at byte 0: the file is empty"),
        (b"abc", "at byte 0: no capture file: too short"),
        (b"PK\x03\x04 and so on", "at byte 0: no capture file (pcap"),
        (gzip.compress(b"just text", mtime=0), "at byte 0: no capture file (pcap"),
        (gzip.compress(b"", mtime=0), "at byte 0: the file is empty"),
        (gzip.compress(PCAP, mtime=0)[:20], "at byte 20: the gzip file ends in the middle"),
    ],
)
def test_other_files(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "capture.pcap"
    path.write_bytes(data)
    with pytest.raises(CaptureError) as caught, contextlib.closing(CaptureFile(str(path))) as capture:
        list(capture.frames())
    assert str(caught.value).startswith(message)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(CaptureError, match=r"it cannot be opened: (No such|Is a directory)"):
            CaptureFile(str(path))
