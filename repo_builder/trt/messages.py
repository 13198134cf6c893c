"""TensorRT's messages for people: on one line, without its source locations, with the node that they are about."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from repo_builder.onnx_model import nodes_of

if TYPE_CHECKING:
    import onnx

_NO_DRIVER = re.compile(r"(?:\[[\w.]+::\w+::\d+\] )?Error Code 1: Cuda Runtime \([^()]*\(cudaError 35:[^()]*\)\)")
"""Said of every failure on a machine without a GPU's driver, beside what really failed."""

_WRAPPED = re.compile(
    r"(?:\d+: )?(?:\w+::\w+: )?Error Code \d+: (?:API Usage Error|Internal Error|Shape Error|Myelin) "
    r"\(((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)"
)
_ASSERTION = re.compile(
    r'(?:Assertion failed: )?\S.* && "(?P<text>[^"]+)"$'
    r"|Assertion failed: .*?(?<!:): (?P<said>[A-Z].*)"
)

UNSUPPORTED = "operator not supported"

REFUSED_LAYER = (
    "the graph is wrong there, or TensorRT stricter than others: export the model again, or serve it by add --target "
    "onnxruntime"
)
"""The mend where TensorRT names a layer that it does not take."""

UNNAMED = "node_of_"
"""TensorRT names a node without a name after its first output, with this in front."""


def tidy(message: str) -> str:
    """``message`` on one line, without where in TensorRT's own source it was written."""
    text = _NO_DRIVER.sub("", " ".join(message.split()))
    text = re.sub(r"\[\w+\.\w+::\w+::\d+\] |\[\w+\.\w+:\d+: \w+\] ", "", text)
    text = re.sub(r"\s*\bIn \S+ at \S+?:\d+|\b\w+\.cpp:\d+: ", "", text)
    text = re.sub(r"\(\s*\)", "", text).replace("( (", "(")
    return re.sub(r"(\S+: )\1", r"\1", _WRAPPED.sub(r"\1", text)).strip()


def tidy_assertion(text: str) -> str:
    """What the parser says of a node: of a failed assertion in C++ only what it was to tell; of ``false`` our words."""
    if text in {"", "false"}:
        return UNSUPPORTED
    text = re.sub(rf"^(?:Invalid Node - \S+ )?(?:{UNNAMED}\S+: )?", "", text)
    if re.search(r"Plugin not found|\w plugin creator version \d+ was not found", text):  # some operators are plugins
        return UNSUPPORTED
    text = re.sub(r"^(Failed to import initializer: ).*: ", r"\1", text)
    found = _ASSERTION.match(text)
    return (found["text"] or found["said"]) if found else text


def name_of(node: onnx.NodeProto) -> str:
    """What to call a node: by its name, or else by what it makes first."""
    return node.name.removeprefix(UNNAMED) or next(filter(None, node.output), "")


def listed(names: Sequence[str], most: int = 8) -> str:
    """``a, b, c``, cut where a line of names would become a page of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def described(node: onnx.NodeProto) -> str:
    """``node NAME (OPERATOR)``."""
    return f"node {name_of(node)} ({node.op_type})"


def name_nodes(converted: onnx.ModelProto, source: onnx.ModelProto) -> None:
    """Name nodes of ``converted`` that have no name, in place, after what they make in the user's ``source``."""
    from repo_builder.passes.graph import all_names

    known = all_names(source.graph)
    for node in nodes_of(converted.graph):
        if not node.name and node.output:
            made = node.output[0]
            node.name = UNNAMED + (made if made in known else re.sub(r"_(?:fp16|bf16|fp32)(?:_\d+)?$", "", made))


def node_in(message: str, proto: onnx.ModelProto) -> str | None:
    """The node that ``message`` is about, as ``node NAME (OPERATOR)``; TensorRT names layers after nodes."""
    layers = ((node.name or UNNAMED + name_of(node), node) for node in nodes_of(proto.graph))
    for layer, node in sorted(((layer, node) for layer, node in layers if len(layer) > 2), key=_by_length):
        if re.search(rf"(?<![\w/.]){re.escape(layer)}(?![A-Za-z0-9])", message):
            return described(node)
    return None


def _by_length(named: tuple[str, onnx.NodeProto]) -> int:
    return -len(named[0])
