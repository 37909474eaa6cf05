# SPDX-License-Identifier: Apache-2.0
"""The loader: both sides of the contract agree, what it makes works, and what can be wrong has one line."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import re
import resource
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest

from captures import RING_BYTES
from lab import AS_NOBODY, PATIENCE, Lab, until
from lab.snapshot import MAPS, bpf_ids, tree
from signalled import Ended, ending, signal_ourselves
from tapmirror import bytecode, contract, loader
from tapmirror.events import ACCEPTED, FROM_SERVER, LOOP_DSCP, MULTIPATH, UNACCEPTED
from tapmirror.source import Counters
from tapmirror.source.ring import (
    COUNTERS_PER_CPU,
    ONCE_AT,
    RECORD,
    WANT_ALL,
    WANT_RESPONSES,
    WINDOW,
    WINDOWS_AT,
    RingSource,
)
from tapmirror.spec import MAX_WORKERS
from tapmirror.spec.tap import MAX_CLIENTS

TYPES: dict[str, Any] = {
    "__u8": ctypes.c_uint8,
    "__u16": ctypes.c_uint16,
    "__be16": ctypes.c_uint16,
    "__u32": ctypes.c_uint32,
    "__u64": ctypes.c_uint64,
}


def header() -> str:
    """bpf/tap.h without its comments."""
    path = Path(loader.__file__).parent.parent / "bpf" / "tap.h"
    return re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def constants() -> dict[str, int]:
    """What the header defines as numbers."""
    return {name: int(value, 0) for name, value in re.findall(r"#define (\w+)\s+(0x[0-9a-f]+|\d+)", header())}


def structs() -> dict[str, Any]:
    """The header's structures, laid out by ctypes as a C compiler does."""
    found: dict[str, Any] = dict(TYPES)
    for name, content in re.findall(r"struct (\w+) \{(.*?)\};", header(), flags=re.DOTALL):
        fields = []
        for kind, field, sizes in re.findall(r"(?:struct )?(\w+) (\w+)((?:\[\w+\])*);", content):
            of = found[kind]
            for size in reversed(re.findall(r"\[(\w+)\]", sizes)):
                of = of * (int(size) if size.isdigit() else constants()[size])
            fields.append((field, of))
        found[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    return found


def test_a_record_has_the_layout_of_the_header() -> None:
    record = structs()["tap_record"]
    assert ctypes.sizeof(record) == RECORD.size
    value = record.from_buffer_copy(RECORD.pack(1, 2, 3, 4, 5, 6, 7, bytes(range(40))))
    names = ("time_ns", "seq", "ack", "length", "caplen", "hash", "flags")
    assert [getattr(value, name) for name in names] == [1, 2, 3, 4, 5, 6, 7]
    assert bytes(value.key) == bytes(range(40))
    assert bytes(value.key.server) == bytes(range(16, 32))


def test_the_configuration_has_the_layout_of_the_header() -> None:
    found = structs()
    config, endpoint = found["tap_config"], found["tap_endpoint"]
    assert (ctypes.sizeof(config), ctypes.sizeof(endpoint)) == (loader.CONFIG.size, loader.ENDPOINT.size)
    link = bytes(loader.LINK.size) + loader.LINK.pack(7, 1)
    packed = loader.ENDPOINT.pack(bytes(range(16)), b"\0\x50")
    content = loader.CONFIG.pack(1, 2, 3, 4, 5, 6, 0, 7, 8, 0, 9, b"a" * 256, packed, link, b"p" * 8192)
    value = config.from_buffer_copy(content)
    names = ("threshold", "seed", "flags", "addr_count", "excluded_count", "dscp", "link_count", "client_count")
    assert [getattr(value, name) for name in names] == [1, 2, 3, 4, 5, 6, 0, 7]
    assert (value.response_bytes, value.probe) == (8, 9)
    assert bytes(value.addrs[15]) == b"a" * 16
    assert (bytes(value.excluded[0].addr), bytes(value.ports)) == (bytes(range(16)), b"p" * 8192)
    assert (value.links[1].ifindex, value.links[1].flags) == (7, 1)
    assert (config.link_count.offset, config.links.offset) == (loader.LINK_COUNT_AT, loader.LINKS_AT)
    assert config.threshold.offset == 0
    assert value.excluded[0].port.to_bytes(2, sys.byteorder) == b"\0\x50"


def test_the_wants_have_the_layout_of_the_header() -> None:
    wants = structs()["tap_wants"]
    assert (wants.window.offset, WINDOWS_AT) == (loader.BUCKETS, loader.BUCKETS)
    assert (wants.once.offset, ctypes.sizeof(wants)) == (ONCE_AT, ONCE_AT + loader.BUCKETS)
    value = wants.from_buffer_copy(
        bytes(WINDOWS_AT) + WINDOW.pack(1, 2) * (MAX_WORKERS - 1) + loader.WINDOW.pack(3, 4) + b"\1" * loader.BUCKETS
    )
    assert [(value.window[i].first, value.window[i].count) for i in (0, MAX_WORKERS - 1)] == [(1, 2), (3, 4)]


def test_counters_and_flags_have_the_numbers_of_the_header() -> None:
    content = re.search(r"enum \{(.*?)\}", header(), flags=re.DOTALL)
    assert content is not None
    names = re.findall(r"TAP_(\w+)", content[1])
    wanted = [name.upper() for name in Counters.__struct_fields__]
    assert [name.removesuffix("_COUNT") for name in names[:-1]] == wanted
    assert f"TAP_COUNTERS = {COUNTERS_PER_CPU}" in content[1]
    defined = constants()
    assert (defined["TAP_FROM_SERVER"], defined["TAP_ACCEPTED"]) == (FROM_SERVER, ACCEPTED)
    assert (defined["TAP_MULTIPATH"], defined["TAP_UNACCEPTED"]) == (MULTIPATH, UNACCEPTED)
    assert (defined["TAP_WANT_ALL"], defined["TAP_WANT_RESPONSES"]) == (WANT_ALL, WANT_RESPONSES)
    assert defined["TAP_MAX_WORKERS"] == loader.MAX_WORKERS
    assert defined["TAP_MAX_ADDRS"] == loader.MAX_ADDRS
    assert defined["TAP_MAX_CLIENTS"] == MAX_CLIENTS
    flags = ("LOOPBACK", "EGRESS_ALL", "NO_L2", "PROMISC", "MANY", "EITHER_WAY", "MAX_LINKS")
    assert {name: defined[f"TAP_{name}"] for name in flags} == {name: getattr(loader, name) for name in flags}


@pytest.mark.parametrize("refusal", [None, PermissionError(1, "no"), ValueError("no")])
def test_the_limit_of_locked_memory_is_lifted_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, refusal: Exception | None
) -> None:
    did: list[object] = []

    def setrlimit(*what: object) -> None:
        did.append(what)
        if refusal is not None:
            raise refusal

    def load(_request: loader.Request) -> list[int]:
        did.append("load")
        raise loader.LoaderError("refused", "as told")

    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    monkeypatch.setattr(loader, "give_way", lambda: None)  # here it is not a child, and its session is all the tests'
    monkeypatch.setattr(loader, "compile_and_load", load)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        ours.send(msgspec.json.encode(request()))
        monkeypatch.setattr(sys, "argv", ["loader", str(theirs.detach()), contract.CONTRACT])
        loader.main()
        assert b"as told" in ours.recv(1000)
    assert did == [(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY,) * 2), "load"]


