# SPDX-License-Identifier: Apache-2.0
"""Which parts of a path are words of the application, and which are identifiers that change each time.

Used for paths of requests (`/users/{id}`) and for names in JSON objects.  Only the form of a word is considered;
`endpoints` learns what the form does not show.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

NAME: Final = 60
"""Most characters of a name.  A longer one is `{}`: if it were cut, a secret in it might not be recognised any more."""
WORD: Final = 64
"""A word longer than this is an identifier, whatever its form: time and memory are spent only on shorter ones."""

_IDENTIFIER: Final = re.compile(
    r"[0-9]+"  # numbers
    r"|[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"  # UUIDs (RFC 9562)
    r"|(?=[a-f]*[0-9])[0-9a-f]{8,}|(?=[A-F]*[0-9])[0-9A-F]{8,}"  # hashes, object identifiers
    r"|[0-9]{1,4}[-.:_T/][0-9][-0-9.:_TZ+]*"  # dates, versions of data, addresses
    r"|[^@]+(?:@|%40)[^@]+"  # mail addresses
    r"|(?=[^0-9]*[0-9])(?=[^A-Za-z]*[A-Za-z])[0-9A-Za-z_=-]{16,}"  # tokens: long, letters and digits
    r"|[A-Za-z]{1,10}[-_]?[0-9]{3,}"  # user123, ORD-00017
)


def variable(word: str) -> bool:
    """Whether a word looks like an identifier."""
    return len(word) > WORD or _variable(word)


def shortened(name: str) -> str:
    """A name in a path: `{}` for an identifier, printable, not long."""
    return "{}" if len(name) > NAME else _shortened(name)


@lru_cache(4096)
def _variable(word: str) -> bool:
    return _IDENTIFIER.fullmatch(word) is not None


@lru_cache(4096)
def _shortened(name: str) -> str:
    if name.isidentifier() and len(name) < 16 and not name[-1].isdigit():
        return name
    if _variable(name):
        return "{}"
    return name if name.isprintable() else "".join(c if c.isprintable() else "?" for c in name)


def clean(text: str) -> str:
    """One line without control characters."""
    return "".join(c if c.isprintable() else "·" for c in text)
