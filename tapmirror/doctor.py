# SPDX-License-Identifier: Apache-2.0
"""Checks whether a tap can start on this host, and how well it would run, with a finding for each check.

Checks leave nothing behind: the capture program is loaded on trial and attached to no interface, and the connection to
the shadow has no data.  What cannot be checked without privilege is reported as unknown.
"""

from __future__ import annotations

import ctypes
import enum
import fcntl
import fnmatch
import gzip
import os
import platform
import re
import resource
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from tapmirror import loader, privsep
from tapmirror.events import LOOP_DSCP
from tapmirror.spec import Limits, Shadow
from tapmirror.spec.tap import ANY

OLDEST: Final = (5, 8)
"""The first Linux with ring buffers for BPF, and with CAP_BPF and CAP_PERFMON."""
NEEDED: Final = ("CONFIG_PACKET", "CONFIG_INET")
FOR_EBPF: Final = ("CONFIG_BPF", "CONFIG_BPF_SYSCALL")
USEFUL: Final = {
    "CONFIG_BPF_JIT": "the capture program is interpreted, several times slower",
    "CONFIG_PSI": "the daemon does not see when this host is under pressure",
}
FEWEST_FILES: Final = 32
"""Descriptors that a daemon needs to start one tap, as measured; each further tap takes a dozen."""
WORKERS_FILES: Final = 16
"""Descriptors that a worker needs in addition to its connections; rounded up."""
HOW_FILES: Final = "ulimit -Hn; LimitNOFILE= in a unit"
CONNECT_TIME: Final = 3.0
FAST_CLOCKS: Final = ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "xen")
SOUND_YEAR: Final = 2024
"""A clock that shows an earlier year was never set."""

IFF_UP: Final = 1
SIOCGIFFLAGS: Final = 0x8913
SIOCETHTOOL: Final = 0x8946
ETHTOOL_GRINGPARAM: Final = 0x10
ETHTOOL_GFLAGS: Final = 0x25
ETH_FLAG_LRO: Final = 1 << 15
STA_UNSYNC: Final = 0x40
TIMEX_BYTES: Final = 208
_TIMEX_MAXERROR: Final = 24
_TIMEX_STATUS: Final = 40


class Level(enum.Enum):
    """What a finding means for a tap."""

    OK = "ok"
    WARN = "warn"
    """It can start, but something is worse than it could be."""
    FAIL = "fail"
    """A tap cannot start."""
    UNKNOWN = "unknown"
    """It could not be checked."""


class Finding(msgspec.Struct, frozen=True):
    """The result of one check."""

    check: str
    level: Level
    text: str
    remedy: str = ""
    """What to do about it."""


