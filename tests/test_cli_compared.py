# SPDX-License-Identifier: Apache-2.0
"""Reports and verdicts of saved ledgers, and how they are refused."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from documented import named, rows
from runner import CliRunner
from tapmirror.cli import compared, run
from tapmirror.cli.compared import SPEC
from tapmirror.cli.main import main
from tapmirror.compare.comparison import Comparison
from tapmirror.compare.summary import SCHEMA
from tapmirror.compare.verdict import VerdictLimits
from tapmirror.control.client import ControlError
from tapmirror.exchange import Asked, Delivery, Exchange, Response
from tapmirror.policy.samples import USUAL, SampleRedactor
from tapmirror.report import FORMS
from tapmirror.spec import Compare, Level


def ledger(path: Path, exchanges: int, bad: int) -> str:
    """A saved ledger, of twenty seconds: of the shadow's responses `bad` are errors."""
    comparison = Comparison(Compare(level=Level.STATUS), [("new", "http://new")], SampleRedactor([USUAL], b"k"))
    for i in range(exchanges):
        comparison.tick(20.0 * i / exchanges, 0)
        asked = Asked(i + 1, b"GET", b"/a", b"GET /a HTTP/1.1\r\n\r\n", ended_ns=1000)
        status = 500 if i * bad % exchanges < bad else 200  # spread: those in a row count as one
        delivery = Delivery(Response(status, first_ns=2_000_000, last_ns=2_000_000), 1000)
        comparison.paired(Exchange(asked, Response(200, first_ns=2_000_000, last_ns=2_000_000), {0: delivery}))
    path.write_text(json.dumps({"tap": "web", "comparison": [comparison.snapshot()]}))
    return str(path)


@pytest.mark.parametrize(
    ("exchanges", "bad", "code", "word"), [(20_000, 0, 0, "pass"), (2_000, 400, 1, "fail"), (10, 0, 3, "undecided")]
)
def test_the_verdict_is_the_exit_code(tmp_path: Path, exchanges: int, bad: int, code: int, word: str) -> None:
    done = CliRunner().invoke(main, ["verdict", ledger(tmp_path / "l.json", exchanges, bad)])
    assert (done.exit_code, done.output.split(": ")[:2]) == (code, ["web new", word])


def test_what_workers_of_a_run_say_is_not_trusted(capsys: pytest.CaptureFixture[str]) -> None:
    told = [{"tap": "web", "comparison": [{"schema": SCHEMA, "shadows": 5}]}]
    with pytest.raises(SystemExit) as ended:
        compared.conclude(told, [Compare()], VerdictLimits(), report_file=None, judge=True, err=False)
    assert ended.value.code == 1
    assert "the comparison cannot be read: Expected `object`" in capsys.readouterr().err


def test_where_nothing_was_compared_the_line_says_why(tmp_path: Path) -> None:
    file = ledger(tmp_path / "l.json", 100, 0)
    saved = json.loads(Path(file).read_text())
    state = saved["comparison"][0]["shadows"]["new"]
    state |= {"endpoints": {}, "requests": 100, "unpaired": {"shutdown": 1, "not_sent": 99}}
    Path(file).write_text(json.dumps(saved))
    done = CliRunner().invoke(main, ["verdict", file])
    assert done.exit_code == 3
    said = "web new: undecided: nothing was compared yet, of 100 requests; the shadow did not get it"
    assert done.output == f"{said}\n"
    state["raw"] = 7
    Path(file).write_text(json.dumps(saved))
    done = CliRunner().invoke(main, ["verdict", file])
    assert done.output == f"{said}; 7 connections that are not HTTP/1: mirrored as bytes, not compared\n"


