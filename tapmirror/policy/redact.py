# SPDX-License-Identifier: Apache-2.0
"""`Redact` as functions of a head and of a body.

Theory of operation
-------------------
What must be removed may not leave the host, so everything doubtful is refused and not passed on:

* A JSON body is parsed and written again even if nothing matched, so that any other parser sees in it what ours saw (a
  member given twice, white space).
* A body that is declared as JSON or a form and is not, one with a Content-Encoding, or one that is too long gives
  `None`, and the request is not mirrored.
* A body that is not declared as JSON but begins like it is treated as JSON, even if it is declared as a form, as
  everything that `curl -d` sends is.
* With `privacy: strict`, a body of any other kind is refused too.

Hashes are HMAC-SHA-256 (RFC 2104) under a key that lives as long as the tap, cut to 64 bits: equal
values can be recognised, values cannot be looked up in a table.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias
from urllib.parse import quote

import msgspec

from tapmirror.policy.match import compile_re2
from tapmirror.policy.request import Request, decoded
from tapmirror.spec import Redact

Action: TypeAlias = Callable[[bytes], bytes | None]
"""Turns a value into its replacement; None: it is removed, together with its name."""

STRICT_HEADERS: Final = {
    **dict.fromkeys(
        (
            "authorization",
            "cookie",
            "proxy-authorization",
            "www-authenticate",
            *("api-key", "apikey", "x-api-key", "x-apikey", "x-goog-api-key", "ocp-apim-subscription-key"),
            *("x-auth-token", "x-access-token", "x-refresh-token", "x-id-token", "x-session-token", "x-api-token"),
            *("x-csrf-token", "x-xsrf-token", "x-csrftoken", "x-amz-security-token"),
            *("private-token", "x-gitlab-token", "x-vault-token", "x-forwarded-access-token"),
            *("x-amzn-oidc-accesstoken", "x-amzn-oidc-data", "x-goog-iap-jwt-assertion", "cf-access-jwt-assertion"),
            "referer",
            "from",
        ),
        "remove",
    ),
    **dict.fromkeys(("x-forwarded-for", "x-real-ip", "forwarded", "true-client-ip", "cf-connecting-ip"), "hash"),
}
"""Header fields with credentials, or that say who or where a person is."""
_WORDS: Final = (
    *("password", "new_password", "old_password", "current_password", "confirm_password", "password_confirmation"),
    *("passwd", "pwd", "passphrase", "passcode", "pin", "otp", "code", "credentials"),
    *("secret", "client_secret", "secret_key", "private_key", "api_key", "signature", "sig"),
    *("token", "access_token", "refresh_token", "id_token", "auth_token", "session_token", "csrf_token", "api_token"),
    *("jsessionid", "phpsessid"),
    *("auth", "authorization", "jwt", "session", "session_id", "sid", "email", "phone", "ssn"),
    *("iban", "card", "card_number", "credit_card", "cvv", "cvc"),
    *("x_amz_signature", "x_amz_credential", "x_amz_security_token", "x_goog_signature", "x_goog_credential"),
)
STRICT_NAMES: Final = tuple(dict.fromkeys(word.replace("_", mark) for word in _WORDS for mark in ("_", "", "-")))
"""Names of parameters and JSON members, in any spelling: `access_token`, `accessToken` and `access-token`."""

CODE: Final = "code"
"""A name with two meanings: a code of OAuth (RFC 6749, 4.1.2) or one for typing in, which is removed; or an error's
code."""
ERRORS: Final = frozenset({"error", "errors"})
"""Members in which a `CODE` that is a small number, or made of words, says what went wrong (JSON-RPC 2.0, 5.1).  This
holds directly in them, not deeper, except in `EXTENSIONS`."""
EXTENSIONS: Final = "extensions"
"""GraphQL's `errors[].extensions.code`."""
_CODE_MOST: Final = 99_999
_CODE_WORDS: Final = re.compile(r"(?=.{1,64}\Z)(?:[A-Z]+(?:[ _][A-Z]+)*|[a-z]+(?:[_./-][a-z]+)*|(?:[A-Z][a-z]{2,})+)")
"""`BAD_USER_INPUT`, `not-found`, `ResourceNotFound`: random codes look different."""

