# SPDX-License-Identifier: Apache-2.0
"""Capture files from end to end: scapy writes them, hashes and requests are compared."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from scapy.all import GRE, IP, TCP, Dot1Q, Ether, IPv6, Raw, fragment

from capture_files import pcap
from tapmirror.offline import OPEN_FILES, Options, Reader, Record
from tapmirror.source.blocks import CaptureError
from tapmirror.source.files import CaptureFile
from tapmirror.spec import Limits

MAC = "02:00:00:00:00:01"
ETHER = Ether(src=MAC, dst=MAC)
GET = b"GET /a?b=c HTTP/1.1\r\nHost: a\r\n\r\n"


class Talk:
    """The packets of one connection."""

    def __init__(self, port: int = 40000, outside: Any = ETHER, *, server_port: int = 80, six: bool = False) -> None:
        self.outside = outside
        self.ports = (port, server_port)
        self.six = six
        self.next = [1000, 5000]
        self.frames: list[bytes] = []
        self.put(0, b"", "S")
        self.put(1, b"", "SA")
        self.next = [1001, 5001]

    def put(self, side: int, data: bytes, flags: str = "PA") -> None:
        ends = ("2001:db8::1", "2001:db8::2") if self.six else ("10.0.0.1", "10.0.0.2")
        network = (IPv6 if self.six else IP)(src=ends[side], dst=ends[1 - side])
        tcp = TCP(sport=self.ports[side], dport=self.ports[1 - side], seq=self.next[side], flags=flags)
        tcp.ack = self.next[1 - side]
        self.frames.append(bytes(self.outside / network / tcp / Raw(data)))
        self.next[side] += len(data)


def read(path: Path, data: bytes, options: Options | None = None, limits: Limits | None = None) -> list[Record]:
    path.write_bytes(data)
    with contextlib.closing(CaptureFile(str(path))) as capture:
        reader = Reader(capture, options or Options(), limits or Limits())
        found = list(reader.records())
        snapshot = reader.ledger.snapshot()
        assert reader.held() == (0, 0)
        assert snapshot["bytes"]["unaccounted"] == snapshot["segments"]["unaccounted"] == 0
        return found


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("six", [False, True])
def test_a_stream(tmp_path: Path, six: bool) -> None:
    talk = Talk(six=six)
    talk.put(0, b"ping")
    talk.put(1, b"pong" * 1000)
    talk.put(0, b"PING")
    assert read(tmp_path / "c", pcap(talk.frames)) == [
        {
            "type": "stream",
            "client": "[2001:db8::1]:40000" if six else "10.0.0.1:40000",
            "server": "[2001:db8::2]:80" if six else "10.0.0.2:80",
            "client_bytes": 8,
            "client_bytes_sha256": sha256(b"pingPING"),
            "server_bytes": 4000,
            "server_bytes_sha256": sha256(b"pong" * 1000),
            "gaps": 0,
        }
    ]


def test_holes_are_counted_and_left_out(tmp_path: Path) -> None:
    talk = Talk()
    for n in range(5):
        talk.put(0, b"%d" % n)
    del talk.frames[5], talk.frames[3]
    (found,) = read(tmp_path / "c", pcap(talk.frames))
    assert (found["client_bytes"], found["client_bytes_sha256"], found["gaps"]) == (3, sha256(b"024"), 2)


def test_requests(tmp_path: Path) -> None:
    talk = Talk()
    talk.put(0, GET[:9])
    talk.put(0, GET[9:] + b"POST /\xe4 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
    talk.put(1, b"HTTP/1.1 200 OK\r\n\r\nGET /not HTTP/1.1\r\nHost: a\r\n\r\n")
    redis = Talk(40001, server_port=6379)
    redis.put(0, b"*1\r\n$4\r\nPING\r\n")
    found = read(tmp_path / "c", pcap(talk.frames + redis.frames), Options(http=True))
    assert [(r["method"], r["uri"]) for r in found if r["type"] == "http1"] == [("GET", "/a?b=c"), ("POST", "/\\xe4")]
    assert [r["type"] for r in found] == ["http1", "http1", "stream", "stream"]


def test_requests_behind_the_server_s_fin_are_listed(tmp_path: Path) -> None:
    """A tap leaves them out; here it is asked what the client sent."""
    talk = Talk()
    talk.put(0, GET)
    talk.put(1, b"HTTP/1.1 204 No Content\r\n\r\n", "FA")
    talk.put(0, GET.replace(b"/a", b"/b"))
    found = read(tmp_path / "c", pcap(talk.frames), Options(http=True))
    assert [r["uri"] for r in found if r["type"] == "http1"] == ["/a?b=c", "/b?b=c"]


def test_requests_around_a_hole_and_in_mid_stream(tmp_path: Path) -> None:
    talk = Talk()
    for n in range(4):
        talk.put(0, GET.replace(b"/a?b=c", b"/%d" % n))
        talk.put(1, b"HTTP/1.1 204 No Content\r\n\r\n")
    del talk.frames[4]
    found = read(tmp_path / "c", pcap(talk.frames), Options(http=True))
    assert [r["uri"] for r in found if r["type"] == "http1"] == ["/0", "/3"]  # 2 may be the body of what was lost
    found = read(tmp_path / "c", pcap(talk.frames[3:]), Options(http=True))
    assert [r["uri"] for r in found if r["type"] == "http1"] == ["/2", "/3"]


def test_only_some_ports(tmp_path: Path) -> None:
    talks = [Talk(40000 + n, server_port=port) for n, port in enumerate((80, 81, 82))]
    for talk in talks:
        talk.put(0, b"x")
    found = read(tmp_path / "c", pcap([f for talk in talks for f in talk.frames]), Options(ports=(80, 82)))
    assert [r["server"] for r in found] == ["10.0.0.2:80", "10.0.0.2:82"]


def test_tunnels_tags_and_fragments(tmp_path: Path) -> None:
    tunnel = ETHER / IP(src="192.0.2.1", dst="192.0.2.2") / GRE()
    talks = [Talk(), Talk(outside=ETHER / Dot1Q(vlan=7)), Talk(40001, tunnel)]
    for n, talk in enumerate(talks):
        talk.put(0, b"%d" % n * 2000)
    pieces = [bytes(ETHER / part) for part in fragment(Ether(talks[0].frames.pop())[IP], fragsize=500)]
    frames = [f for talk in talks for f in talk.frames] + pieces
    found = read(tmp_path / "c", pcap(frames))
    assert [r["client_bytes_sha256"] for r in found] == [sha256(b"%d" % n * 2000) for n in (1, 2, 0)]
    assert len(read(tmp_path / "c", pcap(frames), Options(tunnels=False))) == 2


def test_payload_files(tmp_path: Path) -> None:
    talks = [Talk(40000 + n, six=bool(n % 2)) for n in range(OPEN_FILES)]
    frames = []
    for turn in range(3):
        for talk in talks:
            before = len(talk.frames)
            talk.put(0, b"a%d" % turn)
            talk.put(1, b"b%d" % turn)
            frames += talk.frames[0 if not turn else before :]
    found = read(tmp_path / "c", pcap(frames), Options(payload_dir=tmp_path / "out" / "payloads"))
    for record in found:
        assert (tmp_path / "out" / "payloads" / record["client_file"]).read_bytes() == b"a0a1a2"
        assert (tmp_path / "out" / "payloads" / record["server_file"]).read_bytes() == b"b0b1b2"
    assert {found[0]["client_file"], found[0]["server_file"]} == {
        "000001_10.0.0.1_40000-10.0.0.2_80",
        "000002_10.0.0.2_80-10.0.0.1_40000",
    }
    assert found[1]["client_file"] == "000003_2001.db8..1_40001-2001.db8..2_80"


def test_damage_comes_after_the_streams_before_it(tmp_path: Path) -> None:
    talk = Talk()
    talk.put(0, b"x")
    path = tmp_path / "c"
    path.write_bytes(pcap(talk.frames) + b"rubbish")
    found: list[Record] = []
    with contextlib.closing(CaptureFile(str(path))) as capture, pytest.raises(CaptureError):
        found.extend(Reader(capture, Options(), Limits()).records())
    assert [r["client_bytes"] for r in found] == [1]


def test_a_link_that_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(pcap([bytes(60)] * 3, link=127))
    with contextlib.closing(CaptureFile(str(tmp_path / "c"))) as capture:
        reader = Reader(capture, Options(), Limits())
        assert list(reader.records()) == []
    assert reader.remarks() == ["3 packets of link type 127 were left out: it is not known"]


def test_remarks(tmp_path: Path) -> None:
    talk = Talk()
    talk.put(0, b"x")
    talk.put(0, b"bad")
    talk.frames[-1] = talk.frames[-1][:-1] + b"D"
    talk.put(0, b"fragmented" * 20)
    piece = bytes(ETHER / fragment(Ether(talk.frames.pop())[IP], fragsize=80)[0])
    talk.put(0, b"y" * 50)
    others = [Talk(port) for port in (1001, 1002)]
    for other in others:
        other.put(0, b"x")
    frames = [*talk.frames, piece, *others[0].frames, *others[1].frames]
    data = bytearray(pcap(frames))
    place = data.index(b"y" * 50)
    head = place - 54 - 8
    data[head : head + 4] = (54 + 10).to_bytes(4, "little")
    del data[place + 10 : place + 50]
    (tmp_path / "c").write_bytes(data)
    limits = msgspec.structs.replace(Limits(), flows=1)
    with contextlib.closing(CaptureFile(str(tmp_path / "c"))) as capture:
        reader = Reader(capture, Options(checksums=True), limits)
        assert len(list(reader.records())) == 3
    assert reader.remarks() == [
        "1 segments with a wrong checksum were left out",
        "1 IP fragments did not make a whole datagram",
        "40 bytes of payload were cut off by the capture",
        "2 connections were told of before their end: too many at once",
    ]
