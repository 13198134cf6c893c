"""The batch axis: where a model has one, and giving one to a model exported with a fixed batch of 1.

Nothing here is taken on trust: :func:`plan_batching` runs the candidate on rows and compares with each row alone.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from repo_builder.comparison import Tolerance
from repo_builder.errors import ModelError, VerificationError
from repo_builder.onnx_model import OnnxModel, nodes_of
from repo_builder.passes.graph import integer_constants
from repo_builder.runtime import Session, open_session
from repo_builder.verify import Reference, verify

if TYPE_CHECKING:
    import onnx

BATCH_SYMBOL = "batch"


@dataclass(frozen=True)
class Batching:
    """Whether a model can be batched, the sentence why, and the graph to use.

    ``told_by_values``: other inputs may tell otherwise, since what these rows gave together rules it out, or since the
    model has branches or loops.
    """

    batchable: bool
    reason: str
    proto: onnx.ModelProto
    told_by_values: bool = False


def plan_batching(model: OnnxModel, reference: Reference, largest: int, folder: Path) -> Batching:
    """Find out by running whether requests for ``model`` may be joined along the first axis.

    Rows together have to give what each gives alone, to the last few digits of their type: how far an artifact may be
    from its source is another question.

    Args:
        model: the source.
        reference: ONNX Runtime on the source, as :meth:`Reference.open` gave it.
        largest: the largest batch to be served, which is tried too: rows may meet in large batches only.
        folder: holds the model's external data; a candidate is written there for a moment.

    Raises:
        ModelError: the source does not run on another row of its inputs.
        VerificationError: the largest batch is too large to be tried.
    """
    obstacle = _obstacle_of_inputs(model, reference) or _obstacle_of_outputs(reference)
    if obstacle:
        return Batching(False, obstacle, model.proto)
    size = reference.telling_batch()
    fixed = any(tensor.dims[0] == 1 for tensor in model.spec.inputs)
    if size is None and fixed:
        return Batching(False, "its batch is fixed at 1, and rows that are all alike can't show more", model.proto)
    proto = with_dynamic_batch(model.proto) if fixed or _outputs_need_batch(reference) else model.proto
    smallest = size or 2
    largest = max(smallest, largest)
    fault = _fault_of_batches(model, proto, reference, smallest, largest, folder)
    if fault:
        start = "its batch is fixed at 1 and can't be made free" if fixed else "its first axis is no batch"
        return Batching(False, f"{start}: {fault}", model.proto, told_by_values=True)
    if fixed:
        proof = f"a batch of {largest} gives what {largest} of 1 give"
        reason = f"its batch was fixed at 1 and is free now: on {reference.kind} {proof}"
        return Batching(True, reason, proto, told_by_values=_branches(proto))
    if size is None:
        return Batching(True, "its first axes are free (rows that are all alike can't show more)", proto)
    proof = f"on {reference.kind} rows of a batch do not influence each other"
    return Batching(True, f"its first axes are free, and {proof}", proto, told_by_values=_branches(proto))


def static_batching(model: OnnxModel) -> Batching:
    """Tell from the file alone, without running it: the first axis of every input and output is free."""
    for role, tensors in (("input", model.spec.inputs), ("output", model.spec.outputs)):
        for tensor in tensors:
            if tensor.shape is None or tensor.dims[:1] != (-1,):
                return Batching(False, f"the first axis of {role} {tensor} is not free", model.proto)
    return Batching(True, "the first axis of every input and output is free (not checked by running it)", model.proto)


def _obstacle_of_inputs(model: OnnxModel, reference: Reference) -> str | None:
    """Why the inputs rule a batch axis out, if they do."""
    if not model.spec.inputs:
        return "it has no inputs"
    for tensor in model.spec.inputs:
        if tensor.shape is None:
            return f"the shape of input {tensor.name!r} is unknown"
        if not tensor.shape:
            return f"input {tensor.name!r} is a scalar, without a batch axis"
        if tensor.dims[0] not in {-1, 1}:
            return f"the first axis of input {tensor} is fixed at {tensor.dims[0]}"
        if isinstance(tensor.shape[0], str) and tensor.shape[0] in tensor.shape[1:]:
            return f"the first axis of input {tensor} is tied to another axis of it"
    if not reference.batch_axis:
        return "it does not run with 1 in the first axis of every input"
    return None


def _obstacle_of_outputs(reference: Reference) -> str | None:
    """Why what one row gives is no row of a batch, if so."""
    for name, array in reference.row(0)[1].items():
        if not array.ndim:
            return f"output {name!r} is a scalar, without a batch axis"
        if array.shape[0] != 1:
            return f"output {name!r} has {array.shape[0]} in its first axis for one row of the inputs"
    return None


def _branches(proto: onnx.ModelProto) -> bool:
    """Whether values decide which nodes run."""
    return any(node.op_type in {"If", "Loop"} for node in nodes_of(proto.graph))


def _outputs_need_batch(reference: Reference) -> bool:
    """Whether an output's first axis, as ONNX Runtime understands the source, is fixed or unknown."""
    return any(tensor.dims[:1] != (-1,) for tensor in reference.session.outputs)


