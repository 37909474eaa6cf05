# SPDX-License-Identifier: Apache-2.0
"""A small service in variants, for comparison: what it answers and when differs by itself, and perhaps by a fault."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from lab.hosts import Host, until
from lab.servers import Server

CONFIG: Final = """
user root;
daemon off;
master_process off;
pid {dir}/nginx.pid;
error_log {dir}/error.log warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    default_type application/json;
    split_clients "$request_id" $order {{ 50% '["red","green","blue"]'; * '["blue","red","green"]'; }}
    split_clients "$uri" $broken {{ {broken} * 0; }}
    map $broken $total {{ 1 "null"; 0 "12.5"; }}
    server {{
        listen 80 backlog=16384;
        listen [::]:80 backlog=16384;
        add_header X-Request-Id $request_id;
        location /users/ {{
            return 200 '{{"user":{{"name":"Ann","age":31}},"trace":"$request_id","at":"$time_iso8601","took":$msec}}';
        }}
        location /orders/ {{ return 200 '{{"id":7,"colours":$order,"total":$total,"trace":"$request_id"}}'; }}
        location /page/ {{
            default_type text/html;
            return 200 '<html><body><h1>Shop</h1><p>Made at $msec, number $request_id</p></body></html>';
        }}
        location /reviews/ {{ return 200 '{{"id":"0","reviews":[{reviews}]}}'; }}
    }}
}}
"""
REVIEWS_V1: Final = '{"reviewer":"Reviewer1","text":"Good."},{"reviewer":"Reviewer2","text":"Bad."}'
REVIEWS_V2: Final = (
    '{"reviewer":"Reviewer1","text":"Good.","rating":{"stars":5,"color":"black"}},'
    '{"reviewer":"Reviewer2","text":"Bad.","rating":{"stars":4,"color":"black"}}'
)
"""Bookinfo's reviews v1 and v2: the second adds the ratings."""


class Shop(Server):
    """nginx; `/orders/` has no total where `broken` (as `1%`) of the paths are concerned."""

    def __init__(self, host: Host, *, broken: str = "", reviews: str = REVIEWS_V1) -> None:
        super().__init__(host)
        (self._dir / "nginx.conf").write_text(
            CONFIG.format(dir=self._dir, broken=f"{broken} 1;" if broken else "", reviews=reviews)
        )
        self._start(["nginx", "-p", f"{self._dir}", "-c", "nginx.conf", "-e", "error.log"], "error.log")

    def _answers(self) -> bool:
        return answers(self._host)


class SlowShop(Server):
    """Takes its time: 10 ms, of one request in 50 some 40, and `slower` times as long there."""

    def __init__(self, host: Host, *, slower: float = 1.0) -> None:
        super().__init__(host)
        words = [sys.executable, "-c", "from lab.shop import main; main()", str(slower)]
        process = self._process = host.popen(
            words, env={"PYTHONPATH": str(Path(__file__).parent.parent)}, stdout=subprocess.DEVNULL
        )
        until(lambda: process.poll() is not None or answers(host), "the slow shop")

    def _answers(self) -> bool:
        return answers(self._host)


def answers(host: Host) -> bool:
    """Whether something listens on port 80 of a host."""
    return host.run(["ss", "-Hltn", "sport = :80"], check=False).stdout != ""


def main() -> None:
    """Serve as `SlowShop`: the time is a function of the number that the path ends in."""
    import asyncio

    slower = float(sys.argv[1])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                number = int(head.split(b" ", 2)[1].rpartition(b"/")[2])
                rare = number % 50 == 0
                await asyncio.sleep(0.040 * slower + number % 7 * 0.0002 if rare else 0.010 + number % 11 * 0.0002)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, None, 80, backlog=1024)
        await server.serve_forever()

    asyncio.run(run())
