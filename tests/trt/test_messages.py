# ruff: noqa: E501, ISC004  (messages as they came)
"""TensorRT's own messages, as RTX 1.7 and 8.6 wrote them, and what a person reads of them."""

from __future__ import annotations

import pytest

from repo_builder.trt.messages import node_in, tidy, tidy_assertion
from tests.models import FP32, model, node

NO_DRIVER = (
    "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError at "
    "/_src/common/dispatch/checkMacros.cpp:250 (cudaError 35: CUDA driver version is insufficient for CUDA runtime "
    "version))"
)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (IConditionalOutputLayer /model/If_3: Must "
            "have inputs with equal ranks. Dimensions are [3,4] and [1,3,4]. In lowerShapes at "
            "/_src/optimizer/common/nodes/conditionalOutputNode.cpp:144 In analyzeShapes at "
            "/_src/optimizer/shapeof/graphShapeAnalyzer.cpp:2825)",
            "IConditionalOutputLayer /model/If_3: Must have inputs with equal ranks. Dimensions are [3,4] and [1,3,4].",
        ),
        (
            "4: [network.cpp::validate::3062] Error Code 4: Internal Error (Network must have at least one output)",
            "Network must have at least one output",
        ),
        (
            "Error Code 2: Internal Error (Assertion mContext.maxScratchSize > 0 failed. Please increase (a lot) the "
            "workspace. In reserve at /_src/a.cpp:12)",
            "Assertion mContext.maxScratchSize > 0 failed. Please increase (a lot) the workspace.",
        ),
        (
            "2: Error Code 2: OutOfMemory (no further information)",
            "2: Error Code 2: OutOfMemory (no further information)",
        ),
        (
            "IBuilder::buildSerializedNetwork: Error Code 1: Myelin (MyelinCheckException: tactics_tiled_layout.cpp:5180: "
            "CHECK(check_each_operation(g_)) failed. )",
            "MyelinCheckException: CHECK(check_each_operation(g_)) failed.",
        ),
        (
            "WeightsContext.cpp:73: Weight at index 0: 1e+300 is out of range. Clamping to: 3.40282e+38",
            "Weight at index 0: 1e+300 is out of range. Clamping to: 3.40282e+38",
        ),
        (
            "ITensor::getDimensions: Error Code 4: Shape Error (broadcast dimensions must be conformable)",
            "broadcast dimensions must be conformable",
        ),
        ("ITopKLayer /TopK: /TopK: K exceeds 3840.", "ITopKLayer /TopK: K exceeds 3840."),
        (NO_DRIVER, ""),
        (f"it failed\n{NO_DRIVER}", "it failed"),
    ],
)
def test_messages_on_one_line_without_source_locations(message: str, told: str) -> None:
    assert tidy(message) == told


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("false", "operator not supported"),
        (
            'creator && "Plugin not found, are the plugin name, version, and namespace correct?"',
            "operator not supported",
        ),
        (
            "Assertion failed: creator && getVersion(creator) == CreatorVersion::kV3ONE: NonZero plugin creator version 1 "
            "was not found in plugin registry.",
            "operator not supported",
        ),
        ("Invalid Node - /mixed/Add /mixed/Add: SUM must have same types", "/mixed/Add: SUM must have same types"),
        ("node_of_y: the types differ", "the types differ"),
        (
            "Failed to import initializer: In node -1 with name: and operator: (importInitializers): UNSUPPORTED_NODE: "
            "Assertion failed: ctx->getWeightsContext.convertOnnxWeights(initializer, &weights): Failed to import "
            "initializer: labels",
            "Failed to import initializer: labels",
        ),
        ("the shapes do not fit", "the shapes do not fit"),
    ],
)
def test_what_the_parser_says_of_a_node(said: str, told: str) -> None:
    assert tidy_assertion(said) == told


def test_the_node_that_a_layer_was_made_of() -> None:
    nodes = [
        node("Relu", ["x"], ["a"], name="/block/If"),
        node("Relu", ["a"], ["b"], name="/block/If_3"),
        node("Relu", ["b"], ["c"], name="9"),
        node("Neg", ["c"], ["y"]),
    ]
    proto = model(nodes, {"x": (FP32, [4])}, {"y": (FP32, [4])})
    proto.graph.node[3].ClearField("name")
    assert node_in("layer /block/If_3_OutputLayer: no", proto) == "node /block/If_3 (Relu)"
    assert node_in("layer /block/If: no", proto) == "node /block/If (Relu)"
    assert node_in("layer /block/If_31: no", proto) == "node /block/If (Relu)"
    assert node_in("layer node_of_y_0 has no runners", proto) == "node y (Neg)"
    assert node_in("9 layers, and /other/block/If too", proto) is None
