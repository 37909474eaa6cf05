# SPDX-License-Identifier: Apache-2.0
"""Random taps, as a file describes them: everything that decides on requests and changes them."""

from __future__ import annotations

import random
from typing import Any, Final

import yaml

from tapmirror.spec import TapSpec
from tapmirror.spec.document import FileError
from tapmirror.spec.reading import read_taps

SECRETS: Final = "S3CR3T[0-9]+X"
"""A pattern of `redact` that takes out what `random_clients` hides."""
_PATTERNS: Final = (*[SECRETS] * 5, "[0-9]{13,16}", "", "/.*", "a*", "[{}]", "(?i)HTTP", ".", "é*|日", "[^é]")
_VALUES: Final = ("x", "", "{client}:{client_port}", "{{{target}}}", "{host}|{time}", "{tap} {shadow} {connection}")


class RandomTap:
    """Makes taps of some seed's."""

    def __init__(self, rand: random.Random) -> None:
        self.rand = rand

    def tap(self) -> TapSpec:
        """One that is valid; it comes out of a file."""
        while True:
            text = yaml.safe_dump(self.data(), allow_unicode=True)
            try:
                (tap,) = read_taps(text.encode())
            except FileError:
                continue
            return tap

    def data(self) -> dict[str, Any]:
        """One that may be refused."""
        pick = self.rand.choice
        shadows = pick((1, 1, 2, 3))
        data: dict[str, Any] = {
            "iface": "eth0",
            "port": 80,
            "protocol": "http",
            "seed": self.rand.randrange(1 << 32),
            "shadows": [self._shadow(number) for number in range(shadows)],
            "limits": {
                "head_bytes": pick((500, 8000, 65536)),
                "heads_bytes": pick((2000, 1 << 20)),
                "held_bytes": pick((100, 3000, 1 << 20)),
                "queue_bytes": pick((4096, 1 << 20)),
            },
            **(self._share() if self._maybe(0.3) else {}),
        }
        if self._maybe(0.1):
            data["safe_methods"] = True
        if self._maybe(0.4):
            data["rules"] = [self._rule(shadows) for _ in range(self.rand.randint(1, 4))]
        if self._maybe(0.2):
            data["spread"] = "round-robin"
        if self._maybe(0.7):
            data["redact"] = self._redact()
        if self._maybe(0.3):
            data["hook"] = {"call": "a:b", "body": self._maybe(), "body_bytes": pick((10, 1000, 1 << 20))}
        return data

    def _maybe(self, chance: float = 0.5) -> bool:
        return self.rand.random() < chance

    def _share(self) -> dict[str, Any]:
        pick = self.rand.choice
        data: dict[str, Any] = {"by": pick(("connection", "request", "key", "exact"))}
        if data["by"] == "key":
            data["key"] = pick(("header:X-User", "cookie:id", "query:a", "jwt:sub", "client"))
        if self._maybe(0.6):
            data["percent"] = pick((0, 0.0001, 30, "50%", 99.9999))
        elif self._maybe():
            data["ramp"] = {"from": pick((0, 100)), "to": pick((10, 100)), "over": pick((1, 60))}
        if self._maybe(0.3):
            data["max_requests"] = pick((0.5, 3, 1000))
        if self._maybe(0.3):
            data["max_bytes"] = pick((1, 500, 1_000_000))
        return data

    def _text(self) -> dict[str, Any]:
        pick = self.rand.choice
        values = ("/", "/a", "b", "shop.test", "1", "é", "", "日", "\ud800")
        text: dict[str, Any] = {pick(("exact", "prefix", "suffix")): pick(values)}
        if self._maybe(0.4):
            text = {
                "regex": pick((".*", "/[a-z]+.*", "(?i)/A|b", "[^/]*", "é.*", "[日a-z]+|/?日.*", r"\d+", "(a|b)*c?"))
            }
        elif self._maybe(0.2):
            text = {"present": self._maybe()}
        return text | {name: True for name in ("ignore_case", "invert") if self._maybe(0.2)}

    def _match(self) -> dict[str, Any]:
        pick = self.rand.choice
        match: dict[str, Any] = {name: self._text() for name in ("path", "target", "host") if self._maybe(0.25)}
        names = {"headers": ("X-User", "accept", "Cookie"), "query": ("a", "password", "é"), "cookies": ("id", "b")}
        match |= {name: {pick(some): self._text()} for name, some in names.items() if self._maybe(0.2)}
        if self._maybe(0.2):
            match["methods"] = self.rand.sample(["GET", "POST", "HEAD", "OPTIONS", "CONNECT", "PUT"], 2)
        if self._maybe(0.1):
            match["clients"] = [pick(("10.0.0.0/8", "10.0.0.1", "::/0", "2001:db8::/32"))]
        if self._maybe(0.2):
            match["body"] = {"min": pick((0, 1, 10)), "max": pick((10, 1000))}
        return match

    def _matches(self) -> Any:
        return self._match() if self._maybe() else [self._match() for _ in range(self.rand.randint(1, 3))]

    def _rule(self, shadows: int) -> dict[str, Any]:
        pick = self.rand.choice
        rule: dict[str, Any] = {"match": self._matches()} if self._maybe(0.8) else {}
        if self._maybe(0.3):
            rule["mirror"] = pick(("all", "none", "s0", [{"shadow": f"s{shadows - 1}", **self._share()}]))
        if self._maybe(0.3):
            rule["body"] = {"max": pick((0, 5, 100, 5000)), "over": pick(("skip", "stream"))}
        return rule | (self._share() if self._maybe(0.2) else {})

    def _shadow(self, number: int) -> dict[str, Any]:
        pick = self.rand.choice
        shadow: dict[str, Any] = {"to": f"h{number}:80", "name": f"s{number}"}
        if self._maybe(0.2):
            shadow["match"] = self._matches()
        if self._maybe(0.2):
            shadow["copies"] = pick((2, 3))
        if self._maybe(0.2):
            shadow["pooled"] = pick((1, 2))
        if self._maybe():
            shadow["rewrite"] = self._rewrite()
        return shadow | (self._share() if self._maybe(0.2) else {})

    def _rewrite(self) -> dict[str, Any]:
        pick = self.rand.choice
        everything: dict[str, Any] = {
            "host": pick(("keep", "target", "shadow-suffix", "x.y:1", "[::1]")),
            "method": pick(("GET", "HEAD", "POST", "OPTIONS", "!")),
            "path": {
                pick(("prefix", "regex")): pick(("/", "/a", "/(a).*", "")),
                "with": pick(("", "/", "/n%20?x=1", "#", "*", r"/\\0", r"/\1")),
            },
            "set_query": {pick(("a", "p q", "é")): pick(("", "1&2", "é", "\ud800"))},
            "remove_query": [pick(("a", "password", "p q"))],
            "set_headers": {pick(("X-User", "Accept", "Cookie")): pick(_VALUES)},
            "add_headers": {pick(("X-User", "X-New", "Cookie")): pick(_VALUES)},
            "remove_headers": [pick(("X-User", "accept", "Cookie"))],
            "marker": "X-Copy",
            "x_forwarded_for": True,
        }
        return {name: value for name, value in everything.items() if self._maybe(0.3)}

    def _action(self) -> str:
        return self.rand.choice(("remove", "hash", "replace:", "replace:0", 'replace:a&b=c ;d"\\{'))

    def _redact(self) -> dict[str, Any]:
        pick = self.rand.choice
        data: dict[str, Any] = {"privacy": "strict"} if self._maybe(0.6) else {}
        if self._maybe(0.4):
            data["headers"] = {pick(("X-Customer", "X-User", "cookie", "Authorization")): self._action()}
        if self._maybe(0.4):
            data["query"] = {pick(("uid", " Uid", "a")): self._action()}
        if self._maybe(0.4):
            paths = ["user.email", "**.uid", "a.*.b", "**.list[]", "[].uid", "*", "**.a.**.b", "a[][]"]
            data["json"] = {path: self._action() for path in self.rand.sample(paths, 2)}
        if self._maybe(0.3):
            data["patterns"] = {pick(_PATTERNS): pick(("", "CARD", "X?"))}
        if self._maybe(0.3):
            data["body_bytes"] = pick((10, 1000))
        return data