# --- for real


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built:
        yield built


def request(**changes: Any) -> loader.Request:
    values: dict[str, Any] = {
        "ports": [80],
        "addrs": [],
        "excluded": [],
        "threshold": 1 << 32,
        "seed": 0,
        "dscp": LOOP_DSCP,
        "egress_all": False,
        "ring_bytes": RING_BYTES,
    }
    return loader.Request(**{**values, **changes})


def map_of(fd: int) -> int:
    """The kernel's number of a map."""
    found = re.search(r"^map_id:\s*(\d+)$", Path(f"/proc/self/fdinfo/{fd}").read_text(), flags=re.MULTILINE)
    assert found is not None
    return int(found[1])


@pytest.fixture
def traceless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever the test does: no child, no descriptor, no mount and no temporary file is left."""
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    before = traces()
    yield
    assert traces() == before
    assert list(scratch.iterdir()) == []


def traces() -> tuple[int, list[str], str]:
    """Open descriptors, loaders among our children, and mounts."""
    loaders = [words for words in tree(os.getpid()).values() if "tapmirror.loader" in words]
    return len(os.listdir("/proc/self/fd")), loaders, Path("/proc/self/mountinfo").read_text()


@pytest.mark.ebpf
@pytest.mark.usefixtures("traceless")
def test_what_is_loaded_is_gone_when_it_is_closed() -> None:
    """The program holds its maps, so it is gone when they are."""
    loaded = loader.load(request())
    held = {map_of(fd) for fd in (*loaded.rings, loaded.counters, loaded.wants, loaded.config)}
    assert len(held) == 4 and held <= bpf_ids(MAPS)
    assert not any("tapmirror.loader" in words for words in tree(os.getpid()).values())
    fds = loaded.worker_fds()
    assert [map_of(fd) for fd in fds] == [map_of(fd) for fd in (*loaded.rings, loaded.counters, loaded.wants)]
    for fd in fds:
        assert not os.get_inheritable(fd)
        os.close(fd)
    loaded.close()
    until(lambda: not held & bpf_ids(MAPS), "the program and its maps to be gone")


@pytest.mark.e2e
@pytest.mark.ebpf
@pytest.mark.usefixtures("traceless")
def test_it_captures_from_attach_until_close(lab: Lab) -> None:
    """A SYN to a closed port each time; it is answered when connect(2) returns, so it was seen by then or never is."""

    def count_of_syns() -> int:
        with lab.node.enter(), pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", 80), timeout=PATIENCE)
        return source.counters().syn[0]

    with lab.node.enter():
        loaded = loader.load(request())
    ring, counters, wants = loaded.worker_fds()
    source = RingSource(ring, counters, wants, ring_bytes=RING_BYTES, seed=0, cpus=loaded.cpus)
    try:
        try:
            assert count_of_syns() == 0
            with lab.node.enter():
                attached = loader.Attachment(loaded, "lo")
            assert count_of_syns() == 1
            assert count_of_syns() == 2
        finally:
            attached.close()
        assert count_of_syns() == 2
        loaded.close()
    finally:
        source.close()


@pytest.mark.ebpf
@pytest.mark.usefixtures("traceless")
def test_the_configuration_is_what_was_asked_for() -> None:
    options = {"addrs": [b"a" * 16, b"b" * 16], "excluded": [(b"c" * 16, 0x1234)], "egress_all": True}
    loaded = loader.load(request(ports=[1, 80, 65_535], threshold=5, seed=6, probe=7, **options))
    try:
        kind = structs()["tap_config"]
        with mmap.mmap(loaded.config, -(-ctypes.sizeof(kind) // mmap.PAGESIZE) * mmap.PAGESIZE) as view:
            config = kind.from_buffer_copy(view)
        wants = structs()["tap_wants"]
        with mmap.mmap(loaded.wants, -(-ctypes.sizeof(wants) // mmap.PAGESIZE) * mmap.PAGESIZE) as view:
            found = wants.from_buffer_copy(view)
        assert (bytes(found.bucket), bytes(found.once)) == (bytes(65_536), b"\1" * 65_536)
        assert {(each.first, each.count) for each in found.window} == {(0, 0)}
    finally:
        loaded.close()
    assert (config.threshold, config.seed, config.dscp, config.probe) == (5, 6, LOOP_DSCP, 7)
    assert config.flags == loader.EGRESS_ALL
    assert [bytes(each) for each in config.addrs[: config.addr_count]] == options["addrs"]
    assert config.excluded_count == 1
    assert bytes(config.excluded[0])[:18] == b"c" * 16 + b"\x12\x34"
    assert [port for port in range(65_536) if config.ports[port >> 3] >> (port & 7) & 1] == [1, 80, 65_535]


class Noted:
    """A configuration in memory, in which it is written how interfaces are to be read."""

    def __init__(self) -> None:
        self.config = os.memfd_create("config", os.MFD_CLOEXEC)
        os.truncate(self.config, -(-loader.CONFIG.size // mmap.PAGESIZE) * mmap.PAGESIZE)

    def close(self) -> None:
        os.close(self.config)

    def links(self) -> list[tuple[int, int]]:
        """(index, flags) of each."""
        found = os.pread(self.config, loader.CONFIG.size, 0)
        (count,) = struct.unpack_from("<I", found, loader.LINK_COUNT_AT)
        return [loader.LINK.unpack_from(found, loader.LINKS_AT + loader.LINK.size * i)[:2] for i in range(count)]


def test_how_interfaces_are_read_is_noted_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that was a tunnel's and is an Ethernet's now must not be read as before; places of those gone serve."""
    there: list[tuple[int, str]] = []
    monkeypatch.setattr(socket, "if_nameindex", lambda: there)
    noted = Noted()
    loaded: Any = noted
    try:
        loader._note_link(loaded, 5, 0)
        assert noted.links() == []  # most are read so
        for index in range(10, 10 + loader.MAX_LINKS):
            there.append((index, f"tun{index}"))
            loader._note_link(loaded, index, loader.NO_L2)
        full = [(index, loader.NO_L2) for index, _ in there]
        assert noted.links() == full
        with pytest.raises(OSError, match="more than 16 interfaces without an Ethernet header"):
            loader._note_link(loaded, 99, loader.NO_L2)
        assert noted.links() == full
        loader._note_link(loaded, 12, 0)
        assert noted.links() == [*full[:2], (12, 0), *full[3:]]
        del there[3]
        loader._note_link(loaded, 99, loader.LOOPBACK)
        assert noted.links()[3] == (99, loader.LOOPBACK) and len(noted.links()) == loader.MAX_LINKS
    finally:
        noted.close()