_FORM: Final = b"application/x-www-form-urlencoded"
_JSON: Final = re.compile(rb"(?:\xef\xbb\xbf|\s)*[{\[]")
"""The beginning of a body that is JSON.  A byte order mark after white space is not one, but some parsers accept it."""
_JSON_FORM: Final = re.compile(rb"(?:\xef\xbb\xbf|%ef%bb%bf|\s|\+|%(?:20|09|0a|0d))*(?:[{\[]|%7b|%5b)", re.IGNORECASE)
"""The same of one that says it is a form."""
_KINDS: Final = re.compile(rb"\s*([^;\s]*)")
_WITHIN: Final = re.compile(rb"[\[\].]+")
_PLAIN: Final = "!$'()*,:@"
"""Characters that need no escape in a parameter's value (RFC 3986, 3.3), in addition to letters, digits and `-._~`."""
_DEPTH: Final = 200
MARK: Final = b"\xef\xbb\xbf"
"""The byte order mark of UTF-8, which some programs write before JSON."""
PARAMETERS: Final = 4096
"""Most parameters of a query or a form that are inspected, in some 5 ms: no application has as many.  A longer query is
left out, and a longer form is `unredacted`."""


NESTED: Final = 4
"""Most levels of JSON inside strings of JSON that are inspected: each level of quoting doubles the room for quotes."""
NOT_SHOWN: Final = "(not shown)"
"""Shown in place of a text that cannot be inspected."""
_MEMBER: Final = re.compile(r"[\s\ufeff]*[{\[].*\"\s*:", re.DOTALL)
"""A member in a text that is not JSON, but may be the beginning of JSON, or JSON followed by something else."""
_OPENS: Final = re.compile(r"[{\[]").search


