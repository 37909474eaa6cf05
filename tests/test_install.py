# SPDX-License-Identifier: Apache-2.0
"""The service in an image: put in place, again, taken away, nothing of the user gone.  The unit as systemd sees it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tapmirror import install as module
from tapmirror import loader, privsep
from tapmirror.cli.main import COMMANDS
from tapmirror.install import COMMAND as COMMAND_AS_SHIPPED
from tapmirror.install import (
    EXAMPLE,
    FILES,
    HIDDEN,
    UNIT,
    InstallError,
    Step,
    carry_out,
    deployed,
    install_plan,
    uninstall_plan,
)
from tapmirror.spec import Limits
from tapmirror.spec.reading import read_taps
from tapmirror.supervisor import places, serve

COMMAND = Path("/opt/tapmirror/bin/tapmirror")
EXPOSURE = 2.5
"""The most that `systemd-analyze security` may say."""


def installed(root: Path) -> list[str]:
    return [step.verb for step in carry_out(install_plan(root, COMMAND))]


def there(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_install_twice_then_uninstall(tmp_path: Path) -> None:
    assert installed(tmp_path) == ["write"] * 4
    assert there(tmp_path) == {*FILES, EXAMPLE}
    assert installed(tmp_path) == ["keep", "keep", "keep", "leave"]
    steps = list(carry_out(uninstall_plan(tmp_path)))
    assert [step.verb for step in steps] == ["remove"] * 4 + ["leave"]
    assert there(tmp_path) == set()
    assert [step.verb for step in uninstall_plan(tmp_path)] == ["leave"]


def test_compiled_programs_go_with_the_service(tmp_path: Path) -> None:
    installed(tmp_path)
    cache = tmp_path / "var/cache/tapmirror"
    cache.mkdir(parents=True)
    (cache / "0123abcd").write_bytes(b"x")
    list(carry_out(uninstall_plan(tmp_path)))
    assert there(tmp_path) == set() and not cache.exists()


def test_a_plan_does_nothing(tmp_path: Path) -> None:
    install_plan(tmp_path, COMMAND)
    assert not list(tmp_path.iterdir())


def test_an_older_unit_is_replaced(tmp_path: Path) -> None:
    installed(tmp_path)
    (tmp_path / UNIT).write_text("[Service]\n")
    assert installed(tmp_path) == ["write", "keep", "keep", "leave"]
    assert f"ExecStart={COMMAND} daemon" in (tmp_path / UNIT).read_text()


def test_what_is_the_users_stays(tmp_path: Path) -> None:
    installed(tmp_path)
    mine = {"etc/tapmirror/taps.d/web.yaml", "var/lib/tapmirror/taps.json", "etc/default/tapmirror", EXAMPLE}
    for name in mine:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    assert installed(tmp_path)[-1] == "leave"
    said = [str(step) for step in carry_out(uninstall_plan(tmp_path))]
    assert there(tmp_path) == mine
    assert f"leave  {tmp_path}/etc/tapmirror" in said
    assert f"leave  {tmp_path}/var/lib/tapmirror" in said


def test_a_packages_service_is_left_alone(tmp_path: Path) -> None:
    unit = tmp_path / "lib/systemd/system/tapmirror.service"
    unit.parent.mkdir(parents=True)
    unit.touch()
    with pytest.raises(InstallError, match="a package of this system has the service"):
        install_plan(tmp_path, COMMAND)
    with pytest.raises(InstallError, match="a package of this system has the service"):
        uninstall_plan(tmp_path)


def test_what_hides_a_packages_service_can_be_taken_away(tmp_path: Path) -> None:
    installed(tmp_path)
    unit = tmp_path / "usr/lib/systemd/system/tapmirror.service"
    unit.parent.mkdir(parents=True)
    unit.touch()
    cached = tmp_path / "var/cache/tapmirror/0123abcd"
    cached.parent.mkdir(parents=True)
    cached.touch()
    list(carry_out(uninstall_plan(tmp_path)))
    assert there(tmp_path) == {str(path.relative_to(tmp_path)) for path in (unit, cached)} | {EXAMPLE}


def test_a_packages_unit_that_was_edited_in_full_is_left_alone(tmp_path: Path) -> None:
    for name in ("lib/systemd/system/tapmirror.service", UNIT):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    with pytest.raises(InstallError, match="a package of this system has the service"):
        uninstall_plan(tmp_path)


def test_an_image_keeps_no_link_that_would_start_it(tmp_path: Path) -> None:
    installed(tmp_path)
    link = tmp_path / "etc/systemd/system/multi-user.target.wants/tapmirror.service"
    link.parent.mkdir()
    link.symlink_to("/" + UNIT)
    list(carry_out(uninstall_plan(tmp_path)))
    assert not link.is_symlink()


@pytest.mark.parametrize("hidden", HIDDEN)
def test_a_command_that_the_service_could_not_see_is_refused(tmp_path: Path, hidden: str) -> None:
    with pytest.raises(InstallError, match="the service cannot look there"):
        install_plan(tmp_path, Path(hidden, "x/bin/tapmirror"))


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("usr/local/bin/tapmirror", "/home/me/.venv/bin/tapmirror"),
        ("usr/local/bin/tapmirror", "../../../home/me/tapmirror"),
        ("usr/local/bin", "/root/bin"),
    ],
)
def test_a_command_that_is_a_link_is_where_it_leads(tmp_path: Path, link: str, target: str) -> None:
    """As the service would have it: below the root of the image."""
    (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / link).symlink_to(target)
    with pytest.raises(InstallError, match=r"^/usr/local/bin/tapmirror leads to /(home|root)/.*: the service cannot"):
        install_plan(tmp_path, Path("/usr/local/bin/tapmirror"))


def test_what_hides_a_home_hides_it_by_each_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "home").symlink_to("/data/home")
    for command in ("/data/home/me/tapmirror", "/home/me/tapmirror", "/opt/../home/me/tapmirror"):
        with pytest.raises(InstallError, match="the service cannot look there"):
            install_plan(tmp_path, Path(command))


@pytest.mark.parametrize("target", ["srv/../srv", "opt"])
def test_a_link_elsewhere_is_taken_and_one_to_itself_ends(tmp_path: Path, target: str) -> None:
    (tmp_path / "opt").symlink_to(target)
    assert install_plan(tmp_path, COMMAND)


@pytest.mark.parametrize(
    "command", ["tapmirror", "./x/tapmirror", "/opt/my app/t", "/opt/50%/t", "/opt/$x/t", "/opt/a\n/t"]
)
def test_a_command_that_a_unit_would_read_otherwise_is_refused(tmp_path: Path, command: str) -> None:
    with pytest.raises(InstallError, match=r"^'.*': a unit wants the whole path of a command, without spaces"):
        install_plan(tmp_path, Path(command))


def test_on_this_host_the_command_is_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m tapmirror` is no command that a unit could run; in an image it may come later."""
    monkeypatch.setattr(module, "PACKAGED", ())
    with pytest.raises(InstallError, match="cannot be executed; give the command with --command"):
        install_plan(Path("/"), Path("/opt/no-such-command"))
    with pytest.raises(InstallError, match="cannot be executed"):
        install_plan(Path("/"), Path("/etc/passwd"))
    assert install_plan(Path("/"), Path("/bin/sh"))