@pytest.mark.e2e
@pytest.mark.ebpf
@pytest.mark.usefixtures("traceless")
def test_an_interface_that_is_not_there(lab: Lab) -> None:
    with lab.node.enter():
        with pytest.raises(OSError, match="No such device"):
            loader.is_loopback("nosuch0")
        assert loader.is_loopback("lo")
        assert not loader.is_loopback("eth0")


NO_LIBRARY = 'import ctypes\nctypes.CDLL("libnone.so.0")\n'
"""As bcc's module does where libbcc is gone."""
WITHOUT_BPF = ["setpriv", "--bounding-set", "-bpf,-perfmon,-sys_admin", "--inh-caps", "-all", "--"]
"""Runs a command as root that may open packet sockets, and may neither load programs nor mount."""
WITHOUT_HEADERS = [
    "unshare", "--mount", "--", "sh", "-c",
    'mount -t tmpfs none /usr/src && mount -t tmpfs none /lib/modules && exec "$@"', "sh",
]  # fmt: skip


@pytest.mark.ebpf
@pytest.mark.usefixtures("traceless")
@pytest.mark.parametrize(
    ("wrapper", "kind", "message"),
    [
        pytest.param(WITHOUT_HEADERS, "headers", "no kernel headers: install linux-headers-", id="no headers"),
        pytest.param(["env", "PYTHONPATH={no_bcc}"], "bcc", "bcc is missing: install python3-bpfcc", id="no bcc"),
        pytest.param(["env", "PYTHONPATH={no_library}"], "bcc", "cannot be imported (libnone.so.0: ", id="no libbcc"),
        pytest.param(["false"], "refused", "the loader process ", id="the child dies"),
        pytest.param(WITHOUT_BPF, "refused", "the kernel refuses", id="the kernel refuses"),
    ],
)
def test_what_this_system_lacks_has_one_line(
    wrapper: list[str], kind: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "programs"))
    for place, text in (("no_bcc", "import nothing_like_it\n"), ("no_library", NO_LIBRARY)):
        (tmp_path / place).mkdir()
        (tmp_path / place / "bcc.py").write_text(text)
    words = [shutil.which(wrapper[0]) or wrapper[0], *wrapper[1:], sys.executable]
    quoted = " ".join(
        "'" + word.format(no_bcc=tmp_path / "no_bcc", no_library=tmp_path / "no_library") + "'" for word in words
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {quoted} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(loader.LoaderError) as caught:
        loader.load(request())
    assert caught.value.kind == kind, caught.value
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.ebpf
@pytest.mark.usefixtures("traceless")
def test_what_was_compiled_once_needs_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "programs"))
    loader.load(request()).close()
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {" ".join(map(shlex.quote, [*WITHOUT_HEADERS, sys.executable]))} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    loader.load(request(threshold=5)).close()
    with pytest.raises(loader.LoaderError, match="no kernel headers"):  # another program
        loader.load(request(workers=2))
    (kept,) = (tmp_path / "programs").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(loader.LoaderError, match="no kernel headers"):
        loader.load(request())


