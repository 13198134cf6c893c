# ruff: noqa: E501, ISC004  (messages as they came)
"""Real messages of TensorRT and of Triton's backend for it, as users reported them, and what we make of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from repo_builder.servers.base import ServerOptions
from repo_builder.servers.load_errors import explain
from repo_builder.servers.supervised import checked_repository
from repo_builder.servers.triton_log import LAST_WORDS, last_words, plan_errors
from tests.servers.repositories import write_identity

# The numbers are issues of triton-inference-server/server, else of the repository named.
MESSAGES = {
    "version tag, #3710, #7613": (
        "1: [stdArchiveReader.cpp::StdArchiveReaderInitCommon::46] Error Code 1: Serialization (Serialization assertion "
        "stdVersionRead == serializationVersion failed.Version tag does not match. Note: Current Version: 236, "
        "Serialized Engine Version: 237)",
        "its plan is of another TensorRT version than this server's",
    ),
    "library version, #5812": (
        "6: The engine plan file is not compatible with this version of TensorRT, expecting library version 8.6.1.6 got "
        "8.6.0.12, please rebuild.",
        "its plan is of TensorRT 8.6.0.12, this server has 8.6.1.6",
    ),
    "library version that 10.x can't name": (
        "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file is not compatible with "
        "this version of TensorRT, expecting library version 10.7.0.23 got ..)",
        "its plan is of another TensorRT version than this server's",
    ),
    "compute capability, NVIDIA/TensorRT#3130": (
        "6: The engine plan file is generated on an incompatible device, expecting compute 7.5 got compute 8.6, please "
        "rebuild.",
        "its plan was built for GPUs of compute capability 8.6, this one has 7.5",
    ),
    "an RTX engine on an H100": (
        "The engine cannot run on this GPU, which has compute capability 9.0",
        "its engine is not for this GPU, of compute capability 9.0",
    ),
    "no plan for this GPU": (
        "unable to find '/models/det/1/model.plan' for model instance 'det_0_0'",
        "it has no model.plan, nor does cc_model_filenames name a plan for this GPU's compute capability",
    ),
    "max-batch, #5013, #7056": (
        "Internal: autofill failed for model 'det': configuration specified max-batch 8 but TensorRT engine only "
        "supports max-batch 1",
        "config.pbtxt has max_batch_size: 8, the plan takes 1 at most",
    ),
    "batch written twice, #3880": (
        "Invalid argument: model 'det', tensor 'images': the model expects 4 dimensions (shape [-1,3,640,640]) but the "
        "model configuration specifies 5 dimensions (an initial batch dimension because max_batch_size > 0 followed by "
        "the explicit tensor shape, making complete shape [-1,-1,3,640,640])",
        "config.pbtxt has shape [-1,-1,3,640,640] for 'images', the model has [-1,3,640,640]",
    ),
    "request beyond the profile, #4384": (
        "request specifies invalid shape for input 'images' for det_0. Error details: model expected the shape of "
        "dimension 0 to be between 1 and 1 but received 32",
        "the plan takes 1 to 1 in dimension 0, and got 32",
    ),
    "INT64, #7307": (
        "Invalid argument: unexpected datatype TYPE_INT64 for inference input 'ids', expecting TYPE_INT32 for det",
        "config.pbtxt has TYPE_INT32 for input 'ids', the plan has TYPE_INT64",
    ),
    "plugin of 7.x, wang-xinyu/tensorrtx#423": (
        "INVALID_ARGUMENT: getPluginCreator could not find plugin Decode_TRT version 1",
        "its plan uses the plugin Decode_TRT, which this server does not have",
    ),
    "plugin of 10.x, NVIDIA/TensorRT-LLM#1584": (
        "getPluginCreator could not find plugin: Gemmtensorrt_llm version: 1",
        "its plan uses the plugin Gemmtensorrt_llm, which this server does not have",
    ),
    "channels taken for the batch, #7450": (
        "Internal: autofill failed for model 'det': model tensor shape configuration hints for dynamic batching but the "
        "underlying engine doesn't support batching.",
        "config.pbtxt makes the first dimension the batch, and the plan has none there",
    ),
    "memory, #6928": (
        "1: [defaultAllocator.cpp::allocate::19] Error Code 1: Cuda Runtime (out of memory)",
        "the GPU's memory is not enough for it",
    ),
    "no plan at all, #3173": (
        "1: [runtime.cpp::parsePlan::314] Error Code 1: Serialization (Serialization assertion plan->header.magicTag == "
        "rt::kPLAN_MAGIC_TAG failed.)",
        "model.plan is no TensorRT plan, or of a much older or newer TensorRT",
    ),
    "a plan for the CPU, #4696, #5863": (
        "Invalid argument: unable to load model 'ocr', TensorRT backend supports only GPU device",
        "a plan runs on GPUs only, and the server puts it on the CPU",
    ),
    "plugin without its name": (
        "1: [pluginV2Runner.cpp::load::290] Error Code 1: Serialization (Serialization assertion creator failed.Cannot "
        "deserialize plugin since corresponding IPluginCreator not found in Plugin Registry)",
        "its plan uses a plugin that this server does not have",
    ),
    "driver": (
        "unable to get number of CUDA devices: CUDA driver version is insufficient for CUDA runtime version",
        "the driver is too old for this server's CUDA",
    ),
    "a step of an ensemble, NVIDIA/TensorRT-LLM#1995": (
        "Invalid argument: ensemble 'ensemble' depends on 'tensorrt_llm' which has no loaded version. Model "
        "'tensorrt_llm' loading failed with error: version 1 is at UNAVAILABLE state: Invalid argument: unable to find "
        "backend library for backend '${triton_backend}', try specifying runtime on the model configuration.;",
        "its step 'tensorrt_llm' is not loaded",
    ),
    "a warmup request with any integers as indices": (
        "Invalid argument: failed to run warmup sample 'rnd': [ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Non-zero "
        "status code returned while running Gather node. Name:'' Status Message: indices element out of data bounds; ",
        "its warmup request 'rnd' fails: Non-zero status code returned while running Gather node. Name:'' Status Message: "
        "indices element out of data bounds",
    ),
    "the local server without TensorRT": (
        "Internal: TritonModelException: tensorrt can't be imported: No module named 'tensorrt'",
        "tensorrt can't be imported: No module named 'tensorrt'",
    ),
    "a platform as the backend, #5206": (
        "Invalid argument: unable to find 'libtriton_tensorrt_plan.so' for model 'det', searched: /models/det/1, "
        "/models/det, /opt/tritonserver/backends/tensorrt_plan",
        "tensorrt_plan is a platform, not a backend",
    ),
}


@pytest.mark.parametrize(("message", "cause"), MESSAGES.values(), ids=MESSAGES)
def test_messages_of_servers(message: str, cause: str) -> None:
    explanation = explain("det", message)
    assert explanation.cause == cause
    assert explanation.hint
    assert "{" not in explanation.hint


@pytest.mark.parametrize(
    ("message", "what"),
    [
        ("failed to open directory /models/det/1", "/models/det/1"),
        ("failed to open text file for read /models/det/config.pbtxt: Permission denied", "/models/det/config.pbtxt"),
        (
            "Internal: TritonModelException: unable to load /models/det/1/model.onnx: [ONNXRuntimeError] : 1 : FAIL : Load "
            "model from /models/det/1/model.onnx failed:system error number 13",
            "/models/det/1/model.onnx",
        ),
        ("[ONNXRuntimeError] : 13 : MODEL_REQUIRES_COMPILATION : SystemError : 13", "a file with weights of the model"),
    ],
)
def test_files_that_the_server_may_not_read(message: str, what: str) -> None:
    explanation = explain("det", message)
    assert explanation.cause == f"{what} can't be read by the user that the server runs as"
    assert str(explanation.hint).startswith("chmod -R a+rX on det in the repository")


@pytest.mark.usefixtures("file_modes_hold")
def test_a_model_that_can_not_be_read_keeps_no_other_from_being_served(tmp_path: Path) -> None:
    for name in ("good", "closed"):
        write_identity(tmp_path, name)
    (tmp_path / "closed").chmod(0)
    assert checked_repository(tmp_path, ServerOptions(models=("good", "closed"))) == tmp_path


def test_the_mend_of_a_missing_gpu_is_right_for_plans_too() -> None:
    """Of what asks for a GPU, Triton does not say what it is."""
    hint = explain("det", "instance group det_0 of model det has kind KIND_GPU but no GPUs are available").hint
    assert str(hint).startswith("serve it where there is one; if it is no plan: repo-builder add --instance-kind cpu")


VERSION_TAG, LIBRARY = (MESSAGES[name][0] for name in ("version tag, #3710, #7613", "library version, #5812"))
FAILED = "unable to load plan file to auto complete config: /models/{0}/1/model.plan"
LOG = f"""\
I1108 15:57:56.052554 1 model_lifecycle.cc:472] "loading: one:1"
E1108 15:57:56.242514 1 logging.cc:40] "{VERSION_TAG}"
E1108 15:57:56.242515 1 logging.cc:40] "4: [runtime.cpp::deserializeCudaEngine::66] Error Code 4: Internal Error"
E1108 15:57:56.242516 1 model_lifecycle.cc:638] "failed to load 'one' version 1: Internal: {FAILED.format("one")}"
E1108 15:57:57.242514 1 logging.cc:40] "{LIBRARY}"
E1108 15:57:57.242516 1 model_lifecycle.cc:638] "failed to load 'two' version 1: Internal: {FAILED.format("two")}"
E1108 15:57:57.242517 1 model_lifecycle.cc:638] "failed to load 'three' version 1: Internal: {FAILED.format("three")}"
E1108 15:57:58.242517 1 model_lifecycle.cc:638] "failed to load 'four' version 1: Not found: unable to find 'x'"
"""


def test_tensorrt_s_words_are_found_for_each_plan() -> None:
    found = plan_errors(LOG)
    assert set(found) == {"one", "two", "three"}
    causes = {model: explain(model, f"Internal: {FAILED.format(model)}: {said}").cause for model, said in found.items()}
    assert causes == {
        "one": "its plan is of another TensorRT version than this server's",
        "two": "its plan is of TensorRT 8.6.0.12, this server has 8.6.1.6",
        "three": "its plan is of TensorRT 8.6.0.12, this server has 8.6.1.6",
    }
    assert plan_errors("") == {}


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("", ""),
        ("boom: libfoo.so missing\n\n", "boom: libfoo.so missing"),
        ('E1121 10:00:00 1 main.cc:1] "no good"\nerror: creating server\n', "no good"),
        ("tritonserver: libx.so: cannot open\x1b[0m\n+---+\n| a |\n+---+\n", "tritonserver: libx.so: cannot open?[0m"),
        ('I1121 10:00:00 1 server.cc:1] "started"\n', ""),
        ("x" * 1000, "x" * LAST_WORDS),
    ],
)
def test_a_server_s_last_words_are_those_that_tell_why(log: str, said: str) -> None:
    assert last_words(log) == said
