# SPDX-License-Identifier: Apache-2.0
"""Keys of flows: how they are shown, and the hash that the kernel program computes too (test_loader compares)."""

from __future__ import annotations

from collections import Counter

from tapmirror.packet import MAPPED, flow_hash, flow_key, shard_of, show_client, show_key, show_server


def test_show_key() -> None:
    four = flow_key(MAPPED + bytes([10, 0, 0, 1]), MAPPED + bytes([10, 0, 0, 2]), b"\x04\xd2", b"\x00\x50", 0)
    assert show_key(four) == "10.0.0.1:1234 > 10.0.0.2:80"
    six = flow_key(bytes(15) + b"\1", bytes(15) + b"\2", b"\0\1", b"\0\2", 0)
    assert show_key(six) == "[::1]:1 > [::2]:2"
    assert (show_client(six), show_server(six)) == ("[::1]:1", "[::2]:2")


def test_hash_spreads_and_depends_on_everything() -> None:
    keys = [flow_key(bytes(16), bytes(16), n.to_bytes(2, "big"), b"\0\x50", 0) for n in range(4096)]
    hashes = [flow_hash(key, 0) for key in keys]
    assert len(set(hashes)) == 4096
    tenth = sum(h < (1 << 32) // 10 for h in hashes)
    assert 330 < tenth < 490
    assert flow_hash(keys[0], 1) != hashes[0]
    assert flow_hash(keys[0][:-4] + b"\1\0\0\0", 0) != hashes[0]


def test_workers_have_equal_parts_of_the_buckets() -> None:
    for workers in (1, 2, 3, 7, 64):
        parts = Counter(shard_of(bucket, workers) for bucket in range(1 << 16))
        assert sorted(parts) == list(range(workers))
        assert max(parts.values()) - min(parts.values()) <= 4
    assert {shard_of(bucket | high << 16, 7) for high in range(100) for bucket in (5,)} == {shard_of(5, 7)}
