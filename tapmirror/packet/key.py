# SPDX-License-Identifier: Apache-2.0
"""What names a flow: its key, and the hash of the key, which the kernel program computes too."""

from __future__ import annotations

import ipaddress
import struct
from typing import Final

from tapmirror.events import FlowKey

MAPPED: Final = bytes(10) + b"\xff\xff"
"""The 12 bytes before those of an IPv4 address in a key (RFC 4291, 2.5.5.2)."""

_WORDS: Final = struct.Struct("<10I")


def flow_hash(key: FlowKey, seed: int) -> int:
    """The 32-bit hash by which flows are sampled and put into buckets; the same as in bpf/tap.c.

    It multiplies and xor-shifts over the words of the key, and ends with MurmurHash3's fmix32.
    """
    h = seed
    for word in _WORDS.unpack(key):
        h = ((h ^ word) * 0x9E3779B1) & 0xFFFFFFFF
        h ^= h >> 15
    h ^= h >> 16
    h = (h * 0x85EBCA6B) & 0xFFFFFFFF
    h ^= h >> 13
    h = (h * 0xC2B2AE35) & 0xFFFFFFFF
    return h ^ (h >> 16)


BUCKETS: Final = 1 << 16
"""How many buckets there are.  A flow's bucket is the low 16 bits of its hash; what is said of a bucket holds for
all of its flows."""


def shard_of(hashed: int, workers: int) -> int:
    """Which one of `workers` a flow with this hash belongs to; the same as in bpf/tap.c.

    It depends only on the low 16 bits, so that all flows of a bucket belong to one worker.  It hardly depends on how
    small the hash is, because flows are sampled by that.
    """
    return ((((hashed & 0xFFFF) * 0x9E3779B1) & 0xFFFFFFFF) >> 16) * workers >> 16


def flow_key(client: bytes, server: bytes, client_port: bytes, server_port: bytes, vlan: int) -> FlowKey:
    """The key of a flow.  Addresses have 16 bytes and ports 2, in big endian."""
    return client + server + client_port + server_port + struct.pack("=I", vlan)


def mapped(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bytes:
    """An address as the 16 bytes that a key has for it."""
    return address.packed if address.version == 6 else MAPPED + address.packed


def show_key(key: FlowKey) -> str:
    """A flow as people read it: `10.0.0.1:1234 > 10.0.0.2:80`."""
    return f"{show_client(key)} > {show_server(key)}"


def show_client(key: FlowKey) -> str:
    """The client's end point as people read it: `10.0.0.1:1234`, `[2001:db8::1]:1234`."""
    return _show(key[:16], key[32:34])


def show_server(key: FlowKey) -> str:
    """The server's end point as people read it."""
    return _show(key[16:32], key[34:36])


def _show(address: bytes, port: bytes) -> str:
    number = int.from_bytes(port, "big")
    if address.startswith(MAPPED):
        return f"{ipaddress.IPv4Address(address[12:])}:{number}"
    return f"[{ipaddress.IPv6Address(address)}]:{number}"
