# SPDX-License-Identifier: Apache-2.0
"""What is attached, open or changed in a network and in the kernel, as values to be compared before and after."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final, Self

from lab.hosts import PATIENCE, Host, LabError, until

BPF_SYSCALL: Final = {"x86_64": 321, "aarch64": 280}
PROGRAMS, MAPS, LINKS = 11, 12, 31
"""bpf(2): BPF_PROG_GET_NEXT_ID, BPF_MAP_GET_NEXT_ID, BPF_LINK_GET_NEXT_ID."""

GET_FD, GET_INFO = 13, 15
"""BPF_PROG_GET_FD_BY_ID, BPF_OBJ_GET_INFO_BY_FD."""
KINDS: Final = {1: "socket filter", 3: "tc", 4: "tc action", 6: "xdp"}
"""BPF_PROG_TYPE_*.  Others come and go with systemd's units."""

NO_FILTERS: Final = "noqueue"
"""The queueing discipline of interfaces in software, which takes none (it has no classes): nobody need ask."""

EVERYBODYS: Final = frozenset({"programs", "maps"})
"""Of a `Snapshot`: the whole kernel's, which frees them when it has the time for it, up to seconds after the last that
held them has closed or died."""

_libc = ctypes.CDLL(None, use_errno=True)


def bpf_ids(what: int) -> frozenset[int]:
    """The numbers of all BPF programs, maps or links of the kernel; none where it refuses to tell."""
    found: set[int] = set()
    last = 0
    while True:
        attributes = ctypes.create_string_buffer(struct.pack("=III", last, 0, 0), 64)
        if _bpf(what, attributes) < 0:
            return frozenset(found)
        last = struct.unpack_from("=I", attributes, 4)[0]
        found.add(last)


def network_programs() -> Iterator[str]:
    """The BPF programs for sockets and interfaces, as "NUMBER KIND NAME"."""
    for number in bpf_ids(PROGRAMS):
        descriptor = _bpf(GET_FD, ctypes.create_string_buffer(struct.pack("=I", number), 64))
        if descriptor < 0:
            continue
        info = ctypes.create_string_buffer(128)
        asked = struct.pack("=IIQ", descriptor, len(info), ctypes.addressof(info))
        reply = _bpf(GET_INFO, ctypes.create_string_buffer(asked, 64))
        os.close(descriptor)
        kind = KINDS.get(struct.unpack_from("=I", info)[0])
        if reply == 0 and kind:
            yield f"{number} {kind} {info.raw[64:80].partition(bytes(1))[0].decode()}"


def _bpf(command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
    return int(_libc.syscall(BPF_SYSCALL[platform.machine()], command, attributes, len(attributes)))


@dataclass(frozen=True)
class Snapshot:
    """All that a tap might leave behind.  `Snapshot.of(host)`; `difference` tells what is new or gone."""

    links: frozenset[str]
    """Interface, state, MTU, promiscuity, XDP."""
    addresses: frozenset[str]
    routes: frozenset[str]
    qdiscs: frozenset[str]
    filters: frozenset[str]
    packet_sockets: frozenset[str]
    """By inode."""
    programs: frozenset[str]
    maps: frozenset[int]
    bpf_links: frozenset[int]
    """These three are the whole kernel's, TCX attachments among the last."""

    @classmethod
    def of(cls, host: Host) -> Self:
        """As it is now."""
        devices = host.json("ip", "-d", "-j", "link", "show")
        shown = ("ifname", "flags", "mtu", "promiscuity", "allmulti", "xdp", "master")
        qdiscs = host.json("tc", "-j", "qdisc", "show")
        filters: set[str] = set()
        for device in {qdisc["dev"] for qdisc in qdiscs if qdisc["kind"] != NO_FILTERS}:
            for place in ("ingress", "egress", "root"):
                told = host.run(["tc", "filter", "show", "dev", device, place], check=False).stdout
                filters.update(f"{device} {place} {line.strip()}" for line in told.splitlines())
        return cls(
            links=frozenset(repr({name: device.get(name) for name in shown}) for device in devices),
            addresses=frozenset(
                repr([device["ifname"], item["local"], item["prefixlen"]])
                for device in host.json("ip", "-j", "addr", "show")
                for item in device.get("addr_info", ())
            ),
            routes=frozenset(
                repr(route) for family in ("-4", "-6") for route in host.json("ip", family, "-j", "route", "show")
            ),
            qdiscs=frozenset(map(repr, qdiscs)),
            filters=frozenset(filters),
            packet_sockets=frozenset(line.split()[8] for line in host.read("packet").splitlines()[1:]),
            programs=frozenset(network_programs()),
            maps=bpf_ids(MAPS),
            bpf_links=bpf_ids(LINKS),
        )

    def difference(self, before: Self) -> dict[str, str]:
        """What is new (+) or gone (-) since `before`; empty: nothing.

        A program or map that is gone is no difference: others' may have been waiting to be freed when `before` was
        taken.  That something which was there was detached is seen where it was: among filters, links, packet sockets.
        """
        found = {}
        for each in fields(self):
            now, then = getattr(self, each.name), getattr(before, each.name)
            lost = then - now if each.name not in EVERYBODYS else ()
            if words := [*(f"+{x}" for x in now - then), *(f"-{x}" for x in lost)]:
                found[each.name] = " ".join(words)
        return found


def unchanged(host: Host, before: Snapshot, seconds: float = PATIENCE) -> None:
    """Wait until all is as `before`; raises `LabError` with the difference.

    The kernel takes what a killed process held away at once; but the snapshot is of the whole kernel, and takes time.
    """
    try:
        until(lambda: not Snapshot.of(host).difference(before), "all as before", seconds)
    except LabError as error:
        raise LabError(f"{error}: {Snapshot.of(host).difference(before)}") from None


def tree(root: int) -> dict[int, str]:
    """A process and all that came from it, by pid, with their command lines."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(int(_stat(int(entry))[1]), []).append(int(entry))
    found: dict[int, str] = {}
    todo = [root]
    while todo:
        pid = todo.pop()
        with contextlib.suppress(OSError):
            found[pid] = (
                Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
            )
            todo += children.get(pid, [])
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time that these processes took since their start; in steps of 10 ms."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            ticks += sum(int(word) for word in _stat(pid)[11:13])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_kb(pid: int, peak: bool = False) -> int:
    """Memory of a process, now or at its peak."""
    name = "VmHWM:" if peak else "VmRSS:"
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on: what follows the name, which may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