def test_the_verdict_as_json_has_each_shadow_with_its_limits_and_reasons(tmp_path: Path) -> None:
    file = several(tmp_path, 0, 400)
    done = CliRunner().invoke(main, ["verdict", file, "--json", "--max-error-diff", "2%"])
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    document = json.loads(done.output)
    assert (document["outcome"], document["alpha"]) == ("fail", 0.01)
    one, two = document["shadows"]
    assert [(each["tap"], each["shadow"], each["outcome"]) for each in (one, two)] == [
        ("web", "one", "undecided"),
        ("web", "two", "fail"),
    ]
    assert (one["where"], two["where"]) == ("", "most differ at GET /a (20.0 %, status)")
    assert two["reason"].startswith("error rate difference 20.0 % (")
    assert one["more"] > 0
    (check,) = [each for each in two["checks"] if each["name"] == "error rate difference"]
    assert (check["outcome"], check["estimate"], check["limit"], check["more"]) == ("fail", 0.2, 0.02, None)
    assert 0.02 < check["low"] < 0.2 < check["high"] < 1


def test_a_verdict_as_json_is_json_where_nothing_is_known(tmp_path: Path) -> None:
    """An interval that is open, and why nothing was compared."""
    saved = json.loads(Path(ledger(tmp_path / "l.json", 100, 0)).read_text())
    saved["comparison"][0]["shadows"]["new"] |= {"endpoints": {}, "raw": 7, "unpaired": {"not_sent": 99}}
    (tmp_path / "l.json").write_text(json.dumps(saved))
    done = CliRunner().invoke(main, ["verdict", str(tmp_path / "l.json"), "--json"])
    assert (done.exit_code, "Infinity" in done.output) == (3, False)
    document = json.loads(done.output)
    assert document["outcome"] == document["shadows"][0]["outcome"] == "undecided"
    raw = "7 connections that are not HTTP/1: mirrored as bytes, not compared"
    assert document["shadows"][0]["where"] == f"the shadow did not get it; {raw}"
    assert None in [check["high"] for check in document["shadows"][0]["checks"]]


def test_every_field_of_a_verdict_as_json_is_documented(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["verdict", several(tmp_path, 0, 400), "--json"])
    document = json.loads(done.output)
    told = set(document) | set(document["shadows"][0])
    assert told == rows("A verdict")
    assert set(document["shadows"][0]["checks"][0]) - named("A verdict") == set()


@pytest.mark.parametrize(("bad", "code"), [((0, 400), 1), ((0, 0), 3), ((400, 400), 1)])
def test_of_several_shadows_one_that_fails_is_enough(tmp_path: Path, bad: tuple[int, int], code: int) -> None:
    done = CliRunner().invoke(main, ["verdict", several(tmp_path, *bad)])
    assert (done.exit_code, done.output.count("\n")) == (code, 2)


def test_a_report_of_several_shadows_is_one_document(tmp_path: Path) -> None:
    file = several(tmp_path, 0, 400)
    texts = {form: CliRunner().invoke(main, ["report", file, "--format", form]).output for form in FORMS}
    document = json.loads(texts["json"])
    assert [each["shadow"] for each in document["shadows"]] == ["one", "two"]
    assert [each["verdict"]["outcome"] for each in document["shadows"]] == ["undecided", "fail"]
    assert texts["html"].count("<html") == texts["html"].count("</html>") == 1
    assert "<title>FAIL · web: 2 shadows against production</title>" in texts["html"]
    for form in ("terminal", "markdown", "html"):
        assert texts[form].index("web: one against production") < texts[form].index("web: two against production")
    found = compared.read_figures(file, VerdictLimits())
    compared.write_report(found, str(tmp_path / "report.html"))
    assert texts["html"] == (tmp_path / "report.html").read_text() + "\n"


def several(folder: Path, *bad: int) -> str:
    """The ledger of a tap with shadows `one` and `two`, of which so many responses are errors."""
    states = [json.loads(Path(ledger(folder / "s.json", 2_000, each)).read_text())["comparison"][0] for each in bad]
    states[0]["shadows"] = {name: state["shadows"]["new"] for name, state in zip(("one", "two"), states, strict=True)}
    (folder / "several.json").write_text(json.dumps({"tap": "web", "comparison": states[:1]}))
    return str(folder / "several.json")


