# SPDX-License-Identifier: Apache-2.0
"""The loader: both sides of the contract agree, what it makes works, and what can be wrong has one line."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from captures import RING_BYTES
from lab import Lab, until
from lab.snapshot import network_programs, tree
from tapmirror import loader
from tapmirror.events import ACCEPTED, FROM_SERVER, LOOP_DSCP
from tapmirror.source import Counters
from tapmirror.source.ring import COUNTERS_PER_CPU, RECORD, WANT_ALL

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
    value = record.from_buffer_copy(RECORD.pack(1, 2, 3, 4, 5, 6, 7, 8, bytes(range(40))))
    names = ("time_ns", "seq", "ack", "length", "caplen", "hash", "flags", "window")
    assert [getattr(value, name) for name in names] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert bytes(value.key) == bytes(range(40))
    assert bytes(value.key.server) == bytes(range(16, 32))


def test_the_configuration_has_the_layout_of_the_header() -> None:
    found = structs()
    config, endpoint = found["tap_config"], found["tap_endpoint"]
    assert (ctypes.sizeof(config), ctypes.sizeof(endpoint)) == (loader.CONFIG.size, loader.ENDPOINT.size)
    packed = loader.ENDPOINT.pack(bytes(range(16)), b"\0\x50")
    value = config.from_buffer_copy(loader.CONFIG.pack(1, 2, 3, 4, 5, 6, 0, b"a" * 256, packed, b"p" * 8192))
    names = ("threshold", "seed", "flags", "addr_count", "excluded_count", "dscp")
    assert [getattr(value, name) for name in names] == [1, 2, 3, 4, 5, 6]
    assert bytes(value.addrs[15]) == b"a" * 16
    assert (bytes(value.excluded[0].addr), bytes(value.ports)) == (bytes(range(16)), b"p" * 8192)
    assert value.excluded[0].port.to_bytes(2, sys.byteorder) == b"\0\x50"


def test_counters_and_flags_have_the_numbers_of_the_header() -> None:
    content = re.search(r"enum \{(.*?)\}", header(), flags=re.DOTALL)
    assert content is not None
    names = re.findall(r"TAP_(\w+)", content[1])
    wanted = [name.upper() for name in Counters.__struct_fields__]
    assert [name.removesuffix("_COUNT") for name in names[:-1]] == wanted
    assert f"TAP_COUNTERS = {COUNTERS_PER_CPU}" in content[1]
    defined = constants()
    assert (defined["TAP_FROM_SERVER"], defined["TAP_ACCEPTED"]) == (FROM_SERVER, ACCEPTED)
    assert (defined["TAP_WANT_ALL"], defined["TAP_MAX_ADDRS"]) == (WANT_ALL, loader.MAX_ADDRS)
    assert (defined["TAP_LOOPBACK"], defined["TAP_EGRESS_ALL"], defined["TAP_NO_L2"]) == (1, 2, 4)


# --- for real


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built:
        yield built


def request(**changes: Any) -> loader.Request:
    values: dict[str, Any] = {
        "iface": "lo",
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


def views() -> list[Path]:
    """Merged views of headers that are there."""
    return list(Path("/tmp").glob("tapmirror-headers-*"))


@pytest.mark.ebpf
def test_what_is_loaded_is_gone_when_it_is_closed() -> None:
    before = set(network_programs())
    loaded = loader.load(request())
    assert len(set(network_programs()) - before) == 1
    assert not any("tapmirror.loader" in words for words in tree(os.getpid()).values())
    assert views() == []
    fds = loaded.worker_fds()
    assert len(set(fds)) == 3
    for fd in fds:
        os.close(fd)
    loaded.close()
    until(lambda: set(network_programs()) == before, "the program to be gone")


@pytest.mark.e2e
@pytest.mark.ebpf
def test_an_interface_that_is_not_there(lab: Lab) -> None:
    with lab.node.enter():
        before = set(network_programs())
        with pytest.raises(OSError, match="No such device"):
            loader.load(request(iface="nosuch0"))
        until(lambda: set(network_programs()) == before, "the program to be gone")
        assert loader.is_loopback("lo")
        assert not loader.is_loopback("eth0")


@pytest.mark.ebpf
@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"ring_bytes": 12_288}, "compile"),  # no power of two: the kernel makes no such ring
        ({"ring_bytes": 1 << 40}, "compile"),
    ],
)
def test_what_the_kernel_refuses_has_one_line(change: dict[str, Any], kind: str) -> None:
    with pytest.raises(loader.LoaderError) as caught:
        loader.load(request(**change))
    assert (caught.value.kind, "\n" in str(caught.value)) == (kind, False)
    assert str(caught.value)
    assert views() == []


def test_without_privilege(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        done = subprocess.run(
            AS_NOBODY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.strip() == "privilege capturing needs root (CAP_NET_RAW)"
        return
    with pytest.raises(loader.LoaderError, match=r"needs root \(CAP_NET_RAW\)"):
        loader.load(request())


AS_NOBODY = ["setpriv", "--reuid", "nobody", "--clear-groups", sys.executable, "-c", """
from tapmirror import loader
try:
    loader.compile_and_load(None)
except loader.LoaderError as error:
    print(error.kind, error)
"""]  # fmt: skip


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


@pytest.mark.usefixtures("no_own_headers")
def test_without_headers_it_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(loader.LoaderError, match="install linux-headers-amd64") as caught, loader.headers(tmp_path):
        pass
    assert caught.value.kind == "headers"


def test_the_first_line_of_an_error() -> None:
    assert loader.first_line(ValueError("one\ntwo")) == "one"
    assert loader.first_line(ValueError("")) == "ValueError"