def examine(iface: str | None, shadows: Iterable[Shadow]) -> Iterator[Finding]:
    """Make all checks; interfaces and shadows are checked only if they are given."""
    yield kernel(platform.release())
    yield from options(config_of(platform.release()))
    yield from privileges(Path("/proc/self/status").read_text(encoding="ascii"))
    yield packet_socket()
    yield headers()
    yield trial_load()
    yield user()
    yield files(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    if iface is not None:
        yield from interfaces(iface)
    for shadow in shadows:
        yield from reach(shadow)
    yield clock_source(Path("/sys/devices/system/clocksource/clocksource0/current_clocksource"))
    yield clock()


def can_start(findings: list[Finding]) -> bool:
    """Whether a tap can start."""
    return not any(finding.level is Level.FAIL for finding in findings)


# --- the kernel


def kernel(release: str) -> Finding:
    """Check the kernel's version."""
    found = re.match(r"(\d+)\.(\d+)", release)
    if found and (int(found[1]), int(found[2])) >= OLDEST:
        return Finding("kernel", Level.OK, f"Linux {release}")
    oldest = ".".join(map(str, OLDEST))
    return Finding("kernel", Level.WARN, f"Linux {release}: eBPF needs {oldest}", "taps capture through AF_PACKET here")


def config_of(release: str, proc: Path = Path("/proc"), boot: Path = Path("/boot")) -> str | None:
    """The options that the kernel was built with; None: they are in no file."""
    try:
        return gzip.decompress((proc / "config.gz").read_bytes()).decode()
    except OSError:
        pass
    try:
        return (boot / f"config-{release}").read_text(encoding="utf-8")
    except OSError:
        return None


def options(config: str | None) -> Iterator[Finding]:
    """Check the kernel's build options."""
    if config is None:
        yield Finding("options", Level.UNKNOWN, "not known: there is no /proc/config.gz and no /boot/config-…")
        return
    there = set(re.findall(r"^(CONFIG_\w+)=[ym]$", config, re.MULTILINE))
    wrong = False
    for name in NEEDED:
        if name not in there:
            wrong = True
            yield Finding("options", Level.FAIL, f"the kernel has no {name}", "use a kernel that has it")
    for name in FOR_EBPF:
        if name not in there:
            wrong = True
            yield Finding("options", Level.WARN, f"the kernel has no {name}", "taps capture through AF_PACKET here")
    for name, consequence in USEFUL.items():
        if name not in there:
            wrong = True
            yield Finding("options", Level.WARN, f"the kernel has no {name}: {consequence}", "use a kernel that has it")
    if not wrong:
        yield Finding("options", Level.OK, "the kernel has all that taps use")


# --- privilege and capture


def privileges(status: str) -> Iterator[Finding]:
    """Check what this process may do, by its /proc/self/status."""
    missing = privsep.lacking(status)
    if os.geteuid() != 0:
        yield Finding("privilege", Level.FAIL, "not root: a tap cannot start, and some checks are left out", "use sudo")
    elif missing:
        yield Finding("privilege", Level.FAIL, f"root without {', '.join(missing)}", "give the container or unit these")
    else:
        yield Finding("privilege", Level.OK, "root, with the capabilities that a tap needs")


def packet_socket() -> Finding:
    """Check whether packet sockets can be opened."""
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except PermissionError:
        return _hidden("packets", "CAP_NET_RAW is missing here", "give the container or unit CAP_NET_RAW")
    except OSError as error:
        return Finding("packets", Level.FAIL, f"no packet sockets: {error.strerror}", "use a kernel with CONFIG_PACKET")
    return Finding("packets", Level.OK, "packet sockets can be opened")


def headers() -> Finding:
    """Check for kernel headers to compile with."""
    try:
        with loader.headers() as view:
            where = "of the running kernel" if view is None else "under /usr/src (any version serves)"
    except loader.LoaderError as error:
        return Finding(
            "headers", Level.WARN, str(error), "install them, or taps capture through AF_PACKET, at twice the cost"
        )
    except OSError as error:
        return Finding("headers", Level.UNKNOWN, f"they cannot be looked at: {error.strerror}", "use sudo")
    return Finding("headers", Level.OK, f"kernel headers {where}")


def trial_load() -> Finding:
    """Compile and load the capture program as a tap does, and unload it."""
    if os.geteuid() != 0:
        return Finding("ebpf", Level.UNKNOWN, "the capture program was not loaded: not root", "use sudo")
    request = loader.Request(
        ports=[1],
        addrs=[],
        excluded=[],
        threshold=0,
        seed=0,
        dscp=LOOP_DSCP,
        egress_all=False,
        ring_bytes=Limits().ring_bytes,
    )
    began = time.monotonic()
    try:
        loader.load(request).close()
    except loader.LoaderError as error:
        remedy = REMEDIES.get(error.kind, "see the line above")
        return Finding("ebpf", Level.WARN, f"{error}; taps capture through AF_PACKET, at twice the cost", remedy)
    except OSError as error:
        return Finding("ebpf", Level.WARN, f"{error}; taps capture through AF_PACKET, at twice the cost")
    return Finding("ebpf", Level.OK, f"the capture program compiles and loads ({time.monotonic() - began:.1f} s)")


REMEDIES: Final = {
    "bcc": "install python3-bpfcc; a virtual environment must see system packages",
    "headers": "install linux-headers-amd64 (Debian) or linux-headers-generic (Ubuntu)",
    "privilege": "give the container or unit CAP_NET_RAW, CAP_BPF and CAP_PERFMON",
    "refused": "give the container or unit CAP_BPF and CAP_PERFMON; see whether the kernel is locked down",
    "verifier": "report this line, with the version of bcc; where it runs without CAP_PERFMON, give it that",
    "compile": "install other kernel headers, and report the line above",
    "time": "try again when this host is less busy",
}
"""What to do about a `LoaderError`, by its kind."""


def _hidden(check: str, text: str, remedy: str) -> Finding:
    """The finding that something is missing.  For root it is a failure; for others it is unknown, as they may not see
    it.
    """
    if os.geteuid() != 0:
        return Finding(check, Level.UNKNOWN, "cannot be tried: not root", "use sudo")
    return Finding(check, Level.FAIL, text, remedy)


def user() -> Finding:
    """Check whether there is a user that workers can run as."""
    wanted = privsep.WORKER_USERS[0]
    try:
        uid, _ = privsep.worker_identity()
        own = uid == privsep.user_id(wanted)
    except privsep.PrivilegeError as error:
        return Finding("user", Level.FAIL, str(error), f"create a user {wanted}, or run `tapmirror install`")
    if not own:
        return Finding("user", Level.WARN, "workers run as nobody, as other programs may", f"create a user {wanted}")
    return Finding("user", Level.OK, f"workers run as {wanted}")


def files(hard: int) -> Finding:
    """Check whether workers can have as many connections as a tap allows by default."""
    wanted = Limits().connections + 64
    if hard != resource.RLIM_INFINITY and hard < FEWEST_FILES:
        text = f"at most {hard} descriptors: too few to start a tap"
        return Finding("files", Level.FAIL, text, f"raise the limit to {wanted} ({HOW_FILES})")
    if hard != resource.RLIM_INFINITY and hard < wanted:
        return Finding(
            "files",
            Level.WARN,
            f"at most {hard} descriptors: some {hard - WORKERS_FILES} connections to shadows",
            f"raise the limit to {wanted} ({HOW_FILES}), or lower limits.connections",
        )
    return Finding("files", Level.OK, "enough descriptors for the default limits.connections")


# --- the interface


def interfaces(name: str) -> Iterator[Finding]:
    """Check each interface that `name` stands for: a name, a list, a pattern, or `any`."""
    patterns = ["*"] if name == ANY else name.split(",")
    there = [each for _, each in socket.if_nameindex()]
    for pattern in patterns:
        if not any(character in pattern for character in "*?["):
            yield from interface(pattern)
            continue
        found = fnmatch.filter(there, pattern)
        for each in found:
            yield from interface(each)
        if not found:
            yield Finding(
                "iface",
                Level.WARN,
                f"no interface like {pattern!r} here yet (there are: {', '.join(there)})",
                "correct the pattern, or let the tap wait",
            )


def interface(name: str) -> Iterator[Finding]:
    """Check whether an interface exists and is up, its receive ring, and an offload that would join packets (LRO)."""
    try:
        socket.if_nametoindex(name)
        flags = struct.unpack_from("=H", _ioctl(SIOCGIFFLAGS, struct.pack("16s24x", name.encode()[:15])), 16)[0]
    except OSError:
        there = ", ".join(each for _, each in socket.if_nameindex())
        yield Finding("iface", Level.FAIL, f"no interface {name!r} here (there are: {there})", "use one of these")
        return
    if flags & IFF_UP:
        yield Finding("iface", Level.OK, f"{name} is up")
    else:
        yield Finding("iface", Level.WARN, f"{name} is down: nothing will be seen", f"ip link set {name} up")
    yield _lro(name)
    yield _ring(name)


def _lro(name: str) -> Finding:
    try:
        on = _ethtool(name, struct.pack("=II", ETHTOOL_GFLAGS, 0))[1] & ETH_FLAG_LRO
    except OSError as error:
        return Finding("offload", Level.UNKNOWN, f"{name} does not report its offloads: {error.strerror}")
    if on:
        return Finding(
            "offload",
            Level.WARN,
            f"{name} has LRO on: the card joins packets of other sizes, and retransmissions are hidden",
            f"ethtool -K {name} lro off (GRO does as well, and loses nothing)",
        )
    return Finding("offload", Level.OK, f"{name}: LRO is off (GRO, GSO and TSO may be on or off)")


def _ring(name: str) -> Finding:
    try:
        reply = _ethtool(name, struct.pack("=9I", ETHTOOL_GRINGPARAM, *[0] * 8))
    except OSError:
        return Finding("rx ring", Level.OK, f"{name} has no receive ring of its own")
    most, now = reply[1], reply[5]
    if now < min(most, 1024):
        return Finding(
            "rx ring",
            Level.WARN,
            f"{name} receives into {now} of {most} descriptors: bursts are lost before anybody sees them",
            f"ethtool -G {name} rx {min(most, 4096)}",
        )
    return Finding("rx ring", Level.OK, f"{name} receives into {now} of {most} descriptors")


def _ethtool(name: str, command: bytes) -> tuple[int, ...]:
    """The ioctl interface of ethtool: returns the command's structure, filled in.  Raises OSError."""
    buffer = ctypes.create_string_buffer(command, len(command))
    _ioctl(SIOCETHTOOL, struct.pack("16sP16x", name.encode()[:15], ctypes.addressof(buffer)))
    return struct.unpack(f"={len(command) // 4}I", buffer.raw)


def _ioctl(number: int, argument: bytes) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        return fcntl.ioctl(any_socket, number, argument)


# --- the shadow


def reach(shadow: Shadow) -> Iterator[Finding]:
    """Check whether a shadow's name resolves, and whether it accepts a connection; a tap waits if it does not yet."""
    try:
        found = socket.getaddrinfo(shadow.host, shadow.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a valid name"
        remedy = f"correct the name, or DNS (`getent ahosts {shadow.host}` asks as a tap does), or give its address"
        yield Finding("shadow", Level.FAIL, f"cannot resolve {shadow.host!r}: {reason}", remedy)
        return
    for family, _, _, _, address in found:
        began = time.monotonic()
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                if family == socket.AF_INET:
                    probe.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, LOOP_DSCP << 2)
                else:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, LOOP_DSCP << 2)
                probe.settimeout(CONNECT_TIME)
                probe.connect(address)
        except OSError as error:
            reason = "no answer" if isinstance(error, TimeoutError) else error.strerror
            text = f"{address[0]} port {shadow.port} cannot be reached: {reason}"
            yield Finding("shadow", Level.WARN, text, "start it, or look at routes and firewalls; a tap waits for it")
        else:
            took = (time.monotonic() - began) * 1000
            yield Finding("shadow", Level.OK, f"{address[0]} port {shadow.port} takes connections ({took:.1f} ms)")


