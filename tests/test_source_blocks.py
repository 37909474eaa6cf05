# SPDX-License-Identifier: Apache-2.0
"""The bytes of files: windows, and gzip."""

from __future__ import annotations

import gzip
import io
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapmirror.source.blocks import BLOCK, Blocks, CaptureError, Gunzip

TEXT = bytes(range(256)) * 1000


def unpack(packed: bytes, *, step: int = BLOCK) -> bytes:
    file = io.BytesIO(packed)
    gunzip = Gunzip(lambda count: file.read(min(count, step)), b"")
    return b"".join(iter(lambda: gunzip.read(BLOCK), b""))


@given(st.lists(st.integers(0, 3000), max_size=20), st.integers(1, 50))
def test_window(steps: list[int], size: int) -> None:
    file = io.BytesIO(TEXT)
    blocks = Blocks(lambda _count: file.read(size * 100))
    place = 0
    for step in steps:
        whole = blocks.need(step)
        assert whole == (len(TEXT) - place >= step)
        assert blocks.start == place
        assert bytes(blocks.view[:step]) == TEXT[place : place + step]
        if whole:
            blocks.advance(step)
            place += step


def test_skip() -> None:
    file = io.BytesIO(TEXT)
    blocks = Blocks(lambda _count: file.read(1000))
    assert blocks.skip(100_500)
    assert (blocks.start, blocks.need(4), bytes(blocks.view[:4])) == (100_500, True, TEXT[100_500:100_504])
    assert not blocks.skip(len(TEXT))


@pytest.mark.parametrize("step", [1, 7, BLOCK])
@pytest.mark.parametrize(
    "packed",
    [gzip.compress(TEXT), gzip.compress(TEXT[:1000]) + gzip.compress(TEXT[1000:]), gzip.compress(TEXT) + bytes(100)],
    ids=["one", "two members", "padded"],
)
def test_gzip(packed: bytes, step: int) -> None:
    assert unpack(packed, step=step) == TEXT


def test_gzip_that_ends_too_early() -> None:
    packed = gzip.compress(TEXT)
    for size in (3, 10, len(packed) // 2, len(packed) - 1):
        with pytest.raises(CaptureError, match=rf"at byte {size:,}: the gzip file ends in the middle"):
            unpack(packed[:size])


def test_gzip_damaged() -> None:
    packed = bytearray(gzip.compress(TEXT))
    packed[-6] ^= 0xFF
    with pytest.raises(CaptureError, match=r"at byte .*damaged"):
        unpack(bytes(packed))
    with pytest.raises(CaptureError, match="damaged"):
        unpack(gzip.compress(TEXT) + b"rubbish")


def test_a_bomb_stays_packed() -> None:
    stream = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join([*(stream.compress(bytes(1 << 20)) for _ in range(200)), stream.flush()])
    tracemalloc.start()
    file = io.BytesIO(packed)
    gunzip = Gunzip(file.read, b"")
    count = sum(map(len, iter(lambda: gunzip.read(BLOCK), b"")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 200 << 20
    assert peak < 8 << 20