def test_limits_can_be_lifted(tmp_path: Path) -> None:
    file = ledger(tmp_path / "l.json", 2_000, 400)
    lifted = ["--max-error-diff", "none", "--max-diff-rate", "50%"]
    assert CliRunner().invoke(main, ["verdict", file, *lifted]).exit_code != 1


def test_the_line_says_where_most_responses_differ(tmp_path: Path) -> None:
    file = ledger(tmp_path / "l.json", 2_000, 400)
    assert "; most differ at GET /a (20.0 %, status)" in CliRunner().invoke(main, ["verdict", file]).output
    assert "most differ" not in CliRunner().invoke(main, ["verdict", ledger(tmp_path / "m.json", 2_000, 0)]).output


@pytest.mark.parametrize("form", ["terminal", "markdown", "json", "html"])
def test_reports_in_every_form(tmp_path: Path, form: str) -> None:
    done = CliRunner().invoke(main, ["report", ledger(tmp_path / "l.json", 100, 50), "--format", form])
    assert done.exit_code == 0
    assert "/a" in done.output


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is empty"),
        ("\n", "it is empty"),
        *((text, "not a ledger, as `tapmirror run --json` prints it") for text in ("null", "[]", "{}", "3", '"x"')),
        *((f'{{"taps": {text}}}', "not a ledger, as") for text in ("[]", "null", "{}", "[null]", "[{}]")),
        ('[{"comparison": []}]', "not a ledger, as"),
        ('{"schema": "tapmirror.report/1", "tap": "web"}', "not a ledger, as"),
        ('{"segments": {}}', "it has no comparison: the tap ran without --compare"),
        ('{"comparison": 3}', "not a ledger with a comparison"),
        ('{"comparison": [{"schema": "x"}]}', "not a ledger with a comparison: its schema is x, and not tapm"),
        ("\x00", "not a ledger with a comparison: not JSON (line 1)"),
    ],
)
def test_what_is_no_such_ledger_is_refused_in_a_line(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "l.json"
    path.write_text(text)
    done = CliRunner().invoke(main, ["report", str(path)])
    assert done.exit_code == 2
    assert done.output.startswith(f"tapmirror: error: {path}: {why}")
    assert done.output.count("\n") == 1


def test_a_file_that_is_no_text_and_one_without_a_name_are_told_so(tmp_path: Path) -> None:
    path = tmp_path / "l.json"
    path.write_bytes(b"\x80")
    for source, why in ((str(path), f"{path}: not a ledger with a comparison: not UTF-8"), ("", "'': No such file")):
        done = CliRunner().invoke(main, ["report", source])
        assert done.exit_code == 2
        assert done.output.startswith(f"tapmirror: error: {why}")


def test_a_standard_input_that_is_closed_is_told_as_that() -> None:
    words = ["sh", "-c", '"$@" <&-', "sh", sys.executable, "-m", "tapmirror", "report", "-"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "tapmirror: error: -: standard input is closed\n")


def test_what_is_counted_wrongly_or_interrupted_is_no_shadow_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(ledger(tmp_path / "l.json", 300, 60))
    saved = json.loads(file.read_text())
    saved["comparison"][0]["shadows"]["new"]["endpoints"]["GET /a"]["fields"]["value status"]["repeats"] = 1
    file.write_text(json.dumps(saved))
    done = CliRunner().invoke(main, ["verdict", str(file)])
    assert (done.exit_code, done.output) == (2, f"tapmirror: error: {file}: not a ledger with a comparison\n")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compared, "read_figures", interrupted)
    assert CliRunner().invoke(main, ["verdict", str(file)]).exit_code == 130