def test_files_can_be_read_by_all_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        installed(tmp_path)
    finally:
        os.umask(before)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in (*FILES, EXAMPLE)} == {0o644}


def test_in_an_image_nothing_is_run_and_on_this_host_what_fails_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SYSTEMD", tmp_path)  # as where systemd runs
    steps = [*install_plan(tmp_path, COMMAND), *uninstall_plan(tmp_path)]
    assert "run" not in {step.verb for step in steps}
    with pytest.raises(InstallError, match=r"^false: status 1$"):
        list(carry_out([Step("run", "false", words=("false",))]))


def test_a_root_that_cannot_be_written_to_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("")
    with pytest.raises(InstallError, match=r"tapmirror.service: (Not a directory|File exists)$"):
        installed(tmp_path)


def test_the_example_is_a_tap() -> None:
    (tap,) = read_taps(deployed("example.yaml.disabled"))
    assert tap.name == "example"


# --- the unit


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with a command that is there."""
    if shutil.which("systemd-analyze") is None:
        if os.environ.get("CI") or os.environ.get("TAPMIRROR_REQUIRE_ALL"):
            pytest.fail("systemd-analyze is missing: scripts/setup installs it")
        pytest.skip("no systemd-analyze here")
    path = tmp_path / "tapmirror.service"
    path.write_bytes(deployed("tapmirror.service").replace(b"/usr/bin/tapmirror", os.fsencode(sys.executable)))
    return path


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, timeout=300, check=False)


def test_systemd_takes_the_unit_without_a_word(unit: Path) -> None:
    done = analyze("verify", "--man=no", str(unit))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_exposure(unit: Path) -> None:
    done = analyze("security", "--offline=true", f"--threshold={int(EXPOSURE * 10)}", str(unit))
    assert done.returncode == 0, done.stdout
    found = re.search(r"Overall exposure level for tapmirror.service: ([0-9.]+)", done.stdout)
    assert found is not None
    assert float(found[1]) <= EXPOSURE


def test_a_reload_is_waited_for_and_can_fail() -> None:
    # systemd.service(5): a signal in ExecReload= is not a good choice, for nobody learns what became of it.
    (line,) = [x for x in deployed("tapmirror.service").decode().splitlines() if x.startswith("ExecReload=")]
    command, verb = line.removeprefix("ExecReload=").split()
    assert command == COMMAND_AS_SHIPPED
    assert verb in COMMANDS


def settings() -> dict[str, str]:
    """Of the unit, by name."""
    lines = deployed("tapmirror.service").decode().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_the_unit_is_what_the_daemon_counts_on() -> None:
    unit = settings()
    assert (unit["Type"], unit["KillMode"]) == ("notify", "mixed")
    assert int(unit["WatchdogSec"]) / 2 > 10 * serve.TICK
    assert int(unit["TimeoutStopSec"]) > serve.STOP_TIME
    assert (unit["Restart"], unit["RestartPreventExitStatus"]) == ("on-failure", "2")  # of `PlaceError`
    assert (places.RUNTIME, places.STATE, Path(loader.CACHE)) == (
        Path("/run", unit["RuntimeDirectory"]),
        Path("/var/lib", unit["StateDirectory"]),
        Path("/var/cache", unit["CacheDirectory"]),
    )
    assert unit["RuntimeDirectoryPreserve"] == "yes"  # the file STOP is in it
    assert (unit["RuntimeDirectoryMode"], unit["StateDirectoryMode"]) == ("0750", "0700")
    assert unit["Group"] == serve.GROUP
    assert "User" not in unit  # who is named has no CAP_SETUID, from systemd 255 on
    assert int(unit["LimitNOFILE"]) > 16 * Limits().connections


def test_the_user_of_workers_is_not_in_the_group_that_may_change_taps(tmp_path: Path) -> None:
    if shutil.which("systemd-sysusers") is None:
        pytest.skip("no systemd-sysusers here")
    (tmp_path / "etc").mkdir()
    (tmp_path / "conf").write_bytes(deployed("sysusers.conf"))
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}", tmp_path / "conf"], check=True, capture_output=True)
    groups = [line.split(":") for line in (tmp_path / "etc/group").read_text().splitlines()]
    members = {name: (gid, who) for name, _, gid, who in groups}
    (user,) = (tmp_path / "etc/passwd").read_text().splitlines()
    assert user.split(":")[0] == privsep.WORKER_USERS[0]
    assert members[serve.GROUP][0] != user.split(":")[3] and members[serve.GROUP][1] == ""


def test_a_worker_that_the_kernel_ends_does_not_end_the_daemon() -> None:
    # systemd.service(5): by default, where a process of a unit is ended for want of memory, all of it is.
    assert "\nOOMPolicy=continue\n" in deployed("tapmirror.service").decode()


def test_every_capability_is_justified() -> None:
    text = deployed("tapmirror.service").decode()
    granted = re.findall(r"CAP_\w+", next(x for x in text.splitlines() if x.startswith("CapabilityBoundingSet=")))
    reasons = "\n".join(line for line in text.splitlines() if line.startswith("#   CAP_"))
    assert len(granted) == 7
    assert set(granted) == set(re.findall(r"CAP_\w+", reasons))
