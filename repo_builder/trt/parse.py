"""An ONNX file to a TensorRT network, and every reason why not, at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from repo_builder.errors import CompileError
from repo_builder.trt.build import tidy
from repo_builder.trt.library import Library
from repo_builder.trt.log import BuildLog

if TYPE_CHECKING:
    import onnx

_SHOWN = 8


def parse(library: Library, network: Any, path: Path, proto: onnx.ModelProto, log: BuildLog) -> Any:
    """Fill ``network`` from the file and return the parser, which must outlive the build.

    ``proto`` is the file's content: old parsers tell a node by its number only.

    Raises:
        CompileError: with the name and operator of every node that TensorRT can't take.
    """
    parser = library.module.OnnxParser(network, log.logger)
    log.errors.clear()
    if parser.parse_from_file(str(path)):
        return parser
    problems = [_describe(parser.get_error(index), proto) for index in range(parser.num_errors)]
    problems += [problem for problem in _unsupported(parser, proto) if problem not in problems]
    problems = list(dict.fromkeys(problems)) or [tidy(message) for message in log.errors] or ["it gave no reason"]
    shown = "; ".join(problems[:_SHOWN])
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    raise CompileError(
        f"{library.name} {library.version} can't take the model: {shown}{more}",
        "export those parts otherwise, give their layers with --plugin LIB.so, or use --target onnxruntime",
    )


def _describe(error: Any, proto: onnx.ModelProto) -> str:
    index = error.node()
    nodes = proto.graph.node
    name = error.node_name() if hasattr(error, "node_name") else nodes[index].name if 0 <= index < len(nodes) else ""
    operator = (
        error.node_operator()
        if hasattr(error, "node_operator")
        else nodes[index].op_type
        if 0 <= index < len(nodes)
        else ""
    )
    where = f"node {name or f'number {index}'} ({operator}): " if operator else ""
    return where + tidy(error.desc())


def _unsupported(parser: Any, proto: onnx.ModelProto) -> list[str]:
    """Operators that the parser has no importer for, of the whole graph: it stops at the first of them."""
    from repo_builder.passes.graph import subgraphs

    def walk(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
        return [n for node in graph.node for n in (node, *(x for body in subgraphs(node) for x in walk(body)))]

    return [
        f"node {node.name or node.output[0]} ({node.op_type}): operator not supported"
        for node in walk(proto.graph)
        if not parser.supports_operator(node.op_type)
    ]