def test_a_name_that_is_no_file_is_that_of_a_tap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged by its own spec, and only if there is no such file."""
    monkeypatch.chdir(tmp_path)
    saved = json.loads(Path(ledger(tmp_path / "l.json", 100, 50)).read_text())
    spec = msgspec.to_builtins(Compare(level=Level.STATUS))
    data = json.dumps(saved["comparison"]).encode()
    asked = []

    class Answering:
        def __init__(self, path: Path) -> None:
            assert path == Path("/s")

        def __enter__(self) -> Answering:
            return self

        def __exit__(self, *_: object) -> None: ...

        def report(self, name: str) -> tuple[dict[str, Any], bytes]:
            asked.append(name)
            if name == "busy":
                raise ControlError("failed", "the tap does not run")
            return {"tap": name, "compare": spec, "bytes": 1}, {"none": b"[]", "bad": b"{"}.get(name, data)

    monkeypatch.setattr(compared, "Client", Answering)
    for words, code, text in (
        (["verdict", "shop"], 1, "shop new: fail"),
        (["report", "shop", "--format", "markdown"], 0, "shop: new against production"),
        (["report", "busy"], 1, "the tap does not run"),
        (["report", "none"], 1, "none: no comparison yet"),
        (["report", "bad"], 1, "bad: the daemon's report cannot be read"),
        (["verdict", "none"], 3, "none: no comparison yet"),  # 1 would be a shadow that fails
        (["verdict", "busy"], 2, "the tap does not run"),
        (["verdict", "bad"], 2, "bad: the daemon's report cannot be read"),
        (["verdict", "l.json"], 1, "web new: fail"),
        (["verdict", "no/file"], 2, "no/file: No such file"),
    ):
        done = CliRunner().invoke(main, [*words, "--socket", "/s"])
        assert (done.exit_code, text in done.output) == (code, True), (words, done.output)
    assert asked == ["shop", "shop", "busy", "none", "bad", "none", "busy", "bad"]


def test_without_a_daemon_and_without_a_file_both_are_told(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["report", "web", "--socket", str(tmp_path / "none")])
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert "there is no file web, and no daemon at" in done.output


def test_a_saved_ledger_is_judged_as_its_tap_was(tmp_path: Path) -> None:
    """Without probes nothing ever tells noise, and what differs counts."""
    spec = Compare(level=Level.HEADERS, noise_probe=0)
    comparison = Comparison(spec, [("new", "http://new")], SampleRedactor([USUAL], b"k"))
    head = b"HTTP/1.1 200 OK\r\nServer: %d\r\n\r\n"
    for i in range(1000):
        asked = Asked(i + 1, b"GET", b"/a", b"GET /a?%d HTTP/1.1\r\n\r\n" % i, ended_ns=1000)
        delivery = Delivery(Response(200, head % (i % 2), first_ns=2_000_000, last_ns=2_000_000), 1000)
        comparison.paired(
            Exchange(asked, Response(200, head % 0, first_ns=2_000_000, last_ns=2_000_000), {0: delivery})
        )
    ledger = {"tap": "web", "comparison": [comparison.snapshot()]}
    outcomes = []
    for more in ({}, {SPEC: msgspec.to_builtins(spec)}, {SPEC: {"level": "much"}}):
        (tmp_path / "l.json").write_text(json.dumps({**ledger, **more}))
        outcomes.append(CliRunner().invoke(main, ["verdict", str(tmp_path / "l.json")]).exit_code)
    assert outcomes == [3, 1, 2]


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("none/found.html", "No such file or directory"),
        ("folder.html", "Is a directory"),
        ("plain/found.html", "No such file or directory"),
        ("locked/found.html", "Permission denied"),
        ("locked.html", "Permission denied"),
        (f"{'x' * 300}.html", "File name too long"),
    ],
)
def test_where_no_report_can_be_written_no_tap_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, problem: str
) -> None:
    """The tests may run as root, who may write anywhere but on a file system that is read-only."""
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "locked").mkdir()
    for name in ("plain", "locked.html"):
        (tmp_path / name).touch()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK or "locked" not in str(path))
    monkeypatch.setattr(run, "start", lambda *_: pytest.fail("a tap starts"))
    words = ["--iface=lo", "--port=80", "--shadow=192.0.2.1:80", "--compare=status", f"--report={tmp_path / file}"]
    done = CliRunner().invoke(main, ["run", *words])
    assert (done.exit_code, done.stderr) == (2, f"tapmirror: error: --report: {tmp_path / file}: {problem}\n")


@pytest.mark.parametrize("file", ["new.html", "old.html"])
def test_a_report_may_be_new_or_written_over(tmp_path: Path, file: str) -> None:
    (tmp_path / "old.html").write_text("old")
    compared.check_place(str(tmp_path / file))
    assert [each.name for each in tmp_path.iterdir()] == ["old.html"]


REPORT = "<html>" * 100


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report is this."""
    monkeypatch.setitem(FORMS, "html", lambda *_: REPORT)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("earlier", ["old", None])