@pytest.mark.ebpf
@pytest.mark.usefixtures("traceless")
def test_a_child_of_other_files_than_ours_refuses_and_loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = contract.CONTRACT
    monkeypatch.setattr(contract, "CONTRACT", "0.0.9-123456789abc")
    with pytest.raises(loader.LoaderError) as caught:
        loader.load(request())
    assert caught.value.kind == "contract"
    assert str(caught.value) == f"tapmirror {ours} is installed now, and 0.0.9-123456789abc is running: restart it"


def test_the_compiler_is_known_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc" / "__init__.py").write_text("raise AssertionError\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert loader.compiler() == ""
    (tmp_path / "bcc" / "version.py").write_text("__version__ = '0.27.1'\n")
    assert loader.compiler() == "__version__ = '0.27.1'"
    monkeypatch.setattr(sys, "path", [])
    assert loader.compiler() == ""


@pytest.mark.parametrize(
    ("end", "how"),
    [
        ("kill -KILL $$", "signal 9, most likely for want of memory: .* MemoryMax=, and for oom in dmesg"),
        ("kill -USR1 $$", "signal 10"),
        ("exit 3", "exit status 3"),
        ("kill -INT $$; exit 3", "exit status 3"),
        ("exec bash -c 'eval \"exec $0>&-\"; exec sleep 60' $4", "signal 9"),
    ],
    ids=["killed", "ended", "left", "a Ctrl-C is not for it", "killed by us"],
)
def test_a_child_that_dies_is_told_with_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, how: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{end}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(loader.LoaderError, match=rf"the loader process died \({how}\)$"):
        loader.load(request())