class Redactor:
    """Redacts requests.  `secret` is the key of the hashes.

    `texts`: also inspect strings that are JSON themselves, in JSON and in parameters.  This is for samples and not for
    shadows, because such a string is written again.  `usual`: nobody named the members one by one, so errors may keep
    their codes, as with `privacy: strict`.
    """

    def __init__(self, spec: Redact, secret: bytes, *, texts: bool = False, usual: bool = False) -> None:
        self._secret = secret
        self._texts = NESTED if texts else 0
        self._strict = spec.privacy == "strict"
        names = dict.fromkeys(STRICT_NAMES, "remove") if self._strict else {}
        headers = {**(STRICT_HEADERS if self._strict else {}), **{k.lower(): v for k, v in spec.headers.items()}}
        self._headers = {name.encode(): self._action(text) for name, text in headers.items()}
        self._query = {k.strip().lower().encode(): self._action(v) for k, v in {**names, **spec.query}.items()}
        members = {**{f"**.{name}": "remove" for name in names}, **spec.json}
        self.member_paths = [steps_of(path) for path in members]
        """Paths of the JSON members that are redacted."""
        actions = [(steps_of(path), self._action(text)) for path, text in members.items()]
        self._anywhere = {steps[1].lower(): action for steps, action in actions if is_anywhere(steps)}
        self._codes = usual or (self._strict and steps_of(f"**.{CODE}") not in map(_lowered, map(steps_of, spec.json)))
        """Whether errors keep their `CODE`."""
        self._members = [(steps, action) for steps, action in actions if not is_anywhere(steps)]
        self._patterns = [(compile_re2(text), becomes.encode()) for text, becomes in spec.patterns.items()]
        self.reads_bodies = bool(members or self._query or self._patterns)
        """Whether bodies must be complete because they are redacted."""
        self.body_bytes = spec.body_bytes

    def head(self, request: Request) -> bytes:
        """The redacted head."""
        path = self.text(self._path(request.path) if self._query and b";" in request.path else request.path)
        query = request.query
        if query is not None:
            shown = self._pairs(query) if self._query else query
            query = None if shown is None else self.text(shown)
        origin = request.origin
        if self._strict and b"@" in origin:
            scheme, slashes, authority = origin.partition(b"://")
            origin = scheme + slashes + authority.rpartition(b"@")[2]
        if origin:
            origin = self.text(origin)
        start = b"%b %b%b%b %b" % (
            request.method,
            origin,
            path,
            b"" if query is None else b"?" + query,
            request.version,
        )
        lines = []
        for line in filter(None, request.head[request.line_end + 2 : -4].split(b"\r\n")):  # HTTP/1.0 may have none
            name, _, value = line.partition(b":")
            action = self._headers.get(name.lower())
            if action is not None:
                found = action(value.strip(b" \t"))
                if found is None:
                    continue
                line = name + b": " + found
            elif self._patterns and name.lower() not in (b"host", b"content-length", b"transfer-encoding"):
                line = name + b":" + self.text(value)
            lines.append(line)
        return b"\r\n".join([start, *lines, b"", b""])

    def body(self, request: Request, body: bytes) -> bytes | None:
        """The redacted body; None: it cannot be inspected."""
        if not body:
            return body
        if request.fields.get(b"content-encoding", b"identity").lower() != b"identity":
            return None
        said = request.fields.get(b"content-type", b"").lower()
        match = _KINDS.match(said)
        kind = match[1] if match is not None else b""
        # If a type is given twice, or in quotes, servers may use either.  A body that is no form loses nothing as one.
        form = kind == _FORM or (_FORM in said and not self._strict)
        if form:
            json = not self._texts and _JSON_FORM.match(body) is not None  # `_parameter` looks into texts
        else:
            json = b"json" in kind or _JSON.match(body) is not None  # lines and sequences, too
        found: bytes | None = body
        if json and (self._members or self._anywhere):
            found = self._json(body, self._texts)
        elif form:
            found = self._pairs(body)
        elif self._strict:
            return None
        return None if found is None else self.text(found)

    def data(self, text: bytes) -> bytes:
        """A text that may be JSON, redacted for being shown."""
        return self.text(self._text(text.decode("utf-8", "replace"), self._texts).encode())

    def _action(self, text: str) -> Action:
        if text == "remove":
            return lambda _: None
        if text == "hash":
            return self._hash
        becomes = text.removeprefix("replace:").encode()
        return lambda _: becomes

    def _hash(self, value: bytes) -> bytes:
        return hmac.new(self._secret, value, hashlib.sha256).hexdigest()[:16].encode()

    def text(self, text: bytes) -> bytes:
        """A text without what the patterns match."""
        for pattern, becomes in self._patterns:
            text = pattern.sub(lambda _, becomes=becomes: becomes, text)  # type: ignore[misc]
        return text

    def _path(self, path: bytes) -> bytes:
        """A redacted path.  Its segments may have parameters after a `;` (RFC 3986, 3.3), such as sessions of servlets.

        If it has more of them than are inspected, all are left out.
        """
        looked = path.count(b";") < PARAMETERS
        segments = []
        for segment in path.split(b"/"):
            kept, *parameters = segment.split(b";")
            for pair in parameters if looked else ():
                name, mark, value = pair.partition(b"=")
                action = self._of_parameter(decoded(name)) if mark else None
                found = action(decoded(value)) if action is not None else None
                if found is not None:
                    kept += b";" + name + b"=" + quote(found, safe=_PLAIN).encode()
                elif action is None:
                    kept += b";" + pair
            segments.append(kept)
        return b"/".join(segments)

    def _pairs(self, text: bytes) -> bytes | None:
        """A redacted query or form; None: it has more parameters than are inspected."""
        if text.count(b"&") + text.count(b";") >= PARAMETERS:
            return None
        kept = []
        for pair in text.split(b"&"):
            found = self._pair(pair)
            if found is not None:
                kept.append(found)
        return b"&".join(kept)

    def _pair(self, pair: bytes) -> bytes | None:
        """A redacted parameter, or several with `;` between them, as some servers read it (HTML 4.01, B.2.2).

        None: nothing is left.  What follows a `;` may also belong to the value before it, and is removed with that.
        """
        at = 0
        while True:
            end = pair.find(b";", at)
            name, mark, _ = pair[at : end if end >= 0 else None].partition(b"=")
            action = self._of_parameter(decoded(name))
            if action is not None:
                found = action(decoded(pair[at + len(name) + len(mark) :]))
                if found is None:
                    return pair[: max(at - 1, 0)] or None
                return pair[:at] + name + b"=" + quote(found, safe=_PLAIN).encode()
            if end < 0:
                return self._parameter(pair) if self._texts else pair
            at = end + 1

    def _parameter(self, pair: bytes) -> bytes:
        """Redact a parameter whose value is JSON, or that is JSON without a name."""
        name, mark, value = pair.partition(b"=")
        if _JSON.match(decoded(name)):
            name, mark, value = b"", b"", pair
        text = decoded(value).decode("utf-8", "replace")
        shown = self._text(text, self._texts)
        if b";" in value and text.lstrip()[:1] not in ("{", "["):  # there may be JSON behind it
            opens = _OPENS(text)
            if opens is not None and _MEMBER.match(text, opens.start()):
                shown = NOT_SHOWN
        return pair if shown == text else name + mark + quote(shown).encode()

    def _of_parameter(self, name: bytes) -> Action | None:
        """The action for a parameter.

        The names of `strict`, and all names in samples, also count inside others: `user[password]`.  White space around
        a name is ignored, as in PHP.
        """
        name = name.strip().lower()
        action = self._query.get(name)
        if action is None and (self._strict or self._texts):
            action = next((self._query[part] for part in _WITHIN.split(name) if part in self._query), None)
        return action

    def _json(self, body: bytes, texts: int) -> bytes | None:
        """Redact JSON; `texts`: how many levels of strings that are JSON are inspected."""
        try:
            document = msgspec.json.decode(body)
            if self._anywhere:
                _redact_anywhere(document, self._anywhere, 0, codes=self._codes, error=False)
            for steps, action in self._members:
                _redact(document, steps, action, 0, set())
            if self._texts and b"\\" in body:  # or no text has quotes in it
                whole = [document]
                self._redact_texts(whole, texts, 0)
                document = whole[0]
            return msgspec.json.encode(document)
        except (msgspec.MsgspecError, RecursionError, ValueError):
            return None

    def _redact_texts(self, value: dict[str, Any] | list[Any], texts: int, depth: int) -> None:
        """Redact all strings that are JSON, in place."""
        if depth > _DEPTH:
            raise RecursionError
        items: Any = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in list(items):
            if isinstance(child, str):
                value[key] = self._text(child, texts)
            elif isinstance(child, dict | list):
                self._redact_texts(child, texts, depth + 1)

    def _text(self, text: str, texts: int) -> str:
        """A string, redacted for being shown."""
        if text.lstrip()[:1] in ("{", "[", '"'):
            found = self._json(text.encode("utf-8", "replace"), texts - 1) if texts else None
            if found is not None:
                return found.decode()
            if not texts:
                return NOT_SHOWN
        return NOT_SHOWN if _MEMBER.match(text) else text