def test_on_a_full_disk_the_earlier_report_stays(tmp_path: Path, earlier: str | None) -> None:
    """As good as full: a file may have ten bytes."""
    path = tmp_path / "a.html"
    if earlier is not None:
        path.write_text(earlier)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            compared.write_report([], str(path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == ([("a.html", "old")] if earlier else [])
    compared.write_report([], str(path))
    assert path.read_text() == REPORT and [*tmp_path.iterdir()] == [path]


@pytest.mark.usefixtures("short")
def test_where_a_report_goes_stays_as_it_is(tmp_path: Path) -> None:
    """A link goes on pointing there, a mode stays, and a pipe is written to."""
    link, file, pipe = tmp_path / "link.html", tmp_path / "file.html", tmp_path / "pipe.html"
    link.symlink_to(file)
    compared.write_report([], str(link))
    assert link.is_symlink() and file.read_text() == REPORT
    file.chmod(0o604)
    compared.write_report([], str(link))
    assert file.stat().st_mode & 0o777 == 0o604
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        compared.write_report([], str(pipe))
        assert os.read(reader, 1 << 20) == REPORT.encode() and stat.S_ISFIFO(pipe.stat().st_mode)
    finally:
        os.close(reader)


@pytest.mark.usefixtures("short")
def test_a_report_that_cannot_be_replaced_is_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it alone is mounted."""
    path = tmp_path / "a.html"
    path.write_text("old")

    def busy(*_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", busy)
        compared.write_report([], str(path))
    assert path.read_text() == REPORT and [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("command", ["report", "verdict"])
def test_where_nothing_can_be_printed_that_is_said(tmp_path: Path, command: str) -> None:
    """A verdict's exit code must not be that of a shadow that fails."""
    line = [sys.executable, "-m", "tapmirror", command, ledger(tmp_path / "l.json", 20_000, 0)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "tapmirror: error: what is printed cannot be written: No space left on device\n"
    done = subprocess.run([*["sh", "-c"], '"$@" >&-', "sh", *line], capture_output=True, text=True, check=False)
    if command == "verdict":  # the exit code is what was asked for
        assert (done.returncode, done.stderr) == (0, "")
    else:
        error = "tapmirror: error: what is printed cannot be written: standard output is closed\n"
        assert (done.returncode, done.stderr) == (2, error)


def test_a_verdict_that_nobody_reads_is_its_exit_code(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "tapmirror", "verdict", ledger(tmp_path / "l.json", 20_000, 0)]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(line, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_alpha_is_a_number(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["verdict", ledger(tmp_path / "l.json", 10, 0), "--alpha", "nan"])
    assert (done.exit_code, done.output) == (
        2,
        "tapmirror: error: --alpha: 'nan' is not a probability above 0, up to 0.5\n",
    )
