"""Text that a terminal may be shown: names and metadata come from files, and may hold what moves its cursor."""

from __future__ import annotations

import unicodedata

_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # control, format (those that turn the direction too), unassigned


def printable(text: str, keep: str = "") -> str:
    r"""`text` with escapes for what is no visible character; `keep`: of these, what stays.

    >>> printable("a\x1b[2Jb\u202e")
    'a\\x1b[2Jb\\u202e'
    """
    if text.isprintable():
        return text
    return "".join(
        c if c in keep or unicodedata.category(c) not in _HIDDEN else c.encode("unicode_escape").decode() for c in text
    )
