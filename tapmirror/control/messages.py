# SPDX-License-Identifier: Apache-2.0
"""The protocol of the control socket: one JSON object a line, a closed table of requests, a reply for each.

    -> {"v":1,"id":7,"op":"set","name":"web","percent":25}
    <- {"v":1,"id":7,"ok":{...}}
    <- {"v":1,"id":7,"error":{"code":"not_found","message":"no tap has the name 'web'"}}

`v` is the version of the protocol: a daemon refuses one that it does not speak.  `id` is chosen by the client and
returned with the reply.  Requests of one connection are answered in their order.  The types below define what a line
may contain, and nothing else does.

No I/O: bytes in, requests out, and the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias

import msgspec

from tapmirror.spec import TapSpec

VERSION: Final = 1
MAX_MESSAGE: Final = 1 << 20
"""Most bytes of a request: enough for hundreds of taps."""
MAX_LOOKING: Final = 4096
"""Most bytes of a request of a client that may only look."""
MAX_REPLY: Final = 16 << 20
"""Most bytes of a reply that a client accepts: the status of some thousand taps."""
MAX_REPORT: Final = 256 << 20
"""Most bytes that come by descriptor with a reply: a comparison of 100 endpoints and 200 samples has some 3 MB."""
MAX_TAPS: Final = 1000
"""Most taps in a request, and of a daemon."""

Id: TypeAlias = int | Annotated[str, msgspec.Meta(max_length=64)]
Name: TypeAlias = Annotated[str, msgspec.Meta(max_length=63)]
Taps: TypeAlias = Annotated[list[TapSpec], msgspec.Meta(max_length=MAX_TAPS)]


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op"):
    """A client's request.  Missing fields have their defaults."""

    changes: ClassVar[bool] = False
    """Whether it needs the permission to change taps.  Such requests are logged with their user."""
    reply: ClassVar[tuple[str, ...]]
    """Fields that its reply has; it may have others."""
    v: Literal[1] = 1
    id: Id = 0


class List(Request, frozen=True, kw_only=True, tag="list"):
    """`{"taps": [{name, state, state_reason, percent, iface, …}]}`, by name."""

    reply: ClassVar[tuple[str, ...]] = ("taps",)


class Status(Request, frozen=True, kw_only=True, tag="status"):
    """`{"daemon": {…}, "taps": [{…, "ledger": {…} or null}]}`: of one tap, or of all."""

    reply: ClassVar[tuple[str, ...]] = ("daemon", "taps")
    name: Name | None = None


class Logs(Request, frozen=True, kw_only=True, tag="logs"):
    """`{"lines": [{"seq", "time", "level", "text"}], "next": N}`: what was said of a tap, from `after` on."""

    reply: ClassVar[tuple[str, ...]] = ("lines", "next")
    name: Name
    after: int = 0


class Report(Request, frozen=True, kw_only=True, tag="report"):
    """What a tap's comparison knows: `{"tap", "compare": {…}, "bytes"}`, and a descriptor with the reply.

    The descriptor is of sealed memory (memfd_create(2)), which nobody can change any more, with that many bytes of
    JSON: a list of the workers' states, for `compare.merge`.  It has samples of traffic, so it needs the permission to
    change taps.
    """

    reply: ClassVar[tuple[str, ...]] = ("tap", "compare", "bytes")
    changes: ClassVar[bool] = True
    name: Name


class Start(Request, frozen=True, kw_only=True, tag="start"):
    """Start these taps, all or none: `{"started": [name]}`, and `notes` as of `Apply`."""

    reply: ClassVar[tuple[str, ...]] = ("started",)
    changes: ClassVar[bool] = True
    taps: Taps
    force: bool = False


class Stop(Request, frozen=True, kw_only=True, tag="stop"):
    """Stop one tap, or all (at once: the kill switch): `{"stopped": [{name, "ledger": {…} or null}]}`."""

    reply: ClassVar[tuple[str, ...]] = ("stopped",)
    changes: ClassVar[bool] = True
    name: Name | None = None
    all: bool = False


class Apply(Request, frozen=True, kw_only=True, tag="apply"):
    """Make the taps that were started by command equal to these.

    `{"plan": [{name, action, fields}], "failed": {name: message}}`; with `dry_run` nothing is done.  `notes`, where
    there are such: `{name: [line]}`, what taps warned of as they began.
    """

    reply: ClassVar[tuple[str, ...]] = ("plan", "failed")
    changes: ClassVar[bool] = True
    taps: Taps
    dry_run: bool = False
    force: bool = False


class Set(Request, frozen=True, kw_only=True, tag="set"):
    """Change a tap's share while it runs: `{"name", "percent"}`, and `notes` as of `Apply`."""

    reply: ClassVar[tuple[str, ...]] = ("name", "percent")
    changes: ClassVar[bool] = True
    name: Name
    percent: float


class Pause(Request, frozen=True, kw_only=True, tag="pause"):
    """Capture nothing until `resume`: `{"name"}`."""

    reply: ClassVar[tuple[str, ...]] = ("name",)
    changes: ClassVar[bool] = True
    name: Name


class Resume(Request, frozen=True, kw_only=True, tag="resume"):
    """End `pause`, or start a tap again that ended because its shadow led back to production: `{"name"}`."""

    reply: ClassVar[tuple[str, ...]] = ("name",)
    changes: ClassVar[bool] = True
    name: Name