# --- the clock


def clock_source(file: Path) -> Finding:
    """Check whether reading the clock is cheap: it is read for every packet."""
    try:
        source = file.read_text(encoding="ascii").strip()
    except OSError:
        return Finding("clock source", Level.UNKNOWN, "the kernel does not tell")
    if source in FAST_CLOCKS:
        return Finding("clock source", Level.OK, source)
    return Finding(
        "clock source",
        Level.WARN,
        f"{source} is slow to read: packets cost more",
        "see why the kernel distrusts the TSC",
    )


def clock() -> Finding:
    """Check whether the wall clock is right.  Reports and `ttl` use it; the data path does not."""
    if time.gmtime().tm_year < SOUND_YEAR:
        return Finding(
            "clock", Level.WARN, f"it is {time.ctime()} here: the clock was never set", "set it, by NTP best"
        )
    timex = ctypes.create_string_buffer(TIMEX_BYTES)
    if ctypes.CDLL(None, use_errno=True).adjtimex(timex) < 0:
        return Finding("clock", Level.UNKNOWN, f"the kernel does not tell: {os.strerror(ctypes.get_errno())}")
    status = struct.unpack_from("=i", timex, _TIMEX_STATUS)[0]
    error = struct.unpack_from("=q", timex, _TIMEX_MAXERROR)[0]
    if status & STA_UNSYNC:
        return Finding(
            "clock", Level.WARN, "it is not synchronised: times in reports may be wrong", "run an NTP client"
        )
    return Finding("clock", Level.OK, f"synchronised to within {error / 1e6:.3f} s")
