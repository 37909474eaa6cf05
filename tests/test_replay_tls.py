# SPDX-License-Identifier: Apache-2.0
"""TLS contexts of a spec, and a socket that behaves as a plain one would.  With nginx: e2e/test_rules.py."""

from __future__ import annotations

import contextlib
import select
import shutil
import socket
import ssl
import threading
from pathlib import Path

import pytest

from lab import PATIENCE, Certificates
from tapmirror.replay.tls import TlsSocket, make_context
from tapmirror.spec import Tls


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"), "new.test")


def test_contexts(certificates: Certificates, tmp_path: Path) -> None:
    trusting = make_context(Tls(ca_file=str(certificates.authority), cert_file=str(certificates.client)), "new.test")
    assert trusting.verify_mode == ssl.CERT_REQUIRED and trusting.check_hostname
    assert trusting.minimum_version == ssl.TLSVersion.TLSv1_2
    blind = make_context(Tls(verify=False), "10.0.0.1")
    assert blind.verify_mode == ssl.CERT_NONE
    (tmp_path / "none.pem").write_text("nothing")
    for spec in (Tls(ca_file="/no/such"), Tls(cert_file=str(tmp_path / "none.pem"))):
        with pytest.raises(OSError, match=r".+"):
            make_context(spec, "new.test")
    with pytest.raises(ValueError, match=r".+"):
        make_context(Tls(sni="." + "a" * 70), "new.test")


def test_authorities_of_a_directory_are_read_at_once(
    certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later the worker can open no file; one that holds none is passed over."""
    shutil.copy(certificates.authority, tmp_path / "0a1b2c3d.0")
    (tmp_path / "README").write_text("no certificate")
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    assert make_context(Tls(), "new.test").cert_store_stats()["x509_ca"] == 1


def test_a_socket_that_would_block_says_so(certificates: Certificates) -> None:
    """Handshake, more than the buffers take, a whole response, the end."""
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificates.server, certificates.server_key)
    listener = socket.create_server(("127.0.0.1", 0))
    size = 8 << 20
    got = bytearray()
    go = threading.Event()

    def serve() -> None:
        plain, _ = listener.accept()
        with server_side.wrap_socket(plain, server_side=True) as sock:
            go.wait(PATIENCE)
            while len(got) < size:
                got.extend(sock.recv(1 << 16))
            sock.sendall(b"y" * 100_000)

    thread = threading.Thread(target=serve)
    thread.start()
    with listener:
        plain = socket.create_connection(listener.getsockname())
        sock = TlsSocket(plain, make_context(Tls(ca_file=str(certificates.authority)), "new.test"), "new.test")
        while not sock.handshake():
            select.select([sock.fileno()], [], [], 1)
        data = memoryview(b"x" * size)
        sent = blocked = 0
        while sent < size:
            try:
                sent += sock.send(data[sent : sent + 100_000])
            except BlockingIOError:
                blocked += 1
                go.set()
                select.select([], [sock.fileno()], [], 5)
        assert blocked and sent == size
        response = 0
        buffer = bytearray(1 << 16)
        while True:
            try:
                count = sock.recv_into(buffer, len(buffer), socket.MSG_TRUNC)
            except BlockingIOError:
                select.select([sock.fileno()], [], [], 5)
                continue
            if not count:
                break
            response += count
        assert response == 100_000
        with contextlib.suppress(OSError):  # the other side may be gone by now
            sock.shutdown(socket.SHUT_WR)
        sock.close()
        thread.join(PATIENCE)
    assert len(got) == size and not thread.is_alive()
