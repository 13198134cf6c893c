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


_CORRECT = "correct config.pbtxt, or publish the model again with repo-builder add"

_UNREADABLE = "can't be read by the user that the server runs as"
_READABLE = "chmod -R a+rX on {model} in the repository, and on what its links lead to"

_AGAIN = "publish it again on this machine with repo-builder add"
_PLUGIN = "publish it again with --plugin LIB.so, or start the server with LD_PRELOAD=/path/to/plugin.so"
_ADD_PLAN = "add one on this machine: repo-builder add ... --cc-plan"
_CONTAINER = "repo-builder doctor names the container that loads it; or " + _AGAIN

# TensorRT's own words, and those of Triton's backend for it.
_TENSORRT_RULES = (
    _rule(
        r"expecting library version (?P<here>[\d.]*\d) got (?P<built>[\d.]*\d)",
        "its plan is of TensorRT {built}, this server has {here}",
        _CONTAINER,
    ),
    _rule(
        r"(?:Version tag does not match|expecting library version)"
        r"(?:[^\n]*?(?P<told>; (?:it was built by|here is) [^\n]*))?",
        "its plan is of another TensorRT version than this server's{told}",
        _CONTAINER,
    ),
    _rule(
        r"expecting compute (?P<here>[\d.]*\d) got (?:compute )?(?P<built>[\d.]*\d)",
        "its plan was built for GPUs of compute capability {built}, this one has {here}",
        _AGAIN,
    ),
    _rule(
        r"unable to find '[^']*' for .*?; cc_model_filenames has plans for (?P<there>[\d., ]*\d), "
        r"none for (?P<here>[\d.]*\d)",
        "it has plans for GPUs of compute capability {there}, none for this one's {here}",
        _ADD_PLAN,
    ),
    _rule(
        r"unable to find '[^']*model\.plan' for model instance",
        "it has no model.plan, nor does cc_model_filenames name a plan for this GPU's compute capability",
        _ADD_PLAN,
    ),
    _rule(
        r"engine cannot run on this GPU, which has compute capability (?P<here>[\d.]*\d)",
        "its engine is not for this GPU, of compute capability {here}",
        _AGAIN,
    ),
    _rule(
        r"[Mm]agic ?[Tt]ag",
        "model.plan is no TensorRT plan, or of a much older or newer TensorRT",
        _CONTAINER,
    ),
    _rule(
        r"could not find plugin:? (?P<plugin>[^\s,]+)|Cannot find plugin: (?P<other>[^\s,]+)",
        "its plan uses the plugin {plugin}{other}, which this server does not have",
        _PLUGIN,
    ),
    _rule(
        r"IPluginCreator not found in Plugin Registry",
        "its plan uses a plugin that this server does not have",
        _PLUGIN,
    ),
    _rule(
        r"specified max-batch (?P<config>\d+) but TensorRT engine only supports max-batch (?P<actual>\d+)",
        "config.pbtxt has max_batch_size: {config}, the plan takes {actual} at most",
        "set max_batch_size: {actual} in config.pbtxt, or publish it with repo-builder add --max-batch-size {config}",
    ),
    _rule(
        r"hints for dynamic batching but the underlying engine doesn't support batching",
        "config.pbtxt makes the first dimension the batch, and the plan has none there",
        "set max_batch_size: 0 and all dims in config.pbtxt, or publish it again with repo-builder add",
    ),
    _rule(
        r"shape of dimension (?P<axis>\d+) to be between (?P<low>\d+) and (?P<high>\d+) but received (?P<got>\d+)",
        "the plan takes {low} to {high} in dimension {axis}, and got {got}",
        "publish it again with repo-builder add and a larger --max-batch-size or --max-shapes",
    ),
    _rule(
        r"unexpected datatype (?P<actual>TYPE_\w+) for inference (?P<role>input|output) '(?P<tensor>.*?)', "
        r"expecting (?P<config>TYPE_\w+)",
        "config.pbtxt has {config} for {role} {tensor!r}, the plan has {actual}",
        "set data_type: {actual} in config.pbtxt; TYPE_INT64 needs Triton 24.05 or newer, TYPE_BF16 24.06",
    ),
    _rule(
        r"Cuda Runtime \(out of memory\)|OutOfMemory|CUDA out of memory|cudaErrorMemoryAllocation|memory left on",
        "the GPU's memory is not enough for it",
        "lower count in instance_group, each instance takes its own; or --model NAME to serve fewer models",
    ),
    _rule(
        r"CUDA driver version is insufficient|cudaErrorInsufficientDriver",
        "the driver is too old for this server's CUDA",
        "repo-builder doctor names the newest container for the driver",
    ),
    _rule(
        r"runs on GPUs only, and there is none",
        "a plan runs on GPUs only, and there is none here",
        "serve it where there is one, or publish it for the CPU: repo-builder add --target onnxruntime",
    ),
    _rule(
        r"runs on GPUs only: instance_group|TensorRT backend supports only GPU device",
        "a plan runs on GPUs only, and the server puts it on the CPU",
        "set kind: KIND_GPU in config.pbtxt, or drop instance_group; a container sees GPUs with --gpus all; "
        "without a GPU: repo-builder add --target onnxruntime",
    ),
    _rule(
        r"(?P<what>(?:tensorrt(?:_rtx)?|cuda-python) can't be imported: [^\n]*)",
        "{what}",
        "pip install 'repo-builder[tensorrt]', or repo-builder[rtx] for engines of TensorRT-RTX",
    ),
    _rule(r"instance_group has profile (?P<what>'.*?'; the engine has \d+)", "it has the profile {what}", _CORRECT),
    _rule(r"unable to load [^\n:]*\.plan: (?P<said>[^\n]*)", "its plan can't be loaded: {said}", _AGAIN),
    _rule(
        r"unable to find 'libtriton_(?P<backend>tensorrt_plan|onnxruntime_onnx)\.so'",
        "{backend} is a platform, not a backend",
        'write platform: "{backend}" in config.pbtxt in place of backend',
    ),
)

