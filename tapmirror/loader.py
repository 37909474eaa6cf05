# SPDX-License-Identifier: Apache-2.0
"""The loader: a short-lived privileged process that compiles and loads the capture program.

What it compiled is kept (`bytecode`), so it compiles only once for each kernel, ring size and number of workers.

It is the only module that imports bcc, and only in the child (`python -m tapmirror.loader FD`), so that neither LLVM's
memory nor its attack surface outlives the start.  It reads no packet.  The child sends the descriptors to its parent
over a socket pair (SCM_RIGHTS), and exits.

bcc wants kernel headers, but the program uses only stable network UAPI.  So any installed headers package serves,
through a private merged view (`headers`) that is removed afterwards.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

import msgspec

from tapmirror import bytecode, contract
from tapmirror.precedence import give_way
from tapmirror.spawn import accept_sigterm, how_ended, start

LOAD_TIME: Final = 60.0
"""Seconds that the child may take: compiling takes about one on an idle host."""
DEATH_TIME: Final = 1.0
"""Seconds that a child which has closed its socket may take to exit."""
NOT_VERIFIED: Final = (errno.EACCES, errno.EINVAL)
"""Errors of bpf(2) if the kernel does not take this program.  Whoever may not load any program gets EPERM."""
REPLY_BYTES: Final = 65_536
MAX_WORKERS: Final = 64
"""Most workers of one tap: more than a host has processors to spare.  Their descriptors fit into one message
(SCM_MAX_FD in the kernel is 253)."""
CHILD_FDS: Final = 4 + MAX_WORKERS

ETH_P_ALL: Final = 0x0003
SO_ATTACH_BPF: Final = 50
SIOCGIFHWADDR: Final = 0x8927
SIOCGIFINDEX: Final = 0x8933
ARPHRD_ETHER: Final = 1
ARPHRD_LOOPBACK: Final = 772

CACHE: Final = "/var/cache/tapmirror"
"""Where compiled programs are kept, unless CACHE_DIRECTORY says otherwise (systemd.exec(5))."""
MAPS: Final = ("ring", "rings", "config", "counters", "wants", "clients", "completed", "places")
"""Names of the maps of bpf/tap.c."""
INNER: Final = {"rings": "ring"}
NETWORK: Final = struct.Struct("=I16s")
"""`struct tap_network` of bpf/tap.h."""

SYS_FSOPEN: Final = 430  # the numbers are those of all architectures
SYS_FSCONFIG: Final = 431
SYS_FSMOUNT: Final = 432
FSCONFIG_CMD_CREATE: Final = 6

LOOPBACK: Final = 1
EGRESS_ALL: Final = 2
PROMISC: Final = 8
NO_L2: Final = 4
MANY: Final = 16
EITHER_WAY: Final = 32
MAX_ADDRS: Final = 16
MAX_LINKS: Final = 16
CONFIG: Final = struct.Struct("<QIIIIIIIIII256s384s128s8192s")
"""`struct tap_config` of bpf/tap.h."""
THRESHOLD: Final = struct.Struct("<Q")
LINK_COUNT_AT: Final = 28
LINKS_AT: Final = 688
LINK: Final = struct.Struct("<II")
"""`struct tap_link` of bpf/tap.h."""
EXCLUDED_COUNT_AT: Final = 20
EXCLUDED_AT: Final = 304
ENDPOINT: Final = struct.Struct("<16s2s6x")
"""`struct tap_endpoint` of bpf/tap.h."""
BUCKETS: Final = 65_536
WINDOW: Final = struct.Struct("<II")
"""`struct tap_window` of bpf/tap.h.  `struct tap_wants` has the byte of each bucket, `MAX_WORKERS` windows, and another
byte for each bucket (`once`)."""


class LoaderError(Exception):
    """The program cannot be loaded; the message is one line for the user.

    `kind`: `privilege`, `bcc`, `headers`, `compile`, `refused`, `time` or `contract`.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be captured.  Addresses are in the 16 bytes of a flow key."""

    ports: list[int]
    addrs: list[bytes]
    excluded: list[tuple[bytes, int]]
    """End points of shadows: connections to these are never captured."""
    clients: list[tuple[bytes, bytes]] = []
    """(address, mask) of the networks whose clients are captured; empty: all clients are."""
    threshold: int
    seed: int
    dscp: int
    probe: int = 0
    """Initial sequence number of the SYN that tests whether a shadow leads back to production; 0: no test."""
    egress_all: bool
    promisc: bool = False
    response_bytes: int = 0
    """How many bytes are copied of each segment of production; 0: none."""
    many: bool = False
    """Whether there are several interfaces, so that one packet may pass more than one of them."""
    either_way: bool = False
    """Whether production may be behind the interface.  Then only its address tells the direction, and must be given."""
    ring_bytes: int
    """Bytes of each worker's ring; a power of two."""
    workers: int = 1
    """How many workers share the flows; at most `MAX_WORKERS`."""
    cpus: int = msgspec.field(default_factory=lambda: os.cpu_count() or 1)
    """How many processors have counters of their own.  If there are more later, they share these."""


