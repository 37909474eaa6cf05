# SPDX-License-Identifier: Apache-2.0
"""A configuration of nginx that mirrors (ngx_http_mirror_module) as taps.

Its meaning, from nginx's documentation and sources:

* `mirror URI` makes a subrequest to a location for each request; it is inherited where a level has none of its own.
  The same one twice sends each request twice.
* The subrequest's URI is that of `mirror`, its arguments are the request's; `$request_uri` is the request's own target.
  So `proxy_pass http://b` sends every copy to the mirror's path, and `proxy_pass http://b$request_uri` to its own.
* The location may turn subrequests away: `if ($x = "") { return 204; }`, mostly by a variable of `split_clients`.
* `split_clients` hashes a text; the bands lie one behind the other and do not overlap.
* Without `proxy_set_header` Host is that of `proxy_pass`; the fields are inherited where a level has none of its own.
* A location is chosen in this order: exact; the longest prefix if it is `^~`; the first expression; the longest prefix.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any, Final, TypeAlias

import msgspec

from tapmirror.spec.document import FileError, Problem
from tapmirror.spec.errors import shown
from tapmirror.spec.match import TOKEN
from tapmirror.spec.nginx_files import read
from tapmirror.spec.nginx_server import Scope, Server, inherited, one
from tapmirror.spec.nginx_syntax import Directive
from tapmirror.spec.nginx_values import (
    EVERY_REQUEST,
    VARIABLE,
    Text,
    host_port,
    passing,
    share_by,
    template,
    turned_away,
)
from tapmirror.spec.rewrite import FRAMING, KEEP
from tapmirror.spec.shadow import MAX_COPIES
from tapmirror.spec.tap import MAX_SHADOWS
from tapmirror.spec.translated import IFACE, UNNAMED, Translation, whole_path

Shadows: TypeAlias = dict[tuple[int, str], list[dict[str, Any]]]
"""The shadows of each mirror, by its server's line and its URI.  `_of` marks the servers of one upstream."""

_LUA: Final = re.compile(r"(server_rewrite|rewrite|access|set|balancer)_by_lua(_block|_file)?")
"""Lua that changes a request, turns it away or chooses where it goes to (ngx_http_lua_module), before or as it is
mirrored: `mirror` comes behind access, and before content."""
_PASS: Final = re.compile(
    r"(https?)://(\$\{\w+\}|\$\w+|\[[0-9A-Fa-f:.]+\]|[^/$:\s]+)(?::(\d{1,5}))?([/$].*)?", re.DOTALL
)
_TIME: Final = re.compile(r"(\d+)(ms|s|m|h)?")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}
_SILENT_WORDS: Final = """
    internal proxy_pass proxy_set_header if return access_log error_log log_not_found proxy_http_version
    proxy_read_timeout proxy_send_timeout proxy_connect_timeout proxy_buffering proxy_request_buffering
    proxy_buffers proxy_buffer_size proxy_busy_buffers_size proxy_ssl_verify proxy_ssl_name proxy_ssl_server_name
    proxy_ssl_trusted_certificate proxy_ssl_certificate proxy_ssl_certificate_key proxy_ssl_session_reuse
    proxy_ssl_protocols proxy_ssl_ciphers proxy_ssl_verify_depth proxy_redirect proxy_next_upstream
    proxy_ignore_client_abort proxy_socket_keepalive proxy_method client_max_body_size client_body_buffer_size
    resolver resolver_timeout keepalive_timeout mirror mirror_request_body proxy_intercept_errors
    proxy_ignore_headers proxy_cache proxy_hide_header include proxy_headers_hash_max_size
    proxy_headers_hash_bucket_size proxy_pass_request_body
"""
_SILENT: Final = frozenset(_SILENT_WORDS.split())
"""What is looked at, or concerns only how nginx itself works, in a location that mirrors go to."""