def test_a_signal_while_the_childs_end_is_seen_to_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec bash -c 'eval \"exec $0>&-\"; exec sleep 60' $4\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    polled: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen.poll

    def poll(child: subprocess.Popen[bytes]) -> int | None:
        polled.append(child)
        if len(polled) == 1:
            signal_ourselves()
        return real(child)

    monkeypatch.setattr(subprocess.Popen, "poll", poll)
    with ending(), pytest.raises(Ended):
        loader.load(request())
    code = polled[0].returncode
    polled[0].kill()
    assert code == -signal.SIGKILL


@pytest.mark.ebpf
@pytest.mark.usefixtures("traceless")
def test_a_child_that_takes_too_long_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(loader, "LOAD_TIME", 0.2)
    with pytest.raises(loader.LoaderError, match=r"took more than") as caught:
        loader.load(request())
    assert caught.value.kind == "time"


@pytest.mark.ebpf
@pytest.mark.usefixtures("traceless")
@pytest.mark.parametrize("ring_bytes", [12_288, 1 << 40])
def test_a_ring_that_the_kernel_does_not_make(ring_bytes: int) -> None:
    """No power of two, or too large."""
    with pytest.raises(loader.LoaderError) as caught:
        loader.load(request(ring_bytes=ring_bytes))
    assert caught.value.kind in ("compile", "refused")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (
            errno.EACCES,
            "verifier",
            f"the verifier of this kernel ({platform.release()}) does not take the BPF program: ",
        ),
        (errno.EINVAL, "verifier", "the verifier of this kernel"),
        (errno.EPERM, "refused", "the kernel refuses the BPF program: Operation not permitted"),
    ],
)
def test_a_program_that_the_kernel_does_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: str, words: str
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(bytecode, "load", refuse)
    monkeypatch.setattr(loader, "compile_program", lambda *_: None)
    monkeypatch.setattr(loader, "compiler", lambda: "one")
    with pytest.raises(loader.LoaderError) as caught:
        loader.load_program("", [])
    assert caught.value.kind == kind and str(caught.value).startswith(words)
    assert list(tmp_path.iterdir()) == [], "it is not kept"


