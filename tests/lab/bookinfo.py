# SPDX-License-Identifier: Apache-2.0
"""Services of Istio's Bookinfo sample, each a process: reviews v1 without stars, v2 with those of ratings."""

from __future__ import annotations

import http.client
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

import msgspec

from lab.hosts import Host
from lab.servers import Server

MAIN: Final = "from lab.bookinfo import main; main()"


class Call(msgspec.Struct, frozen=True):
    """A request that a service answered."""

    path: str
    host: str


class Service(Server):
    """`name`: "reviews-v1", "reviews-v2" or "ratings"; v2 asks for the stars at `ratings`, HOST:PORT."""

    def __init__(self, host: Host, name: str, port: int, ratings: str = "") -> None:
        super().__init__(host)
        self._log = self._dir / "log"
        words = [sys.executable, "-c", MAIN, name, str(port), str(self._log), ratings]
        self._start(["env", f"PYTHONPATH={Path(__file__).parent.parent}", *words], "log")

    def _answers(self) -> bool:
        """It listens: its log is there from then on."""
        return self._log.exists()

    def calls(self) -> list[Call]:
        """What it answered, in that order."""
        return [msgspec.json.decode(line, type=Call) for line in self._log.read_bytes().splitlines()]


def main() -> None:
    """One service: name, port, log, where the ratings are."""
    name, port, path, ratings = sys.argv[1:5]
    ThreadingHTTPServer.request_queue_size = 128
    server = ThreadingHTTPServer(("", int(port)), BaseHTTPRequestHandler)
    with open(path, "a", buffering=1, encoding="utf-8") as log:

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                response = json.dumps(self.content()).encode()
                log.write(json.dumps({"path": self.path, "host": self.headers.get("Host", "")}) + "\n")
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(response)))
                self.end_headers()
                self.wfile.write(response)

            def content(self) -> dict[str, object]:
                if name == "ratings":
                    return {"id": 0, "ratings": {"Reviewer1": 5, "Reviewer2": 4}}
                stars: dict[str, object] = {}
                if ratings:
                    connection = http.client.HTTPConnection(ratings, timeout=300)
                    connection.request("GET", self.path.replace("/reviews/", "/ratings/"))
                    stars = json.load(connection.getresponse())["ratings"]
                    connection.close()
                texts = {"Reviewer1": "An extremely entertaining play", "Reviewer2": "Absolutely fun"}
                reviews = [{"reviewer": who, "text": text, "rating": stars.get(who)} for who, text in texts.items()]
                return {"id": 0, "podname": name, "reviews": reviews}

            def log_message(self, *_: object) -> None:
                """Our log is another one."""

        server.RequestHandlerClass = Handler
        server.serve_forever()
