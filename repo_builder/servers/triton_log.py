"""What Triton's log alone tells: why models and plans were not read, which are loaded, why a server ended."""

from __future__ import annotations

import re

from repo_builder.servers.load_errors import tidy

LAST_WORDS = 300  # characters of a log's line that an error quotes
# Triton's line of news, or of a table; its errors and whatever else a program or a library says are none.
_NEWS = re.compile(r"[IWV]\d{4} |[|+]|[^\w]*$")

# Of a plan that TensorRT refused, the index says only that; TensorRT's words stand before it in the log, without the
# model's name.  Models load side by side, so what came since the model before failed is the best guess.
_TENSORRT_LINE = re.compile(r"^E.* logging\.cc:\d+\] \"?(?P<what>.*?)\"?$")
_PLAN_FAILED = re.compile(
    r"failed to load '(?P<model>.*?)' version \d+: .*(?:unable to load plan|unable to create TensorRT)"
)


def plan_errors(log: str) -> dict[str, str]:
    """Return what TensorRT said of the plans it refused, by model."""
    errors: dict[str, str] = {}
    said: list[str] = []
    complete = False
    for line in log.splitlines():
        if match := _TENSORRT_LINE.search(line):
            said, complete = ([] if complete else said), False
            said.append(match["what"])
        elif match := _PLAN_FAILED.search(line):
            errors[match["model"]] = "; ".join(said)
            complete = True
    return errors


# Models that Triton could not even read are in no index, or there without a reason; its log alone says why.
_PROTO_ERROR = re.compile(r"Error parsing text-format inference\.ModelConfig: (?P<what>\d+:\d+: .*)")
_UNREAD = (
    re.compile(r"Poll failed for model directory '(?P<model>.*?)': (?P<reason>.*?)\"?$"),
    re.compile(r"failed to load model '(?P<model>.*?)': (?P<reason>.*?)\"?$"),
    re.compile(r"(?P<reason>ensemble '(?P<model>.*?)' depends on .*?)\"?$"),
)


def reasons(log: str) -> dict[str, str]:
    """Return why models were not read, by name; of several reasons the latest."""
    found: dict[str, str] = {}
    details: list[str] = []
    for line in log.splitlines():
        if detail := _PROTO_ERROR.search(line):
            details.append(detail["what"])
        for pattern in _UNREAD:
            if match := pattern.search(line):
                found[match["model"]] = ": ".join([match["reason"], *details[:1]])
                details = []
                break
    return found


def loaded_models(log: str) -> list[str]:
    """Return the models that Triton has loaded at some time, in order."""
    return list(dict.fromkeys(re.findall(r"\"successfully loaded '(.*?)'", log)))


def still_loading(log: str) -> list[str]:
    """Return the models that Triton began to load and has not finished, in order."""
    begun = re.findall(r"\"loading: (.*):\d+\"", log)
    ended = set(re.findall(r"(?:successfully loaded|failed to load) '(.*?)'", log))
    return [name for name in dict.fromkeys(begun) if name not in ended]


def last_words(log: str) -> str:
    """Return what a server that ended said last: Triton's last error, else the last line that is none of its news."""
    lines = [line.strip() for line in log.splitlines()]
    errors = [line.partition("] ")[2].strip('"') for line in lines if re.match(r"[EF]\d{4} .*\] ", line)]
    said = errors or [line for line in lines if not _NEWS.match(line)]
    return tidy(said[-1])[:LAST_WORDS] if said else ""