def test_without_privilege(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        done = subprocess.run(
            [*AS_NOBODY, sys.executable, "-c", LOADS],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.strip() == "privilege capturing needs root (CAP_NET_RAW)"
        return
    with pytest.raises(loader.LoaderError, match=r"needs root \(CAP_NET_RAW\)"):
        loader.load(request())


LOADS = """
from tapmirror import loader
try:
    loader.compile_and_load(None)
except loader.LoaderError as error:
    print(error.kind, error)
"""


# --- headers


def install(root: Path, *names: str) -> None:
    """Directories of headers as packages install them."""
    for name in names:
        for part in ("include/linux", "arch/x86/include/asm", "arch/arm64/include/asm"):
            (root / name / part).mkdir(parents=True)
    for name in names:
        (root / name / "include" / "linux" / "marker.h").write_text(name)
        (root / name / "include" / f"only-{name}").mkdir()


@pytest.fixture
def no_own_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "release", lambda: "0.0.0-none")


@pytest.mark.usefixtures("no_own_headers")
def test_the_view_merges_the_two_packages_of_debian(tmp_path: Path) -> None:
    install(tmp_path, "linux-headers-6.1.0-9-amd64", "linux-headers-6.1.0-9-common", "linux-headers-5.0.0-1-amd64")
    for name in ("linux-headers-6.1.0-9-amd64", "linux-headers-5.0.0-1-amd64"):
        (tmp_path / name / "include" / "generated").mkdir()
    with loader.headers(tmp_path) as view:
        assert view is not None
        found = {path.name for path in (Path(view) / "include").iterdir()}
        assert {"generated", "only-linux-headers-6.1.0-9-amd64", "only-linux-headers-6.1.0-9-common"} <= found
        assert "only-linux-headers-5.0.0-1-amd64" not in found
    assert not Path(view).exists()


@pytest.mark.parametrize(
    ("main", "common"),
    [
        ("linux-headers-6.1.0-50-cloud-amd64", "linux-headers-6.1.0-50-common"),
        ("linux-headers-6.1.0-50-rt-amd64", "linux-headers-6.1.0-50-common-rt"),
        ("linux-headers-6.12.38+deb13-cloud-arm64", "linux-headers-6.12.38+deb13-common"),
        ("linux-headers-6.8.0-50-generic", None),
    ],
)
def test_what_flavours_have_in_common_is_found(tmp_path: Path, main: str, common: str | None) -> None:
    for name in ("6.1.0-50-common", "6.1.0-50-common-rt", "6.1.0-9-common", "6.12.38+deb13-common"):
        (tmp_path / f"linux-headers-{name}").mkdir()
    assert [path.name for path in loader.common_of(tmp_path / main)] == ([common] if common else [])


def test_where_modules_are_hidden_the_view_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As in the unit: a directory with no rights in the place of /lib/modules, and root that has to keep to them.
    install(tmp_path, "linux-headers-6.1.0-9-amd64")
    (tmp_path / "linux-headers-6.1.0-9-amd64" / "include" / "generated").mkdir()
    is_dir = Path.is_dir

    def hidden(path: Path) -> bool:
        if path.is_relative_to("/lib/modules"):
            raise PermissionError(13, "Permission denied", str(path))
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", hidden)
    with loader.headers(tmp_path) as view:
        assert view is not None


def test_of_several_kernels_headers_those_of_the_running_one_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unit hides /lib/modules; others may be too new for the compiler that is here."""
    monkeypatch.setattr(loader, "own_headers", lambda: False)
    monkeypatch.setattr(platform, "release", lambda: "6.1.0-9-amd64")
    for name in ("linux-headers-6.1.0-9-amd64", "linux-headers-6.12.0-1-amd64"):
        install(tmp_path, name)
        (tmp_path / name / "include" / "generated").mkdir()
    with loader.headers(tmp_path) as view:
        assert view is not None
        assert (Path(view) / "include" / "linux" / "marker.h").read_text() == "linux-headers-6.1.0-9-amd64"


@pytest.mark.usefixtures("no_own_headers", "traceless")
@pytest.mark.parametrize("error", [None, ValueError])
def test_the_view_is_gone_however_it_is_left(tmp_path: Path, error: type[Exception] | None) -> None:
    install(tmp_path, "linux-headers-6.1.0-9-amd64")
    (tmp_path / "linux-headers-6.1.0-9-amd64" / "include" / "generated").mkdir()
    with suppress(ValueError), loader.headers(tmp_path) as view:
        assert view is not None
        assert (Path(view) / "include" / "linux" / "marker.h").read_text() == "linux-headers-6.1.0-9-amd64"
        if error is not None:
            raise error


SHOW_SCRATCH = """
import pathlib
from tapmirror import loader
with loader.scratch() as path:
    (path / "file").write_text("x")
    print(path, (path / "file").exists())
print(path.exists())
"""


@pytest.mark.ebpf
@pytest.mark.parametrize(("wrapper", "parent"), [([], "/proc/self/fd"), (WITHOUT_BPF, "{tmp}")])
def test_where_the_view_is(wrapper: list[str], parent: str, tmp_path: Path) -> None:
    """In a file system of its own, or where that is not allowed among the temporary files."""
    done = subprocess.run(
        [*wrapper, sys.executable, "-c", SHOW_SCRATCH],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    first, after = done.stdout.splitlines()
    path, there = first.split()
    assert str(Path(path).parent) == parent.format(tmp=tmp_path)
    assert (there, after) == ("True", "False")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_own_headers")
def test_without_headers_it_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(loader.LoaderError, match="install linux-headers-amd64") as caught, loader.headers(tmp_path):
        pass
    assert caught.value.kind == "headers"


def test_the_first_line_of_an_error() -> None:
    assert loader.first_line(ValueError("one\ntwo")) == "one"
    assert loader.first_line(ValueError("")) == "ValueError"
