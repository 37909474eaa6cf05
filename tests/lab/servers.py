# SPDX-License-Identifier: Apache-2.0
"""Real servers: nginx and Redis, in the foreground, with all they write in a directory of their own."""

from __future__ import annotations

import abc
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from lab.hosts import NOFILE_MOST, PATIENCE, Host, LabError, prefix, until
from lab.snapshot import tree

CONFIG: Final = """
user root;
daemon off;
master_process off;
pid {dir}/nginx.pid;
error_log {dir}/error.log warn;
events {{ worker_connections {files}; }}
http {{
    log_format exact escape=json '{{"method":"$request_method","uri":"$request_uri","status":$status,'
                                 '"length":$request_length,"host":"$http_host","connection":$connection}}';
    access_log {log};
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    client_max_body_size 0;
    keepalive_requests {each};
    keepalive_timeout 1h;
    default_type text/plain;
    types {{ application/json json; }}
    {upstream}
    server {{
{listen}
{tls}
        limit_rate {rate};
        location / {{ {response} }}
        location /file {{ alias {dir}/files/; }}
    }}
    server {{
        listen unix:{dir}/status.sock;
        access_log off;
        location / {{ stub_status; }}
    }}
}}
"""


class Logged(msgspec.Struct, frozen=True):
    """One line of nginx's access log: a request that nginx is done with."""

    method: str
    uri: str
    status: int
    length: int
    """Bytes of the request, head and body."""
    host: str
    connection: int


class Server(abc.ABC):
    """A process with a directory; `stop` ends it and removes that."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._dir = Path(tempfile.mkdtemp(prefix=prefix()))
        self._process: subprocess.Popen[bytes] | None = None
        host.at_close(self.stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of its only process."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        """End it; what was established is closed or reset by the kernel."""
        if self._process is not None:
            self._host.stop(self._process)
        shutil.rmtree(self._dir, ignore_errors=True)

    def _start(self, command: Sequence[str], log: str) -> None:
        """Run it in the foreground, with all descriptors it may have, until it answers."""
        process = self._process = self._host.popen(
            command, nofile=NOFILE_MOST, start_new_session=True, stdout=subprocess.DEVNULL
        )

        def ready() -> bool:
            if process.poll() is not None:
                raise LabError(f"it ended with status {process.returncode}")
            return self._answers()

        try:
            until(ready, f"{command[0]} on {self._host.name}")
        except LabError as error:
            path = self._dir / log
            raise LabError(f"{error}; {path.read_text(errors='replace').strip() if path.exists() else ''}") from None

    def processes(self) -> dict[int, str]:
        """Its processes, by pid, with their command lines."""
        assert self._process is not None
        return tree(self._process.pid)

    @abc.abstractmethod
    def _answers(self) -> bool:
        """Whether it is ready."""


class Certificates:
    """An authority, a server's certificate for a name and a client's, in a directory."""

    def __init__(self, path: Path, name: str) -> None:
        self.authority = path / "ca.pem"
        self.server, self.server_key = path / "server.pem", path / "server.key"
        self.client = path / "client.pem"
        """With its key."""
        new = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ]
        sign = ["-CA", f"{self.authority}", "-CAkey", f"{path}/ca.key", "-addext", "basicConstraints=critical,CA:FALSE"]
        for words in (
            ["-subj", "/CN=authority", "-keyout", f"{path}/ca.key", "-out", f"{self.authority}"],
            [
                *(*sign, "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"),
                *("-keyout", f"{self.server_key}", "-out", f"{self.server}"),
            ],
            [*sign, "-subj", "/CN=client", "-keyout", f"{path}/client.key", "-out", f"{path}/client.crt"],
        ):
            subprocess.run([*new, *words], check=True, capture_output=True)
        self.client.write_bytes((path / "client.crt").read_bytes() + (path / "client.key").read_bytes())

    def nginx(self, clients: bool) -> str:
        """What a server's configuration says."""
        lines = [f"ssl_certificate {self.server};", f"ssl_certificate_key {self.server_key};"]
        if clients:
            lines += [f"ssl_client_certificate {self.authority};", "ssl_verify_client on;"]
        return "\n".join(lines)


