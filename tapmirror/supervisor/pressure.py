# SPDX-License-Identifier: Apache-2.0
"""The host's pressure: how much of the last ten seconds something waited for CPU or memory.  Nothing else.

The kernel's pressure stall information (Documentation/accounting/psi.rst).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

PSI: Final = Path("/proc/pressure")
_SOME: Final = re.compile(r"^some avg10=([0-9.]+) ", re.MULTILINE)


def some(resource: str, root: Path = PSI) -> float:
    """Percent of the last ten seconds in which at least one task waited for `cpu` or `memory`.

    0 where the kernel does not tell (no CONFIG_PSI, or `psi=0`): then the other measures must do.
    """
    try:
        found = _SOME.search((root / resource).read_text(encoding="ascii"))
    except OSError:
        return 0.0
    return float(found[1]) if found else 0.0
