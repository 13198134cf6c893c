"""Triton's reasons for not loading a model, in one clear line, with what mends it.

:data:`RULES` is read from the top; the first pattern found in the reason wins.  ``{name}`` in a cause or mend stands
for the pattern's group of that name, or for the model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """A reason as Triton words it, and its cause and mend in ours."""

    pattern: re.Pattern[str]
    cause: str
    mend: str


@dataclass(frozen=True)
class Explanation:
    """Why a model is not served: one line, and the flag or command that mends it."""

    cause: str
    hint: str | None


def _rule(pattern: str, cause: str, mend: str) -> Rule:
    return Rule(re.compile(pattern, re.DOTALL), cause, mend)


RULES: tuple[Rule, ...] = ()


def explain(model: str, reason: str) -> Explanation:
    """Return the cause and mend of ``reason``, or the reason itself, tidied, where no rule knows it."""
    for rule in RULES:
        if match := rule.pattern.search(reason):
            words = {"model": model, **{key: value or "" for key, value in match.groupdict().items()}}
            return Explanation(rule.cause.format(**words), rule.mend.format(**words))
    return Explanation(tidy(reason), None)


def tidy(reason: str) -> str:
    """Return ``reason`` on one line, without Triton's status words and Python's traceback."""
    text = re.split(r"\n\nAt:\n", reason)[0]
    text = re.sub(r"^(?:Internal|Invalid argument|Not found|Unavailable|Unsupported): ", "", text)
    text = re.sub(r"^TritonModelException: ", "", text)
    return " ".join(text.split())


_POLL_FAILURE = re.compile(r"Poll failed for model directory '(?P<name>[^']*)': (?P<reason>.*?)\"?$", re.MULTILINE)


def reasons_in_log(log: str) -> dict[str, str]:
    """Return the reasons, by model, that Triton writes only to its log: those of models it could not even read."""
    return {match["name"]: match["reason"] for match in _POLL_FAILURE.finditer(log)}