@dataclass(frozen=True)
class Loaded:
    """A loaded program and its maps, not yet attached to an interface."""

    program: int
    counters: int
    wants: int
    config: int
    rings: tuple[int, ...]
    """Descriptors of the rings, one for each worker."""
    cpus: int
    """The same as in the request."""

    def worker_fds(self, shard: int = 0) -> list[int]:
        """Duplicates of the descriptors that a worker needs: its ring, counters, wants."""
        return [os.dup(fd) for fd in (self.rings[shard], self.counters, self.wants)]

    def close(self) -> None:
        """Close everything.  The kernel detaches and frees what nobody else holds."""
        for fd in (self.program, self.counters, self.wants, self.config, *self.rings):
            with suppress(OSError):
                os.close(fd)


def load(request: Request) -> Loaded:
    """Compile and load in a child process.  Raises `LoaderError`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        child = start("tapmirror.loader", theirs)
        try:
            data, fds, how = _reply(child, ours, request)
        except BaseException:  # also of a signal's handler, at whatever line: nobody waits for it
            child.kill()
            child.wait()
            raise
    if not data:
        raise LoaderError("refused", f"the loader process died ({how})")
    reply: dict[str, str] = json.loads(data)
    if "error" in reply:
        raise LoaderError(reply["kind"], reply["error"])
    program, counters, wants, config, *rings = fds
    loaded = Loaded(program, counters, wants, config, tuple(rings), request.cpus)
    try:
        configure(loaded, request)
    except BaseException:
        loaded.close()
        raise
    return loaded


def _reply(child: subprocess.Popen[bytes], ours: socket.socket, request: Request) -> tuple[bytes, list[int], str]:
    """What a child answers, with descriptors, and how it ended.  No reply means that it died.  It is gone afterwards.

    Raises `LoaderError` if it takes too long; then it is not gone.
    """
    data, fds = b"", list[int]()
    try:
        ours.settimeout(LOAD_TIME)
        ours.send(msgspec.json.encode(request))
        data, fds, _, _ = socket.recv_fds(ours, REPLY_BYTES, CHILD_FDS)
    except TimeoutError:
        raise LoaderError("time", f"compiling the capture program took more than {LOAD_TIME:.0f} s") from None
    except OSError:
        pass  # it is gone, as where it answers nothing
    if not data:
        with suppress(subprocess.TimeoutExpired):
            child.wait(DEATH_TIME)
    killed = child.poll() == -signal.SIGKILL  # and not by us
    child.kill()
    return data, fds, how_ended(child.wait(), by_us=not killed, needs="compiling takes 140 MB")


def configure(loaded: Loaded, request: Request) -> None:
    """Write the configuration.  In the map `wants`, ask for the next packet of each bucket, and for all responses."""
    flags = (EGRESS_ALL if request.egress_all else 0) | (PROMISC if request.promisc else 0)
    flags |= (MANY if request.many else 0) | (EITHER_WAY if request.either_way else 0)
    ports = bytearray(8192)
    for port in request.ports:
        ports[port >> 3] |= 1 << (port & 7)
    excluded = _end_points(request.excluded)
    value = CONFIG.pack(
        request.threshold,
        request.seed,
        flags,
        len(request.addrs),
        min(len(request.excluded), MAX_ADDRS),
        request.dscp,
        0,
        len(request.clients),
        request.response_bytes,
        0,
        request.probe,
        b"".join(request.addrs),
        excluded,
        b"",
        bytes(ports),
    )
    write(loaded.config, 0, value)
    windows = WINDOW.pack(0, BUCKETS if request.response_bytes else 0) * MAX_WORKERS
    write(loaded.wants, 0, bytes(BUCKETS) + windows + b"\1" * BUCKETS)


def write(fd: int, offset: int, content: bytes) -> None:
    """Write into a map that can be mapped into memory."""
    with mmap.mmap(fd, -(-(offset + len(content)) // mmap.PAGESIZE) * mmap.PAGESIZE) as view:
        view[offset : offset + len(content)] = content


def set_excluded(loaded: Loaded, excluded: list[tuple[bytes, int]]) -> None:
    """Change the end points of the shadows while the program runs.

    Until all are written, the program may know some of the old ones and some of the new ones.  Packets to the others
    have the loop mark.
    """
    write(loaded.config, EXCLUDED_AT, _end_points(excluded))
    write(loaded.config, EXCLUDED_COUNT_AT, struct.pack("<I", min(len(excluded), MAX_ADDRS)))


def _end_points(excluded: list[tuple[bytes, int]]) -> bytes:
    return b"".join(ENDPOINT.pack(address, port.to_bytes(2, "big")) for address, port in excluded[:MAX_ADDRS])


def set_threshold(loaded: Loaded, threshold: int) -> None:
    """Capture only flows whose hash is below `threshold`, from the next packet on."""
    write(loaded.config, 0, THRESHOLD.pack(threshold))


class Attachment:
    """A packet socket with the program, bound to one interface, for both directions."""

    def __init__(self, loaded: Loaded, iface: str) -> None:
        """Begin to capture there.  Raises OSError."""
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        try:
            self._attach(loaded.program)
            self.index = link_index(iface, self.socket)
            self.flags = link_flags(iface, self.socket)
            _note_link(loaded, self.index, self.flags)
            self.socket.bind((iface, ETH_P_ALL))
        except BaseException:
            self.socket.close()
            raise

    def _attach(self, program: int) -> None:
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_BPF, program)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            words = "the kernel allows a socket no program of this size: net.core.optmem_max is too small"
            raise OSError(errno.ENOMEM, words) from None

    def close(self) -> None:
        """Stop to capture there."""
        self.socket.close()


def _note_link(loaded: Loaded, index: int, flags: int) -> None:
    """Tell the program how to read the interface's packets.  Raises OSError if the program has no room for another one.

    The entry of an interface that is gone stays until another one needs its place.  The kernel rarely gives an index
    twice, and if it does, this overwrites the entry.
    """
    with mmap.mmap(loaded.config, -(-CONFIG.size // mmap.PAGESIZE) * mmap.PAGESIZE) as view:
        (count,) = struct.unpack_from("<I", view, LINK_COUNT_AT)
        known = [LINK.unpack_from(view, LINKS_AT + LINK.size * i)[0] for i in range(count)]
        if index in known:
            place = known.index(index)
        elif not flags:
            return
        else:
            there = {found for found, _ in socket.if_nameindex()}
            place = next((i for i, found in enumerate(known) if found not in there), count)
        if place >= MAX_LINKS:
            raise OSError(errno.ENOSPC, f"more than {MAX_LINKS} interfaces without an Ethernet header")
        LINK.pack_into(view, LINKS_AT + LINK.size * place, index, flags)
        struct.pack_into("<I", view, LINK_COUNT_AT, max(count, place + 1))


def link_index(iface: str, any_socket: socket.socket) -> int:
    """The number of an interface in the network namespace of the socket.  Raises OSError."""
    reply = fcntl.ioctl(any_socket, SIOCGIFINDEX, struct.pack("16s24x", iface.encode()))
    return int(struct.unpack_from("=i", reply, 16)[0])


def link_flags(iface: str, any_socket: socket.socket) -> int:
    """How the interface's packets are to be read: `LOOPBACK`, `NO_L2` or 0.  Raises OSError."""
    reply = fcntl.ioctl(any_socket, SIOCGIFHWADDR, struct.pack("16s24x", iface.encode()))
    kind = int(struct.unpack_from("=H", reply, 16)[0])
    if kind == ARPHRD_LOOPBACK:
        return LOOPBACK
    return 0 if kind == ARPHRD_ETHER else NO_L2


