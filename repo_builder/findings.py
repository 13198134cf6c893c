"""What ``doctor`` finds: one line each, with its mend."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(str, Enum):
    """How a finding ends: WRONG is what would fail, WARNING what may, or what is missing but not needed by all."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report; ``mend`` names the command or flag that helps."""

    subject: str
    level: Level
    text: str
    mend: str | None = None


def ok(subject: str, text: str) -> Finding:
    return Finding(subject, Level.OK, text)
