# SPDX-License-Identifier: Apache-2.0
r"""A command line of GoReplay (gor, up to 1.3) as a tap.

Its meaning, from its sources (`settings.go`, `http_modifier.go`, `limiter.go`, `http_client.go`):

* Flags are Go's: `-name` and `--name`, a value as `--name=value` or the next word, and what follows the first word
  that is no flag is not looked at.
* Filters are tried on each request: the method is one of those allowed, an allowed expression is found in the target
  (path and query) and none that is not, each allowed header is there and its expression found in it.
* `|10%` behind an input or output takes each request with that probability, `|10` that many a second.
* A limiter hashes a header's or parameter's value; a request without it passes.
* Host becomes that of the output, unless `--http-original-host`.
* A path in the output's URL replaces that of each request.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

from tapmirror.spec.document import FileError, Problem
from tapmirror.spec.errors import shown
from tapmirror.spec.match import TOKEN
from tapmirror.spec.rewrite import FRAMING
from tapmirror.spec.shadow import MAX_POOL
from tapmirror.spec.translated import IFACE, UNNAMED, Translation, as_template, searched, whole_path

MAX_COMMAND: Final = 64 << 10
_LIMIT: Final = re.compile(r"([0-9]+)(%?)")
_GROUP: Final = re.compile(r"\$(?:(\$)|([0-9]+)(?![A-Za-z0-9_])|\{([0-9]+)\}|([A-Za-z0-9_]+|\{[^}]*\}))")
_DURATION: Final = re.compile(r"(?:[0-9.]+(?:h|m|s|ms|us|ns))+")
_UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}

_RENAMED: Final = {
    "output-http-header": "http-set-header",
    "output-http-method": "http-allow-method",
    "output-http-url-regexp": "http-allow-url",
    "output-http-rewrite-url": "http-rewrite-url",
    "output-http-header-filter": "http-allow-header",
    "output-http-header-hash-filter": "http-header-limiter",
}
"""Deprecated names."""
_SWITCH_WORDS: Final = """
    verbose debug stats split-output output-stdout output-null input-tcp-secure output-tcp-secure output-tcp-stats
    output-tcp-sticky input-file-loop output-file-append prettify-http input-raw-track-response
    input-raw-override-snaplen input-raw-immediate-mode input-raw-promisc input-raw-monitor input-raw-stats
    input-raw-allow-incomplete input-raw-ignore-interface input-raw-vlan output-http-compatibility-mode
    output-http-track-response output-http-stats output-http-debug output-http-skip-verify http-original-host
    output-kafka-json-format input-kafka-json-format recognize-tcp-sessions output-binary-debug
    output-binary-track-response
"""
_SWITCHES: Final = frozenset(_SWITCH_WORDS.split())
"""Flags that may stand without a value."""
_HARMLESS_WORDS: Final = """
    verbose debug stats http-pprof cpuprofile memprofile input-raw-engine input-raw-expire input-raw-timestamp-type
    copy-buffer-size input-raw-override-snaplen input-raw-immediate-mode input-raw-buffer-size input-raw-stats
    input-raw-track-response input-raw-allow-incomplete input-raw-bpf-filter-snaplen output-http-queue-len
    output-http-workers-min output-http-timeout output-http-response-buffer output-http-compatibility-mode
    output-http-stats output-http-stats-ms output-http-debug output-http-worker-timeout output-http-track-response
    output-binary-workers output-binary-timeout output-binary-track-response output-binary-debug output-null
    output-stdout recognize-tcp-sessions input-raw-vlan
