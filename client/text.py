"""Text for one line of a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_NAMES: Final = 20


def printable(text: object) -> str:
    """``text`` without what a terminal would obey: a label may hold escape sequences."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def shortened(text: str, most: int) -> str:
    """``text``, or its beginning and dots, in at most so many characters."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def listed(names: Sequence[str]) -> str:
    """``a, b, c``, cut where a line of names would become a page of them."""
    more = len(names) - _NAMES
    return ", ".join(names[:_NAMES]) + (f" and {more} more" if more > 0 else "")


def one_line(text: str) -> str:
    """The first line; the traceback of a Python-based backend follows it."""
    return text.strip().partition("\n")[0].strip()