class Split(msgspec.Struct, frozen=True):
    """One `split_clients`."""

    share: dict[str, str]
    """`by` and `key` of the share that the split stands for."""
    bands: list[tuple[float, str]]
    """Bands of the split: (percent, value)."""

    def percent(self, values: Collection[str]) -> float:
        """Percent of the requests that have one of these values."""
        return round(sum(percent for percent, value in self.bands if value in values), 4)


class Conditions(msgspec.Struct):
    """What a subrequest must be so that a location does not turn it away."""

    split: str | None = None
    """The variable of `split_clients` that the location looks at."""
    values: set[str] = set()
    """Values of that variable that are let through."""
    match: dict[str, Any] = {}
    """Conditions on the request itself."""


def from_nginx(data: bytes, iface: str | None = None) -> Translation:
    """The taps that do what a configuration mirrors.  Raises `FileError`."""
    return _Reader(read(data), iface).translated()


class _Reader:
    """One file."""

    def __init__(self, top: Directive, iface: str | None) -> None:
        self._result = Translation([], [])
        self._iface = iface
        self._http = top.last("http") or top
        self._scope: Scope = (top,) if self._http is top else (top, self._http)
        self._unread(top)
        self._upstreams = {each.args[0]: each for each in self._http.all("upstream") if each.args}
        self._splits: dict[str, Split] = {}
        for each in self._http.all("split_clients"):
            self._read_split(each)

    def translated(self) -> Translation:
        """All taps, checked."""
        servers = self._http.all("server")
        if not servers and (self._http.all("location") or self._http.all("mirror")):
            servers = [Directive("server", [], 0, self._http.block)]
        for group in self._groups([Server(each, self._scope, self.missing) for each in servers]):
            if any(server.mirrors() for server in group):
                self._tap(group)
        if not self._result.taps:
            raise FileError([*self._result.left_out, Problem(0, "mirror", "nothing in it mirrors anything")])
        if self._iface is None:
            self.missing(0, "iface", UNNAMED)
        names = [tap["name"] for tap in self._result.taps]
        for i, tap in enumerate(self._result.taps):
            if names.count(names[i]) > 1:
                tap["name"] = f"{names[i]}-{i + 1}"
        self._result.check()
        self._result.left_out = list(dict.fromkeys(self._result.left_out))
        self._result.left_out.sort(key=lambda problem: problem.line)
        return self._result

    def missing(self, line: int, path: str, message: str) -> None:
        """Note something that has no equivalent."""
        self._result.missing(line, path, message)

    def _unread(self, block: Directive) -> None:
        """Report what is not looked at: files that are included, Lua, and mirrors where nginx itself takes none."""
        for each in block.block or ():
            if each.name == "include" and not re.search(r"mime\.types$|_params$|modules-enabled", " ".join(each.args)):
                self.missing(each.line, "include", f"{shown(' '.join(each.args))} is not read (nginx -T prints it all)")
            if _LUA.fullmatch(each.name):
                self.missing(each.line, each.name, "Lua is not looked into: what it does to requests is not done here")
            if each.name == "mirror" and block.name == "if":
                self.missing(each.line, "mirror", "is within if, where nginx takes none: not mirrored by it")
            self._unread(each)

    # --- split_clients

    def _read_split(self, split: Directive) -> None:
        if len(split.args) != 2 or not split.args[1].startswith("$"):
            raise FileError([Problem(split.line, split.name, "is not split_clients TEXT $VARIABLE")])
        bands: list[tuple[float, str]] = []
        rest = 100.0
        for band in split.block or ():
            value = band.args[0] if band.args else ""
            number = band.name.removesuffix("%")
            if band.name == "*":
                bands.append((rest, value))
                continue
            if not re.fullmatch(r"\d{1,3}(\.\d{1,2})?%", band.name) or len(band.args) != 1:
                raise FileError([Problem(band.line, split.name, f"{shown(band.name)} is not PERCENT% VALUE")])
            bands.append((float(number), value))
            rest = round(rest - float(number), 2)
        if rest < 0:
            raise FileError([Problem(split.line, split.name, "more than 100 percent")])
        self._splits[split.args[1].strip("${}")] = Split(self._share(split), bands)

    def _share(self, split: Directive) -> dict[str, str]:
        """What `split_clients` splits by, as `by` and `key` of a share."""
        names = [found[1] or found[2] for found in VARIABLE.finditer(split.args[0])]
        if any(name in EVERY_REQUEST for name in names):
            return {"by": "request"}
        known = [(name, share) for name in names if (share := share_by(name)) is not None]
        if not known:
            self.missing(split.line, split.name, f"splits by {split.args[0]}; here each request is decided by itself")
            return {"by": "request"}
        name, share = known[0]
        if len(names) > 1:
            self.missing(split.line, split.name, f"splits by {split.args[0]}; here by ${name} alone")
        if share.get("key", "client") != "client":
            said = "requests without it are all of one band in nginx; here they are split by the client's address"
            self.missing(split.line, split.name, f"${name}: {said}")
        return share

    # --- taps

    def _groups(self, servers: list[Server]) -> list[list[Server]]:
        """Servers that share a port, directly or not."""
        groups: list[list[Server]] = []
        for server in servers:
            near = [g for g in groups if any(set(server.ports) & set(other.ports) for other in g)]
            groups = [g for g in groups if g not in near] + [[*(other for g in near for other in g), server]]
        return groups

    def _tap(self, group: list[Server]) -> None:
        ports = [port for server in group for port in server.ports]
        mirroring = [server for server in group if server.mirrors()]
        if not ports:
            self.missing(mirroring[0].line, "listen", "no port at which requests are seen as they are: no tap for it")
            return
        names = [name for server in mirroring for name in server.names if re.fullmatch(r"[\w.\-]+", name)]
        tap: dict[str, Any] = {
            "name": names[0][:60].lstrip("-") if names and names[0].strip("-_") else "tap",
            "iface": self._iface or IFACE,
            "ports": list(dict.fromkeys(ports)),
        }
        addrs = [addr for server in group for addr in server.addrs]
        if addrs and all(addrs):
            tap["addrs"] = list(dict.fromkeys(addrs))
        tap["protocol"] = "http"
        shadows: Shadows = {}
        for server in mirroring:
            for uri in server.mirrors():
                made = self._shadows(server, uri)
                same = next((found for found in shadows.values() if found == made), None)
                shadows[server.line, uri] = made if same is None else same
        if not any(shadows.values()):
            return
        tap["shadows"] = self._spread(tap, shadows, mirroring[0].line)
        rules = self._rules(group, shadows)
        if rules:
            tap["rules"] = rules
        self._result.taps.append(tap)

    def _spread(self, tap: dict[str, Any], shadows: Shadows, line: int) -> list[dict[str, Any]]:
        """All shadows; those that are servers of one upstream get a request in turn."""
        made = list({id(found): found for found in shadows.values()}.values())
        if any(len({each["_of"] for each in found}) < len(found) for found in made):
            if len({each["_of"] for found in made for each in found}) > 1:
                self.missing(line, "upstream", "of several servers only the first is taken: spread is of the whole tap")
                for found in made:
                    first = {each["_of"]: each for each in reversed(found)}
                    found[:] = [each for each in found if first[each["_of"]] is each]
            else:
                tap["spread"] = "round-robin"
        every = [each for found in made for each in found]
        names: list[str] = []
        for each in every:
            del each["_of"]
            if each["name"] in names:
                each["name"] += f"-{len(names) + 1}"
            names.append(each["name"])
        if len(every) > MAX_SHADOWS:
            raise FileError([Problem(line, "mirror", f"{len(every)} shadows; {MAX_SHADOWS} are the most of a tap")])
        return every

    def _rules(self, group: list[Server], shadows: Shadows) -> list[dict[str, Any]]:
        """Rules in nginx's order of servers and locations; none where everything goes to all."""
        found: list[tuple[list[Text | None], Text | None, list[str]]] = []
        default = next((server for server in group if server.default), group[0])
        ordered = [server for server in group if server is not default]
        for server in [*sorted(ordered, key=lambda server: server.order), default]:
            hosts: list[Text | None] = [None] if server is default else list(server.hosts())
            for condition, uris in server.places():
                made = [each["name"] for uri in dict.fromkeys(uris) for each in shadows[server.line, uri]]
                found += [(hosts, condition, made)] if hosts else []
        every = {each["name"] for made in shadows.values() for each in made}
        kept: list[dict[str, Any]] = []
        for i, (hosts, condition, made) in enumerate(found):
            if not made and not any(later for _, _, later in found[i + 1 :]):
                continue
            texts = [{"host": host, "path": condition} for host in hosts]
            matches = [{name: text for name, text in each.items() if text is not None} for each in texts]
            rule: dict[str, Any] = {"match": matches} if any(matches) else {}
            if not made:
                rule["mirror"] = "none"
            elif set(made) != every:
                rule["mirror"] = made
            kept.append(rule)
        if all(rule.get("mirror") is None for rule in kept) and kept and kept[-1] == {}:
            return []
        return [rule or {"name": "rest"} for rule in kept]

    # --- where a mirror goes to

    def _shadows(self, server: Server, uri: str) -> list[dict[str, Any]]:
        """The shadows of one mirror."""
        scope = server.location(uri)
        if scope is None:
            self.missing(server.line, "mirror", f"no location takes {uri}: nothing is mirrored by it")
            return []
        location = scope[-1]
        for each in location.block or ():
            if each.name not in _SILENT and not _LUA.fullmatch(each.name):
                self.missing(each.line, each.name, "has no equivalent")
        unconditional = location.last("return")
        if unconditional is not None:
            self.missing(unconditional.line, "return", f"{uri} answers at once: nothing is mirrored by it")
            return []
        target = location.last("proxy_pass")
        if target is None or len(target.args) != 1:
            self.missing(location.line, "location", f"{uri} has no proxy_pass: no shadow comes of it")
            return []
        conditions = self._conditions(location)
        if any(each.args == ["off"] for each in (*inherited(scope, "proxy_pass_request_body"),)) or (
            server.bodies_off(uri)
        ):
            self.missing(target.line, "mirror_request_body off", "has no equivalent: bodies are mirrored")
        found = _PASS.fullmatch(target.args[0])
        if found is None:
            self.missing(target.line, "proxy_pass", f"{shown(target.args[0])} is no address that a shadow can have")
            return []
        base: dict[str, Any] = {"match": conditions.match} if conditions.match else {}
        base |= self._settings(scope, server, uri, target, found)
        copies = server.copies(uri)
        if copies > 1:
            base["copies"] = min(copies, MAX_COPIES)
        names: list[tuple[str, str | None]] = [(found[2], None)]
        variable = VARIABLE.fullmatch(found[2])
        if variable is not None:
            split = self._splits.get(variable[1] or variable[2])
            if split is None:
                self.missing(target.line, "proxy_pass", f"{found[2]} is not known: no shadow comes of it")
                return []
            names = list(dict.fromkeys((value, value) for _, value in split.bands if value))
            conditions.split = conditions.split or variable[1] or variable[2]
            conditions.values = conditions.values or {value for _, value in split.bands}
        return list(self._shares(names, base, conditions, found, target.line, uri))

    def _shares(
        self,
        names: list[tuple[str, str | None]],
        base: dict[str, Any],
        conditions: Conditions,
        found: re.Match[str],
        line: int,
        uri: str,
    ) -> Iterator[dict[str, Any]]:
        """A shadow for each server of each name, with its share."""
        called = uri.strip("/").replace("/", "-") or "mirror"
        bands = 0
        for name, value in names:
            share: dict[str, Any] = {}
            if conditions.split is not None:
                split = self._splits[conditions.split]
                values = conditions.values if value is None else conditions.values & {value}
                percent = split.percent(values)
                if not percent:
                    continue
                if percent < 100:
                    share = {"percent": percent, **split.share}
            bands += 1
            label = called if value is None else f"{called}-{name}"
            servers = self._servers(name, found, line)
            for i, (host, port) in enumerate(servers):
                shadow: dict[str, Any] = {"name": label if len(servers) == 1 else f"{label}-{i + 1}"}
                shadow |= {"host": host, "port": port, **share, **base}
                del shadow["rewrite"]
                rewrite = dict(base["rewrite"])
                if rewrite["host"] is None:
                    rewrite["host"] = name + (f":{found[3]}" if found[3] else "")
                if rewrite["host"] == KEEP:
                    del rewrite["host"]
                shadow |= {"rewrite": rewrite} if rewrite else {}
                yield {**shadow, "_of": label}
        if bands > 1:
            said = "each share is right, but the same requests may be in several: nginx's bands do not overlap"
            self.missing(line, "split_clients", said)

    def _servers(self, name: str, found: re.Match[str], line: int) -> list[tuple[str, int]]:
        """The addresses of a name: those of an upstream, or its own."""
        standard = 443 if found[1] == "https" else 80
        upstream = self._upstreams.get(name)
        if upstream is None:
            return [(name.strip("[]"), int(found[3])) if found[3] else host_port(name, standard)]
        servers = []
        for each in upstream.all("server"):
            address = each.args[0] if each.args else ""
            if "down" in each.args or "backup" in each.args:
                self.missing(each.line, "server", f"{address}: is left out ({' '.join(each.args[1:])})")
            elif address.startswith("unix:") or not address:
                self.missing(each.line, "server", f"{shown(address)}: a shadow is reached by TCP")
            else:
                if any(arg.startswith("weight=") for arg in each.args):
                    self.missing(each.line, "server", f"{address}: without weight, each gets as much")
                servers.append(host_port(address, 80))
        if not servers:
            self.missing(line, "upstream", f"{name} has no server that can be a shadow")
        return servers

    def _conditions(self, location: Directive) -> Conditions:
        """Which requests the `if … return` of a location let through."""
        wanted = Conditions()
        for each in location.all("if"):
            text = " ".join(each.args).removeprefix("(").removesuffix(")").strip()
            said = f"({text}) has no equivalent: more is mirrored than by nginx"
            words = text.split(" ", 2)
            variable = VARIABLE.fullmatch(words[0])
            if variable is None or not each.block or {inner.name for inner in each.block} != {"return"}:
                self.missing(each.line, "if", said)
                continue
            name = variable[1] or variable[2]
            operator, value = (words[1], (words[2:] or [""])[0].strip()) if len(words) > 1 else ("", "")
            if name in self._splits:
                values = {band for _, band in self._splits[name].bands}
                passing = {band for band in values if not turned_away(operator, value, band)}
                if wanted.split in (None, name):
                    wanted.values = passing if wanted.split is None else wanted.values & passing
                    wanted.split = name
                    continue
            elif self._on_request(wanted.match, name, operator, value):
                continue
            self.missing(each.line, "if", said)
        return wanted

    def _on_request(self, match: dict[str, Any], name: str, operator: str, value: str) -> bool:
        """Add the opposite of a condition on the request to a match; False: a match cannot express it."""
        if name == "request_method":
            listed = re.fullmatch(r"\^\(([A-Z|]+)\)\$|([A-Z]+)", value)
            if operator not in ("!=", "!~") or listed is None or "methods" in match:
                return False
            match["methods"] = (listed[1] or listed[2]).split("|")
            return True
        kind, _, rest = name.partition("_")
        group = {"http": "headers", "cookie": "cookies", "arg": "query"}.get(kind)
        field = rest.replace("_", "-") if kind == "http" else rest
        text = passing(operator, value)
        if group is None or not field or text is None or field in match.get(group, {}):
            return False
        match.setdefault(group, {})[field] = text
        return True

    # --- how a copy is changed

    def _settings(
        self, scope: Scope, server: Server, uri: str, target: Directive, found: re.Match[str]
    ) -> dict[str, Any]:
        """Everything about a shadow except its address and its share; host None: the one that `proxy_pass` names."""
        rewrite: dict[str, Any] = {"host": None}
        self._path(rewrite, scope[-1], uri, target, found[4] or "")
        method = one(scope, "proxy_method")
        if method is not None:
            rewrite["method"] = method
        for each in inherited(scope, "proxy_set_header"):
            if len(each.args) == 2:
                self._header(rewrite, each, server, uri)
        settings: dict[str, Any] = {"rewrite": rewrite}
        if found[1] == "https":
            settings["tls"] = self._tls(scope)
        wait = _TIME.fullmatch(one(scope, "proxy_connect_timeout") or "")
        if wait is not None and int(wait[1]):
            settings["connect_time"] = int(wait[1]) * _SECONDS[wait[2]]
        return settings

    def _path(self, rewrite: dict[str, Any], location: Directive, uri: str, target: Directive, rest: str) -> None:
        """What becomes of the request's path."""
        if rest in ("$request_uri", "${request_uri}"):
            return
        before = re.fullmatch(r"(/[^$]*?)/?\$\{?request_uri\}?", rest)
        if before is not None:
            rewrite["path"] = {"prefix": "/", "with": before[1] + "/"}
            return
        rest = rest.removesuffix("$is_args$args").removesuffix("?$args")
        rest = rest.replace("${uri}", uri).replace("$uri", uri)
        if "$" in rest or "?" in rest:
            self.missing(target.line, "proxy_pass", f"{shown(rest)}: the path is kept as the client sent it")
            return
        prefix = location.args[-1] if location.args and location.args[0] not in ("~", "~*") else ""
        becomes = rest + uri[len(prefix) :] if rest and "$" not in target.args[0] else rest or uri
        rewrite["path"] = whole_path(becomes)
        said = f"as in nginx, every copy gets the path {becomes}; for its own: proxy_pass …$request_uri"
        self.missing(target.line, "proxy_pass", said)

    def _header(self, rewrite: dict[str, Any], each: Directive, server: Server, uri: str) -> None:
        name, value = each.args
        lower = name.lower()
        if lower == "host":
            if value in ("$host", "$http_host", "${host}", "${http_host}"):
                rewrite["host"] = KEEP
            elif value not in ("$proxy_host", "${proxy_host}"):
                if "$" in value:
                    self.missing(each.line, each.name, f"Host {value}: is left as the client sent it")
                    value = KEEP
                rewrite["host"] = value
        elif not TOKEN.fullmatch(name):
            self.missing(each.line, each.name, f"{shown(name)} is not a field name")
        elif lower == "connection":
            return  # of nginx's own connection
        elif lower in FRAMING:
            self.missing(each.line, each.name, f"{name} frames the request and is left as it is")
        elif value == "":
            rewrite.setdefault("remove_headers", []).append(name)
        elif lower == "x-forwarded-for" and value.strip("${}") == "proxy_add_x_forwarded_for":
            rewrite["x_forwarded_for"] = True
        else:
            text = template(value, {"server_name": (server.names or [""])[0], "uri": uri, "document_uri": uri})
            if text is None:
                self.missing(each.line, each.name, f"{name} {value}: the variable has no equivalent; it is left out")
            else:
                rewrite.setdefault("set_headers", {})[name] = text

    def _tls(self, scope: Scope) -> dict[str, Any]:
        tls: dict[str, Any] = {}
        for field, name in (
            ("sni", "proxy_ssl_name"),
            ("ca_file", "proxy_ssl_trusted_certificate"),
            ("cert_file", "proxy_ssl_certificate"),
            ("key_file", "proxy_ssl_certificate_key"),
        ):
            value = one(scope, name)
            if value is not None and "$" not in value:
                tls[field] = value
        if one(scope, "proxy_ssl_verify") != "on":
            tls.pop("ca_file", None)
            tls["verify"] = False
        return tls
