# SPDX-License-Identifier: Apache-2.0
"""Random requests, valid ones, with secrets in places that are redacted and in others."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote

from random_taps import SECRETS
from tapmirror.policy.redact import STRICT_HEADERS, STRICT_NAMES
from tapmirror.spec import Redact

FORM: Final = b"application/x-www-form-urlencoded"
_HEADERS: Final = sorted(STRICT_HEADERS)
_NAMES: Final = sorted(name for name in STRICT_NAMES if name != "code")  # an error's stays
_WORDS: Final = ("a", "b", "page", "Items", "x-y", "caf\xe9", "q;r", "", "1")
_METHODS: Final = {"GET": 6, "POST": 6, "PUT": 2, "HEAD": 1, "OPTIONS": 1, "CONNECT": 1, "DELETE": 1}
_FIELDS: Final = (
    b"Accept: */*",
    b"accept:",
    b"Cookie: id=1; id=2;; =; b",
    b"Cookie: a",
    b"X-User: 1",
    b"x-user: caf\xc3\xa9",
    b"X-Forwarded-For: 1.2.3.4",
    b"Trailer: X-Sum",
    b"TE: trailers",
    b"Expect: 100-continue",
    b"Keep-Alive: 5",
    b"Tapmirror-Loop: 0",
    b"Proxy-Connection: close",
)


class Asked:
    """A request."""

    def __init__(self, data: bytes, secrets: Sequence[bytes], *, tunnel: bool, last: bool) -> None:
        self.data = data
        self.secrets = secrets
        """What must not leave of it."""
        self.tunnel = tunnel
        self.last = last
        """Its server reads no other on the connection."""


class RandomRequests:
    """Makes requests.  `redact` is what their tap takes out; what that covers is told with each."""

    def __init__(self, rand: random.Random, redact: Redact | None) -> None:
        self.rand = rand
        self._redact = redact if redact is not None else Redact()
        self._any = redact is not None
        self._strict = self._redact.privacy == "strict"
        self._patterned = SECRETS in self._redact.patterns
        self._count = 0
        self.secrets: list[bytes] = []
        """Those since it was last emptied that are in places that are redacted."""
        self._longest = 5000 if rand.random() < 0.1 else 100

    def request(self) -> Asked:
        """The next one."""
        rand, pick = self.rand, self.rand.choice
        self.secrets = []
        (method,) = rand.choices(list(_METHODS), list(_METHODS.values()))
        version = pick(("1.0", *["1.1"] * 9))
        fields = [self._field() for _ in range(pick((0, 1, 3, 8)))]
        if version == "1.1" or rand.random() < 0.7:
            fields.append(b"Host: " + pick((b"shop.test", b"", b"[::1]:8", b"caf\xc3\xa9")))
        tunnel, last = method == "CONNECT", version == "1.0"
        chance = rand.random()
        if chance < 0.1:
            fields.append(b"connectioN: " + pick((b"close", b"x, CLOSE")))
            last = True
        elif chance < 0.2:
            fields.append(b"Connection: keep-alive")
            last = False
        elif chance < 0.25 and version == "1.1":
            fields += [b"Connection: x, Upgrade", b"Upgrade: websocket"]
            tunnel = True
        body = b""
        if method != "CONNECT" and rand.random() < (0.8 if method in ("POST", "PUT") else 0.1):
            framing, body = self._body(chunks=version == "1.1")
            fields += framing
        rand.shuffle(fields)
        lines = [b"%b %b HTTP/%b" % (method.encode(), self._target(method), version.encode()), *fields, b"", b""]
        return Asked(b"\r\n".join(lines) + body, self.secrets, tunnel=tunnel, last=last)

    def secret(self, covered: bool) -> bytes:
        """One more; `covered`: it is in a place that is redacted."""
        self._count += 1
        found = b"S3CR3T%06dX" % self._count
        if covered or self._patterned:
            self.secrets.append(found)
        return found

    def _case(self, text: str) -> str:
        return "".join(self.rand.choice((c.upper(), c.lower(), c)) if c.isascii() else c for c in text)

    # --- heads

    def _target(self, method: str) -> bytes:
        rand, pick = self.rand, self.rand.choice
        if method == "CONNECT":
            return pick((b"a:443", b"[::1]:1", b"a"))
        if method == "OPTIONS" and rand.random() < 0.5:
            return b"*"
        path = "/" + "/".join(pick(("a", "b", "", "c%20d", "\xe9", "1", ".")) for _ in range(rand.randint(0, 3)))
        out = path.encode()
        if rand.random() < 0.2:
            out += b";" + self._case("jsessionid").encode() + b"=" + self.secret(self._strict)
        if rand.random() < 0.25:
            user = b"u:" + self.secret(self._strict) + b"@" if rand.random() < 0.5 else b""
            out = pick((b"http://", b"HTTP://")) + user + b"shop.test" + out
        if rand.random() < 0.5:
            out += b"?" + self.pairs()
        return out

    def _field(self) -> bytes:
        rand, pick = self.rand, self.rand.choice
        kind = rand.random()
        if kind < 0.3:
            name = pick((pick(_HEADERS), "x-customer", "x-user"))
            covered = (self._strict and name in _HEADERS) or name in map(str.lower, self._redact.headers)
            value = pick((b"%b", b"Bearer %b", b"id=%b; b=1", b"\t%b ", b"a.%b.c")) % self.secret(covered)
            return self._case(name).encode() + b":" + pick((b"", b" ", b" \t")) + value
        if kind < 0.4:
            long = b"9" * self._longest
            claims = pick(
                (b'{"sub":"x"}', b"{", b'{"sub":%b}' % long, b'{"sub":1e999}', b"[" * 999, b'{"sub":"\\ud800"}')
            )
            return b"Authorization: Bearer a." + base64.urlsafe_b64encode(claims).rstrip(b"=") + b".c"
        return pick((*_FIELDS, b"X: " + b"y" * pick((1, 300, self._longest))))

    def pairs(self) -> bytes:
        """A query or a form."""
        text = b""
        for _ in range(self.rand.choice((1, 2, 5))):
            name, covered = self._parameter()
            value = self.secret(covered)
            if self.rand.random() < 0.3:
                value = self.rand.choice((b"%b;x", b"a;%b", b"a+%b", b"%%2%b", b"%b%%26b", b"%b=")) % value
            text += (self.rand.choice((b"&", b"&", b"&&", b";")) if text else b"") + name + b"=" + value
        return text

    def _parameter(self) -> tuple[bytes, bool]:
        """A parameter's name, and whether its value is redacted."""
        rand, pick = self.rand, self.rand.choice
        kind = rand.random()
        if kind < 0.5:
            name, covered = self._case(pick(_NAMES)), self._strict
            if rand.random() < 0.3:
                name = pick(("user[%s]", "a.%s", "%s[]", "[%s]", "a[b][%s].c")) % name
            if rand.random() < 0.2:
                name = pick((" %s", "%s ", "\t%s")) % name
        elif kind < 0.7:
            name, covered = self._case("uid"), "uid" in (each.strip().lower() for each in self._redact.query)
        else:
            return quote(pick(_WORDS)).encode(), False
        plain = set(b"_-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
        bare = (byte in plain and rand.random() < 0.9 for byte in name.encode())
        out = b"".join(
            b"%c" % byte if kept else b"%%%02X" % byte for byte, kept in zip(name.encode(), bare, strict=True)
        )
        return out.replace(b"%20", pick((b"%20", b"+"))), covered

    # --- bodies

    def _body(self, *, chunks: bool) -> tuple[list[bytes], bytes]:
        """The fields that tell of a body, and the body."""
        rand, pick = self.rand, self.rand.choice
        body, types = pick((self._json, self._json, self._form, self._text, self._parts))()
        said = pick(types)
        fields = [] if said is None else [b"content-Type: " + said]
        if rand.random() < 0.05:
            fields.append(b"Content-Encoding: " + pick((b"gzip", b"identity", b"IDENTITY", b"br, gzip")))
        if chunks and rand.random() < 0.4:
            return [*fields, b"transfer-Encoding: Chunked"], self._chunked(body)
        return [*fields, b"Content-Length: " + pick((b"", b"0")) + b"%d" % len(body)], body

    def _chunked(self, body: bytes) -> bytes:
        pick = self.rand.choice
        out = b""
        while body:
            size = pick((1, 2, 10, 1000, len(body)))
            piece, body = body[:size], body[size:]
            out += pick((b"%x", b"%X", b"00%x", b"%x;a=b", b'%x;a="b;"', b"%x ;a")) % len(piece)
            out += b"\r\n" + piece + b"\r\n"
        trailer = b"X-Sum: " + self.secret(self._any) + b"\r\n" if self.rand.random() < 0.3 else b""
        return out + b"0\r\n" + trailer + b"\r\n"

    def _json(self) -> tuple[bytes, list[bytes | None]]:
        rand, pick = self.rand, self.rand.choice
        text = json.dumps(self.value(0, False), ensure_ascii=rand.random() < 0.5, indent=pick((None, None, 1)))
        data = text.encode()
        if rand.random() < 0.2:
            data = data.replace(b'"p', b'"\\u0070')
        data = pick((b"", b"", b" ", b"\n\n")) + pick((b"", b"", b"", b"\xef\xbb\xbf")) + data
        types = [b"application/json", b"APPLICATION/json;charset=utf-8", b"application/x+json"]
        return data, [*types, None, b"text/plain", FORM, b"\xff"]

    def value(self, depth: int, covered: bool) -> Any:
        """A value of JSON; `covered`: it is within a member that is redacted."""
        rand, pick = self.rand, self.rand.choice
        kind = rand.random()
        if not depth or (depth < 4 and kind < 0.4):
            out = {}
            for _ in range(rand.randint(1, 4)):
                name = pick((pick(_NAMES), "uid", "a", "b", "user", "error", "list", "\xe9"))
                taken = (self._strict and name in _NAMES) or (name == "uid" and "**.uid" in self._redact.json)
                out[self._case(name)] = self.value(depth + 1, covered or taken)
            return out
        if depth < 4 and kind < 0.5:
            return [self.value(depth + 1, covered) for _ in range(rand.randint(0, 3))]
        if kind < 0.6:
            return pick((None, True, 1, 1.5, -0.0, 10**17, 10**25, "", "\xe9", "\U0001f600", 1e300))
        return self.secret(covered).decode()

    def _form(self) -> tuple[bytes, list[bytes | None]]:
        return self.pairs(), [FORM, FORM.upper() + b" ; charset=utf-8", b'"' + FORM + b'"']

    def _text(self) -> tuple[bytes, list[bytes | None]]:
        text = self.rand.choice((b"hello %b", b"<a>%b</a>", b"%b", b"\xff\xfe%b")) % self.secret(self._strict)
        return text, [b"text/plain", None, b"text/xml", b"", b"application/octet-stream"]

    def _parts(self) -> tuple[bytes, list[bytes | None]]:
        part = b'--b\r\nContent-Disposition: form-data; name="password"\r\n\r\n%b\r\n--b--\r\n'
        return part % self.secret(self._strict), [b"multipart/form-data; boundary=b", b"multipart/mixed"]
