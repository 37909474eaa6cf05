# SPDX-License-Identifier: Apache-2.0
"""The directory of taps: all of its files or none, and everything that is wrong is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tapmirror.spec.settings import AllTaps, Settings
from tapmirror.supervisor import folder
from tapmirror.supervisor.folder import FolderError, both, read, settings

TAP = "name: {}\niface: eth0\nport: 80\nshadow: s.test:80\n"


def test_every_yaml_file_is_read_and_nothing_else(tmp_path: Path) -> None:
    assert read(tmp_path / "none") == {}
    assert read(tmp_path) == {}
    (tmp_path / "b.yaml").write_text(f"{TAP.format('b')}---\n{TAP.format('c')}")
    (tmp_path / "a.yaml").write_text(TAP.format("a"))
    (tmp_path / "d.yml").write_text(TAP.format("d"))
    for name in ("a.yaml~", ".hidden.yaml", "README"):
        (tmp_path / name).write_text("{{{")
    found = read(tmp_path)
    assert {name: file for name, (file, _) in found.items()} == {
        "a": "a.yaml",
        "b": "b.yaml",
        "c": "b.yaml",
        "d": "d.yml",
    }
    assert found["c"][1].name == "c"


def test_workers_that_are_automatic_are_as_many_as_this_host_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "automatic", lambda: 3)
    (tmp_path / "a.yaml").write_text(f"{TAP.format('a')}workers: auto\nbudget: {{memory: 100000000}}\n")
    with pytest.raises(FolderError, match=r"a\.yaml:6: budget\.memory: .* the 126 MiB that 3 workers hold .*auto\)$"):
        read(tmp_path)
    assert "a" in read(tmp_path, kept=True)


@pytest.mark.parametrize(
    ("count", "last"),
    [(1, None), (2, "p2"), (folder.TOLD, f"p{folder.TOLD}"), (1000, f"and {1000 - folder.TOLD} more")],
)
def test_what_is_told_to_who_asked_has_a_bound(count: int, last: str | None) -> None:
    told = FolderError([f"p{number}" for number in range(1, count + 1)]).told()
    assert told == [] if last is None else told[-1] == last and len(told) == min(count, folder.TOLD + 1)


def test_one_bad_file_and_none_counts(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(TAP.format("a"))
    (tmp_path / "b.yaml").write_text(f"{TAP.format('b')}percent: 101\nnonsense: 1\n")
    (tmp_path / "c.yaml").write_text(TAP.format("a"))
    (tmp_path / "d.yaml").mkdir()
    os.mkfifo(tmp_path / "e.yaml")
    (tmp_path / "f.yaml").symlink_to("gone")
    (tmp_path / "g.yaml").write_text("# nothing yet\n")
    with pytest.raises(FolderError, match="more") as caught:
        read(tmp_path)
    problems = [problem.removeprefix(f"{tmp_path}/") for problem in caught.value.problems]
    assert problems == [
        "b.yaml:5: percent: 101.0 is not between 0 and 100",
        "b.yaml:6: nonsense: no such field of a tap",
        "c.yaml: name: a.yaml has a tap 'a' too",
        "d.yaml: Is a directory",
        "e.yaml: not a regular file",
        "f.yaml: No such file or directory",
        "g.yaml: no tap in it",
    ]


def test_of_files_there_is_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "MAX_FILES", 2)
    for name in "ab":
        (tmp_path / f"{name}.yaml").write_text(TAP.format(name))
    assert set(read(tmp_path)) == {"a", "b"}
    (tmp_path / "c.yaml").write_text(TAP.format("c"))
    with pytest.raises(FolderError, match=r"more than 2 files$"):
        read(tmp_path)


def test_rules_of_kubernetes(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "kind: VirtualService\napiVersion: networking.istio.io/v1\nmetadata: {name: reviews}\n"
        "spec: {hosts: [reviews], http: [{mirror: {host: s.test, port: {number: 80}}}]}\n"
        "---\nname: reviews\niface: eth0\nport: 9080\n"
    )
    ((name, (file, spec)),) = read(tmp_path).items()
    assert (name, file, spec.iface, spec.ports) == ("reviews", "a.yaml", "eth0", (9080,))


def test_settings(tmp_path: Path) -> None:
    path = tmp_path / "daemon.yaml"
    assert settings(path) == Settings()
    path.write_text("budget: {cpu: 1.5}\n")
    assert settings(path).budget == AllTaps(cpu=1.5)
    path.write_text("budget: {cpu: 1.5, disk: 1}\ncpu: 1\n")
    with pytest.raises(FolderError) as caught:
        settings(path)
    assert caught.value.problems == [
        f"{path}:1: budget.disk: no such field of the budget of all taps",
        f"{path}:2: cpu: no such field of daemon.yaml",
    ]
    path.unlink()
    path.mkdir()
    with pytest.raises(FolderError, match=r"not a regular file|Is a directory"):
        settings(path)


def test_what_is_wrong_with_either_is_told_with_the_other(tmp_path: Path) -> None:
    file, taps = tmp_path / "daemon.yaml", tmp_path / "taps.d"
    assert both(file, taps) == (Settings(), {})
    taps.mkdir()
    file.write_text("budget: {cpu: 1.5}\n")
    (taps / "a.yaml").write_text("iface: eth0\nport: 80\nshadow: a:80\n")
    said, found = both(file, taps)
    assert (said.budget, list(found)) == (AllTaps(cpu=1.5), ["tap"])
    file.write_text("cpu: 1\n")
    with pytest.raises(FolderError) as caught:
        both(file, taps)
    assert caught.value.problems == [f"{file}:1: cpu: no such field of daemon.yaml"]
    (taps / "a.yaml").write_text("iface: eth0\nport: 0\nshadow: a:80\n")
    with pytest.raises(FolderError) as caught:
        both(file, taps)
    assert [problem.partition(": ")[0] for problem in caught.value.problems] == [f"{file}:1", f"{taps / 'a.yaml'}:2"]