class Reload(Request, frozen=True, kw_only=True, tag="reload"):
    """Read the directory of taps again, as SIGHUP does: `{"plan": […], "failed": {…}}`."""

    reply: ClassVar[tuple[str, ...]] = ("plan", "failed")
    changes: ClassVar[bool] = True


Plain: TypeAlias = List | Status | Logs | Start | Stop | Apply | Set | Pause | Resume | Reload
"""Requests that are answered by a line and nothing else."""
AnyRequest: TypeAlias = Plain | Report


class ProtocolError(Exception):
    """A line that is not a valid request, or a reply that reports an error.

    `code` is one of: `bad_request`, `version`, `denied`, `not_found`, `refused`, `failed`, `busy`.
    """

    def __init__(self, code: str, message: str, id: Id | None = None, problems: tuple[str, ...] = ()) -> None:  # noqa: A002
        super().__init__(message)
        self.code = code
        self.id = id
        self.problems = problems
        """A line for each thing that is wrong, where there are several."""


class _Head(msgspec.Struct):
    """What every request of every version has."""

    v: int
    id: Id = 0
    op: str = ""


class Error(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why it was not done; `message` is one line for people."""

    code: str
    message: str
    problems: tuple[str, ...] = ()
    """A line for each where there are several: `message` has the first."""


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of a request."""

    v: int
    id: Id | None = None
    """The `id` of the request that is answered; None: it could not be read."""
    ok: dict[str, Any] | None = None
    error: Error | None = None


_HEAD: Final[msgspec.json.Decoder[_Head]] = msgspec.json.Decoder(_Head)
_REQUEST: Final[msgspec.json.Decoder[AnyRequest]] = msgspec.json.Decoder(AnyRequest)
_REPLY: Final = msgspec.json.Decoder(Reply)


def read_request(line: bytes) -> AnyRequest:
    """The request of a line.  Raises `ProtocolError`, with the line's id if it could be read."""
    try:
        head = _HEAD.decode(line)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError("bad_request", _plain(error)) from None
    if head.v != VERSION:
        raise ProtocolError("version", f"this daemon speaks version {VERSION} of the protocol, not {head.v}", head.id)
    try:
        return _REQUEST.decode(line)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError("bad_request", _plain(error), head.id) from None


def write_request(request: Request) -> bytes:
    """The line of a request.  Raises `ProtocolError` if it is too long, or has text that is not UTF-8."""
    try:
        line = msgspec.json.encode(request) + b"\n"
    except UnicodeEncodeError as error:  # the command line may have bytes that are not UTF-8
        raise ProtocolError("bad_request", f"{error.object!r} is not UTF-8") from None
    if len(line) > MAX_MESSAGE:
        raise ProtocolError("bad_request", f"{len(line)} bytes are more than a request may have ({MAX_MESSAGE})")
    return line


def write_reply(id: Id | None, ok: dict[str, Any]) -> bytes:  # noqa: A002
    """The line of a reply."""
    return msgspec.json.encode(Reply(v=VERSION, id=id, ok=ok)) + b"\n"


def write_error(id: Id | None, code: str, message: str, problems: Sequence[str] = ()) -> bytes:  # noqa: A002
    """The line of a reply that reports an error; bytes of file names that are not UTF-8 are escaped."""
    first, *lines = (text.encode("utf-8", "backslashreplace").decode() for text in (message, *problems))
    return msgspec.json.encode(Reply(v=VERSION, id=id, error=Error(code, first, (*lines,)))) + b"\n"


def read_reply(line: bytes) -> dict[str, Any]:
    """The result in a reply.  Raises `ProtocolError` if it reports an error."""
    try:
        reply = _REPLY.decode(line)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError("bad_request", f"not a response: {_plain(error)}") from None
    if reply.error is not None:
        raise ProtocolError(reply.error.code, reply.error.message, reply.id, reply.error.problems)
    if reply.v != VERSION:
        raise ProtocolError("version", f"the daemon speaks version {reply.v} of the protocol, not {VERSION}", reply.id)
    return reply.ok or {}


class Lines:
    """Splits incoming bytes into lines; holds at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._data = bytearray()
        self._looked = 0

    def __len__(self) -> int:
        return len(self._data)

    def feed(self, data: bytes) -> None:
        """Add bytes.  Call it only when `next` returns None: nothing else limits what is held."""
        self._data += data

    def next(self) -> bytes | None:
        """The next whole line, if there is one.  Raises `ProtocolError` if it is longer than the limit."""
        end = self._data.find(b"\n", self._looked)
        if (len(self._data) if end < 0 else end) > self.limit:
            raise ProtocolError("bad_request", f"a request longer than {self.limit} bytes")
        if end < 0:
            self._looked = len(self._data)
            return None
        line = bytes(self._data[:end])
        del self._data[: end + 1]
        self._looked = 0
        return line


def _plain(error: Exception) -> str:
    """The message of msgspec as one line in our form: `percent: …` for `… - at `$.percent``."""
    text = " ".join(str(error).split())
    text, _, path = text.partition(" - at `")
    field = path.rstrip("`").removeprefix("$").removeprefix(".")
    return f"{field}: {text}" if field else text
