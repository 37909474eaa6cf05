# SPDX-License-Identifier: Apache-2.0
"""A real server as the oracle: what the framer takes, nginx finds in the same bytes, to the request."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from framing_cases import BROKEN, GET, REFUSED, TAKEN, chunked, head
from lab import until
from loopback import OURS
from tapmirror.events import END, Part
from tapmirror.framing import HeadMemory, RequestFramer

CONFIG = """
daemon off;
master_process off;
pid {dir}/pid;
error_log {dir}/error.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    keepalive_requests 100000;
    server {{
        listen {address}:{port};
        location / {{ return 200 "{mark}"; }}
    }}
}}
"""
MARK = b"(read as a request)"

OTHER_LIMITS = {
    "any-token-method": "nginx takes letters, - and _ in a method only",
    "options-asterisk": "nginx 1.22 does not take the asterisk form",
}


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an nginx that answers each request it reads with `MARK`."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed")
    folder: Path = tmp_path_factory.mktemp("nginx")
    with socket.socket() as probe:
        probe.bind((OURS, 0))
        port: int = probe.getsockname()[1]
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(dir=folder, address=OURS, port=port, mark=MARK.decode()))
    server = subprocess.Popen([program, "-p", folder, "-c", config], stderr=subprocess.DEVNULL)
    try:
        until(lambda: listens(port), "nginx")
        yield port
    finally:
        server.terminate()
        server.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((OURS, port)) == 0


def read_by_nginx(port: int, stream: bytes) -> int:
    """How many requests nginx found in a connection's bytes and would have served."""
    with socket.create_connection((OURS, port), timeout=300) as connection:
        connection.sendall(stream)
        connection.shutdown(socket.SHUT_WR)
        responses = b""
        try:
            while data := connection.recv(1 << 16):
                responses += data
        except ConnectionResetError:
            pass  # it refused something and did not read the rest
    # NOTE: the response to HEAD has no body: its Content-Length tells that it was served.
    return responses.count(b"Content-Length: %d\r\n" % len(MARK))


def mirrored(stream: bytes) -> int:
    framer = RequestFramer(1 << 16, None, False, HeadMemory(1 << 16))
    messages = [*framer.feed(stream, True), *framer.end()]
    return sum(isinstance(m, Part) and bool(m.flags & END) for m in messages)


@pytest.mark.parametrize("name", [name for name in TAKEN if name not in OTHER_LIMITS])
def test_taken(nginx: int, name: str) -> None:
    stream = b"".join(TAKEN[name]) + GET
    assert mirrored(stream) == read_by_nginx(nginx, stream) == len(TAKEN[name]) + 1


@pytest.mark.parametrize("stream", [*REFUSED.values(), *BROKEN.values()], ids=[*REFUSED, *BROKEN])
def test_nothing_is_mirrored_that_nginx_did_not_read(nginx: int, stream: bytes) -> None:
    stream = GET + stream + GET + GET
    assert mirrored(stream) == 1 <= read_by_nginx(nginx, stream)


@pytest.mark.parametrize(
    "last",
    [
        head(b"Connection: close"),
        head(b"Connection: keep-alive, close"),
        head(line=b"GET / HTTP/1.0"),
        head(b"Connection: close", b"Transfer-Encoding: chunked") + b"1\r\nx\r\n0\r\n\r\n",
        chunked(b"5\r\nhello\r\n0\r\n\r\n") + head(b"Connection: close"),
    ],
)
def test_both_stop_after_a_closing_request(nginx: int, last: bytes) -> None:
    stream = GET + last + GET
    assert mirrored(stream) == read_by_nginx(nginx, stream) == stream.count(b"HTTP/1.") - 1