def steps_of(path: str) -> tuple[str, ...]:
    """`cards[].number` as ("cards", "[]", "number")."""
    return tuple(path.replace("[]", ".[]").strip(".").split("."))


def is_anywhere(steps: tuple[str, ...]) -> bool:
    """Whether the path is a name at any depth (`**.name`)."""
    return len(steps) == 2 and steps[0] == "**" and steps[1] not in ("**", "*", "[]")


def _lowered(steps: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(step.lower() for step in steps)


def _redact_anywhere(value: Any, actions: Mapping[str, Action], depth: int, *, codes: bool, error: bool) -> None:
    """Apply the actions to members with these names, in one walk, in place, together with everything inside them.

    `codes`: errors keep their codes.  `error`: the value is an error, or a list of errors.
    """
    if depth > _DEPTH:
        raise RecursionError
    if isinstance(value, dict):
        for key in list(value):
            name = key.lower()
            action = actions.get(name)
            if action is not None:
                if not (error and codes and name == CODE and _tells_an_error(value[key])):
                    _apply(value, (key,), (), action, depth, set())
            elif isinstance(value[key], dict | list):
                within = name in ERRORS or (error and name == EXTENSIONS)
                _redact_anywhere(value[key], actions, depth + 1, codes=codes, error=within)
    elif isinstance(value, list):
        for child in value:
            if isinstance(child, dict | list):
                _redact_anywhere(child, actions, depth + 1, codes=codes, error=error)


def _tells_an_error(code: Any) -> bool:
    if isinstance(code, str):
        return _CODE_WORDS.fullmatch(code) is not None
    return isinstance(code, int) and not isinstance(code, bool) and abs(code) <= _CODE_MOST


def _redact(value: Any, steps: tuple[str, ...], action: Action, depth: int, seen: set[tuple[int, int]]) -> None:
    """Apply the action to what the steps lead to, in place.

    `seen`: (value, number of remaining steps) for steps that begin with `**` and were followed already, with values by
    identity, since none is made meanwhile.  Several `**` may lead to one value in very many ways.
    """
    if depth > _DEPTH:
        raise RecursionError
    step, rest = steps[0], steps[1:]
    if step == "**":
        if not isinstance(value, dict | list) or (id(value), len(steps)) in seen:
            return
        seen.add((id(value), len(steps)))
        if rest:
            _redact(value, rest, action, depth + 1, seen)
        for child in _children(value):
            _redact(child, steps, action, depth + 1, seen)
    elif step == "[]" or step == "*":
        keys: Any = range(len(value)) if isinstance(value, list) and step == "[]" else _keys(value, step)
        _apply(value, keys, rest, action, depth, seen)
    elif isinstance(value, dict):
        lower = step.lower()
        _apply(value, [key for key in value if key.lower() == lower], rest, action, depth, seen)


def _keys(value: Any, step: str) -> list[str]:
    return list(value) if isinstance(value, dict) and step == "*" else []


def _apply(
    value: Any, keys: Any, rest: tuple[str, ...], action: Action, depth: int, seen: set[tuple[int, int]]
) -> None:
    for key in list(keys):
        if rest:
            _redact(value[key], rest, action, depth + 1, seen)
        else:
            found = action(_as_bytes(value[key]))
            if found is not None:
                value[key] = found.decode("utf-8", "replace")
            elif isinstance(value, dict):
                del value[key]
            else:
                value[key] = None


def _children(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def _as_bytes(value: Any) -> bytes:
    return value.encode("utf-8", "replace") if isinstance(value, str) else msgspec.json.encode(value)


def framed(head: bytes, length: int) -> bytes:
    """The head for a body of `length` bytes that was held: it has a Content-Length and is not chunked."""
    kept = [
        line
        for line in head[:-4].split(b"\r\n")
        if line.partition(b":")[0].lower() not in (b"content-length", b"transfer-encoding", b"trailer")
    ]
    return b"\r\n".join([*kept, b"Content-Length: %d" % length, b"", b""])


def unchunked(body: bytes) -> bytes:
    """The data of a chunked body that framing has followed to its end (RFC 9112, 7.1)."""
    data: list[bytes] = []
    pos = 0
    while True:
        end = body.index(b"\r\n", pos)
        size = int(body[pos:end].partition(b";")[0].strip(b" \t"), 16)
        if not size:
            return b"".join(data)
        data.append(body[end + 2 : end + 2 + size])
        pos = end + 2 + size + 2
