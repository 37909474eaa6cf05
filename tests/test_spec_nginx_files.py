# SPDX-License-Identifier: Apache-2.0
"""What `nginx -T` prints is read as nginx reads its files; nginx itself prints it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tapmirror.spec.document import FileError
from tapmirror.spec.nginx import from_nginx
from tapmirror.spec.nginx_files import read
from tapmirror.spec.nginx_syntax import Directive


def plain(directive: Directive) -> list[object]:
    return [directive.name, *directive.args, *([] if directive.block is None else [list(map(plain, directive.block))])]


def printed(main: str, **files: str) -> bytes:
    """As `nginx -T` does; of a file's name `__` is `/`."""
    named = {"/etc/nginx/nginx.conf": main} | {
        f"/etc/nginx/{name.replace('__', '/')}": text for name, text in files.items()
    }
    return "".join(f"# configuration file {path}:\n{text}\n" for path, text in named.items()).encode()


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"include x;", [["include", "x"]]),
        (printed("a;"), [["a"]]),
        (b"nginx: the configuration file /x syntax is ok\n" + printed("a;"), [["a"]]),  # 2>&1
        (b"a;\n" + printed("b;"), [["a"], ["b"]]),  # a comment that looks like that
        (printed("http { include d/*; c; }", d__b="b;", d__a="a { }"), [["http", [["a", []], ["b"], ["c"]]]]),
        (printed("include /etc/nginx/x; include x;", x="include y;", y="b;"), [["b"], ["b"]]),
        (printed("include d/*; a;", d__e__f="b;"), [["a"]]),  # `*` stands for no slash, and may stand for nothing
        (printed("include x;"), [["include", "x"]]),
    ],
)
def test_files_stand_where_they_are_included(data: bytes, wanted: list[object]) -> None:
    assert [plain(each) for each in read(data).block or []] == wanted


def test_lines_are_those_of_the_whole() -> None:
    (a, b, c) = read(printed("a;\ninclude x;\nc;", x="\nb;")).block or []
    assert (a.line, b.line, c.line) == (2, 7, 4)


@pytest.mark.parametrize("inner", ["include x;", "include x; include x;", "b { include x; }"])
def test_files_that_include_themselves_are_refused(inner: str) -> None:
    with pytest.raises(FileError, match="include too much"):
        read(printed("include x;", x=inner))


def test_what_nginx_prints_of_sites_that_mirror(tmp_path: Path) -> None:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed")
    for name in ("conf.d", "sites"):
        (tmp_path / name).mkdir()
    (tmp_path / "nginx.conf").write_text(
        "pid nginx.pid; events { }\nhttp { access_log off; include conf.d/*.conf; include sites/*; }\n"
    )
    (tmp_path / "pass").write_text(
        "proxy_set_header Host shadow.internal; proxy_pass http://10.0.0.9:81$request_uri;\n"
    )
    (tmp_path / "sites" / "web").write_text(
        "server { listen 8080; location / { mirror /m; return 204; }\nlocation = /m { internal; include pass; } }\n"
    )
    done = subprocess.run(
        [program, "-T", "-p", tmp_path, "-c", "nginx.conf", "-e", "stderr"], capture_output=True, check=True
    )
    found = from_nginx(done.stdout, "eth0")
    assert found.left_out == []
    (tap,) = found.taps
    assert tap["ports"] == [8080]
    ((shadow),) = tap["shadows"]
    assert (shadow["host"], shadow["port"], shadow["rewrite"]) == ("10.0.0.9", 81, {"host": "shadow.internal"})
