# SPDX-License-Identifier: Apache-2.0
"""The doctor's findings: on this host for real, with and without root, and for hosts that lack something."""

from __future__ import annotations

import ctypes
import gzip
import json
import os
import resource
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from lab import PATIENCE, Lab
from loopback import refusing
from tapmirror import doctor, loader, privsep
from tapmirror.doctor import Finding, Level, can_start, examine
from tapmirror.events import LOOP_DSCP
from tapmirror.spec import parse_shadow

NOBODY = 65534


def levels(findings: list[Finding]) -> dict[str, Level]:
    return {finding.check: finding.level for finding in findings}


def as_nobody(look: Callable[[], list[Finding]]) -> list[Finding]:
    """What a process without any privilege finds."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            privsep.drop_privileges(NOBODY, NOBODY, 256)
            os.write(theirs, msgspec.json.encode(look()))
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    return msgspec.json.decode(data, type=list[Finding])


@pytest.mark.ebpf
@pytest.mark.e2e
def test_this_host_as_root() -> None:
    with Lab() as lab, lab.node.enter(), socket.create_server(("127.0.0.1", 0)) as server:
        iface = next(name for _, name in socket.if_nameindex() if name != "lo")
        findings = list(examine(iface, [parse_shadow(f"127.0.0.1:{server.getsockname()[1]}")]))
        server.settimeout(PATIENCE)
        probe, _ = server.accept()
        with probe:
            assert probe.recv(1) == b"", "the probe sends nothing"
    found = levels(findings)
    assert can_start(findings)
    assert {found[check] for check in ("kernel", "privilege", "packets", "headers", "ebpf", "iface", "shadow")} == {
        Level.OK
    }
    assert all(finding.remedy for finding in findings if finding.level in (Level.WARN, Level.FAIL))


@pytest.mark.ebpf
def test_this_host_as_nobody() -> None:
    findings = as_nobody(lambda: list(examine("lo", [])))
    found = levels(findings)
    assert not can_start(findings)
    assert found["privilege"] is Level.FAIL
    assert found["packets"] is Level.UNKNOWN
    assert found["ebpf"] is Level.UNKNOWN
    assert found["iface"] is Level.OK


@pytest.mark.parametrize(
    ("release", "level"),
    [("6.1.0-50-amd64", Level.OK), ("5.8.0", Level.OK), ("5.4.0-200-generic", Level.WARN), ("strange", Level.WARN)],
)
def test_kernels(release: str, level: Level) -> None:
    assert doctor.kernel(release).level is level


ALL = "".join(f"{name}=y\n" for name in (*doctor.NEEDED, *doctor.FOR_EBPF, *doctor.USEFUL))


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (ALL, [Level.OK]),
        (None, [Level.UNKNOWN]),
        (ALL.replace("CONFIG_PACKET=y", "# CONFIG_PACKET is not set"), [Level.FAIL]),
        (ALL.replace("CONFIG_BPF_SYSCALL=y", ""), [Level.WARN]),
        (ALL.replace("CONFIG_PSI=y", "CONFIG_PSI_DEFAULT_DISABLED=y"), [Level.WARN]),
        (ALL.replace("CONFIG_PACKET=y", "CONFIG_PACKET=m"), [Level.OK]),
    ],
)
def test_options(config: str | None, found: list[Level]) -> None:
    assert [finding.level for finding in doctor.options(config)] == found


def test_where_the_options_are(tmp_path: Path) -> None:
    assert doctor.config_of("6.1", tmp_path, tmp_path) is None
    (tmp_path / "config-6.1").write_text("CONFIG_A=y")
    assert doctor.config_of("6.1", tmp_path, tmp_path) == "CONFIG_A=y"
    (tmp_path / "config.gz").write_bytes(gzip.compress(b"CONFIG_B=y"))
    assert doctor.config_of("6.1", tmp_path, tmp_path) == "CONFIG_B=y"


@pytest.mark.skipif(os.geteuid() != 0, reason="the reply for others is another")
def test_root_without_capabilities() -> None:
    (finding,) = doctor.privileges("Name:\tx\nCapEff:\t00000000000000c0\n")
    assert (finding.level, finding.text) == (Level.FAIL, "root without CAP_NET_RAW")


@pytest.mark.parametrize("kind", list(doctor.REMEDIES))
def test_a_load_that_fails_names_the_remedy(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def fail(_request: loader.Request) -> loader.Loaded:
        raise loader.LoaderError(kind, "it failed")

    monkeypatch.setattr(loader, "load", fail)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    finding = doctor.trial_load()
    assert (finding.level, finding.remedy) == (Level.WARN, doctor.REMEDIES[kind])


@pytest.mark.ebpf
@pytest.mark.parametrize(
    "bcc", ["raise ImportError('no')", "import ctypes; ctypes.CDLL('libnone.so.0')", "import none"]
)
def test_without_bcc_it_says_so_and_what_to_do(tmp_path: Path, bcc: str) -> None:
    """The command itself, as root; nothing was compiled before."""
    (tmp_path / "bcc.py").write_text(bcc)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "CACHE_DIRECTORY": str(tmp_path / "programs")}
    command = [sys.executable, "-m", "tapmirror", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    (found,) = (each for each in json.loads(done.stdout)["findings"] if each["check"] == "ebpf")
    assert found["level"] == "warn"
    assert found["text"].startswith("the Python module bcc ") and "install python3-bpfcc; taps capture" in found["text"]
    assert found["remedy"] == doctor.REMEDIES["bcc"]


@pytest.mark.parametrize(
    ("hard", "level"),
    [(20, Level.FAIL), (32, Level.WARN), (256, Level.WARN), (1 << 20, Level.OK), (resource.RLIM_INFINITY, Level.OK)],
)
def test_files(hard: int, level: Level) -> None:
    assert doctor.files(hard).level is level


def test_how_many_connections_few_descriptors_allow() -> None:
    assert doctor.files(64).text == "at most 64 descriptors: some 48 connections to shadows"


@pytest.mark.parametrize("name", ["nope", "lo" + "x" * 20, ""])
def test_an_interface_that_is_not_there(name: str) -> None:
    (finding,) = doctor.interface(name)
    assert finding.level is Level.FAIL
    assert "there are: lo" in finding.text


def test_an_interface_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_ioctl", lambda *_: bytes(32))
    finding = next(doctor.interface("lo"))
    assert (finding.level, finding.remedy) == (Level.WARN, "ip link set lo up")


@pytest.mark.parametrize(
    ("most", "now", "level"), [(4096, 256, Level.WARN), (4096, 1024, Level.OK), (256, 256, Level.OK)]
)
def test_receive_rings(monkeypatch: pytest.MonkeyPatch, most: int, now: int, level: Level) -> None:
    monkeypatch.setattr(doctor, "_ethtool", lambda *_: (0, most, 0, 0, 0, now, 0, 0, 0))
    finding = doctor._ring("eth0")
    assert finding.level is level
    assert finding.remedy == ("ethtool -G eth0 rx 4096" if level is Level.WARN else "")


def test_large_receive_offload(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, level in ((doctor.ETH_FLAG_LRO, Level.WARN), (0, Level.OK)):
        monkeypatch.setattr(doctor, "_ethtool", lambda *_, flags=flags: (0, flags))
        assert doctor._lro("eth0").level is level


@pytest.mark.parametrize(("own", "level"), [(4001, Level.OK), (None, Level.WARN)])
def test_as_whom_workers_run(monkeypatch: pytest.MonkeyPatch, own: int | None, level: Level) -> None:
    monkeypatch.setattr(privsep, "worker_identity", lambda: (4001, 4001))
    monkeypatch.setattr(privsep, "user_id", lambda _: own)
    assert doctor.user().level is level


@pytest.mark.parametrize("name", ["any", "l[o]", "lo,nope*", "*"])
def test_interfaces_by_a_pattern(name: str) -> None:
    findings = list(doctor.interfaces(name))
    assert Finding("iface", Level.OK, "lo is up") in findings
    assert can_start(findings)


def test_a_pattern_that_nothing_is_like_is_waited_for() -> None:
    (finding,) = doctor.interfaces("nope*")
    assert (finding.check, finding.level) == ("iface", Level.WARN)
    assert "no interface like 'nope*' here yet" in finding.text


def test_a_shadow_that_does_not_answer() -> None:
    with refusing() as (_, port):
        (finding,) = doctor.reach(parse_shadow(f"127.0.0.1:{port}"))
    assert finding.level is Level.WARN
    assert finding.text == f"127.0.0.1 port {port} cannot be reached: Connection refused"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_connection_to_a_shadow_bears_the_mark_that_no_tap_mirrors(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    set_: list[tuple[int, ...]] = []

    class Marked(socket.socket):
        def setsockopt(self, *option: int) -> None:  # type: ignore[override]
            set_.append(option)

    family, name = (socket.AF_INET6, f"[{host}]") if ":" in host else (socket.AF_INET, host)
    with socket.create_server((host, 0), family=family) as server:
        monkeypatch.setattr(socket, "socket", Marked)
        (finding,) = doctor.reach(parse_shadow(f"{name}:{server.getsockname()[1]}"))
    assert finding.level is Level.OK
    option = (socket.IPPROTO_IPV6, socket.IPV6_TCLASS) if ":" in host else (socket.IPPROTO_IP, socket.IP_TOS)
    assert set_ == [(*option, LOOP_DSCP << 2)]


def test_a_shadow_without_an_address() -> None:
    (finding,) = doctor.reach(parse_shadow(f"{'a' * 64}.invalid:80"))
    assert finding.level is Level.FAIL
    assert f"getent ahosts {'a' * 64}.invalid" in finding.remedy and "or give its address" in finding.remedy


@pytest.mark.parametrize(("source", "level"), [("tsc\n", Level.OK), ("hpet\n", Level.WARN), (None, Level.UNKNOWN)])
def test_clock_sources(tmp_path: Path, source: str | None, level: Level) -> None:
    file = tmp_path / "current"
    if source is not None:
        file.write_text(source)
    assert doctor.clock_source(file).level is level


@pytest.mark.parametrize(("status", "level"), [(doctor.STA_UNSYNC, Level.WARN), (0, Level.OK)])
def test_a_clock_that_nothing_keeps_right(monkeypatch: pytest.MonkeyPatch, status: int, level: Level) -> None:
    class Kernel:
        def __init__(self, *_: object, **__: object) -> None: ...

        def adjtimex(self, timex: ctypes.Array[ctypes.c_char]) -> int:
            struct.pack_into("=q", timex, 24, 1500)  # maxerror, in microseconds
            struct.pack_into("=i", timex, 40, status)
            return 0

    monkeypatch.setattr(ctypes, "CDLL", Kernel)
    finding = doctor.clock()
    assert finding.level is level
    assert ("synchronised to within 0.002 s" in finding.text) == (level is Level.OK)


def test_a_clock_that_was_never_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    long_ago = time.gmtime(1000)
    monkeypatch.setattr("time.gmtime", lambda: long_ago)
    assert "was never set" in doctor.clock().text