class Nginx(Server):
    """nginx on a host: / answers 200 at once, /file/1k, /file/1m and /file/2k.json are files; its counter
    is outside the network.

    `passes_to`: it is a proxy, to that address and port, where it `keeps` its connections or has one for each request.
    Of each response the first `rate` bytes go at once, and so many each second; 0: all.  It closes a connection behind
    `each` requests.
    `logged` needs `log=True`, which costs nginx some microseconds a request.  With `tls` it speaks TLS, and
    asks for the clients' certificates if that says so.  Clients whose User-Agent it `dismisses` get no response (444).
    """

    def __init__(
        self,
        host: Host,
        ports: int | Sequence[int] = 80,
        *,
        log: bool = False,
        text: str = "ok",
        tls: Certificates | None = None,
        clients: bool = False,
        rate: int = 0,
        each: int = 1_000_000_000,
        passes_to: str = "",
        keeps: bool = True,
        dismisses: str = "",
    ) -> None:
        super().__init__(host)
        self._asked = 0
        response = f'return 200 "{text}\\n";'
        if passes_to:
            kept = 'proxy_http_version 1.1; proxy_set_header Connection "";' if keeps else ""
            response = f"proxy_pass http://next; {kept}"
        if dismisses:
            response = f'if ($http_user_agent = "{dismisses}") {{ return 444; }} {response}'
        files = self._dir / "files"
        files.mkdir()
        (files / "1k").write_bytes(b"x" * 1024)
        (files / "1m").write_bytes(b"x" * (1 << 20))
        items = [{"id": n, "name": f"item number {n}", "price": n * 1.25, "tags": ["a", "b"]} for n in range(28)]
        (files / "2k.json").write_bytes(msgspec.json.encode({"items": items}))
        config = CONFIG.format(
            dir=self._dir,
            files=NOFILE_MOST - 100,
            log=f"{self._dir}/access.log exact" if log else "off",
            listen="\n".join(
                f"        listen {end}{port}{' ssl' if tls is not None else ''} backlog=16384;"
                for port in ((ports,) if isinstance(ports, int) else ports)
                for end in ("", "[::]:")
            ),
            response=response,
            upstream=f"upstream next {{ server {passes_to}; keepalive 16; }}" if passes_to else "",
            rate=rate,
            each=each,
            tls=tls.nginx(clients) if tls is not None else "",
        )
        (self._dir / "nginx.conf").write_text(config)
        self._start(["nginx", "-p", f"{self._dir}", "-c", "nginx.conf", "-e", "error.log"], "error.log")

    def _answers(self) -> bool:
        try:
            self.requests()
        except OSError:
            return False
        return True

    def requests(self) -> int:
        """How many requests it read since its start, whatever became of them."""
        with socket.socket(socket.AF_UNIX) as status:
            status.connect(str(self._dir / "status.sock"))
            status.sendall(b"GET / HTTP/1.0\r\n\r\n")
            response = b"".join(iter(lambda: status.recv(4096), b""))
        self._asked += 1
        found = re.search(rb"requests\n\s*\d+ \d+ (\d+)", response)
        if found is None:
            raise LabError(f"nginx gave no status: {response!r}")
        return int(found[1]) - self._asked

    def wait_for(self, count: int, seconds: float = PATIENCE) -> int:
        """Wait until it read `count` requests; the count as it is then."""
        until(lambda: self.requests() >= count, f"{count} requests at {self._host.name}", seconds)
        return self.requests()

    def logged(self) -> list[Logged]:
        """The access log."""
        with open(self._dir / "access.log", "rb") as log:
            return [msgspec.json.decode(line, type=Logged) for line in log]

    def errors(self) -> str:
        """The error log."""
        path = self._dir / "error.log"
        return path.read_text(errors="replace") if path.exists() else ""


class Redis(Server):
    """Redis on a host, without persistence."""

    def __init__(self, host: Host, port: int = 6379) -> None:
        super().__init__(host)
        self._socket = str(self._dir / "redis.sock")
        options = {
            "port": port,
            "bind": "* -::*",
            "protected-mode": "no",
            "save": '""',
            "appendonly": "no",
            "enable-debug-command": "yes",
            "unixsocket": self._socket,
            "dir": self._dir,
            "logfile": self._dir / "log",
        }
        (self._dir / "redis.conf").write_text("".join(f"{name} {value}\n" for name, value in options.items()))
        self._start(["redis-server", str(self._dir / "redis.conf")], "log")

    def _answers(self) -> bool:
        return (
            Path(self._socket).exists()
            and self._host.run(["redis-cli", "-s", self._socket, "ping"], check=False).stdout == "PONG\n"
        )

    def command(self, *words: str) -> str:
        """The response to a command, asked outside the network."""
        return self._host.run(["redis-cli", "-s", self._socket, *words]).stdout.strip()

    def digest(self) -> str:
        """A hash of the whole data set: equal data sets have equal ones."""
        return self.command("debug", "digest")

    def keys(self) -> int:
        """How many keys it holds."""
        return int(self.command("dbsize"))


def resp(*words: object) -> bytes:
    """A command in Redis' own protocol, for `redis-cli --pipe` or a socket."""
    coded = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(coded) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in coded)


def redis_pipe(host: Host, address: str, commands: Sequence[Sequence[object]], port: int = 6379) -> int:
    """Send commands pipelined by redis-cli from a host; how many were answered without an error."""
    data = b"".join(resp(*words) for words in commands)
    with tempfile.TemporaryFile() as pipe:
        pipe.write(data)
        pipe.seek(0)
        done = host.run(["redis-cli", "-h", address, "-p", str(port), "--pipe"], stdin=pipe)
    found = re.search(r"errors: (\d+), replies: (\d+)", done.stdout)
    if found is None:
        raise LabError(f"redis-cli said: {done.stdout}{done.stderr}")
    return int(found[2]) - int(found[1])