"""
_HARMLESS: Final = frozenset(_HARMLESS_WORDS.split())
"""What concerns only how GoReplay itself works, or what it shows."""
_ELSEWHERE: Final = {
    "middleware": "is a program of its own: a `hook` is the nearest",
    "http-basic-auth-filter": "has no equivalent: more is mirrored than by gor",
    "http-rewrite-header": "has no equivalent: headers are set, added and removed, not rewritten",
    "output-http-redirects": "responses are not followed",
    "output-http-elasticsearch": "responses are counted, not exported",
    "output-file": "a tap does not write files",
    "output-tcp": "a tap sends to shadows, not to other gor processes",
    "input-raw-bpf-filter": "has no equivalent: what is tapped is said by iface, ports, addrs and clients",
    "output-kafka-host": "a tap sends to shadows only",
    "output-kafka-topic": "a tap sends to shadows only",
    "input-raw-vlan-vid": "all VLANs of the interface are taken",
    "input-raw-ignore-interface": "a tap is at one interface",
    "input-raw-monitor": "has no equivalent",
}

_PROGRAM: Final = re.compile(r"(?:.*/)?(?:gor|goreplay)(?::[\w.\-]+)?", re.DOTALL)
"""It, or an image that has it as its entry point."""


def from_gor(command: str, iface: str | None = None) -> Translation:
    """The tap that a command line describes.  Raises `FileError`."""
    if len(command) > MAX_COMMAND:
        raise FileError([Problem(0, "", f"longer than {MAX_COMMAND >> 10} KiB")])
    try:
        words = shlex.split(command.replace("\\\n", " "), comments=False)
    except ValueError as error:
        raise FileError([Problem(0, "", f"not a command line: {error}")]) from None
    program = next((i for i, word in enumerate(words) if _PROGRAM.fullmatch(word)), -1)
    words = words[program + 1 :]  # behind sudo and docker with flags of their own
    while words and not words[0].startswith("-"):
        del words[0]
    reader = _Reader(iface)
    reader.read(words)
    return reader.finish()


class _Reader:
    """The flags of one command line, one by one."""

    def __init__(self, iface: str | None) -> None:
        self._result = Translation([{}], [])
        self._found: list[Problem] = []
        self._iface = iface
        self._inputs: list[str] = []
        self._outputs: list[tuple[str, str]] = []
        self._raw = False
        self._promisc = False
        self._original_host = False
        self._verify = True
        self._split = False
        self._pooled = 0
        self._rewrite: dict[str, Any] = {}
        self._methods: list[str] = []
        self._urls: list[dict[str, Any]] = []
        self._never: list[dict[str, Any]] = []
        self._limiter: tuple[str, str, float] | None = None
        self._takers: dict[str, Callable[[str, str], None]] = {
            "input-raw": lambda _, value: self._inputs.append(value),
            "output-http": lambda flag, value: self._outputs.append((flag, value)),
            "output-binary": lambda flag, value: self._outputs.append((flag, value)),
            "http-allow-method": self._allow_method,
            "http-allow-url": lambda flag, value: self._search(flag, value, self._urls),
            "http-disallow-url": lambda flag, value: self._search(flag, value, self._never),
            "http-allow-header": self._header_filter,
            "http-disallow-header": self._header_filter,
            "http-header-limiter": self._limit_by,
            "http-param-limiter": self._limit_by,
            "http-set-header": self._set_header,
            "http-set-param": self._set_parameter,
            "http-rewrite-url": self._rewrite_url,
            "input-raw-realip-header": lambda _, value: self._put(value, "{client}"),
            "input-raw-protocol": self._protocol,
            "output-http-workers": self._workers,
            "exit-after": self._exit_after,
        }

    def read(self, words: list[str]) -> None:
        """Look at all flags."""
        while words:
            word = words.pop(0)
            if not word.startswith("-") or word in ("-", "--"):
                self._missing(word, "gor does not look at this and what follows it")
                return
            name, sign, value = word.removeprefix("-").removeprefix("-").partition("=")
            name = _RENAMED.get(name, name)
            if name in _SWITCHES:
                if name == "verbose" and not sign and words and words[0].isdecimal():
                    words.pop(0)  # from gor 1.1 on it takes a level
                self._switch(name, not sign or value.lower() in ("1", "t", "true"))
                continue
            if not sign:
                if not words:
                    self._wrong(name, "a value is missing")
                    return
                value = words.pop(0)
            if name in self._takers:
                self._takers[name](name, value)
            elif name not in _HARMLESS:
                self._missing(f"--{name}", _ELSEWHERE.get(name, "has no equivalent"))

    def _wrong(self, name: str, message: str) -> None:
        self._found.append(Problem(0, f"--{name}", message))

    def _missing(self, name: str, message: str) -> None:
        self._result.missing(0, name, message)

    # --- flags

    def _switch(self, name: str, on: bool) -> None:
        if name == "split-output":
            self._split = on
        elif name == "http-original-host":
            self._original_host = on
        elif name == "output-http-skip-verify":
            self._verify = not on
        elif name == "input-raw-promisc":
            self._promisc = on
        elif on and name not in _HARMLESS:
            self._missing(f"--{name}", _ELSEWHERE.get(name, "has no equivalent"))

    def _allow_method(self, name: str, value: str) -> None:
        if not TOKEN.fullmatch(value):
            self._wrong(name, f"{shown(value)} is not a method")
        self._methods.append(value)

    def _search(self, name: str, value: str, to: list[dict[str, Any]]) -> None:
        try:
            to.append({"target": searched(value)})
        except ValueError as error:
            self._wrong(name, str(error))

    def _header_filter(self, name: str, value: str) -> None:
        field, colon, expression = value.partition(":")
        if not colon or not TOKEN.fullmatch(field):
            self._wrong(name, f"{shown(value)} is not NAME:EXPRESSION")
            return
        try:
            text = searched(expression.strip())
        except ValueError as error:
            self._wrong(name, str(error))
            return
        if name == "http-allow-header":
            text["invert"] = True
        self._never.append({"headers": {field: text}})

    def _limit_by(self, name: str, value: str) -> None:
        key, colon, share = value.partition(":")
        number = share.strip().removesuffix("%")
        if not colon or not number.isdecimal() or int(number) > 100 or not share.strip().endswith("%"):
            self._wrong(name, f"{shown(value)} is not NAME:PERCENT%")
        elif not TOKEN.fullmatch(key):
            self._wrong(name, f"{shown(key)} cannot be a key")
        elif self._limiter is not None:
            self._missing(f"--{name} {value}", "only one limiter can be had: more is mirrored than by gor")
        else:
            kind = "header" if name == "http-header-limiter" else "query"
            self._limiter = (kind, key, float(number))

    def _set_header(self, name: str, value: str) -> None:
        field, colon, text = (part.strip() for part in value.partition(":"))
        if not colon or not TOKEN.fullmatch(field):
            self._wrong(name, f"{shown(value)} is not NAME: VALUE")
        elif field.lower() == "host":
            self._rewrite["host"] = text
        elif field.lower() in FRAMING:
            self._missing(f"--{name}", f"{field} frames the request and is left as it is")
        else:
            self._put(field, as_template(text))

    def _put(self, field: str, template: str) -> None:
        self._rewrite.setdefault("set_headers", {})[field] = template

    def _set_parameter(self, name: str, value: str) -> None:
        parameter, sign, text = (part.strip() for part in value.partition("="))
        if not sign or not parameter:
            self._wrong(name, f"{shown(value)} is not NAME=VALUE")
        else:
            self._rewrite.setdefault("set_query", {})[parameter] = text

    def _rewrite_url(self, name: str, value: str) -> None:
        source, colon, target = value.partition(":")
        if not colon:
            self._wrong(name, f"{shown(value)} is not EXPRESSION:TARGET")
            return
        if "path" in self._rewrite:
            self._missing(f"--{name} {value}", "only the first is taken: a shadow has one rewrite of the path")
            return
        lost: list[str] = []

        def group(found: re.Match[str]) -> str:
            if found[1]:
                return "$"
            number = found[2] or found[3]
            if number is None or int(number) > 9:
                lost.append(found[0])
                return ""
            return f"\\{number}"

        becomes = _GROUP.sub(group, target.replace("\\", "\\\\"))
        if lost:
            self._missing(f"--{name} {value}", f"{lost[0]}: only groups 1 to 9 can be put in; it is left out")
            return
        self._rewrite["path"] = {"regex": source, "with": becomes}
        if "?" in value or "&" in value:
            self._missing(f"--{name} {value}", "the path alone is rewritten, not the query")

    def _protocol(self, name: str, value: str) -> None:
        if value not in ("", "http", "binary"):
            self._wrong(name, f"{shown(value)} is not http or binary")
        self._raw = value == "binary"

    def _workers(self, name: str, value: str) -> None:
        if not value.isdecimal():
            self._wrong(name, f"{shown(value)} is not a number")
        elif int(value):
            self._pooled = min(int(value), MAX_POOL)

    def _exit_after(self, name: str, value: str) -> None:
        if not _DURATION.fullmatch(value):
            self._wrong(name, f"{shown(value)} is not a duration")
            return
        parts = re.findall(r"([0-9.]+)(h|ms|us|ns|m|s)", value)
        try:
            seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
        except ValueError:
            self._wrong(name, f"{shown(value)} is not a duration")
            return
        self._missing(f"--{name}", f"is not of the tap: tapmirror run --duration {seconds:g}")

    # --- what comes of them

    def finish(self) -> Translation:
        """The tap, checked."""
        (tap,) = self._result.taps
        self._where(tap)
        tap["protocol"] = "raw" if self._raw else "http"
        self._shares(tap)
        if self._promisc:
            tap["promisc"] = True
        shadows = [self._shadow(name, value) for name, value in self._outputs]
        if not shadows:
            self._wrong("output-http", "is missing: there is no shadow")
        for n, shadow in enumerate(shadows):
            same = sum(_end(other) == _end(shadow) for other in shadows[:n])
            if same:
                shadow["name"] = f"{_end(shadow)}-{same + 1}"
        tap["shadows"] = shadows
        if self._split and len(shadows) > 1:
            tap["spread"] = "round-robin"
        rules = self._rules()
        if rules:
            tap["rules"] = rules
        if self._found:
            raise FileError(self._found)
        self._result.check()
        return self._result

    def _where(self, tap: dict[str, Any]) -> None:
        """Interface, ports and addresses."""
        ports: list[int] = []
        addrs: list[str] = []
        for text in self._inputs:
            host, colon, port = text.partition("|")[0].rpartition(":")
            numbers = port.split(",")
            if not colon or not all(number.isdecimal() and 0 < int(number) < 65536 for number in numbers):
                self._wrong("input-raw", f"{shown(text)} is not [HOST]:PORT")
                continue
            ports += [int(number) for number in numbers if int(number) not in ports]
            host = host.removeprefix("[").removesuffix("]")
            try:
                if host and not ipaddress.ip_address(host).is_unspecified:
                    addrs.append(host)
            except ValueError:
                self._iface = self._iface or host
        if not self._inputs:
            self._wrong("input-raw", "is missing: a tap takes live traffic (for a file: tapmirror streams)")
        if self._iface is None:
            self._missing("iface", UNNAMED)
        tap |= {"iface": self._iface or IFACE, "ports": ports}
        if len(addrs) == len(self._inputs):
            tap["addrs"] = addrs
        elif addrs:
            self._missing(
                "--input-raw", f"one input is of all addresses, so the tap is, not of {', '.join(addrs)} alone"
            )

    def _shares(self, tap: dict[str, Any]) -> None:
        limits = {text.partition("|")[2] for text in self._inputs}
        if len(limits) > 1:
            self._missing("--input-raw", "the inputs have different limits; the tap has none")
        elif limits and limits != {""}:
            tap |= self._limit("input-raw", limits.pop())

    def _limit(self, name: str, text: str) -> dict[str, Any]:
        """What is behind the bar."""
        found = _LIMIT.fullmatch(text)
        if found is None or (found[2] and int(found[1]) > 100) or (not found[2] and not int(found[1])):
            self._wrong(name, f"{shown('|' + text)} is not |N or |N%")
            return {}
        return {"percent": int(found[1]), "by": "request"} if found[2] else {"max_requests": int(found[1])}

    def _shadow(self, name: str, value: str) -> dict[str, Any]:
        address, bar, limit = value.partition("|")
        try:
            url = urlsplit(address if "://" in address else f"http://{address}")
            host, port = url.hostname, url.port
        except ValueError:
            host = None
        if not host or url.scheme not in ("http", "https"):
            self._wrong(name, f"{shown(address)} is not an address")
            return {}
        secure = url.scheme == "https"
        shadow: dict[str, Any] = {"host": host, "port": port or (443 if secure else 80)}
        if bar:
            shadow |= self._limit(name, limit)
        if secure:
            shadow["tls"] = {} if self._verify else {"verify": False}
        if name == "output-binary" or self._raw:
            return shadow
        rewrite = dict(self._rewrite)
        if not self._original_host:
            if "host" in rewrite:
                self._missing("--http-set-header Host", "has no effect in gor without --http-original-host")
            rewrite["host"] = url.netloc.rpartition("@")[2]
        if url.path or url.query:
            rewrite["path"] = whole_path(url.path or "/")
            if url.query:
                self._missing(f"--{name}", "the query of the address is left out")
            self._missing(f"--{name}", "the request's own query is kept, where gor has that of the address")
        if rewrite:
            shadow["rewrite"] = rewrite
        if self._pooled:
            shadow["pooled"] = self._pooled
        return shadow

    def _rules(self) -> list[dict[str, Any]]:
        rules: list[dict[str, Any]] = []
        if self._never:
            rules.append({"name": "filtered", "match": self._never, "mirror": "none"})
        wanted = [{"methods": self._methods, **url} for url in self._urls or [{}]] if self._methods else self._urls
        if self._limiter is not None:
            kind, key, percent = self._limiter
            group = {"headers" if kind == "header" else "query": {key: {"regex": ".+"}}}
            with_key = [{**each, **group} for each in wanted or [{}]]
            rules.append(
                {"name": "limited", "match": with_key, "percent": percent, "by": "key", "key": f"{kind}:{key}"}
            )
        if wanted or rules:
            rules.append({"name": "mirrored", "match": wanted} if wanted else {"name": "mirrored"})
        if rules and self._raw:
            self._missing("filters", "need requests: a binary protocol has none; they are left out")
            return []
        return rules


def _end(shadow: dict[str, Any]) -> str:
    """Where a shadow is, as it is called without a name; of one that is not right, which has been told, nothing."""
    return f"{shadow.get('host')}:{shadow.get('port')}"
