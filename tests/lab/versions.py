# SPDX-License-Identifier: Apache-2.0
"""Other versions of the package: copies of it in which a few lines are others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final, TypeAlias

import tapmirror
from lab.hosts import LabError
from tapmirror.contract import bpf_text

Change: TypeAlias = tuple[str, str, str]
"""A file, a text that it has once, and what stands there instead."""

LAYOUT: Final[tuple[Change, ...]] = (
    (
        "bpf/tap.h",
        "\t__u32 seq;\n\t__u32 ack;\n\t__u32 length; /* of the payload on the wire */\n\t__u32 caplen;\n",
        "\t__u32 length; /* of the payload on the wire */\n\t__u32 caplen;\n\t__u32 seq;\n\t__u32 ack;\n",
    ),
    (
        "tapmirror/source/ring.py",
        "_, _, _, length, _, _, flags, _ = RECORD",
        "_, length, _, _, _, _, flags, _ = RECORD",
    ),
    (
        "tapmirror/source/ring.py",
        "time_ns, seq, ack, length, caplen, _, flags, key = unpack",
        "time_ns, length, caplen, seq, ack, _, flags, key = unpack",
    ),
    ("tapmirror/handover.py", 'return {"own": own.saved(), ', 'return {"mine": own.saved(), '),
    ("tapmirror/handover.py", 'own.restore(past["own"])', 'own.restore(past["mine"])'),
)
"""Records of the ring in another order, and the ledgers that a worker leaves under another name."""
FORMATS: Final[tuple[Change, ...]] = (
    ("tapmirror/supervisor/state.py", "VERSION: Final = 1\n", "VERSION: Final = 2\n"),
    ("tapmirror/control/messages.py", "VERSION: Final = 1\n", "VERSION: Final = 2\n"),
    ("tapmirror/control/messages.py", "    v: Literal[1] = 1\n", "    v: Literal[2] = 2\n"),
    ("tapmirror/bytecode.py", "FORM: Final = 1\n", "FORM: Final = 2\n"),
)
"""The kept taps, the protocol of the socket and the kept programs."""


def version(folder: Path, number: str, *changes: Change) -> Path:
    """The package as this version, with these changes, in a folder; what is there of another one is replaced."""
    package = Path(tapmirror.__file__).parent
    shutil.copytree(package, folder / "tapmirror", ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    (folder / "bpf").mkdir(exist_ok=True)
    for name in ("tap.h", "tap.c"):
        (folder / "bpf" / name).write_text(bpf_text(name), encoding="utf-8")
    own = ("tapmirror/__init__.py", f'__version__ = "{tapmirror.__version__}"', f'__version__ = "{number}"')
    for name, old, new in (own, *changes):
        path = folder / name
        text = path.read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise LabError(f"{name} has not once {old!r}")
        path.write_text(text.replace(old, new), encoding="utf-8")
    return folder
