# SPDX-License-Identifier: Apache-2.0
"""Packet sockets; what comes through them, see test_source_live and test_supervisor_links."""

from __future__ import annotations

from tapmirror.source.sockets import BLOCK_BYTES, block_bytes


def test_blocks_take_the_largest_packet() -> None:
    assert block_bytes(65_536) == BLOCK_BYTES == 1 << 17
    for size in (131_072, 262_144, 8 * 65_535):
        assert size < block_bytes(size) < 4 * size + BLOCK_BYTES
        assert block_bytes(size).bit_count() == 1