def is_loopback(iface: str) -> bool:
    """Whether the interface, in this network namespace, shows every packet twice.  Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        return link_flags(iface, any_socket) == LOOPBACK


def source() -> str:
    """The text of the program, with its header put in."""
    return contract.bpf_text("tap.c").replace('#include "tap.h"\n', contract.bpf_text("tap.h"), 1)


# --- the child


def own_headers() -> bool:
    """Whether the running kernel's own headers are where bcc looks for them, and can be read.

    ProtectKernelModules= of the unit hides /lib/modules, even from root without CAP_DAC_OVERRIDE.
    """
    with suppress(PermissionError):
        return Path(f"/lib/modules/{platform.release()}/build/include").is_dir()
    return False


@contextmanager
def headers(root: Path = Path("/usr/src")) -> Iterator[str | None]:
    """A directory for BCC_KERNEL_SOURCE; None: the running kernel's own headers are in place.

    Debian splits a headers package in two (X-amd64 and X-common), and Ubuntu links one into the other.  The view holds
    links to the entries of both.  Raises `LoaderError`.
    """
    if own_headers():
        yield None
        return
    found = sorted(path for path in root.glob("linux-headers-*") if (path / "include" / "generated").is_dir())
    if not found:
        raise LoaderError(
            "headers", "no kernel headers: install linux-headers-amd64 (Debian) or linux-headers-generic (Ubuntu)"
        )
    own = root / f"linux-headers-{platform.release()}"
    main = own if own in found else found[-1]
    trees = [main, *common_of(main)]
    arch = {"x86_64": "x86", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    with scratch() as view:
        for part in ("include", f"arch/{arch}/include"):
            (view / part).mkdir(parents=True)
            for tree in trees:
                for entry in (tree / part).iterdir() if (tree / part).is_dir() else ():
                    with suppress(FileExistsError):
                        (view / part / entry.name).symlink_to(entry)
        yield str(view)


def common_of(main: Path) -> list[Path]:
    """The part that Debian's flavours share, if it exists: X-common for X-amd64 and X-cloud-amd64, X-common-rt for
    X-rt.
    """
    parts = main.name.split("-")
    for count in range(len(parts) - 1, 1, -1):
        stem, flavour = "-".join(parts[:count]), parts[count]
        for name in (f"{stem}-common-{flavour}", f"{stem}-common"):
            if (main.parent / name).is_dir():
                return [main.parent / name]
    return []


def compile_and_load(request: Request) -> list[int]:
    """The descriptors of program, counters, wants and config, and of a ring for each worker.  Raises `LoaderError`."""
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except PermissionError:
        raise LoaderError("privilege", "capturing needs root (CAP_NET_RAW)") from None
    check_bpf()
    flags = [
        f"-DTAP_RING_PAGES={request.ring_bytes // mmap.PAGESIZE}",
        f"-DTAP_CPUS={request.cpus}",
        f"-DTAP_WORKERS={request.workers}",
    ]
    program, maps = load_program(source(), flags)
    rings = [maps["ring"]]
    shape = bytecode.MapShape("ring", bytecode.MAP_TYPE_RINGBUF, 0, 0, request.ring_bytes, 0)
    try:
        rings += [bytecode.make_map(shape) for _ in range(1, request.workers)]
        for shard, ring in enumerate(rings):
            bytecode.update(maps["rings"], struct.pack("=I", shard), struct.pack("=I", ring))
        for address, mask in request.clients:
            bits = int.from_bytes(mask).bit_count()
            bytecode.update(maps["clients"], NETWORK.pack(bits, address), b"\1")
    except OSError as error:
        raise LoaderError("refused", f"the kernel refuses a map of the program: {error.strerror}") from None
    return [program, maps["counters"], maps["wants"], maps["config"], *rings]


def load_program(text: str, flags: list[str]) -> tuple[int, dict[str, int]]:
    """Load the program that this text compiles to, which may be known from an earlier start.  Raises `LoaderError`."""
    directory = Path(os.environ.get("CACHE_DIRECTORY", CACHE))
    key = bytecode.key_of(text, flags, compiler())
    known = bytecode.load_stored(directory, key)
    if known is not None:
        with suppress(OSError):  # it was damaged with care
            return bytecode.load(known, INNER)
    code = compile_program(text, flags)
    try:
        loaded = bytecode.load(code, INNER)
    except OSError as error:
        if error.errno in NOT_VERIFIED:
            words = (
                f"the verifier of this kernel ({platform.release()}) does not take the BPF program: {error.strerror}"
            )
            raise LoaderError("verifier", words) from None
        raise LoaderError("refused", f"the kernel refuses the BPF program: {error.strerror}") from None
    bytecode.store(directory, key, code)
    return loaded


def compile_program(text: str, flags: list[str]) -> bytecode.Code:
    """Compile with bcc.  Raises `LoaderError`."""
    with headers() as view:
        if view is not None:
            os.environ["BCC_KERNEL_SOURCE"] = view
        try:
            import bcc
        except ModuleNotFoundError:
            raise LoaderError("bcc", "the Python module bcc is missing: install python3-bpfcc") from None
        except (ImportError, OSError) as error:  # also a library of its that is gone
            words = f"the Python module bcc cannot be imported ({first_line(error)}): install python3-bpfcc"
            raise LoaderError("bcc", words) from None
        try:
            program = bcc.BPF(text=text, cflags=flags)
            instructions = program.dump_func("tap")
            maps = {name: program[name].map_fd for name in MAPS}
            return bytecode.take(instructions, maps)
        except Exception as error:
            raise LoaderError("compile", f"the capture program does not compile here: {first_line(error)}") from None


def compiler() -> str:
    """The version of bcc, without importing it, because that loads all of LLVM; "": there is no bcc.

    NOTE: it does not include LLVM's own version, which does not change within a release of Debian.
    """
    found = PathFinder.find_spec("bcc")
    if found is None or found.origin is None:
        return ""
    with suppress(OSError):
        return Path(found.origin).with_name("version.py").read_text(encoding="utf-8", errors="replace").strip()
    return ""


def check_bpf() -> None:
    """Make the smallest possible map.  Its error tells if the kernel does not let us use BPF; bcc's own error would
    not.

    Raises `LoaderError`.
    """
    if platform.machine() not in bytecode.SYS_BPF:
        return
    try:
        os.close(bytecode.make_map(bytecode.MapShape("", bytecode.MAP_TYPE_ARRAY, 4, 4, 1, 0)))
    except OSError as error:
        raise LoaderError("refused", f"the kernel refuses BPF: {error.strerror}") from None


def lift_memory_lock() -> None:
    """Lift the limit for locked memory: before Linux 5.11, maps and programs count as such, and the usual limit is far
    below the size of a ring.

    If it cannot be lifted, this kernel may not need it.  If it does, it refuses the map.
    """
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def first_line(error: Exception) -> str:
    """The first line of an error message, which may have many."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory that is gone with this process, however it ends: it is in a file system that is mounted nowhere
    (fsmount(2)).

    If that is not allowed (in a container), it is a directory under /tmp.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    context = libc.syscall(SYS_FSOPEN, b"tmpfs", 0)
    mounted = -1
    if context >= 0:
        libc.syscall(SYS_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0)
        mounted = libc.syscall(SYS_FSMOUNT, context, 0, 0)
        os.close(context)
    if mounted < 0:
        with tempfile.TemporaryDirectory(prefix="tapmirror-headers-") as path:
            yield Path(path)
        return
    try:
        yield Path(f"/proc/self/fd/{mounted}")
    finally:
        os.close(mounted)


def main() -> None:
    """Answer one request."""
    accept_sigterm()
    with socket.socket(fileno=int(sys.argv[1])) as parent:
        data = parent.recv(REPLY_BYTES)
        reason = contract.broken("".join(sys.argv[2:3]))
        if reason is not None:
            parent.send(json.dumps({"kind": "contract", "error": reason}).encode())
            return
        request = msgspec.json.decode(data, type=Request)
        lift_memory_lock()
        give_way()
        try:
            fds = compile_and_load(request)
        except LoaderError as error:
            parent.send(json.dumps({"kind": error.kind, "error": str(error)}).encode())
            return
        socket.send_fds(parent, [b"{}"], fds)


if __name__ == "__main__":
    main()
