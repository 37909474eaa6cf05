# SPDX-License-Identifier: Apache-2.0
"""Describes a tap in plain words: what happens to a request, in which order, where it is decided and what that
costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from tapmirror.spec.clients import captured_clients
from tapmirror.spec.compare import Compare, Level
from tapmirror.spec.costs import POLICY_US as COST
from tapmirror.spec.costs import REQUEST_US
from tapmirror.spec.match import Match, Text
from tapmirror.spec.numbers import decimal
from tapmirror.spec.rewrite import KEEP, Redact, Rewrite
from tapmirror.spec.sampled import STEP, By, Sampled, steps
from tapmirror.spec.shadow import Shadow
from tapmirror.spec.tap import Over, Pacing, Protocol, Rule, Spread, TapSpec

BASE = f"about {REQUEST_US:.0f} us of CPU for each small request on a keep-alive connection (docs/COSTS.md)"
HELD = "requests with a body are held in memory until they are complete"


def explain(tap: TapSpec) -> list[str]:
    """The lines of the description, without line breaks; details are indented by two spaces."""
    ports = " and ".join(str(port) for port in tap.ports)
    where = f" of {', '.join(tap.addrs)}" if tap.addrs else ""
    lines = [f"Tap {tap.name}: TCP to port {ports}{where} on interface {tap.iface}"]
    lines += _indented(["In the kernel (what is not captured costs almost nothing):", *_indented(_kernel(tap))])
    steps = list(_steps(tap))
    if steps:
        lines += _indented(["In the worker, for each request:", *_indented(steps)])
    for i, rule in enumerate(tap.rules):
        lines += _indented([f"Rule {i + 1}{f' ({rule.name})' if rule.name else ''}: {_rule(rule, tap)}"])
    if tap.rules:
        lines += _indented(["A request that no rule matches is not mirrored (no_rule)."])
    for shadow in tap.shadows:
        lines += _indented([f"Shadow {shadow.label}:", *_indented(_shadow(shadow, tap))])
    lines += _indented(["Cost:", *_indented(_cost(tap))])
    return lines


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _kernel(tap: TapSpec) -> Iterable[str]:
    if tap.by is By.CONNECTION and tap.most() < 100:
        share = _percent(tap.most())
        yield f"{share} of the connections are captured, each completely or not at all (seed {tap.seed})"
    else:
        yield "all connections are captured"
    clients = captured_clients(tap)
    if clients:
        yield f"only clients in {', '.join(clients)} are captured (client)"
    yield "a connection is mirrored only after production has accepted it"
    if tap.decap:
        yield "captured through AF_PACKET, with tunnels decoded: user space decides about every packet"
    if tap.ttl is not None:
        yield f"the tap ends by itself after {tap.ttl:g} s"
    if tap.workers != 1:
        count = "half as many workers as processors" if tap.workers == "auto" else f"{tap.workers} workers"
        yield f"{count} share the connections, each with its own limits and ring ({tap.limits.ring_bytes:,} bytes)"


def _steps(tap: TapSpec) -> Iterable[str]:
    """What is decided for all shadows, in order."""
    if tap.protocol is not Protocol.HTTP:
        how = (
            "as raw bytes"
            if tap.protocol is Protocol.RAW
            else "as HTTP/1 requests or as raw bytes, depending on their first bytes"
        )
        yield f"connections are mirrored {how}"
    if tap.pacing is Pacing.WAIT:
        yield "what a client sends after a response waits for the shadow's response"
    if tap.safe_methods:
        yield "only GET, HEAD and OPTIONS pass (method)"
    if tap.by is not By.CONNECTION or tap.ramp is not None:
        yield f"{_share(tap)} pass (sampled out)"
    yield from _caps(tap)
    if tap.rules:
        several = f"the first of the {len(tap.rules)} rules that matches decides"
        yield several if len(tap.rules) > 1 else "one rule decides, if it matches"
    if tap.spread is Spread.ROUND_ROBIN and len(tap.shadows) > 1:
        yield "each request goes to one of the shadows of its rule, in turn (turn)"
    if tap.redact is not None:
        yield f"redacted before anything leaves this host: {', '.join(_redactions(tap.redact))}"
    if tap.hook is not None:
        body = " with the body" if tap.hook.body else ""
        yield f"{tap.hook.call} is called{body}; it may change the request or drop it (hook)"
    if tap.loop_check and tap.protocol is not Protocol.RAW:
        yield "at most one HTTP request a second gets the field Tapmirror-Loop; if it reaches production, the tap ends"


def _rule(rule: Rule, tap: TapSpec) -> str:
    when = " or ".join(_match(match) for match in rule.match) or "every request"
    if rule.mirror == ():
        return f"{when}: not mirrored (rule)"
    if rule.mirror is None:
        to = "to every shadow" if len(tap.shadows) > 1 else f"to {tap.shadows[0].label}"
    else:
        to = "to " + " and ".join(
            mirror.shadow + (f" ({_share(mirror)})" if mirror.percent != 100 or mirror.ramp else "")
            for mirror in rule.mirror
        )
    share = "" if rule.percent == 100 and rule.ramp is None else f", {_share(rule)}"
    limits = [f"; {cap}" for cap in _caps(rule)]
    if rule.body is not None:
        skips = rule.body.over is Over.SKIP
        limits.append(
            f"; with a body of more than {rule.body.max:,} bytes "
            + ("it is not mirrored (body_limit)" if skips else "it is mirrored and counted (bodies_over_limit)")
        )
    return f"{when}: mirrored {to}{share}{''.join(limits)}"


def _match(match: Match) -> str:
    parts = []
    if match.methods:
        parts.append(f"method {' or '.join(match.methods)}")
    for name, text in (("host", match.host), ("path", match.path), ("path and query", match.target)):
        if text is not None:
            parts.append(f"{name} {_text(text)}")
    for kind, group in (("header", match.headers), ("query", match.query), ("cookie", match.cookies)):
        parts += [f"{kind} {name} {_text(text)}" for name, text in group.items()]
    if match.clients:
        parts.append(f"client in {' or '.join(match.clients)}")
    if match.body is not None:
        most = "" if match.body.max is None else f" and at most {match.body.max:,}"
        parts.append(f"body of at least {match.body.min:,}{most} bytes")
    return " and ".join(parts) or "every request"


def _text(text: Text) -> str:
    if text.present is not None:
        said = "is present" if text.present != text.invert else "is absent"
    else:
        word, otherwise, value = next(
            condition
            for condition in (
                ("is", "is not", text.exact),
                ("begins with", "does not begin with", text.prefix),
                ("ends with", "does not end with", text.suffix),
                ("matches", "does not match", text.regex),
            )
            if condition[2] is not None
        )
        said = f"{otherwise if text.invert else word} {value}"
    return f"{said}{' (any case)' if text.ignore_case else ''}"


def _shadow(shadow: Shadow, tap: TapSpec) -> Iterable[str]:
    secured = ""
    if shadow.tls is not None:
        secured = " with TLS" if shadow.tls.verify else " with TLS WITHOUT VERIFICATION of the certificate"
    yield f"at {shadow.end_point}{secured}"
    if shadow.match:
        yield f"gets only requests that match: {' or '.join(_match(match) for match in shadow.match)} (no_match)"
    if shadow.percent != 100 or shadow.ramp is not None:
        yield f"gets {_share(shadow)} (sampled out)"
    yield from _caps(shadow)
    if shadow.copies > 1:
        yield f"gets each request {shadow.copies} times, on separate connections"
    yield (
        f"over {shadow.pooled} shared connections; {HELD}"
        if shadow.pooled
        else "over one connection for each production connection"
    )
    changes = list(_rewrites(shadow.rewrite))
    if changes:
        yield f"rewritten: {', '.join(changes)}"
    yield from _compared(tap.compare)


def _compared(compare: Compare) -> Iterable[str]:
    what = _COMPARED.get(compare.level)
    if what is None:
        yield "its responses are read, counted and discarded"
        return
    yield f"its responses are compared with production's ({what}) and discarded"
    if compare.noise_probe and compare.level is not Level.STATUS:
        probe = decimal(compare.noise_probe)
        yield f"gets {probe} % of the GET, HEAD and OPTIONS requests twice, to learn which values always differ"


_COMPARED: Final = {
    Level.STATUS: "status and times",
    Level.HEADERS: "status, times and header fields",
    Level.BODY: "status, times, header fields and bodies",
}


def _rewrites(rewrite: Rewrite) -> Iterable[str]:
    if rewrite.method is not None:
        yield f"method {rewrite.method}"
    if rewrite.path is not None:
        what = (
            f"prefix {rewrite.path.prefix}" if rewrite.path.prefix is not None else f"what matches {rewrite.path.regex}"
        )
        yield f"path: {what} {f'becomes {rewrite.path.becomes}' if rewrite.path.becomes else 'is removed'}"
    for word, names in (("set", rewrite.set_query), ("removed", rewrite.remove_query)):
        if names:
            yield f"query parameters {word}: {', '.join(names)}"
    if rewrite.host != KEEP:
        yield {"target": "Host is the shadow's name", "shadow-suffix": "Host gets the suffix -shadow"}.get(
            rewrite.host, f"Host is {rewrite.host}"
        )
    for word, fields in (
        ("removed", rewrite.remove_headers),
        ("set", (*rewrite.set_headers, *([rewrite.marker] if rewrite.marker else []))),
        ("added", (*rewrite.add_headers, *(["X-Forwarded-For"] if rewrite.x_forwarded_for else []))),
    ):
        if fields:
            yield f"headers {word}: {', '.join(fields)}"


def _redactions(redact: Redact) -> Iterable[str]:
    if redact.privacy is not None:
        yield "credentials, cookies, client addresses and fields with the usual names of secrets (strict)"
    for word, names in (
        ("headers", redact.headers),
        ("query", redact.query),
        ("JSON", redact.json),
        ("patterns", redact.patterns),
    ):
        if names:
            yield f"{word} {' '.join(names)}"


def _share(sampled: Sampled) -> str:
    key = (sampled.key or "").replace(":", " ", 1)
    keys = "the clients" if key == "client" else f"the values of {key}"
    what = {By.CONNECTION: "the connections", By.KEY: keys}.get(sampled.by, "the requests")
    spaced = " (evenly spaced)" if sampled.by is By.EXACT else ""
    if sampled.ramp is not None:
        ramp = sampled.ramp
        return f"from {_percent(ramp.start)} to {_percent(ramp.end)} of {what}{spaced}, within {ramp.over:g} s,"
    return f"{_percent(sampled.percent)} of {what}{spaced}"


def _percent(percent: float) -> str:
    return f"{decimal(steps(percent) * STEP, 10)} %"


def _caps(sampled: Sampled) -> Iterable[str]:
    if sampled.max_requests is not None:
        yield f"at most {sampled.max_requests:g} requests a second (cap)"
    if sampled.max_bytes is not None:
        yield f"at most {sampled.max_bytes:,.0f} bytes a second (cap)"


def _cost(tap: TapSpec) -> Iterable[str]:
    yield BASE
    yield f"under the daemon, fewer connections are captured while it uses more than {_budget(tap)}"
    if _decides(tap):
        yield f"deciding what becomes of a request: {_us(COST['no_rules'])}"
    if tap.rules:
        each = (COST["20_rules"] - COST["no_rules"]) / 20
        several = (
            f"rules: {_us(each * len(tap.rules))} if only the last of the {len(tap.rules)} matches, one condition each"
        )
        yield several if len(tap.rules) > 1 else f"the rule: {_us(each)}, with one condition"
        regexes = sum(text.regex is not None for rule in tap.rules for text in _texts(rule))
        if regexes:
            more = COST["20_regexes_2_headers"] - COST["20_rules_2_headers"]
            yield f"regular expressions ({regexes} here): {_us(more)} for all on one part, the path or a header"
    if any(sampled.by is By.KEY and sampled.key != "client" for sampled in (tap, *tap.rules, *tap.shadows)):
        yield f"a share by a key of the request: {_us(COST['30_percent_by_cookie'] - COST['no_rules'])}"
    if any(shadow.rewrite != Rewrite() for shadow in tap.shadows):
        yield f"rewrites: {_us(COST['20_rules_2_headers'] - COST['20_rules'])} for two constant headers"
    if tap.redact is not None:
        bodies = tap.redact.privacy or tap.redact.json or tap.redact.query or tap.redact.patterns
        yield f"redaction: {_us(COST['strict_redaction'] - COST['no_rules'])} a head{f'; {HELD}' if bodies else ''}"
    if tap.hook is not None:
        yield "the hook: its own time, shown in the ledger"
    if len(tap.shadows) > 1:
        yield f"{len(tap.shadows)} shadows: each copy is sent separately"


def _decides(tap: TapSpec) -> bool:
    """Whether requests pass through policy at all (`policy.is_needed` says it of the whole spec)."""
    return any(True for _ in tap.http_only()) or len(tap.shadows) > 1


def _us(microseconds: float) -> str:
    return f"{microseconds:.1f} us"


def _texts(rule: Rule) -> Iterator[Text]:
    """The conditions of a match on texts."""
    for match in rule.match:
        for text in (match.host, match.path, match.target):
            if text is not None:
                yield text
        for group in (match.headers, match.query, match.cookies):
            yield from group.values()


def _budget(tap: TapSpec) -> str:
    budget = tap.budget
    cpu = f"{budget.cpu:g} {'core' if budget.cpu == 1 else 'cores'}"
    memory = f"{budget.memory_of(1 if tap.workers == 'auto' else tap.workers) >> 20:,} MiB of memory"
    if tap.workers == "auto" and budget.memory is None:
        memory += f" ({budget.memory_of(3) // 3 >> 20} MiB for each of more than two workers)"
    if budget.bandwidth is None:
        return f"{cpu} or {memory}"
    return f"{cpu}, {memory} or {budget.bandwidth:,.0f} bytes a second"