RULES = (
    *_TENSORRT_RULES,
    _rule(
        r"failed to read text proto.*: (?P<line>\d+):(?P<column>\d+): (?P<what>[^\n]*)",
        "config.pbtxt line {line}, column {column}: {what}",
        _CORRECT,
    ),
    _rule(r"failed to read text proto", "config.pbtxt can't be read or parsed", _CORRECT),
    _rule(
        r"Could not determine backend for model|must specify 'platform' or 'backend'",
        "it has no config.pbtxt that names a platform, and no model file by which Triton could tell one",
        "move what is not a model out of the repository, or publish the model again with repo-builder add",
    ),
    _rule(
        r"unexpected platform type '(?P<platform>.*?)'",
        "config.pbtxt has the platform {platform!r}, which Triton does not have",
        'platform: "onnxruntime_onnx" or "tensorrt_plan"; if it is a backend: backend: "{platform}" in its place',
    ),
    _rule(
        r"unexpected 'platform' and 'backend' pair, got: ?(?P<platform>.*?), (?P<backend>\S+)",
        "config.pbtxt has the platform {platform!r}, which is not one of backend {backend!r}",
        "drop platform from config.pbtxt: backend is enough",
    ),
    _rule(
        r"unexpected directory name '(?P<folder>.*?)' for model '(?P<name>.*?)'",
        "config.pbtxt is for a model named {name!r}, not {folder!r}",
        "rename the folder, or set or leave out name in config.pbtxt",
    ),
    _rule(
        r"^it is not loaded$",
        "it is not loaded; a server loads models only at its start",
        "if it was added since: repo-builder stop, then serve; or serve --poll SECONDS, which takes up changes",
    ),
    _rule(
        r"at least one version must be available",
        "it has no version that its version_policy takes",
        "a version is a numbered folder with the model's file in it, such as {model}/1/model.onnx",
    ),
    _rule(
        r"ensemble '.*?' depends on '(?P<step>.*?)' which has no loaded version",
        "its step {step!r} is not loaded",
        "mend the model {step}",
    ),
    _rule(
        r"(?P<field>\w+) is not supported by the local server's (?P<backend>\w+) backend",
        "config.pbtxt asks for {field}, which the local server's {backend} backend does not have",
        "repo-builder serve --engine docker serves it with NVIDIA's backend",
    ),
    _rule(
        r"unable to find backend library for backend '(?P<backend>.*?)'",
        "this server has no backend {backend!r}",
        "serve it with NVIDIA's container, or publish it again with repo-builder add --target onnxruntime",
    ),
    _rule(
        r"has kind KIND_GPU but (?:no GPUs are available|server does not support)",
        "its instance_group asks for a GPU and there is none",
        "serve it where there is one; if it is no plan: repo-builder add --instance-kind cpu, or kind: KIND_CPU in "
        "config.pbtxt; a plan: repo-builder add --target onnxruntime",
    ),
    _rule(
        r"failed to run warmup sample '(?P<sample>.*?)': (?P<what>[^;]*)",
        "its warmup request {sample!r} fails: {what}",
        "correct model_warmup in config.pbtxt, or take it out",
    ),
    _rule(
        r"unable to find '(?P<file>[^']*)'", "{file} is missing", "publish the model again with repo-builder add"
    ),
    _rule(r"failed to open directory (?P<path>[^\n\"]+)", f"{{path}} {_UNREADABLE}", _READABLE),
    _rule(
        r"(?P<path>/[^\n:]*?)(?:: Permission denied| failed: ?system error number 13)",
        f"{{path}} {_UNREADABLE}",
        _READABLE,
    ),
    _rule(r"SystemError ?: 13", f"a file with weights of the model {_UNREADABLE}", _READABLE),
    _rule(
        r"failed to open text file for read [^:]*/config\.pbtxt: No such file",
        "its folder has no config.pbtxt",
        "publish the model with repo-builder add, or move the folder out of the repository",
    ),
    _rule(
        r"failed to open text file for read (?P<file>.*?): No such file",
        "{file} is missing, which config.pbtxt names",
        "put it there, or take its name out of config.pbtxt",
    ),
    _rule(
        r"External data path does not exist: \"(?P<file>.*?)\"",
        "{file} is missing, which holds weights of the model",
        "put it beside the model, or publish the model again with repo-builder add",
    ),
    _rule(
        r"cannot get file size: No such file or directory \[(?P<file>.*?)\]",
        "{file} is missing, which holds weights of the model",
        "put it beside the model, or publish the model again with repo-builder add",
    ),
    _rule(
        r"datatype (?P<config>TYPE_\w+) for (?P<role>input|output) '(?P<tensor>.*?)', "
        r"(?:the model has|model provides) (?P<actual>TYPE_\w+)",
        "config.pbtxt has {config} for {role} {tensor!r}, the model has {actual}",
        "set data_type: {actual} in config.pbtxt",
    ),
    _rule(
        r"configuration has shape (?P<config>\[.*?\]) for (?P<role>input|output) '(?P<tensor>.*?)', "
        r"the model has (?P<actual>\[.*?\])",
        "config.pbtxt has shape {config} for {role} {tensor!r}, the model has {actual}",
        "correct dims or max_batch_size in config.pbtxt; a max_batch_size above 0 puts the batch, -1, before dims",
    ),
    _rule(
        r"tensor '(?P<tensor>.*?)': the model expects \d+ dimensions \(shape (?P<actual>\[.*?\])\).*"
        r"shape (?P<config>\[.*?\])",
        "config.pbtxt has shape {config} for {tensor!r}, the model has {actual}",
        "correct dims or max_batch_size in config.pbtxt; a max_batch_size above 0 puts the batch, -1, before dims",
    ),
    _rule(
        r"(?:input|output|tensor) '(?P<tensor>.*?)'.*for (?:batching|the model to support batching).*first dimension",
        "the model's batch is fixed: the first dimension of {tensor!r} is not free",
        "set max_batch_size: 0 in config.pbtxt, or publish it with repo-builder add, which frees it if it can",
    ),
    _rule(
        r"(?P<role>input|output) '(?P<tensor>.*?)' is not in the model, which has (?P<names>\[.*?\])",
        "config.pbtxt has an {role} {tensor!r}, the model has only {names}",
        "correct the names in config.pbtxt",
    ),
    _rule(
        r"optional input '(?P<tensor>.*?)' has no default in the model",
        "config.pbtxt has optional: true for input {tensor!r}, which the model needs",
        "drop optional from config.pbtxt",
    ),
    _rule(
        r"optional input '(?P<tensor>.*?)' is not supported with batching",
        "config.pbtxt has optional: true for input {tensor!r}, which can't be with batching",
        "take the input out of config.pbtxt: the model has a default; or set max_batch_size: 0 and whole dims",
    ),
    _rule(
        r"configuration (?:has|expects) (?P<config>\d+) inputs.*?(?:the model has|model provides) (?P<actual>\d+)",
        "config.pbtxt has {config} inputs, the model has {actual}",
        "list every input of the model in config.pbtxt",
    ),
    _rule(
        r"(?P<operator>[\w.]*:\w+)\(-?\d+\) is not a registered function/op",
        "ONNX Runtime has no operator {operator!r}, which the model uses",
        "export the model without operators of its own",
    ),
    _rule(
        r"Opset (?P<opset>\d+) is under development.*till opset (?P<latest>\d+)",
        "the model's opset {opset} is newer than this ONNX Runtime's {latest}",
        "pip install --upgrade onnxruntime, or export the model with --opset {latest}",
    ),
    _rule(
        r"Unsupported model IR version: (?P<found>\d+), max supported IR version: (?P<latest>\d+)",
        "the model's IR version {found} is newer than this ONNX Runtime's {latest}",
        "pip install --upgrade onnxruntime, or export the model with an older onnx",
    ),
    _rule(
        r"Protobuf parsing failed|No graph was found in the protobuf|ModelProto does not have a graph|INVALID_PROTOBUF",
        "the model file is no whole ONNX model",
        "export or copy it again, then repo-builder add",
    ),
    _rule(
        r"(?P<what>parameter '.*?' can't be .*?)(?:\n|$)",
        "config.pbtxt's {what}",
        "correct it under parameters in config.pbtxt",
    ),
    _rule(
        r"onnxruntime can't be imported: (?P<what>.*)", "onnxruntime can't be used: {what}",
        "pip install 'repo-builder[server]'",
    ),
    _rule(
        r"shared memory.*--shm-size|No space left on device",
        "/dev/shm is too small for it",  # noqa: S108
        "make /dev/shm larger (serve --shm-size 4g, TRITON_SHM_SIZE=4g for Compose), or lower count in instance_group",
    ),
    _rule(
        r"bad_alloc|[Oo]ut of memory|[Ff]ailed to allocate memory|AllocateRawInternal|Cannot allocate memory",
        "there is not enough memory for it",
        "lower count in instance_group, or --model NAME to serve fewer models",
    ),
    _rule(
        r"Stub process '.*?' is not healthy",
        "its process ended or hung while it was loaded",
        "see the server's log; often there is not enough memory: lower count in instance_group",
    ),
)  # fmt: skip


def explain(model: str, reason: str) -> Explanation:
    """Return the cause and mend of ``reason``, or the reason itself, tidied, where no rule knows it."""
    for rule in RULES:
        if match := rule.pattern.search(reason):
            words = {"model": model, **{key: tidy(value or "") for key, value in match.groupdict().items()}}
            return Explanation(rule.cause.format(**words), rule.mend.format(**words))
    return Explanation(tidy(reason), None)


def tidy(reason: str) -> str:
    """Return ``reason`` on one printable line, without status words, source locations and Python's traceback."""
    text = reason.partition("\n\nAt:\n")[0]
    text = re.sub(r"(?:Internal|Invalid argument|Not found|Unavailable|Unsupported): |TritonModelException: ", "", text)
    text = re.sub(r"\[request id: .*?\] |\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"/onnxruntime_src/\S+ .*?\) (?=[A-Z])", "", text)
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))