def _fault_of_batches(
    model: OnnxModel, proto: onnx.ModelProto, reference: Reference, smallest: int, largest: int, folder: Path
) -> str | None:
    """None when the smallest and the largest batch give what the rows give alone, else what went wrong."""
    try:
        session = reference.session if proto is model.proto else _open_candidate(proto, folder, reference)
    except ModelError as error:
        return str(error)
    fault = _fault_of_batch(session, reference, smallest)
    if fault or largest == smallest:
        return fault
    reference.refuse_too_large(largest)
    return _fault_of_batch(session, reference, largest)


def _fault_of_batch(session: Session, reference: Reference, size: int) -> str | None:
    try:
        verify(session.run, reference, (size,), Tolerance(), seed=0)
    except VerificationError as error:
        fault = f"of a batch of {size} is not what each row alone gives"
        message = error.message.replace("is not what ONNX Runtime computes from the source", fault)
        return message.replace("the artifact does not run", "it does not run")
    return None


def _open_candidate(proto: onnx.ModelProto, folder: Path, reference: Reference) -> Session:
    import onnx

    path = folder / "candidate.onnx"
    try:
        onnx.save(proto, path)
        return open_session(path, int8_kernels=reference.session.int8_kernels)
    finally:
        path.unlink(missing_ok=True)


def with_dynamic_batch(source: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``source`` whose inputs and outputs have a free first axis named ``batch``.

    Reshape targets that are constants with 1 in front are turned to take their first axis from the data; shapes
    recorded for inner values are dropped, since they no longer hold.
    """
    proto = deepcopy(source)
    graph = proto.graph
    del graph.value_info[:]
    initialisers = {tensor.name for tensor in graph.initializer}
    for value in (*graph.input, *graph.output):
        shape = value.type.tensor_type.shape
        if value.name not in initialisers and shape.dim:
            shape.dim[0].Clear()
            shape.dim[0].dim_param = BATCH_SYMBOL
    _free_reshapes(graph)
    return proto


def _free_reshapes(graph: onnx.GraphProto) -> None:
    import numpy as np
    from onnx import numpy_helper

    constants = integer_constants(graph)
    for node in graph.node:
        if node.op_type != "Reshape":
            continue
        old_style = next((attribute for attribute in node.attribute if attribute.name == "shape"), None)  # opset 1
        if old_style is not None:
            old_style.ints[:] = _free_target(list(old_style.ints))
        elif len(node.input) > 1 and node.input[1] in constants:
            target = constants[node.input[1]]
            freed = _free_target(target)
            if freed != target:
                name = f"{node.input[1]}_{BATCH_SYMBOL}_{node.output[0]}"
                graph.initializer.append(numpy_helper.from_array(np.array(freed, np.int64), name))
                node.input[1] = name


def _free_target(target: list[int]) -> list[int]:
    """A Reshape target whose leading 1 is inferred (-1), or copied from the data (0) when another axis is inferred."""
    if target[:1] != [1]:
        return target
    return [0 if -1 in target else -1, *target[1:]]
