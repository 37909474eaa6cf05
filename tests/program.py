# SPDX-License-Identifier: Apache-2.0
"""The capture program, run on packets from memory (BPF_PROG_TEST_RUN), with no interface: what it yields and counts.

The kernel hands a socket filter the packet behind the Ethernet header.  Where the program is to see a frame, one goes
behind a header of the kernel's own, whose zero address is the loopback interface's: the packet is for this host.
"""

from __future__ import annotations

import ctypes
import platform
import struct
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from captures import Kept, take
from tapmirror import bytecode, loader
from tapmirror.events import LOOP_DSCP
from tapmirror.source.ring import RingSource

PROG_TEST_RUN: Final = 10
ETH_P_IP: Final = 0x0800
ETH_P_IPV6: Final = 0x86DD
RING_BYTES: Final = 1 << 20
FLAGS_AT: Final = 12
"""Of `flags` in `struct tap_config`."""


class Program:
    """A loaded program that is attached to nothing, and a reader for each of its workers.

    `links`: it sees frames; else packets that begin with IP.  Options are those of `loader.Request`.
    """

    def __init__(self, *, links: bool = False, **options: Any) -> None:
        self._links = links
        self.request = loader.Request(
            **{
                "ports": [80], "addrs": [], "excluded": [], "threshold": 1 << 32, "seed": 0,
                "dscp": LOOP_DSCP, "egress_all": False, "ring_bytes": RING_BYTES, **options,
            }
        )  # fmt: skip
        self.loaded = loader.load(self.request)
        self.configure()
        self.sources = [
            RingSource(
                *self.loaded.worker_fds(shard),
                ring_bytes=self.request.ring_bytes,
                seed=self.request.seed,
                cpus=self.request.cpus,
                shard=shard,
            )
            for shard in range(self.request.workers)
        ]

    def configure(self, **changes: Any) -> None:
        """Write the configuration, with other values."""
        self.request = msgspec.structs.replace(self.request, **changes)
        loader.configure(self.loaded, self.request)
        if not self._links:
            flags = (loader.EGRESS_ALL if self.request.egress_all else 0) | (
                loader.PROMISC if self.request.promisc else 0
            )
            loader.write(self.loaded.config, FLAGS_AT, struct.pack("=I", flags | loader.NO_L2))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for source in self.sources:
            source.close()
        self.loaded.close()

    def run(self, packet: Any, repeat: int = 1) -> int:
        """Show it a packet so many times; the nanoseconds that one took.  Raises OSError."""
        content = bytes(packet)
        kind = ETH_P_IP if self._links or content[0] >> 4 == 4 else ETH_P_IPV6
        data = ctypes.create_string_buffer(bytes(12) + struct.pack(">H", kind) + content)
        size = 14 + len(content)
        attributes = ctypes.create_string_buffer(80)
        address = ctypes.addressof(data)
        struct.pack_into("=IIIIQQII", attributes, 0, self.loaded.program, 0, size, 0, address, 0, repeat, 0)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syscall(bytecode.SYS_BPF[platform.machine()], PROG_TEST_RUN, attributes, 80) < 0:
            raise OSError(ctypes.get_errno(), "BPF_PROG_TEST_RUN")
        returned, duration = struct.unpack_from("=I28xI", attributes, 4)
        assert returned == 0, "the packet would have been passed to the socket"
        return int(duration)

    def records(self) -> list[list[Kept]]:
        """What came for each worker."""
        found: list[list[Kept]] = [[] for _ in self.sources]
        for source, kept in zip(self.sources, found, strict=True):
            take(source, kept)
        return found
