# SPDX-License-Identifier: Apache-2.0
"""A service whose operations share their paths (GraphQL, JSON-RPC, SOAP), and a client of it.

Of a version in which `broken` is broken that operation, and no other, answers wrongly.
"""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from lab.hosts import Host, until
from lab.servers import Server
from lab.shop import answers

NAMES: Final = ("getUser", "getOrder", "getPrice", "getStock", "search")


class Operations(Server):
    """Answers each operation with its name."""

    def __init__(self, host: Host, *, broken: str = "") -> None:
        super().__init__(host)
        process = self._process = host.popen([*_MAIN, "serve", broken], env=_ENV, stdout=subprocess.DEVNULL)
        until(lambda: process.poll() is not None or answers(host), "the service of operations")

    def _answers(self) -> bool:
        return answers(self._host)


def ask(client: Host, address: str, rounds: int) -> int:
    """Call for every operation of each protocol so many times; how many were answered."""
    done = client.run([*_MAIN, "ask", address, str(rounds)], env=_ENV)
    return int(done.stdout)


def requests(name: str) -> list[tuple[str, dict[str, str], bytes]]:
    """Of an operation in each protocol: path, fields, body."""
    query = f"query {name}($id: ID!) {{ value(id: $id) }}"
    long = {"query": f"{query} # {'x' * 6000}", "variables": {"id": 1}}
    call = {"jsonrpc": "2.0", "method": name, "params": [1], "id": 1}
    envelope = f'<s:Envelope xmlns:s="urn:s"><s:Body><{name}/></s:Body></s:Envelope>'
    kind = {"Content-Type": "application/json"}
    return [
        ("/graphql", kind, json.dumps({"query": query}).encode()),
        ("/graphql", kind, json.dumps(long).encode()),
        ("/rpc", kind, json.dumps(call).encode()),
        ("/soap", {"Content-Type": "text/xml", "SOAPAction": f'"urn:shop#{name}"'}, envelope.encode()),
    ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    broken = ""
    wbufsize = 1 << 16  # head and body at once: the client would acknowledge the first late, and the second wait for it

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        found = re.search(rf"\b(?:{'|'.join(NAMES)})\b", body)
        name = found[0] if found else ""
        value: Any = None if name == self.broken else f"of {name}"
        response = json.dumps({"data": {"value": value}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(response)))
        self.end_headers()
        self.wfile.write(response)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as it is called
        pass


def main() -> None:
    """Serve, or ask."""
    if sys.argv[1] == "serve":
        _Handler.broken = sys.argv[2]
        ThreadingHTTPServer(("", 80), _Handler).serve_forever()
    connection = http.client.HTTPConnection(sys.argv[2], timeout=300)
    answered = 0
    for _ in range(int(sys.argv[3])):
        for name in NAMES:
            for path, fields, body in requests(name):
                connection.request("POST", path, body, fields)
                response = connection.getresponse()
                answered += response.status == 200 and len(response.read()) > 0
    print(answered)


_MAIN: Final = (sys.executable, "-c", "from lab.operations import main; main()")
_ENV: Final = {"PYTHONPATH": str(Path(__file__).parent.parent)}
