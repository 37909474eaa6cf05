# SPDX-License-Identifier: Apache-2.0
"""nginx's language, its bounds, and what is no configuration; nginx itself is asked about the same texts."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapmirror.spec.document import FileError
from tapmirror.spec.nginx_syntax import MAX_BYTES, MAX_DEPTH, Directive, decoded, parse


def plain(directive: Directive) -> list[object]:
    return [directive.name, *directive.args, *([] if directive.block is None else [list(map(plain, directive.block))])]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", []),
        ("a;", [["a"]]),
        ("a b\tc\n d;", [["a", "b", "c", "d"]]),
        ("a { b c; d { } }", [["a", [["b", "c"], ["d", []]]]]),
        ("# no; { \na; # x\n", [["a"]]),
        ("a b#c;", [["a", "b#c"]]),
        ("""a "b; c" 'd "e" {';""", [["a", "b; c", 'd "e" {']]),
        (r"a ~ \.php$;", [["a", "~", r"\.php$"]]),
        (r'a "\"\n\\x";', [["a", '"\n\\x']]),
        (r"a b\ c\;d;", [["a", r"b\ c\;d"]]),
        ("a ${b}c$d;", [["a", "${b}c$d"]]),
        ("a ${b}{c;}", [["a", "${b}", [["c"]]]]),
        ('if ($x = "") { return 204; }', [["if", "($x", "=", "", ")", [["return", "204"]]]]),
        ("\ufeffa;", [["a"]]),
    ],
)
def test_directives(text: str, wanted: list[object]) -> None:
    assert [plain(each) for each in parse(decoded(text.encode())).block or []] == wanted


def test_lines() -> None:
    top = parse("a;\n# x\nb\n  c {\n 'd\n' e;\n f; }\n")
    (a, b) = top.block or []
    assert (a.line, b.line) == (1, 3) and [each.line for each in b.block or []] == [5, 7]
    assert top.last("b") is b and top.last("x") is None and b.all("f") == (b.block or [])[1:]


LUA = """\
init_by_lua_block { local t = {a = 1}; }
set_by_lua_block $x {
  -- it's a } in a comment
  --[==[ } ]] } ]==]
  local s = "\\"}" .. '}' .. [[ } ]] .. [=[ ]] } ]=]
  if s then return { s } end
}
b;
"""


def test_lua_is_read_up_to_its_end() -> None:
    top = parse(LUA)
    assert [plain(each) for each in top.block or []] == [
        ["init_by_lua_block", []],
        ["set_by_lua_block", "$x", []],
        ["b"],
    ]
    assert [each.line for each in top.block or []] == [1, 2, 8]


WRONG = [
    ("a", "1: a: the file ends before its ; or {"),
    ("\na {", "2: a: its } is missing"),
    ("a }", "1: a: ; is missing before }"),
    ("a;\n}", "2: } without {"),
    ("{ }", "1: { without a name before it"),
    (";", "1: ; without a directive before it"),
    ("a 'b;\n\n", "1: the closing ' is missing"),
    ("a 'b'c;", "1: 'c' right behind a quoted text"),
    ("a ${b;", "1: ${ without }"),
    ("\nx_by_lua_block {\n -- }\n", "2: x_by_lua_block: the } that ends its Lua is missing"),
    ("\nx_by_lua_block {\n '}\n }", "3: x_by_lua_block: a text or comment in its Lua does not end"),
    ("x_by_lua_block {" + "--[[\n" * 100_000, "1: x_by_lua_block: a text or comment in its Lua does not end"),
    ("x_by_lua_block {" + "{\n" * 100_000, "1: x_by_lua_block: the } that ends its Lua is missing"),
]


@pytest.mark.parametrize(("text", "wanted"), WRONG)
def test_what_is_no_configuration(text: str, wanted: str) -> None:
    with pytest.raises(FileError) as caught:
        parse(text)
    assert [str(problem) for problem in caught.value.found] == [wanted]


@pytest.mark.parametrize("text", [text for text, _ in WRONG])
def test_nginx_does_not_take_it_either(tmp_path: Path, text: str) -> None:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed")
    (tmp_path / "nginx.conf").write_text(text)
    done = subprocess.run([program, "-t", "-p", tmp_path, "-c", "nginx.conf", "-e", "stderr"], capture_output=True)
    assert done.returncode != 0


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"a;\nb \xff;", "2: not UTF-8"),
        (b"a " * (MAX_BYTES // 2 + 1), "longer than 1 MiB"),
        (b"a {" * (MAX_DEPTH + 1), f"1: a: nested deeper than {MAX_DEPTH} levels"),
    ],
)
def test_bounds(data: bytes, wanted: str) -> None:
    with pytest.raises(FileError, match=wanted):
        parse(decoded(data))


@given(
    st.lists(
        st.sampled_from(
            ["a", "a_by_lua_block {", "--[[", " ", ";", "{", "}", "'", '"', "\\", "$", "${", "#", "\n", ")", "\0"]
        )
    )
)
def test_whatever_it_is_it_is_read_or_refused(parts: list[str]) -> None:
    with contextlib.suppress(FileError):
        parse("".join(parts))
